"""`mqttcollab agent`, `orchestrator` and `broker`: what runs until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from mqttcollab.broker import Broker, BrokerKind
from mqttcollab.cli.fleet import build, choose, read_fleet
from mqttcollab.cli.show import console, errors, print_json
from mqttcollab.config import BROKER_VARIABLE, BrokerAddress
from mqttcollab.errors import BrokerError
from mqttcollab.topics import check_service


def run_orchestrator(
    name: str, embedder: str, threshold: float, fallback: str | None, place: str | None, broker: str | None
) -> None:
    """Runs an orchestrator until SIGINT or SIGTERM."""
    from mqttcollab.orchestrator import OrchestratorOptions, orchestrator_agent
    from mqttcollab.runtimes.embedders import load_embedder

    if fallback is not None:
        check_service(fallback)
    BrokerAddress.parse(broker)
    options = OrchestratorOptions(threshold=threshold, fallback=fallback)
    orchestrator_agent(name, load_embedder(embedder), options=options, place=place).run(broker)


def run_fleet(path: Path, names: list[str], broker: str | None) -> int:
    """Runs devices until SIGINT or SIGTERM; one here, several in a process each. Returns the exit code."""
    tables = read_fleet(path)
    chosen = choose(path, tables, names)
    BrokerAddress.parse(broker)
    if len(chosen) > 1:
        return asyncio.run(_run_processes(path, chosen, broker))
    build(path, chosen[0], tables[chosen[0]]).run(broker)
    return 0


async def _run_processes(path: Path, names: list[str], broker: str | None) -> int:
    environment = {**os.environ, BROKER_VARIABLE: broker} if broker else dict(os.environ)
    processes = {
        name: await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mqttcollab", "agent", str(path), name, env=environment, start_new_session=True
        )
        for name in names
    }
    stop = stop_signal()
    stopping = asyncio.ensure_future(stop.wait())
    waits = {asyncio.ensure_future(process.wait()): name for name, process in processes.items()}
    failed = 0
    try:
        while waits and not stop.is_set():
            done, _ = await asyncio.wait([*waits, stopping], return_when=asyncio.FIRST_COMPLETED)
            for ended in done & waits.keys():
                name = waits.pop(ended)
                if ended.result() and not stop.is_set():
                    failed += 1
                    errors.print(f"device {name} ended with exit code {ended.result()}; the others go on")
    finally:
        stopping.cancel()
        for process in processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        await asyncio.gather(*waits, stopping, return_exceptions=True)
    return 1 if failed else 0


async def run_broker(
    kind: BrokerKind, port: int, websocket_port: int, data: Path | None, config: Path | None, *, as_json: bool
) -> None:
    """Runs a broker until SIGINT or SIGTERM."""
    stop = stop_signal()
    async with Broker(kind, port=port, websocket_port=websocket_port, data_dir=data, config=config) as broker:
        info = broker.info
        if as_json:
            print_json({name: getattr(info, name) for name in info.__dataclass_fields__})
        else:
            console.print(f"{info.kind} {info.version} runs as process {info.pid}: {info.url}")
            if info.websocket_url:
                console.print(f"WebSocket: {info.websocket_url}")
            console.print(f"watch it with: mosquitto_sub -p {info.port} -v -t '#'    (Ctrl-C ends the broker)")
        ended = asyncio.ensure_future(broker.wait())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        died = ended.done() and not stop.is_set()
        for task in (ended, stopping):
            task.cancel()
        await asyncio.gather(ended, stopping, return_exceptions=True)
        if died:
            raise BrokerError(f"{info.kind} ended by itself: {' '.join(list(broker.log)[-1:])}")


def stop_signal() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    return stop
