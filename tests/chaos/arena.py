"""The arena of a chaos test: a world with requesters, the verdict on what they got, and the table of all verdicts."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checker import Checker, Row, brief
from requesters import KINDS, Crowd
from world import World

from mqttcollab.journal import open_journal

# What each fault gets: few enough a second that a busy machine with two cores keeps up, since this is no load test.
TASKS, RATE = 700, 25.0


@dataclass(slots=True)
class Arena:
    """A world with requesters, and the verdict on what they got.

    Args:
        name: of the fault.
        seed: from which all choices of the test follow.
        folder: for logs.
        scale: of the number of tasks.

    Attributes:
        once: agents that must never answer one request in two ways.
        journal: theirs.
    """

    name: str
    seed: str
    folder: Path
    scale: float
    world: World = field(init=False)
    checker: Checker = field(init=False)
    rng: random.Random = field(init=False)
    rows: list[Row] = field(default_factory=list)
    once: set[str] = field(default_factory=set)
    journal: Path | None = None
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.world = World(self.folder)

    def count(self, tasks: int) -> int:
        return max(1, int(tasks * self.scale))

    @contextlib.asynccontextmanager
    async def crowd(
        self, orchestrators: Sequence[str], *, kinds: Sequence[str] = KINDS, url: str | None = None, ttl_s: float = 12.0
    ) -> AsyncIterator[Crowd]:
        """The requesters, connected; chosen by a random source of their own, so that faults don't change theirs."""
        crowd = Crowd(self.checker, orchestrators, random.Random(f"{self.seed}:crowd"), kinds, ttl_s)
        async with crowd.connected(url or self.world.url):
            yield crowd

    def recovered(self, what: str, seconds: float | None) -> None:
        """Notes how long a recovery took; None: there was nothing to go on with, or nobody to see it."""
        if seconds is not None:
            self.checker.recovery[what].append(seconds)

    async def verdict(self) -> Row:
        """Counts, notes the row, and fails where something is lost, wrong, uncoded, or answered twice."""
        twice = self.checker.observer.twice(self.once, await self._accepted_ms())
        executed = Counter(self.world.executed())
        row = self.checker.row(self.name, self.seed, executed, len(twice), time.monotonic() - self._started)
        self.rows.append(row)
        (self.folder / "ends.txt").write_text("\n".join(self.checker.story(task) for task in self.checker.tasks))
        bad = [t for t in self.checker.tasks if t.outcome in ("", "lost", "wrong", "uncoded")]
        details = [f"{t.token}: {t.outcome or 'no end'}, {t.said}" for t in bad[:10]]
        details += [" | ".join(map(brief, seen)) for seen in twice[:3]]
        broken = {"lost": row.lost, "wrong": row.wrong, "uncoded": row.uncoded, "twice": row.twice}
        assert not any(broken.values()), "\n".join([f"{broken}; seed {self.seed}; logs in {self.folder}", *details])
        assert row.ok > 0
        return row

    async def _accepted_ms(self) -> dict[str, int]:
        """When the journal accepted those requests that got several last replies, by their reply topics."""
        found: dict[str, int] = {}
        if self.journal is None:
            return found
        journal = await open_journal(str(self.journal), "chaos-checker/1")
        try:
            for topic in self.checker.observer.several(self.once):
                if (task := await journal.task(topic)) is not None:
                    found[topic] = task[0].accepted_ms
        finally:
            await journal.close()
        return found


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows and their sum, and how long recovery took."""
    numbers = ("tasks", "ok", "partial", "timer", "lost", "wrong", "uncoded", "twice", "twice_elsewhere")
    numbers += ("repeated", "double_work", "faults", "seconds")
    heads = {"twice_elsewhere": "twice*", "double_work": "double", "seconds": "s"}
    width = max(len(row.fault) for row in rows)
    yield f"{'fault':{width}}" + "".join(f"{heads.get(n, n):>9}" for n in numbers) + "  errors by code"
    for row in rows:
        errors = ", ".join(f"{code} {count}" for code, count in row.errors.items())
        yield f"{row.fault:{width}}" + "".join(f"{getattr(row, n):>9}" for n in numbers) + f"  {errors}"
    yield f"{'all':{width}}" + "".join(f"{round(sum(getattr(row, n) for row in rows), 1):>9}" for n in numbers)
    yield "timer: deadline_exceeded by the requester's own timer; repeated: the same bytes again on the wire;"
    yield "twice*: different replies on the wire where once is not promised: no journal, one each, busy at first"
    for row in rows:
        for reason, count in row.reasons.items():
            yield f"{row.fault}: {count} times {reason}"
    for row in rows:
        for name, times in row.recovery.items():
            ordered = sorted(times)
            middle, most = ordered[len(ordered) // 2], ordered[-1]
            yield f"{row.fault}, {name}: median {middle:.2f} s, max {most:.2f} s of {len(ordered)}"
