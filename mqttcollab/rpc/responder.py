"""The answering side: bounded queues, deduplication with replay, deadlines, cancel, and errors with codes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqttcollab.codec import JSON, MAX_PAYLOAD, content_type_of, decode, decode_map, encode
from mqttcollab.errors import JournalError, MessageError, MqttCollabError, RequestError, RuntimeFailure, TopicError
from mqttcollab.journal import Entry, Journal, NewTask, Task
from mqttcollab.messages import MAX_HOPS, Reply, Request, Timing
from mqttcollab.rpc.answered import Answered, Key
from mqttcollab.rpc.durable import RETRY_MS, TaskLog, current_log
from mqttcollab.rpc.job import Job, RequestHandler, ServedService, ServiceStats, error_reply, read_request
from mqttcollab.rpc.outbox import Outbox
from mqttcollab.rpc.trace import current_request
from mqttcollab.topics import anycast_filter, cancel_topic, parse_reply_topic, request_topic
from mqttcollab.transport.base import Transport, TransportMessage, Work

_log = logging.getLogger(__name__)

# Ids that were cancelled and are not known, kept for tasks that are about to be resumed.
_KEPT_CANCELS, _LONGEST_ID = 1024, 128


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
    _cancelled: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _out: Outbox = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False
    _warned: float = 0.0

    def __post_init__(self) -> None:
        self._out = Outbox(self.transport, self.name, self.limit)

    async def serve(
        self,
        service: str,
        handler: RequestHandler,
        *,
        concurrency: int = 1,
        queue_size: int = 32,
        journal: Journal | None = None,
    ) -> ServiceStats:
        """Takes requests for a service; may come before the transport is connected.

        Args:
            service: its name.
            handler: called with the request and a sender of parts (text or None, finished steps);
                returns the last reply. Its exceptions become error replies.
            concurrency: handlers at once.
            queue_size: requests that wait; one more is answered `busy`.
            journal: makes it durable: requests are on disk before they are acknowledged, and outlive the process.
        """
        stats = ServiceStats(concurrency)
        entry = ServedService(service, handler, queue_size, stats, asyncio.Semaphore(concurrency), journal)
        self.services[service] = entry
        await self.transport.subscribe(request_topic(service, self.name), lambda m: self._on_request(entry, m))
        await self.transport.subscribe(cancel_topic(service, self.name), self._on_cancel)
        await self.transport.subscribe(anycast_filter(service), lambda m: self._on_request(entry, m))
        return stats

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Refuses new requests, lets those under way finish for `grace_s` seconds, then cancels them.

        Those of durable services stay in the journal instead, for another owner or this agent's next life.
        """
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for job in self._jobs.values():
            job.handed_over = job.log is not None
            job.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    # Taking requests

    def resume(self, task: Task, history: Sequence[Entry] = ()) -> None:
        """Goes on with a task that the journal gave this agent: works on it, or sends what is its end already."""
        request = decode(Request, task.request, limit=len(task.request))
        now = asyncio.get_running_loop().time()
        job = Job(request, now + task.left_ms / 1000, content_type_of(task.request), now)
        service = self.services.get(task.service)
        if job.key in self._jobs or service is None or service.journal is None:
            return
        job.log = TaskLog(service.journal, task.key, history)
        if task.state != "open":
            if task.reply is not None:
                self._spawn(self._send_written(job, task.reply))
        elif task.left_ms > 0:
            job.log.note("resumed", {"left_ms": task.left_ms})
            job.cancelled = request.id in self._cancelled
            self._start(service, job)
        else:
            late = RequestError("deadline_exceeded", f"@{self.name} was not running, and came back past the ttl")
            self._jobs[job.key] = job
            self._spawn(self._end(service, job, error_reply(request.id, late)))

    def _on_request(self, service: ServedService, message: TransportMessage) -> Work | None:
        if message.retain:
            self._reject(f"{message.topic}: a retained request is stale by nature; publish it without retain")
            return None
        try:
            request = read_request(message, self.limit)
        except (MessageError, TopicError) as error:
            return self._refuse(service, message, error)
        key = (request.reply_to, request.id)
        if key in self._jobs:
            return None  # still under way: the repeat joins it
        # What is answered at once is acknowledged when the answer is with the broker: so a flood finds its limit in
        # the receive maximum, not in our memory.
        if (answer := self._answered.get(key)) is not None:
            return self._publish(answer)
        now = asyncio.get_running_loop().time()
        job = Job(request, now + request.ttl_ms / 1000, content_type_of(message.payload), now)
        refusal = self._refusal(service, request)
        if refusal is not None:
            return self._publish(self._out.message(job, error_reply(request.id, refusal)))
        if service.journal is not None:
            job.log = TaskLog(service.journal, _journal_key(request))
            job.taken = asyncio.get_running_loop().create_future()
        self._start(service, job)
        return job.taken

    def _start(self, service: ServedService, job: Job) -> None:
        self._jobs[job.key] = job
        service.stats.queued += 1
        job.task = self._spawn(self._run(service, job))
        self.on_load()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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

    def _refuse(self, service: ServedService, message: TransportMessage, error: MqttCollabError) -> Work | None:
        """Answers what does not decode, where it still says where the answer goes."""
        self._reject(f"{message.topic}: {error}")
        try:
            content = decode_map(message.payload, limit=len(message.payload))
        except MessageError:
            content = {}
        try:
            reply_to = parse_reply_topic(str(message.response_topic or content.get("reply_to")))
        except TopicError:
            return None
        code = error.code if isinstance(error, MessageError) else "bad_request"
        reply = error_reply(reply_to.leaf, RequestError(code, str(error)))
        reply.agent, reply.service = self.name, service.name
        topic = f"reply.gpt/@{reply_to.agent}/{reply_to.leaf}"
        return self._publish(TransportMessage(topic, encode(reply), content_type=JSON, type=reply.type))

    def _reject(self, why: str) -> None:
        self.rejected += 1
        self.last_rejection = why[:300]
        if time.monotonic() - self._warned > 1.0:  # a device that sends garbage at full speed does not fill the log
            self._warned = time.monotonic()
            _log.warning("rejected (%d so far): %s", self.rejected, self.last_rejection)

    def _on_cancel(self, message: TransportMessage) -> None:
        request_id = message.payload.decode("ascii", "replace").strip()
        found = [job for (_, job_id), job in self._jobs.items() if job_id == request_id]
        for job in found:
            job.cancel()
        if not found and any(service.journal is not None for service in self.services.values()):
            self._cancelled[request_id[:_LONGEST_ID]] = None
            if len(self._cancelled) > _KEPT_CANCELS:
                self._cancelled.popitem(last=False)

    # Answering them

    async def _run(self, service: ServedService, job: Job) -> None:
        reply: Reply | None = None
        try:
            if job.taken is not None and not await self._take(service, job, job.taken):
                return
            job.begun = True
            current_request.set(job.request)
            current_log.set(job.log)
            reply = await self._work(service, job)
        except TimeoutError:
            _log.info("request %s to %s is past its ttl: not answered", job.request.id, service.name)
        except asyncio.CancelledError:
            if not job.cancelled:
                raise
            if job.handed_over:
                del self._jobs[job.key]
                return
            why = f"@{self.name} stopped before it was done" if self._stopping else "the requester gave the request up"
            reply = error_reply(job.request.id, RequestError("cancelled", why))
        finally:
            if not job.begun:
                service.stats.queued -= 1
                del self._jobs[job.key]
        await self._end(service, job, reply)

    async def _take(self, service: ServedService, job: Job, taken: asyncio.Future[None]) -> bool:
        """Writes a request down, so that the broker need not hold it; False if it is not to be worked on here."""
        log, request = job.log, job.request
        assert log is not None
        task = NewTask(log.key, service.name, encode(request, job.content_type), request.ttl_ms, request.tenant or "")
        try:
            accepted = await log.journal.accept(task)
            if accepted.taken and (found := await log.journal.task(log.key)) is not None:
                job.log = TaskLog(log.journal, log.key, found[1])
        except JournalError as error:
            text = f"@{self.name} can't write the request down: {error}"
            failure = RequestError("busy", text, retry_after_ms=RETRY_MS)
            await self._publish(self._out.message(job, error_reply(request.id, failure)))
            return False
        finally:
            if not taken.done():  # its connection may be gone
                taken.set_result(None)
        if accepted.reply is not None:
            await self._send_written(job, accepted.reply)
        return accepted.state == "mine"

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
            reply = await service.handler(
                job.request, lambda text, steps: self._out.send_part(service.name, job, text, steps)
            )
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

    # Ending them

    async def _end(self, service: ServedService, job: Job, reply: Reply | None) -> None:
        """Writes the end down, where the service is durable, and then sends the last reply; None: there is none."""
        message: TransportMessage | None = None
        code, ours = "deadline_exceeded", False
        if reply is not None:
            message, code = self._out.seal(service.name, job, reply)
        try:
            ours = job.log is None or await self._write_end(job.log, message, code)
        finally:
            del self._jobs[job.key]
            if not job.turned_away:  # nothing was done: a repeat is a new request, as after any `busy`
                if code == "ok":
                    service.stats.completed += 1
                else:
                    service.stats.failed += 1
                if message is not None and ours:
                    self._answered.add(job.key, message, job.deadline)
        if message is not None and ours and await self._out.publish(message) and job.log is not None:
            job.log.journal.sent(job.log.key)

    async def _write_end(self, log: TaskLog, message: TransportMessage | None, code: str) -> bool:
        """Whether the end is ours to tell."""
        try:
            return await log.journal.answer(log.key, None if message is None else message.payload, code)
        except JournalError as error:  # who asked shall have the answer all the same
            _log.error("the end of %s was not written down: %s", log.key, error)
            return True

    async def _send_written(self, job: Job, payload: bytes) -> None:
        """Sends a last reply that the journal has kept."""
        if await self._out.publish(self._out.sealed(job, payload)) and job.log is not None:
            job.log.journal.sent(job.log.key)

    async def _publish(self, message: TransportMessage) -> None:
        await self._out.publish(message)


def _journal_key(request: Request) -> str:
    """The reply topic, whose last level is the id, unless somebody's MQTT 5 properties say otherwise."""
    own = request.reply_to.endswith(f"/{request.id}")
    return request.reply_to if own else f"{request.reply_to}#{request.id}"
