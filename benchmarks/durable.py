"""What a journal costs: throughput with one over throughput without, in the same run.

Requests that take no time, 64 in flight, are the worst case: an agent that does nothing but write them down. Questions
to an orchestrator, 4 in flight, each of three subtasks, are what a journal is for. Each has its processes on one
Mosquitto; those with and without a journal take turns.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

from benchmarks.common import Benchmark, Result, aim, line_of, python, ratio, show_aims, table
from benchmarks.contenders import DURABLE, MAX_IN_FLIGHT, OURS
from benchmarks.request_reply import THROUGHPUT_S, WARM_UP_S, start, turn
from mqttcollab import Agent
from mqttcollab.broker import Broker
from mqttcollab.topics import ORCHESTRATION

ROUNDS = 9
QUESTIONS_IN_FLIGHT = 4
QUESTIONS_S = 2.0
LEAST = 0.85
REQUESTS, QUESTIONS = "requests that take no time", "questions of three subtasks"


async def measure(rounds: int | None = None) -> Result:
    found: Result = {}
    async with Broker("mosquitto") as broker:
        found[REQUESTS] = await _requests(broker.info.url, rounds or ROUNDS)
        found[QUESTIONS] = await _questions(broker.info.url, rounds or ROUNDS)
    found["aims"] = [aim(f"{name}: with over without", found[name]["ratio"]["median"], least=LEAST) for name in found]
    return found


async def _requests(url: str, rounds: int) -> Result:
    per_s: dict[str, list[float]] = {"without": [], "with": []}
    async with AsyncExitStack() as stack:
        workers = {"without": await start(stack, OURS, url), "with": await start(stack, DURABLE, url)}
        for worker in workers.values():
            await turn(worker, MAX_IN_FLIGHT, WARM_UP_S)
        for _ in range(rounds):
            for name, worker in workers.items():
                per_s[name].append((await turn(worker, MAX_IN_FLIGHT, THROUGHPUT_S))["per_s"])
    return {"per_s": per_s, "ratio": ratio(per_s["with"], per_s["without"])}


async def _questions(url: str, rounds: int) -> Result:
    from benchmarks.agents import EXPERTS, QUESTION

    per_s: dict[str, list[float]] = {"without": [], "with": []}
    asker = Agent("bench-asker")

    async def ask(orchestrator: str) -> None:
        reply = await asker.ask(QUESTION, service=ORCHESTRATION, agent=f"bench-{orchestrator}")
        if len(reply.steps) != len(EXPERTS) or reply.missing:
            raise AssertionError(f"not the three subtasks: {reply.steps}, missing: {reply.missing}")

    async with AsyncExitStack() as stack:
        for role in ("experts", "orchestrator", "durable"):
            await line_of(await stack.enter_async_context(python("-m", "benchmarks.agents", role, url)))
        await stack.enter_async_context(asker.running(url))
        await asyncio.sleep(2.0)  # until the orchestrators have heard of the experts
        for _ in range(rounds):
            for name, role in (("without", "orchestrator"), ("with", "durable")):
                per_s[name].append(await _rate(role, ask))
    return {"per_s": per_s, "ratio": ratio(per_s["with"], per_s["without"])}


async def _rate(role: str, ask: Callable[[str], Awaitable[None]]) -> float:
    count, begun = 0, time.perf_counter()

    async def one_after_another() -> None:
        nonlocal count
        while time.perf_counter() < begun + QUESTIONS_S:
            await ask(role)
            count += 1

    await asyncio.gather(*(one_after_another() for _ in range(QUESTIONS_IN_FLIGHT)))
    return count / (time.perf_counter() - begun)


def show(result: Result) -> Iterable[str]:
    rows = []
    for name, in_flight in ((REQUESTS, MAX_IN_FLIGHT), (QUESTIONS, QUESTIONS_IN_FLIGHT)):
        median = {each: statistics.median(values) for each, values in result[name]["per_s"].items()}
        each = "{median:.2f} ({min:.2f} to {max:.2f})".format(**result[name]["ratio"])
        rows.append((f"{name}, {in_flight} in flight", f"{median['without']:.0f}/s", f"{median['with']:.0f}/s", each))
    yield from table(("", "without a journal", "with one", "with / without"), rows)
    yield from show_aims(result)


BENCHMARK = Benchmark("durable", "What a journal in a SQLite file costs (fsync at every commit)", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
