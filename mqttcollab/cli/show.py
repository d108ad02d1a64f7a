"""How things look on a terminal; in a pipe rich leaves colours and boxes away by itself."""

from __future__ import annotations

import json
import secrets
from typing import Any

from rich.console import Console
from rich.markup import escape

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.config import BrokerAddress
from mqttcollab.messages import Reply, Source, Step
from mqttcollab.transport.mqtt import MqttOptions

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(content, ensure_ascii=False, default=str), flush=True)  # noqa: T201


def client(broker: str | None, name: str | None = None) -> Agent:
    """An agent that only asks and watches: nobody sees it, and nothing of it stays on the broker.

    A broker with access control lets a user read the replies to its own name only, so that is the default.
    """
    options = AgentOptions(visible=False, connection=MqttOptions(session_expiry_s=0))
    return Agent(name or BrokerAddress.parse(broker).username or f"cli-{secrets.token_hex(4)}", options=options)


def step_line(step: Step, elapsed_s: float) -> str:
    """One line of a timeline."""
    mark = "[green]✓[/]" if step.status == "ok" else "[red]✗[/]"
    took = f"{step.elapsed_ms:.0f} ms" if step.elapsed_ms is not None else ""
    line = f"  {elapsed_s:6.2f} s  {mark} [bold]@{step.agent}[/]  {step.service}  {took}"
    if step.after:
        line += f"  [dim]after {', '.join(step.after)}[/]"
    if step.error is not None:
        line += f"  [red]{escape(step.error.code)}: {escape(step.error.message)}[/]"
    return line


def source_line(source: Source) -> str:
    """One source."""
    what = source.document or (f"observation {source.observation}" if source.observation else "")
    who = " ".join(part for part in (f"@{source.agent}" if source.agent else "", source.service or "") if part)
    return f"  [dim]source:[/] {who}{': ' if what else ''}{escape(what)}"


def show_answer(reply: Reply) -> None:
    """An answer with its sources, confidence and what is missing."""
    console.print(escape(reply.output or "(no text)"))
    for source in reply.sources:
        console.print(source_line(source))
    if reply.confidence is not None:
        console.print(f"  [dim]confidence:[/] {reply.confidence:.2f}")
