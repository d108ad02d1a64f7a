"""What a journal does with its SQLite file: whole transactions, run in the connection's thread."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mqttcollab.errors import JournalError
from mqttcollab.journal.base import Accepted, Entry, Filter, Limits, Task
from mqttcollab.journal.batch import Batch, Ending, NewEntry, Written
from mqttcollab.journal.rows import FACTS, WHOLE, accepted_of, conditions, ended_so, is_dead, task_of

_ROWS = (64, 16, 4, 1)  # rows in a statement: few shapes, so that each is parsed once
_PRUNED = 64  # tasks in a step
_ENDED = "ended_ms <= ? AND (state = 'done' OR deadline_ms < ?)"
_R = TypeVar("_R")


@dataclass(slots=True)
class Work:
    """The transactions of one owner on a file."""

    owner: str
    limits: Limits
    lease_ms: int
    now_ms: Callable[[], int]
    renewed_ms: int = 0

    def transaction(self, db: sqlite3.Connection, work: Callable[..., _R], *arguments: Any) -> _R:
        """Calls `work` with the connection in a transaction of its own."""
        db.execute("BEGIN IMMEDIATE")
        try:
            result = work(db, *arguments)
            db.execute("COMMIT")
        except BaseException:
            self.renewed_ms = 0  # it may have been a part of it
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    # Writes

    def write(self, db: sqlite3.Connection, batch: Batch) -> Written:
        """A batch."""
        now = self.now_ms()
        self._renew(db, now)
        accepted = self._accept(db, batch, now) if batch.accepts else []
        if batch.entries:
            self._append(db, batch.entries)
        answered = self._answer(db, [ending for ending, _ in batch.answers.values()], now) if batch.answers else []
        for part in _parts([(key,) for key in batch.sent]):
            db.execute(
                f"UPDATE tasks SET state = 'done' WHERE state = 'answered' AND key IN ({_marks(part)})", _flat(part)
            )
        return Written(accepted, answered)

    def _accept(self, db: sqlite3.Connection, batch: Batch, now: int) -> list[Accepted | JournalError]:
        new = [
            (task.key, task.service, task.tenant, self.owner, "open", now, now + task.ttl_ms, task.request)
            for task, _ in batch.accepts.values()
        ]
        room = self._room(db, now, len(new))
        columns = "key, service, tenant, owner, state, accepted_ms, deadline_ms, request"
        found: list[Accepted | JournalError] = []
        for part in _parts(new):
            if room:
                query = f"INSERT INTO tasks ({columns}) VALUES {_tuples(part)} ON CONFLICT DO NOTHING"
                if db.execute(query, _flat(part)).rowcount == len(part):
                    found += [Accepted("mine")] * len(part)
                    continue
            found += self._look(db, [row[0] for row in part], now)
        return found

    def _look(self, db: sqlite3.Connection, keys: Sequence[str], now: int) -> Iterable[Accepted | JournalError]:
        query = f"SELECT key, owner, state, reply FROM tasks WHERE key IN ({', '.join('?' * len(keys))})"
        rows = {key: rest for key, *rest in db.execute(query, keys)}
        living = self.living(db, now)
        for key in keys:
            if key not in rows:
                yield JournalError(
                    f"the journal holds {self.limits.most_bytes} bytes of tasks that have not ended, and takes no more"
                )
                continue
            owner, state, reply = rows[key]
            taken = False
            if state == "open" and is_dead(owner, self.owner, living):
                take = "UPDATE tasks SET owner = ?, takeovers = takeovers + 1 WHERE key = ?"
                db.execute(take, (self.owner, key))
                owner, taken = self.owner, True
            yield accepted_of(owner, state, reply, self.owner, taken=taken)

    def _append(self, db: sqlite3.Connection, entries: Sequence[NewEntry]) -> None:
        rows = [(entry.time_ms, self.owner, entry.kind, entry.facts, entry.key) for entry in entries]
        query = "INSERT INTO entries (task, time_ms, owner, kind, facts) SELECT id, ?, ?, ?, ? FROM tasks WHERE key = ?"
        db.executemany(query, rows)

    def _answer(self, db: sqlite3.Connection, endings: Sequence[Ending], now: int) -> list[bool]:
        found: list[bool] = []
        query = "UPDATE tasks SET state = ?, ended_ms = ?, outcome = ?, reply = ? WHERE key = ? AND owner = ? AND state = 'open'"
        for key, reply, outcome in endings:
            state = "done" if reply is None else "answered"
            done = db.execute(query, (state, now, outcome, reply, key, self.owner)).rowcount == 1
            found.append(done or self._ended_so(db, Ending(key, reply, outcome)))
        return found

    def _ended_so(self, db: sqlite3.Connection, ending: Ending) -> bool:
        row = db.execute("SELECT owner, state, outcome, reply FROM tasks WHERE key = ?", (ending.key,)).fetchone()
        return ended_so(row, ending, self.owner)

    # Leases

    def _renew(self, db: sqlite3.Connection, now: int) -> None:
        if not self.owner or 0 <= now - self.renewed_ms < self.lease_ms / 3:
            return
        query = (
            "INSERT INTO owners (owner, until_ms) VALUES (?, ?) ON CONFLICT DO UPDATE SET until_ms = excluded.until_ms"
        )
        db.execute(query, (self.owner, now + self.lease_ms))
        self.renewed_ms = now

    def renew(self, db: sqlite3.Connection) -> None:
        """The lease, now."""
        self.renewed_ms = 0
        self._renew(db, self.now_ms())

    def living(self, db: sqlite3.Connection, now: int) -> dict[str, int]:
        """Owners whose lease has not run out, with the milliseconds that are left of it."""
        return {owner: until - now for owner, until in db.execute("SELECT owner, until_ms FROM owners") if until > now}

    def has_work(self, db: sqlite3.Connection) -> bool:
        """Whether this owner has tasks that are not done."""
        query = "SELECT EXISTS (SELECT 1 FROM tasks WHERE owner = ? AND state != 'done')"
        return bool(db.execute(query, (self.owner,)).fetchone()[0])

    def claim(self, db: sqlite3.Connection, gone: Collection[str]) -> list[Task]:
        """Takes over what dead owners have."""
        now = self.now_ms()
        self._renew(db, now)
        # A clock that was set back would keep the dead alive, and give tasks more time than they had.
        db.execute("UPDATE owners SET until_ms = ? WHERE until_ms > ?", (now + self.lease_ms,) * 2)
        living = self.living(db, now).keys() - set(gone)
        owners = [row[0] for row in db.execute("SELECT DISTINCT owner FROM tasks WHERE state != 'done'")]
        dead = [owner for owner in owners if is_dead(owner, self.owner, living)]
        keys: list[tuple[int, int, str]] = []
        for owner in dead:
            where = "owner = ? AND state != 'done'"
            db.execute(
                f"UPDATE tasks SET deadline_ms = deadline_ms - accepted_ms + ?, accepted_ms = ?"
                f" WHERE {where} AND accepted_ms > ?",
                (now, now, owner, now),
            )
            keys += db.execute(f"SELECT accepted_ms, id, key FROM tasks WHERE {where}", (owner,))
            db.execute(f"UPDATE tasks SET owner = ?, takeovers = takeovers + 1 WHERE {where}", (self.owner, owner))
            db.execute("DELETE FROM owners WHERE owner = ?", (owner,))
        db.execute("DELETE FROM owners WHERE until_ms <= ?", (now,))
        query = f"SELECT {WHOLE} FROM tasks WHERE key = ?"
        return [task_of(db.execute(query, (key,)).fetchone(), now) for _, _, key in sorted(keys)]

    def give_up(self, db: sqlite3.Connection, keys: Collection[str] | None = None) -> None:
        """Lets others claim this owner's open tasks: these, or all."""
        if keys is None:
            db.execute("UPDATE tasks SET owner = '' WHERE owner = ? AND state = 'open'", (self.owner,))
        else:
            query = "UPDATE tasks SET owner = '' WHERE owner = ? AND key = ? AND state != 'done'"
            db.executemany(query, [(self.owner, key) for key in keys])

    def leave(self, db: sqlite3.Connection) -> None:
        """Ends the lease."""
        db.execute("DELETE FROM owners WHERE owner = ?", (self.owner,))

    # Retention

    def _room(self, db: sqlite3.Connection, now: int, wanted: int) -> bool:
        """Whether new tasks may be written, once the oldest ended ones have gone where that is needed."""
        if self._used(db) <= self.limits.most_bytes:
            return True
        return self.prune_oldest(db, now, now, _PRUNED + 2 * wanted) > 0 or self._used(db) <= self.limits.most_bytes

    def _used(self, db: sqlite3.Connection) -> int:
        pages, free, size = (
            int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def tidy(self, db: sqlite3.Connection) -> bool:
        """Prunes a little of what is too old or too much; True if there is more of it."""
        now = self.now_ms()
        old = self.prune_oldest(db, now - round(1000 * self.limits.keep_s), now, _PRUNED)
        if self._used(db) > self.limits.most_bytes:
            old += self.prune_oldest(db, now, now, _PRUNED)
        return old >= _PRUNED

    def prune_oldest(self, db: sqlite3.Connection, until_ms: int, now: int, most: int) -> int:
        """Deletes the tasks that ended first, until then; returns how many."""
        query = f"SELECT id FROM tasks WHERE {_ENDED} ORDER BY ended_ms LIMIT ?"
        ids = db.execute(query, (until_ms, now, most)).fetchall()
        for part in _parts(ids):
            db.execute(f"DELETE FROM entries WHERE task IN ({_marks(part)})", _flat(part))
            db.execute(f"DELETE FROM tasks WHERE id IN ({_marks(part)})", _flat(part))
        return len(ids)

    def count_ended(self, db: sqlite3.Connection, until_ms: int, now: int) -> int:
        """How many tasks ended until then."""
        return int(db.execute(f"SELECT count(*) FROM tasks WHERE {_ENDED}", (until_ms, now)).fetchone()[0])

    # Reads

    def tasks(self, db: sqlite3.Connection, which: Filter, most: int) -> list[Task]:
        """A list, newest first."""
        found = conditions(which)
        where = " AND ".join(sql for sql, _ in found) or "true"
        values = [value for _, values in found for value in values]
        query = f"SELECT {FACTS} FROM tasks WHERE {where} ORDER BY accepted_ms DESC, id DESC LIMIT ?"
        return [task_of(row, self.now_ms()) for row in db.execute(query, (*values, most))]

    def task(self, db: sqlite3.Connection, key: str) -> tuple[Task, list[tuple[int, str, str, str]]] | None:
        """A task and its history, whose facts are JSON."""
        row = db.execute(f"SELECT {WHOLE} FROM tasks WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        query = (
            "SELECT time_ms, entries.owner, kind, facts FROM entries JOIN tasks ON tasks.id = task"
            " WHERE key = ? ORDER BY entries.id"
        )
        return task_of(row, self.now_ms()), db.execute(query, (key,)).fetchall()

    def secret(self, db: sqlite3.Connection) -> bytes:
        """32 random bytes that stay the same."""
        query = "INSERT INTO settings (name, value) VALUES ('secret', ?) ON CONFLICT DO NOTHING"
        db.execute(query, (secrets.token_bytes(32),))
        return bytes(db.execute("SELECT value FROM settings WHERE name = 'secret'").fetchone()[0])


def entries_of(rows: Iterable[tuple[int, str, str, str]], read: Callable[[str], Any]) -> list[Entry]:
    """Entries of their rows."""
    return [Entry(time_ms, owner, kind, read(facts)) for time_ms, owner, kind, facts in rows]


def _parts(rows: Sequence[tuple[Any, ...]]) -> Iterable[Sequence[tuple[Any, ...]]]:
    start = 0
    for size in _ROWS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def _flat(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [value for row in rows for value in row]


def _marks(rows: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join("?" * len(rows))


def _tuples(rows: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))
