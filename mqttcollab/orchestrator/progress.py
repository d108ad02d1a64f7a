"""What an orchestrator is doing, for everybody who watches `slm/inference/<task>/…`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from mqttcollab.errors import MqttCollabError, RequestError
from mqttcollab.messages import Plan, Reply, Step, Verdict
from mqttcollab.topics import slm_topic
from mqttcollab.transport.base import Transport, TransportMessage

_log = logging.getLogger(__name__)

_KEPT_TASKS = 64
_BATCH = 64
_EXPIRY_S = 3600


class Progress:
    """Publishes the state of tasks as plain text, retained; clears the oldest beyond 64 and all of them at the end.

    Publishing never holds a task up: it runs beside it, in order.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._topics: dict[str, set[str]] = {}
        self._order: deque[str] = deque()
        self._queue: asyncio.Queue[TransportMessage] = asyncio.Queue(maxsize=4096)
        self._uncleared: set[str] = set()  # what is over, and found the queue full
        self._lost, self._warned = 0, 0.0
        self._writer = asyncio.create_task(self._write())

    def of(self, task: str) -> TaskProgress:
        """The progress of one task."""
        return TaskProgress(self, task)

    def say(self, task: str, key: str, value: str) -> None:
        """Publishes `slm/inference/<task>/<key>`."""
        if task not in self._topics:
            self._topics[task] = set()
            self._order.append(task)
            while len(self._order) > _KEPT_TASKS:
                for old in self._topics.pop(self._order.popleft()):
                    self._put(TransportMessage(old, b"", retain=True))
        topic = slm_topic("inference", task, key)
        if self._put(TransportMessage(topic, value.encode(), retain=True, expiry_s=_EXPIRY_S)):
            self._topics[task].add(topic)
            self._uncleared.discard(topic)

    async def close(self) -> None:
        """Clears what it published."""
        for topics in self._topics.values():
            for topic in topics:
                self._put(TransportMessage(topic, b"", retain=True))
        try:
            async with asyncio.timeout(2):
                await self._queue.join()
        except TimeoutError:
            _log.warning("progress under slm/inference was not cleared: the broker does not answer")
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    def _put(self, message: TransportMessage) -> bool:
        try:
            self._queue.put_nowait(message)
            return True
        except asyncio.QueueFull:
            if not message.payload:  # retained, it would stay at the broker
                self._uncleared.add(message.topic)
                return False
        self._lost += 1
        if time.monotonic() - self._warned > 1.0:
            self._warned = time.monotonic()
            _log.warning("progress was not published (%d topics so far): the broker takes it too slowly", self._lost)
        return False

    async def _write(self) -> Any:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            while self._uncleared and not self._queue.full():
                self._queue.put_nowait(TransportMessage(self._uncleared.pop(), b"", retain=True))
            await asyncio.gather(*(self._publish(message) for message in batch))  # sent in this order
            for _ in batch:
                self._queue.task_done()

    async def _publish(self, message: TransportMessage) -> None:
        try:
            await self._transport.publish(message, bulk=True)
        except MqttCollabError as error:
            _log.warning("%s was not published: %s", message.topic, error)


class TaskProgress:
    """What is told of one task, as `topics.md` describes it."""

    def __init__(self, progress: Progress, task: str) -> None:
        self._progress = progress
        self._task = task

    def asked(self, question: str) -> None:
        """The task has begun."""
        self._say("question", question)

    def planned(self, plan: Plan) -> None:
        """The decision: as a whole, and its verdicts in words."""
        for key, verdict in (("complexity", plan.complexity), ("gap", plan.gap)):
            if verdict is not None:
                self._say(key, _words(verdict))
        self._say("plan", plan.model_dump_json(exclude_none=True))
        self._say("status", "running")

    def ended(self, step: Step, reply: Reply | None) -> None:
        """A step has ended."""
        key = f"steps/{step.number}"
        self._say(f"{key}/text", step.text or "")
        self._say(f"{key}/service", step.service)
        if step.agent is not None:
            self._say(f"{key}/assigned_device", f"@{step.agent}")
        if step.elapsed_ms is not None:
            self._say(f"{key}/elapsed_ms", f"{step.elapsed_ms:g}")
        if step.verdict is not None:
            self._say(f"{key}/verdict", _words(step.verdict))
        if reply is not None:
            self._say(f"{key}/output", reply.output or "")
            self._say(f"{key}/status", "done")
        elif step.error is not None:
            self._say(f"{key}/status", f"failed {step.error.code}: {' '.join(step.error.message.split())}")

    def done(self, answer: str) -> None:
        """The task was answered."""
        self._say("answer", answer)
        self._say("status", "done")

    def failed(self, error: BaseException) -> None:
        """The task has ended without an answer."""
        self._say("status", f"failed {_failure(error)}")

    def _say(self, key: str, value: str) -> None:
        self._progress.say(self._task, key, value)


def _words(verdict: Verdict) -> str:
    return f"{verdict.probability:.2f} {verdict.reason}"


def _failure(error: BaseException) -> str:
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled: the requester gave it up, its time ran out, or the orchestrator stopped"
    return f"internal: {type(error).__name__}"
