"""A journal in a SQLite file, which the processes of one machine may share."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from mqttcollab.errors import ConfigError, JournalError
from mqttcollab.journal.base import Entry, Filter, Limits, Task
from mqttcollab.journal.batch import Batch, BatchedJournal, Written
from mqttcollab.journal.sqlite_file import explain, open_file, open_to_read
from mqttcollab.journal.sqlite_work import Work, entries_of

_R = TypeVar("_R")


def wall_clock_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class _Thread(aiosqlite.Connection):
    async def run(self, work: Callable[..., _R], *arguments: Any) -> _R:
        """Calls `work` with the connection in its thread: a whole transaction, which nothing can come between."""
        result: _R = await self._execute(work, self._conn, *arguments)  # type: ignore[no-untyped-call]
        return result


class SqliteJournal(BatchedJournal):
    """A journal in a file. Open it with `SqliteJournal.open`; it belongs to one event loop.

    Leases and deadlines go by the machine's wall clock. Where that jumps ahead, owners that live may count as dead for
    a moment: others take their tasks over, and only the new owner's answer is written. Where it is set back, leases
    count from the new time at the next claim, and tasks never have more time left than they had at first.
    """

    def __init__(self, db: _Thread, path: Path, work: Work) -> None:
        super().__init__(work.owner, work.limits, work.lease_ms / 1000)
        self._db, self._path, self._do = db, path, work
        self._file: tuple[int, int] | None = None

    @classmethod
    async def open(
        cls,
        path: Path | str,
        owner: str,
        *,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        lease_s: float = 3.0,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> Self:
        """Opens the file, or makes it.

        Args:
            owner: `<name>/<epoch>` of the agent that writes.
            lease_s: after so many seconds without a sign of life others may take its tasks over.
            now_ms: the clock, in milliseconds.

        Raises:
            ConfigError: it can't be written, is no journal, is damaged, or is a newer version's.
        """
        journal = await cls._open(Path(path), open_file, Work(owner, limits, round(1000 * lease_s), now_ms))
        try:
            await journal._run(journal._look_at_file)
            if owner:
                await journal._transact(journal._do.renew)
        except BaseException as error:
            await journal._db.close()
            if isinstance(error, JournalError):
                raise ConfigError(str(error)) from None
            raise
        journal._start()
        return journal

    @classmethod
    async def read(cls, path: Path | str) -> Self:
        """Opens a file that is there, only to look: no lease, and nothing can be written.

        Raises:
            ConfigError: it isn't there, can't be read, is no journal, is damaged, or is another version's.
        """
        return await cls._open(Path(path), open_to_read, Work("", Limits(), 3000, wall_clock_ms))

    @classmethod
    async def _open(cls, path: Path, connect: Callable[[Path], sqlite3.Connection], work: Work) -> Self:
        first = await asyncio.to_thread(connect, path)  # aiosqlite's thread may outlive the loop where it can't connect
        db = _Thread(lambda: first, 64)
        await db
        return cls(db, path, work)

    def now_ms(self) -> int:
        """Unix time in milliseconds by the journal's clock."""
        return self._do.now_ms()

    # Tasks of the dead

    async def claim(self, gone: Collection[str] = ()) -> list[Task]:
        """Takes over what nobody works on; oldest first, with request and reply."""
        claiming = self._begin(self._transact(self._do.claim, frozenset(gone)))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            self._begin(self._give_back(claiming))
            raise

    async def _give_back(self, claiming: asyncio.Task[list[Task]]) -> None:
        try:
            tasks = await claiming
            await self._transact(self._do.give_up, [task.key for task in tasks])
        except JournalError:
            pass  # nothing was claimed; or they wait until this owner is dead

    async def release(self) -> None:
        """Gives all open tasks of this owner up, so that another may claim them at once."""
        await asyncio.shield(self._begin(self._transact(self._do.give_up)))

    # Looking

    async def tasks(self, which: Filter = Filter(), *, most: int = 100) -> list[Task]:  # noqa: B008 - immutable
        """Lists tasks, newest first, without requests and replies."""
        return await self._run(self._do.tasks, which, most)

    async def task(self, key: str) -> tuple[Task, Sequence[Entry]] | None:
        """A task with its request, its reply and its history, oldest first; None if there is none."""
        found = await self._run(self._do.task, key)
        return None if found is None else (found[0], entries_of(found[1], json.loads))

    async def owners(self) -> dict[str, int]:
        """Owners whose lease has not run out, with how many milliseconds are left of it."""
        return await self._run(lambda db: self._do.living(db, self.now_ms()))

    async def prune(self, *, older_than_s: float = 0.0, dry_run: bool = False) -> int:
        """Deletes tasks that ended at least so many seconds ago, with their history; returns how many."""
        now = self.now_ms()
        until = now - round(1000 * older_than_s)
        if dry_run:
            return await self._run(self._do.count_ended, until, now)
        count = 0
        while step := await asyncio.shield(self._begin(self._transact(self._do.prune_oldest, until, now, 500))):
            count += step
        return count

    async def secret(self) -> bytes:
        """32 random bytes, the same for all who share the file."""
        return await asyncio.shield(self._begin(self._transact(self._do.secret)))

    # The store of a BatchedJournal

    async def _write(self, batch: Batch) -> Written:
        return await self._transact(self._do.write, batch)

    async def _tend(self) -> None:
        if self._trouble is not None or await self._run(self._do.has_work):
            await self._transact(self._do.renew)
        more = True
        while more and not self._closed:
            more = await self._transact(self._do.tidy)

    async def _leave(self) -> None:
        if self.owner:
            await self._transact(self._do.leave)

    async def _close(self) -> None:
        await self._db.close()

    async def _transact(self, work: Callable[..., _R], *arguments: Any) -> _R:
        return await self._run(self._do_in_transaction, work, *arguments)

    def _do_in_transaction(self, db: sqlite3.Connection, work: Callable[..., _R], *arguments: Any) -> _R:
        self._look_at_file(db)
        return self._do.transaction(db, work, *arguments)

    async def _run(self, work: Callable[..., _R], *arguments: Any) -> _R:
        try:
            return await self._db.run(work, *arguments)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"the journal {self._path} can't be used: {explain(error)}") from error
        except ValueError:  # aiosqlite's word for it
            raise JournalError(f"the journal {self._path} is closed") from None

    def _look_at_file(self, db: sqlite3.Connection) -> None:
        """What is written to a file that was deleted is lost, and SQLite doesn't tell."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            raise JournalError(f"the journal {self._path} is gone: put it back, or restart") from None
        if self._file is None:
            self._file = (found.st_dev, found.st_ino)
        elif self._file != (found.st_dev, found.st_ino):
            raise JournalError(f"the journal {self._path} is another file now: restart, or put the old one back")
