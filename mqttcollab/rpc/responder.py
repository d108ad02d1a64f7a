"""The answering side: bounded queues, deduplication with replay, deadlines, cancel, and errors with codes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mqttcollab.codec import JSON, MAX_PAYLOAD, content_type_of, decode_map, encode
from mqttcollab.errors import (
    MessageError,
    MqttCollabError,
    RequestError,
    RuntimeFailure,
    TooLarge,
    TopicError,
    TransportError,
)
from mqttcollab.messages import MAX_HOPS, Reply, Request, Step, Timing
from mqttcollab.rpc.answered import Answered, Key
from mqttcollab.rpc.job import Job, RequestHandler, ServedService, ServiceStats, error_reply, read_request
from mqttcollab.rpc.trace import current_request
from mqttcollab.topics import anycast_filter, cancel_topic, parse_reply_topic, request_topic
from mqttcollab.transport.base import Transport, TransportMessage

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Responder:
    """Answers requests to one agent's services.

    Args:
        transport: the connection.
        name: the agent.
        limit: the largest payload, in bytes.
        on_load: called when the number of requests running or waiting has changed.
    """

    transport: Transport
    name: str
    limit: int = MAX_PAYLOAD
    on_load: Callable[[], None] = lambda: None
    services: dict[str, ServedService] = field(default_factory=dict)
    rejected: int = 0
    last_rejection: str | None = None
    _jobs: dict[Key, Job] = field(default_factory=dict)
    _answered: Answered = field(default_factory=Answered)
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
        entry = ServedService(service, handler, queue_size, stats, asyncio.Semaphore(concurrency))
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
            job.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    # Taking requests

    def _on_request(self, service: ServedService, message: TransportMessage) -> None:
        if message.retain:
            return self._reject(f"{message.topic}: a retained request is stale by nature; publish it without retain")
        try:
            request = read_request(message, self.limit)
        except (MessageError, TopicError) as error:
            return self._refuse(service, message, error)
        key = (request.reply_to, request.id)
        if key in self._jobs:
            return None  # still under way: the repeat joins it
        if (answer := self._answered.get(key)) is not None:
            return self._send(answer)
        now = asyncio.get_running_loop().time()
        job = Job(request, now + request.ttl_ms / 1000, content_type_of(message.payload), now)
        refusal = self._refusal(service, request)
        if refusal is not None:
            return self._send(self._message(job, error_reply(request.id, refusal)))
        self._jobs[key] = job
        service.stats.queued += 1
        job.task = asyncio.create_task(self._run(service, job))
        self._tasks.add(job.task)
        job.task.add_done_callback(self._tasks.discard)
        self.on_load()
        return None

    def _refusal(self, service: ServedService, request: Request) -> RequestError | None:
        stats = service.stats
        if request.hops > MAX_HOPS:
            return RequestError("bad_request", f"{request.hops} hops: the request goes in circles (limit {MAX_HOPS})")
        if self._stopping:
            return RequestError("busy", f"@{self.name} is stopping", retry_after_ms=1000)
        room = 0 if request.max_wait_ms == 0 else service.queue_size
        if stats.queued + stats.running >= room + stats.slots:
            return self._busy(stats)
        return None

    def _busy(self, stats: ServiceStats) -> RequestError:
        text = f"@{self.name} has {stats.running} requests running and {stats.queued} waiting"
        return RequestError("busy", text, retry_after_ms=stats.retry_after_ms())

    def _refuse(self, service: ServedService, message: TransportMessage, error: MqttCollabError) -> None:
        """Answers what does not decode, where it still says where the answer goes."""
        self._reject(f"{message.topic}: {error}")
        try:
            content = decode_map(message.payload, limit=len(message.payload))
        except MessageError:
            content = {}
        with contextlib.suppress(TopicError):
            reply_to = parse_reply_topic(str(message.response_topic or content.get("reply_to")))
            code = error.code if isinstance(error, MessageError) else "bad_request"
            reply = error_reply(reply_to.leaf, RequestError(code, str(error)))
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
            if job_id == request_id:
                job.cancel()

    # Answering them

    async def _run(self, service: ServedService, job: Job) -> None:
        job.begun = True
        current_request.set(job.request)
        reply: Reply | None = None
        try:
            reply = await self._work(service, job)
        except TimeoutError:
            _log.info("request %s to %s is past its ttl: not answered", job.request.id, service.name)
        except asyncio.CancelledError:
            if not job.cancelled:
                raise
            why = f"@{self.name} stopped before it was done" if self._stopping else "the requester gave the request up"
            reply = error_reply(job.request.id, RequestError("cancelled", why))
        finally:
            message = self._finish(service, job, reply)
        if message is not None:
            await self._publish(message)

    async def _work(self, service: ServedService, job: Job) -> Reply:
        """Waits for a slot as long as the request may, and calls the handler; TimeoutError once its ttl is over."""
        stats, waiting = service.stats, True
        try:
            async with asyncio.timeout_at(job.latest_start) as limit, service.slots:
                limit.reschedule(job.deadline)
                waiting = False
                stats.queued -= 1
                stats.running += 1
                self.on_load()
                if job.cancelled:
                    raise asyncio.CancelledError
                reply = await self._handle(service, job)
        except TimeoutError:
            if not waiting or asyncio.get_running_loop().time() >= job.deadline:
                raise
            job.turned_away = True
        finally:
            if waiting:
                stats.queued -= 1
            else:
                stats.running -= 1
            self.on_load()
        if job.turned_away:
            return error_reply(job.request.id, self._busy(stats))
        if asyncio.get_running_loop().time() >= job.deadline:  # the handler would not be stopped
            raise TimeoutError
        return reply

    async def _handle(self, service: ServedService, job: Job) -> Reply:
        started = asyncio.get_running_loop().time()
        job.request.ttl_ms = max(1, math.ceil(1000 * (job.deadline - started)))  # what is left of it for the handler
        try:
            reply = await service.handler(job.request, lambda text, steps: self._send_part(service, job, text, steps))
        except RequestError as error:
            reply = error_reply(job.request.id, error)
        except MessageError as error:
            reply = error_reply(job.request.id, RequestError(error.code, str(error)))
        except RuntimeFailure as error:
            _log.error("%s: %s", service.name, error)
            reply = error_reply(job.request.id, RequestError("internal", str(error)))
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, TimeoutError) and asyncio.get_running_loop().time() >= job.deadline:
                raise
            if isinstance(error, asyncio.CancelledError) and job.task is not None and job.task.cancelling():
                raise
            _log.exception("the handler of %s failed", service.name)
            text = f"the handler of {service.name} failed: {type(error).__name__}"
            reply = error_reply(job.request.id, RequestError("internal", text))
        ended = asyncio.get_running_loop().time()
        service.stats.seconds += 0.2 * (ended - started - service.stats.seconds)
        if reply.usage is not None and reply.usage.completion_tokens:
            service.stats.tokens_per_s = round(reply.usage.completion_tokens / max(1e-6, ended - started), 1)
        reply.timing = Timing(
            queued_ms=round((started - job.received) * 1000, 3), elapsed_ms=round((ended - started) * 1000, 3)
        )
        return reply

    def _finish(self, service: ServedService, job: Job, reply: Reply | None) -> TransportMessage | None:
        del self._jobs[job.key]
        if reply is None:
            service.stats.failed += 1
            return None
        message, failed = self._seal(service, job, reply)
        if job.turned_away:  # nothing was done: a repeat is a new request, as after any `busy`
            return message
        if failed:
            service.stats.failed += 1
        else:
            service.stats.completed += 1
        self._answered.add(job.key, message, job.deadline)
        return message

    def _seal(self, service: ServedService, job: Job, reply: Reply) -> tuple[TransportMessage, bool]:
        """The last reply as a message, or an error reply where it can't be sent; and whether it is an error."""
        reply.agent, reply.service, reply.seq = self.name, service.name, job.seq
        try:
            message = self._message(job, reply)
        except MessageError as error:
            _log.error("the answer of %s can't be sent: %s", service.name, error)
            failure = RequestError("internal", f"the answer of {service.name} can't be encoded")
        else:
            if len(message.payload) <= self.limit:
                return message, reply.status == "error"
            text = f"the answer has {len(message.payload)} bytes; the limit is {self.limit}"
            failure = RequestError("too_large", text)
        instead = error_reply(job.request.id, failure)
        instead.agent, instead.service, instead.seq, instead.timing = self.name, service.name, job.seq, reply.timing
        return self._message(job, instead), True

    async def _send_part(self, service: ServedService, job: Job, text: str | None, steps: list[Step]) -> None:
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
        message = self._message(job, part)
        if len(message.payload) > self.limit:
            raise RequestError("too_large", f"a part has {len(message.payload)} bytes; the limit is {self.limit}")
        job.seq += 1
        await self.transport.publish(message, bulk=True)

    def _message(self, job: Job, reply: Reply) -> TransportMessage:
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
                try:
                    await self.transport.publish(message)
                except TooLarge as error:  # for the broker, whose limit may be lower than ours
                    reply = error_reply(message.topic.rpartition("/")[2], RequestError("too_large", str(error)))
                    await self.transport.publish(dataclasses.replace(message, payload=encode(reply), content_type=JSON))
        except (TransportError, MessageError) as error:
            _log.warning("a reply to %s was not sent: %s", message.topic, error)
        except TimeoutError:
            _log.info("a reply to %s was past its ttl: not sent", message.topic)
