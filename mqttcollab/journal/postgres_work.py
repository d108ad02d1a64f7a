"""What a journal does on a PostgreSQL server, inside of transactions. Leases and deadlines go by the server's clock."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from mqttcollab.errors import ConfigError, JournalError
from mqttcollab.journal.base import Accepted, Filter, Limits, Task
from mqttcollab.journal.batch import Batch, Ending, NewEntry, Written
from mqttcollab.journal.rows import FACTS, WHOLE, accepted_of, conditions, ended_so, is_dead, task_of

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_HERE = Path(__file__).parent
SCHEMAS = {int(re.sub(r"\D", "", file.stem)): file.read_text("utf-8") for file in _HERE.glob("postgres[0-9]*.sql")}
VERSION = max(SCHEMAS)
NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_LOCK = 0x6D71636A  # so that only one brings the tables up to date
_PRUNED = 64  # tasks in a step
_ROW = 300  # bytes of a task beside its request and its reply, or of an entry beside its facts
_ENDED = "ended_ms <= %s AND (state = 'done' OR deadline_ms < %s)"


@dataclass(slots=True)
class Work:
    """The transactions of one owner on a server.

    `taken` are the keys that the last transaction made this owner's: where its commit was not confirmed, they are in
    doubt.
    """

    owner: str
    limits: Limits
    lease_ms: int
    room: int = 0  # bytes that may come until the size is to be looked at
    renewed_s: float = -math.inf
    taken: list[str] = field(default_factory=list)

    # Tables

    async def migrate(self, db: Connection) -> None:
        """Makes the tables, or brings them to this version."""
        await db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        version = await self.version(db)
        for number in range(version + 1, VERSION + 1):
            for statement in SCHEMAS[number].split(";\n"):
                await db.execute(statement.encode())
        if version < VERSION:
            query = """INSERT INTO mqttcollab.settings (name, value) VALUES ('version', %s)
                ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
            await db.execute(query, (str(VERSION).encode(),))

    async def version(self, db: Connection) -> int:
        """The version of the tables, 0 where there are none; ConfigError for one that this program does not know."""
        if await _value(db, "SELECT to_regclass('mqttcollab.settings')::text") is None:
            return 0
        version = int(await _value(db, "SELECT value FROM mqttcollab.settings WHERE name = 'version'"))
        if version > VERSION:
            raise ConfigError(f"has version {version}, this program knows {VERSION}: update it")
        return version

    # Writes

    async def write(self, db: Connection, batch: Batch) -> Written:
        """A batch. Rows are touched in the order of their keys, so that two writers don't wait for each other."""
        if self.owner and time.monotonic() - self.renewed_s >= self.lease_ms / 3000:
            await self.renew(db)
        accepted = await self._accept(db, batch) if batch.accepts else []
        if batch.entries:
            await self._append(db, batch.entries)
        answered = await self._answer(db, [ending for ending, _ in batch.answers.values()]) if batch.answers else []
        if batch.sent:
            query = "UPDATE mqttcollab.tasks SET state = 'done' WHERE state = 'answered' AND key = ANY(%s)"
            await db.execute(query, (sorted(batch.sent),))
        return Written(accepted, answered)

    async def _accept(self, db: Connection, batch: Batch) -> list[Accepted | JournalError]:
        new = [task for task, _ in batch.accepts.values()]
        keys = [task.key for task in new]
        self.taken = keys
        if await self._has_room(db, sum(_ROW + len(task.request) for task in new), len(new)):
            query = f"""
                INSERT INTO mqttcollab.tasks (key, service, tenant, owner, state, accepted_ms, deadline_ms, request)
                SELECT key, service, tenant, %s, 'open', now, now + ttl_ms, request
                FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[])
                    AS new (key, service, tenant, ttl_ms, request), (SELECT {NOW} AS now) AS clock
                ORDER BY key ON CONFLICT DO NOTHING"""
            columns = zip(
                *((task.key, task.service, task.tenant, task.ttl_ms, task.request) for task in new), strict=True
            )
            if (await db.execute(query, (self.owner, *map(list, columns)))).rowcount == len(new):
                return [Accepted("mine")] * len(new)
        return await self._look(db, keys)

    async def _look(self, db: Connection, keys: Sequence[str]) -> list[Accepted | JournalError]:
        query = "SELECT key, owner, state, reply FROM mqttcollab.tasks WHERE key = ANY(%s) ORDER BY key FOR UPDATE"
        rows = {key: rest for key, *rest in await _rows(db, query, list(keys))}
        living = await self.living(db)
        dead = [
            key for key, (owner, state, _) in rows.items() if state == "open" and is_dead(owner, self.owner, living)
        ]
        if dead:
            query = "UPDATE mqttcollab.tasks SET owner = %s, takeovers = takeovers + 1 WHERE key = ANY(%s)"
            await db.execute(query, (self.owner, dead))
        full = JournalError(
            f"the journal holds {self.limits.most_bytes} bytes of tasks that have not ended, and takes no more"
        )
        found: list[Accepted | JournalError] = []
        for key in keys:
            owner, state, reply = rows.get(key, ("", "", None))
            taken = key in dead
            owner = self.owner if taken else owner
            found.append(accepted_of(owner, state, reply, self.owner, taken=taken) if key in rows else full)
        return found

    async def _append(self, db: Connection, entries: Sequence[NewEntry]) -> None:
        query = """
            INSERT INTO mqttcollab.entries (task, time_ms, owner, kind, facts)
            SELECT tasks.id, new.time_ms, %s, kind, facts
            FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[])
                WITH ORDINALITY AS new (key, time_ms, kind, facts, number)
            JOIN mqttcollab.tasks ON tasks.key = new.key ORDER BY number"""
        await db.execute(query, (self.owner, *map(list, zip(*entries, strict=True))))
        self.room -= sum(_ROW + len(entry.facts) for entry in entries)

    async def _answer(self, db: Connection, endings: Sequence[Ending]) -> list[bool]:
        query = f"""
            UPDATE mqttcollab.tasks SET reply = new.reply, outcome = new.outcome, ended_ms = {NOW},
                state = CASE WHEN new.reply IS NULL THEN 'done' ELSE 'answered' END
            FROM unnest(%s::text[], %s::bytea[], %s::text[]) AS new (key, reply, outcome)
            WHERE tasks.key = new.key AND owner = %s AND state = 'open'"""
        columns = map(list, zip(*sorted(endings, key=lambda ending: ending.key), strict=True))
        self.room -= sum(len(ending.reply or b"") for ending in endings)
        if (await db.execute(query, (*columns, self.owner))).rowcount == len(endings):
            return [True] * len(endings)
        query = "SELECT key, owner, state, outcome, reply FROM mqttcollab.tasks WHERE key = ANY(%s)"
        rows = {key: rest for key, *rest in await _rows(db, query, [ending.key for ending in endings])}
        return [ended_so(rows.get(ending.key), ending, self.owner) for ending in endings]

    # Leases

    async def renew(self, db: Connection) -> None:
        """The lease."""
        query = f"""
            INSERT INTO mqttcollab.owners (owner, until_ms, lease_ms) VALUES (%s, {NOW} + %s, %s)
            ON CONFLICT (owner) DO UPDATE SET until_ms = excluded.until_ms, lease_ms = excluded.lease_ms"""
        await db.execute(query, (self.owner, self.lease_ms, self.lease_ms))
        self.renewed_s = time.monotonic()

    async def living(self, db: Connection) -> dict[str, int]:
        """Owners whose lease has not run out, with the milliseconds that are left of it."""
        query = f"SELECT owner, until_ms - {NOW} FROM mqttcollab.owners WHERE until_ms > {NOW}"
        return {owner: left for owner, left in await _rows(db, query)}

    async def has_work(self, db: Connection) -> bool:
        """Whether this owner has tasks that are not done."""
        query = "SELECT EXISTS (SELECT 1 FROM mqttcollab.tasks WHERE owner = %s AND state != 'done')"
        return bool(await _value(db, query, self.owner))

    async def claim(self, db: Connection, gone: Collection[str], services: Collection[str] | None) -> list[Task]:
        """Takes over what dead owners have; what another is just taking over is left to it."""
        await self.renew(db)
        # A clock that was set back would keep the dead alive, and give tasks more time than they had.
        await db.execute(f"UPDATE mqttcollab.owners SET until_ms = {NOW} + lease_ms WHERE until_ms > {NOW} + lease_ms")
        living = (await self.living(db)).keys() - set(gone)
        owners = await _rows(db, "SELECT DISTINCT owner FROM mqttcollab.tasks WHERE state != 'done'")
        dead = [owner for (owner,) in owners if is_dead(owner, self.owner, living)]
        if not dead:
            return []
        query = f"""
            WITH taken AS (
                SELECT id FROM mqttcollab.tasks WHERE owner = ANY(%s) AND state != 'done'
                    AND (%s OR service = ANY(%s)) FOR UPDATE SKIP LOCKED
            )
            UPDATE mqttcollab.tasks SET owner = %s, takeovers = takeovers + 1,
                deadline_ms = least(deadline_ms, {NOW} + deadline_ms - accepted_ms),
                accepted_ms = least(accepted_ms, {NOW})
            WHERE id IN (SELECT id FROM taken) RETURNING id, {WHOLE}"""
        rows = await _rows(db, query, dead, services is None, list(services or ()), self.owner)
        self.taken = [row[1] for row in rows]
        await db.execute("DELETE FROM mqttcollab.owners WHERE owner = ANY(%s)", (dead,))
        now = await self.now_ms(db)
        return [task_of(row, now) for _, *row in sorted(rows, key=lambda row: (row[6], row[0]))]

    async def give_up(self, db: Connection, keys: Collection[str] | None = None) -> None:
        """Lets others claim this owner's open tasks: these, or all."""
        if keys is None:
            query = "UPDATE mqttcollab.tasks SET owner = '' WHERE owner = %s AND state = 'open'"
            await db.execute(query, (self.owner,))
        else:
            query = "UPDATE mqttcollab.tasks SET owner = '' WHERE owner = %s AND key = ANY(%s) AND state != 'done'"
            await db.execute(query, (self.owner, list(keys)))

    async def leave(self, db: Connection) -> None:
        """Ends the lease."""
        await db.execute("DELETE FROM mqttcollab.owners WHERE owner = %s", (self.owner,))

    # Retention

    async def _has_room(self, db: Connection, size: int, count: int) -> bool:
        """Whether new tasks may be written, once the oldest ended ones have gone where that is needed."""
        if self.room < size:
            await self.measure(db)
        if self.room < size:
            now = await _value(db, f"SELECT {NOW}")
            if not await self.prune_oldest(db, now, now, _PRUNED + 2 * count):
                return False
            await self.measure(db)
        self.room -= size
        return True

    async def measure(self, db: Connection) -> None:
        """How much room is left; what was deleted takes room until it is reused, so it may have to be counted."""
        query = "SELECT pg_total_relation_size('mqttcollab.tasks') + pg_total_relation_size('mqttcollab.entries')"
        self.room = self.limits.most_bytes - int(await _value(db, query))
        if self.room <= 0:
            query = f"""SELECT
                (SELECT coalesce(sum(octet_length(request) + coalesce(octet_length(reply), 0) + {_ROW}), 0)
                    FROM mqttcollab.tasks)
                + (SELECT coalesce(sum(octet_length(facts) + {_ROW}), 0) FROM mqttcollab.entries)"""
            self.room = self.limits.most_bytes - int(await _value(db, query))

    async def tidy(self, db: Connection) -> bool:
        """Prunes a little of what is too old or too much; True if there is more of it."""
        now = await self.now_ms(db)
        past = now - round(1000 * self.limits.keep_s)
        # Nobody came for them.
        query = "UPDATE mqttcollab.tasks SET state = 'done', ended_ms = %s, outcome = 'deadline_exceeded'"
        await db.execute(f"{query} WHERE state != 'done' AND state = 'open' AND deadline_ms < %s".encode(), (now, past))
        # Owners that were killed with nothing in hand: nobody claims from them.
        query = "SELECT owner FROM mqttcollab.owners WHERE until_ms <= %s FOR UPDATE SKIP LOCKED"
        await db.execute(f"DELETE FROM mqttcollab.owners WHERE owner IN ({query})".encode(), (now,))
        old = await self.prune_oldest(db, past, now, _PRUNED)
        if self.room <= 0:
            old += await self.prune_oldest(db, now, now, _PRUNED)
            await self.measure(db)
        return old >= _PRUNED

    async def prune_oldest(self, db: Connection, until_ms: int, now: int, most: int) -> int:
        """Deletes the tasks that ended first, until then; returns how many."""
        query = f"""
            DELETE FROM mqttcollab.tasks WHERE id IN (
                SELECT id FROM mqttcollab.tasks WHERE {_ENDED} ORDER BY ended_ms LIMIT %s FOR UPDATE SKIP LOCKED
            )"""
        return (await db.execute(query.encode(), (until_ms, now, most))).rowcount

    async def count_ended(self, db: Connection, until_ms: int, now: int) -> int:
        """How many tasks ended until then."""
        return int(await _value(db, f"SELECT count(*) FROM mqttcollab.tasks WHERE {_ENDED}", until_ms, now))

    # Reads

    async def now_ms(self, db: Connection) -> int:
        """The server's clock."""
        return int(await _value(db, f"SELECT {NOW}"))

    async def tasks(self, db: Connection, which: Filter, most: int) -> list[Task]:
        """A list, newest first."""
        found = conditions(which)
        where = " AND ".join(sql.replace("?", "%s") for sql, _ in found) or "true"
        values = [value for _, values in found for value in values]
        query = f"SELECT {FACTS} FROM mqttcollab.tasks WHERE {where} ORDER BY id DESC LIMIT %s"
        now = await self.now_ms(db)
        return [task_of(row, now) for row in await _rows(db, query, *values, most)]

    async def task(self, db: Connection, key: str) -> tuple[Task, list[tuple[int, str, str, str]]] | None:
        """A task and its history, whose facts are JSON."""
        for row in await _rows(db, f"SELECT {WHOLE} FROM mqttcollab.tasks WHERE key = %s", key):
            query = """
                SELECT time_ms, entries.owner, kind, facts FROM mqttcollab.entries
                JOIN mqttcollab.tasks ON tasks.id = task WHERE key = %s ORDER BY entries.id"""
            return task_of(row, await self.now_ms(db)), [
                (time_ms, *rest) for time_ms, *rest in await _rows(db, query, key)
            ]
        return None

    async def secret(self, db: Connection) -> bytes:
        """32 random bytes that stay the same."""
        query = "INSERT INTO mqttcollab.settings (name, value) VALUES ('secret', %s) ON CONFLICT DO NOTHING"
        await db.execute(query, (secrets.token_bytes(32),))
        return bytes(await _value(db, "SELECT value FROM mqttcollab.settings WHERE name = 'secret'"))


async def _rows(db: Connection, query: str, *values: Any) -> Iterable[tuple[Any, ...]]:
    return await (await db.execute(query.encode(), values)).fetchall()


async def _value(db: Connection, query: str, *values: Any) -> Any:
    for row in await _rows(db, query, *values):
        return row[0]
    return None
