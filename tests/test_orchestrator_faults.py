"""The orchestrator where agents are busy, silent or lost, and where two share the work; its dispatcher alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import ByName, Watcher, client, known, on, process
from harness import LIMIT_S, Setup, eventually

from mqttcollab import Agent, AgentOptions, Answer, ConfigError, ContextItem, Reply, Request, RequestError
from mqttcollab.broker import Broker
from mqttcollab.classifiers.answers import DefaultJudge
from mqttcollab.cms.views import AgentView, Offer
from mqttcollab.messages import Candidate, Parameters, PlanStep, ServiceRecord
from mqttcollab.orchestrator import Orchestrator, OrchestratorOptions, orchestrator_agent
from mqttcollab.orchestrator.asking import Asking, Question
from mqttcollab.orchestrator.decide import PlannedStep
from mqttcollab.orchestrator.dispatch import Dispatcher
from mqttcollab.orchestrator.schedule import LiveFleet, Ranked
from mqttcollab.orchestrator.subtask import Means, Outcome
from mqttcollab.orchestrator.trust import Trust
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.scheduling import Scheduler
from mqttcollab.topics import ORCHESTRATION
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker

pytest.importorskip("wordllama", reason="finding services by meaning takes wordllama: pip install 'mqttcollab[embed]'")

WIND, AIR, ADVICE = "data.gpt/weather/wind", "data.gpt/weather/air", "knowledge.gpt/sailing"
QUESTION = "How strong is the wind?"


@pytest.fixture(scope="module", autouse=True)
def _embedder() -> None:
    load_embedder("wordllama")  # before the event loop runs; it is kept


def agent_that(name: str, service: str, handle: Callable[[Request], object], **options: float) -> Agent:
    """An agent whose service is found by the question."""
    agent = Agent(name, options=AgentOptions(**options))  # type: ignore[arg-type]
    agent.service(service, description="wind", examples=[QUESTION], concurrency=4)(handle)  # type: ignore[arg-type]
    return agent


def saying(name: str, service: str, text: str) -> Agent:
    async def say(request: Request) -> str:
        return text

    return agent_that(name, service, say)


@contextlib.asynccontextmanager
async def city(
    place: Setup | MemoryBroker | str, *agents: Agent, options: OrchestratorOptions | None = None, others: int = 0
) -> AsyncIterator[tuple[Agent, Agent]]:
    """Runs agents and an orchestrator; yields one who asks, and the orchestrator once it knows so many services."""
    broker = place if isinstance(place, str) else on(place)
    async with contextlib.AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(agent.running(broker))
        head = orchestrator_agent("head", load_embedder("wordllama"), options=options)
        await stack.enter_async_context(head.running(broker))
        registry = await head.follow()
        wanted = sum(len(agent.services) for agent in [*agents, head]) + others
        await known(lambda: len(registry.offers()) == wanted)
        yield await stack.enter_async_context(client().running(broker)), head


# Over brokers


async def test_data_then_knowledge_on_every_broker(setup: Setup) -> None:
    async def advise(request: Request) -> Answer:
        return Answer(f"{request.context[0].text} is too much", data={"speed": 20}, confidence=0.9)

    advice = agent_that("sailor", ADVICE, advise)
    async with city(setup, saying("wind-1", WIND, "20 m/s"), advice) as (asker, _):
        parts: list[Reply] = []
        reply = await asker.ask(QUESTION, service=ORCHESTRATION, on_part=parts.append)
    assert (reply.output or "").splitlines() == ["20 m/s is too much [@sailor]", "20 m/s [@wind-1]"]
    assert [step.agent for part in parts for step in part.steps] == ["wind-1", "sailor"]
    assert reply.data == {ADVICE: {"speed": 20}}
    assert reply.confidence == pytest.approx(0.7 * 0.9)  # where nobody says how sure it is, 0.7 is taken
    assert reply.missing == []
    assert all(step.elapsed_ms is not None and step.start_ms is not None for step in reply.steps)


async def test_an_agent_that_is_killed_is_named_where_nobody_can_take_over(mosquitto: Broker, tmp_path: Path) -> None:
    source = f"""
import asyncio
from mqttcollab import Agent
agent = Agent("air-1")
@agent.service({AIR!r}, description="wind", examples=[{QUESTION!r}])
async def air(request):
    print("asked", flush=True)
    await asyncio.sleep(3600)
