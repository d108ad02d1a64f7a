"""What a device author writes: services in every form, observations, repeated work; and what stops at the end."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from fleet import ECHO, Watcher, client, echo_agent, on, together
from harness import MqttSetup, Setup, eventually

from mqttcollab import (
    Agent,
    AgentOptions,
    Answer,
    ConfigError,
    ContextItem,
    DeadlineExceeded,
    MqttCollabError,
    Reply,
    Request,
    RequestError,
    Service,
    Source,
    Step,
    TopicError,
)
from mqttcollab.broker import Broker
from mqttcollab.codec import decode
from mqttcollab.messages import Embedding, Load, Observation, Profile, ServiceRecord
from mqttcollab.runtimes.base import Embedder
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker

HEART = "data.gpt/health/heart-rate"


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return load_embedder("wordllama")


# Forms of a handler


class Shout(Service):
    name = ECHO
    description = "Says it loudly"
    examples: ClassVar = ["Shout hello"]

    async def handle(self, request: Request) -> str:
        return request.text.upper()


class Callable:
    async def __call__(self, request: Request) -> str:
        return request.text.upper()


async def with_words(request: Request, end: str) -> str:
    return request.text.upper() + end


async def in_parts(request: Request) -> AsyncIterator[str | None]:
    for letter in request.text:
        yield None
        yield letter.upper()


async def in_parts_with_answer(request: Request) -> AsyncIterator[str | Answer]:
    yield "..."
    yield Answer(text=request.text.upper(), confidence=0.5)


def plain(request: Request) -> str:
    assert threading.current_thread() is not threading.main_thread()
    return request.text.upper()


@pytest.mark.parametrize(
    "handler", [plain, in_parts, in_parts_with_answer, Callable(), functools.partial(with_words, end="")]
)
async def test_a_handler_may_be(memory_broker: MemoryBroker, handler: Any) -> None:
    agent = Agent("a")
    agent.service(ECHO, description="Says it loudly")(handler)
    async with together(memory_broker, agent) as asker:
        assert (await asker.ask("hello", service=ECHO)).output == "HELLO"


async def test_a_service_may_be_a_class(setup: Setup) -> None:
    agent = Agent("a", place="hall")
    agent.add(Shout())
    async with together(setup, agent) as asker:
        reply = await asker.ask({"text": "hello", "volume": 11}, service=ECHO)
        assert (reply.output, reply.agent, reply.service) == ("HELLO", "a", ECHO)


async def test_parts_come_in_order_and_the_last_reply_has_the_whole(setup: Setup) -> None:
    agent = Agent("a")
    agent.service(ECHO)(in_parts)
    parts: list[Reply] = []
    async with together(setup, agent) as asker:
        reply = await asker.ask("hello", service=ECHO, on_part=parts.append)
    assert [part.output for part in parts if part.output] == list("HELLO")
    assert [part.seq for part in parts] == list(range(10))
    assert reply.output == "HELLO"


async def test_a_plain_function_does_not_hold_up_the_agent(memory_broker: MemoryBroker) -> None:
    agent, gate = Agent("a"), threading.Event()
    agent.service("knowledge.gpt/slow")(lambda request: str(gate.wait(20)))
    agent.service(ECHO)(plain)
    async with together(memory_broker, agent) as asker:
        slow = asyncio.create_task(asker.ask("?", service="knowledge.gpt/slow"))
        assert (await asker.ask("quick", service=ECHO)).output == "QUICK"
        assert not slow.done()
        gate.set()
        assert (await slow).output == "True"


async def test_plain_functions_that_never_return_keep_their_places(memory_broker: MemoryBroker) -> None:
    agent, gate, running = Agent("a", options=AgentOptions(grace_s=0.1)), threading.Event(), []

    @agent.service(ECHO, concurrency=2)
    def stuck(request: Request) -> str:
        running.append(request.text)
        gate.wait(20)
        return "free"

    async with together(memory_broker, agent) as asker:
        asks = [asker.ask(str(n), service=ECHO, agent="a", ttl_s=0.2) for n in range(5)]
        assert all(isinstance(e, DeadlineExceeded) for e in await asyncio.gather(*asks, return_exceptions=True))
        assert len(running) == 2
        gate.set()
        assert (await asker.ask("again", service=ECHO)).output == "free"


async def test_plain_functions_that_never_return_do_not_cut_the_agent_off(mosquitto: Broker) -> None:
    """Connecting takes a thread too: it must not wait for theirs."""
    agent, gate, setup = echo_agent(), threading.Event(), MqttSetup(mosquitto, "5")
    started = threading.Semaphore(0)

    @agent.service("knowledge.gpt/stuck", concurrency=40)
    def stuck(request: Request) -> str:
        started.release()
        return str(gate.wait(20))

    async with agent.running(on(setup)), client().running(on(setup)) as asker:
        asks = [asyncio.create_task(asker.ask("?", service="knowledge.gpt/stuck")) for _ in range(40)]
        for _ in asks:
            await asyncio.to_thread(started.acquire)
        await mosquitto.restart()
        assert (await asker.ask("hello", service=ECHO, agent="echo-1")).output == "@echo-1: hello"
        gate.set()
        assert [(await ask).output for ask in asks] == ["True"] * 40
    await setup.close()


@pytest.mark.parametrize(
    ("result", "words"),
    [(42, "TypeError"), (None, "TypeError"), (Answer(text="?", confidence=1.5), "ValidationError")],
)
async def test_a_wrong_result_is_an_error_at_once(memory_broker: MemoryBroker, result: Any, words: str) -> None:
    agent = Agent("a")

    @agent.service(ECHO)
    async def wrong(request: Request) -> Any:
        return result

    async with together(memory_broker, agent) as asker:
        with pytest.raises(RequestError, match=words) as caught:
            await asker.ask("?", service=ECHO)
        assert caught.value.code == "internal"


@pytest.mark.parametrize("data", [{"x": object()}, {"x": math.nan}, {"x": {1, 2}}, {1: "one"}, {"x": b"\xff"}])
async def test_data_that_can_not_be_sent_is_an_error_at_once(memory_broker: MemoryBroker, data: Any) -> None:
    agent = Agent("a")

    @agent.service(ECHO)
    async def odd(request: Request) -> Answer:
        return Answer(text="?", data=data)

    async with together(memory_broker, agent) as asker:
        with pytest.raises(RequestError) as caught:
            await asker.ask("?", service=ECHO)
        assert caught.value.code == "internal"


async def test_a_wrong_part_is_an_error(memory_broker: MemoryBroker) -> None:
    agent = Agent("a")

    @agent.service(ECHO)
    async def wrong(request: Request) -> AsyncIterator[Any]:
        yield 42

    async with together(memory_broker, agent) as asker:
        for on_part in (None, print):
            with pytest.raises(RequestError, match="TypeError") as caught:
                await asker.ask("?", service=ECHO, on_part=on_part)
            assert caught.value.code == "internal"


async def test_errors_travel_with_their_code(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent("a")

    @agent.service("knowledge.gpt/refuses")
    async def refuses(request: Request) -> str:
        raise RequestError("quota_exceeded", "no more today", retry_after_ms=5000)

    @agent.service("knowledge.gpt/fails")
    async def fails(request: Request) -> str:
        raise ValueError("the password is 1234")

    async with together(setup, agent) as asker:
        with pytest.raises(RequestError, match="no more today") as refusal:
            await asker.ask("?", service="knowledge.gpt/refuses", agent="a")
        assert (refusal.value.code, refusal.value.retry_after_ms) == ("quota_exceeded", 5000)
        with pytest.raises(RequestError, match="ValueError") as failure:
            await asker.ask("?", service="knowledge.gpt/fails", agent="a")
        assert failure.value.code == "internal"
        assert "1234" not in str(failure.value)
    assert "the password is 1234" in caplog.text  # at home, where it can be put right


async def test_sources_name_who_answers(memory_broker: MemoryBroker) -> None:
    agent = Agent("a")

    @agent.service(ECHO)
    async def cite(request: Request) -> Answer:
        own, others = Source(document="handbook"), Source(agent="b", service=HEART, text="59/min")
        return Answer(text="59", data={"values": [59.0, None]}, confidence=0.9, sources=[own, others])

    async with together(memory_broker, agent) as asker:
        reply = await asker.ask("?", service=ECHO)
    assert [(s.agent, s.service) for s in reply.sources] == [("a", ECHO), ("b", HEART)]
    assert (reply.data, reply.confidence) == ({"values": [59.0, None]}, 0.9)
    assert reply.timing is not None


async def test_a_handler_gets_context_parameters_and_ttl(memory_broker: MemoryBroker) -> None:
    agent, got = Agent("a"), []

    @agent.service(ECHO)
    async def keep(request: Request) -> str:
        got.append(request)
        return "ok"

    item = ContextItem(text="59/min", agent="watch-7", service=HEART, data={"heart_rate": 59.0})
    async with together(memory_broker, agent) as asker:
        await asker.ask("?", service=ECHO, context=[item], ttl_s=7, session="s", tenant="t", may_leave_edge=False)
    [request] = got
    assert request.context == [item]
    assert 6000 < request.ttl_ms <= 7000
    assert (request.session, request.tenant, request.may_leave_edge) == ("s", "t", False)


# What is refused, in one line


def declare(**fields: Any) -> None:
    Agent("a").add(type("Odd", (Shout,), fields)())


class Nameless(Service):
    async def handle(self, request: Request) -> str:
        return ""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Agent("Watch 7"), "DNS label"),
        (lambda: Agent("a", hardware={"camera": object()}), "hardware"),
        (lambda: Agent("a").add(Nameless()), "Nameless has no name"),
        (lambda: declare(name="knowledge.gpt/+"), "wildcard"),
        (lambda: declare(name="medicine"), "starts with no zone"),
        (lambda: declare(description="x" * 10_000), "description.*4096"),
        (lambda: declare(examples=["?"] * 300), "examples.*256"),
        (lambda: declare(examples="What is it?"), "pass a list"),
        (lambda: declare(concurrency=0), "concurrency.*greater"),
        (lambda: declare(price_usd=math.nan), "price_usd.*finite"),
        (lambda: Agent("a").every(0), "over 0"),
        (lambda: Agent("a").describe_model("a model", size=1), "topic level"),
        (lambda: AgentOptions(heartbeat_s=0), "over 0"),
        (lambda: AgentOptions(report_s=-1), "report_s is -1; it is in seconds and not under 0"),
        (lambda: setattr(Agent("a"), "battery", 55), "battery is 55.*from 0 to 1"),
        (lambda: setattr(Agent("a"), "link", math.nan), "link is nan"),
    ],
)
def test_a_declaration_is_refused_in_one_line(make: Any, words: str) -> None:
    with pytest.raises(MqttCollabError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_name_is_taken_once() -> None:
    agent = Agent("a")
    agent.add(Shout())
    with pytest.raises(ConfigError, match="already"):
        agent.add(Shout())


async def test_an_agent_that_does_not_run_says_so(memory_broker: MemoryBroker) -> None:
    agent = Agent("a")
    for use in (
        agent.ask("?"),
        agent.follow(),
        agent.observe(HEART),
        agent.sleep(),
        agent.publish_embedding(HEART, [1]),
    ):
        with pytest.raises(ConfigError, match="@a is not running: start it"):
            await use
    async with agent.running(on(memory_broker)):
        with pytest.raises(ConfigError, match="running already"):
            await agent.start(on(memory_broker))
        with pytest.raises(ConfigError, match="before the agent starts"):
            agent.add(Shout())
    await agent.stop()  # once more does no harm


# Announcing, load and stopping


async def test_birth_and_clean_stop(setup: Setup) -> None:
    agent = Agent("a", description="An agent", place="hall", hardware={"ram_mb": 512}, firmware="1.2")
    agent.add(Shout())
    agent.describe_model("smol", architecture="llama", context_length=2048)
    watcher = await Watcher().watch(await setup.connected("watcher"), "#")
    async with agent.running(on(setup)):
        epoch = agent.presence.epoch
        await watcher.until(lambda: watcher.last.get("slm/agents/@a/load"))
        at = watcher.last
        assert at["slm/agents/@a/status"] == f"online {epoch}".encode()
        profile = decode(Profile, at["slm/agents/@a/profile"])
        assert (profile.description, profile.place, profile.firmware) == ("An agent", "hall", "1.2")
        assert (profile.hardware["ram_mb"], profile.services) == (512, [ECHO])
        record = decode(ServiceRecord, at[f"{ECHO}/@a"])
        assert (record.examples, record.place, record.heartbeat_s) == (["Shout hello"], "hall", 10.0)
        assert at["slm/models/smol/context_length"] == b"2048"
        topics = [message.topic for message in watcher.seen]
        assert topics.index(f"{ECHO}/@a") < topics.index("slm/agents/@a/status")
    await watcher.until(lambda: watcher.last["slm/agents/@a/status"] == f"offline {epoch}".encode())
    late = await Watcher().watch(await setup.connected("late"), "#")
    await late.until(lambda: "slm/agents/@a/status" in late.last)
    assert f"{ECHO}/@a" not in late.last
    assert "slm/agents/@a/load" not in late.last


async def test_a_refused_announcement_is_told_and_leaves_nothing() -> None:
    broker = MemoryBroker(denied=[f"{ECHO}/@a"])
    agent, calls = Agent("a"), []

    class Hooked(Shout):
        async def started(self) -> None:
            calls.append("started")

        async def stopping(self) -> None:
            calls.append("stopping")

    agent.add(Hooked())
    with pytest.raises(MqttCollabError, match="refused"):
        await agent.start(on(broker))
    assert calls == ["started", "stopping"]
    assert not broker.clients
    assert not any(m.payload.startswith(b"online") for m in broker.retained.values())


async def test_requests_wait_until_services_are_started(memory_broker: MemoryBroker) -> None:
    order, gate = [], asyncio.Event()

    class Slow(Shout):
        async def started(self) -> None:
            await gate.wait()
            order.append("started")

        async def handle(self, request: Request) -> str:
            order.append("handled")
            return "ok"

    agent = Agent("a")
    agent.add(Slow())
    async with client().running(on(memory_broker)) as asker:
        starting = asyncio.create_task(agent.start(on(memory_broker)))
        await eventually(lambda: "a" in memory_broker.clients)
        ask = asyncio.create_task(asker.ask("?", service=ECHO, agent="a"))
        await eventually(lambda: bool(memory_broker.clients["asker"].router.filters))
        gate.set()
        assert (await ask).output == "ok"
        await starting
        await agent.stop()
    assert order == ["started", "handled"]


async def test_a_service_that_fails_to_start_stops_the_agent(memory_broker: MemoryBroker) -> None:
    calls = []

    class First(Shout):
        async def stopping(self) -> None:
            calls.append("stopping")

    class Second(Shout):
        name = "knowledge.gpt/second"

        async def started(self) -> None:
            raise ConfigError("no model")

    agent = Agent("a")
    agent.add(First())
    agent.add(Second())
    with pytest.raises(ConfigError, match="no model"):
        await agent.start(on(memory_broker))
    assert calls == ["stopping"]
    assert not memory_broker.clients


async def test_a_failing_hook_does_not_spoil_the_goodbye(memory_broker: MemoryBroker) -> None:
    class Bad(Shout):
        async def stopping(self) -> None:
            raise OSError("disk full")

    agent = Agent("a")
    agent.add(Bad())
    await agent.start(on(memory_broker))
    with pytest.raises(OSError, match="disk full"):
        await agent.stop()
    assert f"{ECHO}/@a" not in memory_broker.retained
    assert memory_broker.retained["slm/agents/@a/status"].payload.startswith(b"offline")


async def test_stopping_finishes_what_is_under_way_and_refuses_the_rest(setup: Setup) -> None:
    agent, begun, gate = Agent("a"), asyncio.Event(), asyncio.Event()

    @agent.service(ECHO, concurrency=2)
    async def slow(request: Request) -> str:
        if request.text == "slow":
            begun.set()
            await gate.wait()
        return "finished"

    async with client().running(on(setup)) as asker:
        await agent.start(on(setup))
        ask = asyncio.create_task(asker.ask("slow", service=ECHO, agent="a"))
        await begun.wait()
        stopping = asyncio.create_task(agent.stop())
        with pytest.raises(RequestError, match="stopping") as refusal:
            while True:  # until the agent has begun to stop
                await asker.ask("quick", service=ECHO, agent="a")
        assert refusal.value.code == "busy"
        assert refusal.value.retry_after_ms
        gate.set()
        assert (await ask).output == "finished"
        await stopping


async def test_stopping_cancels_what_takes_too_long(setup: Setup) -> None:
    agent, begun = Agent("a", options=AgentOptions(grace_s=0.1)), asyncio.Event()

    @agent.service(ECHO)
    async def endless(request: Request) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    async with client().running(on(setup)) as asker:
        await agent.start(on(setup))
        ask = asyncio.create_task(asker.ask("?", service=ECHO, agent="a"))
        await begun.wait()
        await agent.stop()
        with pytest.raises(RequestError, match="@a stopped before it was done") as caught:
            await ask
        assert caught.value.code == "cancelled"


async def test_a_handler_is_told_the_time_that_is_left_after_waiting(memory_broker: MemoryBroker) -> None:
    agent, gate, left = Agent("a"), asyncio.Event(), []

    @agent.service(ECHO)
    async def wait(request: Request) -> str:
        left.append(request.ttl_ms)
        await gate.wait()
        return "ok"

    async with together(memory_broker, agent) as asker:
        asks = [asyncio.create_task(asker.ask("?", service=ECHO, agent="a", ttl_s=10)) for _ in range(2)]
        await eventually(lambda: len(left) == 1)
        await asyncio.sleep(0.2)
        gate.set()
        await asyncio.gather(*asks)
    assert left[1] <= 9800
    assert left[1] < left[0] <= 10_000


async def test_busy_says_when_to_come_back_and_the_load_shows_it(setup: Setup) -> None:
    agent = Agent("a", options=AgentOptions(queue_size=1, heartbeat_s=0.05))
    agent.battery, agent.thermal = 0.8, 0.5
    begun, gate = asyncio.Event(), asyncio.Event()

    @agent.service(ECHO)
    async def slow(request: Request) -> str:
        begun.set()
        await gate.wait()
        if request.text == "second":
            raise RequestError("no_capability", "not that")
        return "ok"

    watcher = await Watcher().watch(await setup.connected("watcher"), "slm/agents/@a/load")

    def load() -> Load:
        payload = watcher.last.get("slm/agents/@a/load")
        return decode(Load, payload) if payload else Load(agent="a")

    async with together(setup, agent) as asker:
        first = asyncio.create_task(asker.ask("first", service=ECHO, agent="a"))
        await begun.wait()
        second = asyncio.create_task(asker.ask("second", service=ECHO, agent="a"))
        await watcher.until(lambda: (load().running, load().queued) == (1, 1))
        with pytest.raises(RequestError, match="1 requests running and 1 waiting") as refusal:
            await asker.ask("third", service=ECHO, agent="a")
        assert refusal.value.code == "busy"
        assert refusal.value.retry_after_ms
        assert refusal.value.retry_after_ms > 0
        await asker.transport.publish(TransportMessage(f"{ECHO}/@a/request", b"{]"))
        gate.set()
        assert (await first).output == "ok"
        with pytest.raises(RequestError, match="not that"):
            await second
        await watcher.until(lambda: load().completed == load().failed == load().rejected == 1)
        assert (load().running, load().queued, load().slots) == (0, 0, 1)
        assert (load().battery, load().thermal, load().heartbeat_s) == (0.8, 0.5, 0.05)
        assert load().time_ms
        assert "JSON" in (load().last_rejection or "")


async def test_a_change_of_load_is_reported_long_before_the_heartbeat(setup: Setup) -> None:
    agent, gate = Agent("a", options=AgentOptions(heartbeat_s=60, report_s=0.05)), asyncio.Event()

    @agent.service(ECHO, concurrency=2)
    async def wait(request: Request) -> str:
        await gate.wait()
        return "ok"

    watcher = await Watcher().watch(await setup.connected("watcher"), "slm/agents/@a/load")

    def load() -> tuple[int, int, int]:
        payload = watcher.last.get("slm/agents/@a/load")
        report = decode(Load, payload) if payload else Load(agent="a", slots=9)
        return report.running, report.queued, report.slots

    async with together(setup, agent) as asker:
        await watcher.until(lambda: load() == (0, 0, 2))
        asks = [asyncio.create_task(asker.ask("?", service=ECHO, agent="a")) for _ in range(3)]
        await watcher.until(lambda: load() == (2, 1, 2))
        gate.set()
        await asyncio.gather(*asks)
        await watcher.until(lambda: load() == (0, 0, 2))
    await watcher.until(lambda: watcher.last["slm/agents/@a/load"] == b"")


async def test_a_burst_is_reported_a_few_times_and_its_end_for_sure(memory_broker: MemoryBroker) -> None:
    agent = Agent("a", options=AgentOptions(heartbeat_s=60, report_s=0.2))

    @agent.service(ECHO)
    async def work(request: Request) -> str:
        await asyncio.sleep(0.002)
        return "ok"

    watcher = Watcher()
    async with together(memory_broker, agent) as asker:
        await watcher.watch(asker.transport, "slm/agents/@a/load")
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(100):
            await asker.ask("?", service=ECHO, agent="a")
        took = loop.time() - started

        def load() -> Load:
            return decode(Load, watcher.seen[-1].payload)

        await watcher.until(lambda: watcher.seen and (load().running, load().queued, load().completed) == (0, 0, 100))
        assert len(watcher.seen) <= 3 + took / 0.2  # what was retained, one at once, one per pause, one at the end
    assert agent.options.report_s < took, "the burst was too short to tell"


async def test_what_is_over_before_it_could_be_told_is_not_reported(memory_broker: MemoryBroker) -> None:
    watcher = Watcher()
    async with together(memory_broker, echo_agent("a", heartbeat_s=60, report_s=0)) as asker:
        await eventually(lambda: "slm/agents/@a/load" in memory_broker.retained)
        await asyncio.sleep(0.01)  # the agent is at rest
        await watcher.watch(asker.transport, "slm/agents/@a/load")
        for _ in range(20):
            await asker.ask("?", service=ECHO, agent="a")
        await asyncio.sleep(0.05)
        assert len(watcher.seen) == 1  # what was retained


async def test_nothing_is_reported_while_an_agent_stops(memory_broker: MemoryBroker) -> None:
    agent, begun = Agent("a", options=AgentOptions(heartbeat_s=60, report_s=0, grace_s=0.2)), asyncio.Event()

    @agent.service(ECHO)
    async def never(request: Request) -> str:
        begun.set()
        return await asyncio.Future()

    async with client().running(on(memory_broker)) as asker:
        watcher = await Watcher().watch(asker.transport, "slm/agents/@a/load")
        async with agent.running(on(memory_broker)):
            asking = asyncio.create_task(asker.ask("?", service=ECHO, agent="a"))
            await begun.wait()
            await watcher.until(lambda: b'"running":1' in watcher.seen[-1].payload)
        with pytest.raises(RequestError, match="stopped before it was done"):
            await asking
        await watcher.until(lambda: watcher.seen[-1].payload == b"")
        assert [b'"running":1' in message.payload for message in watcher.seen[-2:]] == [True, False]
    assert "slm/agents/@a/load" not in memory_broker.retained


async def test_repeated_work_goes_on_after_a_failure_and_ends_with_the_agent(
    memory_broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    agent, runs = Agent("a"), []

    @agent.every(0.01)
    async def measure() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise OSError("sensor unplugged")
        await agent.observe(HEART, values={"heart_rate": math.nan})

    async with agent.running(on(memory_broker)):
        await eventually(lambda: len(runs) > 3)
    count = len(runs)
    await asyncio.sleep(0.03)
    assert len(runs) == count
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "measure failed: sensor unplugged" in errors[0].getMessage()
    assert errors[0].exc_info
    assert "heart_rate" in errors[1].getMessage()
    assert not errors[1].exc_info  # it says all in one line


# Sensing


async def test_observation_and_embedding(setup: Setup, embedder: Embedder) -> None:
    agent = Agent("watch-7", place="on the wrist", embedder=embedder)
    text = "Heart rate 59/min, regular"
    watcher = await Watcher().watch(await setup.connected("watcher"), f"{HEART}/@watch-7/embedding")
    async with agent.running(on(setup)):
        sent = await agent.observe(HEART, text=text, values={"heart_rate": 59.0}, units={"heart_rate": "1/min"})
        late = await Watcher().watch(await setup.connected("late"), f"{HEART}/@watch-7/observation")
        await late.until(lambda: late.seen)
        await watcher.until(lambda: watcher.seen)
    observation = decode(Observation, late.seen[0].payload)
    assert observation == sent
    assert late.seen[0].retain
    assert (observation.values, observation.place) == ({"heart_rate": 59.0}, "on the wrist")
    embedding = decode(Embedding, watcher.seen[0].payload)
    assert (embedding.model, embedding.observation) == ("wordllama-l2-supercat-256", sent.id)
    assert embedding.vector == pytest.approx(embedder.embed([text])[0].tolist(), abs=0.005)


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        ([], "vector.*at least 1"),
        ([math.inf, 1.0], r"vector\.0.*finite"),
        ([0.0] * 4097, "vector.*at most 4096"),
    ],
)
async def test_a_vector_that_is_none_is_refused(memory_broker: MemoryBroker, vector: list[float], words: str) -> None:
    async with Agent("a").running(on(memory_broker)) as agent:
        with pytest.raises(ConfigError, match=words) as caught:
            await agent.publish_embedding(HEART, vector, model="m")
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match="names its model"):
            await agent.publish_embedding(HEART, [1.0])


async def test_only_what_was_sensed_is_observed(memory_broker: MemoryBroker) -> None:
    async with Agent("a").running(on(memory_broker)) as agent:
        with pytest.raises(ConfigError, match=r"values\.heart_rate.*finite") as caught:
            await agent.observe(HEART, values={"heart_rate": math.nan})
        assert "\n" not in str(caught.value)
        for service in (ECHO, "data.gpt", "data.gpt/Heart", "data.gpt/#"):
            with pytest.raises(TopicError, match=service):
                await agent.observe(service, text="?")
            with pytest.raises(TopicError, match=service):
                await agent.publish_embedding(service, [1.0], model="m")
    assert not any("observation" in topic for topic in memory_broker.retained)


async def test_numbers_of_numpy_are_numbers(memory_broker: MemoryBroker) -> None:
    numpy = pytest.importorskip("numpy")
    async with Agent("a").running(on(memory_broker)) as agent:
        await agent.observe(HEART, values={"a": numpy.float32(0.5), "b": numpy.float64(2), "c": numpy.int64(3)})
        await agent.publish_embedding(HEART, numpy.ones(3, dtype=numpy.float32), model="m")
    observation = decode(Observation, memory_broker.retained[f"{HEART}/@a/observation"].payload)
    assert observation.values == {"a": 0.5, "b": 2.0, "c": 3.0}


async def test_steps_may_be_parts(memory_broker: MemoryBroker) -> None:
    agent, parts = Agent("a"), []

    @agent.service(ECHO)
    async def steps(request: Request) -> AsyncIterator[Step | Answer]:
        yield Step(service=HEART, agent="b")
        yield Answer(text="done")

    async with together(memory_broker, agent) as asker:
        reply = await asker.ask("?", service=ECHO, on_part=parts.append)
    assert [step.agent for part in parts for step in part.steps] == ["b"]
    assert reply.output == "done"
