"""One process of the soak: `python tests/soak_process.py <role> <name> <broker> <file>`; it notes its own use each second.

The notes are lines of JSON: resident memory, open files, threads, tasks, and how much is in what grows with use.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mqttcollab import Agent, AgentOptions, Request, RequestError
from mqttcollab.journal import Limits

SAMPLE_S = 1.0
_COLLECTED = 10  # samples between two collections of garbage, so that what is only unreachable does not count
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Peru": "Lima"}
SERVICES = {
    "echo": "knowledge.gpt/geography/capitals",
    "slow": "computation.gpt/slow",
    "faulty": "computation.gpt/faulty",
}
STREAM, GUEST = "computation.gpt/stream", "knowledge.gpt/guests"


def sample() -> dict[str, float]:
    """What this process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "time": time.monotonic(),
        "mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }


async def keep_notes(path: Path, sizes: Callable[[], dict[str, int]]) -> None:
    """Writes a sample each second, for as long as the process lives."""
    number = 0
    with path.open("a") as file:
        while True:
            number += 1
            if number % _COLLECTED == 0:
                gc.collect()
            file.write(json.dumps(sample() | sizes()) + "\n")
            file.flush()
            await asyncio.sleep(SAMPLE_S)


def orchestrator(name: str, folder: Path) -> Agent:
    from mqttcollab.orchestrator import OrchestratorOptions, orchestrator_agent
    from mqttcollab.runtimes.embedders import load_embedder

    journal = str(folder / "journal.db")
    options = AgentOptions(journal=journal, keep=Limits(keep_s=30.0), heartbeat_s=2.0)
    return orchestrator_agent(name, load_embedder("wordllama"), options=OrchestratorOptions(), agent_options=options)


def device(name: str, kind: str) -> Agent:
    agent = Agent(name, options=AgentOptions(heartbeat_s=2.0))
    if kind == "guest":

        @agent.service(GUEST, description="Knows who is a guest", examples=["Who is the guest?"], concurrency=4)
        async def guest(request: Request) -> str:
            return f"The guest is {name}."

        return agent

    @agent.service(
        SERVICES["echo"],
        description="Capitals of countries",
        examples=[f"What is the capital of {country}?" for country in CAPITALS],
        concurrency=8,
    )
    async def echo(request: Request) -> str:
        found = [capital for country, capital in CAPITALS.items() if country in request.text]
        return f"{found[0]} is the capital." if found else f"@{name}: {request.text}"

    @agent.service(SERVICES["slow"], description="Takes its time", concurrency=16)
    async def slow(request: Request) -> str:
        await asyncio.sleep(0.2)
        return request.text

    @agent.service(SERVICES["faulty"], description="Fails", concurrency=4)
    async def faulty(request: Request) -> str:
        raise RequestError("no_capability", "it always fails")

    @agent.service(STREAM, description="Counts", concurrency=4)
    async def stream(request: Request) -> AsyncIterator[str]:
        for number in range(10):
            yield f"{number} "
            await asyncio.sleep(0)

    return agent


def sizes_of(agent: Agent, service: Any) -> Callable[[], dict[str, int]]:
    """How much is in what may grow; a debugger's look, not an API."""

    def sizes() -> dict[str, int]:
        if agent._life is None:
            return {}
        found = {"answered": len(agent._life.responder._answered._replies), "known": len(agent.registry.agents)}
        found |= {"jobs": len(agent._life.responder._jobs), "calls": len(agent._life.requester._calls)}
        if getattr(service, "_fleet", None) is not None:
            found["loadbook"] = len(service._fleet._book)
            found["progress"] = len(service._progress._topics)
            found["notes"] = len(service.knowledge._notes) if hasattr(service.knowledge, "_notes") else 0
            found["filters"] = len(agent.transport.router.filters) if hasattr(agent.transport, "router") else 0
        return found

    return sizes


async def main(role: str, name: str, broker: str, path: Path) -> None:
    agent = orchestrator(name, path.parent) if role == "orchestrator" else device(name, role)
    service = next(iter(agent.services.values()))
    notes = asyncio.create_task(keep_notes(path, sizes_of(agent, service)))
    try:
        await agent.serve(broker)
    finally:
        notes.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
