"""Options, seeds, the arena of a test, and the table at the end of the run."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from arena import Arena, table
from checker import Checker, Observer, Row

_ROWS = pytest.StashKey[list[Row]]()
_STARTED = pytest.StashKey[float]()
_LIMIT_S = 15 * 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Seen only where pytest is started on this folder; elsewhere the environment says the same."""
    group = parser.getgroup("chaos")
    group.addoption("--chaos-seed", type=int, help="of all random choices (CHAOS_SEED); default: from the clock")
    group.addoption("--chaos-json", type=Path, help="write the table to this file as JSON (CHAOS_JSON)")
    group.addoption("--chaos-scale", type=float, help="times as many tasks (CHAOS_SCALE); default: 1")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []
    config.stash[_STARTED] = time.monotonic()


def _option(config: pytest.Config, name: str) -> str | None:
    given = config.getoption(f"chaos_{name}", default=None)
    return os.environ.get(f"CHAOS_{name.upper()}") if given is None else str(given)


@pytest.fixture(scope="session")
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """The seed of the run."""
    return int(_option(request.config, "seed") or time.time_ns() % 1_000_000)


@pytest.fixture
async def arena(
    request: pytest.FixtureRequest, chaos_seed: int, tmp_path: Path, _mosquitto_is_there: None
) -> AsyncIterator[Arena]:
    """A broker, an observer and nobody else yet; all processes are gone at the end, whatever happens."""
    name = request.node.name.removeprefix("test_")
    if time.monotonic() - request.config.stash[_STARTED] > _LIMIT_S - 60 and request.node.get_closest_marker("chaos"):
        pytest.fail(f"no time is left for this fault: chaos ends after {_LIMIT_S:g} s; use a smaller --chaos-scale")
    arena = Arena(
        name,
        f"{chaos_seed}:{name}",
        tmp_path,
        float(_option(request.config, "scale") or 1),
        rows=request.config.stash[_ROWS],
    )
    print(f"\nseed {arena.seed}; logs in {tmp_path}")
    async with arena.world:
        observer = Observer(arena.world.url)
        await observer.start()
        arena.checker = Checker(observer)
        try:
            yield arena
        finally:
            await observer.stop()


@pytest.fixture(scope="session")
def _mosquitto_is_there() -> None:
    from mqttcollab.broker import find_broker
    from mqttcollab.errors import BrokerError

    try:
        find_broker("mosquitto")
    except BrokerError as error:
        pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table, and writes it as JSON where that is asked for."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section("chaos")
    for line in table(rows):
        terminalreporter.write_line(line)
    if path := _option(config, "json"):
        Path(path).write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
