"""The orchestrator where there is more to do than agents: waiting, the cloud, stragglers, tenants, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from fleet import client, known
from harness import LIMIT_S, eventually

from mqttcollab import Agent, AgentOptions, Answer, Reply, Request, RequestError, Service, Usage
from mqttcollab.broker import Broker
from mqttcollab.orchestrator import Orchestrator, OrchestratorOptions, orchestrator_agent
from mqttcollab.rpc import Requester
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.topics import ORCHESTRATION, agent_topic, request_topic
from mqttcollab.transport.base import TransportMessage

pytest.importorskip("wordllama", reason="finding services by meaning takes wordllama: pip install 'mqttcollab[embed]'")

TIDES, WIND, CLOUD = "knowledge.gpt/tides", "data.gpt/weather/wind", "computation.gpt/cloud"
GENERAL = "knowledge.gpt/general"
QUESTION, WINDY = "When is high tide in the harbour?", "How strong is the wind?"
EXAMPLES = {
    TIDES: [QUESTION, "When is low tide?"],
    WIND: [WINDY, "Is it windy?"],
    CLOUD: ["Anything"],
    GENERAL: ["Anything"],
}


@pytest.fixture(scope="module", autouse=True)
def _embedder() -> None:
    load_embedder("wordllama")  # before the event loop runs; it is kept


class Worker(Service):
    """An agent's only service; answers when its gate is open."""

    concurrency = 1

    def __init__(self, name: str, service: str = TIDES) -> None:
        self.name = service  # type: ignore[misc]
        self.description, self.examples = EXAMPLES[service][0], EXAMPLES[service]  # type: ignore[misc]
        self.agent = Agent(name)
        self.agent.add(self)
        self.asked: list[Request] = []
        self.given_up: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, request: Request) -> Answer:
        """Says who it is, with a confidence that is believed."""
        self.asked.append(request)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.append(request.text)
            raise
        usage = Usage(prompt_tokens=10, completion_tokens=20, cost_usd=0.002) if self.leaves_edge else None
        return Answer(f"@{self.agent.name}", confidence=0.9, usage=usage)


class Slow(Worker):
    """Takes its time."""

    takes_s = 0.4

    async def handle(self, request: Request) -> Answer:
        """As a worker, later."""
        await asyncio.sleep(self.takes_s)
        return await super().handle(request)


def cloud(name: str = "cloud-1", service: str = CLOUD) -> Worker:
    worker = Worker(name, service)
    worker.leaves_edge, worker.completion_usd_per_mtok = True, 60.0
    worker.concurrency = 8  # type: ignore[misc]
    return worker


async def everybody_is_known(head: Agent, workers: Sequence[Worker]) -> None:
    registry = await head.follow()
    await known(lambda: {worker.agent.name for worker in workers} <= {offer.agent.name for offer in registry.offers()})


class City:
    """An orchestrator, those who work for it, and one who asks."""

    def __init__(self, asker: Agent, heads: list[Agent]) -> None:
        self.asker = asker
        self.heads = heads

    @property
    def orchestrator(self) -> Orchestrator:
        service = self.heads[0].services[ORCHESTRATION]
        assert isinstance(service, Orchestrator)
        return service

    def ask(
        self, question: str = QUESTION, *, head: str = "head-0", ttl_s: float = 10.0, **fields: object
    ) -> asyncio.Task[Reply]:
        asking = self.asker.ask(question, service=ORCHESTRATION, agent=head, ttl_s=ttl_s, **fields)
        return asyncio.create_task(asking)


@asynccontextmanager
async def city(url: str, *workers: Worker, heads: int = 1, **options: object) -> AsyncIterator[City]:
    chosen = OrchestratorOptions(**{"strong": CLOUD, "share": False, **options})  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:
        for worker in workers:
            stack.callback(worker.gate.set)
            await stack.enter_async_context(worker.agent.running(url))
        agents = [orchestrator_agent(f"head-{n}", load_embedder("wordllama"), options=chosen) for n in range(heads)]
        for agent in agents:
            await stack.enter_async_context(agent.running(url))
            await everybody_is_known(agent, workers)
        yield City(await stack.enter_async_context(client().running(url)), agents)


def dear(name: str, service: str = TIDES, price_usd: float = 0.5) -> Worker:
    worker = Worker(name, service)
    worker.agent.update(service, price_usd=price_usd)
    return worker


