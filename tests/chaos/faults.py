"""When faults come, and those that take more than one line."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Literal

from arena import Arena
from world import Program

WORKERS = ("w-1", "w-2", "w-3")


async def fleet(
    arena: Arena,
    *orchestrators: str,
    journal: Literal["shared", "own", "none"] = "shared",
    folder: Path | None = None,
    url: str | None = None,
    each: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Starts workers and orchestrators, and waits until they are there.

    Args:
        arena: where.
        orchestrators: their names; once is once for those that share a journal, or are alone with theirs.
        journal: whether they share one, have one each, or none.
        folder: where journals are kept; None: the arena's.
        url: of a proxy before the broker.
        each: added to the environment of an orchestrator, by its name.
    """
    for name in WORKERS:
        arena.world.worker(name, url)
    for name in orchestrators:
        file = (folder or arena.folder) / ("journal.db" if journal == "shared" else f"{name}.db")
        words = () if journal == "none" else ("--journal", str(file))
        arena.world.orchestrator(name, *words, url=url, **(each or {}).get(name, {}))
    if journal == "shared" or (journal == "own" and len(orchestrators) == 1):
        arena.once |= set(orchestrators)
        arena.journal = file
    await arena.world.online(*WORKERS, *orchestrators)


async def at_random(
    arena: Arena, sending: asyncio.Task[None], *, pause_s: tuple[float, float] = (0.5, 2.0)
) -> AsyncIterator[random.Random]:
    """Comes round for one fault after another, with a random pause before each, until all tasks are sent."""
    while True:
        await asyncio.wait([sending], timeout=arena.rng.uniform(*pause_s))
        if sending.done():
            return
        arena.checker.faults += 1
        yield arena.rng


async def kill_and_restart(arena: Arena, program: Program, *, away_s: float = 0.0) -> float:
    """kill -9, then the same command again after `away_s`; the loop time of the kill."""
    killed = asyncio.get_running_loop().time()
    program.kill()
    await asyncio.sleep(away_s)
    program.start()
    return killed


async def restart_broker(arena: Arena, *, away_s: float = 0.0, forgetful: bool = False) -> tuple[float, float]:
    """kill -9 of the broker, and it comes back on its port, with its data or without; both loop times."""
    now = asyncio.get_running_loop().time
    killed = now()
    await arena.world.kill_broker()
    if forgetful:
        arena.world.forget()
    await asyncio.sleep(away_s)
    await arena.world.broker.start()
    return killed, now()


async def freeze(program: Program, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after so many seconds."""
    program.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        program.send(signal.SIGCONT)


class Clock:
    """The time of day of orchestrators, in a file that `runner.py` reads.

    Args:
        file: holds how far it is off.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.environment = {"CHAOS_CLOCK": str(file)}
        self.set(0)

    def set(self, offset_s: int) -> None:
        """Jumps to so many seconds from the right time."""
        new = self._file.with_suffix(".new")
        new.write_text(str(offset_s))
        new.replace(self._file)
