"""Asking peers: by name, wildcard, agent and meaning; another one where the first is busy or lost; circles."""

from __future__ import annotations

import asyncio

import pytest
from fleet import ECHO, client, echo_agent, known, on, together
from harness import LIMIT_S, Setup, eventually

from mqttcollab import (
    Agent,
    AgentOptions,
    ConfigError,
    DeadlineExceeded,
    Request,
    RequestError,
    TopicError,
    TransportError,
)
from mqttcollab.broker import Broker
from mqttcollab.runtimes.base import Embedder
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.transport.memory import MemoryBroker

AID = "knowledge.gpt/medicine/first-aid"
HEART = "data.gpt/health/heart-rate"


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return load_embedder("wordllama")


def adviser(name: str = "medic-2", service: str = AID) -> Agent:
    agent = Agent(name)

    @agent.service(service, description="First aid advice", examples=["What do I do about a burn?"])
    async def advise(request: Request) -> str:
        return f"@{name} advises"

    return agent


def watch() -> Agent:
    agent = Agent("watch-7")

    @agent.service(HEART, description="Heart rate of the wearer", examples=["What is my heart rate?"])
    async def measure(request: Request) -> str:
        return "59/min"

    return agent


def blocked(name: str, gate: asyncio.Event, **options: float) -> tuple[Agent, asyncio.Event]:
    """An agent that holds its requests until the gate opens, and an event that says that it has one."""
    agent, begun = Agent(name, options=AgentOptions(**options)), asyncio.Event()  # type: ignore[arg-type]

    @agent.service(ECHO)
    async def wait(request: Request) -> str:
        begun.set()
        await gate.wait()
        return f"@{name}"

    return agent, begun


# Whom


async def test_by_name_wildcard_and_agent(setup: Setup) -> None:
    async with together(setup, adviser(), watch(), echo_agent("echo-1"), echo_agent("echo-2")) as asker:
        assert (await asker.ask("?", service=AID)).agent == "medic-2"
        assert (await asker.ask("?", service="knowledge.gpt/medicine/#")).agent == "medic-2"
        assert (await asker.ask("?", service="data.gpt/+/+")).agent == "watch-7"
        assert (await asker.ask("?", service=ECHO, agent="echo-2")).agent == "echo-2"
        assert (await asker.ask("?", service="knowledge.gpt/#", agent="echo-1")).agent == "echo-1"
        assert (await asker.ask("?", agent="watch-7")).output == "59/min"  # its only service


async def test_by_meaning(memory_broker: MemoryBroker, embedder: Embedder) -> None:
    two = adviser("two-in-one")
    two.service(HEART, description="Heart rate of a patient", examples=["What is the heart rate of the patient?"])(
        lambda request: "80/min"
    )
    async with (
        two.running(on(memory_broker)),
        watch().running(on(memory_broker)),
        echo_agent().running(on(memory_broker)),
        client(embedder=embedder).running(on(memory_broker)) as asker,
    ):
        assert (await asker.ask("My hand has a burn, what do I do?")).service == AID
        assert (await asker.ask({"text": "How high is my heart rate?"})).agent == "watch-7"
        # Who names the agent gets that one's nearest service, however far that is.
        assert (await asker.ask("How high is my heart rate?", agent="two-in-one")).output == "80/min"
        assert (await asker.ask("Why is the sky blue?", agent="two-in-one")).agent == "two-in-one"
        with pytest.raises(
            RequestError, match=r"nothing|close to the question: the closest is .* name a service"
        ) as far:
            await asker.ask("Who won the world cup of 1998?")
        assert far.value.code == "no_capability"


async def test_meaning_takes_an_embedder(memory_broker: MemoryBroker) -> None:
    async with together(memory_broker, adviser(), watch()) as asker:
        with pytest.raises(ConfigError, match=r"embedder.*mqttcollab\[embed\]"):
            await asker.ask("What do I do about a burn?")


@pytest.mark.parametrize(
    ("whom", "words"),
    [
        (
            {"service": "knowledge.gpt/law"},
            f"no agent that is online offers knowledge.gpt/law; on offer: {HEART}, {AID}",
        ),
        ({"service": "computation.gpt/#"}, "no agent that is online offers computation.gpt/#; on offer"),
        ({"service": "knowledge.gpt/+", "agent": "medic-2"}, "no agent @medic-2 that is online offers knowledge.gpt/+"),
        ({"agent": "nobody"}, "no agent @nobody that is online offers a service; on offer"),
    ],
)
async def test_nobody_offers_it(memory_broker: MemoryBroker, whom: dict[str, str], words: str) -> None:
    async with together(memory_broker, adviser(), watch()) as asker:
        with pytest.raises(RequestError) as caught:
            await asker.ask("?", **whom)  # type: ignore[arg-type]
        assert caught.value.code == "no_capability"
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_nobody_is_there(setup: Setup, embedder: Embedder) -> None:
    async with client(embedder=embedder).running(on(setup)) as asker:
        for service in (ECHO, None):
            with pytest.raises(RequestError, match="nobody else is there") as caught:
                await asker.ask("?", service=service)
            assert caught.value.code == "no_capability"


