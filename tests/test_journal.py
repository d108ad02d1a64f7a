"""The journals' contract, the same for both stores."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import eventually
from journals import PostgresStore, SqliteStore, Store, child, new, postgres_or_skip

from mqttcollab.errors import JournalError
from mqttcollab.journal import Accepted, Filter, Limits, read_journal

MINE, OTHERS = Accepted("mine"), Accepted("others")
TAKEN = Accepted("mine", taken=True)


postgres = pytest.fixture(scope="module")(postgres_or_skip)


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    found: Store
    if request.param == "sqlite":
        found = SqliteStore(tmp_path / "journal")
    else:
        found = PostgresStore(request.getfixturevalue("postgres"))
        await found.sql("DROP SCHEMA IF EXISTS mqttcollab CASCADE")
    yield found
    await found.close()


# One task's life


async def test_a_task_is_accepted_answered_and_sent(store: Store) -> None:
    journal = await store.open("a/1")
    task = new("one", tenant="city")
    assert await journal.accept(task) == MINE
    journal.append(task.key, "plan", {"plan": ["ü\x00"], "n": 1.5})
    journal.append(task.key, "dispatch", {"step": 1})
    (listed,) = await journal.tasks()
    assert (listed.state, listed.owner, listed.outcome, listed.ended_ms) == ("open", "a/1", "", None)
    assert listed.deadline_ms - listed.accepted_ms == 30_000
    assert await journal.answer(task.key, b"\x00answer", "ok")
    found = await journal.task(task.key)
    assert found is not None
    whole, history = found
    assert (whole.id, whole.request, whole.reply, whole.tenant) == ("one", task.request, b"\x00answer", "city")
    assert (whole.state, whole.outcome, whole.takeovers) == ("answered", "ok", 0)
    assert [(entry.kind, entry.facts) for entry in history] == [
        ("plan", {"plan": ["ü\x00"], "n": 1.5}),
        ("dispatch", {"step": 1}),
    ]
    assert {entry.owner for entry in history} == {"a/1"}
    assert whole.accepted_ms <= history[0].time_ms + 50 and whole.ended_ms is not None
    journal.sent(task.key)
    await eventually(lambda: journal.waiting == 0)
    assert [(task.state, task.request, task.reply) for task in await journal.tasks()] == [("done", b"", None)]


async def test_a_task_is_answered_once(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    key = new("one").key
    assert not await journal.answer(key, b"early", "ok")
    await journal.accept(new("one"))
    assert not await other.answer(key, b"not mine", "ok")
    assert await journal.answer(key, b"first", "ok")
    assert not await journal.answer(key, b"second", "ok")
    assert await journal.answer(key, b"first", "ok")  # who can't know whether it was written asks again
    assert not await other.answer(key, b"first", "ok")
    assert await other.accept(new("one")) == Accepted("ended", b"first")


async def test_a_task_may_end_without_a_reply(store: Store) -> None:
    journal = await store.open("a/1")
    await journal.accept(new("one"))
    assert await journal.answer(new("one").key, None, "cancelled")
    assert await journal.accept(new("one")) == Accepted("ended", None)
    (task,) = await journal.tasks()
    assert (task.state, task.outcome) == ("done", "cancelled")


async def test_a_repeat_of_a_task_under_way_is_told_apart(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    assert await journal.accept(new("one")) == MINE
    assert await journal.accept(new("one")) == MINE
    assert await other.accept(new("one")) == OTHERS
    assert await asyncio.gather(*(other.accept(new("two")) for _ in range(3))) == [MINE] * 3
    assert len(await journal.tasks()) == 2


async def test_a_repeat_of_a_dead_owners_task_takes_it_over(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    await journal.accept(new("one"))
    await store.expire("a/1")
    assert await other.accept(new("one")) == TAKEN
    assert not await journal.answer(new("one").key, b"late", "ok")
    assert await other.answer(new("one").key, b"mine", "ok")
    (task,) = await other.tasks()
    assert (task.owner, task.takeovers) == ("b/1", 1)


async def test_writes_of_one_moment_keep_their_order(store: Store) -> None:
    journal = await store.open("a/1")
    await journal.accept(new("old"))
    calls = (
        journal.accept(new("one")),
        journal.accept(new("one")),
        journal.answer(new("one").key, b"1", "ok"),
        journal.answer(new("one").key, b"2", "ok"),
        journal.accept(new("one")),
        journal.answer(new("old").key, b"old", "ok"),
    )
    assert await asyncio.gather(*calls) == [MINE, MINE, True, False, Accepted("ended", b"1"), True]


async def test_hundreds_at_once_are_written_and_told_apart(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    await asyncio.gather(*(other.accept(new(f"{i}")) for i in range(0, 300, 7)))
    await other.answer(new("7").key, b"seven", "ok")
    got = await asyncio.gather(*(journal.accept(new(f"{i}")) for i in range(300)))
    assert got == [Accepted("ended", b"seven") if i == 7 else OTHERS if i % 7 == 0 else MINE for i in range(300)]
    written = await asyncio.gather(*(journal.answer(new(f"{i}").key, b"%d" % i, "ok") for i in range(300)))
    assert written == [i % 7 != 0 for i in range(300)]
    for i in range(300):
        journal.sent(new(f"{i}").key)
        journal.append(new(f"{i}").key, "step", {"i": i})
    await eventually(lambda: journal.waiting == 0)
    assert len(await journal.tasks(Filter(state="done"), most=1000)) == 300 - 43 + 1
    assert len(await journal.tasks(Filter(state="open"), most=1000)) == 42


async def test_what_can_not_be_written_does_not_harm_the_others(store: Store) -> None:
    journal = await store.open("a/1")
    bad = new("bad", ttl_ms=1 << 70)
    got = await asyncio.gather(
        *(journal.accept(task) for task in (new("one"), bad, new("two"))),
        journal.answer(new("one").key, b"1", "\ud800"),
        return_exceptions=True,
    )
    assert got[0] == got[2] == MINE
    for error in (got[1], got[3]):
        assert isinstance(error, JournalError) and "can't be written to the journal" in str(error)
    assert journal.trouble is None and journal.waiting == 0


# Owners


async def test_tasks_of_the_dead_are_claimed_oldest_first(store: Store) -> None:
    dead, journal = await store.open("a/1"), await store.open("b/1")
    for name in ("one", "two", "three", "four"):
        await dead.accept(new(name, tenant=name))
    await dead.answer(new("two").key, b"2", "ok")
    await dead.answer(new("three").key, None, "cancelled")
    assert await journal.claim() == []
    await store.expire("a/1")
    claimed = await journal.claim()
    assert [(task.id, task.state, task.owner, task.takeovers) for task in claimed] == [
        ("one", "open", "b/1", 1),
        ("two", "answered", "b/1", 1),
        ("four", "open", "b/1", 1),
    ]
    assert [(task.request, task.reply, task.tenant) for task in claimed[:2]] == [
        (new("one").request, None, "one"),
        (new("one").request, b"2", "two"),
    ]
    assert await journal.claim() == []
    assert set(await journal.owners()) == {"b/1"}
    assert not await dead.answer(new("one").key, b"late", "ok")


async def test_tasks_of_those_said_to_be_gone_are_claimed(store: Store) -> None:
    one, two, journal = [await store.open(f"{name}/1") for name in "abc"]
    await one.accept(new("one"))
    await two.accept(new("two"))
    assert [task.id for task in await journal.claim({"a/1", "nobody/7"})] == ["one"]
    assert await two.answer(new("two").key, b"2", "ok")


async def test_an_earlier_life_counts_as_gone_at_once(store: Store) -> None:
    before, other = await store.open("a/1"), await store.open("ab/1")
    await before.accept(new("one"))
    await other.accept(new("two"))
    now = await store.open("a/2")
    assert [task.id for task in await now.claim()] == ["one"]
    assert not await before.answer(new("one").key, b"late", "ok")


async def test_what_is_released_may_be_claimed_at_once(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    await journal.accept(new("one"))
    await journal.release()
    assert not await journal.answer(new("one").key, b"1", "ok")
    assert await other.accept(new("one")) == TAKEN
    await journal.accept(new("two"))
    await journal.release()
    assert [task.id for task in await other.claim()] == ["two"]


async def test_who_closes_leaves_its_tasks_to_the_others(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    await journal.accept(new("one"))
    journal.append(new("one").key, "step", {})
    await journal.close()
    assert [task.id for task in await other.claim()] == ["one"]
    found = await other.task(new("one").key)
    assert found is not None and len(found[1]) == 1  # what waited was written
    with pytest.raises(JournalError, match="is closed"):
        await journal.accept(new("two"))
    journal.sent(new("one").key)
    await journal.close()


@pytest.mark.slow
async def test_a_lease_is_renewed_while_there_is_work(store: Store) -> None:
    journal, other = await store.open("a/1", lease_s=0.3), await store.open("b/1")
    await journal.accept(new("one"))
    for _ in range(4):
        await asyncio.sleep(0.2)
        assert await other.claim() == []
    assert await journal.answer(new("one").key, None, "ok")
    async with asyncio.timeout(10):
        while "a/1" in await other.owners():  # nothing is open: nothing is written
            await asyncio.sleep(0.05)
    assert await journal.accept(new("two")) == MINE
    assert "a/1" in await other.owners()
    assert await other.claim() == []


async def test_an_owner_that_was_killed_with_nothing_in_hand_is_forgotten(store: Store) -> None:
    journal, _ = await store.open("a/1", lease_s=0.3), await store.open("b/1")
    await store.expire("b/1")
    async with asyncio.timeout(10):
        while ("b/1",) in [tuple(row) for row in await store.sql("SELECT owner FROM owners")]:
            await journal.claim()
            await asyncio.sleep(0.05)


async def test_who_is_cancelled_while_claiming_gives_back(store: Store) -> None:
    dead, journal, other = [await store.open(f"{name}/1") for name in "abc"]
    for i in range(5):
        await dead.accept(new(f"{i}"))
    await store.expire("a/1")
    claiming = asyncio.create_task(journal.claim())
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    claimed = set()
    async with asyncio.timeout(10):
        while len(claimed) < 5:
            claimed |= {task.id for task in await other.claim()}


async def test_all_who_share_a_store_have_one_secret(store: Store) -> None:
    one, two = await store.open("a/1"), await store.open("b/1")
    secrets = await asyncio.gather(one.secret(), two.secret(), one.secret())
    assert len(set(secrets)) == 1 and len(secrets[0]) == 32
    await one.close()
    assert await (await store.open("a/2")).secret() == secrets[0]


# Looking


async def test_tasks_are_listed_newest_first_by_what_they_are(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("a/2")
    for name in ("x_1", "x%2", "x33"):
        await journal.accept(new(name, tenant=name))
    await other.accept(new("y4"))
    await journal.answer(new("x%2").key, b"", "busy")
    for which, expected in (
        (Filter(), ["y4", "x33", "x%2", "x_1"]),
        (Filter(id="x"), ["x33", "x%2", "x_1"]),
        (Filter(id="x_"), ["x_1"]),
        (Filter(id="x%"), ["x%2"]),
        (Filter(state="open"), ["y4", "x33", "x_1"]),
        (Filter(outcome="busy"), ["x%2"]),
        (Filter(tenant="x33"), ["x33"]),
        (Filter(owner="a/2"), ["y4"]),
        (Filter(owner="a"), ["y4", "x33", "x%2", "x_1"]),
        (Filter(owner="b"), []),
        (Filter(since_ms=1 << 50), []),
        (Filter(since_ms=1), ["y4", "x33", "x%2", "x_1"]),
    ):
        assert [task.id for task in await journal.tasks(which)] == expected, which
    assert [task.id for task in await journal.tasks(most=2)] == ["y4", "x33"]
    assert await journal.task("reply.gpt/@alice/nothing") is None


async def test_a_reader_sees_all_and_is_nobody(store: Store) -> None:
    journal = await store.open("a/1")
    await journal.accept(new("one"))
    reader = await read_journal(store.where)
    assert [task.id for task in await reader.tasks()] == ["one"]
    assert set(await reader.owners()) == {"a/1"}
    await journal.answer(new("one").key, None, "ok")
    assert await reader.prune(dry_run=True) == 1
    with pytest.raises(JournalError, match=r"read.?only"):
        await reader.prune()
    await reader.close()
    assert set(await journal.owners()) == {"a/1"}


# Retention


async def test_prune_deletes_what_has_ended_and_only_that(store: Store) -> None:
    journal = await store.open("a/1")
    for name in ("open", "unsent", "done", "none"):
        await journal.accept(new(name))
        journal.append(new(name).key, "step", {})
    await journal.answer(new("unsent").key, b"1", "ok")
    await journal.answer(new("done").key, b"1", "ok")
    await journal.answer(new("none").key, None, "ok")
    journal.sent(new("done").key)
    await eventually(lambda: journal.waiting == 0)
    assert await journal.prune(older_than_s=60) == 0
    assert await journal.prune(dry_run=True) == 2
    assert len(await journal.tasks()) == 4
    assert await journal.prune() == 2
    assert [task.id for task in await journal.tasks()] == ["unsent", "open"]
    assert await store.sql("SELECT count(*) FROM entries") == [(2,)]


async def test_what_is_too_old_goes_by_itself(store: Store) -> None:
    journal = await store.open("a/1", limits=Limits(keep_s=0.1), lease_s=0.3)
    await asyncio.gather(*(journal.accept(new(f"{i}")) for i in range(200)))
    await asyncio.gather(*(journal.answer(new(f"{i}").key, None, "ok") for i in range(199)))
    async with asyncio.timeout(10):
        while len(await journal.tasks(most=300)) > 1:
            await asyncio.sleep(0.05)
    assert [task.state for task in await journal.tasks()] == ["open"]


async def test_where_it_is_too_large_the_oldest_ended_go_and_then_nothing_is_accepted(store: Store) -> None:
    most = 600_000
    journal = await store.open("a/1", limits=Limits(most_bytes=most), lease_s=0.3)
    big = random.Random(1).randbytes(20_000)
    for i in range(60):  # twice as much as it may hold
        assert await journal.accept(new(f"ended{i}", request=big)) == MINE
        assert await journal.answer(new(f"ended{i}").key, None, "ok")
    kept = [task.id for task in await journal.tasks()]
    assert 1 <= len(kept) < 40 and kept == [f"ended{i}" for i in reversed(range(60 - len(kept), 60))]
    accepted = 0
    with pytest.raises(JournalError, match="holds 600000 bytes of tasks that have not ended"):
        for i in range(100):
            await journal.accept(new(f"open{i}", request=big))
            accepted += 1
    assert 10 < accepted < 40
    assert journal.trouble is not None
    assert await journal.accept(new("open0")) == MINE  # what is there is still told
    for i in range(accepted):
        assert await journal.answer(new(f"open{i}").key, b"", "ok")
        journal.sent(new(f"open{i}").key)
    await eventually(lambda: journal.trouble is None)  # by itself
    assert await journal.accept(new("again", request=big)) == MINE


# Death


async def test_what_was_said_to_be_written_is_there_after_kill_9(store: Store) -> None:
    code = """
        journal = await open_journal(words[0], "a/1")
        async def work(worker):
            for i in range(100_000):
                task = NewTask(f"reply.gpt/@alice/{worker}-{i}", "knowledge.gpt/x", b"{}", 60_000)
                await journal.accept(task)
                os.write(1, f"{task.key} open\\n".encode())
                journal.append(task.key, "step", {"i": i})
                if i % 2:
                    assert await journal.answer(task.key, b"reply", "ok")
                    os.write(1, f"{task.key} answered\\n".encode())
        await asyncio.gather(*(work(worker) for worker in range(8)))"""
    said: dict[str, str] = {}
    async with child(code, store.where) as process:
        assert process.stdout is not None
        for _ in range(500):
            key, state = (await process.stdout.readline()).decode().split()
            said[key] = state
        process.kill()
        for line in (await process.stdout.read()).decode().splitlines():
            key, state = line.split()
            said[key] = state
        assert await process.wait() == -signal.SIGKILL
    journal = await store.open("a/2")
    there = {task.key: task for task in await journal.claim()}
    for key, state in said.items():
        assert there[key].state in (("open", "answered") if state == "open" else (state,)), key
    found = await journal.task(next(key for key, state in said.items() if state == "answered"))
    assert found is not None and [entry.kind for entry in found[1]] == ["step"]  # written before the answer


@pytest.mark.slow
async def test_processes_that_claim_at_once_get_each_task_once(store: Store) -> None:
    for owner in range(20):
        dead = await store.open(f"dead{owner}/1")
        await asyncio.gather(*(dead.accept(new(f"{owner}-{i}")) for i in range(10)))
        await dead.close()
    code = """
        journal = await open_journal(words[0], words[1])
        print("ready", flush=True)
        sys.stdin.readline()
        claimed = []
        for _ in range(20):
            claimed += await asyncio.gather(*(journal.claim() for _ in range(3)))
        print(*(task.id for tasks in claimed for task in tasks), flush=True)
        sys.stdin.readline()
        await journal.release()
        await journal.close()"""
    async with child(code, store.where, "b/1") as one, child(code, store.where, "c/1") as two:
        for process in (one, two):
            assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        claimed = []
        for process in (one, two):
            assert process.stdout is not None
            claimed += (await process.stdout.readline()).decode().split()
    assert sorted(claimed) == sorted(f"{owner}-{i}" for owner in range(20) for i in range(10))


@pytest.mark.slow
async def test_processes_that_write_at_once_wait_for_each_other(store: Store) -> None:
    code = """
        journal = await open_journal(words[0], words[1])
        async def work(worker):
            for i in range(20):
                key = f"reply.gpt/@alice/{words[1]}-{worker}-{i}"
                assert (await journal.accept(NewTask(key, "knowledge.gpt/x", b"{}", 60_000))).state == "mine"
                assert await journal.answer(key, b"reply", "ok")
        await asyncio.gather(*(work(worker) for worker in range(8)))
        await journal.close()"""
    await store.open("a/1")
    async with child(code, store.where, "b/1") as one, child(code, store.where, "c/1") as two:
        assert [await one.wait(), await two.wait()] == [0, 0]
    journal = await store.open("a/2")
    assert len(await journal.tasks(Filter(state="answered"), most=1000)) == 320


async def test_who_shares_a_journal_takes_over_only_what_he_offers(store: Store) -> None:
    journal, other = await store.open("a/1"), await store.open("b/1")
    await other.accept(new("one"))
    assert await journal.claim(["b/1"], ["computation.gpt/else"]) == []
    (task,) = await journal.claim(["b/1"], ["computation.gpt/else", new("one").service])
    assert (task.id, task.owner) == ("one", "a/1")
    assert 0 < task.left_ms <= 30_000


async def test_a_task_for_which_nobody_comes_ends_by_itself(store: Store) -> None:
    journal = await store.open("a/1", limits=Limits(keep_s=0.5), lease_s=0.6)
    await journal.accept(new("one", ttl_ms=100))
    async with asyncio.timeout(10):
        while await journal.tasks():
            await asyncio.sleep(0.1)
