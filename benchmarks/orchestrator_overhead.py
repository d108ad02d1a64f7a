"""What the orchestrator adds: one question, three parallel subtasks to agents that answer at once, end to end.

The peer is what a program does without an orchestrator: the same three asks, sent directly and awaited together.
The experts share one process, the orchestrator has one of its own, and the one who asks a third. Between questions
there is a pause, in which the orchestrator's progress reports of the last one drain: this is the latency of a
question, not how many of them an orchestrator can take.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable

from benchmarks.common import Benchmark, Result, aim, line_of, python, ratio, show_aims, table
from mqttcollab import Agent
from mqttcollab.broker import Broker
from mqttcollab.errors import RequestError, RuntimeFailure
from mqttcollab.runtimes.embedders import WordLlamaEmbedder
from mqttcollab.topics import ORCHESTRATION

ROUNDS = 7
ASKS = 40
PAUSE_S = 0.02


async def measure(rounds: int | None = None) -> Result:
    try:
        WordLlamaEmbedder(256)
    except RuntimeFailure as error:
        return {"missing": f"{error}: pip install 'mqttcollab[embed]'"}
    from benchmarks.agents import EXPERTS, QUESTION

    asker = Agent("bench-asker")

    async def through_orchestrator() -> None:
        reply = await asker.ask(QUESTION, service=ORCHESTRATION, agent="bench-orchestrator")
        if sorted(step.service for step in reply.steps if step.status == "ok") != sorted(EXPERTS) or reply.missing:
            raise AssertionError(f"not the three subtasks: {reply.steps}, missing: {reply.missing}")

    async def directly() -> None:
        asks = (asker.ask(QUESTION, service=s, agent=f"bench-{name}") for s, (name, _) in EXPERTS.items())
        await asyncio.gather(*asks)

    times: dict[str, list[float]] = {"orchestrated": [], "direct": []}
    async with Broker("mosquitto") as broker:
        url = broker.info.url
        async with (
            python("-m", "benchmarks.agents", "experts", url) as experts,
            python("-m", "benchmarks.agents", "orchestrator", url) as orchestrator,
            asker.running(url),
        ):
            await line_of(experts)
            await line_of(orchestrator)
            await _until_it_works(through_orchestrator)
            for _ in range(rounds or ROUNDS):
                times["orchestrated"].append(await _median_ms(through_orchestrator))
                times["direct"].append(await _median_ms(directly))
    return {
        "median_ms": times,
        "ratio": ratio(times["orchestrated"], times["direct"]),
        "aims": [aim("three parallel subtasks in ms", statistics.median(times["orchestrated"]), most=10)],
    }


async def _until_it_works(ask: Callable[[], Awaitable[None]]) -> None:
    """The orchestrator's registry hears of the experts some time after they are there."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await ask()
            except (AssertionError, RequestError):
                await asyncio.sleep(0.1)


async def _median_ms(ask: Callable[[], Awaitable[None]]) -> float:
    each = []
    for _ in range(ASKS):
        await asyncio.sleep(PAUSE_S)
        begun = time.perf_counter()
        await ask()
        each.append(1000 * (time.perf_counter() - begun))
    return statistics.median(each)


def show(result: Result) -> Iterable[str]:
    if "missing" in result:
        yield result["missing"]
        return
    median = {name: statistics.median(each) for name, each in result["median_ms"].items()}
    yield from table(
        ("", "three subtasks", "ours / it"),
        [
            ("through the orchestrator", f"{median['orchestrated']:.2f} ms", ""),
            (
                "asked directly, together",
                f"{median['direct']:.2f} ms",
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**result["ratio"]),
            ),
        ],
    )
    yield from show_aims(result)


BENCHMARK = Benchmark("orchestrator_overhead", "One question, three parallel subtasks, end to end", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
