"""`mqttcollab ask`."""

from __future__ import annotations

import asyncio

from mqttcollab.cli.show import client, console, print_json, show_answer, step_line
from mqttcollab.config import BrokerAddress
from mqttcollab.errors import RequestError
from mqttcollab.messages import Reply
from mqttcollab.topics import ORCHESTRATION


async def ask_question(
    question: str,
    service: str | None,
    agent: str | None,
    ttl_s: float,
    *,
    name: str | None,
    broker: str | None,
    as_json: bool,
) -> None:
    """Asks and shows the steps as they come, then the answer."""
    me = client(broker, name)
    async with me.running(broker):
        loop = asyncio.get_running_loop()
        begun = loop.time()

        def on_part(part: Reply) -> None:
            for step in part.steps:
                console.print(step_line(step, loop.time() - begun))
            if part.output:
                console.out(part.output, end="")

        try:
            reply = await me.ask(
                question,
                service=service or ORCHESTRATION,
                agent=agent,
                ttl_s=ttl_s,
                on_part=None if as_json else on_part,
            )
        except RequestError as error:
            if error.code == "no_capability" and service is None and f"offers {ORCHESTRATION}" in error.message:
                raise RequestError(
                    "no_capability",
                    f"no orchestrator is online at {BrokerAddress.parse(broker)}: start one with"
                    " `mqttcollab orchestrator`, or name a service with --service",
                ) from None
            raise
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
    else:
        console.print()
        show_answer(reply)
