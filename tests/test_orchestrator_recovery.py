"""An orchestrator that is killed with a question in hand, and what its next life, or another, makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from fleet import Process, Watcher, client, known, process
from harness import eventually

from mqttcollab import Agent, Answer, Reply, Request
from mqttcollab.broker import Broker
from mqttcollab.codec import decode
from mqttcollab.journal import NewTask, open_journal
from mqttcollab.messages import PlanStep, Step, Usage
from mqttcollab.orchestrator.asking import Asking
from mqttcollab.orchestrator.diary import Diary, Dispatch
from mqttcollab.rpc import Requester
from mqttcollab.rpc.durable import TaskLog
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.topics import ORCHESTRATION, request_topic

pytest.importorskip("wordllama", reason="finding services by meaning takes wordllama: pip install 'mqttcollab[embed]'")
pytest.importorskip("aiosqlite", reason="a journal takes aiosqlite: pip install 'mqttcollab[journal]'")

WIND, DEPTH = "data.gpt/weather/wind", "data.gpt/sea/depth"
PLAN = [PlanStep(text="How strong is the wind?", service=WIND), PlanStep(text="How deep is it?", service=DEPTH)]
SOURCE = """\
from mqttcollab import AgentOptions
from mqttcollab.orchestrator import orchestrator_agent
from mqttcollab.runtimes.embedders import load_embedder

options = AgentOptions(journal={journal!r}, grace_s=0.0)
orchestrator_agent({name!r}, load_embedder("wordllama"), agent_options=options).run()
"""


@pytest.fixture(scope="module", autouse=True)
def _embedder() -> None:
    load_embedder("wordllama")  # before the event loop runs; it is kept


class Boat:
    """Two sensors in this process, one of which takes its time; an orchestrator that can be killed; who asks."""

    def __init__(self, folder: Path, url: str, asker: Agent) -> None:
        self.folder, self.url, self.asker = folder, url, asker
        self.asked: list[str] = []
        self.deep = asyncio.Event()
        self.confidence = 0.9
        self.scripts = folder / "scripts"
        self.scripts.mkdir()

    @property
    def journal(self) -> str:
        return str(self.folder / "journal.db")

    @contextlib.asynccontextmanager
    async def head(self, name: str = "head", journal: str | None = None) -> AsyncIterator[Process]:
        source = SOURCE.format(name=name, journal=journal or self.journal)
        async with process(self.scripts, source, self.url) as orchestrator:
            await orchestrator.says("is online")
            yield orchestrator

    def ask(self, agent: str | None = "head", ttl_s: float = 30.0, **fields: object) -> asyncio.Future[Reply]:
        return asyncio.ensure_future(
            self.asker.ask("Tell me", service=ORCHESTRATION, agent=agent, ttl_s=ttl_s, plan=PLAN, **fields)
        )


@pytest.fixture
async def boat(tmp_path: Path, mosquitto: Broker) -> AsyncIterator[Boat]:
    url = mosquitto.info.url
    async with client().running(url) as asker:
        boat = Boat(tmp_path, url, asker)

        def sensor(name: str, service: str, handle: Callable[[Request], Awaitable[Answer]]) -> Agent:
            agent = Agent(name)
            agent.service(service, description=service, concurrency=8)(handle)
            return agent

        async def wind(request: Request) -> Answer:
            boat.asked.append("wind")
            return Answer("20 knots", confidence=0.9, usage=Usage(cost_usd=0.25))

        async def depth(request: Request) -> Answer:
            boat.asked.append("depth")
            await boat.deep.wait()
            return Answer("4 metres", confidence=boat.confidence)

        async with sensor("wind-1", WIND, wind).running(url), sensor("depth-1", DEPTH, depth).running(url):
            yield boat


async def until_noted(boat: Boat, kinds: set[str], count: int = 1) -> None:
    """Waits until the only task's history has these kinds of entries, so many of the last."""
    journal = await open_journal(boat.journal, "")
    try:
        async with asyncio.timeout(10):
            while True:
                for task in await journal.tasks():
                    found = await journal.task(task.key)
                    if found is not None and kinds <= {entry.kind for entry in found[1]}:
                        return
                await asyncio.sleep(0.02)
    finally:
        await journal.close()


async def test_a_task_outlives_its_orchestrator(boat: Boat) -> None:
    async with client("spy").running(boat.url) as other, boat.head() as head:
        spy = await Watcher().watch(other.transport, "reply.gpt/@asker/#")
        answer = boat.ask()
        await until_noted(boat, {"plan", "step"})
        await eventually(lambda: len(boat.asked) == 2)
        head.send(signal.SIGKILL)
        await head.ended()
        async with boat.head():
            await asyncio.sleep(0.5)
            boat.deep.set()
            reply = await answer
        await spy.until(lambda: any(decode(Reply, m.payload).last for m in spy.seen))
    assert sorted((reply.output or "").splitlines()) == ["20 knots [@wind-1]", "4 metres [@depth-1]"]
    assert [step.number for step in reply.steps] == [1, 2]
    assert reply.plan is not None
    assert reply.plan.origin == "request"
    # The wind was known, and the depth gauge is still at work on what it was asked.
    assert sorted(boat.asked) == ["depth", "wind"]
    assert len([m for m in spy.seen if decode(Reply, m.payload).last]) == 1


