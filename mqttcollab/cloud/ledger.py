"""What was spent, in a SQLite file that several processes may share and that outlives them.

Before a call its worst case is booked (`reserve`), after it corrected to what it did cost (`settle`). What a crash
leaves in between stays booked, so nobody spends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from mqttcollab.cloud.prices import seconds_in_ms, show
from mqttcollab.errors import ConfigError, RequestError

_log = logging.getLogger(__name__)

VERSION = 1
_SCHEMA = Path(__file__).with_name("ledger1.sql").read_text(encoding="utf-8").split(";\n")
_PATIENCE_S = 5.0  # for another process that writes
_SHOWN_DAYS = 31  # a tenant that spent nothing for longer is not shown any more
_R = TypeVar("_R")


def utc_now() -> datetime:
    """The time by which days begin and end."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """Most nano-dollars a day: over all, of a tenant that is not named (None: no limit of its own), of named ones."""

    day: int
    tenant: int | None = None
    tenants: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A booked worst case."""

    id: int
    day: str
    tenant: str
    model: str
    nano: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call: its cost in nano-dollars, its tokens and its time; `sent` False where it never began."""

    nano: int
    tokens: int = 0
    seconds: float = 0.0
    failed: bool = False
    redactions: int = 0
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums of one model; `seconds` are of the calls that did not fail."""

    nano: int
    nano_today: int
    tokens: int
    calls: int
    errors: int
    redactions: int
    seconds: float


