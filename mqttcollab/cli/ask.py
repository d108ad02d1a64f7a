"""`mqttcollab ask`."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from rich.status import Status

from mqttcollab.agent import Agent
from mqttcollab.cli.client import running_client
from mqttcollab.cli.filters import check_filter
from mqttcollab.cli.show import answer_lines, clean, console, print_json, step_line
from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ConfigError, RequestError
from mqttcollab.messages import Reply, Step
from mqttcollab.topics import ORCHESTRATION, check_agent, check_service


async def ask_question(
    question: str,
    service: str | None,
    agent: str | None,
    ttl_s: float,
    terms: dict[str, Any],
    *,
    name: str | None,
    broker: str | None,
    as_json: bool,
) -> None:
    """Asks and shows the steps and the text as they come, then the rest of the answer; `terms` go into the request."""
    budget_usd = terms.get("budget_usd", 0.0)
    if not 0 <= budget_usd < math.inf:
        raise ConfigError(f"--budget is {budget_usd}; write US dollars, 0 or more")
    if agent is not None:
        agent = check_agent(agent.removeprefix("@"))
    if service is not None:
        (check_filter if "+" in service or "#" in service else check_service)(service)
    async with running_client(broker, name) as me:
        if service is None:
            service = await _only_service(me, agent) if agent is not None else ORCHESTRATION
        try:
            with console.status("asking …") as status:
                timeline = Timeline(status)
                on_part = None if as_json else timeline.show
                reply = await me.ask(question, service=service, agent=agent, ttl_s=ttl_s, on_part=on_part, **terms)
        except RequestError as error:
            raise _explain(error, service, broker) from None
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
    else:
        console.print(timeline.end(reply))


@dataclass(slots=True)
class Timeline:
    """Shows the parts of an answer as they come.

    Args:
        status: what shows that we wait; it ends when text begins to come.
        quiet: only keeps them.
    """

    status: Status
    quiet: bool = False
    begun: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    steps: list[Step] = field(default_factory=list)
    text: str = ""

    def show(self, part: Reply) -> None:
        """Shows a part: finished steps, or a piece of text."""
        self.steps += part.steps
        self.text += part.output or ""
        if self.quiet:
            return
        for step in part.steps:
            console.print(step_line(step, asyncio.get_running_loop().time() - self.begun))
        if part.output:
            self.status.stop()
            console.out(clean(part.output), end="", highlight=False)

    def end(self, reply: Reply) -> str:
        """What of the answer was not shown yet."""
        shown = bool(self.text) and not self.quiet
        whole = self.text.strip() == (reply.output or "").strip()
        return ("\n" if shown else "") + answer_lines(reply, text=not (shown and whole))


async def _only_service(me: Agent, agent: str) -> str:
    """The service to ask where only the agent was named."""
    view = (await me.follow()).agents.get(agent)
    services = sorted(view.records) if view is not None and view.present else []
    if not services:
        raise RequestError("no_capability", f"@{agent} is not online or offers nothing: `mqttcollab agents` says who")
    if ORCHESTRATION in services:
        return ORCHESTRATION
    if len(services) > 1:
        raise ConfigError(f"@{agent} offers {', '.join(services)}: choose one with --service")
    return services[0]


def _explain(error: RequestError, service: str, broker: str | None) -> RequestError:
    """The same error, or what to do about a missing orchestrator."""
    if service != ORCHESTRATION or error.code != "no_capability" or f"offers {service}" not in error.message:
        return error
    return RequestError(
        "no_capability",
        f"no orchestrator is online at {BrokerAddress.parse(broker)}: start one with `mqttcollab orchestrator`,"
        " or name a service with --service",
    )
