"""Where the broker is and how to reach it, from a URL, the environment or a TOML file."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from mqttcollab.errors import ConfigError

BROKER_VARIABLE = "MQTTCOLLAB_BROKER"
JOURNAL_VARIABLE = "MQTTCOLLAB_JOURNAL"
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"

MqttVersion = Literal["auto", "5", "3.1.1"]
_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_OPTIONS = ("version", "ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's URL taken apart; build it with `BrokerAddress.parse`.

    Attributes:
        scheme: mqtt, mqtts (TLS), ws or wss (WebSocket, WebSocket over TLS).
        path: the WebSocket path (nats-server: /mqtt).
        version: "auto" tries MQTT 5 and falls back to 3.1.1.
        ca, cert, key: PEM files for TLS; without `ca` the system's authorities are trusted.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    version: MqttVersion = "auto"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @classmethod
    def parse(cls, url: str | None = None) -> BrokerAddress:
        """Reads `scheme://[user:password@]host[:port][/path][?version=3.1.1&ca=…&cert=…&key=…]`.

        Args:
            url: the URL; None takes the environment's MQTTCOLLAB_BROKER, else mqtt://127.0.0.1:1883.

        Raises:
            ConfigError: it is no such URL.
        """
        text = url or os.environ.get(BROKER_VARIABLE) or DEFAULT_BROKER
        shown = f"broker URL {re.sub('//.*@', '//…@', text)!r}"  # no password in a message
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{shown} does not parse: {error}") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigError(f"{shown}: expected mqtt://, mqtts://, ws:// or wss:// and a host, e.g. {DEFAULT_BROKER}")
        if port == 0:
            raise ConfigError(f"{shown}: port 0 does not exist; use one from 1 to 65535")
        options = dict(parse_qsl(parts.query))
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"{shown}: unknown option {name!r}; known: {', '.join(_OPTIONS)}")
        if options.get("version", "auto") not in ("auto", "5", "3.1.1"):
            raise ConfigError(f"{shown}: version is {options['version']!r}; use auto, 5 or 3.1.1")
        for name in ("ca", "cert", "key"):
            if name in options and not os.path.isfile(options[name]):  # noqa: PTH113 - Path raises for some names
                raise ConfigError(f"{shown}: the {name} file {options[name]!r} does not exist")
        return cls(
            parts.scheme,
            parts.hostname,
            port or _PORTS[parts.scheme],
            parts.path or "/",
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            cast(MqttVersion, options.get("version", "auto")),
            *(options.get(name) for name in ("ca", "cert", "key")),
        )

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("mqtts", "wss")

    @property
    def websocket(self) -> bool:
        """Whether MQTT travels in WebSocket frames."""
        return self.scheme in ("ws", "wss")

    def __str__(self) -> str:
        """The URL for people: without user, password and options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path if self.websocket else ''}"


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file; raises ConfigError with the file and the place for one that can't be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
