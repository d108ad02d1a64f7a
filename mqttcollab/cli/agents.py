"""`mqttcollab agents`."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mqttcollab.cli.show import client, console, errors, print_json
from mqttcollab.cms.registry import AgentView, Registry


async def show_agents(broker: str | None, *, watch: bool, as_json: bool) -> None:
    """Prints who is there; with `watch`, then what changes, until it is interrupted."""
    me = client(broker)
    async with me.running(broker):
        registry = await me.follow()
        show_now(registry, as_json=as_json)
        seen = registry.version
        while watch:
            await registry.changed()
            for change in registry.changes_since(seen):
                if as_json:
                    print_json(change._asdict())
                else:
                    console.print(f"{change.kind:12} {'@' + change.agent if change.agent else ''} {change.service}")
            seen = registry.version


def show_now(registry: Registry, *, as_json: bool) -> None:
    """Prints the present state."""
    views = registry.present()
    if as_json:
        print_json([describe(view) for view in views])
    elif not views:
        console.print("No agent is online.")
    elif console.is_terminal:
        table = Table("agent", "status", "place", "service", "slots", "running", "queued", "done", box=None)
        for row in _rows(views):
            table.add_row(*row)
        console.print(table)
    else:
        for row in _rows(views):
            console.print("\t".join(row))
    for topic, problem in registry.problems.items():
        errors.print(f"[yellow]not valid:[/] {topic}: {problem}")


def describe(view: AgentView) -> dict[str, Any]:
    """An agent as JSON."""
    return {
        "agent": view.name,
        "status": view.status.state if view.status else None,
        "epoch": view.status.epoch if view.status else None,
        "place": view.profile.place if view.profile else None,
        "description": view.profile.description if view.profile else None,
        "services": [record.model_dump(exclude_none=True, exclude={"type"}) for record in view.records.values()],
        "load": view.load.model_dump(exclude_none=True, exclude={"type", "agent"}) if view.load else None,
    }


def _rows(views: list[AgentView]) -> list[tuple[str, ...]]:
    rows = []
    for view in views:
        load = view.load
        numbers = ("-",) * 4 if load is None else (load.slots, load.running, load.queued, load.completed)
        head = (f"@{view.name}", view.status.state if view.status else "?", _place(view))
        for i, service in enumerate(sorted(view.records) or ["-"]):
            first = i == 0
            rows.append((*(head if first else ("", "", "")), service, *(str(n) if first else "" for n in numbers)))
    return rows


def _place(view: AgentView) -> str:
    return (view.profile.place if view.profile else None) or "-"
