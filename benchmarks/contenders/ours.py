"""mqttcollab as a device author uses it: an Agent with a service, and an Agent that asks it by name.

Everything that this costs is in: validated messages, ids that nobody can guess, deadlines, deduplication, trace
context, the service's queue. The 200 bytes are the question; the envelope comes on top.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.contenders import MAX_IN_FLIGHT, Ask
from mqttcollab import Agent, AgentOptions, Request

NOTE = "Agent.ask by name to an Agent's service; JSON envelope, validation, deadline and deduplication included"
SERVICE = "knowledge.gpt/echo"


async def respond(url: str, ready: Callable[[], None], name: str = "bench", journal: str | None = None) -> None:
    agent = Agent(f"{name}-responder", options=AgentOptions(journal=journal))

    @agent.service(
        SERVICE, description="Answers with the question", concurrency=MAX_IN_FLIGHT, durable=journal is not None
    )
    async def answer(request: Request) -> str:
        return request.text

    async with agent.running(url):
        ready()
        await asyncio.Event().wait()


@asynccontextmanager
async def asking(url: str, name: str = "bench") -> AsyncIterator[Ask]:
    agent = Agent(f"{name}-requester")
    async with agent.running(url):

        async def ask(payload: bytes) -> bytes:
            reply = await agent.ask(payload.decode(), service=SERVICE, agent=f"{name}-responder")
            return (reply.output or "").encode()

        yield ask
