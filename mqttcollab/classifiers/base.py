"""The chain of classifiers: each a small protocol, each saying a score, a calibrated probability and a reason.

`learn` takes the service records of everybody who is present, and serves from then on: nothing is trained in it.
Where `train` is there, it may take seconds; it is called in a thread, after which answers are better.
All are pure: no network, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mqttcollab.classifiers.skill import SkillBook
from mqttcollab.messages import Candidate, ContextItem, Relevance, Reply, ServiceRecord, Verdict


@dataclass(frozen=True, slots=True)
class Offering:
    """A service of an agent that could do the subtask.

    Attributes:
        record: what it announced.
        relevance: the probability that the subtask touches its service.
        closeness: the cosine of the subtask with the nearest of this agent's own examples, where there is one.
        breadth: how many services the agent offers in all.
    """

    record: ServiceRecord
    relevance: float
    closeness: float | None = None
    breadth: int = 1


@runtime_checkable
class ComplexityClassifier(Protocol):
    """How much a question takes."""

    def complexity(self, question: str) -> Verdict:
        """The probability that the question takes more than one step."""
        ...


@runtime_checkable
class DomainClassifier(Protocol):
    """Which services a question touches, and whether any of them covers it, from the examples in service records."""

    @property
    def gap_threshold(self) -> float:
        """The probability from which a question counts as beyond everybody."""
        ...

    def learn(self, records: Sequence[ServiceRecord]) -> None:
        """Takes these records instead of any before; a record that can't be used is left out."""
        ...

    def relevance(self, question: str) -> list[Relevance]:
        """Every service's probability that the question touches its domain, likeliest first; several may be likely."""
        ...

    def touched(self, question: str) -> list[Relevance]:
        """Those that count as touched, likeliest first; none if no service is likely enough."""
        ...

    def gap(self, question: str) -> Verdict:
        """The probability that the question is beyond what all records together cover."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A classifier that gets better with training."""

    def train(self) -> None:
        """Trains on what was learned last; blocks for seconds, so call it in a thread."""
        ...


@runtime_checkable
class CapabilityClassifier(Protocol):
    """Who should do a subtask."""

    @property
    def skill(self) -> SkillBook:
        """How right everybody has been; the orchestrator notes verdicts in it."""
        ...

    def rank(self, subtask: str, offerings: Sequence[Offering], *, place: str | None = None) -> list[Candidate]:
        """The agents that could do a subtask, best first, each with the probability that its answer will be right."""
        ...


@runtime_checkable
class AnswerJudge(Protocol):
    """Whether an answer can be trusted, once it is there."""

    def judge(self, question: str, reply: Reply, context: Sequence[ContextItem] = ()) -> Verdict:
        """The probability that the reply answers the question rightly, given the context that it could build on."""
        ...

    def check(self, question: str, reply: Reply) -> float | None:
        """The same by what can be checked without believing who answered; None where nothing can."""
        ...
