"""The answering side: bounded queues, deduplication with replay, deadlines, cancel, and errors with codes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqttcollab.codec import JSON, MAX_PAYLOAD, content_type_of, decode, decode_map, encode
from mqttcollab.errors import MessageError, MqttCollabError, RequestError, RuntimeFailure, TopicError
from mqttcollab.journal import Entry, Journal, Task
from mqttcollab.messages import MAX_HOPS, Reply, Request, Timing
from mqttcollab.places import Places
from mqttcollab.rpc.answered import Answered, Key
from mqttcollab.rpc.durable import TaskLog, current_log
from mqttcollab.rpc.job import Job, RequestHandler, ServedService, ServiceStats, error_reply, read_request
from mqttcollab.rpc.keeper import Keeper, journal_key
from mqttcollab.rpc.outbox import Outbox
from mqttcollab.rpc.trace import current_request
from mqttcollab.topics import anycast_filter, cancel_topic, parse, parse_reply_topic, request_topic
from mqttcollab.transport.base import Transport, TransportMessage, Work

_log = logging.getLogger(__name__)

# Publishes that wait for the broker, from which on a refusal goes out at QoS 0. For an acknowledgement it would wait
# behind the flood itself, and Mosquitto (issue 2301) sends more of that than the receive maximum allows.
_MANY_UNSENT = 256

# Ids that were cancelled and are not known.
_KEPT_CANCELS, _LONGEST_ID = 1024, 128
# How many owners, or lives of one that it killed, begin a task at the most.
_MOST_LIVES = 10


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
    _keeper: Keeper = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False
    _warned: float = 0.0

    def __post_init__(self) -> None:
        self._out = Outbox(self.transport, self.name, self.limit)
        self._keeper = Keeper(self._out)

    async def serve(
        self,
        service: str,
        handler: RequestHandler,
        *,
        concurrency: int = 1,
        queue_size: int = 32,
        journal: Journal | None = None,
        places: Places | None = None,
    ) -> ServiceStats:
        """Takes requests for a service; may come before the transport is connected.

        Args:
            service: its name.
            handler: called with the request and a sender of parts (text or None, finished steps);
                returns the last reply. Its exceptions become error replies.
            concurrency: handlers at once.
            queue_size: requests that wait; one more is answered `busy`.
            journal: makes it durable: requests are on disk before they are acknowledged, and outlive the process.
            places: as many as `concurrency`, where somebody else is to see what hangs in them.
        """
        stats = ServiceStats(concurrency)
        entry = ServedService(service, handler, queue_size, stats, places or Places(service, concurrency), journal)
        self.services[service] = entry
        await self.transport.subscribe(request_topic(service, self.name), lambda m: self._on_request(entry, m))
        await self.transport.subscribe(cancel_topic(service, self.name), self._on_cancel)
        await self.transport.subscribe(anycast_filter(service), lambda m: self._on_request(entry, m))
        return stats

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Refuses new requests, lets those under way finish for `grace_s` seconds, then cancels them.

        Those of durable services stay in the journal instead, for another owner or this agent's next life.
        """
        self._stopping = self._keeper.stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for job in self._jobs.values():
            job.handed_over = job.log is not None
            job.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    # Taking requests

    def resume(self, task: Task, history: Sequence[Entry] = ()) -> None:
        """Goes on with a task that the journal gave this agent: works on it, or sends what is its end already.

        Raises:
            MessageError: what is in the journal is no request.
        """
        request = decode(Request, task.request, limit=len(task.request))
        now = asyncio.get_running_loop().time()
        job = Job(request, now + task.left_ms / 1000, content_type_of(task.request), now)
        service = self.services[task.service]
        assert service.journal is not None
        if job.key in self._jobs:
            return
        log = job.log = TaskLog(service.journal, task.key, history)
        if task.state != "open":
            if task.reply is not None:
                self._spawn(self._keeper.send(job, log, task.reply))
        elif (refusal := self._keeper.refused.get(task.key)) is not None:
            self._give_up(service, job, refusal)
        elif task.left_ms <= 0:
            late = f"@{self.name} came to it past its ttl, since who had it was stopped or killed"
            self._give_up(service, job, RequestError("deadline_exceeded", late))
        elif task.takeovers >= _MOST_LIVES:
            text = f"it was begun {task.takeovers} times, and whoever worked on it was stopped or killed each time"
            self._give_up(service, job, RequestError("internal", text))
        else:
            log.note("resumed", {"left_ms": task.left_ms})
            job.cancelled = request.id in self._cancelled
            self._start(service, job)

    def _give_up(self, service: ServedService, job: Job, error: RequestError) -> None:
        self._jobs[job.key] = job
        self._spawn(self._end(service, job, error_reply(job.request.id, error)))

    def _on_request(self, service: ServedService, message: TransportMessage) -> Work | None:
        if message.retain:
            self._reject(f"{message.topic}: a retained request is stale by nature; publish it without retain")
            return None
        try:
            request = read_request(message, self.limit)
        except (MessageError, TopicError) as error:
            return self._refuse(service, message, error)
        key = (request.reply_to, request.id)
        if (first := self._jobs.get(key)) is not None:
            return first.taken  # still under way: the repeat joins it, and is acknowledged once that is written down
        # What is answered at once is acknowledged when the answer is with the broker: so a flood finds its limit in
        # the receive maximum, not in our memory.
        if (answer := self._answered.get(key)) is not None:
            return self._publish(answer)
        now = asyncio.get_running_loop().time()
        job = Job(request, now + request.ttl_ms / 1000, content_type_of(message.payload), now)
        if service.journal is not None:
            job.log = TaskLog(service.journal, journal_key(request))
        refusal = self._refusal(service, request)
        if refusal is not None:
            answer = self._out.message(job, error_reply(request.id, refusal))
            if self.transport.unsent >= _MANY_UNSENT:
                answer = dataclasses.replace(answer, qos=0)
            return self._publish(answer) if job.log is None else self._keeper.refuse(job, job.log, answer)
        if job.log is not None:
            job.taken = asyncio.get_running_loop().create_future()
        self._start(service, job)
        return job.taken

    def refuse_stray(self, message: TransportMessage) -> Work | None:
        """Answers a request to a service that this agent offered in a life before; other messages are passed over."""
        try:
            topic = parse(message.topic)
            if topic.kind not in ("request", "anycast"):
                return None
            request = read_request(message, self.limit)
        except (MessageError, TopicError):
            return None
        now = asyncio.get_running_loop().time()
        job = Job(request, now + request.ttl_ms / 1000, content_type_of(message.payload), now)
        gone = RequestError("no_capability", f"@{self.name} offers {topic.service} no more")
        return self._publish(self._out.message(job, error_reply(request.id, gone)))

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
        return service.places.refusal()

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
            self._remember_cancel(request_id)

    def _remember_cancel(self, request_id: str) -> None:
        """For a task that is about to be resumed."""
        self._cancelled[request_id[:_LONGEST_ID]] = None
        if len(self._cancelled) > _KEPT_CANCELS:
            self._cancelled.popitem(last=False)

    # Answering them

    async def _run(self, service: ServedService, job: Job) -> None:
        reply: Reply | None = None
        taken: bool | tuple[Task, Sequence[Entry]] = False
        try:
            taken = await self._keeper.take(service.name, job)
            if taken is not True:
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
                if job.cancelled:
                    self._remember_cancel(job.request.id)
                if isinstance(taken, tuple):
                    self.resume(*taken)
        await self._end(service, job, reply)

    async def _work(self, service: ServedService, job: Job) -> Reply:
        """Waits for a slot as long as the request may, and calls the handler; TimeoutError once its ttl is over."""
        stats, waiting, busy = service.stats, True, None
        try:
            async with asyncio.timeout_at(job.latest_start) as limit:
                await service.places.take(job)
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
        except RequestError as error:  # all handlers hang
            job.turned_away, busy = True, error
        finally:
            if waiting:
                stats.queued -= 1
            else:
                stats.running -= 1
                service.places.leave(job)
            self.on_load()
        if job.turned_away:
            return error_reply(job.request.id, busy or self._busy(stats))
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
        service.stats.took(ended - started)
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
        job.begun = False  # a cancel comes too late now: the end may be written down already, and is to be sent then
        if reply is not None:
            message, code = self._out.seal(service.name, job, reply)
        try:
            ours = job.log is None or await self._keeper.end(job, job.log, message, code)
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

    async def _publish(self, message: TransportMessage) -> None:
        await self._out.publish(message)
