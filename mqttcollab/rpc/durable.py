"""What makes a service durable: what was noted of a request, for whoever goes on with it after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mqttcollab.errors import JournalError, MessageError
from mqttcollab.journal import Entry, Journal, Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskLog:
    """The journal of the request that is being handled.

    Attributes:
        journal: that holds it.
        key: of the task.
        history: what was noted of it before this handler was called, by a life before or another owner; oldest first.
    """

    journal: Journal
    key: str
    history: Sequence[Entry] = ()

    def note(self, kind: str, facts: Mapping[str, Any] | str) -> None:
        """Notes what happened, for whoever goes on with the task if this process dies."""
        self.journal.append(self.key, kind, facts)


# Of the request that is being handled, where its service is durable.
current_log: ContextVar[TaskLog | None] = ContextVar("current_log", default=None)


class TakeOver:
    """Goes on with what a life before, or another owner that died, left in the journal.

    Args:
        journal: claimed from at once, whenever `owner_gone` is called, and every `pause_s` seconds.
        services: that are durable here.
        resume: takes a task with its history.
    """

    def __init__(
        self,
        journal: Journal,
        services: Collection[str],
        resume: Callable[[Task, Sequence[Entry]], None],
        pause_s: float = 1.0,
    ) -> None:
        self._journal = journal
        self._services = services
        self._resume = resume
        self._pause_s = pause_s
        self._gone: set[str] = set()
        self._claimed: dict[str, Task] = {}
        self._news = asyncio.Event()

    def owner_gone(self, owner: str) -> None:
        """An owner is known to be dead, or cut off from the broker: what it has is claimed at once."""
        self._gone.add(owner)
        self._news.set()

    async def run(self) -> None:
        """Claims until it is cancelled."""
        while True:
            gone, self._gone = self._gone, set()
            self._news.clear()
            try:
                for task in await self._journal.claim(gone, self._services):
                    self._claimed[task.key] = task
            except JournalError as error:
                self._gone |= gone
                _log.debug("nothing can be taken over: %s", error)  # the journal itself has said it
            await asyncio.gather(*(self._go_on(task) for task in list(self._claimed.values())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s):
                    await self._news.wait()

    async def _go_on(self, task: Task) -> None:
        try:
            found = await self._journal.task(task.key)
            try:
                if found is not None and found[0].owner == self._journal.owner:  # as it is now
                    self._resume(*found)
            except MessageError as error:  # of another version of ours, or damaged: nobody can answer it
                _log.error("the task %s can't be resumed: %s", task.key, error)
                await self._journal.answer(task.key, None, "internal")
        except JournalError as error:
            _log.debug("the task %s can't be resumed yet: %s", task.key, error)  # it is ours: nobody claims it again
            return
        except Exception:
            _log.exception("the task %s can't be resumed", task.key)
        del self._claimed[task.key]
