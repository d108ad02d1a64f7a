"""A requester and a responder as a state machine: whatever the network does, each request ends once, its work is
done once, and nothing is left. Time is virtual.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from virtual_time import VirtualLoop

from mqttcollab.errors import DeadlineExceeded, RequestError
from mqttcollab.messages import Reply, Request
from mqttcollab.rpc import PartSender, Requester, Responder
from mqttcollab.topics import cancel_topic, request_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

T = TypeVar("T")
SERVICE = "knowledge.gpt/medicine"
TOPIC, CANCEL = request_topic(SERVICE, "medic"), cancel_topic(SERVICE, "medic")
SLOTS, ROOM = 2, 2
_TURNS = 40  # of the event loop, after which everything that needs no time has happened
NUMBER = st.integers(0, 99)


class Network(MemoryBroker):
    """Remembers what was sent, and may hold it back to deliver it in another order; what it holds dies with it."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.held: list[tuple[float, TransportMessage]] = []
        self.requests: dict[str, TransportMessage] = {}
        self.replies: list[TransportMessage] = []

    def deliver(self, message: TransportMessage) -> bool:
        if message.topic == TOPIC and message.correlation is not None:
            self.requests.setdefault(message.correlation.decode(), message)
        elif message.topic.startswith("reply.gpt/"):
            self.replies.append(message)
        if not self.holding:
            return super().deliver(message)
        self.held.append((asyncio.get_running_loop().time() + (message.expiry_s or 60), message))
        return True

    def release(self, first: int) -> None:
        """Delivers what was held, from some place on, and then what was before; not what has expired."""
        held, self.held, self.holding = self.held, [], False
        at = first % len(held) if held else 0
        for until, message in [*held[at:], *reversed(held[:at])]:
            if asyncio.get_running_loop().time() < until:
                super().deliver(message)


@dataclass
class Asked:
    """A request as its requester sees it."""

    task: asyncio.Task[Reply]
    deadline: float
    given_up: bool = False


@dataclass
class Work:
    """A request as its handler sees it."""

    outcome: asyncio.Future[str]
    send: PartSender


