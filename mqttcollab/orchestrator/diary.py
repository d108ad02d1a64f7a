"""What is noted of a question in the journal, and read there by who goes on with it after a crash."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mqttcollab.messages import Part, Plan, Reply, Step
from mqttcollab.orchestrator.decide import Decision, Kept
from mqttcollab.rpc.durable import TaskLog


class Dispatch(NamedTuple):
    """A subtask that went out, under this request id."""

    agent: str
    service: str
    request: str


class Noted(NamedTuple):
    """A step that was answered."""

    step: Step
    reply: Reply
    relevance: float


@dataclass(slots=True)
class Diary:
    """The notes on one question; without a log it remembers nothing.

    Args:
        log: the journal's, where the orchestrator has one.
        secret: makes ids that nobody can guess, and that are the same in the next life: so an agent that is asked
            again knows the request, and gives the reply that it has, or goes on with the work.

    Attributes:
        plan: what was decided, and what else of it is to be kept.
        answered: steps that were answered, by number.
        spent_usd: what was spent on it.
        unanswered: subtasks that went out and did not come back, by step.
    """

    log: TaskLog | None = None
    secret: bytes = b""
    plan: tuple[Plan, list[Kept]] | None = field(default=None, init=False)
    answered: dict[int, Noted] = field(default_factory=dict, init=False)
    spent_usd: float = field(default=0.0, init=False)
    unanswered: dict[int, list[Dispatch]] = field(default_factory=dict, init=False)
    _asked: Counter[tuple[int, str, str]] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        for entry in self.log.history if self.log is not None else ():
            facts = entry.facts
            if entry.kind == "plan":
                self.plan = Plan.model_validate(facts["plan"]), [Kept(**kept) for kept in facts["kept"]]
            elif entry.kind == "step":
                step = Step.model_validate(facts["step"])
                reply = Reply.model_validate(facts["reply"])
                self.answered[step.number] = Noted(step, reply, facts["relevance"])
            elif entry.kind == "dispatch":
                dispatch = Dispatch(facts["agent"], facts["service"], facts["request"])
                self.unanswered.setdefault(facts["step"], []).append(dispatch)
                self._asked[facts["step"], dispatch.agent, dispatch.service] += 1
            elif entry.kind == "reply":
                self.spent_usd += facts.get("cost_usd", 0.0)
                sent = self.unanswered.get(facts["step"], [])
                self.unanswered[facts["step"]] = [one for one in sent if one.request != facts["request"]]

    def planned(self, decision: Decision) -> None:
        """Notes the plan."""
        if self.log is not None:
            kept = [step.kept._asdict() for step in decision.steps]
            self.log.note("plan", {"plan": _plain(decision.plan), "kept": kept})

    def dispatched(self, step: int, agent: str, service: str) -> str | None:
        """Notes that a subtask goes to an agent; returns the id of its request, None where any will do."""
        if self.log is None:
            return None
        self._asked[step, agent, service] += 1
        name = f"{self.log.key} {step} {agent} {service} {self._asked[step, agent, service]}"
        request = hmac.new(self.secret, name.encode(), hashlib.sha256).hexdigest()[:32]
        self.log.note("dispatch", {"step": step, "agent": agent, "service": service, "request": request})
        return request

    def replied(self, step: int, agent: str, request: str | None, status: str, cost_usd: float) -> None:
        """Notes what came back: `ok` or an error code, and what it cost."""
        if self.log is not None:
            facts = {"step": step, "agent": agent, "request": request, "status": status, "cost_usd": cost_usd}
            self.log.note("reply", facts)

    def ended(self, step: Step, reply: Reply, relevance: float) -> None:
        """Notes the answer to a step."""
        if self.log is not None:
            self.log.note("step", {"step": _plain(step), "reply": _plain(reply), "relevance": relevance})


def _plain(part: Part) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_none=True)
