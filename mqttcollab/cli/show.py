"""How things look on a terminal; in a pipe rich leaves colours and boxes away by itself."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from mqttcollab.messages import Reply, Source, Step

# A terminal gets lines broken between words, a pipe gets them whole.
console = Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
errors = Console(highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty(), stderr=True)

# C0 and C1 but tab and newline: what came over the network is not to command the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Text from the network with its control characters made visible."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def safe(text: str) -> str:
    """The same, for a string with rich markup around it."""
    return escape(clean(text))


def as_json(content: Any) -> str:
    """One line of JSON; what JSON lacks is written as null (NaN, infinity), as hex (bytes) or in words."""
    try:
        return json.dumps(content, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False, default=_plain)


def print_json(content: Any) -> None:
    """One line of JSON on standard output."""
    print_plain(as_json(content))


def print_plain(text: str) -> None:
    """Text for programs, as it is (rich would widen tabs)."""
    print(text, flush=True)  # noqa: T201


def warn(text: str) -> None:
    """One line on standard error that the reader should not miss."""
    errors.print(clean(text), style="yellow", markup=False)


def step_line(step: Step, elapsed_s: float) -> str:
    """A step of a timeline, and why the service was asked."""
    mark = {"ok": "[green]✓[/]", "skipped": "[dim]–[/]"}.get(step.status, "[red]✗[/]")
    who = f"[bold]@{safe(step.agent)}[/]  " if step.agent else ""
    took = f"  {step.elapsed_ms:.0f} ms" if step.elapsed_ms is not None else ""
    line = f"  {elapsed_s:6.2f} s  {mark} #{step.number} {who}{safe(step.service)}{took}"
    if step.after:
        line += f"  [dim]after {', '.join(f'#{number}' for number in step.after)}[/]"
    if step.status == "skipped":
        return f"{line}  [dim]has nothing on it: {safe(step.error.message if step.error is not None else '')}[/]"
    if step.error is not None:
        line += f"  [red]{safe(step.error.code)}: {safe(step.error.message)}[/]"
    if step.reason:
        line += f"\n{'':14}[dim]{safe(step.reason)}[/]"
    if step.verdict is not None:
        line += f"\n{'':14}[dim]right with probability {step.verdict.probability:.2f}: {safe(step.verdict.reason)}[/]"
    return line


def source_line(source: Source) -> str:
    """One source."""
    what = source.document or (f"observation {source.observation}" if source.observation else "")
    who = " ".join(part for part in (f"@{source.agent}" if source.agent else "", source.service or "") if part)
    return f"  [dim]source:[/] {safe(who)}{': ' if who and what else ''}{safe(what)}"


def answer_lines(reply: Reply, *, text: bool = True) -> str:
    """An answer (unless its text was shown already), its sources and its confidence."""
    lines = [safe(reply.output or "(no text)")] if text else []
    lines += [f"  [dim]plan:[/] {safe(reply.plan.origin)}, {safe(reply.plan.reason)}"] if reply.plan is not None else []
    lines += [source_line(source) for source in reply.sources]
    if reply.confidence is not None:
        lines.append(f"  [dim]confidence:[/] {reply.confidence:.2f}")
    return "\n".join(lines)


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(element) for key, element in value.items()}
    if isinstance(value, list):
        return [_finite(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
