"""Request and reply, on the broker in memory, on Mosquitto with MQTT 5 and 3.1.1, and on nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cbor2
import pytest
from harness import LIMIT_S, Inbox, Setup, eventually

from mqttcollab.codec import CBOR, decode, decode_map, encode
from mqttcollab.errors import DeadlineExceeded, MessageError, RequestError, RuntimeFailure, TransportError
from mqttcollab.messages import MAX_HOPS, Reply, Request, Step
from mqttcollab.rpc import PartSender, Requester, Responder, ServiceStats, current_request
from mqttcollab.topics import cancel_topic, request_topic
from mqttcollab.transport.base import Transport, TransportMessage

SERVICE = "knowledge.gpt/medicine"
TOPIC = request_topic(SERVICE, "medic")
CANCEL = cancel_topic(SERVICE, "medic")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROPERTIES = pytest.mark.parametrize("setup", ["memory", "mosquitto-5"], indirect=True)

Handler = Callable[[Request, PartSender], Awaitable[Reply]]


async def echo(request: Request, send: PartSender) -> Reply:
    return Reply(id=request.id, output=request.text)


class Peers:
    """Agents on connections of their own, stopped in the end."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._stack = contextlib.AsyncExitStack()

    async def medic(
        self, handler: Handler, *, name: str = "medic", limit: int = 256 * 1024, **options: int
    ) -> tuple[Responder, ServiceStats]:
        responder = Responder(self.setup.client(name), name, limit)
        stats = await responder.serve(SERVICE, handler, **options)
        await responder.transport.connect()  # type: ignore[attr-defined]
        self._stack.push_async_callback(responder.stop, grace_s=0.1)
        return responder, stats

    async def phone(self, name: str = "phone") -> Requester:
        requester = Requester(self.setup.client(name), name)
        await requester.start()
        await requester.transport.connect()  # type: ignore[attr-defined]
        self._stack.push_async_callback(requester.stop)
        return requester

    async def stranger(self) -> tuple[Transport, Inbox]:
        """A device without our library, that listens on `reply.gpt/@tiny/+`."""
        transport, inbox = await self.setup.connected("tiny"), Inbox()
        await transport.subscribe("reply.gpt/@tiny/+", inbox)
        return transport, inbox

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def peers(setup: Setup) -> AsyncIterator[Peers]:
    peers = Peers(setup)
    yield peers
    await peers.close()


def raw(request_id: str = "1", **fields: Any) -> dict[str, Any]:
    """A request as another implementation would write it."""
    content = {"type": "mqttcollab.request.v1", "id": request_id, "reply_to": f"reply.gpt/@tiny/{request_id}"}
    return content | {"input": "Hello?"} | fields


def sent(content: dict[str, Any] | bytes, **fields: Any) -> TransportMessage:
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    return TransportMessage(TOPIC, payload, **fields)


def replies(inbox: Inbox) -> list[Reply]:
    return [decode(Reply, message.payload) for message in inbox.messages]


async def refusal(asking: Awaitable[Reply]) -> RequestError:
    with pytest.raises(RequestError) as error:
        async with asyncio.timeout(LIMIT_S):
            await asking
    assert "\n" not in str(error.value)
    return error.value


# --- request and reply


async def test_a_question_is_answered(peers: Peers) -> None:
    _, stats = await peers.medic(echo)
    phone = await peers.phone()
    reply = await phone.ask(TOPIC, phone.new_request("My head hurts"))
    assert (reply.output, reply.status, reply.last) == ("My head hurts", "ok", True)
    assert (reply.agent, reply.service) == ("medic", SERVICE)
    assert reply.timing is not None and reply.timing.elapsed_ms is not None
    assert (stats.completed, stats.failed, stats.running, stats.queued) == (1, 0, 0, 0)


async def test_a_question_in_cbor_is_answered_in_cbor(peers: Peers) -> None:
    await peers.medic(echo)
    phone = await peers.phone()
    phone.content_type = CBOR
    watch = Inbox()
    await (await peers.setup.connected("watch")).subscribe([TOPIC, "reply.gpt/#"], watch)
    assert (await phone.ask(TOPIC, phone.new_request({"text": "17 + 25", "n": [1]}))).output == "17 + 25"
    for message in await watch.count(2):
        assert message.payload.startswith(bytes.fromhex("d9d9f7"))


async def test_hundreds_of_questions_at_once(peers: Peers) -> None:
    async def wait_a_turn(request: Request, send: PartSender) -> Reply:
        await asyncio.sleep(0.01)
        return await echo(request, send)

    _, stats = await peers.medic(wait_a_turn, concurrency=100, queue_size=400)
    phone = await peers.phone()
    answers = await asyncio.gather(*(phone.ask(TOPIC, phone.new_request(f"{n}")) for n in range(500)))
    assert [answer.output for answer in answers] == [f"{n}" for n in range(500)]
    assert (stats.completed, stats.running, stats.queued) == (500, 0, 0)


