"""What only one of the two stores can run into: files and disks, clocks, and servers that go away."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness import eventually
from journals import PostgresStore, SqliteStore, new, postgres_or_skip
from postgres import Postgres

from mqttcollab.errors import ConfigError, JournalError
from mqttcollab.journal import Accepted, Filter, open_journal, read_journal
from mqttcollab.journal.sqlite import SqliteJournal
from mqttcollab.journal.sqlite_file import VERSION

DATA = Path(__file__).parent / "data"
MINE = Accepted("mine")


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "journal")
    yield store
    await store.close()


# Files


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_a_file_of_an_old_version_is_brought_to_this_one(file: SqliteStore, version: int) -> None:
    """How they were made stands in make_journal.py."""
    shutil.copy(DATA / f"journal{version}.db", file.path)
    with pytest.raises(ConfigError, match=f"has version {version}, this program reads {VERSION}"):
        await read_journal(file.where)
    journal = await file.open("orchestrator/2")
    assert {task.id: (task.state, task.outcome) for task in await journal.tasks()} == {
        "open": ("open", ""),
        "answered": ("answered", "ok"),
        "done": ("done", "ok"),
        "failed": ("done", "deadline_exceeded"),
    }
    found = await journal.task("reply.gpt/@alice/done")
    assert found is not None
    assert (found[0].tenant, found[0].request, found[0].reply) == ("city", b'{"input":"hello"}', b'{"output":"done"}')
    assert [(entry.kind, entry.facts) for entry in found[1]] == [
        ("plan", {"plan": ["done"]}),
        ("dispatch", {"step": 1, "agent": "phone"}),
    ]
    assert [task.id for task in await journal.claim()] == ["open", "answered"]
    assert await file.sql("PRAGMA user_version") == [(VERSION,)]
    fresh = SqliteStore(file.path.with_name("fresh"))
    await fresh.open("a/1")
    await fresh.close()
    tables = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    assert await file.sql(tables) == await fresh.sql(tables)


async def test_a_file_that_can_not_be_used_is_one_line(tmp_path: Path) -> None:
    def make() -> list[tuple[Path, str]]:
        (tmp_path / "text").write_text("this is not a database at all, " * 100)
        for name, statement in (("other", "CREATE TABLE cats (name TEXT)"), ("marked", "PRAGMA application_id = 7")):
            SqliteStore(tmp_path / name).sql_now(statement)
        shutil.copy(DATA / "journal1.db", tmp_path / "newer")
        SqliteStore(tmp_path / "newer").sql_now("PRAGMA user_version = 99")
        whole = (DATA / "journal1.db").read_bytes()
        (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "scribbled").write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
        return [
            (tmp_path / "text", "file is not a database; move it away, or name another file"),
            (tmp_path / "other", "is a database of something else: name another file"),
            (tmp_path / "marked", "is a database of something else"),
            (tmp_path / "newer", f"has version 99, this program knows {VERSION}: update it"),
            (tmp_path / "cut", "damaged.*: move it away, and a new one is made"),
            (tmp_path / "scribbled", "damaged.*: move it away, and a new one is made"),
            (tmp_path, "unable to open database file; is its folder there and writable?"),
            (tmp_path / "no" / "such" / "folder", "unable to open database file; is its folder there"),
        ]

    for path, said in await asyncio.to_thread(make):
        with pytest.raises(ConfigError, match=said) as error:
            await open_journal(str(path), "a/1")
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"there is no journal .*nothing"):
        await read_journal(str(tmp_path / "nothing"))
    assert not await asyncio.to_thread((tmp_path / "nothing").exists)


async def test_a_file_that_is_damaged_while_it_is_open_is_told(file: SqliteStore) -> None:
    journal = await file.open("a/1")
    for i in range(50):
        await journal.accept(new(f"{i}", request=b"x" * 5000))

    def scribble() -> None:
        file.sql_now("PRAGMA wal_checkpoint(TRUNCATE)")
        with file.path.open("r+b") as raw:
            raw.seek(4096)
            raw.write(b"\xff" * (file.path.stat().st_size - 4096))

    await asyncio.to_thread(scribble)
    other = SqliteStore(file.path)
    with pytest.raises(ConfigError, match="damaged"):
        await other.open("b/1")
    with pytest.raises(JournalError, match=r"malformed; it is damaged: move it away"):
        for i in range(100):  # what the process has in its memory may serve for a while
            await journal.tasks(Filter(tenant=str(i)))
            await journal.accept(new(f"more{i}", request=b"x" * 5000))


async def test_a_file_that_vanishes_is_told_and_may_come_back(file: SqliteStore) -> None:
    journal = await file.open("a/1")
    await journal.accept(new("one"))
    heard: list[str | None] = []
    journal.on_trouble(heard.append)
    away = file.path.with_name("away")
    await asyncio.to_thread(file.path.rename, away)
    with pytest.raises(JournalError, match=r"journal is gone: put it back, or restart"):
        await journal.accept(new("two"))
    assert journal.trouble is not None and "is gone" in journal.trouble
    await asyncio.to_thread(file.path.write_bytes, b"")
    with pytest.raises(JournalError, match="is another file now"):
        await journal.answer(new("one").key, b"1", "ok")
    await asyncio.to_thread(away.rename, file.path)
    assert await journal.answer(new("one").key, b"1", "ok")
    assert journal.trouble is None
    assert [trouble and trouble.rpartition(" is ")[2][:4] for trouble in heard] == ["gone", "anot", None]


async def test_who_comes_up_together_makes_one_file(file: SqliteStore) -> None:
    journals = await asyncio.gather(*(file.open(f"agent{i}/1") for i in range(8)))
    got = await asyncio.gather(*(journal.accept(new("one")) for journal in journals))
    assert sorted(accepted.state for accepted in got) == ["mine"] + ["others"] * 7


async def test_a_file_that_another_process_holds_is_waited_for(file: SqliteStore) -> None:
    journal = await file.open("a/1")
    holder = sqlite3.connect(file.path, isolation_level=None, check_same_thread=False)
    await asyncio.to_thread(holder.execute, "BEGIN IMMEDIATE")
    accepting = asyncio.create_task(journal.accept(new("one")))
    await asyncio.sleep(0.2)
    assert not accepting.done()
    await asyncio.to_thread(holder.execute, "COMMIT")
    assert await accepting == MINE
    holder.close()


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_is_told_and_nothing_that_was_written_is_lost(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "journal")
    journal = await store.open("a/1", lease_s=0.6)
    heard: list[str | None] = []
    journal.on_trouble(heard.append)
    accepted: list[str] = []
    filler = small_disk / "filler"
    await asyncio.to_thread(filler.write_bytes, b"x" * 500_000)
    with pytest.raises(JournalError, match="disk is full; make room on its disk") as error:
        for i in range(200):
            await journal.accept(new(f"{i}", request=b"x" * 10_000))
            accepted.append(f"{i}")
    assert accepted and "\n" not in str(error.value)
    assert heard == [str(error.value)] and journal.trouble == heard[0]
    journal.append(new("0").key, "step", {"noted": "while nothing could be written", "and": "x" * 20_000})
    await asyncio.to_thread(filler.unlink)
    await eventually(lambda: journal.trouble is None)  # by itself
    await eventually(lambda: journal.waiting == 0)
    found = await journal.task(new("0").key)
    assert found is not None and [entry.kind for entry in found[1]] == ["step"]
    assert await journal.accept(new("again")) == MINE
    assert heard[-1] is None
    assert {task.id for task in await journal.tasks(most=1000)} == {*accepted, "again"}
    await store.close()


@pytest.mark.slow
async def test_where_nothing_can_be_written_only_so_much_is_kept(file: SqliteStore) -> None:
    journal = await file.open("a/1")
    await journal.accept(new("one"))
    away = file.path.with_name("away")
    await asyncio.to_thread(file.path.rename, away)
    for i in range(25_000):
        journal.append(new("one").key, "step", {"i": i})
        journal.sent(new("one").key)
        if i % 1000 == 0:
            await asyncio.sleep(0.03)
    with pytest.raises(JournalError):
        await journal.answer(new("one").key, b"1", "ok")
    assert journal.waiting <= 20_000
    await asyncio.to_thread(away.rename, file.path)
    assert await journal.answer(new("one").key, b"1", "ok")
    found = await journal.task(new("one").key)
    assert found is not None and 9_000 <= len(found[1]) <= 10_000
    assert found[1][-1].facts == {"i": 24_999}


# Clocks


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


async def test_a_lease_runs_out_by_the_clock(file: SqliteStore) -> None:
    clock = Clock()
    one = await SqliteJournal.open(file.path, "a/1", lease_s=60, now_ms=clock)
    two = await SqliteJournal.open(file.path, "b/1", lease_s=60, now_ms=clock)
    await one.accept(new("one"))
    clock.ms += 59_999
    assert await two.claim() == []
    assert await two.owners() == {"a/1": 1, "b/1": 60_000}
    clock.ms += 1
    assert [task.id for task in await two.claim()] == ["one"]
    await one.close()
    await two.close()


async def test_a_clock_that_is_set_back_neither_keeps_the_dead_alive_nor_gives_tasks_more_time(
    file: SqliteStore,
) -> None:
    clock = Clock()
    one = await SqliteJournal.open(file.path, "a/1", lease_s=60, now_ms=clock)
    two = await SqliteJournal.open(file.path, "b/1", lease_s=60, now_ms=clock)
    await one.accept(new("one", ttl_ms=5_000))
    clock.ms -= 500_000
    assert await two.claim() == []
    assert (await two.owners())["a/1"] == 60_000
    clock.ms += 60_000
    (task,) = await two.claim()
    assert task.deadline_ms - clock.ms == 5_000
    await one.close()
    await two.close()


async def test_a_clock_that_jumps_ahead_gives_one_answer(file: SqliteStore) -> None:
    clock = Clock()
    one = await SqliteJournal.open(file.path, "a/1", lease_s=60, now_ms=clock)
    two = await SqliteJournal.open(file.path, "b/1", lease_s=60, now_ms=clock)
    await one.accept(new("one"))
    clock.ms += 3_600_000
    assert len(await two.claim()) == 1
    assert [await one.answer(new("one").key, b"1", "ok"), await two.answer(new("one").key, b"2", "ok")] == [False, True]
    await one.close()
    await two.close()


# Servers


postgres = pytest.fixture(postgres_or_skip)


@pytest.mark.slow
async def test_a_server_that_is_killed_and_comes_back(postgres: Postgres) -> None:
    store = PostgresStore(postgres)
    journal = await store.open("a/1", lease_s=0.6)
    heard: list[str | None] = []
    journal.on_trouble(heard.append)
    said: list[str] = []

    async def work(worker: int) -> None:
        for i in range(100_000):
            await journal.accept(new(f"{worker}-{i}"))
            said.append(f"{worker}-{i}")

    workers = [asyncio.create_task(work(worker)) for worker in range(8)]
    await eventually(lambda: len(said) > 100)
    await asyncio.to_thread(postgres.kill)
    for error in await asyncio.gather(*workers, return_exceptions=True):
        assert isinstance(error, JournalError), error
        assert "secret" not in str(error) and "\n" not in str(error)
        assert f"the journal postgresql://127.0.0.1:{postgres.port}/postgres can't be used: " in str(error)
    assert journal.trouble is not None
    journal.append(new(said[0]).key, "step", {})
    with pytest.raises(JournalError):
        await journal.tasks()
    await asyncio.to_thread(postgres.start)
    await eventually(lambda: journal.trouble is None)
    await eventually(lambda: journal.waiting == 0)
    assert heard[-1] is None
    tasks = {task.id: task for task in await journal.tasks(most=100_000)}
    assert tasks.keys() >= set(said)
    assert {tasks[name].owner for name in said} == {"a/1"}
    # What the server wrote without having said so is nobody's.
    assert {task.owner for name, task in tasks.items() if name not in said} <= {""}
    found = await journal.task(new(said[0]).key)
    assert found is not None and len(found[1]) == 1
    assert await journal.answer(new(said[0]).key, b"1", "ok")
    await store.close()


async def test_a_server_that_can_not_be_used_is_one_line(postgres: Postgres) -> None:
    for url, said in (
        (postgres.url("nothing"), 'database "nothing" does not exist'),
        ("postgresql://me:secret@127.0.0.1:1/x", r"postgresql://127.0.0.1:1/x can't be used: .*refused"),
        ("postgresql://me:secret@[", "URL does not parse"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            await open_journal(url, "a/1")
        assert "secret" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="is empty"):
        await read_journal(postgres.url())
    store = PostgresStore(postgres)
    await store.open("a/1")
    await store.sql("UPDATE settings SET value = '99' WHERE name = 'version'")
    with pytest.raises(ConfigError, match=r"has version 99, this program knows 1: update it"):
        await store.open("b/1")
    await store.close()
