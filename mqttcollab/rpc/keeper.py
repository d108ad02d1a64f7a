"""The journal's side of a responder: what is written down, when, and what follows where it can't be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mqttcollab.codec import encode
from mqttcollab.errors import JournalError, RequestError
from mqttcollab.journal import Entry, NewTask, Task
from mqttcollab.messages import Request
from mqttcollab.rpc.durable import TaskLog
from mqttcollab.rpc.job import Job, error_reply
from mqttcollab.rpc.outbox import Outbox
from mqttcollab.transport.base import TransportMessage

_log = logging.getLogger(__name__)

# How long a requester is asked to wait where its request can't be written down, in milliseconds.
RETRY_MS = 2000
_WRITE_AGAIN_S = 0.5
_KEPT_REFUSALS = 4096


@dataclass(slots=True)
class Keeper:
    """Writes requests and their ends down.

    Args:
        out: sends what the journal has kept.

    Attributes:
        stopping: what can't be written down now is left to the next life.
        refused: the latest tasks that were answered `busy` since they could not be written down, with that error; a
            server that broke off in the middle may have them all the same.
    """

    out: Outbox
    stopping: bool = False
    refused: OrderedDict[str, RequestError] = field(default_factory=OrderedDict)

    async def take(self, service: str, job: Job) -> bool | tuple[Task, Sequence[Entry]]:
        """Writes a request down, so that the broker need not hold it.

        Returns:
            True if it is to be begun, False if not here; the task and its history where it is to be resumed: the broker
            had it too, or somebody repeats what a dead owner had.
        """
        log, taken, request = job.log, job.taken, job.request
        if log is None or taken is None:  # not durable, or resumed
            return True
        task = NewTask(log.key, service, encode(request, job.content_type), request.ttl_ms, request.tenant or "")
        try:
            accepted = await log.journal.accept(task)
            if accepted.state == "mine":
                self.refused.pop(log.key, None)  # who was refused has asked again
        except JournalError as error:
            text = f"@{self.out.name} can't write the request down: {error}"
            failure = RequestError("busy", text, retry_after_ms=RETRY_MS)
            if await self.refuse(job, log, self.out.seal(service, job, error_reply(request.id, failure))[0]):
                self._remember_refusal(log.key, failure)
            return False
        finally:
            if not taken.done():  # its connection may be gone
                taken.set_result(None)
        if accepted.taken:
            return await self._read(job, log) or False
        if accepted.reply is not None:
            await self.send(job, log, accepted.reply)
        elif accepted.state == "ended":
            late = RequestError("deadline_exceeded", "it was asked before under this id, and its time ran out")
            await self.out.publish(self.out.seal(service, job, error_reply(request.id, late))[0])
        return accepted.state == "mine"

    async def _read(self, job: Job, log: TaskLog) -> tuple[Task, Sequence[Entry]] | None:
        """What was taken over, however long that takes: it is ours and nobody else's; None where it comes too late."""
        while True:
            with contextlib.suppress(JournalError):
                return await log.journal.task(log.key)
            if self.stopping or asyncio.get_running_loop().time() > job.deadline:
                return None
            await asyncio.sleep(_WRITE_AGAIN_S)

    async def end(self, job: Job, log: TaskLog, message: TransportMessage | None, code: str) -> bool:
        """Writes the end of a task down, however long that takes; False if it is not ours to tell, or comes too late.

        Until it is written down it is not told: another owner could come to another end.
        """
        payload = None if message is None else message.payload
        loop, told = asyncio.get_running_loop(), False
        while True:
            try:
                return await log.journal.answer(log.key, payload, code)
            except JournalError as error:
                if not told:
                    _log.error("the end of %s can't be written down, it is tried again: %s", log.key, error)
                told = True
                if self.stopping or loop.time() > job.deadline:
                    return False
            await asyncio.sleep(_WRITE_AGAIN_S)

    async def refuse(self, job: Job, log: TaskLog, answer: TransportMessage) -> bool:
        """Sends a refusal, unless the journal has the request: then it is a repeat, and ends as the first one does.

        Returns:
            Whether it was refused. A journal whose disk is full can be read.
        """
        found = None
        with contextlib.suppress(JournalError):
            found = await log.journal.task(log.key)
        if found is not None and found[0].reply is not None:
            await self.send(job, log, found[0].reply)
        elif found is None or found[0].state != "open":
            await self.out.publish(answer)
            return True
        return False

    def _remember_refusal(self, key: str, failure: RequestError) -> None:
        self.refused[key] = failure
        if len(self.refused) > _KEPT_REFUSALS:
            self.refused.popitem(last=False)

    async def send(self, job: Job, log: TaskLog, payload: bytes) -> None:
        """Sends a last reply that the journal has kept."""
        if await self.out.publish(self.out.sealed(job, payload)):
            log.journal.sent(log.key)


def journal_key(request: Request) -> str:
    """The reply topic, whose last level is the id, unless somebody's MQTT 5 properties say otherwise."""
    own = request.reply_to.endswith(f"/{request.id}")
    return request.reply_to if own else f"{request.reply_to}#{request.id}"