async def test_no_more_handlers_run_at_once_than_there_are_slots(peers: Peers) -> None:
    running, most = 0, 0

    async def count(request: Request, send: PartSender) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return Reply(id=request.id)

    await peers.medic(count, concurrency=3)
    phone = await peers.phone()
    await asyncio.gather(*(phone.ask(TOPIC, phone.new_request("?")) for _ in range(20)))
    assert most == 3


async def test_unknown_fields_are_ignored(peers: Peers) -> None:
    await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw(mood="curious", parameters={"sparkle": 1})))
    await inbox.count(1)
    assert replies(inbox)[0].output == "Hello?"


async def test_a_service_without_an_agent_is_asked_in_turn(peers: Peers) -> None:
    if not peers.setup.shared:
        pytest.skip("nats-server has no shared subscriptions")
    await peers.medic(echo, name="medic-1")
    await peers.medic(echo, name="medic-2")
    phone = await peers.phone()
    answers = [await phone.ask(request_topic(SERVICE), phone.new_request("?")) for _ in range(6)]
    assert {answer.agent for answer in answers} == {"medic-1", "medic-2"}


# --- streams


async def test_parts_come_in_order_and_the_whole_at_the_end(peers: Peers) -> None:
    async def count(request: Request, send: PartSender) -> Reply:
        for n in range(20):
            await send(f"{n} ", [Step(service=SERVICE)] if n == 3 else [])
        return Reply(id=request.id, output="".join(f"{n} " for n in range(20)))

    await peers.medic(count)
    phone = await peers.phone()
    parts = [part async for part in phone.stream(TOPIC, phone.new_request("Count", stream=True))]
    assert [part.seq for part in parts] == list(range(21))
    assert [part.last for part in parts] == [False] * 20 + [True]
    assert "".join(part.output or "" for part in parts[:-1]) == parts[-1].output
    assert [step.service for step in parts[3].steps] == [SERVICE]


async def test_a_part_that_comes_twice_is_taken_once(peers: Peers) -> None:
    phone = await peers.phone()
    tiny = await peers.setup.connected("tiny")
    request = phone.new_request("Count")
    await tiny.subscribe(TOPIC, Inbox())
    seen: list[int] = []
    asking = asyncio.create_task(phone.ask(TOPIC, request, on_part=lambda part: seen.append(part.seq)))
    for seq in (0, 1, 1, 0, 2):
        part = Reply(id=request.id, seq=seq, last=False, status="partial")
        await tiny.publish(TransportMessage(request.reply_to, encode(part)))
    await tiny.publish(TransportMessage(request.reply_to, encode(Reply(id=request.id, seq=3))))
    async with asyncio.timeout(LIMIT_S):
        assert (await asking).seq == 3
    assert seen == [0, 1, 2]


async def test_who_stops_reading_a_stream_cancels_it(peers: Peers) -> None:
    ended = asyncio.Event()

    async def talk(request: Request, send: PartSender) -> Reply:
        try:
            while True:
                await send("on and on", [])
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    await peers.medic(talk)
    phone = await peers.phone()
    async with contextlib.aclosing(phone.stream(TOPIC, phone.new_request("Talk"))) as parts:
        async for part in parts:
            if part.seq == 3:
                break
    async with asyncio.timeout(LIMIT_S):
        await ended.wait()


# --- cancel, time to live, idle time-out


async def test_a_cancel_reaches_the_handler_and_frees_its_slot(peers: Peers) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def ponder(request: Request, send: PartSender) -> Reply:
        if request.text != "Ponder":
            return await echo(request, send)
        begun.set()
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    _, stats = await peers.medic(ponder)
    phone = await peers.phone()
    asking = asyncio.create_task(phone.ask(TOPIC, phone.new_request("Ponder")))
    await begun.wait()
    asking.cancel()
    async with asyncio.timeout(LIMIT_S):
        await ended.wait()
    assert (await phone.ask(TOPIC, phone.new_request("Still there?"))).output == "Still there?"
    assert (stats.running, stats.queued, stats.failed, stats.completed) == (0, 0, 1, 1)
    await eventually(lambda: phone.stats.late == 1)  # the reply `cancelled`, which nobody waits for


