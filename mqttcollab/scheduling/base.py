"""What a scheduling policy sees and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mqttcollab.errors import ErrorCode

# One row per agent and service. What nobody reports is NaN; times are seconds, prices US dollars.
AGENT = np.dtype(
    [
        ("score", "f8"),  # how well it can do it, from capability matching: 1 is surely right
        ("tokens_per_s", "f8"),  # written, by one slot
        ("prompt_tokens_per_s", "f8"),  # read, by one slot
        ("wordiness", "f8"),  # tokens of its answers, beside those expected of its service's
        ("overhead_s", "f8"),  # per request, whatever its length
        ("slots", "f8"),
        ("running", "f8"),  # as believed now; a fraction is a likelihood
        ("queued", "f8"),
        ("own", "f8"),  # of those, what this scheduler has sent
        ("backlog_s", "f8"),  # slot-seconds of what was sent to it and has not come back
        ("price_usd", "f8"),
        ("prompt_usd_per_mtok", "f8"),
        ("completion_usd_per_mtok", "f8"),
        ("battery", "f8"),
        ("drain_per_h", "f8"),
        ("thermal", "f8"),
        ("link", "f8"),
        ("hardship", "f8"),  # at least 1: how much slower it counts for the four above
        ("asleep", "?"),
    ],
    align=True,
)
# What is not known to take time takes this, in seconds.
_LEAST_S = 1e-3
# So many agents are enough to tell how much all of them can do.
_ENOUGH = 256

Rows = NDArray[np.void]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Demand:
    """A request that is to be placed.

    Attributes:
        id: names it.
        tokens: that its answer is expected to have.
        prompt_tokens: that are to be read for it.
        arrived: when it came, in seconds of the scheduler's clock, as are the others.
        wait_until: when it must have begun at the latest; from then on it is not worth waiting.
        deadline: when its answer is void.
        cloud_usd: what the cloud would charge; infinite if it must not or can't go there.
        cloud_s: how long the cloud is expected to take.
        no_cloud: why the cloud is no choice, in words.
        budget_usd: the most that it may cost.
        tenant: whose it is; tenants share what there is fairly.
        priority: 0 to 9; where requests wait, higher goes strictly first, and tenants share fairly within each.
        service: what it asks for, in whatever words: requests for the same are rivals.
    """

    id: str
    tokens: float
    prompt_tokens: float = 0.0
    arrived: float = 0.0
    wait_until: float = math.inf
    deadline: float = math.inf
    cloud_usd: float = math.inf
    cloud_s: float = 0.0
    no_cloud: str = ""
    budget_usd: float = math.inf
    tenant: str = ""
    priority: int = 4
    service: str = ""

    @property
    def due(self) -> float:
        """From when on it does not wait any longer."""
        return min(self.wait_until, self.deadline)


class Candidates(NamedTuple):
    """Who could do it: rows of a LoadBook, and how well each can (n,)."""

    rows: NDArray[np.intp]
    scores: Floats


@dataclass(frozen=True, slots=True)
class Fleet:
    """The candidates as they are believed to be now: what a policy chooses from.

    Attributes:
        names, places: of all agents in the LoadBook.
        rows: (n,), of dtype AGENT.
        at: (n,), their rows in the LoadBook.
    """

    names: Sequence[str]
    places: Sequence[str | None]
    rows: Rows
    at: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, number: int) -> str:
        """The name of a candidate."""
        return str(self.names[self.at[number]])

    def place(self, number: int) -> str | None:
        """Where a candidate is, if that is known."""
        return self.places[int(self.at[number])]

    def free(self, surely: float = 0.5) -> NDArray[np.bool_]:
        """(n,): who is awake and has so much of a slot free, as far as is known."""
        rows = self.rows
        return np.asarray((rows["slots"] - rows["running"] > surely) & ~rows["asleep"])

    def seconds(self, demand: Demand) -> Floats:
        """(n,): how long each would take, once begun."""
        rows = self.rows
        found = rows["overhead_s"] + demand.tokens * rows["wordiness"] / rows["tokens_per_s"]
        if demand.prompt_tokens:
            found += demand.prompt_tokens / rows["prompt_tokens_per_s"]
        return np.asarray(found)

    def work_s(self, demand: Demand) -> float:
        """How long all of them together would take, were it divisible; of many agents some stand for all."""
        step = max(1, len(self.rows) // _ENOUGH)
        some = self if step == 1 else Fleet(self.names, self.places, self.rows[::step], self.at[::step])
        done = np.add.reduce(some.rows["slots"] / np.maximum(some.seconds(demand), _LEAST_S))
        return len(some) / len(self) / float(done)

    def prices(self, demand: Demand) -> Floats:
        """(n,): what each would charge, in US dollars."""
        rows = self.rows
        per_token = demand.prompt_tokens * rows["prompt_usd_per_mtok"] + demand.tokens * rows["completion_usd_per_mtok"]
        return np.asarray(rows["price_usd"] + per_token / 1e6)

    def load(self) -> Floats:
        """(n,): requests running and waiting per slot."""
        return np.asarray((self.rows["running"] + self.rows["queued"]) / self.rows["slots"])


Kind = Literal["agent", "cloud", "wait", "refuse"]


class Decision(NamedTuple):
    """What a policy answers.

    Attributes:
        kind: `agent`; `cloud`; `wait`, to be asked again when something ends or the demand is due; `refuse`.
        reason: why, in words.
        agent: a number in the fleet, for `agent`.
        code: for `refuse`, the error code of the protocol.
    """

    kind: Kind
    reason: str
    agent: int = -1
    code: ErrorCode = "busy"


class Policy(Protocol):
    """Decides where requests go. One belongs to one scheduler: it may learn from what it sees.

    Attributes:
        name: as in `--policy`.
        attempts: how many agents are tried where one turns out to be busy.
        queues: whether a request may wait at an agent; else it waits with the scheduler, or goes elsewhere.
    """

    name: str
    attempts: int
    queues: bool

    def arrived(self, demand: Demand) -> None:
        """Called once for each request, before anything is decided of it."""
        ...

    def choose(self, demand: Demand, fleet: Fleet, now: float) -> Decision:
        """Where it goes."""
        ...

    def order(self, waiting: Sequence[Demand], fleet: Fleet, now: float) -> Sequence[Demand]:
        """The order in which those should be placed that wait for the same agents; none if none can.

        They are of one tenant and priority. Before anything has changed it is not asked for others that wait for them.
        """
        ...


def elsewhere(demand: Demand, now: float, why: str, code: ErrorCode = "busy") -> Decision:
    """The decision where no agent is to be had: the cloud, or a refusal that says why, with this code."""
    if math.isfinite(demand.cloud_usd):
        if demand.cloud_usd > demand.budget_usd:
            price = f"the cloud would cost {demand.cloud_usd:.4f} US dollars of a budget of {demand.budget_usd:.4f}"
            return Decision("refuse", f"{why}, and {price}", code="quota_exceeded")
        if now + demand.cloud_s <= demand.deadline:
            return Decision("cloud", why)
        reason = f"the cloud would need {demand.cloud_s:.1f} s: too late"
        return Decision("refuse", f"{why}, and {reason}", code="deadline_exceeded")
    return Decision("refuse", f"{why}, and {demand.no_cloud or 'there is no cloud'}", code=code)


def too_late(demand: Demand, now: float, seconds: float) -> Decision:
    """The decision where no agent would be done in time; `seconds` is what the fastest needs from now on."""
    why = f"no agent would be done in less than {seconds:.1f} s, and {demand.deadline - now:.1f} s are left"
    return elsewhere(demand, now, why, "deadline_exceeded")
