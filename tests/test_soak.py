"""An hour's requests in minutes: everything is answered, and nothing grows (see soak.py; `pytest -m soak`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import Soak


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process uses is read from /proc")
async def test_an_hour_leaves_nothing_behind(tmp_path: Path) -> None:
    soak = Soak(requests=18_000, rate=60.0, folder=tmp_path)
    await soak.run()
    assert not soak.report()
    assert sum(soak.outcomes.values()) == 18_000
