"""What both stores make of their rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mqttcollab.journal.base import Accepted, Filter, Task
from mqttcollab.journal.batch import Ending

FACTS = "key, service, tenant, owner, state, accepted_ms, deadline_ms, ended_ms, outcome, takeovers"
WHOLE = f"{FACTS}, request, reply"


def task_of(row: Sequence[Any], now_ms: int) -> Task:
    """A task of the columns FACTS or WHOLE."""
    key, service, tenant, owner, state, accepted_ms, deadline_ms, ended_ms, outcome, takeovers, *blobs = row
    request, reply = blobs or (b"", None)
    return Task(
        key,
        service,
        tenant,
        owner,
        state,
        accepted_ms,
        deadline_ms,
        max(0, min(deadline_ms - now_ms, deadline_ms - accepted_ms)),
        ended_ms,
        outcome,
        request,
        reply,
        takeovers,
    )


def is_dead(owner: str, me: str, living: Collection[str]) -> bool:
    """Whether nobody works on what this owner has: it gave it up, is another life of `me`, or its lease is over."""
    return owner != me and (not owner or owner.rpartition("/")[0] == me.rpartition("/")[0] or owner not in living)


def accepted_of(owner: str, state: str, reply: bytes | None, me: str, *, taken: bool = False) -> Accepted:
    """What `accept` says of a task that is there, once those of dead owners have been taken over."""
    if state != "open":
        return Accepted("ended", reply)
    return Accepted("mine", taken=taken) if owner == me else Accepted("others")


def ended_so(row: Sequence[Any] | None, ending: Ending, me: str) -> bool:
    """Whether a task (owner, state, outcome, reply) has ended just so, by this owner."""
    if row is None:
        return False
    owner, state, outcome, reply = row
    return owner == me and state != "open" and (outcome, reply) == (ending.outcome, ending.reply)


def conditions(which: Filter) -> list[tuple[str, list[Any]]]:
    """The conditions of a filter in SQL that both stores speak, each with the values of its question marks."""
    found: list[tuple[str, list[Any]]] = []
    if which.id is not None:
        start = "".join(f"\\{letter}" if letter in "\\%_" else letter for letter in which.id)
        found.append(("key LIKE ? ESCAPE '\\'", [f"%/{start}%"]))
    if which.owner is not None:  # also a name alone, without the epoch
        found.append(("(owner = ? OR substr(owner, 1, ?) = ?)", [which.owner, len(which.owner) + 1, which.owner + "/"]))
    if which.since_ms is not None:
        found.append(("accepted_ms >= ?", [which.since_ms]))
    for column in ("state", "tenant", "outcome"):
        if (value := getattr(which, column)) is not None:
            found.append((f"{column} = ?", [value]))
    return found
