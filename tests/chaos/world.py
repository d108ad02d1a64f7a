"""The world of a chaos test: a real Mosquitto, real processes with a log each, and nothing left of them at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from command import environment

from mqttcollab.broker import Broker
from mqttcollab.config import BrokerAddress
from mqttcollab.topics import agent_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttTransport

_HERE = Path(__file__).parent
_START_LIMIT_S = 20.0


@dataclass(slots=True)
class Program:
    """A process that can be killed, stopped and started again; every run appends to the same log.

    Args:
        name: of the agent.
        command: what runs.
        folder: where the log goes.
        environment: of the process.
    """

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    runs: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, **more: str) -> None:
        """Starts it, with these variables added to its environment."""
        assert not self.alive, f"{self.name} runs already"
        self._close_log()
        self._log = self.log.open("ab")
        self.runs += 1
        self._process = subprocess.Popen(
            list(self.command),
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            self._process.send_signal(number)  # type: ignore[union-attr]

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self._process is not None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            self._process.wait()
        self._close_log()

    async def ended(self) -> int:
        """Waits for its end; the exit code."""
        assert self._process is not None
        while self._process.poll() is None:
            await asyncio.sleep(0.005)
        return self._process.returncode

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


@dataclass(slots=True)
class World:
    """A broker whose data survive a crash, and the processes on it; an async context manager.

    Args:
        folder: for logs, journals and the broker's data.
    """

    folder: Path
    programs: dict[str, Program] = field(default_factory=dict)
    broker: Broker = field(init=False)
    _watch: MqttTransport = field(init=False)
    _statuses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.broker = Broker("mosquitto", websocket_port="off", data_dir=self.data)

    @property
    def data(self) -> Path:
        return self.folder / "mosquitto"

    @property
    def executions(self) -> Path:
        """Where workers write down what they did."""
        return self.folder / "executions"

    @property
    def url(self) -> str:
        return self.broker.info.url

    async def __aenter__(self) -> Self:
        await self.broker.start()
        self._watch = MqttTransport(BrokerAddress.parse(self.url), "chaos-watch")
        await self._watch.subscribe(agent_topic("x", "status").replace("@x", "+"), self._on_status)
        await self._watch.connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for program in self.programs.values():
            with contextlib.suppress(OSError):
                program.kill()
        await self._watch.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.broker.info.pid, signal.SIGCONT)
        await self.kill_broker()
        await self.broker.stop()

    def add(self, name: str, command: Sequence[str], url: str | None = None, **more: str) -> Program:
        """Starts a process with the broker in its environment."""
        program = Program(name, command, self.folder, environment(url or self.url, OPENBLAS_NUM_THREADS="1", **more))
        self.programs[name] = program
        program.start()
        return program

    def worker(self, name: str, url: str | None = None) -> Program:
        """Starts an agent that works."""
        return self.add(name, [sys.executable, str(_HERE / "worker.py"), name, str(self.executions)], url)

    def orchestrator(self, name: str, *words: str, url: str | None = None, **more: str) -> Program:
        """Starts an orchestrator; with CHAOS_CRASH in its environment it kills itself, see `runner.py`."""
        script = str(_HERE / "runner.py")
        return self.add(name, [sys.executable, script, "orchestrator", "--name", name, *words], url, **more)

    async def online(self, *names: str) -> None:
        """Waits until agents have said that they are there."""
        async with asyncio.timeout(_START_LIMIT_S):
            while missing := [name for name in names if not self._statuses.get(name, "").startswith("online")]:
                for name in missing:
                    program = self.programs[name]
                    assert program.alive, f"{name} ended at its start: {program.log.read_text()[-2000:]}"
                await asyncio.sleep(0.01)

    def status(self, name: str) -> str:
        """What stands in an agent's status topic."""
        return self._statuses.get(name, "")

    def executed(self) -> Iterator[str]:
        """The token of every execution by a worker."""
        if self.executions.exists():
            yield from self.executions.read_text().split()

    async def kill_broker(self) -> None:
        """SIGKILL; what it wrote is kept beside the other logs."""
        await self.broker.kill()
        with (self.folder / "mosquitto.log").open("a") as log:
            log.writelines(f"{line}\n" for line in self.broker.log)

    def signal_broker(self, number: signal.Signals) -> None:
        os.kill(self.broker.info.pid, number)

    def forget(self) -> None:
        """Deletes what a broker that doesn't run had kept: sessions, queues, retained messages."""
        for file in self.data.iterdir():
            file.unlink()

    def _on_status(self, message: TransportMessage) -> None:
        self._statuses[message.topic.split("@")[1].split("/")[0]] = message.payload.decode("utf-8", "replace")
