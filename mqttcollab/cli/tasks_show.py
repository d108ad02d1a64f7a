"""How tasks of a journal look on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from mqttcollab.cli.show import as_json, clean, console, print_plain, safe
from mqttcollab.codec import decode_map
from mqttcollab.errors import MessageError
from mqttcollab.journal import Entry, Task

_COLUMNS = ("id", "state", "outcome", "service", "owner", "tenant", "age", "took")
_WIDE = 110
_MOST_LETTERS = 200


def show_list(tasks: Sequence[Task], now_ms: int) -> None:
    """A line for each task, newest first."""
    rows = [_row(task, now_ms) for task in tasks]
    if not console.is_terminal:
        for row in rows:
            print_plain("\t".join(clean(cell) for cell in row))
    elif not rows:
        console.print("No task is like that.")
    elif console.width < _WIDE:
        for task, row in zip(tasks, rows, strict=True):
            console.print(f"[bold]{safe(row[0])}[/] {_mark(task)}")
            console.print(f"  {safe(row[3])}, {safe(row[4])}, {row[6]} ago")
    else:
        table = Table(box=None, pad_edge=False)
        for name in _COLUMNS:
            table.add_column(name, no_wrap=True, justify="right" if name in ("age", "took") else "left")
        for row in rows:
            table.add_row(*map(safe, row))
        console.print(table)


def show_task(task: Task, history: Sequence[Entry], now_ms: int) -> None:
    """A task, and what happened to it with the time since it was accepted."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(task.accepted_ms / 1000))
    console.print(f"[bold]{safe(task.id)}[/]  {safe(task.service)}  {_mark(task)}")
    console.print(f"  for {safe(_requester(task))}" + (f", tenant {safe(task.tenant)}" if task.tenant else ""))
    console.print(f"  accepted {when}, {(task.deadline_ms - task.accepted_ms) / 1000:.1f} s to live")
    if (question := _message(task.request).get("input")) is not None:
        console.print(f"  {safe(_clip(question))}")
    for entry in history:
        console.print(f"{_since(task, entry.time_ms)}{safe(_clip(_words(entry)))}", soft_wrap=True)
    if task.ended_ms is not None:
        console.print(f"{_since(task, task.ended_ms)}ended: {safe(task.outcome)}, by {safe(task.owner)}")
        if task.reply is not None and (answer := _message(task.reply).get("output")) is not None:
            console.print(f"{'':14}{safe(_clip(answer))}")
    elif task.deadline_ms > now_ms:
        left = f"{(task.deadline_ms - now_ms) / 1000:.1f} s left"
        console.print(
            f"{_since(task, now_ms)}open, {left}, {f'with {safe(task.owner)}' if task.owner else 'with nobody'}"
        )
    else:
        console.print(f"{_since(task, now_ms)}open, past its deadline")


def describe(task: Task) -> dict[str, Any]:
    """A task of a list as JSON; times are Unix time in milliseconds."""
    facts = asdict(task)
    del facts["request"], facts["reply"]
    return {"id": task.id, **facts}


def describe_whole(task: Task, history: Sequence[Entry]) -> dict[str, Any]:
    """A task with its request, its reply and its history as JSON."""
    return {
        **describe(task),
        "request": _message(task.request),
        "reply": None if task.reply is None else _message(task.reply),
        "history": [{**entry._asdict(), "facts": dict(entry.facts)} for entry in history],
    }


def _row(task: Task, now_ms: int) -> tuple[str, ...]:
    took = "-" if task.ended_ms is None else f"{(task.ended_ms - task.accepted_ms) / 1000:.2f} s"
    age = _age(now_ms - task.accepted_ms)
    return (
        *(task.id, task.state, task.outcome or "-", task.service, task.owner or "-", task.tenant or "-"),
        *(age, took),
    )


def _mark(task: Task) -> str:
    if task.ended_ms is None:
        return f"[yellow]{task.state}[/]"
    unsent = "" if task.state == "done" else " (its reply may not be with the broker)"
    return f"[{'green' if task.outcome == 'ok' else 'red'}]{safe(task.outcome)}[/]{unsent}"


def _age(ms: int) -> str:
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        if ms >= length:
            return f"{ms // length} {unit}"
    return f"{max(0, ms) // 1000} s"


def _since(task: Task, time_ms: int) -> str:
    return f"  {(time_ms - task.accepted_ms) / 1000:+9.3f} s  "


def _requester(task: Task) -> str:
    return task.key.rpartition("/")[0].partition("/")[2]


def _words(entry: Entry) -> str:
    """An entry in words: those that an orchestrator writes, and any other by its facts."""
    facts = dict(entry.facts)
    number = facts.get("step")
    step = f"#{number}" if isinstance(number, int) else ""
    agent = f"@{facts['agent']}" if facts.get("agent") else ""
    match entry.kind:
        case "plan" if isinstance(plan := facts.get("plan"), dict) and isinstance(plan.get("steps"), list):
            words = ["plan", f"{len(plan['steps'])} steps ({plan.get('origin', '?')}): {plan.get('reason', '')}"]
        case "dispatch":
            words = ["dispatch", step, "to", agent, str(facts.get("service", ""))]
        case "reply":
            took, cost = facts.get("elapsed_ms"), facts.get("cost_usd")
            words = ["reply", step, "from", agent, str(facts.get("status", ""))]
            words += [f"{took:.0f} ms"] if isinstance(took, int | float) else []
            words += [f"{cost:.6f} USD"] if isinstance(cost, int | float) else []
        case "step" if isinstance(number, dict):
            words = [
                "step",
                f"#{number.get('number', '?')}",
                str(number.get("service", "")),
                str(number.get("status", "")),
            ]
            output = (facts.get("reply") or {}).get("output")
            words += [f"“{output}”"] if output else []
        case "takeover":
            words = ["takeover", f"by {entry.owner}", f"from {facts.get('from', '?')}"]
        case _:
            words = [entry.kind, *(f"{name}={_value(value)}" for name, value in facts.items())]
    return " ".join(word for word in words if word)


def _value(value: object) -> str:
    return value if isinstance(value, str) else as_json(value)


def _clip(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _MOST_LETTERS else f"{line[: _MOST_LETTERS - 1]}…"


def _message(payload: bytes) -> Mapping[str, Any]:
    try:
        return decode_map(payload, limit=max(1, len(payload)))
    except (MessageError, json.JSONDecodeError):
        return {"undecoded": payload.hex()}
