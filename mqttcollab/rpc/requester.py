"""The asking side: one reply subscription per connection, two timers per request, late replies dropped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from mqttcollab.codec import JSON, MAX_PAYLOAD, ContentType, decode, encode, first_error
from mqttcollab.errors import DeadlineExceeded, MessageError, RequestError, TooLarge, TransportError
from mqttcollab.messages import Reply, Request
from mqttcollab.rpc.trace import child_trace, current_request
from mqttcollab.topics import check_agent
from mqttcollab.transport.base import Transport, TransportMessage

_log = logging.getLogger(__name__)

_MAX_UNREAD_PARTS = 4096
# Pauses between the repeats of open requests after a reconnection. In all longer than the longest backoff of a
# peer, since one that is not back yet misses what comes before it has subscribed again.
_REPEATS_S = (0.0, 0.5, 1.0, 2.0, 4.0)
# When a request to whoever serves a name is repeated, in shares of its ttl, if nothing was heard: no broker gives what
# a dead member of a shared subscription held to another.
_ANYCAST_REPEATS = (1 / 3, 2 / 3)


@dataclass(slots=True)
class _Call:
    topic: str
    request: Request
    done: asyncio.Future[Reply]
    on_part: Callable[[Reply], None] | None
    idle_s: float | None
    deadline: float
    timer: asyncio.Timeout | None = None
    seq: int = -1
    sent: bool = False
    heard: bool = False
    doubtful: bool = False  # sent before a reconnection or right after it, and nothing heard since


@dataclass(slots=True)
class RequesterStats:
    """Counters: replies that came too late or to nobody, replies that did not decode."""

    late: int = 0
    malformed: int = 0


@dataclass(slots=True)
class Requester:
    """Sends requests under one agent's name and waits for their replies.

    Args:
        transport: the connection.
        name: who asks; replies come to `reply.gpt/@<name>/<id>`.
        limit: the largest payload, in bytes.
    """

    transport: Transport
    name: str
    limit: int = MAX_PAYLOAD
    content_type: ContentType = JSON
    stats: RequesterStats = field(default_factory=RequesterStats)
    _prefix: str = field(init=False)
    _calls: dict[str, _Call] = field(default_factory=dict)
    _connections: int = 0
    _repeating: bool = False
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._prefix = f"reply.gpt/@{check_agent(self.name)}/"

    async def start(self) -> None:
        """Subscribes to the replies; may come before the transport is connected."""
        await self.transport.subscribe(f"{self._prefix}+", self._on_reply)
        self.transport.on_connected(self._resend)

    def new_request(self, input: str | dict[str, Any], **fields: Any) -> Request:
        """A request with a random id of 128 bits, so that nobody can guess it and answer in another's name.

        An `id` among the fields is taken instead, unless it is None: of a request that is made again.

        Made while another request is handled, it carries on that one's trace, hops, tenant and restrictions.

        Raises:
            MessageError: a field is out of range.
        """
        request_id = fields.pop("id", None) or secrets.token_hex(16)
        parent = current_request.get()
        if parent is not None:
            inherited = {"hops": parent.hops + 1, "tenant": parent.tenant, "may_leave_edge": parent.may_leave_edge}
            fields = {"traceparent": parent.traceparent, **inherited, **fields}
        trace = child_trace(fields.pop("traceparent", None))
        try:
            return Request(id=request_id, reply_to=self._prefix + request_id, input=input, traceparent=trace, **fields)
        except ValidationError as error:
            raise MessageError(f"the request is not valid: {first_error(error)}") from None

    async def ask(
        self,
        topic: str,
        request: Request,
        *,
        idle_s: float | None = None,
        on_part: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """Sends a request and waits for its last reply.

        Args:
            topic: a request topic.
            request: from `new_request`.
            idle_s: give up after so many seconds without a sign of life; every part resets it.
            on_part: called with every part, in order.

        Raises:
            RequestError: the reply is an error, nobody listens there, or (DeadlineExceeded) none came in time.
            PublishError: the broker refused the request.
            TransportError: the connection was closed meanwhile.
        """
        message = self._message(topic, request)
        loop = asyncio.get_running_loop()
        ttl_s = request.ttl_ms / 1000
        call = _Call(topic, request, loop.create_future(), on_part, idle_s, loop.time() + ttl_s)
        self._calls[request.id] = call
        repeats = [loop.call_later(share * ttl_s, self._again, call) for share in _ANYCAST_REPEATS if _anycast(topic)]
        try:
            async with asyncio.timeout(min(ttl_s, idle_s or ttl_s)) as call.timer:
                reached = await self.transport.publish(message)
                if not reached and not self._repeating:
                    raise _nobody(topic)
                if self._repeating:  # the agent may not be back yet, whoever else listens there
                    call.doubtful = True
                call.sent = True
                return (await call.done).raise_for_error()
        except TooLarge as error:
            raise RequestError("too_large", str(error)) from None
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            self._cancel(topic, request.id)
            silent = idle_s is not None and loop.time() < call.deadline
            limit = f"{idle_s:g} s without a sign of life" if silent else f"{ttl_s:g} s"
            raise DeadlineExceeded(f"no answer from {topic} within {limit}") from None
        except asyncio.CancelledError:
            self._cancel(topic, request.id)
            raise
        finally:
            for repeat in repeats:
                repeat.cancel()
            del self._calls[request.id]

    async def stream(self, topic: str, request: Request, *, idle_s: float | None = None) -> AsyncIterator[Reply]:
        """Like `ask`, but yields every part as it comes, and the last reply (with the whole output) at the end."""
        parts: asyncio.Queue[Reply | None] = asyncio.Queue()
        answer = asyncio.create_task(self.ask(topic, request, idle_s=idle_s, on_part=parts.put_nowait))
        answer.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                if parts.qsize() > _MAX_UNREAD_PARTS:
                    raise RequestError("cancelled", f"{parts.qsize()} parts wait to be read: the reader is too slow")
                yield part
            yield await answer
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def stop(self) -> None:
        """Gives up what is still asked, and waits up to a second for what is being sent, such as the cancels."""
        for call in self._calls.values():
            if not call.done.done():
                call.done.set_exception(TransportError(f"@{self.name} stopped before {call.topic} answered"))
                call.done.exception()  # whoever asked sees it, if nothing else ends the call before
                self._cancel(call.topic, call.request.id)
        if self._background:
            await asyncio.wait(self._background, timeout=1)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _message(self, topic: str, request: Request) -> TransportMessage:
        payload = encode(request, self.content_type)
        if len(payload) > self.limit:
            raise RequestError("too_large", f"the request has {len(payload)} bytes; the limit is {self.limit}")
        return TransportMessage(
            topic,
            payload,
            content_type=self.content_type,
            response_topic=request.reply_to,
            correlation=request.id.encode(),
            expiry_s=-(-request.ttl_ms // 1000),
            type=request.type,
            traceparent=request.traceparent,
        )

    def _on_reply(self, message: TransportMessage) -> None:
        call = self._calls.get(message.topic[len(self._prefix) :])
        if call is None or call.done.done():
            self.stats.late += 1
            return
        try:
            reply = decode(Reply, message.payload, sent_type=message.type, limit=self.limit)
        except MessageError as error:
            self.stats.malformed += 1
            _log.warning("a reply on %s does not decode: %s", message.topic, error)
            return
        call.doubtful, call.heard = False, True
        if reply.last:
            call.done.set_result(reply)
        elif reply.seq > call.seq:  # a part delivered twice is taken once
            call.seq = reply.seq
            if call.idle_s is not None and call.timer is not None and not call.timer.expired():
                now = asyncio.get_running_loop().time()
                call.timer.reschedule(min(call.deadline, now + call.idle_s))
            if call.on_part is not None:
                call.on_part(reply)

    def _again(self, call: _Call) -> None:
        if call.sent and not call.heard:
            self._spawn(self._repeat(call, last=False))

    async def _resend(self) -> None:
        """After a reconnection: whatever broker or agent forgot, open requests are asked again under their ids."""
        self._connections += 1
        connection = self._connections
        if connection == 1:
            return
        for call in self._calls.values():
            call.doubtful = True
        self._repeating = True
        for pause in _REPEATS_S:
            await asyncio.sleep(pause)
            if connection != self._connections:
                return  # it broke again
            last = pause == _REPEATS_S[-1]
            for call in [call for call in self._calls.values() if call.doubtful and call.sent]:
                await self._repeat(call, last)
        self._repeating = False

    async def _repeat(self, call: _Call, last: bool) -> None:
        left_ms = int(1000 * (call.deadline - asyncio.get_running_loop().time()))
        if call.done.done() or left_ms < 1:
            return
        with contextlib.suppress(TransportError, TooLarge, TimeoutError):
            again = self._message(call.topic, call.request.model_copy(update={"ttl_ms": left_ms}))
            async with asyncio.timeout_at(call.deadline):  # a broker that is away may come back later than that
                reached = await self.transport.publish(again)
            if not reached and last and not call.done.done():
                call.done.set_exception(_nobody(call.topic))

    def _cancel(self, topic: str, request_id: str) -> None:
        head, slash, tail = topic.rpartition("/")
        if slash and tail == "request" and not _anycast(topic):  # else whoever has it is not known
            self._spawn(self._publish_cancel(f"{head}/cancel", request_id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _publish_cancel(self, topic: str, request_id: str) -> None:
        with contextlib.suppress(TransportError, TimeoutError):
            async with asyncio.timeout(5):
                await self.transport.publish(TransportMessage(topic, request_id.encode()))


def _anycast(topic: str) -> bool:
    return "/@" not in topic


def _nobody(topic: str) -> RequestError:
    return RequestError("no_capability", f"nobody listens on {topic}: is its agent running?")
