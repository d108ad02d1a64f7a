"""Request and reply, one at a time and 64 in flight, against bare paho, aiomqtt and FastStream.

Every contender has a responder process and a requester process of its own on one Mosquitto (`set_tcp_nodelay true`);
only one of them works at any time, and they take turns in rounds, so that whatever else the machine does hits all.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Iterable
from contextlib import AsyncExitStack

from benchmarks.common import Benchmark, Result, aim, line_of, python, ratio, show_aims, table
from benchmarks.contenders import MAX_IN_FLIGHT, OURS, PEERS, Contender
from mqttcollab.broker import Broker

ROUNDS = 11
LATENCY_S = 0.4
THROUGHPUT_S = 0.7
WARM_UP_S = 0.3


async def measure(rounds: int | None = None) -> Result:
    missing = {c.name: c.missing for c in PEERS if c.missing}
    contenders = [c for c in (OURS, *PEERS) if c.name not in missing]
    latency: dict[str, list[float]] = {c.name: [] for c in contenders}
    throughput: dict[str, list[float]] = {c.name: [] for c in contenders}
    async with Broker("mosquitto") as broker, AsyncExitStack() as stack:
        workers = {c.name: await start(stack, c, broker.info.url) for c in contenders}
        for worker in workers.values():
            await turn(worker, 1, WARM_UP_S)
            await turn(worker, MAX_IN_FLIGHT, WARM_UP_S)
        for _ in range(rounds or ROUNDS):
            for name, worker in workers.items():
                latency[name].append((await turn(worker, 1, LATENCY_S))["median_ms"])
            for name, worker in workers.items():
                throughput[name].append((await turn(worker, MAX_IN_FLIGHT, THROUGHPUT_S))["per_s"])
    result: Result = {
        "contenders": {c.name: {"label": c.label, "note": c.load().NOTE} for c in contenders},
        "missing": missing,
        "latency_ms": latency,
        "requests_per_s": throughput,
        "latency_ratio": {p: ratio(latency["ours"], latency[p]) for p in workers if p != "ours"},
        "throughput_ratio": {p: ratio(throughput["ours"], throughput[p]) for p in workers if p != "ours"},
    }
    return result | {"aims": list(_aims(result))}


def _aims(result: Result) -> Iterable[Result]:
    for peer, each in result["latency_ratio"].items():
        label = result["contenders"][peer]["label"]
        yield aim(f"latency over that of {label}", each["median"], most=1.3 if peer == "bare_paho" else 1.0)
    for peer, each in result["throughput_ratio"].items():
        label = result["contenders"][peer]["label"]
        yield aim(f"throughput over that of {label}", each["median"], least=0.75 if peer == "bare_paho" else 1.0)


async def start(stack: AsyncExitStack, contender: Contender, url: str) -> asyncio.subprocess.Process:
    """Starts a contender's two processes; returns the asking one."""
    for role in ("respond", "ask"):
        worker = await stack.enter_async_context(
            python("-m", "benchmarks.contenders.worker", role, contender.name, url)
        )
        await line_of(worker)
    return worker


async def turn(worker: asyncio.subprocess.Process, in_flight: int, seconds: float) -> dict[str, float]:
    """Has it ask for so long; returns what `worker` measures."""
    assert worker.stdin is not None
    worker.stdin.write(f"{in_flight} {seconds}\n".encode())
    answer: dict[str, float] = json.loads(await line_of(worker))
    return answer


def show(result: Result) -> Iterable[str]:
    rows = []
    for name, contender in result["contenders"].items():
        row = [contender["label"]]
        for figures, form in (("latency_ms", "{:.3f} ms"), ("requests_per_s", "{:.0f}/s")):
            row.append(form.format(statistics.median(result[figures][name])))
            each = result[figures.split("_")[0].replace("requests", "throughput") + "_ratio"].get(name)
            row.append("{median:.2f} ({min:.2f} to {max:.2f})".format(**each) if each else "")
        rows.append(row)
    yield from table(("", "one at a time", "ours / it", f"{MAX_IN_FLIGHT} in flight", "ours / it"), rows)
    yield from (f"{why}" for why in result["missing"].values())
    yield from show_aims(result)


BENCHMARK = Benchmark(
    "request_reply",
    "Request and reply: Mosquitto with set_tcp_nodelay true, MQTT 5, QoS 1, 200-byte payloads, medians of rounds",
    measure,
    show,
)

if __name__ == "__main__":
    BENCHMARK.main()
