"""A short run of the chaos suite that belongs to the ordinary tests."""

from __future__ import annotations

import pytest
from arena import Arena
from faults import fleet
from test_chaos_kills import kill_in_turn

from mqttcollab.topics import parse_status


@pytest.mark.slow
async def test_smoke_orchestrators_killed(arena: Arena) -> None:
    await fleet(arena, "orc-1", "orc-2")
    await kill_in_turn(arena, ("orc-1", "orc-2"), 300)
    assert parse_status(arena.world.status("orc-1").encode()).state == "online"
    row = await arena.verdict()
    assert row.tasks == 300 and row.faults
