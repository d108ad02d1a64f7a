"""Durable services: what was taken is answered, once, whoever dies in between. Real processes on a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet import Process, Watcher, client, known, process
from harness import LIMIT_S, eventually

from mqttcollab import Agent, AgentOptions, Reply, Request, RequestError
from mqttcollab.broker import Broker
from mqttcollab.codec import decode
from mqttcollab.journal import NewTask, open_journal
from mqttcollab.rpc import Requester
from mqttcollab.topics import request_topic
from mqttcollab.transport.base import TransportMessage

pytest.importorskip("aiosqlite", reason="a journal takes aiosqlite: pip install 'mqttcollab[journal]'")

SLOW = "computation.gpt/slow"
# Notes each time that its work is begun; the first so many times (`deaths`) it kills its own process in the middle.
SOURCE = """\
import asyncio, os, signal
from pathlib import Path
from mqttcollab import Agent, AgentOptions, Request, Service

class Slow(Service):
    name = "computation.gpt/slow"
    durable = True
    concurrency = 8

    async def handle(self, request: Request) -> str:
        begun = Path({log!r})
        with begun.open("a") as log:
            log.write(f"{name} {{request.text}}\\n")
        if len(begun.read_text().splitlines()) <= {deaths}:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep({seconds})
        return f"{{request.text}}, says @{name} for the {{len(begun.read_text().splitlines())}}. time"

