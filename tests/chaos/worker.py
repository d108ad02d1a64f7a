"""A worker of the chaos tests, in a process of its own: its answer to a text can be computed, and it logs its work.

Run as `python worker.py <name> <log>`; the broker is in MQTTCOLLAB_BROKER.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import sys

from mqttcollab import Agent, AgentOptions, Answer, Request

ECHO = "knowledge.gpt/chaos-echo"
LONGEST_WORK_S = 0.3
_TOKEN = re.compile(r"\bt[0-9a-f]{16}\b")


def tokens(text: str) -> list[str]:
    """The tokens in a text, in order."""
    return _TOKEN.findall(text)


def answer_to(token: str) -> str:
    """What the service makes of a token: another token, which nobody gets right by chance."""
    return "t" + hashlib.sha256(token.encode()).hexdigest()[:16]


def worker(name: str, log: int) -> Agent:
    """An agent that answers after a random time, and writes every execution down in one atomic append."""
    agent = Agent(name, options=AgentOptions(heartbeat_s=2.0, queue_size=256))

    @agent.service(ECHO, description="Turns a token into the next one", examples=["Turn the token"], concurrency=32)
    async def echo(request: Request) -> Answer:
        found = tokens(request.text)
        await asyncio.sleep(random.uniform(0.0, LONGEST_WORK_S))
        os.write(log, f"{found[-1]}\n".encode())
        return Answer(answer_to(found[-1]), confidence=1.0)

    return agent


if __name__ == "__main__":
    worker(sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)).run()
