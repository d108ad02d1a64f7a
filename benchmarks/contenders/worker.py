"""A process of a contender: `respond <name> <url>`, or `ask <name> <url>`, told what to measure line by line.

It prints `ready` first. An asking worker reads `<requests in flight> <seconds>` from its input and answers each line
with a JSON object: `per_s`, and `median_ms` of a request.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import sys
import time

from benchmarks.contenders import BY_NAME, Ask, Contender

PAYLOAD = b"What does a payload of two hundred bytes hold? " * 5
PAYLOAD = PAYLOAD[:200]


async def measure(ask: Ask, in_flight: int, seconds: float) -> dict[str, float]:
    """Keeps so many requests in flight for so long."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one_after_another() -> None:
        while (start := time.perf_counter()) < end:
            if await ask(PAYLOAD) != PAYLOAD:
                raise AssertionError("the reply is not what was sent")
            times.append(time.perf_counter() - start)

    started = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    return {
        "per_s": len(times) / (time.perf_counter() - started),
        "median_ms": 1000 * statistics.median(times),
    }


async def serve_measurements(contender: Contender, url: str) -> None:
    async with contender.load().asking(url) as ask:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            in_flight, seconds = line.split()
            print(json.dumps(await measure(ask, int(in_flight), float(seconds))), flush=True)


async def respond(contender: Contender, url: str) -> None:
    serving = asyncio.ensure_future(contender.load().respond(url, lambda: print("ready", flush=True)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    await asyncio.gather(serving, return_exceptions=True)


def main() -> None:
    role, name, url = sys.argv[1:]
    asyncio.run((respond if role == "respond" else serve_measurements)(BY_NAME[name], url))


if __name__ == "__main__":
    main()
