"""Where the broker is: URLs, the environment, TOML files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.config import BROKER_VARIABLE, DEFAULT_BROKER, BrokerAddress, read_toml
from mqttcollab.errors import ConfigError

HOST = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)
USER = st.text(min_size=1, max_size=12)


@given(
    st.sampled_from(["mqtt", "mqtts", "ws", "wss"]),
    HOST,
    st.integers(1, 65535),
    USER,
    USER,
    st.sampled_from(["auto", "5", "3.1.1"]),
)
def test_what_a_url_says_is_what_one_gets(
    scheme: str, host: str, port: int, user: str, password: str, version: str
) -> None:
    url = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}/mqtt?version={version}"
    address = BrokerAddress.parse(url)
    assert (address.scheme, address.host, address.port, address.path) == (scheme, host, port, "/mqtt")
    assert (address.username, address.password, address.version) == (user, password, version)
    assert (address.tls, address.websocket) == (scheme in ("mqtts", "wss"), scheme in ("ws", "wss"))
    assert str(address) == f"{scheme}://{host}:{port}{'/mqtt' if address.websocket else ''}"


@pytest.mark.parametrize(
    ("url", "port", "path"),
    [
        ("mqtt://broker", 1883, "/"),
        ("mqtts://broker", 8883, "/"),
        ("ws://broker", 80, "/"),
        ("wss://broker/mqtt", 443, "/mqtt"),
        ("mqtt://[::1]:1884", 1884, "/"),
    ],
)
def test_what_a_url_leaves_out_is_the_usual(url: str, port: int, path: str) -> None:
    address = BrokerAddress.parse(url)
    assert (address.port, address.path) == (port, path)
    assert (address.username, address.password, address.version) == (None, None, "auto")


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    address = BrokerAddress.parse("ws://[::1]:1884/mqtt")
    assert address.host == "::1"
    assert str(address) == "ws://[::1]:1884/mqtt"


def test_without_a_url_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BROKER_VARIABLE, raising=False)
    assert str(BrokerAddress.parse()) == DEFAULT_BROKER
    monkeypatch.setenv(BROKER_VARIABLE, "mqtt://elsewhere:1234")
    assert str(BrokerAddress.parse()) == "mqtt://elsewhere:1234"
    assert str(BrokerAddress.parse("mqtt://here")) == "mqtt://here:1883"
    monkeypatch.setenv(BROKER_VARIABLE, "")
    assert str(BrokerAddress.parse()) == DEFAULT_BROKER


def test_certificates_are_files(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    url = f"mqtts://broker?ca={tmp_path}/ca&cert={tmp_path}/cert&key={tmp_path}/key"
    address = BrokerAddress.parse(url)
    assert (address.ca, address.cert, address.key) == tuple(f"{tmp_path}/{name}" for name in ("ca", "cert", "key"))
    (tmp_path / "key").unlink()
    with pytest.raises(ConfigError, match=f"the key file '{tmp_path}/key' does not exist"):
        BrokerAddress.parse(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("broker:1883", "expected mqtt://"),
        ("http://broker", "expected mqtt://"),
        ("mqtt://", "and a host"),
        ("mqtt://:1883", "and a host"),
        ("mqtt://broker:port", "does not parse: Port could not be cast"),
        ("mqtt://broker:70000", "does not parse: Port out of range"),
        ("mqtt://broker:0", "port 0 does not exist"),
        ("mqtt://[::1", "does not parse: Invalid IPv6 URL"),
        ("mqtt://broker?version=4", "version is '4'; use auto, 5 or 3.1.1"),
        ("mqtt://broker?tls=yes", "unknown option 'tls'; known: version, ca, cert, key"),
        ("mqtts://broker?ca=/no/such/file", "the ca file '/no/such/file' does not exist"),
        ("mqtts://broker?ca=" + "x" * 5000, "does not exist"),
        ("mqtts://broker?ca=%00", "does not exist"),
    ],
)
def test_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        BrokerAddress.parse(url)


@pytest.mark.parametrize("rest", ["broker:port", "broker?tls=yes", "broker?version=9", "[::1", "", "broker:0"])
def test_no_message_shows_a_password(rest: str) -> None:
    with pytest.raises(ConfigError) as error:
        BrokerAddress.parse(f"mqtt://watch-7:hush@hush@{rest}")
    assert "hush" not in str(error.value)
    shown = BrokerAddress.parse("mqtt://watch-7:hush@broker")
    assert "hush" not in f"{shown} {shown!r}"


@given(st.text(max_size=40).map("mqtt://".__add__) | st.text("mqts:/@[]?&=%.0123456789 #\x00", min_size=1, max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        assert BrokerAddress.parse(text).host
    except ConfigError as error:
        assert "\n" not in str(error)


# --- TOML


def test_toml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('name = "watch-7"\n[load]\nheartbeat_s = 5\n')
    assert read_toml(path) == {"name": "watch-7", "load": {"heartbeat_s": 5}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"name = \n", "at line 1, column"), (b"a = 1\na = 2\n", "line 2"), (b"\xff\xfe", "is not valid TOML")],
)
def test_bad_toml_is_refused_with_its_place(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as error:
        read_toml(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match=f"{path}: "):
            read_toml(path)