async def test_nobody_listens_there(mosquitto: Broker) -> None:
    async with client().running(mosquitto.info.url) as asker:
        with pytest.raises(RequestError, match="nobody listens") as caught:
            await asker.ask("?", service=ECHO, agent="gone-1")
        assert caught.value.code == "no_capability"


@pytest.mark.parametrize("service", ["knowledge.gpt", "Knowledge.gpt/x", "knowledge.gpt/a b", ""])
async def test_a_name_that_does_not_parse(memory_broker: MemoryBroker, service: str) -> None:
    async with client().running(on(memory_broker)) as asker:
        for agent in (None, "medic-2"):
            with pytest.raises(TopicError, match="service name"):
                await asker.ask("?", service=service, agent=agent)


async def test_an_agent_does_not_ask_itself_by_name_or_meaning(memory_broker: MemoryBroker, embedder: Embedder) -> None:
    agent = Agent("medic-2", embedder=embedder)

    @agent.service(AID, description="First aid advice", examples=["What do I do about a burn?"])
    async def advise(request: Request) -> str:
        return (await agent.ask(request.text, service=AID if request.parameters.max_tokens else None)).agent or ""

    async with together(memory_broker, agent, adviser("medic-3")) as asker:
        question = "What do I do about a burn?"
        assert (await asker.ask(question, service=AID, agent="medic-2")).output == "medic-3"


async def test_the_least_loaded_is_asked(setup: Setup) -> None:
    gate = asyncio.Event()
    busy, begun = blocked("busy-1", gate, heartbeat_s=0.05)
    async with busy.running(on(setup)), client().running(on(setup)) as asker:
        registry = await asker.follow()
        first = asyncio.create_task(asker.ask("?", service=ECHO))
        await begun.wait()
        await eventually(lambda: (load := registry.agents["busy-1"].load) is not None and load.running == 1)
        async with echo_agent("free-1").running(on(setup)):
            await known(lambda: len(registry.offers(ECHO)) == 2)
            for _ in range(3):
                assert (await asker.ask("?", service=ECHO)).agent == "free-1"
            gate.set()
            assert (await first).agent == "busy-1"


# Another one


async def test_another_is_asked_where_the_first_is_busy_or_has_nothing(memory_broker: MemoryBroker) -> None:
    gate = asyncio.Event()
    busy, begun = blocked("a-busy", gate, queue_size=0)
    empty = Agent("b-empty")

    @empty.service(ECHO)
    async def nothing(request: Request) -> str:
        raise RequestError("no_capability", "nothing on that")

    async with together(memory_broker, busy, empty, echo_agent("c-free")) as asker:
        registry = await asker.follow()
        holding = asyncio.create_task(asker.ask("?", service=ECHO, agent="a-busy"))
        await begun.wait()
        assert [offer.agent.name for offer in registry.offers(ECHO)] == ["a-busy", "b-empty", "c-free"]
        assert (await asker.ask("?", service=ECHO)).agent == "c-free"
        gate.set()
        await holding


async def test_all_are_busy(memory_broker: MemoryBroker) -> None:
    gate = asyncio.Event()
    agents = [blocked(name, gate, queue_size=0) for name in ("a", "b")]
    async with together(memory_broker, *(agent for agent, _ in agents)) as asker:
        holding = [asyncio.create_task(asker.ask("?", service=ECHO, agent=name)) for name in ("a", "b")]
        for _, begun in agents:
            await begun.wait()
        with pytest.raises(RequestError, match="@b has 1 requests running") as caught:
            await asker.ask("?", service=ECHO)
        assert caught.value.code == "busy"
        assert caught.value.retry_after_ms
        gate.set()
        await asyncio.gather(*holding)


async def test_an_error_of_its_own_is_not_tried_elsewhere(memory_broker: MemoryBroker) -> None:
    asked = []

    def failing(name: str) -> Agent:
        agent = Agent(name)

        @agent.service(ECHO)
        async def fail(request: Request) -> str:
            asked.append(name)
            raise RequestError("quota_exceeded", "no more today")

        return agent

    async with together(memory_broker, failing("a"), failing("b")) as asker:
        with pytest.raises(RequestError, match="no more today"):
            await asker.ask("?", service=ECHO)
    assert len(asked) == 1


