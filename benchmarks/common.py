"""What the benchmarks share: processes, ratios, aims, tables, the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Result = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it measures, and how it is shown to people.

    Attributes:
        measure: called with the number of rounds, None for its own default.
        show: the lines for people.
    """

    name: str
    title: str
    measure: Callable[[int | None], Coroutine[Any, Any, Result]]
    show: Callable[[Result], Iterable[str]]

    def main(self) -> None:
        """Runs it alone, from the command line."""
        run_all([self])


def run_all(benchmarks: Sequence[Benchmark]) -> None:
    """Runs benchmarks one after the other and prints them, or one JSON object with `--json`."""
    parser = argparse.ArgumentParser(description=". ".join(b.title for b in benchmarks) + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    options = parser.parse_args()
    results: Result = {"machine": machine()}
    if not options.json:
        print(f"{results['machine']}\n")
    for benchmark in benchmarks:
        result = results[benchmark.name] = asyncio.run(benchmark.measure(options.rounds))
        if not options.json:
            print("\n".join([benchmark.title, *(f"  {line}" for line in benchmark.show(result)), ""]), flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


def machine() -> str:
    """What it ran on: absolute figures of different machines don't compare."""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


@asynccontextmanager
async def python(*arguments: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process with its input and output piped; it gets SIGTERM at the end, and SIGKILL where that fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def line_of(process: asyncio.subprocess.Process, limit_s: float = 60.0) -> str:
    """The next line that a process prints; it is an error if it ends instead."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), limit_s)
    if not line:
        raise RuntimeError(f"a benchmark process ended (exit code {await process.wait()}); its error is above")
    return line.decode().strip()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ours over theirs, round by round: median, least and greatest."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def aim(what: str, value: float, most: float | None = None, least: float | None = None) -> Result:
    """An aim, the figure, and whether it holds; the bound itself holds."""
    holds = (most is None or value <= most) and (least is None or value >= least)
    bound = f"at most {most:g}" if most is not None else f"at least {least:g}"
    return {"aim": f"{what}: {bound}", "value": value, "holds": holds}


def show_aims(result: Result) -> Iterable[str]:
    """One line per aim."""
    for each in result["aims"]:
        yield f"{'holds ' if each['holds'] else 'MISSED'}  {each['aim']} ({each['value']:.3g})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Aligned columns, the first to the left and the others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