async def test_a_cancel_right_behind_its_request_leaves_nothing_behind(peers: Peers) -> None:
    responder, stats = await peers.medic(echo, concurrency=2, queue_size=0)
    tiny, inbox = await peers.stranger()
    for n in range(10):
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(tiny.publish(sent(raw(f"{n}"))), tiny.publish(TransportMessage(CANCEL, b"%d" % n)))
        await inbox.count(n + 1)
    assert {reply.status for reply in replies(inbox)} <= {"ok", "error"}
    assert {reply.error.code for reply in replies(inbox) if reply.error} <= {"cancelled"}
    assert (stats.running, stats.queued) == (0, 0)
    assert stats.completed + stats.failed == 10
    await tiny.publish(sent(raw("0")))  # a repeat is answered from memory, not joined to what never ended
    await inbox.count(11)
    await tiny.publish(TransportMessage(CANCEL, b"unknown"))
    assert responder.rejected == 0


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_handler_that_does_not_return_in_time_is_stopped_and_not_heard(peers: Peers, stubborn: bool) -> None:
    ended = []

    async def sleep(request: Request, send: PartSender) -> Reply:
        if request.text == "Sleep":
            try:
                await asyncio.Future()
            except asyncio.CancelledError:
                ended.append(request.id)
                if not stubborn:
                    raise
        return Reply(id=request.id, output=request.text)

    _, stats = await peers.medic(sleep)
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1", input="Sleep", ttl_ms=50)))
    await eventually(lambda: ended == ["1"])
    await tiny.publish(sent(raw("2", input="Awake?")))
    await inbox.count(1)
    assert [(reply.id, reply.output) for reply in replies(inbox)] == [("2", "Awake?")]
    assert (stats.running, stats.queued, stats.failed, stats.completed) == (0, 0, 1, 1)


async def test_no_answer_in_time_is_a_time_out_and_frees_the_slot(peers: Peers) -> None:
    async def sleep(request: Request, send: PartSender) -> Reply:
        if request.text == "Sleep":
            await asyncio.Future()
        return Reply(id=request.id, output=request.text)

    await peers.medic(sleep)
    phone = await peers.phone()
    error = await refusal(phone.ask(TOPIC, phone.new_request("Sleep", ttl_ms=100)))
    assert isinstance(error, DeadlineExceeded) and isinstance(error, TimeoutError)
    assert str(error) == f"deadline_exceeded: no answer from {TOPIC} within 0.1 s"
    assert (await phone.ask(TOPIC, phone.new_request("Awake?"))).output == "Awake?"


async def test_a_request_whose_time_is_over_in_the_queue_is_never_begun(peers: Peers) -> None:
    begun, release = [], asyncio.Event()

    async def wait(request: Request, send: PartSender) -> Reply:
        begun.append(request.id)
        await release.wait()
        return Reply(id=request.id)

    _, stats = await peers.medic(wait)
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1")))
    await tiny.publish(sent(raw("2", ttl_ms=50)))
    await eventually(lambda: stats.failed == 1)
    release.set()
    await tiny.publish(sent(raw("3")))
    await inbox.count(2)
    assert begun == ["1", "3"]
    assert [reply.id for reply in replies(inbox)] == ["1", "3"]


async def test_every_part_is_a_sign_of_life(peers: Peers) -> None:
    async def mumble(request: Request, send: PartSender) -> Reply:
        for _ in range(8):
            await send(None, [])
            await asyncio.sleep(0.1)
        if request.text == "Fall asleep":
            await asyncio.Future()
        return Reply(id=request.id, output="done")

    await peers.medic(mumble, concurrency=2)
    phone = await peers.phone()
    awake, asleep = await asyncio.gather(
        phone.ask(TOPIC, phone.new_request("Mumble"), idle_s=0.5),
        phone.ask(TOPIC, phone.new_request("Fall asleep"), idle_s=0.5),
        return_exceptions=True,
    )
    assert isinstance(awake, Reply) and awake.output == "done"
    assert isinstance(asleep, DeadlineExceeded) and "within 0.5 s without a sign of life" in str(asleep)


# --- repeats


async def test_a_repeat_gets_the_same_reply_and_the_work_is_done_once(peers: Peers) -> None:
    done = []

    async def work(request: Request, send: PartSender) -> Reply:
        done.append(request.id)
        return Reply(id=request.id, output=f"done {len(done)} times")

    await peers.medic(work)
    tiny, inbox = await peers.stranger()
    for n in range(3):
        await tiny.publish(sent(raw("1")))
        await inbox.count(n + 1)
    assert done == ["1"]
    assert len(set(inbox.payloads)) == 1