def text(reply: Reply) -> str:
    return (reply.output or "").split("\n")[0].split(" [")[0]


async def occupied(test: City, worker: Worker, **fields: object) -> asyncio.Task[Reply]:
    """Has a worker's only slot taken by a question of somebody's."""
    worker.gate.clear()
    before = len(worker.asked)
    task = test.ask(**fields)  # type: ignore[arg-type]
    await eventually(lambda: len(worker.asked) > before)
    return task


async def test_a_full_edge_goes_to_the_cloud_and_says_what_it_cost(mosquitto: Broker) -> None:
    harbour, far = Worker("harbour-1"), cloud()
    async with city(mosquitto.info.url, harbour, far, patience_s=0.2) as test:
        assert text(await test.ask()) == "@harbour-1"
        first = await occupied(test, harbour)
        reply = await test.ask()
        assert text(reply) == "@cloud-1"
        assert reply.usage is not None and reply.usage.cost_usd == pytest.approx(0.002)
        assert "no agent is free" in (reply.steps[0].reason or "")
        harbour.gate.set()
        assert text(await first) == "@harbour-1"
    assert len(far.asked) == 1


async def test_what_must_not_leave_the_edge_does_not_and_says_so(mosquitto: Broker) -> None:
    harbour, far = Worker("harbour-1"), cloud()
    async with city(mosquitto.info.url, harbour, far, patience_s=0.2) as test:
        first = await occupied(test, harbour)
        with pytest.raises(RequestError, match="the question must not leave the edge") as refused:
            await test.ask(may_leave_edge=False)
        assert refused.value.code == "busy"
        harbour.gate.set()
        await first
        assert text(await test.ask(may_leave_edge=False)) == "@harbour-1"
    assert not far.asked


async def test_a_budget_of_zero_pays_for_no_cloud(mosquitto: Broker) -> None:
    harbour, far = Worker("harbour-1"), cloud()
    async with city(mosquitto.info.url, harbour, far, patience_s=0.2) as test:
        assert text(await test.ask(budget_usd=0.0)) == "@harbour-1"
        first = await occupied(test, harbour)
        with pytest.raises(
            RequestError, match=r"the cloud would cost 0\.\d+ US dollars of a budget of 0\.0000"
        ) as refused:
            await test.ask(budget_usd=0.0)
        assert refused.value.code == "quota_exceeded"
        harbour.gate.set()
        await first
    assert not far.asked


async def test_a_measurement_is_not_to_be_had_from_the_cloud(mosquitto: Broker) -> None:
    vane, far = Worker("vane-1", WIND), cloud()
    async with city(mosquitto.info.url, vane, far, patience_s=0.2) as test:
        first = await occupied(test, vane, question=WINDY)
        with pytest.raises(RequestError, match="no agent is free"):
            await test.ask(WINDY)
        vane.gate.set()
        await first
    assert not far.asked


async def test_a_request_waits_for_a_slot_while_it_may(mosquitto: Broker) -> None:
    harbour, far = Worker("harbour-1"), cloud()
    async with city(mosquitto.info.url, harbour, far, patience_s=8.0) as test:
        first = await occupied(test, harbour)
        second = test.ask()
        await eventually(lambda: test.orchestrator.waiting == 1)
        harbour.gate.set()
        assert [text(await first), text(await second)] == ["@harbour-1", "@harbour-1"]
        assert test.orchestrator.waiting == 0
    assert not far.asked


async def test_who_is_late_gets_another_beside_it_and_is_given_up(mosquitto: Broker) -> None:
    slow, quick = Worker("a-slow"), Worker("b-quick")
    async with city(mosquitto.info.url, slow) as test:
        for _ in range(4):  # how long it takes is learnt
            assert text(await test.ask()) == "@a-slow"
        async with quick.agent.running(mosquitto.info.url):
            registry = await test.heads[0].follow()
            await known(lambda: len(registry.offers(TIDES)) == 2)
            held = await occupied(test, quick)  # who is not yet known is tried first; now only the slow one is free
            slow.gate.clear()
            asked = test.ask(ttl_s=20)
            await eventually(lambda: len(slow.asked) == 5)
            quick.gate.set()
            reply = await asked
            assert text(reply) == text(await held) == "@b-quick"
            await eventually(lambda: slow.given_up == [QUESTION])


