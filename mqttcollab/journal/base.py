"""What a journal keeps, and the small protocol behind which it may be a file or a server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

# `open`: accepted and not ended. `answered`: its last reply is written down, and may not be with the broker yet.
# `done`: ended, and its reply (if it has one) is with the broker.
TaskState = Literal["open", "answered", "done"]


@dataclass(frozen=True, slots=True)
class NewTask:
    """A request to be accepted.

    Attributes:
        key: its reply topic, which holds the requester's name and the request's id.
        service: under which it was asked.
        request: the request as a message, in the requester's own encoding.
        ttl_ms: what is left of its time to live.
        tenant: who pays; empty for none.
    """

    key: str
    service: str
    request: bytes
    ttl_ms: int
    tenant: str = ""

    @property
    def id(self) -> str:
        """The request's id."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Task:
    """A request as the journal holds it. Times are Unix time in milliseconds, by the journal's clock.

    Attributes:
        owner: the incarnation of the agent that works on it, `<name>/<epoch>`.
        outcome: `ok` or an error code once it has ended; empty before.
        left_ms: what was left of its time to live when it was read, by the journal's clock; 0 once that is over.
        request: as in NewTask; empty where it was not asked for.
        reply: the last reply as a message, in the requester's encoding; None before, without one, or where it was not
            asked for.
        takeovers: how often it has passed from one owner to another.
    """

    key: str
    service: str
    tenant: str
    owner: str
    state: TaskState
    accepted_ms: int
    deadline_ms: int
    left_ms: int
    ended_ms: int | None
    outcome: str
    request: bytes
    reply: bytes | None
    takeovers: int

    @property
    def id(self) -> str:
        """The request's id."""
        return self.key.rpartition("/")[2]


class Entry(NamedTuple):
    """What happened to a task: when, by whom, what (`plan`, `dispatch`, `step`, …), and its facts (JSON)."""

    time_ms: int
    owner: str
    kind: str
    facts: Mapping[str, Any]


class Accepted(NamedTuple):
    """What `Journal.accept` says.

    `mine`: the task is the caller's, now on disk, and to be begun; `taken` says that it was a dead owner's, so that it
    may have a history. `others`: an owner that lives works on it. `ended`: it has ended; `reply` is to be sent again,
    if there is one.
    """

    state: Literal["mine", "others", "ended"]
    reply: bytes | None = None
    taken: bool = False


class Filter(NamedTuple):
    """Which tasks to list, newest first: None means any. `id` may be the beginning of a request's id."""

    id: str | None = None
    state: TaskState | None = None
    owner: str | None = None
    tenant: str | None = None
    outcome: str | None = None
    since_ms: int | None = None


class Limits(NamedTuple):
    """What a journal keeps of tasks that have ended, and how large it may become.

    Attributes:
        keep_s: seconds that an ended task is kept at the least, where there is room: it answers repeats until then.
        most_bytes: over it the oldest ended tasks go; where all are open, new ones are refused.
    """

    keep_s: float = 7 * 86400.0
    most_bytes: int = 1 << 30


class Journal(Protocol):
    """Tasks that outlive the process. It belongs to one event loop; many processes may share one store.

    Every method but `append` and `sent` raises JournalError where the store can't be used; the message says why and
    what to do. What is written is on disk, and survives a loss of power, when the method returns; writes of many tasks
    share a transaction.
    """

    owner: str

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written just now, in one line; None if all is well."""
        ...

    def on_trouble(self, listener: Callable[[str | None], None]) -> None:
        """Calls `listener` on the event loop whenever `trouble` has changed."""
        ...

    @property
    def waiting(self) -> int:
        """How many writes wait for their transaction."""
        ...

    async def accept(self, task: NewTask) -> Accepted:
        """Writes a request down, unless it is there already. A repeat of one whose owner is dead takes it over."""
        ...

    async def answer(self, key: str, reply: bytes | None, outcome: str) -> bool:
        """Writes down how a task ends: its last reply (None: there is none) and `ok` or an error code.

        Returns:
            False if it is not the caller's any more, or has ended: then nothing was written, and nothing is to be sent.
        """
        ...

    def sent(self, key: str) -> None:
        """Notes, some time soon, that the last reply is with the broker."""
        ...

    def append(self, key: str, kind: str, facts: Mapping[str, Any]) -> None:
        """Notes, some time soon and in order, what happened to a task; lost where the process dies before.

        Every later `answer` of the same task is written with it or after it.
        """
        ...

    async def claim(self, gone: Collection[str] = ()) -> list[Task]:
        """Takes over what nobody works on: tasks that are not `done`, of owners whose lease has run out, of earlier
        incarnations of this owner's name, and of the incarnations `gone`. Oldest first, with request and reply.
        """
        ...

    async def release(self) -> None:
        """Gives all open tasks of this owner up, so that another may claim them at once."""
        ...

    async def tasks(self, which: Filter = Filter(), *, most: int = 100) -> list[Task]:  # noqa: B008 - immutable
        """Lists tasks, newest first, without requests and replies."""
        ...

    async def task(self, key: str) -> tuple[Task, Sequence[Entry]] | None:
        """A task with its request, its reply and its history, oldest first; None if there is none."""
        ...

    async def owners(self) -> dict[str, int]:
        """Owners whose lease has not run out, with how many milliseconds are left of it."""
        ...

    async def prune(self, *, older_than_s: float = 0.0, dry_run: bool = False) -> int:
        """Deletes tasks that ended at least so many seconds ago, with their history; returns how many. Open stay."""
        ...

    async def secret(self) -> bytes:
        """32 random bytes, the same for all who share the store: ids made of them nobody else can guess."""
        ...

    async def close(self) -> None:
        """Writes what waits, gives the lease up and closes the store."""
        ...
