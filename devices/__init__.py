"""Devices that take part through the public API of mqttcollab only; each runs by itself or from `fleet.toml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from mqttcollab.errors import ConfigError, MqttCollabError

if TYPE_CHECKING:
    from mqttcollab import Agent
    from mqttcollab.runtimes import Embedder

HERE = Path(__file__).resolve().parent
# `module` says which file a table of fleet.toml belongs to, `folder` what relative paths start from.
RESERVED = ("module", "folder")

S = TypeVar("S")


def read_settings(cls: type[S], settings: Mapping[str, Any]) -> S:
    """Build the dataclass `cls` from a TOML table; paths are relative to `settings["folder"]` (default: here).

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type; the message names it.
    """
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is no dataclass")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    unknown = sorted(set(settings) - set(known) - set(RESERVED))
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    folder = Path(str(settings.get("folder", HERE)))
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in settings:
            values[name] = _convert(name, settings[name], hints[name], folder)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"setting {name!r} is missing")
    return cls(**values)


def _convert(name: str, value: Any, hint: Any, folder: Path) -> Any:
    """Check `value` against the annotation `hint` (a type, or a union of types and None)."""
    kinds = get_args(hint) or (hint,)
    if Path in kinds and isinstance(value, str):
        return folder / Path(value).expanduser()
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) in kinds or (isinstance(value, Path) and Path in kinds):
        return value
    wanted = " or ".join("a path" if kind is Path else kind.__name__ for kind in kinds if kind is not type(None))
    raise ConfigError(f"setting {name!r} is {value!r}; it must be {wanted}")


def embedder_of(name: str | None) -> Embedder | None:
    """Load the embedder that a device's setting names, if any.

    Raises:
        ConfigError: there is no such embedder.
        RuntimeFailure: it is not installed.
    """
    if not name:
        return None
    from mqttcollab.runtimes.embedders import load_embedder

    return load_embedder(name)


def main(build: Callable[[Mapping[str, Any]], Agent]) -> None:
    """Run one device by itself with its defaults; what stops it from running is told in one line."""
    try:
        build({}).run()
    except MqttCollabError as error:
        raise SystemExit(f"error: {error}") from None
