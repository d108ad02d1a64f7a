"""Handlers that hang or block the event loop: others are answered, the status says so, and back again."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet import ECHO, client, echo_agent, known, process, together
from harness import eventually

from mqttcollab import Agent, Reply, Request, RequestError
from mqttcollab.broker import Broker
from mqttcollab.places import Places

STUCK = "computation.gpt/stuck"


class Hold:
    """Handlers that go on until they are let go, whatever anybody says."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = 0

    def plain(self, request: Request) -> str:
        self.begun += 1
        self.gate.wait()
        return "at last"

    async def stubborn(self, request: Request) -> str:
        self.begun += 1
        while not self.gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return "at last"

    async def stubborn_parts(self, request: Request) -> AsyncIterator[str]:
        yield await self.stubborn(request)


async def outcome(asker: Agent, service: str = STUCK, ttl_s: float = 10.0) -> Reply | RequestError:
    try:
        return await asker.ask("?", service=service, agent="echo-1", ttl_s=ttl_s)
    except RequestError as error:
        return error


def reason_of(asker: Agent) -> str:
    status = asker.registry.agents["echo-1"].status
    assert status is not None
    return status.reason if status.state == "degraded" else ""


@pytest.mark.parametrize(
    ("form", "concurrency"), [("plain", 1), ("stubborn", 2), pytest.param("stubborn_parts", 1, marks=pytest.mark.slow)]
)
async def test_a_handler_that_hangs_costs_nobody_else_an_answer(mosquitto: Broker, form: str, concurrency: int) -> None:
    agent, hold = echo_agent(stall_s=0.4, grace_s=0.2), Hold()
    agent.service(STUCK, concurrency=concurrency)(getattr(hold, form))
    async with together(mosquitto.info.url, agent) as asker:
        await asker.follow()
        try:
            stuck = [asyncio.create_task(outcome(asker, ttl_s=0.3)) for _ in range(concurrency)]
            await eventually(lambda: hold.begun == concurrency)
            # One that waits is told as soon as it is clear that nobody is left, not at the end of its ttl.
            waiting = asyncio.create_task(outcome(asker, ttl_s=60))
            for lost in await asyncio.gather(*stuck):
                assert isinstance(lost, RequestError) and lost.code == "deadline_exceeded"
            await known(lambda: STUCK in reason_of(asker))
            who = "a handler" if concurrency == 1 else "2 handlers"
            assert re.fullmatch(rf"{who} of {STUCK} ha(s|ve) hung since \d\d:\d\d:\d\d UTC", reason_of(asker))
            for refused in (await waiting, await outcome(asker), await outcome(asker)):
                assert isinstance(refused, RequestError) and refused.code == "busy"
                assert refused.retry_after_ms is not None and refused.retry_after_ms > 0
                assert f"of {STUCK} hang" in refused.message
            assert hold.begun == concurrency
            assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"
        finally:
            hold.gate.set()
        await known(lambda: not reason_of(asker))
        answer = await outcome(asker)
        assert isinstance(answer, Reply) and answer.output == "at last"


@pytest.mark.slow
async def test_where_one_of_two_hangs_the_other_serves(mosquitto: Broker) -> None:
    agent, hold = echo_agent(stall_s=0.4), Hold()

    @agent.service(STUCK, concurrency=2)
    def sometimes(request: Request) -> str:
        return hold.plain(request) if request.text == "hang" else "fine"

    async with together(mosquitto.info.url, agent) as asker:
        await asker.follow()
        try:
            with pytest.raises(RequestError):
                await asker.ask("hang", service=STUCK, ttl_s=0.2)
            await known(lambda: reason_of(asker))
            answers = await asyncio.gather(*(asker.ask("?", service=STUCK) for _ in range(10)))
            assert {answer.output for answer in answers} == {"fine"}
        finally:
            hold.gate.set()
        await known(lambda: not reason_of(asker))


@pytest.mark.slow
async def test_a_handler_that_ignores_that_it_was_cancelled_hangs(mosquitto: Broker) -> None:
    agent, hold = echo_agent(stall_s=0.4), Hold()
    agent.service(STUCK)(hold.stubborn)
    async with together(mosquitto.info.url, agent) as asker:
        await asker.follow()
        try:
            ask = asyncio.create_task(asker.ask("?", service=STUCK, agent="echo-1", ttl_s=600))
            await eventually(lambda: hold.begun == 1)
            ask.cancel()  # sends a cancel; the deadline is far away
            await known(lambda: STUCK in reason_of(asker))
            refused = await outcome(asker)
            assert isinstance(refused, RequestError) and refused.code == "busy"
        finally:
            hold.gate.set()
        await known(lambda: not reason_of(asker))


async def test_a_plain_function_whose_requester_is_gone_keeps_its_place_and_does_not_hang(mosquitto: Broker) -> None:
    agent, hold = echo_agent(stall_s=0.2), Hold()
    agent.service(STUCK)(hold.plain)
    async with together(mosquitto.info.url, agent) as asker:
        await asker.follow()
        try:
            ask = asyncio.create_task(asker.ask("?", service=STUCK, agent="echo-1", ttl_s=600))
            await eventually(lambda: hold.begun == 1)
            ask.cancel()
            following = asyncio.create_task(asker.ask("?", service=STUCK, agent="echo-1"))
            await asyncio.sleep(1.5)  # over the second after which one hangs that was due
            assert (hold.begun, following.done(), reason_of(asker)) == (1, False, "")
        finally:
            hold.gate.set()
        assert (await following).output == "at last"