async def test_a_tenant_that_floods_does_not_keep_others_waiting(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, patience_s=30.0) as test:
        flood = [await occupied(test, harbour, tenant="port", ttl_s=30)]
        flood += [test.ask(tenant="port", ttl_s=30) for _ in range(8)]
        await eventually(lambda: test.orchestrator.waiting == 8)
        others = [test.ask(tenant="coast guard", ttl_s=30) for _ in range(2)]
        await eventually(lambda: test.orchestrator.waiting == 10)
        harbour.gate.set()
        await asyncio.gather(*flood, *others)
    order = [request.tenant for request in harbour.asked]
    assert order.count("coast guard") == 2
    assert "coast guard" in order[1:3] and order[:6].count("coast guard") == 2


async def test_higher_priority_goes_first(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, patience_s=30.0) as test:
        tasks = [await occupied(test, harbour, ttl_s=30)]
        for waiting, priority in enumerate((1, 4, 9, 4), 1):
            tasks.append(test.ask(priority=priority, ttl_s=30))
            await eventually(lambda waiting=waiting: test.orchestrator.waiting == waiting)  # type: ignore[misc]
        harbour.gate.set()
        await asyncio.gather(*tasks)
    assert [request.priority for request in harbour.asked] == [4, 9, 4, 4, 1]


async def test_what_can_not_be_done_in_time_is_refused_before_anybody_is_asked(mosquitto: Broker) -> None:
    harbour = Slow("harbour-1")
    async with city(mosquitto.info.url, harbour) as test:
        for _ in range(3):
            assert text(await test.ask()) == "@harbour-1"
        with pytest.raises(RequestError, match=r"no agent would be done in less than 0\.[45] s") as refused:
            await test.ask(ttl_s=0.3)
        assert refused.value.code == "deadline_exceeded"
    assert len(harbour.asked) == 3


async def test_several_orchestrators_spread_over_a_fleet_they_share(mosquitto: Broker) -> None:
    workers = [Worker(f"harbour-{n}") for n in range(6)]
    async with city(mosquitto.info.url, *workers, heads=3, patience_s=8.0) as test:
        for worker in workers:
            worker.gate.clear()
        tasks = [test.ask(head=f"head-{n % 3}", ttl_s=20) for n in range(6)]
        async with asyncio.timeout(LIMIT_S):
            await eventually(lambda: all(len(worker.asked) == 1 for worker in workers))
        for worker in workers:
            worker.gate.set()
        assert sorted(map(text, await asyncio.gather(*tasks))) == [f"@harbour-{n}" for n in range(6)]


@pytest.mark.parametrize(("budget_usd", "asked"), [(0.6, 1), (1.2, 2)])
async def test_a_budget_holds_though_parts_are_asked_at_once(mosquitto: Broker, budget_usd: float, asked: int) -> None:
    workers = [dear("harbour-1", TIDES), dear("vane-1", WIND)]
    async with city(mosquitto.info.url, *workers) as test:
        reply = await test.ask(f"{QUESTION} {WINDY}", budget_usd=budget_usd)
        given = [request.budget_usd for worker in workers for request in worker.asked]
        assert given == [0.5] * asked and len(reply.missing) == 2 - asked


async def test_who_charges_by_the_token_waits_for_what_another_does_not_need(mosquitto: Broker) -> None:
    workers = [Worker("harbour-1"), Worker("vane-1", WIND)]
    for worker in workers:
        worker.completion_usd_per_mtok = 10.0
    async with city(mosquitto.info.url, *workers) as test:
        assert not (await test.ask(f"{QUESTION} {WINDY}", budget_usd=0.5)).missing
    assert [request.budget_usd for worker in workers for request in worker.asked] == [0.5, 0.5]


async def test_a_vote_keeps_within_the_budget(mosquitto: Broker) -> None:
    workers = [dear("harbour-1"), dear("harbour-2"), dear("harbour-3")]
    async with city(mosquitto.info.url, *workers, answers=2) as test:
        await test.ask(budget_usd=0.6)
    assert sum(len(worker.asked) for worker in workers) == 1


async def test_where_everybody_charges_more_than_the_budget_it_says_so(mosquitto: Broker) -> None:
    harbour = dear("harbour-1")
    async with city(mosquitto.info.url, harbour) as test:
        with pytest.raises(RequestError, match=r"charge more than the budget, 0\.1 US") as refused:
            await test.ask(budget_usd=0.1)
    assert refused.value.code == "quota_exceeded" and not harbour.asked