async def test_a_repeat_joins_the_work_that_is_under_way(peers: Peers) -> None:
    done, release = [], asyncio.Event()

    async def work(request: Request, send: PartSender) -> Reply:
        done.append(request.id)
        await release.wait()
        return Reply(id=request.id)

    await peers.medic(work, concurrency=2)
    tiny, inbox = await peers.stranger()
    for _ in range(3):
        await tiny.publish(sent(raw("1")))
    await tiny.publish(sent(raw("2")))
    await eventually(lambda: done == ["1", "2"])
    release.set()
    await inbox.count(2)
    await tiny.publish(sent(raw("3")))
    await inbox.count(3)
    assert [reply.id for reply in replies(inbox)] == ["1", "2", "3"]
    assert done == ["1", "2", "3"]


async def test_the_same_id_from_another_requester_is_another_request(peers: Peers) -> None:
    await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1", input="mine")))
    await inbox.count(1)
    other = Inbox()
    await tiny.subscribe("reply.gpt/@other/1", other)
    await tiny.publish(sent(raw("1", input="theirs", reply_to="reply.gpt/@other/1")))
    await other.count(1)
    assert replies(other)[0].output == "theirs"


# --- errors have codes


async def test_a_full_queue_says_when_to_come_again(peers: Peers) -> None:
    release = asyncio.Event()

    async def wait(request: Request, send: PartSender) -> Reply:
        await release.wait()
        return Reply(id=request.id)

    _, stats = await peers.medic(wait, queue_size=2)
    phone = await peers.phone()
    accepted = [asyncio.create_task(phone.ask(TOPIC, phone.new_request("?"))) for _ in range(3)]
    await eventually(lambda: stats.running + stats.queued == 3)
    busy = await refusal(phone.ask(TOPIC, phone.new_request("?")))
    assert (busy.code, busy.message) == ("busy", "@medic has 1 requests running and 2 waiting")
    assert busy.retry_after_ms is not None and busy.retry_after_ms > 0
    release.set()
    await asyncio.gather(*accepted)
    await phone.ask(TOPIC, phone.new_request("?"))


async def test_a_request_that_may_not_wait_is_begun_at_once_or_turned_away(peers: Peers) -> None:
    release = asyncio.Event()

    async def wait(request: Request, send: PartSender) -> Reply:
        await release.wait()
        return Reply(id=request.id)

    _, stats = await peers.medic(wait, concurrency=2, queue_size=0)
    phone = await peers.phone()
    begun = [asyncio.create_task(phone.ask(TOPIC, phone.new_request("?", max_wait_ms=0))) for _ in range(2)]
    await eventually(lambda: stats.running == 2)
    busy = await refusal(phone.ask(TOPIC, phone.new_request("?", max_wait_ms=0)))
    assert (busy.code, busy.message) == ("busy", "@medic has 2 requests running and 0 waiting")
    assert busy.retry_after_ms
    release.set()
    assert [reply.status for reply in await asyncio.gather(*begun)] == ["ok", "ok"]
    await phone.ask(TOPIC, phone.new_request("?", max_wait_ms=0))
    assert (stats.completed, stats.failed, stats.running, stats.queued) == (3, 0, 0, 0)


async def test_who_may_not_wait_does_not_pass_those_who_do(peers: Peers) -> None:
    release, begun = asyncio.Event(), []

    async def wait(request: Request, send: PartSender) -> Reply:
        begun.append(request.text)
        await release.wait()
        return Reply(id=request.id)

    _, stats = await peers.medic(wait)
    phone = await peers.phone()
    patient = [asyncio.create_task(phone.ask(TOPIC, phone.new_request(f"{n}", max_wait_ms=60_000))) for n in range(3)]
    await eventually(lambda: (stats.running, stats.queued) == (1, 2))
    assert (await refusal(phone.ask(TOPIC, phone.new_request("now", max_wait_ms=0)))).code == "busy"
    release.set()
    await asyncio.gather(*patient)
    assert begun == ["0", "1", "2"]


async def test_a_request_that_has_waited_long_enough_is_turned_away_and_may_come_again(peers: Peers) -> None:
    release, begun = asyncio.Event(), []

    async def wait(request: Request, send: PartSender) -> Reply:
        begun.append(request.id)
        await release.wait()
        return Reply(id=request.id)

    _, stats = await peers.medic(wait)
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1")))
    await eventually(lambda: stats.running == 1)
    await tiny.publish(sent(raw("2", max_wait_ms=50)))
    await tiny.publish(sent(raw("3")))
    busy = (await inbox.count(1))[0]
    reply = decode(Reply, busy.payload)
    assert reply.error is not None
    assert (reply.id, reply.agent, reply.error.code, reply.error.retry_after_ms) == ("2", "medic", "busy", 1000)
    assert reply.error.message == "@medic has 1 requests running and 1 waiting"
    release.set()
    await inbox.count(3)
    await tiny.publish(sent(raw("2", max_wait_ms=0)))  # no repeat: it was never begun
    await inbox.count(4)
    assert begun == ["1", "3", "2"]
    assert (stats.completed, stats.failed, stats.running, stats.queued) == (3, 0, 0, 0)


