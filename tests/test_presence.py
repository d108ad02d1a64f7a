"""Birth and death on real brokers: processes that are stopped and killed, wills, names taken twice, lost brokers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet import ECHO, MINIMAL, QUICK_SESSION, Watcher, client, echo_agent, known, on, process, together
from harness import LIMIT_S, Cable, Setup, eventually, running

from mqttcollab import Agent, AgentOptions, ConnectError, DuplicateAgent, Reply, Request, TransportError
from mqttcollab.broker import Broker, find_broker
from mqttcollab.errors import BrokerError, DeadlineExceeded
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.memory import MemoryBroker

STATUS = "slm/agents/@echo-1/status"
# Whatever clock the machine has, this is later.
FUTURE = 9_999_999_999_999


@pytest.fixture(params=["mosquitto", "nats"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """Each of the brokers that are processes, with the MQTT version that they speak best."""
    try:
        await asyncio.to_thread(find_broker, request.param)
    except BrokerError as error:
        pytest.skip(str(error))
    async with running(request.param) as broker:
        yield broker


async def say(setup: Setup, name: str, *payloads: bytes) -> None:
    """Publishes on the status topic of echo-1, as somebody else."""
    transport = await setup.connected(name)
    for payload in payloads:
        await transport.publish(TransportMessage(STATUS, payload, retain=True))
    await transport.close()


# Processes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_minimal_agent_stops_cleanly(broker: Broker, number: signal.Signals, tmp_path: Path) -> None:
    assert len(MINIMAL.splitlines()) < 15
    async with client().running(broker.info.url) as asker:
        watcher = await Watcher().watch(asker.transport, "slm/agents/+/+", f"{ECHO}/+")
        async with process(tmp_path, MINIMAL, broker.info.url) as agent:
            await watcher.until(lambda: watcher.last.get(STATUS, b"").startswith(b"online"))
            epoch = watcher.last[STATUS].split()[1]
            assert (await asker.ask("hello", service=ECHO)).output == "hello"
            agent.send(number)
            assert await agent.ended() == 0, agent.output
            await watcher.until(lambda: watcher.last[STATUS] == b"offline " + epoch)
        assert watcher.last[f"{ECHO}/@echo-1"] == b""
        assert watcher.last["slm/agents/@echo-1/load"] == b""
        assert watcher.last["slm/agents/@echo-1/profile"] != b""
        assert "Traceback" not in agent.output


async def test_a_killed_agent_is_gone_and_its_session_waits(broker: Broker, tmp_path: Path) -> None:
    async with client().running(broker.info.url) as asker:
        registry = await asker.follow()
        async with process(tmp_path, MINIMAL, broker.info.url) as agent:
            await known(lambda: registry.offers(ECHO))
            first = registry.agents["echo-1"].status
            agent.send(signal.SIGKILL)
            await known(lambda: not registry.offers(ECHO))
            assert registry.agents["echo-1"].status == first._replace(state="offline")  # type: ignore[union-attr]
        ask = asyncio.create_task(asker.ask("are you there?", service=ECHO, agent="echo-1", ttl_s=20))
        async with process(tmp_path, MINIMAL, broker.info.url) as agent:
            assert (await ask).output == "are you there?"
            await known(lambda: registry.offers(ECHO))
            # A will of the life before comes late.
            late = TransportMessage(STATUS, f"offline {first.epoch}".encode(), retain=True)  # type: ignore[union-attr]
            await asker.transport.publish(late)
            assert (await asker.ask("still there?", service=ECHO)).output == "still there?"
            agent.send(signal.SIGTERM)
            await agent.ended()


async def test_a_process_whose_name_is_taken_ends_with_one_line(mosquitto: Broker, tmp_path: Path) -> None:
    async with client().running(mosquitto.info.url) as asker, process(tmp_path, MINIMAL, mosquitto.info.url) as older:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        async with echo_agent().running(mosquitto.info.url):
            assert await older.ended() == 1
            lines = older.output.splitlines()
            assert "another process came up as @echo-1" in lines[-1]
            assert "Traceback" not in older.output
            assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"


async def test_a_process_waits_for_its_broker_and_can_be_stopped_meanwhile(mosquitto: Broker, tmp_path: Path) -> None:
    async with Cable(mosquitto.info) as cable:
        url = cable.url()
        await cable.pull()
        async with process(tmp_path, MINIMAL, url) as agent:
            await agent.says(f"broker mqtt://127.0.0.1:{cable.port} can't be reached")
            agent.send(signal.SIGTERM)
            assert await agent.ended() == 0
            assert "Traceback" not in agent.output


async def test_a_lease_runs_out_and_a_sign_of_life_renews_it(mosquitto: Broker, tmp_path: Path) -> None:
    source = MINIMAL.replace("import Agent,", "import Agent, AgentOptions,").replace(
        'again")\n\n', 'again", options=AgentOptions(heartbeat_s=0.2))\n\n', 1
    )
    async with client().running(mosquitto.info.url) as asker, process(tmp_path, source, mosquitto.info.url) as agent:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        await known(lambda: registry.agents["echo-1"].load is not None)
        seen = registry.version
        agent.send(signal.SIGSTOP)
        await known(lambda: not registry.offers(ECHO))
        assert registry.agents["echo-1"].status is not None
        assert registry.agents["echo-1"].status.state == "online"  # it is the lease, not the will
        agent.send(signal.SIGCONT)
        await known(lambda: registry.offers(ECHO))
        assert [change.kind for change in registry.changes_since(seen)] == ["offline", "online"]
        assert (await asker.ask("hello", service=ECHO)).output == "hello"
        agent.send(signal.SIGTERM)
        assert await agent.ended() == 0


# Status and names


async def test_an_agent_puts_its_status_right(setup: Setup) -> None:
    async with echo_agent().running(on(setup)) as agent:
        ours = f"online {agent.presence.epoch}".encode()
        watcher = await Watcher().watch(await setup.connected("watcher"), STATUS)
        await watcher.until(lambda: watcher.last.get(STATUS) == ours)
        meddler = await setup.connected("meddler")
        own_will = agent.presence.will.payload
        for payload in (b"", b"offline 1", b"online 1", b"nonsense", b"\xff\xfe", b"offline %d" % FUTURE, own_will):
            watcher.seen.clear()
            await meddler.publish(TransportMessage(STATUS, payload, retain=True))
            await watcher.until(lambda: watcher.seen and watcher.seen[-1].payload == ours)
            assert watcher.seen[0].payload == payload
    await watcher.until(lambda: watcher.last[STATUS] == own_will)


async def _asked(asker: Agent, setup: Setup, question: str) -> Reply:
    """nats-server may lose a request while one connection takes a session over from another: it is asked again."""
    for _ in range(0 if setup.shared else 3):
        with contextlib.suppress(DeadlineExceeded):
            return await asker.ask(question, service=ECHO, agent="echo-1", ttl_s=3.0)
    return await asker.ask(question, service=ECHO, agent="echo-1")


async def test_the_younger_of_two_with_one_name_stays(setup: Setup) -> None:
    older, younger = echo_agent(), echo_agent()
    up, over = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with older.running(on(setup)):
            up.set()
            await asyncio.Event().wait()

    async with client().running(on(setup)) as asker:
        first = asyncio.create_task(live())
        first.add_done_callback(lambda _: over.set())
        await up.wait()
        async with younger.running(on(setup), patience_s=LIMIT_S):
            await over.wait()
            with pytest.raises(DuplicateAgent, match="another process came up as @echo-1") as caught:
                await first
            assert "\n" not in str(caught.value)
            for number in range(20):  # nobody takes the connection away any more
                reply = await _asked(asker, setup, str(number))
                assert reply.output == f"@echo-1: {number}"
            late = await Watcher().watch(await setup.connected("late"), "#")
            await late.until(lambda: {STATUS, f"{ECHO}/@echo-1"} <= late.last.keys())
            assert late.last[STATUS] == f"online {younger.presence.epoch}".encode()


@pytest.mark.parametrize("state", ["online", "offline"])
async def test_a_clock_that_went_back_does_not_keep_an_agent_away(setup: Setup, state: str) -> None:
    """A device without a clock of its own wakes up in the past."""
    await say(setup, "past-life", f"{state} {FUTURE}".encode())
    async with together(setup, echo_agent()) as asker:
        assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"


async def test_of_two_with_one_name_and_wrong_clocks_one_stays(setup: Setup) -> None:
    ended: list[str] = []

    def ahead(name: str, will: TransportMessage) -> Transport:
        return setup.client(name, will=replace(will, payload=b"offline %d" % FUTURE), options=QUICK_SESSION)

    async def live(agent: Agent, *, clock_ahead: bool) -> None:
        try:
            await agent.start(ahead if clock_ahead else on(setup), patience_s=LIMIT_S)
            if clock_ahead:
                agent.presence.epoch = FUTURE
                await agent.presence.say("online")
            await agent.presence.until(asyncio.Event().wait())
        except DuplicateAgent as error:
            ended.append(str(error))
        finally:
            await agent.stop()

    async with client().running(on(setup)) as asker:
        watcher = await Watcher().watch(asker.transport, STATUS)
        lives = [asyncio.create_task(live(echo_agent(), clock_ahead=True))]
        await watcher.until(lambda: watcher.last.get(STATUS) == b"online %d" % FUTURE)
        lives.append(asyncio.create_task(live(echo_agent(), clock_ahead=False)))
        await eventually(lambda: bool(ended))
        await watcher.until(lambda: watcher.last[STATUS].startswith(b"online"))
        for number in range(20):
            reply = await asker.ask(str(number), service=ECHO, agent="echo-1", ttl_s=LIMIT_S)
            assert reply.output == f"@echo-1: {number}"
        assert len(ended) == 1
        for task in lives:
            task.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


async def test_records_of_a_life_before_are_cleared(setup: Setup) -> None:
    publisher = await setup.connected("past-life")
    for service in ("knowledge.gpt/old", "data.gpt/a/b/c/d"):
        await publisher.publish(TransportMessage(f"{service}/@echo-1", b"{}", retain=True))
    watcher = await Watcher().watch(await setup.connected("watcher"), "+/+/+", "data.gpt/#")
    await watcher.until(lambda: len(watcher.last) == 2)
    async with echo_agent().running(on(setup)):
        await watcher.until(lambda: watcher.last["knowledge.gpt/old/@echo-1"] == b"")
        await watcher.until(lambda: watcher.last["data.gpt/a/b/c/d/@echo-1"] == b"")
        await watcher.until(lambda: f"{ECHO}/@echo-1" in watcher.last)  # brokers may deliver across topics in any order
        assert watcher.last[f"{ECHO}/@echo-1"] != b""


async def test_asleep_and_awake(setup: Setup) -> None:
    sleeper, other = echo_agent(), echo_agent("echo-2")
    async with together(setup, sleeper, other) as asker:
        registry = await asker.follow()
        await known(lambda: len(registry.offers(ECHO)) == 2)
        await sleeper.sleep()
        await known(lambda: registry.agents["echo-1"].asleep)
        assert [offer.agent.name for offer in registry.offers(ECHO)] == ["echo-2", "echo-1"]
        await other.stop()
        await known(lambda: len(registry.offers(ECHO)) == 1)
        assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"
        await sleeper.wake()
        await known(lambda: not registry.agents["echo-1"].asleep)
        assert registry.agents["echo-1"].present


# Brokers that are not there


async def test_a_broker_that_is_down_at_start(mosquitto: Broker) -> None:
    async with Cable(mosquitto.info) as cable:
        await cable.pull()
        agent = echo_agent(connection=QUICK_SESSION)
        with pytest.raises(ConnectError, match=f"127.0.0.1:{cable.port} can't be reached"):
            await agent.start(cable.url(), patience_s=0)
        starting = asyncio.create_task(agent.start(cable.url()))
        async with client().running(mosquitto.info.url) as asker:
            ask = asyncio.create_task(asker.ask("hello", service=ECHO, agent="echo-1"))
            await asyncio.sleep(0.1)
            assert not starting.done()
            await cable.plug()
            await starting
            if not ask.done():
                ask.cancel()
            await asyncio.gather(ask, return_exceptions=True)
            assert (await asker.ask("hello", service=ECHO, agent="echo-1")).output == "@echo-1: hello"
        await agent.stop()


async def test_everything_is_announced_again(setup: Setup) -> None:
    agent = echo_agent(heartbeat_s=0.1)
    agent.describe_model("smol", architecture="llama")
    async with agent.running(on(setup)), client().running(on(setup)) as asker:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        await setup.go_away()
        await setup.come_back()
        assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"
        watcher = await Watcher().watch(await setup.connected("watcher"), "#")
        wanted = {f"{ECHO}/@echo-1", STATUS, "slm/agents/@echo-1/profile", "slm/agents/@echo-1/load"}
        await watcher.until(lambda: wanted | {"slm/models/smol/architecture"} <= watcher.last.keys())
        assert watcher.last[STATUS] == f"online {agent.presence.epoch}".encode()


async def test_a_broker_that_is_away_in_the_middle_of_a_request(setup: Setup) -> None:
    agent, begun, gate = Agent("slow-1"), asyncio.Event(), asyncio.Event()

    @agent.service(ECHO, concurrency=2)
    async def slow(request: Request) -> str:
        begun.set()
        await gate.wait()
        return "finished"

    async with together(setup, agent) as asker:
        by_name = asyncio.create_task(asker.ask("?", service=ECHO))
        directly = asyncio.create_task(asker.ask("?", service=ECHO, agent="slow-1"))
        await begun.wait()
        await setup.go_away()
        gate.set()
        await asyncio.sleep(0.05)
        assert not by_name.done()
        await setup.come_back()
        assert (await by_name).output == (await directly).output == "finished"


async def test_a_broker_that_restarts_and_remembers_wills(tmp_path: Path) -> None:
    """A broker that is stopped in an orderly way publishes the wills, and finds them again when it comes back."""
    agent, begun, gate = (
        Agent("slow-1", options=AgentOptions(connection=QUICK_SESSION)),
        asyncio.Event(),
        asyncio.Event(),
    )

    @agent.service(ECHO)
    async def slow(request: Request) -> str:
        begun.set()
        await gate.wait()
        return "finished"

    async with Broker("mosquitto", data_dir=tmp_path) as broker, together(broker.info.url, agent) as asker:
        registry = await asker.follow()
        ask = asyncio.create_task(asker.ask("?", service=ECHO))
        await begun.wait()
        before = registry.version
        await broker.restart()
        await known(lambda: len(registry.changes_since(before)) > 1)
        await known(lambda: registry.offers(ECHO))
        gate.set()
        assert (await ask).output == "finished"


async def test_an_agent_that_may_not_announce_itself_any_more_ends(memory_broker: MemoryBroker) -> None:
    with pytest.raises(TransportError, match=r"@echo-1 can't announce itself.*refused") as caught:
        async with echo_agent().running(on(memory_broker)):
            memory_broker.denied.append(f"{ECHO}/@echo-1")
            await memory_broker.stop()
            await memory_broker.start()
            await asyncio.Event().wait()
    assert "\n" not in str(caught.value)


async def test_a_block_that_is_cancelled_from_outside_is_cancelled(memory_broker: MemoryBroker) -> None:
    async def live() -> Any:
        async with echo_agent().running(on(memory_broker)):
            await asyncio.Event().wait()

    task = asyncio.create_task(live())
    await eventually(lambda: STATUS in memory_broker.retained)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert memory_broker.retained[STATUS].payload.startswith(b"offline")
