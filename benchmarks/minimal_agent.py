"""The agent whose start is measured: one service, no model. `python minimal_agent.py <broker URL> <name>`."""

import logging
import sys

from mqttcollab import Agent, Request

logging.basicConfig(level=logging.WARNING)
agent = Agent(sys.argv[2], description="Says how long a text is")


@agent.service("knowledge.gpt/length", description="Counts letters", examples=["How long is this?"])
async def length(request: Request) -> str:
    return f"{len(request.text)} letters"


agent.run(sys.argv[1])