async def test_the_limit_of_waiting_does_not_end_what_has_begun(peers: Peers) -> None:
    async def work(request: Request, send: PartSender) -> Reply:
        await asyncio.sleep(0.2)
        return await echo(request, send)

    await peers.medic(work)
    phone = await peers.phone()
    for wait_ms in (0, 50):
        assert (await phone.ask(TOPIC, phone.new_request("Slowly", max_wait_ms=wait_ms))).output == "Slowly"


FAILURES: list[tuple[BaseException, str, str]] = [
    (RequestError("no_capability", "not my field"), "no_capability", "not my field"),
    (RequestError("quota_exceeded", "enough", retry_after_ms=9), "quota_exceeded", "enough"),
    (DeadlineExceeded("my source is silent"), "deadline_exceeded", "my source is silent"),
    (MessageError("what is this?"), "bad_request", "what is this?"),
    (RuntimeFailure("model x can't be loaded"), "internal", "model x can't be loaded"),
    (ZeroDivisionError("secret detail"), "internal", "failed: ZeroDivisionError"),
    (TimeoutError("secret detail"), "internal", "failed: TimeoutError"),
    (asyncio.CancelledError("secret detail"), "internal", "failed: CancelledError"),
]


async def test_what_a_handler_raises_becomes_a_code(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request, send: PartSender) -> Reply:
        raise FAILURES[int(request.text)][0]

    _, stats = await peers.medic(fail)
    phone = await peers.phone()
    with caplog.at_level(logging.ERROR, "mqttcollab"):
        for number, (error, code, message) in enumerate(FAILURES):
            got = await refusal(phone.ask(TOPIC, phone.new_request(f"{number}")))
            assert got.code == code
            assert message in got.message and "secret detail" not in got.message
            assert got.retry_after_ms == getattr(error, "retry_after_ms", None)
    assert (stats.failed, stats.completed, stats.running) == (len(FAILURES), 0, 0)
    assert len([record for record in caplog.records if record.exc_info]) == 3  # what nobody expected


async def test_an_answer_that_can_not_be_encoded_is_internal(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: Request, send: PartSender) -> Reply:
        reply = Reply(id=request.id, data={})
        reply.data = {"x": object()}
        return reply

    await peers.medic(answer)
    phone = await peers.phone()
    with caplog.at_level(logging.CRITICAL, "mqttcollab"):
        error = await refusal(phone.ask(TOPIC, phone.new_request("?")))
    assert (error.code, error.message) == ("internal", f"the answer of {SERVICE} can't be encoded")


async def test_what_is_too_large_is_refused(peers: Peers) -> None:
    async def repeat(request: Request, send: PartSender) -> Reply:
        if request.stream:
            await send("x" * 3000, [])
        return Reply(id=request.id, output="x" * 3000)

    responder, _ = await peers.medic(repeat, limit=2000)
    phone = await peers.phone()
    phone.limit = 2000
    own = await refusal(phone.ask(TOPIC, phone.new_request("x" * 3000)))
    assert own.code == "too_large" and "the limit is 2000" in own.message
    reply = await refusal(phone.ask(TOPIC, phone.new_request("?")))
    assert reply.code == "too_large" and "the limit is 2000" in reply.message
    part = await refusal(phone.ask(TOPIC, phone.new_request("?", stream=True)))
    assert part.code == "too_large"
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1", input="x" * 3000)))
    await inbox.count(1)
    theirs = replies(inbox)[0].error
    assert theirs is not None and theirs.code == "too_large" and "over the limit of 2000" in theirs.message
    assert responder.rejected == 1


async def test_a_request_that_goes_in_circles_is_refused(peers: Peers) -> None:
    await peers.medic(echo)
    phone = await peers.phone()
    assert (await phone.ask(TOPIC, phone.new_request("?", hops=MAX_HOPS))).output == "?"
    error = await refusal(phone.ask(TOPIC, phone.new_request("?", hops=MAX_HOPS + 1)))
    assert error.code == "bad_request" and "goes in circles" in error.message


async def test_a_request_that_is_not_valid_is_refused_before_it_is_sent(peers: Peers) -> None:
    phone = await peers.phone()
    with pytest.raises(MessageError, match="the request is not valid: ttl_ms: Input should be greater") as error:
        phone.new_request("?", ttl_ms=0)
    assert "\n" not in str(error.value)


async def test_nobody_there(peers: Peers) -> None:
    phone = await peers.phone()
    error = await refusal(phone.ask(TOPIC, phone.new_request("?", ttl_ms=300)))
    if peers.setup.mqtt5:
        assert (error.code, error.message) == ("no_capability", f"nobody listens on {TOPIC}: is its agent running?")
    else:
        assert isinstance(error, DeadlineExceeded)


