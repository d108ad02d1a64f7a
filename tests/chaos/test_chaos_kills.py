"""kill -9 of the broker, of orchestrators and of agents, at random times and at chosen points."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from arena import RATE, TASKS, Arena
from faults import WORKERS, at_random, fleet, kill_and_restart, restart_broker
from runner import POINTS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

NAMES = ("orc-1", "orc-2")
# How often a life comes to the point at which it ends: soon after its start, and after some seconds of work.
_TIMES = (1, 3, 10, 20, 40, 80)


@pytest.mark.parametrize("keeps", ["keeps its data", "forgets everything"])
async def test_broker_killed(arena: Arena, keeps: str) -> None:
    await fleet(arena, *NAMES)
    times = []
    async with arena.crowd(NAMES) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        async for rng in at_random(arena, sending, pause_s=(2.0, 4.0)):
            forgetful = keeps == "forgets everything"
            times.append(await restart_broker(arena, away_s=rng.uniform(0, 1), forgetful=forgetful))
    for killed, returned in times:
        arena.recovered(
            "from the broker's return to the first new answer",
            arena.checker.answered_after(returned, sent_after=killed),
        )
    await arena.verdict()


async def test_workers_killed(arena: Arena) -> None:
    await fleet(arena, *NAMES)
    async with arena.crowd(NAMES) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        async for rng in at_random(arena, sending):
            await kill_and_restart(arena, arena.world.programs[rng.choice(WORKERS)], away_s=rng.uniform(0, 1))
    await arena.verdict()


@pytest.mark.parametrize("who", ["one alone", "two sharing a journal", "two with one each"])
async def test_orchestrators_killed(arena: Arena, who: str) -> None:
    names = NAMES[:1] if who == "one alone" else NAMES
    await fleet(arena, *names, journal="own" if who == "two with one each" else "shared")
    await kill_in_turn(arena, names, arena.count(TASKS))
    await arena.verdict()


@pytest.mark.parametrize("who", ["one alone", "two sharing a journal"])
async def test_orchestrators_crash_at_points(arena: Arena, who: str) -> None:
    """Each life ends by itself the nth time that it comes to a point in the handling of requests; the next is begun."""
    names = NAMES[:1] if who == "one alone" else NAMES
    await fleet(arena, *names)
    async with arena.crowd(names) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        await asyncio.gather(*(_crash_again_and_again(arena, name, sending) for name in names))
    await arena.verdict()


async def test_flooded_orchestrator_killed(arena: Arena) -> None:
    """More than it can take comes to an orchestrator that is killed: it refuses, but nothing that it had accepted."""
    await fleet(arena, "orc-1")
    async with arena.crowd(["orc-1"]) as crowd, crowd.asking(arena.count(3 * TASKS), 12 * RATE) as sending:
        async for _ in at_random(arena, sending, pause_s=(0.5, 1.0)):
            await kill_and_restart(arena, arena.world.programs["orc-1"])
            await asyncio.sleep(0.5)
    await arena.verdict()


async def _crash_again_and_again(arena: Arena, name: str, sending: asyncio.Task[None]) -> None:
    program = arena.world.programs[name]
    program.kill()
    points = list(POINTS)
    while not sending.done():
        arena.rng.shuffle(points)
        for point in points:
            program.start(CHAOS_CRASH=f"{point}:{arena.rng.choice(_TIMES)}")
            ended = asyncio.ensure_future(program.ended())
            await asyncio.wait([ended, sending], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if sending.done():
                break
            arena.checker.faults += 1
    program.kill()
    program.start()


async def kill_in_turn(arena: Arena, names: Sequence[str], tasks: int) -> None:
    """kill -9 of one orchestrator after the other while tasks run; notes how long each took to go on."""
    kills = []
    async with arena.crowd(names) as crowd, crowd.asking(tasks, RATE) as sending:
        async for rng in at_random(arena, sending, pause_s=(1.5, 3.0)):
            name = rng.choice(names)
            kills.append((await kill_and_restart(arena, arena.world.programs[name]), name))
            await asyncio.sleep(1)
    for killed, name in kills:
        arena.recovered(
            "from the kill of an orchestrator to the first resumed step", arena.checker.resumed(killed, name)
        )