class Exchange(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("mqttcollab").setLevel(logging.CRITICAL)  # handlers fail here by the thousand
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.asked: dict[str, Asked] = {}
        self.working: dict[str, Work] = {}
        self.begun: Counter[str] = Counter()
        self.answers: dict[str, str] = {}
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def settled() -> T:
            result = await work
            await self.turns()
            return result

        return self.runner.run(settled())

    async def open(self) -> None:
        self.network = Network()
        self.medic, self.phone = MemoryTransport(self.network, "medic"), MemoryTransport(self.network, "phone")
        self.responder, self.requester = Responder(self.medic, "medic"), Requester(self.phone, "phone")
        self.stats = await self.responder.serve(SERVICE, self.handle, concurrency=SLOTS, queue_size=ROOM)
        await self.requester.start()
        await self.medic.connect()
        await self.phone.connect()

    async def turns(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def handle(self, request: Request, send: PartSender) -> Reply:
        self.begun[request.id] += 1
        work = self.working[request.id] = Work(asyncio.get_running_loop().create_future(), send)
        try:
            return Reply(id=request.id, output=await work.outcome)
        finally:
            if self.working.get(request.id) is work:
                del self.working[request.id]

    @property
    def now(self) -> float:
        return self.runner.get_loop().time()

    @property
    def clear(self) -> bool:
        """Whether what is sent now arrives now."""
        return self.network.up and not self.network.holding and self.medic.online and self.phone.online

    # What the requester does

    @rule(ttl_s=st.sampled_from([2, 20]), wait_ms=st.sampled_from([None, 0, 500]), idle_s=st.sampled_from([None, 5]))
    def ask(self, ttl_s: int, wait_ms: int | None, idle_s: float | None) -> None:
        request = self.requester.new_request("?", ttl_ms=1000 * ttl_s, max_wait_ms=wait_ms, stream=True)
        under_way, room = self.stats.running + self.stats.queued, 0 if wait_ms == 0 else ROOM
        clear = self.clear

        async def begin() -> None:
            task = asyncio.ensure_future(self.requester.ask(TOPIC, request, idle_s=idle_s))
            self.asked[request.id] = Asked(task, self.now + ttl_s)

        self.run(begin())
        if clear and under_way >= SLOTS + room:
            error = self.asked[request.id].task.exception()
            assert isinstance(error, RequestError) and error.code == "busy" and error.retry_after_ms, error
        elif clear and under_way < SLOTS:
            assert request.id in self.working

    @precondition(lambda self: self.asked)
    @rule(which=NUMBER)
    def give_up(self, which: int) -> None:
        request_id, asked = list(self.asked.items())[which % len(self.asked)]
        waited, clear = not asked.task.done(), self.clear
        asked.given_up = asked.given_up or waited
        asked.task.cancel()
        self.run(self.turns())
        if waited and clear:
            assert request_id not in self.working, "the agent goes on with what nobody wants"

    # What the agent does

    @precondition(lambda self: self.working)
    @rule(which=NUMBER, how=st.sampled_from(["ok", "ok", "refused", "failed"]))
    def finish(self, which: int, how: str) -> None:
        request_id, work = list(self.working.items())[which % len(self.working)]
        asked, clear = self.asked[request_id], self.clear
        waited_for = not asked.task.done()

        async def end() -> None:
            if how == "ok":
                self.answers[request_id] = f"answer {len(self.answers)}"
                work.outcome.set_result(self.answers[request_id])
            else:
                error = RequestError("no_capability", "?") if how == "refused" else ZeroDivisionError("?")
                work.outcome.set_exception(error)

        self.run(end())
        if clear and waited_for:
            assert asked.task.done()
            if how == "ok":
                assert asked.task.result().output == self.answers[request_id]
            else:
                error = asked.task.exception()
                assert isinstance(error, RequestError) and error.code in ("no_capability", "internal")

    @precondition(lambda self: self.working and self.clear)
    @rule(which=NUMBER)
    def send_part(self, which: int) -> None:
        work = list(self.working.values())[which % len(self.working)]
        self.run(work.send("a part", []))

    # What the network does

    @precondition(lambda self: self.network.requests)
    @rule(which=NUMBER)
    def deliver_a_request_again(self, which: int) -> None:
        request_id, message = list(self.network.requests.items())[which % len(self.network.requests)]

        async def repeat() -> None:
            if self.now < self.asked[request_id].deadline:  # past it the broker drops it
                self.network.deliver(message)

        self.run(repeat())

    @precondition(lambda self: self.network.replies)
    @rule(which=NUMBER)
    def deliver_a_reply_again(self, which: int) -> None:
        async def repeat() -> None:
            self.network.deliver(self.network.replies[which % len(self.network.replies)])

        self.run(repeat())

    @rule(which=NUMBER, known=st.booleans())
    def deliver_a_cancel_of_something_that_has_ended_or_never_was(self, which: int, known: bool) -> None:
        ended = [request_id for request_id, asked in self.asked.items() if asked.task.done()]
        request_id = ended[which % len(ended)] if known and ended else f"unknown-{which}"

        async def cancel() -> None:
            self.network.deliver(TransportMessage(CANCEL, request_id.encode()))

        self.run(cancel())

    @precondition(lambda self: not self.network.holding and self.network.up)
    @rule()
    def hold(self) -> None:
        self.network.holding = True

    @precondition(lambda self: self.network.holding)
    @rule(first=NUMBER)
    def release(self, first: int) -> None:
        async def release() -> None:
            self.network.release(first)

        self.run(release())

    @precondition(lambda self: self.network.up)
    @rule()
    def lose_the_broker(self) -> None:
        self.network.held.clear()
        self.network.holding = False
        self.run(self.network.stop())

    @precondition(lambda self: not self.network.up)
    @rule()
    def the_broker_comes_back(self) -> None:
        async def back() -> None:
            await self.network.start()
            await asyncio.sleep(0.05)

        self.run(back())

    @rule(who=st.sampled_from(["medic", "phone"]))
    def lose_a_connection(self, who: str) -> None:
        async def lose() -> None:
            if self.network.up:
                (self.medic if who == "medic" else self.phone).lose()

        self.run(lose())

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # What always holds

    @invariant()
    def the_work_of_each_request_is_done_once(self) -> None:
        assert not self.begun or max(self.begun.values()) == 1, self.begun

    @invariant()
    def no_more_is_under_way_than_there_is_room_for(self) -> None:
        assert 0 <= self.stats.running <= SLOTS and 0 <= self.stats.queued <= ROOM + SLOTS
        assert self.stats.running + self.stats.queued == len(self.responder._jobs) <= ROOM + SLOTS
        assert set(self.requester._calls) == {i for i, asked in self.asked.items() if not asked.task.done()}

    @invariant()
    def nobody_waits_past_the_deadline(self) -> None:
        late = [i for i, asked in self.asked.items() if not asked.task.done() and self.now > asked.deadline + 0.1]
        assert not late

    @invariant()
    def each_outcome_is_that_of_its_own_request(self) -> None:
        for request_id, asked in self.asked.items():
            if not asked.task.done():
                continue
            if asked.task.cancelled():
                assert asked.given_up
            elif (error := asked.task.exception()) is not None:
                assert isinstance(error, RequestError), error
                assert isinstance(error, DeadlineExceeded) == (error.code == "deadline_exceeded")
                # An agent says `cancelled` only where the requester has given up, or its connection was lost meanwhile.
                assert error.code in ("busy", "no_capability", "internal", "deadline_exceeded"), error
            else:
                reply = asked.task.result()
                assert (reply.id, reply.output) == (request_id, self.answers[request_id])

    def teardown(self) -> None:
        try:
            self.run(self.close())
        finally:
            self.runner.close()
            logging.getLogger("mqttcollab").setLevel(logging.NOTSET)

    async def close(self) -> None:
        """All requests end by themselves, and nothing of them is left."""
        await self.network.start()
        self.network.release(0)
        await asyncio.sleep(30)
        assert all(asked.task.done() for asked in self.asked.values())
        self.each_outcome_is_that_of_its_own_request()
        assert not self.requester._calls and not self.responder._jobs and not self.working
        assert (self.stats.running, self.stats.queued) == (0, 0)
        assert self.stats.completed + self.stats.failed <= len(self.asked)
        await self.requester.stop()
        await self.responder.stop()
        for transport in (self.medic, self.phone):
            await transport.close()
        await self.turns()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=40, stateful_step_count=30, derandomize=True)


@pytest.mark.slow
def test_thoroughly() -> None:
    run_state_machine_as_test(Exchange, settings=settings(max_examples=300, stateful_step_count=50, deadline=None))
