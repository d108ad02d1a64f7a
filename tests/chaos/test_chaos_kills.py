"""kill -9 of the broker, of orchestrators and of agents."""

from __future__ import annotations

import asyncio

import pytest
from arena import Arena
from faults import WORKERS, at_random, fleet, kill_and_restart, restart_broker

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


async def test_broker_killed(arena: Arena) -> None:
    await fleet(arena, "orc-1", "orc-2")
    times = []
    async with arena.crowd(["orc-1", "orc-2"]) as crowd, crowd.asking(arena.count(800), 40) as sending:
        async for rng in at_random(arena, sending, pause_s=(2.0, 4.0)):
            times.append(await restart_broker(arena, away_s=rng.uniform(0, 1)))
    note_returns(arena, times)
    arena.verdict()


async def test_broker_forgets_everything(arena: Arena) -> None:
    await fleet(arena, "orc-1", "orc-2")
    times = []
    async with arena.crowd(["orc-1", "orc-2"]) as crowd, crowd.asking(arena.count(800), 40) as sending:
        async for rng in at_random(arena, sending, pause_s=(3.0, 5.0)):
            times.append(await restart_broker(arena, away_s=rng.uniform(0, 1), forgetful=True))
    note_returns(arena, times)
    arena.verdict()


async def test_workers_killed(arena: Arena) -> None:
    await fleet(arena, "orc-1", "orc-2")
    async with arena.crowd(["orc-1", "orc-2"]) as crowd, crowd.asking(arena.count(800), 40) as sending:
        async for rng in at_random(arena, sending):
            await kill_and_restart(arena, arena.world.programs[rng.choice(WORKERS)], away_s=rng.uniform(0, 1))
    arena.verdict()


async def test_orchestrators_killed(arena: Arena) -> None:
    names = ["orc-1", "orc-2"]
    await fleet(arena, *names)
    kills = []
    async with arena.crowd(names) as crowd, crowd.asking(arena.count(800), 40) as sending:
        async for rng in at_random(arena, sending, pause_s=(1.5, 3.0)):
            name = rng.choice(names)
            kills.append((await kill_and_restart(arena, arena.world.programs[name]), name))
            await asyncio.sleep(1)
    note_resumed(arena, kills)
    arena.verdict()


def note_returns(arena: Arena, times: list[tuple[float, float]]) -> None:
    """How long after the broker's return a request that was sent after its death was answered."""
    for killed, returned in times:
        if (seconds := arena.checker.answered_after(returned, sent_after=killed)) is not None:
            arena.checker.recovery["from the broker's return to the first new answer"].append(seconds)


def note_resumed(arena: Arena, kills: list[tuple[float, str]]) -> None:
    """How long after its kill the next life of an orchestrator went on with a task of the life before."""
    for killed, name in kills:
        if (seconds := arena.checker.resumed(killed, name)) is not None:
            arena.checker.recovery["from the kill of an orchestrator to the first resumed step"].append(seconds)
