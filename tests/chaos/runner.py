"""`mqttcollab`, but it kills itself at a chosen point of its journal's use, or its clock jumps.

Run as `CHAOS_CRASH=<point>:<n> CHAOS_CLOCK=<file> python runner.py orchestrator …`. The file holds the seconds by which
the time of day is off; monotonic clocks stay as they are. (libfaketime does the same for any process, but makes
Python's threads wait so long for each other that nothing else is tested.) The points:

    before-accept   a request has come, and is not on disk
    after-accept    it is on disk, and not acknowledged to the broker
    before-answer   its answer is known, and not on disk
    after-answer    its answer is on disk, and not published
    before-sent     its answer is published, and that is not noted
    after-append    something that happened to it is about to be noted
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mqttcollab.life
from mqttcollab.cli import main
from mqttcollab.journal import Journal, open_journal

POINTS = ("before-accept", "after-accept", "before-answer", "after-answer", "before-sent", "after-append")


class Crashing:
    """A journal that passes everything on to another, and kills the process at one point, the nth time."""

    def __init__(self, journal: Journal, point: str, number: int) -> None:
        self._journal = journal
        self._point, self._number = point, number
        self._counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def _reached(self, point: str) -> None:
        self._counts[point] += 1
        if point == self._point and self._counts[point] == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    async def accept(self, *arguments: Any) -> Any:
        self._reached("before-accept")
        accepted = await self._journal.accept(*arguments)
        self._reached("after-accept")
        return accepted

    async def answer(self, *arguments: Any) -> bool:
        self._reached("before-answer")
        written = await self._journal.answer(*arguments)
        self._reached("after-answer")
        return written

    def sent(self, key: str) -> None:
        self._reached("before-sent")
        self._journal.sent(key)

    def append(self, *arguments: Any) -> None:
        self._journal.append(*arguments)
        self._reached("after-append")


def _crash_at(point: str, number: int) -> None:
    async def opened(*arguments: Any, **more: Any) -> Any:
        return Crashing(await open_journal(*arguments, **more), point, number)

    mqttcollab.life.open_journal = opened


def _follow_clock(file: Path) -> None:
    right = time.time_ns

    def time_ns() -> int:
        return right() + int(file.read_text()) * 1_000_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if __name__ == "__main__":
    if crash := os.environ.get("CHAOS_CRASH"):
        where, _, nth = crash.partition(":")
        _crash_at(where, int(nth))
    if clock := os.environ.get("CHAOS_CLOCK"):
        _follow_clock(Path(clock))
    sys.exit(main())