# --- bad requests


BAD = [
    (json.dumps(raw(ttl_ms=-1)).encode(), "bad_request", "ttl_ms"),
    (json.dumps(raw(input=7)).encode(), "bad_request", "input"),
    (json.dumps(raw(id="a/b", reply_to="reply.gpt/@tiny/1")).encode(), "bad_request", "can't be a topic level"),
    (json.dumps(raw(service="knowledge.gpt/+")).encode(), "bad_request", "has a wildcard"),
    (json.dumps(raw(type="mqttcollab.request.v2")).encode(), "unsupported", "this side speaks"),
    (json.dumps(raw(type="mqttcollab.load.v1")).encode(), "bad_request", "is not known here"),
    (bytes.fromhex("d9d9f7") + cbor2.dumps(raw(ttl_ms="soon")), "bad_request", "ttl_ms"),
]


async def test_a_bad_request_is_answered_where_it_says_where(peers: Peers) -> None:
    responder, _ = await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    for number, (payload, code, words) in enumerate(BAD):
        await tiny.publish(sent(payload))
        await inbox.count(number + 1)
        reply = replies(inbox)[number]
        assert reply.error is not None
        assert (reply.id, reply.status, reply.error.code) == ("1", "error", code)
        assert words in reply.error.message and "\n" not in reply.error.message
        assert (responder.rejected, reply.agent) == (number + 1, "medic")
        assert responder.last_rejection is not None and words in responder.last_rejection


@PROPERTIES
async def test_a_response_topic_tells_where_to_answer_what_does_not_decode(peers: Peers) -> None:
    await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    for payload in (b"{", b"\xd9\xd9\xf7\xa1", b""):
        await tiny.publish(sent(payload, response_topic="reply.gpt/@tiny/7", type="mqttcollab.request.v1"))
    await inbox.count(3)
    assert {(reply.id, reply.error.code) for reply in replies(inbox) if reply.error} == {("7", "bad_request")}


UNANSWERABLE = [
    b"{",
    b"not json",
    b"[]",
    bytes.fromhex("d9d9f7a1"),
    bytes.fromhex("d9d9f7") + b"\x81" * 1000,
    b'{"type": "mqttcollab.request.v1"}',
    json.dumps(raw(reply_to="slm/agents/@tiny/status")).encode(),
    json.dumps(raw(reply_to="reply.gpt/@tiny/+")).encode(),
    json.dumps(raw(reply_to=None)).encode(),
    json.dumps(raw(type="mqttcollab.request.v2", reply_to="knowledge.gpt/medicine/@medic/request")).encode(),
]


async def test_what_can_not_be_answered_is_counted_and_goes_nowhere(peers: Peers) -> None:
    responder, stats = await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    watch = await peers.setup.connected("watch")
    everything = Inbox()
    await watch.subscribe("#", everything)
    for payload in UNANSWERABLE:
        await tiny.publish(sent(payload))
    await tiny.publish(sent(raw("2")))
    await inbox.count(1)
    await eventually(lambda: "reply.gpt/@tiny/2" in {message.topic for message in everything.messages})
    assert {message.topic for message in everything.messages} == {TOPIC, "reply.gpt/@tiny/2"}
    assert (responder.rejected, stats.completed, stats.failed) == (len(UNANSWERABLE), 1, 0)


@PROPERTIES
async def test_a_response_topic_that_is_no_reply_topic_is_refused(peers: Peers) -> None:
    responder, _ = await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    elsewhere = Inbox()
    await tiny.subscribe("slm/#", elsewhere)
    await tiny.publish(sent(raw(), response_topic="slm/agents/@tiny/status"))
    await tiny.publish(sent(raw(), response_topic="reply.gpt/@tiny/2", correlation=b"2"))
    await inbox.count(1)
    assert (inbox.messages[0].topic, replies(inbox)[0].id) == ("reply.gpt/@tiny/2", "2")  # properties win
    assert (responder.rejected, elsewhere.messages) == (1, [])


@PROPERTIES
async def test_properties_win_over_the_payload(peers: Peers) -> None:
    seen: list[Request] = []

    async def note(request: Request, send: PartSender) -> Reply:
        seen.append(request)
        return Reply(id=request.id)

    await peers.medic(note)
    tiny, inbox = await peers.stranger()
    untyped = {name: value for name, value in raw(ttl_ms=60_000).items() if name != "type"}
    await tiny.publish(sent(untyped, type="mqttcollab.request.v1", expiry_s=5, traceparent=TRACE))
    await tiny.publish(sent(raw("2"), type="mqttcollab.request.v9", response_topic="reply.gpt/@tiny/2"))
    await inbox.count(2)
    assert seen[0].traceparent == TRACE
    assert 0 < seen[0].ttl_ms <= 5000  # what is left of the expiry, not the minute that the payload says
    assert {(reply.id, reply.error.code if reply.error else None) for reply in replies(inbox)} == {
        ("1", None),
        ("2", "unsupported"),
    }


