"""SIGSTOP for seconds, clocks that jump, a disk that is full."""

from __future__ import annotations

import asyncio
import signal

import pytest
from arena import Arena
from faults import WORKERS, at_random, fleet, freeze

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

NAMES = ("orc-1", "orc-2")


async def test_stopped_processes(arena: Arena) -> None:
    """Orchestrators, workers and the broker stand still for up to three seconds."""
    await fleet(arena, *NAMES)
    async with arena.crowd(NAMES) as crowd, crowd.asking(arena.count(800), 40) as sending:
        async for rng in at_random(arena, sending, pause_s=(0.5, 2.0)):
            name = rng.choice([*NAMES, *WORKERS, "broker"])
            seconds = rng.uniform(0.5, 3)
            if name != "broker":
                await freeze(arena.world.programs[name], seconds)
                continue
            arena.world.signal_broker(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            arena.world.signal_broker(signal.SIGCONT)
    arena.verdict()
