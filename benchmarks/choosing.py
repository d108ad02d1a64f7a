"""What it costs to choose an agent, with 8 candidates and with 10,000.

Choosing is what the scheduler does per request: the candidates' rows as they are believed to be now, and the policy's
choice. Half of the slots are taken; where only one is free, `frugal` also weighs what that one is worth, which is its
dearest case. Placing counts the request, and its end, as well. The peer is the policy that looks at nothing: random.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable

from benchmarks.common import Benchmark, Result, aim, ratio, show_aims, table
from mqttcollab.scheduling import Demand, LoadBook, Scheduler, Terms, make_policy

ROUNDS = 9
SIZES = {8: 2000, 10_000: 100}
MOST_US = {8: 50.0, 10_000: 1000.0}
POLICIES = ("random", "load-aware", "fastest-free", "frugal")
TIGHT = "frugal, one slot free"
PEER = "random"


async def measure(rounds: int | None = None) -> Result:
    found: Result = {"aims": []}
    for size, calls in SIZES.items():
        contenders = {name: _contender(name, size, size // 2) for name in POLICIES} | {
            TIGHT: _contender("frugal", size, 1)
        }
        times: dict[str, dict[str, list[float]]] = {name: {"choose": [], "place": []} for name in contenders}
        for _ in range(rounds or ROUNDS):
            for name, (choose, place) in contenders.items():
                times[name]["choose"].append(_us(choose, calls))
                times[name]["place"].append(_us(place, calls))
        found[str(size)] = {
            name: {
                "choose_us": statistics.median(each["choose"]),
                "place_us": statistics.median(each["place"]),
                "choose_over_random": ratio(each["choose"], times[PEER]["choose"]),
            }
            for name, each in times.items()
        }
        dearest = max(found[str(size)][name]["choose_us"] for name in ("frugal", TIGHT))
        found["aims"].append(aim(f"µs to choose among {size:,}", dearest, most=MOST_US[size]))
    return found


def _contender(policy: str, size: int, free: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Choosing alone, and placing a request and ending it, with so many slots free."""
    dice = random.Random(size)
    scheduler = Scheduler(make_policy(policy, 1), LoadBook())
    book = scheduler.book
    rows = [book.row(f"agent-{i}", "knowledge.gpt/general", Terms(dice.uniform(4, 60))) for i in range(size)]
    candidates = book.candidates(rows, [dice.uniform(0.95, 1.0) for _ in rows])
    demands = [
        Demand(str(i), tokens, arrived=i / 10, wait_until=i / 10, cloud_usd=tokens * 6e-5, cloud_s=1 + tokens / 30)
        for i, tokens in enumerate(dice.choice((50.0, 100.0, 200.0)) for _ in range(64))
    ]
    for demand in demands:
        scheduler.policy.arrived(demand)
    now = demands[-1].arrived
    demand = demands[-1]
    for row in rows[free:]:
        book.sent(row, demand, now)

    def choose() -> None:
        scheduler.policy.choose(demand, book.fleet(candidates, now), now)

    def place() -> None:
        placed = scheduler.submit(demand, candidates, now)
        if placed.decision.kind == "agent":
            scheduler.ended(placed, now, seconds=1.0, tokens=demand.tokens)
        scheduler.close(demand.id, now)

    return choose, place


def _us(call: Callable[[], None], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - began) / count * 1e6


def show(result: Result) -> Iterable[str]:
    for size in SIZES:
        yield from table(
            (f"{size:,} candidates", "choose", "/ random", "choose, send, end"),
            [
                (
                    name,
                    f"{found['choose_us']:.1f} µs",
                    "{median:.2f} ({min:.2f} to {max:.2f})".format(**found["choose_over_random"]),
                    f"{found['place_us']:.1f} µs",
                )
                for name, found in result[str(size)].items()
            ],
        )
    yield from show_aims(result)


BENCHMARK = Benchmark("choosing", "Choosing an agent for a request", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
