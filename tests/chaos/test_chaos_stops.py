"""SIGSTOP for seconds, clocks that jump, a disk that is full; and a bit of everything."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import RATE, TASKS, Arena
from faults import WORKERS, Clock, at_random, fleet, freeze, kill_and_restart, restart_broker
from proxy import Proxy, Weather

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

NAMES = ("orc-1", "orc-2")
_DISK_BYTES = 64 << 20


async def test_stopped_processes(arena: Arena) -> None:
    """Orchestrators, workers and the broker stand still for up to three seconds."""
    await fleet(arena, *NAMES)
    async with arena.crowd(NAMES) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        async for rng in at_random(arena, sending, pause_s=(0.5, 2.0)):
            name = rng.choice([*NAMES, *WORKERS, "broker"])
            seconds = rng.uniform(0.5, 3)
            if name != "broker":
                await freeze(arena.world.programs[name], seconds)
                continue
            arena.world.signal_broker(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            arena.world.signal_broker(signal.SIGCONT)
    await arena.verdict()


async def test_orchestrator_stopped_longer_than_its_lease(arena: Arena) -> None:
    """Another takes over what it has; when it goes on, it must not answer again."""
    await fleet(arena, *NAMES)
    async with arena.crowd(NAMES, ttl_s=30) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        async for rng in at_random(arena, sending, pause_s=(0.5, 1.0)):
            await freeze(arena.world.programs[rng.choice(NAMES)], 8)
    await arena.verdict()


async def test_clock_jumps(arena: Arena) -> None:
    """The clock of the orchestrators' machine goes an hour on or back while tasks are open, and some of them die."""
    clock = Clock(arena.folder / "clock")
    await fleet(arena, *NAMES, each=dict.fromkeys(NAMES, clock.environment))
    async with arena.crowd(NAMES) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        async for rng in at_random(arena, sending, pause_s=(0.5, 2.0)):
            if rng.random() < 0.3:
                await kill_and_restart(arena, arena.world.programs[rng.choice(NAMES)])
            else:
                clock.set(rng.choice([3600, -3600, 90, -90, 0]))
    await arena.verdict()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, which takes root."""
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "chaos", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a tmpfs be mounted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_disk_full(small_disk: Path, arena: Arena) -> None:
    """The journal's disk is filled and freed again; what can't be written down is refused, and said in the status."""
    await fleet(arena, *NAMES, folder=small_disk)
    ballast, seen = small_disk / "ballast", set()
    async with arena.crowd(NAMES) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
        async for rng in at_random(arena, sending, pause_s=(1.5, 3.0)):
            _fill(ballast)
            await asyncio.sleep(rng.uniform(1, 3))
            seen |= {arena.world.status(name).split()[0] for name in NAMES}
            ballast.unlink()
    await arena.world.online(*NAMES)
    row = await arena.verdict()
    assert "degraded" in seen
    assert row.errors.get("busy")


def _fill(ballast: Path) -> None:
    """Writes until nothing more fits."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


async def test_everything(arena: Arena) -> None:
    """One fault after another, of all kinds, on a link that is slow and doubles and swaps messages."""
    info = arena.world.broker.info
    async with Proxy(info.host, info.port, random.Random(f"{arena.seed}:proxy")) as proxy:
        await fleet(arena, *NAMES, url=proxy.url)
        proxy.weather = Weather(delay_s=(0.0, 0.02), double=0.05, swap=0.05)
        async with arena.crowd(NAMES, url=proxy.url) as crowd, crowd.asking(arena.count(TASKS), RATE) as sending:
            async for rng in at_random(arena, sending, pause_s=(0.5, 1.5)):
                program = arena.world.programs[rng.choice([*NAMES, *WORKERS])]
                match rng.choice(["kill", "kill", "freeze", "cut", "hold", "broker"]):
                    case "kill":
                        await kill_and_restart(arena, program, away_s=rng.uniform(0, 1))
                    case "freeze":
                        await freeze(program, rng.uniform(0.5, 3))
                    case "cut":
                        proxy.cut()
                    case "hold":
                        proxy.hold()
                        await asyncio.sleep(rng.uniform(0.2, 1.5))
                        proxy.release()
                    case _:
                        await restart_broker(arena, away_s=rng.uniform(0, 0.5))
    await arena.verdict()
