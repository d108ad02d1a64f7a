"""What a responder works with: a service and its load, a request under way, the first and the last message of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mqttcollab.codec import ContentType, decode
from mqttcollab.errors import RequestError
from mqttcollab.journal import Journal
from mqttcollab.messages import ErrorInfo, Reply, Request, Step
from mqttcollab.rpc.answered import Key
from mqttcollab.rpc.durable import TaskLog
from mqttcollab.rpc.trace import well_formed
from mqttcollab.topics import check_id, parse_reply_topic
from mqttcollab.transport.base import TransportMessage

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
    tokens_per_s: float | None = None  # of the last answer of a language model, reading the prompt included

    def retry_after_ms(self) -> int:
        """When a slot may be free again, in milliseconds."""
        return max(1, round(1000 * self.seconds * (self.queued + 1) / self.slots))


@dataclass(slots=True)
class ServedService:
    """A service, and what is going on in it."""

    name: str
    handler: RequestHandler
    queue_size: int
    stats: ServiceStats
    slots: asyncio.Semaphore
    journal: Journal | None = None


@dataclass(slots=True)
class Job:
    """A request under way.

    Attributes:
        log: where its service is durable.
        taken: done once the request needs no longer be held by the broker; None where that is so at once.
        begun: whether it can be cancelled by cancelling its task.
        handed_over: it is left to another owner, or to this agent's next life: no reply is sent.
    """

    request: Request
    deadline: float
    content_type: ContentType
    received: float
    task: asyncio.Task[None] | None = None
    log: TaskLog | None = None
    taken: asyncio.Future[None] | None = None
    seq: int = 0
    begun: bool = False
    cancelled: bool = False
    turned_away: bool = False
    handed_over: bool = False

    @property
    def latest_start(self) -> float:
        """When it must have got a slot."""
        wait_ms = self.request.max_wait_ms
        return self.deadline if wait_ms is None else min(self.deadline, self.received + wait_ms / 1000)

    @property
    def key(self) -> Key:
        """What tells a repeat from another request."""
        return self.request.reply_to, self.request.id

    def cancel(self) -> None:
        """Ends the work, and has it answered."""
        self.cancelled = True
        if self.task is not None and self.begun:  # a task that is cancelled before it begins would never clean up
            self.task.cancel()


def read_request(message: TransportMessage, limit: int) -> Request:
    """The request in a message; MQTT 5 properties win over the payload's fields."""
    request = decode(Request, message.payload, sent_type=message.type, limit=limit)
    if message.response_topic is not None and message.response_topic != request.reply_to:
        parse_reply_topic(message.response_topic)
        request.reply_to = message.response_topic
    if message.correlation is not None:
        request.id = check_id(message.correlation.decode("ascii", "replace"))
    if message.expiry_s is not None:
        request.ttl_ms = min(request.ttl_ms, max(1, message.expiry_s) * 1000)
    request.traceparent = well_formed(message.traceparent) or well_formed(request.traceparent)
    return request


def error_reply(request_id: str, error: RequestError) -> Reply:
    """The last reply to a request that failed."""
    info = ErrorInfo(code=error.code, message=error.message, retry_after_ms=error.retry_after_ms)
    return Reply(id=request_id, status="error", error=info)