async def test_what_an_agent_has_finished_meanwhile_is_not_done_again(boat: Boat) -> None:
    async with boat.head() as head:
        answer = boat.ask()
        await until_noted(boat, {"plan", "step"})
        await eventually(lambda: len(boat.asked) == 2)
        head.send(signal.SIGKILL)
        await head.ended()
        boat.deep.set()
    async with boat.head():
        reply = await answer
    assert "4 metres" in (reply.output or "")
    assert sorted(boat.asked) == ["depth", "wind"]


async def test_an_answer_from_a_life_before_that_can_not_be_trusted_is_put_to_another_agent(boat: Boat) -> None:
    boat.confidence = 0.2
    async with boat.head() as head:
        answer = boat.ask()
        await until_noted(boat, {"plan", "step"})
        await eventually(lambda: len(boat.asked) == 2)
        head.send(signal.SIGKILL)
        await head.ended()
    other = Agent("depth-2")

    @other.service(DEPTH, description=DEPTH)
    async def depth(request: Request) -> Answer:
        return Answer("5 metres", confidence=0.9)

    boat.deep.set()
    async with other.running(boat.url), boat.head():
        reply = await answer
    assert "5 metres [@depth-2]" in (reply.output or "").splitlines()
    assert sorted(boat.asked) == ["depth", "wind"]


async def test_another_orchestrator_takes_over(boat: Boat) -> None:
    async with boat.head("head-2"), boat.head("head-1") as head:
        registry = await boat.asker.follow()
        await known(lambda: len(registry.offers(ORCHESTRATION)) == 2)
        answer = boat.ask("head-1")
        await until_noted(boat, {"plan", "step"})
        await eventually(lambda: len(boat.asked) == 2)
        head.send(signal.SIGKILL)
        await head.ended()
        boat.deep.set()
        reply = await answer
    assert reply.agent == "head-2"
    assert sorted((reply.output or "").splitlines()) == ["20 knots [@wind-1]", "4 metres [@depth-1]"]
    assert boat.asked.count("wind") == 1


@pytest.mark.slow
async def test_orchestrators_that_share_no_journal_take_over_from_each_other_too(boat: Boat) -> None:
    journals = [str(boat.folder / f"{name}.db") for name in ("one", "two")]
    async with boat.head("head-1", journals[0]) as one, boat.head("head-2", journals[1]) as two:
        requester = Requester(boat.asker.transport, "asker-2")
        await requester.start()
        request = requester.new_request("Tell me", plan=PLAN, ttl_ms=9000)
        answer = asyncio.ensure_future(requester.ask(request_topic(ORCHESTRATION), request))
        await eventually(lambda: len(boat.asked) == 2)
        journal = await open_journal(journals[0], "")
        first = one if await journal.tasks() else two
        await journal.close()
        first.send(signal.SIGKILL)
        await first.ended()
        boat.deep.set()
        assert (await answer).agent == ("head-2" if first is one else "head-1")
        await requester.stop()


async def test_what_was_spent_counts_in_the_next_life(boat: Boat) -> None:
    boat.deep.set()
    async with boat.head():
        await boat.ask(budget_usd=1.0)
        journal = await open_journal(boat.journal, "")
        (task,) = await journal.tasks()
        found = await journal.task(task.key)
        await journal.close()
    assert found is not None
    replies = [entry.facts for entry in found[1] if entry.kind == "reply"]
    assert sorted(reply["cost_usd"] for reply in replies) == [0.0, 0.25]
    assert {"plan", "dispatch", "reply", "step"} == {entry.kind for entry in found[1]}


async def test_a_diary_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = await open_journal(str(tmp_path / "journal.db"), "head/1")
    secret = await journal.secret()
    task = NewTask("reply.gpt/@asker/one", ORCHESTRATION, b"{}", 30_000)
    await journal.accept(task)
    diary = Diary(TaskLog(journal, task.key), secret)
    first, second = diary.dispatched(1, "wind-1", WIND), diary.dispatched(2, "depth-1", DEPTH)
    assert first is not None and second is not None and len({first, second}) == 2
    diary.replied(1, "wind-1", first, "ok", 0.25)
    diary.ended(Step(number=1, text="?", service=WIND, agent="wind-1"), Reply(id=first, output="20 knots"), 0.9)
    await journal.answer("reply.gpt/@asker/other", None, "ok")  # what was noted before is written with it
    found = await journal.task(task.key)
    assert found is not None
    again = Diary(TaskLog(journal, task.key, found[1]), secret)
    assert again.spent_usd == 0.25
    assert (again.answered[1].reply.output, again.answered[1].relevance) == ("20 knots", 0.9)
    assert again.unanswered == {1: [], 2: [Dispatch("depth-1", DEPTH, second)]}
    assert (
        Asking(
            Agent("head"), Request(id="one", reply_to=task.key, input="?", budget_usd=1.0), lambda *_: 0.5, again
        ).budget_usd
        == 0.75
    )
    # Asked once more, it is another request; asked as before, by another life, it is the same.
    assert again.dispatched(2, "depth-1", DEPTH) != second
    assert Diary(TaskLog(journal, task.key), secret).dispatched(1, "wind-1", WIND) == first
    await journal.close()


async def test_without_a_journal_a_diary_remembers_nothing() -> None:
    diary = Diary()
    assert diary.dispatched(1, "wind-1", WIND) is None
    diary.replied(1, "wind-1", None, "ok", 0.25)
    assert (diary.spent_usd, diary.answered, diary.plan) == (0.0, {}, None)
