"""Cuts, black holes, a slow and lossy link, duplicates, swaps: what a network does, by a proxy before the broker."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from arena import RATE, TASKS, Arena
from faults import at_random, fleet
from proxy import Proxy, Weather

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

NAMES = ("orc-1", "orc-2")


@contextlib.asynccontextmanager
async def proxy_before(arena: Arena, name: str) -> AsyncIterator[Proxy]:
    info = arena.world.broker.info
    async with Proxy(info.host, info.port, random.Random(f"{arena.seed}:{name}")) as proxy:
        yield proxy


async def test_network_cut(arena: Arena) -> None:
    """Connections of all agents break, of all requesters, or of both, and can't be made again for a while."""
    async with proxy_before(arena, "agents") as agents, proxy_before(arena, "requesters") as requesters:
        await fleet(arena, *NAMES, url=agents.url)
        async with (
            arena.crowd(NAMES, url=requesters.url) as crowd,
            crowd.asking(arena.count(TASKS), RATE) as sending,
        ):
            async for rng in at_random(arena, sending, pause_s=(1.0, 3.0)):
                hit = rng.choice([[agents], [requesters], [agents, requesters]])
                for proxy in hit:
                    await proxy.unplug()
                await asyncio.sleep(rng.uniform(0, 1.5))
                for proxy in hit:
                    await proxy.plug()
    await arena.verdict()


async def test_network_black_hole(arena: Arena) -> None:
    """Nothing passes for a while and nobody is told; then all of it does, or the connections break."""
    async with proxy_before(arena, "agents") as agents, proxy_before(arena, "requesters") as requesters:
        await fleet(arena, *NAMES, url=agents.url)
        async with (
            arena.crowd(NAMES, url=requesters.url) as crowd,
            crowd.asking(arena.count(TASKS), RATE) as sending,
        ):
            async for rng in at_random(arena, sending, pause_s=(1.0, 3.0)):
                proxy = rng.choice([agents, requesters])
                proxy.hold()
                await asyncio.sleep(rng.uniform(0.5, 3))
                if rng.random() < 0.5:
                    proxy.cut()
                proxy.release()
    await arena.verdict()


async def test_network_slow_and_lossy(arena: Arena) -> None:
    """20 to 60 ms each way, 2% of the packets wait 0.3 s for a retransmission, 500 kB/s; and a cut now and then."""
    async with proxy_before(arena, "all") as proxy:
        await fleet(arena, *NAMES, url=proxy.url)
        async with arena.crowd(NAMES, url=proxy.url) as crowd:
            proxy.weather = Weather(delay_s=(0.02, 0.06), loss=0.02, bytes_per_s=500_000)
            async with crowd.asking(arena.count(TASKS), RATE) as sending:
                async for _ in at_random(arena, sending, pause_s=(3.0, 6.0)):
                    proxy.cut()
    await arena.verdict()


async def test_duplicates_and_swaps(arena: Arena) -> None:
    """A fifth of all QoS 1 messages reaches its client twice, a fifth after what follows it."""
    async with proxy_before(arena, "all") as proxy:
        await fleet(arena, *NAMES, url=proxy.url)
        async with arena.crowd(NAMES, url=proxy.url) as crowd:
            proxy.weather = Weather(double=0.2, swap=0.2)
            async with crowd.asking(arena.count(TASKS), RATE):
                pass
        arena.checker.faults = proxy.doubled + proxy.swapped
    assert proxy.doubled and proxy.swapped
    await arena.verdict()
