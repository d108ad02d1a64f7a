"""A journal on a PostgreSQL server, which many machines may share."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Self, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import DeadlockDetected, SerializationFailure

from mqttcollab.errors import ConfigError, JournalError
from mqttcollab.journal.base import Entry, Filter, Limits, Task
from mqttcollab.journal.batch import Batch, BatchedJournal, Written
from mqttcollab.journal.postgres_work import VERSION, Connection, Work
from mqttcollab.journal.rows import entries_of

_PATIENCE_S = 5.0  # for the server, with a transaction
_PAUSE_S = 0.5  # between two tries to reach it
_TRIES = 3  # of a transaction that another one stands in the way of
_R = TypeVar("_R")


class PostgresJournal(BatchedJournal):
    """A journal on a server, in the schema `mqttcollab`. Open it with `PostgresJournal.open`.

    Leases and deadlines go by the server's clock. Where the server goes away, writes fail until it is back; what was
    accepted or claimed in a transaction whose end it did not confirm is then given up, for anybody to claim.
    """

    def __init__(self, url: str, work: Work) -> None:
        super().__init__(work.owner, work.limits, work.lease_ms / 1000)
        self._url, self._do = url, work
        self.name = _describe(url)
        self._db: Connection | None = None
        self._turn = asyncio.Lock()
        self._failed: tuple[float, str] = (-_PAUSE_S, "")
        self._clock_ms = 0.0  # of the server, less the monotonic one of this machine
        self._doubtful: set[str] = set()

    @classmethod
    async def open(
        cls,
        url: str,
        owner: str,
        *,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        lease_s: float = 3.0,
    ) -> Self:
        """Connects, and makes the tables where there are none.

        Args:
            url: `postgresql://user:password@host:port/database`.
            owner: `<name>/<epoch>` of the agent that writes; empty to prune what is there, without a lease.
            lease_s: after so many seconds without a sign of life others may take its tasks over.

        Raises:
            ConfigError: the server can't be reached or does not let us, or the tables are a newer version's.
        """
        journal = cls(url, Work(owner, limits, round(1000 * lease_s)))
        begin = [journal._do.migrate, journal._do.renew] if owner else [journal._check]
        await journal._prepare(*begin, journal._do.measure)
        journal._start()
        return journal

    @classmethod
    async def read(cls, url: str) -> Self:
        """Connects only to look: no lease, and nothing can be written.

        Raises:
            ConfigError: the server can't be reached, does not let us, or has no journal of this version.
        """
        journal = cls(url, Work("", Limits(), 3000))
        await journal._prepare(journal._check, journal._only_read)
        return journal

    async def _prepare(self, *steps: Callable[[Connection], Awaitable[None]]) -> None:
        try:
            for step in steps:
                await self._transact(step)
        except BaseException as error:
            await self._close()
            if isinstance(error, ConfigError):
                raise ConfigError(f"the journal {self.name} {error}") from None
            if isinstance(error, JournalError):
                raise ConfigError(str(error)) from None
            raise

    async def _check(self, db: Connection) -> None:
        version = await self._do.version(db)
        if version != VERSION:
            raise ConfigError(f"has version {version}, this program reads {VERSION}" if version else "is empty")

    async def _only_read(self, db: Connection) -> None:
        await db.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

    def now_ms(self) -> int:
        """Unix time in milliseconds by the journal's clock."""
        return round(self._clock_ms + 1000 * time.monotonic())

    # Tasks of the dead

    async def claim(self, gone: Collection[str] = (), services: Collection[str] | None = None) -> list[Task]:
        """Takes over what nobody works on; oldest first, with request and reply."""
        claiming = self._begin(self._transact(self._do.claim, frozenset(gone), services))
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
        return await self._transact(self._do.tasks, which, most)

    async def task(self, key: str) -> tuple[Task, Sequence[Entry]] | None:
        """A task with its request, its reply and its history, oldest first; None if there is none."""
        found = await self._transact(self._do.task, key)
        return None if found is None else (found[0], entries_of(found[1]))

    async def owners(self) -> dict[str, int]:
        """Owners whose lease has not run out, with how many milliseconds are left of it."""
        return await self._transact(self._do.living)

    async def prune(self, *, older_than_s: float = 0.0, dry_run: bool = False) -> int:
        """Deletes tasks that ended at least so many seconds ago, with their history; returns how many."""
        now = await self._transact(self._do.now_ms)
        until = now - round(1000 * older_than_s)
        if dry_run:
            return await self._transact(self._do.count_ended, until, now)
        count = 0
        while step := await asyncio.shield(self._begin(self._transact(self._do.prune_oldest, until, now, 500))):
            count += step
        return count

    async def secret(self) -> bytes:
        """32 random bytes, the same for all who share the store."""
        return await asyncio.shield(self._begin(self._transact(self._do.secret)))

    # The store of a BatchedJournal

    async def _write(self, batch: Batch) -> Written:
        return await self._transact(self._do.write, batch)

    async def _tend(self) -> bool:
        await self._transact(self._read_clock)
        if self._trouble is not None or await self._transact(self._do.has_work):
            await self._transact(self._do.renew)
        more = True
        while more and not self._closed:
            more = await self._transact(self._do.tidy)
        return self._do.room > 0

    async def _leave(self) -> None:
        if self.owner:
            await self._transact(self._do.leave)

    async def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await db.close()

    async def _transact(self, work: Callable[..., Awaitable[_R]], *arguments: Any) -> _R:
        async with self._turn:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    return await self._try(work, *arguments)
            except psycopg.DataError:
                raise  # what is written is wrong, not the server
            except (psycopg.Error, OSError, TimeoutError) as error:
                # Whether it was committed is not known where the connection broke.
                if self._db is None or self._db.closed or isinstance(error, TimeoutError):
                    self._doubtful.update(self._do.taken)
                    await self._close()
                said = "it does not answer" if isinstance(error, TimeoutError) else _line(error)
                raise JournalError(f"the journal {self.name} can't be used: {said}") from None
            finally:
                self._do.taken = []

    async def _try(self, work: Callable[..., Awaitable[_R]], *arguments: Any) -> _R:
        db = await self._connected()
        for left in reversed(range(_TRIES)):
            try:
                async with db.transaction():
                    return await work(db, *arguments)
            except BaseException as error:
                self._do.renewed_s = -math.inf  # it may have been a part of it
                if not left or not isinstance(error, DeadlockDetected | SerializationFailure):
                    raise
        raise AssertionError

    async def _connected(self) -> Connection:
        db = await self._connect() if self._db is None or self._db.closed else self._db
        if self._doubtful:  # also where it went wrong the last time
            await self._do.give_up(db, self._doubtful)
            self._doubtful.clear()
        return db

    async def _connect(self) -> Connection:
        since, said = self._failed
        if time.monotonic() - since < _PAUSE_S:
            raise psycopg.OperationalError(said)
        try:
            db = await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, connect_timeout=3, tcp_user_timeout=round(1000 * _PATIENCE_S)
            )
        except psycopg.Error as error:
            self._failed = (time.monotonic(), str(error))
            raise
        self._db = db
        await self._read_clock(db)
        return db

    async def _read_clock(self, db: Connection) -> None:
        before = time.monotonic()
        now = await self._do.now_ms(db)
        self._clock_ms = now - 1000 * (before + time.monotonic()) / 2


def _describe(url: str) -> str:
    """The URL without what is nobody's business."""
    try:
        facts = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError("the journal's URL does not parse: postgresql://user:password@host:port/database") from None
    port = f":{facts['port']}" if "port" in facts else ""
    return f"postgresql://{facts.get('host', '')}{port}/{facts.get('dbname', '')}"


def _line(error: Exception) -> str:
    """The first line of what the server or its library says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip() if lines else type(error).__name__