async def test_nobody_who_charges_is_put_beside_who_is_late(mosquitto: Broker) -> None:
    clouds = [cloud(), cloud("cloud-2")]
    async with city(mosquitto.info.url, *clouds) as test:
        for worker in clouds:
            worker.gate.clear()
        with pytest.raises(RequestError):
            await test.ask("Tell me about ancient Rome", ttl_s=1.5)  # over half of it is a tier's share
    assert sum(len(worker.asked) for worker in clouds) == 1


async def test_a_record_that_leaves_the_edge_meanwhile_is_heeded(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, patience_s=8.0) as test:
        first = await occupied(test, harbour)
        second = test.ask(may_leave_edge=False)
        await eventually(lambda: test.orchestrator.waiting == 1)
        harbour.leaves_edge = True
        harbour.agent.update(TIDES, description="High tide, by a cloud")
        registry = await test.heads[0].follow()
        await known(lambda: registry.agents["harbour-1"].records[TIDES].leaves_edge)
        harbour.gate.set()
        await first
        with pytest.raises(RequestError, match="@harbour-1 passes it on to a cloud"):
            await second
    assert len(harbour.asked) == 1


@pytest.mark.parametrize("terms", [{"may_leave_edge": False}, {"budget_usd": 0.0}])
async def test_a_phrasing_is_on_the_terms_of_the_question(mosquitto: Broker, terms: dict[str, object]) -> None:
    harbour, far = Worker("harbour-1"), cloud()
    async with city(mosquitto.info.url, harbour, far, phrasing=CLOUD) as test:
        reply = await test.ask(**terms)  # type: ignore[arg-type]
        assert text(reply) == "@harbour-1" and "a phrasing by" in reply.missing[0]
    assert not far.asked


async def test_nobody_notes_for_others_what_must_not_leave_the_edge(mosquitto: Broker) -> None:
    async with city(mosquitto.info.url, Worker("harbour-1"), share=True) as test:
        knowledge = test.orchestrator.knowledge
        assert knowledge is not None
        await test.ask(may_leave_edge=False)
        assert not knowledge.questions()
        await test.ask()
        assert knowledge.questions() == [QUESTION]


async def test_where_there_is_a_cloud_only_the_edge_is_named_as_the_reason(mosquitto: Broker) -> None:
    far = cloud()
    async with city(mosquitto.info.url, far) as test:
        with pytest.raises(RequestError, match="the question must not leave the edge") as refused:
            await test.ask(may_leave_edge=False)
        assert refused.value.code == "no_capability"
        with pytest.raises(RequestError, match="charges more than the budget, and there is nobody else"):
            await test.ask(budget_usd=0.0)
    assert not far.asked


async def test_a_peer_does_not_pass_it_to_a_cloud_either(mosquitto: Broker) -> None:
    far = cloud()
    async with city(mosquitto.info.url, far) as test:
        with pytest.raises(RequestError, match=r"must not leave the edge; only a cloud \(@cloud-1\) offers it"):
            await test.asker.ask("Anything", service=CLOUD, may_leave_edge=False)
    assert not far.asked


async def test_a_cloud_among_the_agents_of_a_service_is_their_last(mosquitto: Broker) -> None:
    harbour, far = Worker("harbour-1"), cloud(service=TIDES)
    async with city(mosquitto.info.url, harbour, far, patience_s=0.2, strong=None) as test:
        for _ in range(4):
            assert text(await test.ask()) == "@harbour-1"
        first = await occupied(test, harbour)
        assert text(await test.ask()) == "@cloud-1"
        harbour.gate.set()
        await first


async def test_a_slow_agent_is_not_passed_over_for_its_share_of_the_time(mosquitto: Broker) -> None:
    harbour, far = Slow("harbour-1"), cloud()
    spare = [Worker(f"general-{n}", GENERAL) for n in range(2)]
    async with city(mosquitto.info.url, harbour, far, *spare, patience_s=0.0) as test:
        for _ in range(3):
            assert text(await test.ask()) == "@harbour-1"
        assert text(await test.ask(ttl_s=1.1)) == "@harbour-1"  # a third of it would be too little


