"""What a journal costs: requests written down, answered and sent, with 1 and with 64 tasks in flight.

A request is one `accept`, one `answer` and one `sent`. The event loop's share is the processor time of its thread: what
is left of the machine goes to the journal's thread, or to the PostgreSQL server (left out where none can be started:
its package is that of the tests). The peer is a bare loop over sqlite3 in a file
with the same tables, which commits 64 requests' rows at a time with `executemany`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from benchmarks.common import ROOT, Benchmark, Result, aim, ratio, show_aims, table
from mqttcollab.journal import Journal, NewTask, open_journal
from mqttcollab.journal.sqlite_file import open_file

ROUNDS = 5
REQUESTS = {1: 500, 64: 6400}
MOST_LOOP_US = 15.0
REQUEST = b'{"type":"mqttcollab.request.v1","id":"0123456789abcdef","input":"' + b"What is it? " * 30 + b'"}'
REPLY = b'{"type":"mqttcollab.reply.v1","id":"0123456789abcdef","output":"' + b"It is that. " * 30 + b'"}'
TTL_MS = 30_000
PEER = "bare sqlite3, 64 at a time"


async def measure(rounds: int | None = None) -> Result:
    found: Result = {"aims": []}
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, _servers() as servers:
        journals = {"SQLite": await open_journal(f"{folder}/journal", "bench/1")}
        for url in servers:
            journals["PostgreSQL"] = await open_journal(url, "bench/1")
        for number in range(rounds or ROUNDS):
            for (store, journal), (flight, count) in product(journals.items(), REQUESTS.items()):
                taken = await _journaled(journal, number, flight, count)
                times.setdefault(f"{store}, {flight} in flight", []).append(taken)
            bare = await asyncio.to_thread(_bare, Path(folder) / f"bare{number}", REQUESTS[64])
            times.setdefault(PEER, []).append((bare, bare))
        for journal in journals.values():
            await journal.close()
    for name, each in times.items():
        found[name] = {
            "requests_per_s": statistics.median(1 / wall for wall, _ in each),
            "loop_us": 1e6 * statistics.median(loop for _, loop in each),
            "seconds_over_bare": ratio([wall for wall, _ in each], [wall for wall, _ in times[PEER]]),
        }
    cost = found["SQLite, 64 in flight"]["loop_us"]
    found["aims"].append(aim("µs of the event loop for a request, 64 in flight", cost, most=MOST_LOOP_US))
    return found


@contextmanager
def _servers() -> Iterator[list[str]]:
    """The URL of a server of our own, if there can be one."""
    sys.path.append(str(ROOT / "tests"))
    import postgres

    if postgres.why_not() is not None or find_spec("psycopg") is None:
        yield []
        return
    with postgres.server() as server:
        yield [server.url()]


async def _journaled(journal: Journal, number: int, flight: int, count: int) -> tuple[float, float]:
    """Seconds for a request: by the clock, and of the event loop's thread."""

    async def work(worker: int) -> None:
        for i in range(count // flight):
            key = f"reply.gpt/@bench/{number}-{flight}-{worker}-{i}"
            await journal.accept(NewTask(key, "knowledge.gpt/general", REQUEST, TTL_MS))
            await journal.answer(key, REPLY, "ok")
            journal.sent(key)

    wall, loop = time.perf_counter(), time.thread_time()
    await asyncio.gather(*(work(worker) for worker in range(flight)))
    return (time.perf_counter() - wall) / count, (time.thread_time() - loop) / count


def _bare(path: Path, count: int) -> float:
    db = open_file(path)
    columns = "key, service, tenant, owner, state, accepted_ms, deadline_ms, request"
    insert = f"INSERT INTO tasks ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    ended = "UPDATE tasks SET state = 'answered', ended_ms = ?, outcome = 'ok', reply = ? WHERE key = ?"
    sent = "UPDATE tasks SET state = 'done' WHERE key = ?"
    started = time.perf_counter()
    for start in range(0, count, 64):
        keys = [f"reply.gpt/@bench/{i}" for i in range(start, start + 64)]
        _commit(db, insert, [(key, "knowledge.gpt/general", "", "bench/1", "open", 0, TTL_MS, REQUEST) for key in keys])
        _commit(db, ended, [(0, REPLY, key) for key in keys])
        _commit(db, sent, [(key,) for key in keys])
    taken = time.perf_counter() - started
    db.close()
    return taken / count


def _commit(db: sqlite3.Connection, query: str, rows: list[tuple[object, ...]]) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany(query, rows)
    db.execute("COMMIT")


def show(result: Result) -> Iterable[str]:
    rows = [
        (name, f"{each['requests_per_s']:,.0f}", f"{each['loop_us']:.1f}", f"{each['seconds_over_bare']['median']:.2f}")
        for name, each in result.items()
        if name != "aims"
    ]
    yield from table(("", "requests/s", "µs of the loop", "time over bare"), rows)
    yield from show_aims(result)


BENCHMARK = Benchmark("journal", "What a journal costs", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
