"""`mqttcollab agents`."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table

from mqttcollab.cli.client import running_client
from mqttcollab.cli.show import clean, console, print_json, print_plain, safe, warn
from mqttcollab.cms.registry import AgentView, Change, Registry

_TABLE_WIDTH = 79
_PLACE_WIDTH = 100
_MOST_PROBLEMS = 10
_VERBS = {"record": "offers", "record_gone": "withdrew", "model": "model"}


async def show_agents(broker: str | None, *, watch: bool, as_json: bool) -> None:
    """Prints who is there; with `watch`, then what changes, until it is interrupted."""
    async with running_client(broker) as me:
        registry = await me.follow()
        show_now(registry, as_json=as_json)
        seen = registry.version
        while watch:
            await registry.changed()
            for change in registry.changes_since(seen):
                reason = _reason(registry.agents.get(change.agent)) if change.kind == "degraded" else ""
                if as_json:
                    print_json(change._asdict() | ({"reason": reason} if change.kind == "degraded" else {}))
                else:
                    console.print(_change_line(change, reason), markup=False)
            seen = registry.version


def show_now(registry: Registry, *, as_json: bool) -> None:
    """Prints the present state, and on standard error which retained messages are not valid."""
    views = registry.present()
    if as_json:
        print_json([describe(view) for view in views])
    elif not views:
        console.print("No agent is online.")
    elif not console.is_terminal:
        for row in _rows(views):
            print_plain("\t".join(clean(cell) for cell in row))
    elif console.width < _TABLE_WIDTH:
        for name, status, service, running, queued, _done, place, reason in _rows(views):
            console.print(f"[bold]{safe(name)}[/] {safe(service)}")
            console.print(f"  {status}, {running} running, {queued} queued")
            if reason != "-":
                console.print(f"  {safe(reason)}")
            if place != "-":
                console.print(f"  {safe(place)}")
    else:
        console.print(_table(views))
        for view in views:
            if reason := _reason(view):
                console.print(f"@{view.name} is degraded: {clean(reason)}", markup=False)
    for topic, problem in list(registry.problems.items())[:_MOST_PROBLEMS]:
        warn(f"not valid: {topic}: {problem}")
    if len(registry.problems) > _MOST_PROBLEMS:
        warn(f"… and {len(registry.problems) - _MOST_PROBLEMS} more that are not valid")


def describe(view: AgentView) -> dict[str, Any]:
    """An agent as JSON."""
    return {
        "agent": view.name,
        "status": view.status.state if view.status else None,
        "reason": _reason(view) or None,
        "epoch": view.status.epoch if view.status else None,
        "place": view.profile.place if view.profile else None,
        "description": view.profile.description if view.profile else None,
        "services": [record.model_dump(exclude_none=True, exclude={"type"}) for record in view.records.values()],
        "load": view.load.model_dump(exclude_none=True, exclude={"type", "agent"}) if view.load else None,
    }


def _table(views: list[AgentView]) -> Table:
    columns = ("agent", "status", "service", "running", "queued", "done", "place")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown = len(columns) if console.width >= _PLACE_WIDTH else len(columns) - 1
    for name in columns[:shown]:
        table.add_column(name, no_wrap=True, justify="right" if name in ("running", "queued", "done") else "left")
    before = ""
    for row in _rows(views):
        cells = [safe(cell) for cell in row[:shown]]
        table.add_row(*(["", *cells[1:]] if row[0] == before else cells))
        before = row[0]
    return table


def _rows(views: list[AgentView]) -> list[tuple[str, ...]]:
    """A row per service: agent, status, service, running of its agent's slots, queued, done, place, what is wrong."""
    rows = []
    for view in views:
        load = view.load
        numbers = ("-",) * 3 if load is None else (f"{load.running}/{load.slots}", load.queued, load.completed)
        state = view.status.state if view.status else "?"
        place = (view.profile.place if view.profile else None) or "-"
        for service in sorted(view.records) or ["-"]:
            rows.append((f"@{view.name}", state, service, *map(str, numbers), place, _reason(view) or "-"))
    return rows


def _reason(view: AgentView | None) -> str:
    return view.status.reason if view is not None and view.status is not None else ""


def _change_line(change: Change, reason: str) -> str:
    verb = _VERBS.get(change.kind, change.kind)
    who = f"@{change.agent}" if change.agent else ""
    words = (time.strftime("%H:%M:%S"), who, verb, change.service, reason)
    return clean(" ".join(word for word in words if word))
