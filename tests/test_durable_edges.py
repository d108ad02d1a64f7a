"""Durable services at the moments in which their journal can't be written or read."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from fleet import Watcher, on
from harness import eventually

from mqttcollab import Agent, AgentOptions, Reply, Request
from mqttcollab.codec import decode
from mqttcollab.errors import JournalError
from mqttcollab.journal import Entry, NewTask, Task
from mqttcollab.messages import Request as RequestMessage
from mqttcollab.rpc import Responder
from mqttcollab.rpc.durable import TakeOver
from mqttcollab.rpc.job import PartSender
from mqttcollab.topics import cancel_topic, request_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

pytest.importorskip("aiosqlite", reason="a journal takes aiosqlite: pip install 'mqttcollab[journal]'")

from mqttcollab.journal import sqlite_file
from mqttcollab.journal.sqlite import SqliteJournal

SLOW = "computation.gpt/slow"
KEY = "reply.gpt/@asker/1"


class Slow:
    """A durable agent in this process, whose work ends when it may; who asks; and who holds the journal."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "journal"
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.broker = MemoryBroker()
        self.agent = Agent("slow-1", options=AgentOptions(journal=str(self.journal)))
        self.agent.service(SLOW, durable=True)(self._work)

    async def _work(self, request: Request) -> str:
        self.begun.set()
        await self.go_on.wait()
        return "done"

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[tuple[MemoryTransport, Watcher]]:
        async with self.agent.running(on(self.broker)):
            asker = MemoryTransport(self.broker, "asker")
            await asker.connect()
            yield asker, await Watcher().watch(asker, "reply.gpt/#")
            await asker.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(self.journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


def request(name: str = "1", ttl_ms: int = 20_000) -> TransportMessage:
    message = RequestMessage(id=name, reply_to=f"reply.gpt/@asker/{name}", input="hello", ttl_ms=ttl_ms)
    payload = message.model_dump_json().encode()
    return TransportMessage(request_topic(SLOW, "slow-1"), payload)


async def test_a_repeat_is_not_acknowledged_before_the_first_is_written_down(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    slow.go_on.set()
    async with slow.asked() as (_, watcher):
        router = slow.broker.clients["slow-1"].router
        with slow.held():
            first, again = router.route(request()), router.route(request())
            assert first == again
            assert [isinstance(work, asyncio.Future) and work.done() for work in again] == [False]
        await watcher.until(lambda: watcher.seen)


async def test_a_cancel_that_comes_while_the_end_is_written_down_comes_too_late(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    async with slow.asked() as (asker, watcher):
        await asker.publish(request())
        await slow.begun.wait()
        journal = slow.agent.journal
        assert journal is not None
        await eventually(lambda: journal.waiting == 0)
        with slow.held():
            slow.go_on.set()
            await eventually(lambda: journal.waiting > 0)
            await asker.publish(TransportMessage(cancel_topic(SLOW, "slow-1"), b"1"))
            await asyncio.sleep(0.05)
        await watcher.until(lambda: watcher.seen)
        assert decode(Reply, watcher.seen[0].payload).output == "done"


class _Unreadable(SqliteJournal):
    """One whose histories can't be read the first time."""

    refusals = 1

    async def task(self, key: str) -> tuple[Task, Sequence[Entry]] | None:
        if self.refusals:
            self.refusals -= 1
            raise JournalError("the server is away")
        return await super().task(key)


async def test_a_task_whose_history_could_not_be_read_is_resumed_later(tmp_path: Path) -> None:
    before = await SqliteJournal.open(tmp_path / "journal", "slow-1/1")
    await before.accept(NewTask(KEY, SLOW, b"{}", 20_000))
    await before.close()
    journal = await _Unreadable.open(tmp_path / "journal", "slow-1/2")
    resumed: list[str] = []
    run = asyncio.create_task(TakeOver(journal, [SLOW], lambda task, _: resumed.append(task.key), 0.02).run())
    await eventually(lambda: resumed == [KEY])
    await asyncio.sleep(0.1)
    assert resumed == [KEY]
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await journal.close()


async def test_who_was_refused_and_asks_again_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the journal had the request all the same, as a server may that broke off in the middle."""
    monkeypatch.setattr(sqlite_file, "PATIENCE_S", 0.1)
    slow = Slow(tmp_path)
    slow.go_on.set()
    async with slow.asked() as (asker, watcher):
        journal = slow.agent.journal
        assert journal is not None
        with slow.held():
            await asker.publish(request())
            await watcher.until(lambda: watcher.seen)
        assert decode(Reply, watcher.seen[0].payload).status == "error"
        other = await SqliteJournal.open(slow.journal, "other-1/1")
        await other.accept(NewTask(KEY, SLOW, request().payload, 20_000))
        await other.release()
        await watcher.until(lambda: len(watcher.seen) == 2)  # the same end, not none
        assert watcher.seen[0].payload == watcher.seen[1].payload
        await asker.publish(request())
        await watcher.until(lambda: len(watcher.seen) == 3)
        assert watcher.seen[0].payload == watcher.seen[2].payload
        await other.close()


async def test_who_asks_again_after_the_time_ran_out_is_told(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    async with slow.asked() as (asker, watcher):
        journal = slow.agent.journal
        assert journal is not None
        await asker.publish(request(ttl_ms=50))
        async with asyncio.timeout(5):
            while not [task for task in await journal.tasks() if task.state == "done"]:
                await asyncio.sleep(0.02)
        assert watcher.seen == []
        await asker.publish(request())
        await watcher.until(lambda: watcher.seen)
        error = decode(Reply, watcher.seen[0].payload).error
        assert error is not None and error.code == "deadline_exceeded"
        slow.go_on.set()


async def test_a_task_is_begun_ten_times_at_the_most(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    slow.go_on.set()
    journal = await SqliteJournal.open(slow.journal, "slow-1/1")
    for lives, name in ((9, "1"), (10, "2")):
        await journal.accept(NewTask(f"reply.gpt/@asker/{name}", SLOW, request(name).payload, 20_000))
        with contextlib.closing(sqlite3.connect(slow.journal)) as other, other:
            other.execute("UPDATE tasks SET takeovers = ? WHERE key = ?", (lives - 1, f"reply.gpt/@asker/{name}"))
    await journal.close()
    async with slow.asked() as (_, watcher):
        await watcher.until(lambda: len(watcher.seen) == 2)
    assert {r.id: r.status for r in (decode(Reply, m.payload) for m in watcher.seen)} == {"1": "ok", "2": "error"}


async def test_a_task_that_a_repeat_took_over_is_not_refused(tmp_path: Path) -> None:
    """Where its history can't be read at once: it would be told two ends."""
    before = await SqliteJournal.open(tmp_path / "journal", "slow-1/1")
    await before.accept(NewTask(KEY, SLOW, request().payload, 20_000))
    await before.close()
    journal, broker = await _Unreadable.open(tmp_path / "journal", "slow-1/2"), MemoryBroker()
    transport = MemoryTransport(broker, "slow-1")
    responder = Responder(transport, "slow-1")

    async def work(asked: Request, _: PartSender) -> Reply:
        return Reply(id=asked.id, output="done")

    await responder.serve(SLOW, work, journal=journal)
    await transport.connect()
    watcher = await Watcher().watch(transport, "reply.gpt/#")
    await transport.publish(request())
    await watcher.until(lambda: watcher.seen)
    assert decode(Reply, watcher.seen[0].payload).output == "done"
    await responder.stop()
    await transport.close()
    await journal.close()
