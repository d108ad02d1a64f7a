"""What an orchestrator learns of outcomes, whom it blames, and what it takes a note of."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
from fleet import client, known, on

from mqttcollab import Agent, Answer, Request, RequestError
from mqttcollab.classifiers.answers import DefaultJudge
from mqttcollab.classifiers.chain import default_classifiers
from mqttcollab.classifiers.skill import SkillBook
from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import AgentView, Offer
from mqttcollab.cooperation import agree
from mqttcollab.messages import (
    MAX_STEP_TEXT,
    ErrorInfo,
    PlanStep,
    Relevance,
    Reply,
    ServiceRecord,
    Step,
    Usage,
    Verdict,
)
from mqttcollab.orchestrator import OrchestratorOptions, orchestrator_agent
from mqttcollab.orchestrator.aggregate import with_sources
from mqttcollab.orchestrator.decide import Decider, all_in_words
from mqttcollab.orchestrator.learn import Learner, note_verdicts
from mqttcollab.orchestrator.orchestrator import Orchestrator
from mqttcollab.orchestrator.placing import Attempt
from mqttcollab.orchestrator.subtask import Outcome
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.topics import ORCHESTRATION, Status
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

pytest.importorskip("wordllama", reason="finding services by meaning takes wordllama: pip install 'mqttcollab[embed]'")

ADVICE, OTHER = "knowledge.gpt/advice", "knowledge.gpt/other"
QUESTION = "May I sail a small boat today?"


@pytest.fixture(scope="module", autouse=True)
def _embedder() -> None:
    """Reads the files once, outside of any event loop."""
    default_classifiers(load_embedder("wordllama"))


def offer(name: str, service: str = ADVICE) -> Offer:
    view = AgentView(name, status=Status("online", 1))
    return Offer(ServiceRecord(agent=name, service=service, examples=[QUESTION]), view)


def failed(name: str, code: str, seconds: float = 10.0, service: str = ADVICE) -> Attempt:
    return Attempt(offer(name, service), seconds, error=ErrorInfo(code=code, message="no"))


def said(name: str, text: str, confidence: float | None = None, service: str = ADVICE) -> Attempt:
    reply = Reply(id="x", output=text, confidence=confidence, service=service, usage=Usage(completion_tokens=5))
    return Attempt(offer(name, service), 10.0, reply=reply)


def skills(*attempts: Attempt, polled: bool = False) -> SkillBook:
    book = SkillBook()
    outcome = Outcome(Step(service=ADVICE, text=QUESTION), attempts=[] if polled else list(attempts))
    votes = [(a.offer.agent.name, a.reply, 1.0) for a in attempts if a.reply is not None]
    if len(votes) > 1:
        outcome.consensus = agree(votes)
    note_verdicts(book, DefaultJudge(), outcome)
    return book


def right(book: SkillBook, agent: str, service: str = ADVICE) -> float:
    return book.expected(agent, service).probability


def test_an_honest_no_is_no_failure_unless_another_of_the_service_has_an_answer() -> None:
    assert skills(failed("a", "no_capability")).verdicts("a", ADVICE) == 0
    elsewhere = said("general", "sail", service="knowledge.gpt/general")
    assert skills(failed("a", "no_capability"), elsewhere).verdicts("a", ADVICE) == 0
    assert skills(failed("a", "no_capability"), said("b", "sail")).verdicts("a", ADVICE) == 1


def test_who_got_no_time_was_not_slow() -> None:
    assert skills(failed("a", "deadline_exceeded", 0.01)).verdicts("a", ADVICE) == 0
    assert skills(failed("a", "deadline_exceeded", 10)).verdicts("a", ADVICE) == 1


@pytest.mark.parametrize("polled", [False, True])
def test_stating_more_is_not_being_right(polled: bool) -> None:
    book = skills(said("loud", "sail", 1.0), said("modest", "stay in the harbour", 0.3), polled=polled)
    assert right(book, "loud") == right(book, "modest")
    three = skills(said("a", "sail"), said("b", "stay in the harbour"), said("c", "paint the hull"), polled=polled)
    assert max(right(three, name) for name in "abc") == min(right(three, name) for name in "abc") < 0.65


def test_the_majority_is_believed_and_a_verdict_goes_to_the_service_that_was_asked() -> None:
    liar = said("liar", "stay in the harbour", 1.0)
    assert liar.reply is not None
    liar.reply.service = OTHER
    book = skills(said("a", "sail"), said("b", "sail"), liar)
    assert right(book, "a") == right(book, "b") > right(book, "liar")
    assert (book.verdicts("liar", ADVICE), book.verdicts("liar", OTHER)) == (1, 0)


def test_what_agents_took_that_were_asked_at_once_is_in_the_usage() -> None:
    one, other = said("a", "sail"), said("b", "stay in the harbour")
    assert one.reply is not None and other.reply is not None
    votes = agree([("a", one.reply, 1.0), ("b", other.reply, 1.0)])
    step = Step(service=ADVICE, agent="a", text=QUESTION, verdict=Verdict(score=1, probability=0.8, reason=""))
    usage = with_sources([Outcome(step, one.reply, consensus=votes)]).usage
    assert usage is not None and usage.completion_tokens == 10


def request(question: str, plan: list[PlanStep] | None = None) -> Request:
    return Request(id="q", reply_to="reply.gpt/@a/q", input=question, plan=plan)


async def test_a_plan_whose_texts_grow_is_shown_cut() -> None:
    services = ("data.gpt/wind", "data.gpt/air", ADVICE)
    offers = [offer("a", service) for service in services]
    classifiers = default_classifiers(load_embedder("wordllama"))
    classifiers.domains.learn([one.record for one in offers])
    plan = [PlanStep(text=QUESTION), *(PlanStep(text=f"{i} {'#1 ' * 1300}", service=services[0]) for i in range(3))]
    decider = Decider(classifiers, decomposer=None, knowledge=None, fallback=None)
    decision = await decider.decide(request("?", plan), offers)
    assert max(len(step.text) for step in decision.plan.steps) == MAX_STEP_TEXT
    assert max(len(step.text) for step in decision.steps) > MAX_STEP_TEXT


def test_a_question_too_long_for_a_step_is_not_all_in_words() -> None:
    assert all_in_words(request("a" * 2000))
    assert not all_in_words(request("a" * 2001))


class Slow:
    """Learns the first records slowly, and anything later at once."""

    gap_threshold = 0.5

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.known: list[Sequence[ServiceRecord]] = []

    def learn(self, records: Sequence[ServiceRecord]) -> None:
        if not records:
            self.may_end.wait(10)
        self.known.append(records)

    def relevance(self, question: str) -> list[Relevance]:
        return []

    def touched(self, question: str) -> list[Relevance]:
        return []

    def gap(self, question: str) -> Verdict:
        return Verdict(score=0, probability=0, reason="")


async def test_who_gives_up_waiting_leaves_no_older_records_behind(memory_broker: MemoryBroker) -> None:
    registry, domains = Registry(MemoryTransport(memory_broker, "x")), Slow()
    learner = Learner(registry, domains, lambda record: True)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await learner.offers()
        view = offer("a").agent
        view.records[ADVICE] = offer("a").record
        registry.agents["a"] = view
        later = asyncio.create_task(learner.offers())
        await asyncio.sleep(0.05)
        domains.may_end.set()
        await later
        assert [len(records) for records in domains.known] == [0, 1]
    finally:
        await learner.stop()


def adviser(name: str, answer: Answer | RequestError, service: str = ADVICE) -> Agent:
    agent = Agent(name)

    @agent.service(service, description="Says whether to sail", examples=[QUESTION, "Is sailing safe?"])
    async def advise(request: Request) -> Answer:
        if isinstance(answer, RequestError):
            raise answer
        return answer

    return agent


@contextlib.asynccontextmanager
async def asked(
    broker: MemoryBroker, *agents: Agent, options: OrchestratorOptions | None = None
) -> AsyncIterator[tuple[Agent, Orchestrator]]:
    boss = orchestrator_agent("boss", load_embedder("wordllama"), options=options)
    asker = client()
    async with contextlib.AsyncExitStack() as stack:
        for agent in (*agents, boss, asker):
            await stack.enter_async_context(agent.running(on(broker)))
        for agent in agents:
            await known(lambda name=agent.name: boss.registry.agents[name].records)
        orchestrator = boss.services[ORCHESTRATION]
        assert isinstance(orchestrator, Orchestrator)
        yield asker, orchestrator


@pytest.mark.parametrize(("sum_", "count"), [("2 + 2 = 4", 1), ("2 + 2 = 5", 0)])
async def test_what_can_not_be_trusted_is_not_remembered(memory_broker: MemoryBroker, sum_: str, count: int) -> None:
    async with asked(memory_broker, adviser("a", Answer(sum_, confidence=1.0))) as (asker, orchestrator):
        await asker.ask("What is 2 + 2?", service=ORCHESTRATION, plan=[{"text": "What is 2 + 2?", "service": ADVICE}])
        assert orchestrator.knowledge is not None
        assert len(orchestrator.knowledge) == count


async def test_where_all_who_vote_decline_the_general_model_answers(memory_broker: MemoryBroker) -> None:
    general = "knowledge.gpt/general"
    no = RequestError("no_capability", "not in the book")
    agents = (adviser("a", no), adviser("b", no), adviser("g", Answer("stay"), general))
    async with asked(memory_broker, *agents, options=OrchestratorOptions(answers=2)) as (asker, _):
        reply = await asker.ask(QUESTION, service=ORCHESTRATION)
    assert (reply.output or "").startswith("stay")
    assert [(step.agent, step.status, step.error) for step in reply.steps] == [("g", "ok", None)]


async def test_one_who_is_busy_is_asked_again_before_a_general_model(memory_broker: MemoryBroker) -> None:
    no, tries = RequestError("busy", "too many ask"), []
    able = Agent("a")

    @able.service(ADVICE, description="Says whether to sail", examples=[QUESTION, "Is sailing safe?"])
    async def advise(request: Request) -> Answer:
        tries.append(request.id)
        if len(tries) < 3:
            raise no
        return Answer("sail")

    general = adviser("g", Answer("stay"), "knowledge.gpt/general")
    async with asked(memory_broker, able, general) as (asker, _):
        reply = await asker.ask(QUESTION, service=ORCHESTRATION)
    assert (reply.output, len(tries)) == ("sail", 3)
