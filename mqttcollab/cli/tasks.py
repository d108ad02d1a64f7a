"""`mqttcollab tasks`: what a journal holds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mqttcollab.cli.signals import die_at_once
from mqttcollab.config import JOURNAL_VARIABLE
from mqttcollab.errors import ConfigError
from mqttcollab.journal import Filter, open_journal, read_journal

if TYPE_CHECKING:
    from mqttcollab.journal.postgres import PostgresJournal
    from mqttcollab.journal.sqlite import SqliteJournal

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = typer.Typer(invoke_without_command=True)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 90s, 5m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]


_Where = Annotated[
    str | None,
    typer.Option(
        "--journal", "-j", envvar=JOURNAL_VARIABLE, help="A file, or postgresql://user:password@host:port/database."
    ),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.callback()
def tasks(
    context: typer.Context,
    journal: _Where = None,
    state: Annotated[
        Literal["open", "answered", "done"] | None,
        typer.Option(help="Only those that are open, answered (but not surely with the broker), or done."),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only an agent's, or with its epoch one life's: NAME/EPOCH.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only a tenant's.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only those that ended so: ok, or an error code.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only those accepted in the last 90s, 5m, 2h or 7d.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    as_json: _AsJson = False,
) -> None:
    """List the tasks of a journal, newest first; it may be in use."""
    if context.invoked_subcommand is not None:
        context.obj = journal
        return
    last_s = None if since is None else _seconds(since)
    which = Filter(state=state, owner=owner, tenant=tenant, outcome=outcome)
    _run(_list(_named(journal), which, last_s, most, as_json=as_json))


@app.command()
def show(
    context: typer.Context,
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request's id, or how it begins.")],
    journal: _Where = None,
    as_json: _AsJson = False,
) -> None:
    """Show a task and what happened to it, in the order in which it did."""
    _run(_show(_named(journal or context.obj), id_, as_json=as_json))


@app.command()
def prune(
    context: typer.Context,
    older_than: Annotated[str, typer.Option(metavar="TIME", help="Those that ended so long ago: 90s, 5m, 2h, 7d.")],
    journal: _Where = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Delete tasks that have ended, with their history; open ones stay."""
    _run(_prune(_named(journal or context.obj), _seconds(older_than), dry_run=dry_run, as_json=as_json))


def _named(journal: str | None) -> str:
    if not journal:
        raise ConfigError(f"which journal? Name one with --journal, or in {JOURNAL_VARIABLE}")
    return journal


def _run(work: Coroutine[Any, Any, None]) -> None:
    die_at_once()
    asyncio.run(work)


@asynccontextmanager
async def _reading(where: str) -> AsyncIterator[SqliteJournal | PostgresJournal]:
    journal = await read_journal(where)
    try:
        yield journal
    finally:
        await journal.close()


async def _list(where: str, which: Filter, last_s: float | None, most: int, *, as_json: bool) -> None:
    from mqttcollab.cli.show import print_json
    from mqttcollab.cli.tasks_show import describe, show_list

    async with _reading(where) as journal:
        if last_s is not None:
            which = which._replace(since_ms=journal.now_ms() - round(1000 * last_s))
        found = await journal.tasks(which, most=most)
        now_ms = journal.now_ms()
    if as_json:
        print_json([describe(task) for task in found])
    else:
        show_list(found, now_ms)


async def _show(where: str, id_: str, *, as_json: bool) -> None:
    from mqttcollab.cli.show import print_json
    from mqttcollab.cli.tasks_show import describe_whole, show_task

    async with _reading(where) as journal:
        found = [task for task in await journal.tasks(Filter(id=id_), most=20) if task.id.startswith(id_)]
        exact = [task for task in found if task.id == id_] or found
        if not exact:
            raise ConfigError(f"there is no task {id_!r} in {journal.name}")
        if len(exact) > 1:
            some = ", ".join(task.key if task.id == id_ else task.id for task in exact[:3])
            raise ConfigError(f"{id_!r} is the beginning of several tasks ({some} …): give more of it")
        whole = await journal.task(exact[0].key)
        now_ms = journal.now_ms()
    if whole is None:
        raise ConfigError(f"the task {id_!r} has just been pruned")
    if as_json:
        print_json(describe_whole(*whole))
    else:
        show_task(*whole, now_ms)


async def _prune(where: str, older_than_s: float, *, dry_run: bool, as_json: bool) -> None:
    from mqttcollab.cli.show import console, print_json

    if dry_run:
        async with _reading(where) as reader:
            count = await reader.prune(older_than_s=older_than_s, dry_run=True)
    else:
        journal = await open_journal(where, "")
        try:
            count = await journal.prune(older_than_s=older_than_s)
        finally:
            await journal.close()
    if as_json:
        print_json({"pruned": count, "dry_run": dry_run})
    else:
        console.print(f"{count} tasks {'would be' if dry_run else 'were'} deleted")