class Ledger:
    """The accounts. Open it with `Ledger.open`; it belongs to one event loop."""

    def __init__(self, db: aiosqlite.Connection, now: Callable[[], datetime]) -> None:
        self._db, self._now = db, now
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._booked: dict[int, Reservation] = {}

    @classmethod
    async def open(cls, path: Path, now: Callable[[], datetime] = utc_now) -> Self:
        """Opens the file, or makes it.

        Raises:
            ConfigError: it can't be written, is no ledger, or is a newer version's.
        """
        try:
            await asyncio.to_thread(_try, path)  # aiosqlite's thread may outlive the loop where it can't connect
            db = await aiosqlite.connect(path, timeout=_PATIENCE_S, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"the ledger {path} can't be opened: {error}; is its folder there and writable?"
            ) from None
        ledger = cls(db, now)
        try:
            await _prepare(db, path)
            await ledger._note_left()
        except BaseException as error:
            await db.close()  # or its thread would keep the process alive
            if isinstance(error, sqlite3.Error):
                raise ConfigError(f"the ledger {path} can't be used: {error}; is it a ledger, and writable?") from None
            raise
        return ledger

    async def close(self) -> None:
        """Finishes what is being written and closes the file."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._db.close()

    async def reserve(self, tenant: str, model: str, nano: int, limits: Limits) -> Reservation:
        """Books a worst case on today (UTC), if every limit has room for it.

        Raises:
            RequestError: `quota_exceeded`, naming the limit, with the time until it begins anew; `internal`
                where the file can't be written.
        """
        now = self._now()
        wanted = Reservation(0, now.date().isoformat(), tenant, model, nano)
        booking = self._begin(self._reserve(wanted, limits, now))
        try:
            return await asyncio.shield(booking)
        except sqlite3.Error as error:
            raise RequestError("internal", f"the ledger can't be written ({error}), so nothing was sent") from error
        except asyncio.CancelledError:
            self._begin(self._undo(booking))
            raise

    async def settle(self, booked: Reservation, outcome: Outcome) -> None:
        """Corrects a worst case to what the call did cost; where the file can't be written it stays booked."""
        try:
            await asyncio.shield(self._begin(self._settle(booked, outcome)))
        except sqlite3.Error as error:
            _log.error("the ledger can't be written (%s): %s USD stay booked", error, show(booked.nano))

    async def totals(self, model: str) -> Totals:
        """Sums of a model, without what this process has booked for calls under way."""
        today = self._today()
        query = """
            SELECT coalesce(sum(nano), 0), coalesce(sum(nano) FILTER (WHERE day = ?), 0), coalesce(sum(tokens), 0),
                coalesce(sum(calls), 0), coalesce(sum(errors), 0), coalesce(sum(redactions), 0),
                coalesce(sum(seconds), 0.0)
            FROM days WHERE model = ?"""
        (row,) = await self._rows(query, today, model)
        total, of_today, *rest = row
        under_way = [booked for booked in self._booked.values() if booked.model == model]
        total -= sum(booked.nano for booked in under_way)
        of_today -= sum(booked.nano for booked in under_way if booked.day == today)
        return Totals(total, of_today, *rest)

    async def tenants(self, model: str) -> dict[str, int]:
        """Nano-dollars of today by tenant, also of those who spent some in the last month."""
        today = self._today()
        since = (self._now().date() - timedelta(_SHOWN_DAYS)).isoformat()
        query = """
            SELECT tenant, coalesce(sum(nano) FILTER (WHERE day = ?), 0) FROM days
            WHERE model = ? AND day >= ? AND tenant != '' GROUP BY tenant"""
        spent = {str(tenant): int(nano) for tenant, nano in await self._rows(query, today, model, since)}
        for booked in self._booked.values():
            if booked.model == model and booked.day == today and booked.tenant in spent:
                spent[booked.tenant] -= booked.nano
        return spent

    def _today(self) -> str:
        return self._now().date().isoformat()

    async def _rows(self, query: str, *values: Any) -> list[Any]:
        async with self._turn:
            return list(await self._db.execute_fetchall(query, values))

    def _begin(self, work: Coroutine[Any, Any, _R]) -> asyncio.Task[_R]:
        """Begins a transaction, which is done to its end even where whoever waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._turn:
            await self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                await self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    await self._db.execute("ROLLBACK")
                raise

    async def _reserve(self, wanted: Reservation, limits: Limits, now: datetime) -> Reservation:
        async with self._transaction() as db:
            spent = await _sum(db, "SELECT sum(nano) FROM days WHERE day = ?", wanted.day)
            _check("the limit over all", limits.day, spent, wanted.nano, now)
            limit = limits.tenants.get(wanted.tenant, limits.tenant)
            if limit is not None:
                query = "SELECT sum(nano) FROM days WHERE day = ? AND tenant = ?"
                whose = f"of tenant {wanted.tenant[:80]!r}" if wanted.tenant else "of requests without a tenant"
                spent = await _sum(db, query, wanted.day, wanted.tenant)
                _check(f"the limit {whose}", limit, spent, wanted.nano, now)
            await _add(db, wanted, nano=wanted.nano)
            query = "INSERT INTO open (day, tenant, model, nano) VALUES (?, ?, ?, ?)"
            cursor = await db.execute(query, (wanted.day, wanted.tenant, wanted.model, wanted.nano))
            assert cursor.lastrowid is not None
            booked = Reservation(cursor.lastrowid, wanted.day, wanted.tenant, wanted.model, wanted.nano)
        self._booked[booked.id] = booked
        return booked

    async def _undo(self, booking: asyncio.Task[Reservation]) -> None:
        with contextlib.suppress(RequestError, sqlite3.Error):
            await self._settle(await booking, Outcome(0, sent=False))

    async def _settle(self, booked: Reservation, outcome: Outcome) -> None:
        try:
            async with self._transaction() as db:
                await db.execute("DELETE FROM open WHERE id = ?", (booked.id,))
                await _add(
                    db,
                    booked,
                    nano=outcome.nano - booked.nano,
                    tokens=outcome.tokens,
                    calls=int(outcome.sent),
                    errors=int(outcome.failed),
                    redactions=outcome.redactions,
                    seconds=0.0 if outcome.failed else outcome.seconds,
                )
        finally:  # where it failed, what stays booked in the file is shown as spent from now on
            self._booked.pop(booked.id, None)

    async def _note_left(self) -> None:
        ((count, nano),) = await self._rows("SELECT count(*), coalesce(sum(nano), 0) FROM open")
        if count:
            _log.warning(
                "%d calls in the ledger were never settled (this agent was killed, or another one is at work):"
                " they count as spent with their worst case, %s USD",
                count,
                show(nano),
            )
            async with self._transaction() as db:
                await db.execute("DELETE FROM open WHERE day < ?", (self._today(),))


def _try(path: Path) -> None:
    sqlite3.connect(path).close()


async def _prepare(db: aiosqlite.Connection, path: Path) -> None:
    await db.execute("BEGIN IMMEDIATE")  # two processes may come up together
    ((version,),) = await db.execute_fetchall("PRAGMA user_version")
    if version > VERSION:
        raise ConfigError(f"the ledger {path} has version {version}, this program knows {VERSION}: update it")
    if version < VERSION:
        ((others,),) = await db.execute_fetchall("SELECT count(*) FROM sqlite_master")
        if others:
            raise ConfigError(f"the ledger {path} is a database of something else: name another file")
        for statement in _SCHEMA:
            await db.execute(statement)
    await db.execute("COMMIT")


async def _sum(db: aiosqlite.Connection, query: str, *values: str) -> int:
    ((total,),) = await db.execute_fetchall(query, values)
    return total or 0


async def _add(db: aiosqlite.Connection, to: Reservation, **numbers: float) -> None:
    names = ", ".join(numbers)
    marks = ", ".join("?" * len(numbers))
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in numbers)
    await db.execute(
        f"INSERT INTO days (day, tenant, model, {names}) VALUES (?, ?, ?, {marks}) ON CONFLICT DO UPDATE SET {sums}",
        (to.day, to.tenant, to.model, *numbers.values()),
    )


def _check(which: str, limit: int, spent: int, wanted: int, now: datetime) -> None:
    if limit > 0 and spent + wanted <= limit:
        return
    facts = f"{which} is {show(limit)} USD a day; {show(spent)} are spent or reserved"
    if limit <= 0 or wanted > limit:
        raise RequestError("quota_exceeded", f"{facts}, and this request may take {show(wanted)}: nothing was sent")
    midnight = datetime.combine(now.date() + timedelta(1), time(), UTC)
    raise RequestError(
        "quota_exceeded",
        f"{facts}, and this request may take {show(wanted)} more: it begins anew at 00:00 UTC",
        retry_after_ms=seconds_in_ms((midnight - now).total_seconds()),
    )
