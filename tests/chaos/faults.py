"""When faults come, and those that take more than one line."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator

from arena import Arena
from world import Program

WORKERS = ("w-1", "w-2", "w-3")


async def fleet(arena: Arena, *orchestrators: str, url: str | None = None) -> None:
    """Starts workers and orchestrators, and waits until they are there."""
    for name in WORKERS:
        arena.world.worker(name, url)
    for name in orchestrators:
        arena.world.orchestrator(name, url=url)
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
    await arena.world.broker.kill()
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
