"""Group commit: what many tasks write at once shares a transaction, whatever the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from mqttcollab.errors import JournalError
from mqttcollab.journal.base import Accepted, Limits, NewTask

_log = logging.getLogger(__name__)

LARGEST = 512  # writes in a transaction: what waits behind it waits some milliseconds
_LINGER_S = 0.02  # how long what is not waited for lies until it goes alone
_KEPT = 10_000  # of what is not waited for, while nothing can be written
_R = TypeVar("_R")


class NewEntry(NamedTuple):
    """An entry to be written; `facts` is JSON."""

    key: str
    time_ms: int
    kind: str
    facts: str


class Ending(NamedTuple):
    """How a task ends."""

    key: str
    reply: bytes | None
    outcome: str


@dataclass(slots=True)
class Batch:
    """Writes that share a transaction. They are carried out in the order of the fields; a key is once in each dict."""

    accepts: dict[str, tuple[NewTask, asyncio.Future[Accepted]]] = field(default_factory=dict)
    entries: list[NewEntry] = field(default_factory=list)
    answers: dict[str, tuple[Ending, asyncio.Future[bool]]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.accepts) + len(self.entries) + len(self.answers) + len(self.sent)

    def split(self) -> list[Batch]:
        """A batch for each of its writes."""
        return [
            *(Batch(accepts={key: accept}) for key, accept in self.accepts.items()),
            *(Batch(entries=[entry]) for entry in self.entries),
            *(Batch(answers={key: answer}) for key, answer in self.answers.items()),
            *(Batch(sent=[key]) for key in self.sent),
        ]


class Written(NamedTuple):
    """What became of a batch, in its order; an error is one of that task alone."""

    accepted: list[Accepted | JournalError]
    answered: list[bool]


class BatchedJournal(ABC):
    """What the journals have in common: the queue of writes, trouble and its end, and the background work.

    Args:
        owner: the incarnation that it writes for, `<name>/<epoch>`; empty for a mere reader, which has no lease.
        lease_s: seconds after its last sign of life that an owner counts as dead.
    """

    def __init__(self, owner: str, limits: Limits, lease_s: float) -> None:
        self.owner, self.limits, self.lease_ms = owner, limits, max(1, round(1000 * lease_s))
        self._batches: deque[Batch] = deque()
        self._waiting = 0
        self._news = asyncio.Event()
        self._lingering: asyncio.TimerHandle | None = None
        self._trouble: str | None = None
        self._refusing = False  # trouble is that the journal is as large as it may be: only new tasks can't be written
        self._listeners: list[Callable[[str | None], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._writer: asyncio.Task[None] | None = None
        self._tender: asyncio.Task[None] | None = None

    # What the stores do

    @abstractmethod
    def now_ms(self) -> int:
        """Unix time in milliseconds by the journal's clock, as tasks' deadlines are given."""

    @abstractmethod
    async def _write(self, batch: Batch) -> Written:
        """Writes a batch in one transaction; JournalError where nothing of it was written."""

    @abstractmethod
    async def _tend(self) -> bool:
        """Renews the lease where it is needed, and prunes; whether there is room for new tasks.

        Raises:
            JournalError: nothing can be written.
        """

    @abstractmethod
    async def _leave(self) -> None:
        """Gives the lease up."""

    @abstractmethod
    async def _close(self) -> None:
        """Closes the store."""

    # What tasks write

    async def accept(self, task: NewTask) -> Accepted:
        """Writes a request down, unless it is there already; one that is there and the caller's own stays its own."""
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        batch = self._batch()
        if task.key in batch.accepts or task.key in batch.answers:  # here order matters
            batch = self._another()
        batch.accepts[task.key] = (task, future)
        self._added()
        return await future

    async def answer(self, key: str, reply: bytes | None, outcome: str) -> bool:
        """Writes down how a task ends, if it is the caller's; True also where it had ended with these very bytes."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        batch = self._batch()
        if key in batch.answers:
            batch = self._another()
        batch.answers[key] = (Ending(key, reply, outcome), future)
        self._added()
        return await future

    def sent(self, key: str) -> None:
        """Notes, some time soon, that the last reply is with the broker."""
        if not self._closed:
            self._batch().sent.append(key)
            self._linger()

    def append(self, key: str, kind: str, facts: Mapping[str, Any] | str) -> None:
        """Notes, some time soon and in order, what happened to a task; lost where the process dies before."""
        if not self._closed:
            text = facts if isinstance(facts, str) else json.dumps(facts, separators=(",", ":"), default=str)
            self._batch().entries.append(NewEntry(key, self.now_ms(), kind, text))
            self._linger()

    # Trouble

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written just now, in one line; None if all is well."""
        return self._trouble

    def on_trouble(self, listener: Callable[[str | None], None]) -> None:
        """Calls `listener` on the event loop whenever `trouble` has changed."""
        self._listeners.append(listener)

    @property
    def waiting(self) -> int:
        """How many writes wait for their transaction."""
        return self._waiting

    def _set_trouble(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        before, self._trouble = self._trouble, trouble
        if trouble is not None and before is None:
            _log.error("%s", trouble)
        elif trouble is None:
            _log.warning("the journal can be written again")
        for listener in self._listeners:
            try:
                listener(trouble)
            except Exception:
                _log.exception("a listener to the journal's trouble failed")

    # The queue

    def _start(self) -> None:
        self._writer = asyncio.create_task(self._work(), name="journal writer")
        if self.owner:
            self._tender = asyncio.create_task(self._tend_always(), name="journal lease")

    def _batch(self) -> Batch:
        if self._closed:
            raise JournalError("the journal is closed")
        if not self._batches or len(self._batches[-1]) >= LARGEST:
            return self._another()
        return self._batches[-1]

    def _another(self) -> Batch:
        self._batches.append(Batch())
        return self._batches[-1]

    def _added(self) -> None:
        self._waiting += 1
        self._news.set()

    def _linger(self) -> None:
        self._waiting += 1
        if self._lingering is None and self._trouble is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER_S, self._news.set)

    async def _work(self) -> None:
        while not (self._closed and not self._batches):
            await self._news.wait()
            self._news.clear()
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
            while self._batches:
                batch = self._batches.popleft()
                try:
                    done = await self._write_down(batch)
                except Exception as error:  # else nobody would be told anything any more
                    _log.exception("the journal's writer failed")
                    self._refuse(batch, f"the journal's writer failed: {error!r}")
                    continue
                if not done and not self._is_waited_for():
                    break  # what is kept waits for the next write, or for the lease's

    def _is_waited_for(self) -> bool:
        return self._closed or any(batch.accepts or batch.answers for batch in self._batches)

    async def _write_down(self, batch: Batch) -> bool:
        try:
            written = await self._write(batch)
        except JournalError as error:
            self._set_trouble(str(error))
            self._fail(batch, str(error))
            return False
        except Exception as error:  # not the store, but what is to be written: the others must not suffer
            if len(batch) > 1:
                return all([await self._write_down(part) for part in batch.split()])
            _log.exception("something can't be written to the journal")
            self._refuse(batch, f"it can't be written to the journal: {type(error).__name__}: {error}")
            return True
        refused = None
        for (_, accepted), answer in zip(batch.accepts.values(), written.accepted, strict=True):
            if isinstance(answer, JournalError):
                refused = str(answer)
            _settle(accepted, answer)
        for (_, answered), mine in zip(batch.answers.values(), written.answered, strict=True):
            _settle(answered, mine)
        self._waiting -= len(batch)
        if refused is not None or batch.accepts or not self._refusing:
            self._refusing = refused is not None
            self._set_trouble(refused)
        return True

    def _refuse(self, batch: Batch, why: str) -> None:
        for _, accepted in batch.accepts.values():
            _settle(accepted, JournalError(why))
        for _, answered in batch.answers.values():
            _settle(answered, JournalError(why))
        self._waiting -= len(batch)

    def _fail(self, batch: Batch, why: str) -> None:
        self._refuse(batch, why)
        if self._closed:
            if batch.entries or batch.sent:
                _log.warning("%d notes of the journal are lost: %s", len(batch.entries) + len(batch.sent), why)
            return
        following = self._batches[0] if self._batches else self._another()
        before = len(following)
        following.entries[:0] = batch.entries[-_KEPT:]
        following.sent[:0] = batch.sent[-_KEPT:]
        if len(following.entries) > _KEPT:
            del following.entries[:-_KEPT]
        if len(following.sent) > _KEPT:
            del following.sent[:-_KEPT]
        self._waiting += len(following) - before

    async def _tend_always(self) -> None:
        while True:
            await asyncio.sleep(self.lease_ms / 3000)
            try:
                room = await self._tend()
            except JournalError as error:
                self._set_trouble(str(error))
            except Exception:
                _log.exception("tending the journal failed")
            else:
                if room or not self._refusing:
                    self._refusing = False
                    self._set_trouble(None)
                if self._batches:
                    self._news.set()

    def _begin(self, work: Coroutine[Any, Any, _R]) -> asyncio.Task[_R]:
        """Begins a transaction, which is done to its end even where whoever waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Writes what waits, gives the lease up and closes the store."""
        if self._closed:
            return
        self._closed = True
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.gather(self._tender, return_exceptions=True)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._news.set()
            await self._writer
        if self._lingering is not None:  # for what the writer took along
            self._lingering.cancel()
        with contextlib.suppress(JournalError):
            await self._leave()
        await self._close()


def _settle(future: asyncio.Future[_R], result: _R | JournalError) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if isinstance(result, JournalError):
        future.set_exception(result)
    else:
        future.set_result(result)
