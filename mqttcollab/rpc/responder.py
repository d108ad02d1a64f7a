"""The answering side: bounded queues, deduplication with replay, deadlines, cancel, and errors with codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mqttcollab.codec import CBOR, JSON, MAX_PAYLOAD, ContentType, decode, decode_map, encode
from mqttcollab.errors import MessageError, MqttCollabError, RequestError, RuntimeFailure, TopicError, TransportError
from mqttcollab.messages import MAX_HOPS, ErrorInfo, Reply, Request, Step, Timing
from mqttcollab.rpc.trace import current_request
from mqttcollab.topics import anycast_filter, cancel_topic, check_id, parse_reply_topic, request_topic
from mqttcollab.transport.base import Transport, TransportMessage

_log = logging.getLogger(__name__)

_REMEMBERED_REPLIES = 4096
_REMEMBERED_BYTES = 16 << 20
_REMEMBER_S = 120.0
_CBOR_MAGIC = b"\xd9\xd9\xf7"

PartSender = Callable[[str | None, list[Step]], Awaitable[None]]
RequestHandler = Callable[[Request, PartSender], Awaitable[Reply]]


@dataclass(slots=True)
class ServiceStats:
    """What one service is doing and has done."""

    slots: int
    running: int = 0
    queued: int = 0
    completed: int = 0
    failed: int = 0
    seconds: float = 0.5  # moving average of a request's run time; half a second until the first is done

    def retry_after_ms(self) -> int:
        """When a slot may be free again, in milliseconds."""
        return max(1, round(1000 * self.seconds * (self.queued + 1) / self.slots))


@dataclass(slots=True)
class _Service:
    name: str
    handler: RequestHandler
    queue_size: int
    stats: ServiceStats
    slots: asyncio.Semaphore


@dataclass(slots=True)
class _Job:
    """A request under way."""

    request: Request
    deadline: float
    content_type: ContentType
    received: float
    task: asyncio.Task[None] | None = None
    seq: int = 0
    cancelled: bool = False


@dataclass(slots=True)
class Responder:
    """Answers requests to one agent's services.

    Args:
        transport: the connection.
        name: the agent.
        limit: the largest payload, in bytes.
    """

    transport: Transport
    name: str
    limit: int = MAX_PAYLOAD
    services: dict[str, _Service] = field(default_factory=dict)
    rejected: int = 0
    last_rejection: str | None = None
    _jobs: dict[tuple[str, str], _Job] = field(default_factory=dict)
    _answered: OrderedDict[tuple[str, str], tuple[float, TransportMessage]] = field(default_factory=OrderedDict)
    _answered_bytes: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False
    _warned: float = 0.0

    async def serve(
        self, service: str, handler: RequestHandler, *, concurrency: int = 1, queue_size: int = 32
    ) -> ServiceStats:
        """Takes requests for a service; may come before the transport is connected.

        Args:
            service: its name.
            handler: called with the request and a sender of parts (text or None, finished steps);
                returns the last reply. Its exceptions become error replies.
            concurrency: handlers at once.
            queue_size: requests that wait; one more is answered `busy`.
        """
        stats = ServiceStats(concurrency)
        entry = _Service(service, handler, queue_size, stats, asyncio.Semaphore(concurrency))
        self.services[service] = entry
        await self.transport.subscribe(request_topic(service, self.name), lambda m: self._on_request(entry, m))
        await self.transport.subscribe(cancel_topic(service, self.name), self._on_cancel)
        await self.transport.subscribe(anycast_filter(service), lambda m: self._on_request(entry, m))
        return stats

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Refuses new requests, lets those under way finish for `grace_s` seconds, then cancels them."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for job in self._jobs.values():
            if job.task is not None:
                job.cancelled = True
                job.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    # Taking requests

    def _on_request(self, service: _Service, message: TransportMessage) -> None:
        if message.retain:
            return self._reject(f"{message.topic}: a retained request is stale by nature; publish it without retain")
        try:
            request = _read(message, self.limit)
        except (MessageError, TopicError) as error:
            return self._refuse(service, message, error)
        key = (request.reply_to, request.id)
        if key in self._jobs:
            return None  # still under way: the repeat joins it
        if key in self._answered:
            return self._send(self._answered[key][1])
        now = asyncio.get_running_loop().time()
        content_type: ContentType = CBOR if message.payload[:3] == _CBOR_MAGIC else JSON
        job = _Job(request, now + request.ttl_ms / 1000, content_type, now)
        refusal = self._refusal(service, request)
        if refusal is not None:
            return self._send(self._message(job, _error_reply(request.id, refusal)))
        self._jobs[key] = job
        service.stats.queued += 1
        job.task = asyncio.create_task(self._run(service, job))
        self._tasks.add(job.task)
        job.task.add_done_callback(self._tasks.discard)
        return None

    def _refusal(self, service: _Service, request: Request) -> RequestError | None:
        stats = service.stats
        if request.hops > MAX_HOPS:
            return RequestError("bad_request", f"{request.hops} hops: the request goes in circles (limit {MAX_HOPS})")
        if self._stopping:
            return RequestError("busy", f"@{self.name} is stopping", retry_after_ms=1000)
        if stats.queued + stats.running >= service.queue_size + stats.slots:
            text = f"@{self.name} has {stats.running} requests running and {stats.queued} waiting"
            return RequestError("busy", text, retry_after_ms=stats.retry_after_ms())
        return None

    def _refuse(self, service: _Service, message: TransportMessage, error: MqttCollabError) -> None:
        """Answers what does not decode, where it still says where the answer goes."""
        self._reject(f"{message.topic}: {error}")
        try:
            content = decode_map(message.payload, limit=len(message.payload))
        except MessageError:
            content = {}
        with contextlib.suppress(TopicError):
            reply_to = parse_reply_topic(str(message.response_topic or content.get("reply_to")))
            code = error.code if isinstance(error, MessageError) else "bad_request"
            reply = _error_reply(reply_to.leaf, RequestError(code, str(error)))
            reply.agent, reply.service = self.name, service.name
            topic = f"reply.gpt/@{reply_to.agent}/{reply_to.leaf}"
            self._send(TransportMessage(topic, encode(reply), content_type=JSON, type=reply.type))

    def _reject(self, why: str) -> None:
        self.rejected += 1
        self.last_rejection = why[:300]
        if time.monotonic() - self._warned > 1.0:  # a device that sends garbage at full speed does not fill the log
            self._warned = time.monotonic()
            _log.warning("rejected (%d so far): %s", self.rejected, self.last_rejection)

    def _on_cancel(self, message: TransportMessage) -> None:
        request_id = message.payload.decode("ascii", "replace").strip()
        for (_, job_id), job in self._jobs.items():
            if job_id == request_id and job.task is not None:
                job.cancelled = True
                job.task.cancel()

    # Answering them

    async def _run(self, service: _Service, job: _Job) -> None:
        stats, waiting = service.stats, True
        current_request.set(job.request)
        reply: Reply | None = None
        try:
            async with asyncio.timeout_at(job.deadline), service.slots:
                waiting = False
                stats.queued -= 1
                stats.running += 1
                reply = await self._handle(service, job)
        except TimeoutError:
            _log.info("request %s to %s is past its ttl: not answered", job.request.id, service.name)
        except asyncio.CancelledError:
            if not job.cancelled:
                raise
            reply = _error_reply(job.request.id, RequestError("cancelled", "the requester gave the request up"))
        finally:
            if waiting:
                stats.queued -= 1
            else:
                stats.running -= 1
            message = self._finish(service, job, reply)
        if message is not None:
            await self._publish(message)

    async def _handle(self, service: _Service, job: _Job) -> Reply:
        started = asyncio.get_running_loop().time()
        try:
            reply = await service.handler(job.request, lambda text, steps: self._send_part(service, job, text, steps))
        except RequestError as error:
            reply = _error_reply(job.request.id, error)
        except MessageError as error:
            reply = _error_reply(job.request.id, RequestError(error.code, str(error)))
        except RuntimeFailure as error:
            _log.error("%s: %s", service.name, error)
            reply = _error_reply(job.request.id, RequestError("internal", str(error)))
        except Exception as error:
            if isinstance(error, TimeoutError) and asyncio.get_running_loop().time() >= job.deadline:
                raise
            _log.exception("the handler of %s failed", service.name)
            text = f"the handler of {service.name} failed: {type(error).__name__}"
            reply = _error_reply(job.request.id, RequestError("internal", text))
        ended = asyncio.get_running_loop().time()
        service.stats.seconds += 0.2 * (ended - started - service.stats.seconds)
        reply.timing = Timing(
            queued_ms=round((started - job.received) * 1000, 3), elapsed_ms=round((ended - started) * 1000, 3)
        )
        return reply

    def _finish(self, service: _Service, job: _Job, reply: Reply | None) -> TransportMessage | None:
        key = (job.request.reply_to, job.request.id)
        del self._jobs[key]
        if reply is None:
            service.stats.failed += 1
            return None
        if reply.status == "error":
            service.stats.failed += 1
        else:
            service.stats.completed += 1
        reply.agent, reply.service, reply.seq = self.name, service.name, job.seq
        message = self._message(job, reply)
        if len(message.payload) > self.limit:
            text = f"the answer has {len(message.payload)} bytes; the limit is {self.limit}"
            message = self._message(job, _error_reply(job.request.id, RequestError("too_large", text)))
        self._remember(key, max(job.deadline, job.received + _REMEMBER_S), message)
        return message

    def _remember(self, key: tuple[str, str], until: float, message: TransportMessage) -> None:
        self._answered[key] = (until, message)
        self._answered_bytes += len(message.payload)
        now = asyncio.get_running_loop().time()
        while self._answered:
            oldest = next(iter(self._answered))
            until, message = self._answered[oldest]
            full = len(self._answered) > _REMEMBERED_REPLIES or self._answered_bytes > _REMEMBERED_BYTES
            if now <= until and not full:
                return
            del self._answered[oldest]
            self._answered_bytes -= len(message.payload)

    async def _send_part(self, service: _Service, job: _Job, text: str | None, steps: list[Step]) -> None:
        part = Reply(
            id=job.request.id,
            seq=job.seq,
            last=False,
            status="partial",
            output=text,
            steps=steps,
            agent=self.name,
            service=service.name,
        )
        job.seq += 1
        await self.transport.publish(self._message(job, part), bulk=True)

    def _message(self, job: _Job, reply: Reply) -> TransportMessage:
        remaining = job.deadline - asyncio.get_running_loop().time()
        return TransportMessage(
            job.request.reply_to,
            encode(reply, job.content_type),
            content_type=job.content_type,
            correlation=job.request.id.encode(),
            expiry_s=max(1, int(remaining) + 1),
            type=reply.type,
            traceparent=job.request.traceparent,
        )

    def _send(self, message: TransportMessage) -> None:
        task = asyncio.create_task(self._publish(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, message: TransportMessage) -> None:
        try:
            async with asyncio.timeout(message.expiry_s or 30):
                await self.transport.publish(message)
        except (TransportError, MessageError) as error:
            _log.warning("a reply to %s was not sent: %s", message.topic, error)
        except TimeoutError:
            _log.info("a reply to %s was past its ttl: not sent", message.topic)


def _read(message: TransportMessage, limit: int) -> Request:
    """The request in a message; MQTT 5 properties win over the payload's fields."""
    request = decode(Request, message.payload, sent_type=message.type, limit=limit)
    if message.response_topic is not None and message.response_topic != request.reply_to:
        parse_reply_topic(message.response_topic)
        request.reply_to = message.response_topic
    if message.correlation is not None:
        request.id = check_id(message.correlation.decode("ascii", "replace"))
    if message.expiry_s is not None:
        request.ttl_ms = min(request.ttl_ms, max(1, message.expiry_s) * 1000)
    if message.traceparent is not None:
        request.traceparent = message.traceparent
    return request


def _error_reply(request_id: str, error: RequestError) -> Reply:
    info = ErrorInfo(code=error.code, message=error.message, retry_after_ms=error.retry_after_ms)
    return Reply(id=request_id, status="error", error=info)