agent.run()
"""

    async def advise(request: Request) -> str:
        return "given: " + ", ".join(f"{item.text} of @{item.agent}" for item in request.context)

    url = mosquitto.info.url
    agents = [saying("wind-1", WIND, "5 m/s"), agent_that("sailor", ADVICE, advise)]
    async with process(tmp_path, source, url) as doomed, city(url, *agents, others=1) as (asker, _):
        # Where it alone has what is missing, it gets some seconds to come back: its connection may have broken.
        ask = asyncio.create_task(asker.ask(QUESTION, service=ORCHESTRATION, ttl_s=3))
        await doomed.says("asked")
        doomed.send(signal.SIGKILL)
        reply = await ask
    assert (reply.output or "").startswith("given: 5 m/s of @wind-1 [@sailor]\n5 m/s [@wind-1]\nMissing: ")
    [missing] = reply.missing
    assert missing.startswith(f"{AIR} (@air-1: ")
    assert {step.agent: step.status for step in reply.steps} == {"wind-1": "ok", "sailor": "ok", "air-1": "error"}


async def test_busy_agents_are_passed_over_and_named_where_all_are(mosquitto: Broker) -> None:
    gate, holding = asyncio.Event(), asyncio.Semaphore(0)

    def full(name: str) -> Agent:
        agent = Agent(name, options=AgentOptions(queue_size=0))

        @agent.service(WIND, description="wind", examples=[QUESTION])
        async def hold(request: Request) -> str:
            holding.release()
            await gate.wait()
            return f"@{name}"

        return agent

    url, options = mosquitto.info.url, OrchestratorOptions(policy=ByName())
    agents = [full("a-full"), full("b-full"), saying("air-1", AIR, "clean")]
    async with city(url, *agents, options=options) as (asker, head):
        held = [asyncio.create_task(asker.ask("?", service=WIND, agent=name)) for name in ("a-full", "b-full")]
        for _ in held:
            await holding.acquire()
        reply = await asker.ask(QUESTION, service=ORCHESTRATION, ttl_s=10)
        assert (reply.output or "").startswith("clean [@air-1]\nMissing: ")
        assert reply.missing[0].startswith(f"{WIND} (@a-full: busy, ")
        registry = await head.follow()
        async with saying("c-free", WIND, "5 m/s").running(url):
            await known(lambda: len(registry.offers(WIND)) == 3)
            reply = await asker.ask(QUESTION, service=ORCHESTRATION, ttl_s=10)
            assert {step.agent for step in reply.steps} == {"c-free", "air-1"}
            assert reply.missing == []
        gate.set()
        await asyncio.gather(*held)


async def test_another_agent_takes_over_from_one_that_never_answers(mosquitto: Broker) -> None:
    given_up = asyncio.Event()

    async def silent(request: Request) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return ""

    agents = [agent_that("a-silent", WIND, silent), saying("b-quick", WIND, "5 m/s")]
    async with city(mosquitto.info.url, *agents, options=OrchestratorOptions(policy=ByName())) as (asker, _):
        reply = await asker.ask(QUESTION, service=ORCHESTRATION, ttl_s=1)
        assert (reply.output, reply.steps[0].agent, reply.missing) == ("5 m/s", "b-quick", [])
        async with asyncio.timeout(LIMIT_S):
            await given_up.wait()


async def test_what_waits_for_data_that_never_comes_still_has_its_time(mosquitto: Broker) -> None:
    async def silent(request: Request) -> str:
        await asyncio.Event().wait()
        return ""

    async def advise(request: Request) -> str:
        assert request.context == []
        await asyncio.sleep(0.1)
        return "stay ashore"

    agents = [agent_that("wind-1", WIND, silent), agent_that("sailor", ADVICE, advise)]
    async with city(mosquitto.info.url, *agents) as (asker, _):
        reply = await asker.ask(QUESTION, service=ORCHESTRATION, ttl_s=1)
    assert (reply.output or "").startswith("stay ashore [@sailor]\nMissing: data.gpt/weather/wind (@wind-1: deadline_")
    assert [(step.agent, step.status) for step in reply.steps] == [("wind-1", "error"), ("sailor", "ok")]


async def test_two_orchestrators_share_what_is_asked_of_nobody_in_particular(mosquitto: Broker) -> None:
    url = mosquitto.info.url
    second = orchestrator_agent("head-2", load_embedder("wordllama"))
    async with second.running(url), city(url, saying("wind-1", WIND, "5 m/s"), others=2) as (asker, _):
        registry = await second.follow()
        await known(lambda: registry.offers(WIND))
        watcher = await Watcher().watch(asker.transport, "reply.gpt/@small-1/+")
        for number in range(10):
            request = {"type": "mqttcollab.request.v1", "id": f"q{number}", "reply_to": f"reply.gpt/@small-1/q{number}"}
            payload = json.dumps({**request, "input": QUESTION}).encode()
            await asker.transport.publish(TransportMessage(f"{ORCHESTRATION}/request", payload))
        await watcher.until(lambda: len(watcher.last) == 10)
        replies = [json.loads(message.payload) for message in watcher.seen]
    assert len(replies) == 10  # each is answered once
    assert all(reply["output"] == "5 m/s" for reply in replies)
    assert {reply["agent"] for reply in replies} == {"head", "head-2"}


async def test_a_question_keeps_its_trace_tenant_session_and_wishes(memory_broker: MemoryBroker) -> None:
    got: list[Request] = []

    async def keep(request: Request) -> str:
        got.append(request)
        return "ok"

    item = ContextItem(text="I am on a lake")
    async with city(memory_broker, agent_that("wind-1", WIND, keep)) as (asker, _):
        await asker.ask(
            {"text": QUESTION, "unit": "kn"},
            service=ORCHESTRATION,
            context=[item],
            tenant="harbour",
            session="s-1",
            may_leave_edge=False,
            traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
            ttl_s=10,
        )
    [request] = got
    assert request.input == {"text": QUESTION, "unit": "kn"}
    assert (request.tenant, request.session, request.may_leave_edge, request.hops) == ("harbour", "s-1", False, 1)
    assert request.context == [item]
    assert (request.traceparent or "").split("-")[1] == "0123456789abcdef0123456789abcdef"
    assert request.ttl_ms < 10_000


async def test_progress_says_how_it_failed(memory_broker: MemoryBroker) -> None:
    asked = asyncio.Event()

    async def refuse(request: Request) -> str:
        if request.parameters.seed == 1:
            asked.set()
            await asyncio.Event().wait()
        raise RequestError("no_capability", "the mast is down")

    async with city(memory_broker, agent_that("wind-1", WIND, refuse)) as (asker, _):
        watcher = await Watcher().watch(asker.transport, "slm/inference/#")

        def told(key: str) -> list[str]:
            return [m.payload.decode() for m in watcher.seen if m.topic.endswith(f"/{key}") and m.payload]

        with pytest.raises(RequestError, match="the mast is down"):
            await asker.ask(QUESTION, service=ORCHESTRATION)
        await watcher.until(lambda: len(told("status")) == 3)
        running, step, failed = told("status")
        assert (running, step) == ("running", "failed no_capability: the mast is down")
        assert failed.startswith("failed no_capability: nobody who was asked could answer")
        keys = [m.topic.split("/", 3)[3] for m in watcher.seen]
        assert keys[:5] == ["question", "complexity", "gap", "plan", "status"]
        assert keys[-2:] == ["steps/1/status", "status"]

        ask = asyncio.create_task(
            asker.ask(QUESTION, service=ORCHESTRATION, agent="head", parameters=Parameters(seed=1))
        )
        await asked.wait()
        ask.cancel()
        await watcher.until(lambda: told("status")[-1].startswith("failed cancelled"))
        await asyncio.gather(ask, return_exceptions=True)


async def test_a_plan_that_can_not_be_run_is_an_error_at_once(memory_broker: MemoryBroker) -> None:
    plan = [PlanStep(text=QUESTION, after=[2]), PlanStep(text="Is #1 too much?")]
    async with city(memory_broker, saying("wind-1", WIND, "5 m/s")) as (asker, _):
        with pytest.raises(RequestError, match="wait for each other in a circle") as caught:
            await asker.ask(QUESTION, service=ORCHESTRATION, plan=plan)
        assert caught.value.code == "bad_request"


async def test_an_orchestrator_lives_again(memory_broker: MemoryBroker) -> None:
    head = orchestrator_agent("head", load_embedder("wordllama"))
    async with saying("wind-1", WIND, "5 m/s").running(on(memory_broker)), client().running(on(memory_broker)) as asker:
        for _ in range(2):
            async with head.running(on(memory_broker)):
                assert (await asker.ask(QUESTION, service=ORCHESTRATION, agent="head")).output == "5 m/s"
            assert not any("slm/inference" in topic for topic in memory_broker.retained)


def test_an_orchestrator_takes_an_embedder() -> None:
    with pytest.raises(ConfigError, match=r"@head: .*give its agent an embedder"):
        Orchestrator(Agent("head"))


async def test_many_questions_at_once(mosquitto: Broker) -> None:
    agents = [saying("wind-1", WIND, "5 m/s"), saying("air-1", AIR, "clean")]
    async with city(mosquitto.info.url, *agents) as (asker, _):
        asks = [asker.ask(QUESTION, service=ORCHESTRATION, agent="head") for _ in range(30)]
        for reply in await asyncio.gather(*asks):
            assert set((reply.output or "").splitlines()) == {"5 m/s [@wind-1]", "clean [@air-1]"}


# The dispatcher alone, with a function that answers


def offer(name: str, service: str = WIND) -> Ranked:
    candidate = Candidate(agent=name, service=service, score=0.7, probability=0.7, reason="")
    return Ranked(Offer(ServiceRecord(agent=name, service=service), AgentView(name)), candidate)


@dataclass(slots=True, kw_only=True)
class Answering(Asking):
    """Asks a function instead of agents."""

    answer: Callable[[Offer, Question], Awaitable[Reply]]

    async def one(
        self, offer: Offer, question: Question, *, wait_s: float | None = None, again: str | None = None
    ) -> Reply:
        return await self.answer(offer, question)


REQUEST = Request(id="q", reply_to="reply.gpt/@a/q", input=QUESTION)


class Bench:
    """A dispatcher, and what it is run with."""

    def __init__(self, agent: Agent, scheduler: Scheduler, dispatch: Dispatcher) -> None:
        self.agent = agent
        self.book = scheduler.book
        self.dispatch = dispatch

    def own(self) -> dict[str, int]:
        """How many requests each agent has of ours, where it has any."""
        fleet = self.book.fleet(self.book.candidates(range(len(self.book))), 0.0)
        return {fleet.name(n): int(own) for n, own in enumerate(fleet.rows["own"]) if own}

    def run(
        self, plan: Sequence[PlannedStep], answer: Callable[[Offer, Question], Awaitable[Reply]], seconds: float = 8.0
    ) -> AsyncGenerator[Outcome, None]:
        asking = Answering(self.agent, REQUEST, lambda agent, service: 0.7, answer=answer)
        return self.dispatch.run(plan, asking, asyncio.get_running_loop().time() + seconds)


@contextlib.asynccontextmanager
async def bench(broker: MemoryBroker, trust: float = 0.5) -> AsyncIterator[Bench]:
    async with client().running(on(broker)) as agent:
        registry, scheduler = await agent.follow(), Scheduler(ByName())
        live = LiveFleet(registry, scheduler)
        try:
            yield Bench(agent, scheduler, Dispatcher(Means(registry, live, Trust(DefaultJudge(), trust), 0.5)))
        finally:
            live.stop()


async def test_a_chain_shares_the_time_that_is_left(memory_broker: MemoryBroker) -> None:
    given: dict[str, float] = {}

    async def answer(to: Offer, question: Question) -> Reply:
        given[to.record.service] = question.seconds
        return Reply(id="x", output=to.record.service)

    names = ("data.gpt/a", "computation.gpt/b", "knowledge.gpt/c", "data.gpt/d")
    needs = (frozenset[int](), frozenset({1}), frozenset({2}), frozenset[int]())
    plan = [
        PlannedStep(n, "?", name, after, (offer("x", name),))
        for n, (name, after) in enumerate(zip(names, needs, strict=True), 1)
    ]
    async with bench(memory_broker) as test:
        found = [o async for o in test.run(plan, answer, 9.0)]
    assert given["data.gpt/a"] <= 3.0 < given["computation.gpt/b"] <= 4.5 < given["knowledge.gpt/c"] <= 9.0
    assert given["data.gpt/d"] > 8.0
    order = [o.step.service for o in found if o.step.service != "data.gpt/d"]
    assert order == list(names[:3])


async def test_agents_are_counted_while_they_work_and_only_then(memory_broker: MemoryBroker) -> None:
    seen: list[dict[str, int]] = []

    async def answer(to: Offer, question: Question) -> Reply:
        seen.append(test.own())
        if to.agent.name == "a":
            raise RequestError("busy", "full")
        return Reply(id="x", output="ok", confidence=0.6)

    async with bench(memory_broker) as test:
        [found] = [o async for o in test.run([PlannedStep(1, "?", WIND, ranked=(offer("b"), offer("a")))], answer)]
        assert seen == [{"a": 1}, {"b": 1}]
        assert not test.own()
    assert (found.step.status, found.step.agent, found.step.error, found.step.confidence) == ("ok", "b", None, 0.6)


async def test_three_agents_are_tried_and_the_first_error_is_told(memory_broker: MemoryBroker) -> None:
    tried: list[str] = []

    async def answer(to: Offer, question: Question) -> Reply:
        tried.append(to.agent.name)
        raise RequestError("internal", f"@{to.agent.name} is broken")

    plan = [
        PlannedStep(1, "?", WIND, ranked=tuple(offer(name) for name in "dcba")),
        PlannedStep(2, "?", AIR, reason="nobody has air"),
    ]
    async with bench(memory_broker) as test:
        found = {o.step.service: o.step async for o in test.run(plan, answer)}
    assert tried == ["a", "b", "c"]
    assert found[WIND].error is not None
    assert (found[WIND].status, found[WIND].error.message) == ("error", "@a is broken")
    assert found[AIR].error is not None
    assert (found[AIR].status, found[AIR].error.code, found[AIR].error.message) == (
        "error",
        "no_capability",
        "nobody has air",
    )


async def test_an_answer_that_can_not_be_trusted_is_put_to_another_and_the_better_one_is_taken(
    memory_broker: MemoryBroker,
) -> None:
    said = {"a": ("maybe 5", 0.2), "b": ("surely 9", 0.9), "c": ("never asked", 1.0)}

    async def answer(to: Offer, question: Question) -> Reply:
        text, confidence = said[to.agent.name]
        return Reply(id="x", output=text, confidence=confidence)

    async with bench(memory_broker) as test:
        plan = [PlannedStep(1, "?", WIND, ranked=tuple(offer(name) for name in said))]
        [found] = [o async for o in test.run(plan, answer)]
    assert [attempt.offer.agent.name for attempt in found.attempts] == ["a", "b"]
    assert found.step.agent == "b"
    assert found.consensus is not None
    assert found.consensus.disagreements == ("@a: maybe 5; but @b: surely 9",)


async def test_the_spare_is_asked_only_where_nobody_else_answers(memory_broker: MemoryBroker) -> None:
    async def answer(to: Offer, question: Question) -> Reply:
        if to.agent.name == "declining":
            raise RequestError("no_capability", "not in the book")
        return Reply(id="x", output=f"@{to.agent.name}", confidence=0.1)

    spare = (offer("general", "knowledge.gpt/general"),)
    plan = [
        PlannedStep(1, "?", ADVICE, ranked=(offer("declining", ADVICE),), spare=spare),
        PlannedStep(2, "?", ADVICE, ranked=(offer("unsure", ADVICE),), spare=spare),
    ]
    async with bench(memory_broker) as test:
        found = {o.step.number: o.step async for o in test.run(plan, answer)}
    assert (found[1].agent, found[1].service) == ("general", "knowledge.gpt/general")
    assert (found[2].agent, found[2].service) == ("unsure", ADVICE)


async def test_who_stops_reading_stops_the_work(memory_broker: MemoryBroker) -> None:
    cancelled = asyncio.Event()

    async def answer(to: Offer, question: Question) -> Reply:
        if to.record.service == WIND:
            return Reply(id="x", output="5 m/s")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    plan = [PlannedStep(1, "?", WIND, ranked=(offer("a"),)), PlannedStep(2, "?", AIR, ranked=(offer("b", AIR),))]
    async with bench(memory_broker) as test:
        running = test.run(plan, answer, 60)
        assert (await anext(running)).step.service == WIND
        await eventually(lambda: test.own() == {"b": 1})
        await running.aclose()
        assert cancelled.is_set()
        assert not test.own()