async def test_a_retained_request_is_stale_and_not_answered(peers: Peers) -> None:
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1"), retain=True))
    watcher = Inbox()
    async with asyncio.timeout(LIMIT_S):  # nats-server acknowledges a retained message before it gives it to who comes
        while not watcher.messages:
            watcher = Inbox()
            await tiny.unsubscribe(TOPIC)
            await tiny.subscribe(TOPIC, watcher)
            await asyncio.sleep(0.1)
    await tiny.unsubscribe(TOPIC)
    responder, _ = await peers.medic(echo)
    await eventually(lambda: responder.rejected == 1)
    await tiny.publish(sent(raw("2")))
    await inbox.count(1)
    assert [reply.id for reply in replies(inbox)] == ["2"]


# --- replies that come late, to nobody, or are none


async def test_replies_to_nobody_are_dropped_and_counted(peers: Peers) -> None:
    await peers.medic(echo)
    phone = await peers.phone()
    tiny = await peers.setup.connected("tiny")
    request = phone.new_request("Hello?")
    await tiny.publish(TransportMessage("reply.gpt/@phone/unknown", encode(Reply(id="unknown", output="spam"))))
    assert (await phone.ask(TOPIC, request)).output == "Hello?"
    await tiny.publish(TransportMessage(request.reply_to, encode(Reply(id=request.id, output="too late"))))
    await eventually(lambda: phone.stats.late == 2)
    assert (await phone.ask(TOPIC, phone.new_request("Again"))).output == "Again"


async def test_a_reply_that_is_none_does_not_end_the_request(peers: Peers) -> None:
    release = asyncio.Event()

    async def wait(request: Request, send: PartSender) -> Reply:
        await release.wait()
        return await echo(request, send)

    await peers.medic(wait)
    phone = await peers.phone()
    tiny = await peers.setup.connected("tiny")
    request = phone.new_request("Hello?")
    asking = asyncio.create_task(phone.ask(TOPIC, request))
    nonsense = [b"", b"{", b"\xd9\xd9\xf7", b'{"type":"mqttcollab.reply.v2"}', json.dumps(raw()).encode()]
    for payload in nonsense:
        await tiny.publish(TransportMessage(request.reply_to, payload))
    await eventually(lambda: phone.stats.malformed == len(nonsense))
    release.set()
    assert (await asking).output == "Hello?"


# --- what is carried on


async def test_a_question_asked_while_answering_carries_the_trace_on(peers: Peers) -> None:
    seen: list[Request] = []

    async def note(request: Request, send: PartSender) -> Reply:
        seen.append(request)
        return Reply(id=request.id)

    async def ask_on(request: Request, send: PartSender) -> Reply:
        assert current_request.get() is request
        return await nurse.ask(request_topic(SERVICE, "doctor"), nurse.new_request("And you?"))

    nurse = await peers.phone("nurse")
    await peers.medic(note, name="doctor")
    await peers.medic(ask_on)
    phone = await peers.phone()
    for trace in (TRACE, "nonsense" * 5000, None):
        await phone.ask(TOPIC, phone.new_request("?", traceparent=trace, tenant="t", may_leave_edge=False, hops=2))
    first, second, third = seen
    assert (first.hops, first.tenant, first.may_leave_edge) == (3, "t", False)
    assert first.traceparent is not None and first.traceparent.split("-")[1] == TRACE.split("-")[1]
    assert first.traceparent != TRACE
    assert {len(request.traceparent or "") for request in (second, third)} == {len(TRACE)}
    assert current_request.get() is None


async def test_a_trace_that_is_none_is_not_carried_on(peers: Peers) -> None:
    await peers.medic(echo)
    tiny, inbox = await peers.stranger()
    await tiny.publish(sent(raw("1", traceparent="x" * 70_000)))
    await tiny.publish(sent(raw("2", traceparent=TRACE)))
    await inbox.count(2)
    expected = TRACE if peers.setup.mqtt5 else None
    assert {reply.id: m.traceparent for reply, m in zip(replies(inbox), inbox.messages, strict=True)} == {
        "1": None,
        "2": expected,
    }


# --- stopping


