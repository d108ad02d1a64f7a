"""The delivery promises of topics.md, section 17: one test each, of the name that stands there."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet import ECHO, MINIMAL, process
from harness import Inbox, MqttSetup, Setup, eventually

from mqttcollab.codec import JSON, decode, encode
from mqttcollab.errors import DeadlineExceeded, RequestError
from mqttcollab.messages import Reply, Request
from mqttcollab.rpc import Requester, Responder
from mqttcollab.rpc.job import PartSender
from mqttcollab.topics import cancel_topic, reply_topic, request_topic
from mqttcollab.transport.base import Transport, TransportMessage

HERE = Path(__file__).parent
# Promises of durable services, whose tests come with the journal.
TO_COME = {
    "test_a_request_is_written_down_before_it_is_acknowledged",
    "test_a_task_outlives_its_orchestrator",
    "test_another_orchestrator_takes_over",
    "test_nothing_is_answered_twice",
}
ASKED = request_topic(ECHO, "echo-1")
both = pytest.mark.parametrize("setup", ["memory", "mosquitto-5", "mosquitto-3.1.1"], indirect=True)


class Worker:
    """A service whose work ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, request: Request, send_part: PartSender) -> Reply:
        self.begun.append(request.id)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        return Reply(id=request.id, output=f"{len(self.begun)}")


