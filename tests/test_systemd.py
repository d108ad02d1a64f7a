"""What systemd hears of an agent: a real datagram socket, an agent in a process of its own, a real broker."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from command import run
from fleet import ECHO, client, known
from harness import LIMIT_S, Cable

from mqttcollab import Agent, Request
from mqttcollab.broker import Broker
from mqttcollab.systemd import notify, watchdog_s

AGENT = """\
import sys
import time
from pathlib import Path

from mqttcollab import Agent, AgentOptions, Request
from mqttcollab.systemd import notify

agent = Agent("echo-1", options=AgentOptions(stall_s=0.2))


@agent.service("knowledge.gpt/echo")
async def echo(request: Request) -> str:
    match request.text.split():
        case ["block", path]:
            notify("X_TEST=blocked")
            while not Path(path).exists():
                time.sleep(0.01)
            notify("X_TEST=free")
        case ["degrade"]:
            agent.degrade("disk", "the disk\\nSTOPPING=1\\nis full")
        case ["recover"]:
            agent.recover("disk")
    return request.text


agent.run()
"""


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address)
        self.heard: list[str] = []

    def close(self) -> None:
        self._socket.close()

    async def next(self, seconds: float = LIMIT_S) -> str:
        async with asyncio.timeout(seconds):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        self.heard.append(data.decode())
        return self.heard[-1]

    async def until(self, *states: str) -> list[str]:
        """What comes before one of these, WATCHDOG=1 included."""
        before: list[str] = []
        async with asyncio.timeout(LIMIT_S):
            while (state := await self.next()) not in states:
                before.append(state)
        return before

    async def silence(self, seconds: float) -> None:
        """Waits until nothing has come for so long."""
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(TimeoutError):
                while True:
                    await self.next(seconds)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


@contextlib.asynccontextmanager
async def service(folder: Path, url: str, address: str, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs the agent as systemd would."""
    script = folder / "agent.py"
    script.write_text(AGENT)
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        env=os.environ | {"MQTTCOLLAB_BROKER": url, "PYTHONPATH": path, "NOTIFY_SOCKET": address, **more},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def test_ready_status_and_stopping(mosquitto: Broker, manager: Manager, tmp_path: Path) -> None:
    url = mosquitto.info.url
    async with service(tmp_path, url, str(tmp_path / "notify")) as agent, client().running(url) as asker:
        assert await manager.next() == "READY=1\nSTATUS=online"
        assert (await asker.ask("degrade", service=ECHO)).output == "degrade"  # it was ready: it answers
        assert await manager.next() == "STATUS=degraded: the disk STOPPING=1 is full"
        await asker.ask("recover", service=ECHO)
        assert await manager.next() == "STATUS=online"
        agent.send_signal(signal.SIGTERM)
        assert await manager.next() == "STOPPING=1"
        assert await agent.wait() == 0
    assert "WATCHDOG=1" not in manager.heard  # systemd has asked for none


async def test_it_is_not_ready_before_there_is_a_broker(mosquitto: Broker, manager: Manager, tmp_path: Path) -> None:
    async with Cable(mosquitto.info) as cable:
        await cable.pull()
        async with service(tmp_path, cable.url(), str(tmp_path / "notify"), WATCHDOG_USEC="200000"):
            with pytest.raises(TimeoutError):
                await manager.next(1.0)
            await cable.plug()
            assert await manager.next() == "READY=1\nSTATUS=online"


async def test_pings_stop_while_the_event_loop_is_blocked(mosquitto: Broker, manager: Manager, tmp_path: Path) -> None:
    url, gate = mosquitto.info.url, tmp_path / "gate"
    address = str(tmp_path / "notify")
    async with service(tmp_path, url, address, WATCHDOG_USEC="200000"), client().running(url) as asker:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        await manager.until("WATCHDOG=1")
        await manager.until("WATCHDOG=1")
        block = asyncio.create_task(asker.ask(f"block {gate}", service=ECHO))
        await manager.until("X_TEST=blocked")
        await asyncio.sleep(1.0)  # ten times as long as from one to the next
        gate.touch()
        assert await manager.until("X_TEST=free") == []
        await block
        before = await manager.until("WATCHDOG=1")
        status = [state for state in [*before, await next_status(manager, before)] if state.startswith("STATUS=")]
        assert status[0].startswith("STATUS=degraded: the event loop was blocked for ")


async def next_status(manager: Manager, before: list[str]) -> str:
    """The first status, where it is not there yet."""
    if any(state.startswith("STATUS=") for state in before):
        return ""
    while not (state := await manager.next()).startswith("STATUS="):
        pass
    return state


async def test_pings_stop_while_the_broker_is_long_out_of_reach(
    mosquitto: Broker, manager: Manager, tmp_path: Path
) -> None:
    async with (
        Cable(mosquitto.info) as cable,
        service(tmp_path, cable.url(), str(tmp_path / "notify"), WATCHDOG_USEC="200000"),
    ):
        await manager.until("WATCHDOG=1")
        await cable.pull()
        await manager.silence(0.8)
        await cable.plug()
        await manager.until("WATCHDOG=1")


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
async def test_an_abstract_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"mqttcollab-test-{os.getpid()}"
    manager = Manager(b"\0" + name.encode())
    try:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert await manager.next() == "READY=1"
    finally:
        manager.close()


@pytest.mark.parametrize("address", [None, "", "nonsense", "vsock:2:1", "/nowhere/at/all", "/dev/null"])
async def test_without_a_manager_nothing_happens(
    address: str | None, monkeypatch: pytest.MonkeyPatch, mosquitto: Broker
) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    agent = Agent("echo-1")

    @agent.service(ECHO)
    async def echo(request: Request) -> str:
        return request.text

    serving = asyncio.create_task(agent.serve(mosquitto.info.url))
    async with client().running(mosquitto.info.url) as asker:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        assert (await asker.ask("hello", service=ECHO)).output == "hello"
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_how_long_it_may_be_silent(
    variables: dict[str, str], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert watchdog_s() == expected


async def test_the_units_in_the_docs_start_what_there_is() -> None:
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    units = re.findall(r"^```ini\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(units) == 2
    for unit in units:
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(unit)
        service = parser["Service"]
        assert (service["Type"], service["Restart"]) == ("notify", "always")
        _, command, *words = service["ExecStart"].split()
        usage = (await run(command, "--help")).out
        assert all(word in usage for word in words if word.startswith("--"))