async def test_a_responder_that_stops_lets_work_end_and_refuses_more(peers: Peers) -> None:
    release = asyncio.Event()

    async def wait(request: Request, send: PartSender) -> Reply:
        await release.wait()
        return Reply(id=request.id)

    responder, stats = await peers.medic(wait)
    phone = await peers.phone()
    under_way = asyncio.create_task(phone.ask(TOPIC, phone.new_request("?")))
    await eventually(lambda: stats.running == 1)
    stopping = asyncio.create_task(responder.stop(grace_s=LIMIT_S))
    await asyncio.sleep(0)
    error = await refusal(phone.ask(TOPIC, phone.new_request("?")))
    assert (error.code, error.message) == ("busy", "@medic is stopping")
    release.set()
    assert (await under_way).status == "ok"
    await stopping


async def test_what_does_not_end_in_time_is_cancelled_when_a_responder_stops(peers: Peers) -> None:
    async def ponder(request: Request, send: PartSender) -> Reply:
        return await asyncio.Future()

    responder, stats = await peers.medic(ponder, queue_size=5)
    phone = await peers.phone()
    asking = [asyncio.create_task(refusal(phone.ask(TOPIC, phone.new_request("?")))) for _ in range(3)]
    await eventually(lambda: stats.running + stats.queued == 3)
    await responder.stop(grace_s=0.01)
    assert {error.code for error in await asyncio.gather(*asking)} == {"cancelled"}


# --- the broker goes away


@pytest.mark.slow
async def test_a_broker_that_goes_away_and_comes_back_costs_no_answer(peers: Peers) -> None:
    done: list[str] = []
    release = asyncio.Event()

    async def work(request: Request, send: PartSender) -> Reply:
        done.append(request.text)
        if request.text == "long":
            await release.wait()
        return await echo(request, send)

    await peers.medic(work, concurrency=3)
    phone = await peers.phone()
    await phone.ask(TOPIC, phone.new_request("before"))
    under_way = asyncio.create_task(phone.ask(TOPIC, phone.new_request("long")))
    await eventually(lambda: "long" in done)
    await peers.setup.go_away()
    meanwhile = asyncio.create_task(phone.ask(TOPIC, phone.new_request("meanwhile")))
    await asyncio.sleep(1.0)
    release.set()  # the answer itself has to wait for the broker
    await asyncio.sleep(1.0)
    await peers.setup.come_back()
    async with asyncio.timeout(LIMIT_S):
        assert [(await asking).output for asking in (under_way, meanwhile)] == ["long", "meanwhile"]
        assert (await phone.ask(TOPIC, phone.new_request("after"))).output == "after"
    assert sorted(done) == ["after", "before", "long", "meanwhile"]


async def test_who_comes_back_later_than_the_requester_is_asked_again(peers: Peers) -> None:
    phone = await peers.phone()
    sink, lost = await peers.setup.connected("sink"), Inbox()
    await sink.subscribe(TOPIC, lost)
    taken_along = asyncio.create_task(phone.ask(TOPIC, phone.new_request("taken along")))
    await lost.count(1)
    await sink.close()
    await peers.setup.go_away()
    await eventually(lambda: not phone.transport.online)
    meanwhile = asyncio.create_task(phone.ask(TOPIC, phone.new_request("meanwhile")))
    await peers.setup.come_back()
    await eventually(lambda: phone.transport.online)
    at_once = asyncio.create_task(phone.ask(TOPIC, phone.new_request("at once")))
    await asyncio.sleep(0.2)  # all three were sent, and nobody was there
    assert not (taken_along.done() or meanwhile.done() or at_once.done())
    await peers.medic(echo, concurrency=3)
    async with asyncio.timeout(LIMIT_S):
        answers = [(await asking).output for asking in (taken_along, meanwhile, at_once)]
    assert answers == ["taken along", "meanwhile", "at once"]


async def test_closing_the_connection_fails_what_is_asked(peers: Peers) -> None:
    phone = await peers.phone()
    await peers.setup.go_away()
    asking = asyncio.create_task(phone.ask(TOPIC, phone.new_request("?")))
    await asyncio.sleep(0.01)
    await phone.transport.close()
    with pytest.raises(TransportError, match="was closed"):
        await asyncio.wait_for(asking, LIMIT_S)


async def test_a_reply_of_a_stranger_holds_what_a_request_needs(peers: Peers) -> None:
    """A device without our library answers with five fields of JSON."""
    phone = await peers.phone()
    tiny = await peers.setup.connected("tiny")

    async def answer(message: TransportMessage) -> None:
        request = decode_map(message.payload)
        content = {"type": "mqttcollab.reply.v1", "id": request["id"], "last": True, "status": "ok", "output": "42"}
        await tiny.publish(TransportMessage(request["reply_to"], json.dumps(content).encode()))

    await tiny.subscribe(TOPIC, answer)
    assert (await phone.ask(TOPIC, phone.new_request("17 + 25?"))).output == "42"
