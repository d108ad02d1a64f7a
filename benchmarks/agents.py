"""Agents in processes of their own for the orchestrator's benchmarks; `python -m benchmarks.agents <role> <url>`.

Roles: `experts`, `orchestrator`, and `durable`: an orchestrator with a journal.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import sys
import tempfile

from mqttcollab import Agent, AgentOptions, Answer, Request
from mqttcollab.orchestrator import orchestrator_agent
from mqttcollab.runtimes.embedders import WordLlamaEmbedder

QUESTION = "How are the weather, the air quality and the crowd at the market square?"
EXPERTS = {
    "data.gpt/weather": ("weather", "How is the weather at the market square?"),
    "data.gpt/air-quality": ("air", "How is the air quality at the market square?"),
    "data.gpt/crowd": ("crowd", "How big is the crowd at the market square?"),
}


def expert(service: str) -> Agent:
    """An agent that answers at once."""
    name, example = EXPERTS[service]
    agent = Agent(f"bench-{name}")

    @agent.service(service, description=example, examples=[example], concurrency=8)
    async def answer(_: Request) -> Answer:
        return Answer(text=f"{name}: nothing out of the ordinary", confidence=1.0)

    return agent


async def main(role: str, url: str) -> None:
    if role == "experts":
        agents = [expert(service) for service in EXPERTS]
    else:
        folder = tempfile.mkdtemp() if role == "durable" else None
        options = AgentOptions(journal=folder and f"{folder}/journal")
        agents = [orchestrator_agent(f"bench-{role}", WordLlamaEmbedder(256), agent_options=options)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    for agent in agents:
        await agent.start(url)
    print("ready", flush=True)
    await stop.wait()
    for agent in agents:
        await agent.stop()
    if role == "durable":
        shutil.rmtree(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(*sys.argv[1:]))