async def test_another_is_asked_where_the_first_is_lost(setup: Setup) -> None:
    gate = asyncio.Event()
    agents = {name: blocked(name, gate) for name in ("a", "b")}
    async with together(setup, *(agent for agent, _ in agents.values())) as asker:
        registry = await asker.follow()
        await known(lambda: len(registry.offers(ECHO)) == 2)
        agent, begun = agents.pop(registry.offers(ECHO)[0].agent.name)
        [(other, (_, taken_over))] = agents.items()
        ask = asyncio.create_task(asker.ask("?", service=ECHO))
        await begun.wait()
        will = agent.presence.will
        await agent.transport.close()
        await asker.transport.publish(will)  # as the broker does when the connection is lost
        await taken_over.wait()
        gate.set()
        assert (await ask).output == f"@{other}"


async def test_nobody_is_left_where_the_only_one_is_reborn(setup: Setup) -> None:
    """It remembers nothing of the request: waiting for its answer would be in vain."""
    gate = asyncio.Event()
    agent, begun = blocked("a", gate)
    async with together(setup, agent) as asker:
        ask = asyncio.create_task(asker.ask("?", service=ECHO))
        await begun.wait()
        agent.presence.epoch += 1
        await agent.presence.say("online")
        with pytest.raises(RequestError, match="@a went offline before it answered") as caught:
            await ask
        assert caught.value.code == "no_capability"
        gate.set()


async def test_two_first_questions_at_once_both_find_everybody(setup: Setup) -> None:
    async with together(setup, echo_agent()) as asker:
        replies = await asyncio.gather(*(asker.ask(str(n), service=ECHO) for n in range(10)))
        assert [reply.output for reply in replies] == [f"@echo-1: {n}" for n in range(10)]


async def test_a_first_question_while_the_broker_is_away_waits_for_it(setup: Setup) -> None:
    async with together(setup, echo_agent()) as asker:
        await setup.go_away()
        await eventually(lambda: not asker.transport.online)
        with pytest.raises(DeadlineExceeded, match="no connection"):
            await asker.ask("?", service=ECHO, ttl_s=0.1)
        ask = asyncio.create_task(asker.ask("hello", service=ECHO))
        await setup.come_back()
        try:
            assert (await ask).output == "@echo-1: hello"
        except RequestError as error:  # the agent took longer to come back than we did
            assert error.code == "no_capability"
            registry = await asker.follow()
            await known(lambda: registry.offers(ECHO))
            assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"


async def test_stopping_ends_what_it_asks(setup: Setup) -> None:
    gate = asyncio.Event()
    agent, begun = blocked("a", gate)
    async with agent.running(on(setup)):
        async with client().running(on(setup)) as asker:
            asks = [asyncio.create_task(asker.ask("?", service=ECHO, agent=name)) for name in ("a", None)]
            await begun.wait()
        for error in await asyncio.wait_for(asyncio.gather(*asks, return_exceptions=True), LIMIT_S):
            assert isinstance(error, TransportError | RequestError)
        gate.set()


# Circles


async def test_questions_asked_on_the_way_carry_on_what_they_come_from(setup: Setup) -> None:
    seen: list[Request] = []
    middle = Agent("middle-1")

    @middle.service("knowledge.gpt/middle")
    async def pass_on(request: Request) -> str:
        seen.append(request)
        return (await middle.ask(request.text, service=ECHO)).output or ""

    end = Agent("end-1")

    @end.service(ECHO)
    async def answer(request: Request) -> str:
        seen.append(request)
        return "end"

    async with together(setup, middle, end) as asker:
        reply = await asker.ask("?", service="knowledge.gpt/middle", tenant="city", may_leave_edge=False)
        assert reply.output == "end"
    first, second = seen
    assert (first.hops, second.hops) == (0, 1)
    assert first.traceparent
    assert second.traceparent
    assert first.traceparent.split("-")[1] == second.traceparent.split("-")[1]
    assert first.traceparent.split("-")[2] != second.traceparent.split("-")[2]
    assert (second.tenant, second.may_leave_edge) == ("city", False)


async def test_circles_end(setup: Setup) -> None:
    handled = []

    def passing(name: str, to: str) -> Agent:
        agent = Agent(name)

        @agent.service(f"knowledge.gpt/{name}", concurrency=16)
        async def pass_on(request: Request) -> str:
            handled.append(request.hops)
            return (await agent.ask(request.text, service=f"knowledge.gpt/{to}", agent=to)).output or ""

        return agent

    async with together(setup, passing("ping", "pong"), passing("pong", "ping")) as asker:
        with pytest.raises(RequestError, match="circles") as caught:
            await asker.ask("?", service="knowledge.gpt/ping", agent="ping")
        assert caught.value.code == "bad_request"
    assert handled == list(range(9))