agent = Agent({name!r}, options=AgentOptions(journal={journal!r}, grace_s={grace}))
agent.add(Slow())
agent.run()
"""


class Place:
    """A folder with a journal and a list of what was begun, and a broker."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.url = folder, broker.info.url
        self.log = folder / "begun.txt"
        self.scripts = folder / "scripts"
        self.scripts.mkdir()

    @property
    def journal(self) -> Path:
        return self.folder / "journal.db"

    @property
    def begun(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @contextlib.asynccontextmanager
    async def slow(
        self,
        name: str = "slow-1",
        *,
        deaths: int = 0,
        seconds: float = 0.0,
        journal: Path | bool | None = True,
        grace: float = 0.0,
    ) -> AsyncIterator[Process]:
        where = str(self.journal) if journal is True else journal and str(journal)
        source = SOURCE.format(
            name=name, log=str(self.log), deaths=deaths, seconds=seconds, journal=where or None, grace=grace
        )
        async with process(self.scripts, source, self.url) as agent:
            await agent.says("is online")
            yield agent


@pytest.fixture
def place(tmp_path: Path, mosquitto: Broker) -> Place:
    return Place(tmp_path, mosquitto)


@contextlib.asynccontextmanager
async def asking(place: Place) -> AsyncIterator[tuple[Agent, Watcher]]:
    """Who asks, and who sees every reply on the wire."""
    async with client().running(place.url) as asker, client("spy").running(place.url) as spy:
        yield asker, await Watcher().watch(spy.transport, "reply.gpt/#")


def last_replies(watcher: Watcher) -> list[Reply]:
    replies = [decode(Reply, message.payload) for message in watcher.seen]
    return [reply for reply in replies if reply.last]


async def test_a_task_outlives_its_agent(place: Place) -> None:
    async with asking(place) as (asker, watcher):
        async with place.slow(deaths=1) as agent:
            answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
            assert await agent.ended() == -signal.SIGKILL
        async with place.slow(deaths=1):
            assert (await answer).output == "hello, says @slow-1 for the 2. time"
        assert place.begun == ["slow-1 hello"] * 2
        await watcher.until(lambda: last_replies(watcher))
        assert len(last_replies(watcher)) == 1


async def test_who_asked_by_the_registry_waits_for_a_durable_agent(place: Place) -> None:
    async with asking(place) as (asker, _):
        async with place.slow(deaths=1) as agent:
            registry = await asker.follow()
            await known(lambda: registry.offers(SLOW)[0].record.durable)
            answer = asyncio.ensure_future(asker.ask("hello", service=SLOW))
            assert await agent.ended() == -signal.SIGKILL
        await known(lambda: not registry.offers(SLOW))
        async with place.slow(deaths=1):
            assert (await answer).output == "hello, says @slow-1 for the 2. time"


async def test_a_durable_agent_that_vanished_is_asked_all_the_same(place: Place) -> None:
    async with asking(place) as (asker, _):
        registry = await asker.follow()
        async with place.slow() as agent:
            await known(lambda: registry.offers(SLOW))
            agent.send(signal.SIGKILL)
            await agent.ended()
        await known(lambda: not registry.offers(SLOW))
        answer = asyncio.ensure_future(asker.ask("hello", service=SLOW))
        await asyncio.sleep(0.2)
        async with place.slow() as agent:
            assert (await answer).output == "hello, says @slow-1 for the 1. time"
            agent.send(signal.SIGTERM)
            await agent.ended()
        await known(lambda: not registry.offers(SLOW))
        with pytest.raises(RequestError, match="no agent that is online offers"):  # it said goodbye
            await asker.ask("hello", service=SLOW)


async def test_a_request_is_written_down_before_it_is_acknowledged(place: Place) -> None:
    async with asking(place) as (asker, _):
        async with place.slow() as agent:
            with contextlib.closing(sqlite3.connect(place.journal, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # nothing can be written now, so nothing may be acknowledged
                answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1", ttl_s=25))
                await asyncio.sleep(0.5)
                agent.send(signal.SIGKILL)
                await agent.ended()
                other.execute("ROLLBACK")
            assert place.begun == []
        async with place.slow():  # the broker has kept it, and sends it again
            assert (await answer).output == "hello, says @slow-1 for the 1. time"


async def test_a_request_that_comes_while_the_agent_starts_again_is_answered(place: Place) -> None:
    async with asking(place) as (asker, _):
        async with place.slow() as agent:
            agent.send(signal.SIGKILL)
            await agent.ended()
        answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
        await asyncio.sleep(0.2)
        async with place.slow():
            assert (await answer).output == "hello, says @slow-1 for the 1. time"


async def test_what_is_past_its_ttl_ends_with_an_error(place: Place) -> None:
    async with asking(place) as (asker, watcher):
        async with place.slow(deaths=1) as agent:
            with pytest.raises(RequestError) as caught:
                await asker.ask("hello", service=SLOW, agent="slow-1", ttl_s=1.0)
            assert caught.value.code == "deadline_exceeded"
            await agent.ended()
        async with place.slow(deaths=1):
            await watcher.until(lambda: last_replies(watcher))
        (reply,) = last_replies(watcher)
        assert reply.error is not None
        assert reply.error.code == "deadline_exceeded"
        assert place.begun == ["slow-1 hello"]


async def test_a_task_is_handed_over_by_an_agent_that_is_stopped(place: Place) -> None:
    async with asking(place) as (asker, watcher):
        async with place.slow(seconds=60) as agent:
            answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
            await eventually(lambda: bool(place.begun))
            agent.send(signal.SIGTERM)
            assert await agent.ended() == 0
        assert not answer.done()
        async with place.slow("slow-2"):
            assert (await answer).output == "hello, says @slow-2 for the 2. time"
        await watcher.until(lambda: last_replies(watcher))
        assert len(last_replies(watcher)) == 1


async def test_a_cancel_reaches_a_task_whose_agent_was_killed(place: Place) -> None:
    async with asking(place) as (asker, watcher):
        async with place.slow(deaths=1) as agent:
            answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
            await agent.ended()
        answer.cancel()
        await asyncio.wait([answer])
        async with place.slow(seconds=30):
            await watcher.until(lambda: last_replies(watcher))
        (reply,) = last_replies(watcher)
        assert reply.error is not None
        assert reply.error.code == "cancelled"
        assert place.begun == ["slow-1 hello"]


@pytest.mark.slow
async def test_another_agent_takes_over(place: Place) -> None:
    async with (
        asking(place) as (asker, watcher),
        place.slow("slow-2", deaths=1),
        place.slow("slow-1", deaths=1) as dies,
    ):
        answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
        assert await dies.ended() == -signal.SIGKILL
        assert (await answer).output == "hello, says @slow-2 for the 2. time"
        await watcher.until(lambda: last_replies(watcher))
        assert len(last_replies(watcher)) == 1


@pytest.mark.slow
async def test_nothing_is_answered_twice(place: Place) -> None:
    async with asking(place) as (asker, watcher), place.slow("slow-2"), place.slow("slow-1", seconds=1.0) as stopped:
        answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
        await eventually(lambda: bool(place.begun))
        stopped.send(signal.SIGSTOP)
        assert (await answer).output == "hello, says @slow-2 for the 2. time"  # once its lease has run out
        stopped.send(signal.SIGCONT)
        await asker.ask("again", service=SLOW, agent="slow-1")  # it would have told its answer before this one's
        await watcher.until(lambda: len(last_replies(watcher)) > 1)
        assert [reply.output for reply in last_replies(watcher)][:1] == ["hello, says @slow-2 for the 2. time"]
        assert len(last_replies(watcher)) == 2


async def test_a_repeat_gets_the_same_reply_from_the_next_life(place: Place) -> None:
    async with asking(place) as (asker, watcher):
        requester = Requester(asker.transport, "asker")
        request = requester.new_request("hello")
        topic = request_topic(SLOW, "slow-1")
        async with place.slow() as agent:
            await asker.transport.publish(TransportMessage(topic, request.model_dump_json().encode()))
            await watcher.until(lambda: last_replies(watcher))
            agent.send(signal.SIGKILL)
            await agent.ended()
        async with place.slow():
            await asker.transport.publish(TransportMessage(topic, request.model_dump_json().encode()))
            await watcher.until(lambda: len(last_replies(watcher)) >= 2)
        assert len({message.payload for message in watcher.seen}) == 1  # maybe once more: it was not noted as sent
        assert place.begun == ["slow-1 hello"]


@pytest.mark.slow
async def test_a_request_to_whoever_serves_a_name_is_repeated_where_no_journal_is_shared(place: Place) -> None:
    async with (
        asking(place) as (asker, watcher),
        place.slow("slow-1", deaths=1, journal=None) as first,
        place.slow("slow-2", deaths=1, journal=None) as second,
    ):
        requester = Requester(asker.transport, "asker-2")
        await requester.start()
        request = requester.new_request("hello", ttl_ms=6000)
        reply = await requester.ask(request_topic(SLOW), request)
        await requester.stop()
        dead = [agent for agent in (first, second) if agent.dead]
        assert len(dead) == 1
        assert (reply.output or "").endswith("for the 2. time")
        await watcher.until(lambda: last_replies(watcher))
        assert len(last_replies(watcher)) == 1


@pytest.mark.slow
async def test_a_journal_that_cannot_be_written_makes_the_agent_say_busy(place: Place) -> None:
    async with asking(place) as (asker, watcher), place.slow():
        await watcher.watch(asker.transport, "slm/agents/@slow-1/status")
        with contextlib.closing(sqlite3.connect(place.journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(RequestError) as caught:
                await asker.ask("hello", service=SLOW, agent="slow-1")
            assert caught.value.code == "busy"
            assert caught.value.retry_after_ms
            await watcher.until(lambda: b"degraded" in watcher.last["slm/agents/@slow-1/status"])
            other.execute("ROLLBACK")
        await watcher.until(lambda: b"online" in watcher.last["slm/agents/@slow-1/status"])
        assert (await asker.ask("hello", service=SLOW, agent="slow-1")).output == "hello, says @slow-1 for the 1. time"


async def test_a_repeat_of_what_is_in_the_journal_is_not_refused(place: Place) -> None:
    """Not even where the queue is full: it would be told two ends."""
    async with client("asker").running(place.url) as asker:
        requester = Requester(asker.transport, "elsewhere")
        requests = [requester.new_request("hello", ttl_ms=20_000) for _ in range(4)]
        journal = await open_journal(str(place.journal), "slow-1/1")  # a life before took three of them
        for request in requests[:3]:
            await journal.accept(NewTask(request.reply_to, SLOW, request.model_dump_json().encode(), 20_000))
        await journal.close()
        watcher = await Watcher().watch(asker.transport, "reply.gpt/@elsewhere/+")
        slow = Agent("slow-1", options=AgentOptions(journal=str(place.journal), queue_size=1))

        @slow.service(SLOW, durable=True)
        async def work(request: Request) -> str:
            await asyncio.sleep(0.1)
            return "done"

        async with slow.running(place.url):
            for request in requests:
                message = TransportMessage(request_topic(SLOW, "slow-1"), request.model_dump_json().encode())
                await asker.transport.publish(message)
            await watcher.until(lambda: len(last_replies(watcher)) >= 4)
        ends = {reply.id: reply.status for reply in last_replies(watcher)}
        assert [ends[request.id] for request in requests] == ["ok", "ok", "ok", "error"]
        assert len(last_replies(watcher)) == 4


@pytest.mark.slow
async def test_a_repeat_of_what_another_has_is_not_refused_where_nothing_can_be_written(place: Place) -> None:
    async with asking(place) as (asker, watcher), place.slow("slow-2"), place.slow("slow-1", seconds=8.0):
        request = Requester(asker.transport, "elsewhere").new_request("hello")
        payload = request.model_dump_json().encode()
        await asker.transport.publish(TransportMessage(request_topic(SLOW, "slow-1"), payload))
        await eventually(lambda: bool(place.begun))
        with contextlib.closing(sqlite3.connect(place.journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await asker.transport.publish(TransportMessage(request_topic(SLOW, "slow-2"), payload))
            await asyncio.sleep(6.0)  # SQLite waits for five seconds
            assert not last_replies(watcher)
            other.execute("ROLLBACK")
        await watcher.until(lambda: last_replies(watcher))
        (reply,) = last_replies(watcher)
        assert reply.status == "ok"


@pytest.mark.slow
async def test_an_end_that_cannot_be_written_down_waits_until_it_can(place: Place) -> None:
    async with asking(place) as (asker, watcher):
        slow = Agent("slow-1", options=AgentOptions(journal=str(place.journal)))
        begun, go_on = asyncio.Event(), asyncio.Event()

        @slow.service(SLOW, durable=True)
        async def work(request: Request) -> str:
            begun.set()
            await go_on.wait()
            return "done"

        async with slow.running(place.url):
            answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
            await begun.wait()
            with contextlib.closing(sqlite3.connect(place.journal, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                go_on.set()
                await known(lambda: slow.presence.status.state == "degraded")
                assert not last_replies(watcher)
                other.execute("ROLLBACK")
            assert (await answer).output == "done"


async def test_a_journal_that_cannot_be_opened_is_said_in_one_line(place: Place) -> None:
    place.journal.write_text("This is a letter, not a journal. " * 100)
    source = SOURCE.format(name="slow-1", log="", deaths=0, seconds=0, journal=str(place.journal), grace=0)
    async with process(place.scripts, source, place.url) as agent:
        assert await agent.ended() == 1
    assert "Traceback" not in agent.output
    assert str(place.journal) in agent.output.splitlines()[-1]


async def test_a_request_to_a_service_of_a_life_before_is_refused(place: Place) -> None:
    async with asking(place) as (asker, _):
        async with place.slow() as agent:
            agent.send(signal.SIGKILL)
            await agent.ended()
        answer = asyncio.ensure_future(asker.ask("hello", service=SLOW, agent="slow-1"))
        await asyncio.sleep(0.2)
        async with Agent("slow-1").running(place.url):
            with pytest.raises(RequestError, match=r"@slow-1 offers computation\.gpt/slow no more") as caught:
                await answer
        assert caught.value.code == "no_capability"


assert LIMIT_S >= 10  # a lease of 3 s has to run out, and a write lock of 5 s