async def test_an_error_of_the_cloud_is_told(mosquitto: Broker) -> None:
    class Broken(Worker):
        async def handle(self, request: Request) -> Answer:
            raise RequestError("quota_exceeded", "the limit over all is 1 USD a day")

    harbour, far = Worker("harbour-1"), Broken("cloud-1", CLOUD)
    far.leaves_edge = True
    async with city(mosquitto.info.url, harbour, far, patience_s=0.2) as test:
        first = await occupied(test, harbour)
        with pytest.raises(
            RequestError,
            match="no agent is free, and the strong model: @cloud-1: quota_exceeded, the limit over all is",
        ):
            await test.ask()
        harbour.gate.set()
        await first


async def test_who_wakes_is_asked_while_requests_wait(mosquitto: Broker) -> None:
    harbour, far = Worker("harbour-1"), cloud()
    async with city(mosquitto.info.url, harbour, far, patience_s=8.0) as test:
        await harbour.agent.sleep()
        registry = await test.heads[0].follow()
        await known(lambda: registry.agents["harbour-1"].asleep)
        asked = test.ask()
        await eventually(lambda: test.orchestrator.waiting == 1)
        await harbour.agent.wake()
        assert text(await asked) == "@harbour-1"


async def test_a_sleeper_is_asked_before_a_request_is_refused(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, patience_s=0.1) as test:
        await harbour.agent.sleep()
        registry = await test.heads[0].follow()
        await known(lambda: registry.agents["harbour-1"].asleep)
        reply = await test.ask()  # Mosquitto keeps it until the agent wakes; this one is a light sleeper
        assert text(reply) == "@harbour-1" and "sleeps" in (reply.steps[0].reason or "")


async def test_two_requesters_may_use_the_same_id(mosquitto: Broker) -> None:
    harbour, other = Worker("harbour-1"), client("other")
    async with city(mosquitto.info.url, harbour, patience_s=8.0) as test, other.running(mosquitto.info.url):
        harbour.gate.clear()
        tasks = []
        for asker in (test.asker, other):
            request = Request(id="same", reply_to=f"reply.gpt/@{asker.name}/same", input=QUESTION, ttl_ms=9000)
            requester = Requester(asker.transport, asker.name)
            await requester.start()
            tasks.append(asyncio.create_task(requester.ask(request_topic(ORCHESTRATION, "head-0"), request)))
        await eventually(lambda: test.orchestrator.waiting == 1)
        harbour.gate.set()
        assert [text(reply) for reply in await asyncio.gather(*tasks)] == ["@harbour-1", "@harbour-1"]


async def test_an_orchestrator_that_stops_leaves_nobody_at_work(mosquitto: Broker) -> None:
    harbour, options = Worker("harbour-1"), OrchestratorOptions(patience_s=8.0)
    url, embedder = mosquitto.info.url, load_embedder("wordllama")
    head = orchestrator_agent("head-0", embedder, options=options, agent_options=AgentOptions(grace_s=0.1))
    async with harbour.agent.running(url), client().running(url) as asker:
        await head.start(url)
        await everybody_is_known(head, [harbour])
        test = City(asker, [head])
        tasks = [await occupied(test, harbour), *(test.ask() for _ in range(3))]
        orchestrator = test.orchestrator
        await eventually(lambda: orchestrator.waiting == 3)
        await head.stop()
        for failed in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(failed, RequestError) and failed.code == "cancelled"
        assert orchestrator.waiting == 0
        await eventually(lambda: harbour.given_up == [QUESTION])


@pytest.mark.parametrize(
    "load",
    [
        '"running": -1, "slots": 1',
        '"running": NaN, "slots": 1',
        '"running": 10, "slots": 1',
    ],
)
async def test_an_agent_whose_load_is_impossible_is_asked_all_the_same(
    mosquitto: Broker, load: str, caplog: pytest.LogCaptureFixture
) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, patience_s=0.0) as test:
        registry = await test.heads[0].follow()
        report = f'{{"type": "mqttcollab.load.v1", "agent": "harbour-1", {load}, "completed": 77}}'
        topic = agent_topic("harbour-1", "load")
        message = TransportMessage(topic, report.encode(), 0, True, content_type="application/json")
        await test.asker.transport.publish(message)
        await eventually(
            lambda: (
                topic in registry.problems
                or (registry.agents["harbour-1"].load is not None and registry.agents["harbour-1"].load.completed == 77)
            )
        )
        assert text(await test.ask()) == "@harbour-1"