class Asking:
    """A requester by hand: sees every reply that comes."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.inbox = Inbox()

    async def ask(self, request_id: str, **fields: object) -> None:
        request = Request(id=request_id, reply_to=reply_topic("hand", request_id), input="?", **fields)  # type: ignore[arg-type]
        await self.transport.publish(TransportMessage(ASKED, encode(request), content_type=JSON))

    async def cancel(self, request_id: str) -> None:
        await self.transport.publish(TransportMessage(cancel_topic(ECHO, "echo-1"), request_id.encode()))

    def replies(self, request_id: str) -> list[Reply]:
        return [
            decode(Reply, got.payload, sent_type=got.type, limit=1 << 20)
            for got in self.inbox.messages
            if got.topic.endswith(f"/{request_id}")
        ]


@contextlib.asynccontextmanager
async def served(setup: Setup, worker: Worker, *, queue_size: int = 32) -> AsyncIterator[Asking]:
    responder = Responder(await setup.connected("echo-1"), "echo-1")
    await responder.serve(ECHO, worker, queue_size=queue_size)
    asking = Asking(await setup.connected("hand"))
    await asking.transport.subscribe("reply.gpt/@hand/+", asking.inbox)
    try:
        yield asking
    finally:
        worker.go_on.set()
        await responder.stop()


@pytest.mark.parametrize(
    "setup",
    ["mosquitto-5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mosquitto-3.1.1", "nats-3.1.1"))],
    indirect=True,
)
async def test_a_request_the_broker_took_reaches_the_agent_once_it_is_there(setup: MqttSetup, tmp_path: Path) -> None:
    url = setup.broker.info.url + setup.query
    requester = Requester(await setup.connected("asker"), "asker")
    await requester.start()
    async with process(tmp_path, MINIMAL, url) as first:
        await first.says("is online")
        first.send(signal.SIGKILL)
        await first.ended()
        asks = [
            asyncio.create_task(requester.ask(ASKED, requester.new_request(f"{number}", ttl_ms=30_000)))
            for number in range(20)
        ]
        await eventually(lambda: all(call.sent for call in requester._calls.values()))
        async with process(tmp_path, MINIMAL, url):
            replies = await asyncio.wait_for(asyncio.gather(*asks), 30)
    assert [reply.output for reply in replies] == [f"{number}" for number in range(20)]
    await requester.stop()


@both
async def test_a_repeat_gets_the_same_reply_and_the_work_is_done_once(setup: Setup) -> None:
    worker = Worker()
    async with served(setup, worker) as asking:
        for _ in range(3):
            await asking.ask("r1")
        await eventually(lambda: len(worker.begun) == 1)
        worker.go_on.set()
        await eventually(lambda: len(asking.replies("r1")) == 1)
        await asking.ask("r1")
        await eventually(lambda: len(asking.replies("r1")) == 2)
        assert {got.payload for got in asking.inbox.messages} == {asking.inbox.messages[0].payload}
        assert worker.begun == ["r1"]


@both
async def test_a_reply_after_its_requester_gave_up_is_dropped(setup: Setup) -> None:
    agent, requester = await setup.connected("echo-1"), Requester(await setup.connected("asker"), "asker")
    await requester.start()
    asked = Inbox()
    await agent.subscribe(ASKED, asked)
    request = requester.new_request("?", ttl_ms=100)
    with pytest.raises(DeadlineExceeded):
        await requester.ask(ASKED, request)
    await asked.count(1)
    late = encode(Reply(id=request.id, output="too late"))
    await agent.publish(TransportMessage(request.reply_to, late, content_type=JSON))
    await eventually(lambda: requester.stats.late == 1)
    await requester.stop()


@both
async def test_a_request_past_its_ttl_is_not_begun(setup: Setup) -> None:
    worker = Worker()
    async with served(setup, worker) as asking:
        await asking.ask("r1")
        await eventually(lambda: worker.begun == ["r1"])
        await asking.ask("brief", ttl_ms=50)  # waits behind the first
        await asyncio.sleep(0.1)
        worker.go_on.set()
        await asking.ask("r2")
        await eventually(lambda: bool(asking.replies("r2")))
        assert worker.begun == ["r1", "r2"]
        assert asking.replies("brief") == []


@both
async def test_a_cancel_ends_the_work_or_does_nothing(setup: Setup) -> None:
    worker = Worker()
    async with served(setup, worker) as asking:
        await asking.ask("r1")
        await eventually(lambda: worker.begun == ["r1"])
        await asking.cancel("r1")
        await eventually(lambda: bool(asking.replies("r1")))
        (reply,) = asking.replies("r1")
        assert reply.error is not None
        assert reply.error.code == "cancelled"
        assert worker.cancelled == ["r1"]
        worker.go_on.set()
        await asking.ask("r2")
        await eventually(lambda: bool(asking.replies("r2")))
        await asking.cancel("r2")  # it has been answered
        await asking.cancel("nobody knows this one")
        await asking.ask("r3")
        await eventually(lambda: bool(asking.replies("r3")))
        assert [reply.status for name in ("r2", "r3") for reply in asking.replies(name)] == ["ok", "ok"]


@both
async def test_a_full_queue_answers_busy_at_once(setup: Setup) -> None:
    worker = Worker()
    async with served(setup, worker, queue_size=2) as asking:
        for number in range(6):
            await asking.ask(f"r{number}")
        await eventually(lambda: all(asking.replies(f"r{number}") for number in (3, 4, 5)))
        for number in (3, 4, 5):
            (reply,) = asking.replies(f"r{number}")
            assert reply.error is not None
            assert reply.error.code == "busy"
            assert (reply.error.retry_after_ms or 0) > 0
        worker.go_on.set()
        await eventually(lambda: all(asking.replies(f"r{number}") for number in (0, 1, 2)))
        assert len(asking.inbox.messages) == 6


@both
async def test_parts_come_in_order_and_the_last_reply_has_all_of_them(setup: Setup) -> None:
    async def tell(request: Request, send_part: PartSender) -> Reply:
        for number in range(200):
            await send_part(f"{number} ", [])
        return Reply(id=request.id, output="".join(f"{number} " for number in range(200)))

    responder, requester = Responder(await setup.connected("echo-1"), "echo-1"), None
    await responder.serve(ECHO, tell)
    requester = Requester(await setup.connected("asker"), "asker")
    await requester.start()
    parts: list[Reply] = []
    last = await requester.ask(ASKED, requester.new_request("?", stream=True), on_part=parts.append)
    seen = [part.seq for part in parts]
    assert seen == sorted(set(seen))
    assert last.seq == 200
    if seen == list(range(200)):  # none was overtaken
        assert "".join(part.output or "" for part in parts) == last.output
    assert last.output == "".join(f"{number} " for number in range(200))
    await requester.stop()
    await responder.stop()


@both
async def test_an_agent_that_stops_answers_what_it_had_taken(setup: Setup) -> None:
    worker = Worker()
    responder = Responder(await setup.connected("echo-1"), "echo-1")
    await responder.serve(ECHO, worker)
    requester = Requester(await setup.connected("asker"), "asker")
    await requester.start()
    asks = [asyncio.create_task(requester.ask(ASKED, requester.new_request("?"))) for _ in range(3)]
    await eventually(lambda: len(worker.begun) == 1 and responder.services[ECHO].stats.queued == 2)
    await responder.stop(grace_s=0.05)
    for ended in await asyncio.gather(*asks, return_exceptions=True):
        assert isinstance(ended, RequestError)
        assert ended.code == "cancelled"
    await requester.stop()


def test_every_promise_has_its_test() -> None:
    text = (HERE.parent / "topics.md").read_text()
    section = text.partition("\n## 17. Delivery promises\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", section))
    there = {name for file in HERE.glob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())}
    assert named - there == TO_COME - there
    own = set(re.findall(r"def (test_\w+)\(", Path(__file__).read_text())) - {"test_every_promise_has_its_test"}
    assert own <= named