BLOCKING = """\
import logging
import sys
import time

from mqttcollab import Agent, AgentOptions, Request

logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
agent = Agent("echo-1", options=AgentOptions(stall_s=0.2))


@agent.service("knowledge.gpt/echo", concurrency=4)
async def echo(request: Request) -> str:
    if request.text == "block":
        time.sleep(1.5)
        print("awake", flush=True)
    return request.text


agent.run()
"""


@pytest.mark.slow
async def test_a_blocked_event_loop_is_told_with_its_place(mosquitto: Broker, tmp_path: Path) -> None:
    async with client().running(mosquitto.info.url) as asker, process(tmp_path, BLOCKING, mosquitto.info.url) as agent:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        block = asyncio.create_task(asker.ask("block", service=ECHO))
        others = [asyncio.create_task(asker.ask(str(number), service=ECHO)) for number in range(20)]
        await agent.says("awake")
        # It said where while it hung, and once. On a busy machine there may be other blocks.
        said = agent.output[: agent.output.index("awake")]
        assert "the event loop has been blocked for" in said and said.count("time.sleep(1.5)") == 1
        assert [(await other).output for other in others] == [str(number) for number in range(20)]
        assert (await block).output == "block"
        line = BLOCKING.splitlines().index("        time.sleep(1.5)") + 1
        told = rf"the event loop was blocked for \d+\.\d s in agent0\.py:{line}"
        await known(lambda: re.fullmatch(told, reason_of(asker)))
        await known(lambda: not reason_of(asker))  # after a while


@pytest.mark.slow
async def test_a_process_that_was_stopped_is_not_blamed_on_its_code(mosquitto: Broker, tmp_path: Path) -> None:
    async with client().running(mosquitto.info.url) as asker, process(tmp_path, BLOCKING, mosquitto.info.url) as agent:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        agent.send(signal.SIGSTOP)
        await asyncio.sleep(1.0)
        agent.send(signal.SIGCONT)
        await known(lambda: re.fullmatch(r"the process stood still for \d+\.\d s", reason_of(asker)))
        await known(lambda: not reason_of(asker))


STUBBORN = """\
import asyncio

from mqttcollab import Agent, AgentOptions, Request

agent = Agent("echo-1", options=AgentOptions(grace_s=0.1))


@agent.service("knowledge.gpt/echo")
async def echo(request: Request) -> str:
    print("begun", flush=True)
    while True:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            pass


agent.run()
"""


@pytest.mark.parametrize("taken", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_handler_that_hangs_does_not_keep_its_process_alive(
    mosquitto: Broker, tmp_path: Path, taken: bool
) -> None:
    url = mosquitto.info.url
    async with client().running(url) as asker, process(tmp_path, STUBBORN, url) as agent:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        ask = asyncio.create_task(asker.ask("?", service=ECHO, ttl_s=60))
        await agent.says("begun")
        async with contextlib.AsyncExitStack() as stack:
            if taken:
                await stack.enter_async_context(echo_agent().running(url))
            else:
                agent.send(signal.SIGTERM)
            assert await agent.ended() == (1 if taken else 0)
        assert "1 of its tasks ignore that they are cancelled: the process ends without them" in agent.output
        assert agent.output.count("@echo-1: another process came up as @echo-1") == taken
        assert "Traceback" not in agent.output
        await known(lambda: registry.agents["echo-1"].status.state == "offline")  # type: ignore[union-attr]
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)


async def test_agents_share_the_watch_over_their_loop_and_it_ends_with_them(mosquitto: Broker) -> None:
    def watches() -> int:
        return sum(thread.name == "watchdog of the event loop" for thread in threading.enumerate())

    agents = [echo_agent(f"a-{number}", f"knowledge.gpt/a-{number}") for number in range(5)]
    async with together(mosquitto.info.url, *agents):
        assert watches() == 1
    await eventually(lambda: not watches())


# The places


class Work:
    def __init__(self, due: float = 1e12) -> None:
        self.due = due


async def test_places_are_given_in_order_and_to_nobody_who_has_gone() -> None:
    places, order = Places("s", 2), []
    holders = [Work(), Work()]
    for holder in holders:
        await places.take(holder)

    async def wait(name: int) -> None:
        work = Work()
        await places.take(work)
        order.append(name)
        places.leave(work)

    tasks = [asyncio.create_task(wait(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    places.leave(holders[0])
    tasks[1].cancel()  # it was given the place already, and passes it on
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [2, 3, 4, 5]
    await asyncio.wait_for(places.take(Work()), 1)


async def test_a_place_that_is_kept_is_not_given_away() -> None:
    places, first, rest = Places("s", 1), Work(), Work()
    await places.take(first)
    waiting = asyncio.create_task(places.take(Work()))
    await asyncio.sleep(0)
    places.keep(rest)
    places.leave(first)
    await asyncio.sleep(0)
    assert not waiting.done()
    places.leave(rest)
    await asyncio.wait_for(waiting, 1)
