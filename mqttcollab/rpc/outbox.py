"""What leaves a responder: parts, last replies, errors; each within the limits of size and time."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass

from mqttcollab.codec import JSON, MAX_PAYLOAD, encode
from mqttcollab.errors import MessageError, RequestError, TooLarge, TransportError
from mqttcollab.messages import Reply, Step
from mqttcollab.rpc.job import Job, error_reply
from mqttcollab.transport.base import Transport, TransportMessage

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outbox:
    """Sends one agent's replies.

    Args:
        transport: the connection.
        name: the agent.
        limit: the largest payload, in bytes.
    """

    transport: Transport
    name: str
    limit: int = MAX_PAYLOAD

    def seal(self, service: str, job: Job, reply: Reply) -> tuple[TransportMessage, str]:
        """The last reply as a message, or an error reply where it can't be sent; and `ok`, or its error code."""
        reply.agent, reply.service, reply.seq = self.name, service, job.seq
        try:
            message = self.message(job, reply)
        except MessageError as error:
            _log.error("the answer of %s can't be sent: %s", service, error)
            failure = RequestError("internal", f"the answer of {service} can't be encoded")
        else:
            if len(message.payload) <= self.limit:
                code = reply.error.code if reply.error is not None else "internal"
                return message, "ok" if reply.status != "error" else code
            text = f"the answer has {len(message.payload)} bytes; the limit is {self.limit}"
            failure = RequestError("too_large", text)
        instead = error_reply(job.request.id, failure)
        instead.agent, instead.service, instead.seq, instead.timing = self.name, service, job.seq, reply.timing
        return self.message(job, instead), failure.code

    async def send_part(self, service: str, job: Job, text: str | None, steps: list[Step]) -> None:
        """Sends a part, and counts it; raises RequestError where it is too large."""
        part = Reply(
            id=job.request.id,
            seq=job.seq,
            last=False,
            status="partial",
            output=text,
            steps=steps,
            agent=self.name,
            service=service,
        )
        message = self.message(job, part)
        if len(message.payload) > self.limit:
            raise RequestError("too_large", f"a part has {len(message.payload)} bytes; the limit is {self.limit}")
        job.seq += 1
        await self.transport.publish(message, bulk=True)

    def message(self, job: Job, reply: Reply) -> TransportMessage:
        """A reply as a message in the requester's encoding; raises MessageError where it can't be encoded."""
        return self.sealed(job, encode(reply, job.content_type))

    def sealed(self, job: Job, payload: bytes) -> TransportMessage:
        """The same of a reply that was encoded before."""
        remaining = job.deadline - asyncio.get_running_loop().time()
        return TransportMessage(
            job.request.reply_to,
            payload,
            content_type=job.content_type,
            correlation=job.request.id.encode(),
            expiry_s=max(1, int(remaining) + 1),
            type=_REPLY,
            traceparent=job.request.traceparent,
        )

    async def publish(self, message: TransportMessage) -> bool:
        """Publishes a last reply; False, and a line in the log, where it did not reach the broker in time."""
        try:
            async with asyncio.timeout(message.expiry_s or 30):
                try:
                    await self.transport.publish(message)
                except TooLarge as error:  # for the broker, whose limit may be lower than ours
                    reply = error_reply(message.topic.rpartition("/")[2], RequestError("too_large", str(error)))
                    await self.transport.publish(dataclasses.replace(message, payload=encode(reply), content_type=JSON))
                return True
        except (TransportError, MessageError) as error:
            _log.warning("a reply to %s was not sent: %s", message.topic, error)
        except TimeoutError:
            _log.info("a reply to %s was past its ttl: not sent", message.topic)
        return False


_REPLY: str = Reply.model_fields["type"].default
