"""What an agent without a model costs to start and to keep: import time, time to `online`, resident memory.

The peer is a bare interpreter that imports the three libraries an agent can't do without: paho, pydantic, cbor2.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common import ROOT, Benchmark, Result, aim, line_of, python, ratio, show_aims, table
from mqttcollab.broker import Broker
from mqttcollab.config import BrokerAddress
from mqttcollab.topics import agent_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttTransport

ROUNDS = 9
AGENT = str(ROOT / "benchmarks" / "minimal_agent.py")
LIBRARIES = "import paho.mqtt.client, pydantic, cbor2"
KINDS = {"interpreter": "pass", "libraries": LIBRARIES, "mqttcollab": "import mqttcollab"}


async def measure(rounds: int | None = None) -> Result:
    started: dict[str, list[float]] = {kind: [] for kind in KINDS}
    memory: dict[str, list[float]] = {kind: [] for kind in KINDS}
    online: list[float] = []
    agent_memory: list[float] = []
    async with Broker("mosquitto") as broker:
        url = broker.info.url
        watcher = MqttTransport(BrokerAddress.parse(url), "bench-watcher")
        await watcher.connect()
        try:
            for number in range(-1, rounds or ROUNDS):  # the first round warms the disk's cache
                for kind, code in KINDS.items():
                    seconds, megabytes = await _import(code)
                    if number >= 0:
                        started[kind].append(seconds)
                        memory[kind].append(megabytes)
                seconds, megabytes = await _agent(watcher, url, f"bench-{number + 1}")
                if number >= 0:
                    online.append(seconds)
                    agent_memory.append(megabytes)
        finally:
            await watcher.close()
    imports = {
        kind: [a - b for a, b in zip(started[kind], started["interpreter"], strict=True)]
        for kind in ("libraries", "mqttcollab")
    }
    return {
        "import_s": imports,
        "online_s": online,
        "libraries_started_s": started["libraries"],
        "memory_mb": {**memory, "agent": agent_memory},
        "import_ratio": ratio(imports["mqttcollab"], imports["libraries"]),
        "online_ratio": ratio(online, started["libraries"]),
        "memory_ratio": ratio(agent_memory, memory["libraries"]),
        "aims": [
            aim("import time in s", statistics.median(imports["mqttcollab"]), most=0.4),
            aim("process start to online in s", statistics.median(online), most=0.6),
            aim("resident memory in MB", statistics.median(agent_memory), most=60),
        ],
    }


async def _import(code: str) -> tuple[float, float]:
    """Seconds from the start of an interpreter until it has run `code`, and its memory then in MB."""
    begun = time.perf_counter()
    async with python("-c", f"{code}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()") as process:
        await line_of(process)
        return time.perf_counter() - begun, await _resident_mb(process.pid)


async def _agent(watcher: MqttTransport, url: str, name: str) -> tuple[float, float]:
    """Seconds from the start of the agent's process until somebody else sees it online, and its memory then in MB."""
    seen = asyncio.Event()

    def look(message: TransportMessage) -> None:
        if message.payload.startswith(b"online"):
            seen.set()

    await watcher.subscribe(agent_topic(name, "status"), look)
    begun = time.perf_counter()
    async with python(AGENT, url, name, PYTHONPATH=str(ROOT)) as process:
        await asyncio.wait_for(seen.wait(), 30)
        seconds = time.perf_counter() - begun
        await asyncio.sleep(0.2)  # its first load report is out, and it idles
        megabytes = await _resident_mb(process.pid)
    await watcher.unsubscribe(agent_topic(name, "status"))
    return seconds, megabytes


async def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024 / 1e6
    ps = await asyncio.create_subprocess_exec("ps", "-o", "rss=", "-p", str(pid), stdout=asyncio.subprocess.PIPE)
    return int((await ps.communicate())[0]) * 1024 / 1e6


def show(result: Result) -> Iterable[str]:
    median = statistics.median
    form = "{median:.2f} ({min:.2f} to {max:.2f})".format
    memory = result["memory_mb"]
    peer = "bare interpreter with paho, pydantic, cbor2"
    yield from table(
        ("", "import", "started", "memory"),
        [
            (
                "mqttcollab, an agent with one service",
                f"{median(result['import_s']['mqttcollab']):.3f} s",
                f"{median(result['online_s']):.3f} s (online)",
                f"{median(memory['agent']):.1f} MB",
            ),
            (
                peer,
                f"{median(result['import_s']['libraries']):.3f} s",
                f"{median(result['libraries_started_s']):.3f} s (imported)",
                f"{median(memory['libraries']):.1f} MB",
            ),
            (
                "ours / it",
                form(**result["import_ratio"]),
                form(**result["online_ratio"]),
                form(**result["memory_ratio"]),
            ),
        ],
    )
    yield from show_aims(result)


BENCHMARK = Benchmark("agent_start", "Start and memory of an agent without a model", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
