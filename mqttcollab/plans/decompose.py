"""Splits a question into subtasks without any model: by its clauses and operands, or by a structure learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from mqttcollab.errors import RequestError
from mqttcollab.messages import PlanStep, Relevance
from mqttcollab.plans.clauses import Clause, clauses
from mqttcollab.plans.operands import operands, with_result
from mqttcollab.plans.plan import MAX_OWN_STEPS, TaskGraph, literal, make_graph, references, whole
from mqttcollab.plans.wording import worded

if TYPE_CHECKING:
    from mqttcollab.plans.structure import StructureModel

Origin = Literal["whole", "clauses", "structure", "model", "request"]
TouchedBy = Callable[[str], list[Relevance]]

# In characters; with what clauses share repeated and number signs doubled it still fits a step.
MAX_QUESTION = 1500
# Where somebody comes to something else, in a form that no rule of `clauses` knows.
_SOFTLY = r"(?:and\s+|but\s+|oh,?\s+)?"
_ASIDE = r"(?:by\s+the\s+way|btw|besides|incidentally|another\s+thing|one\s+more\s+thing|on\s+another\s+note)\b[,:]?\s+"
_TURN = re.compile(rf"(?<=[?!])\s+{_SOFTLY}(?:{_ASIDE})?|[,;.]?\s+{_SOFTLY}{_ASIDE}", re.I)


@dataclass(frozen=True, slots=True)
class Decomposition:
    """A question's subtasks.

    Attributes:
        graph: what is to be done; where `origin` is `whole`, one step that may be cut short: ask the question itself.
        origin: who split it, as in `messages.Plan`.
        reason: why, for a person.
        confidence: the probability that the structure is right, where one was learned.
    """

    graph: TaskGraph
    origin: Origin
    reason: str
    confidence: float | None = None


@runtime_checkable
class Decomposer(Protocol):
    """Splits questions into subtasks."""

    async def decompose(self, question: str) -> Decomposition:
        """Return a plan for a question; a question that is one thing stays whole.

        Raises:
            RequestError: `bad_request`, the question is empty.
        """
        ...


class ClauseDecomposer:
    """The model-free decomposer: what a question asks, clause by clause, and what its calculations need first.

    Args:
        touched: the services that a text touches, likeliest first (`DomainClassifier.touched`); a split of which no
            part touches any is not made. None takes every split.
        structure: for a question of one clause whose form it knows, and that no service covers as a whole.
    """

    def __init__(self, touched: TouchedBy | None = None, *, structure: StructureModel | None = None) -> None:
        self._touched = touched
        self._structure = structure

    async def decompose(self, question: str) -> Decomposition:
        """Return a plan for a question.

        Raises:
            RequestError: `bad_request`, the question is empty.
        """
        return self.split(question)

    def split(self, question: str) -> Decomposition:
        """Do what `decompose` does, without an event loop."""
        if len(question) > MAX_QUESTION:
            return Decomposition(whole(question), "whole", f"it has {len(question)} characters: not split")
        text = " ".join(question.split())
        if not text:
            raise RequestError("bad_request", "the question is empty; ask something")
        asked = clauses(text)
        steps = _steps(asked)
        if len(steps) > MAX_OWN_STEPS:
            reason = f"it takes {len(steps)} steps, more than {MAX_OWN_STEPS}: not split"
            return Decomposition(whole(text), "whole", reason)
        if len(steps) > 1:
            return self._if_worth_it(text, Decomposition(make_graph(steps), "clauses", _why(asked, len(steps))))
        if turns := self._turns(text):
            reason = f"it turns to something else: {len(turns)} things"
            return Decomposition(make_graph(_steps(turns)), "clauses", reason)
        return self._by_structure(text) or Decomposition(whole(text), "whole", "it asks one thing")

    def _by_structure(self, text: str) -> Decomposition | None:
        if self._structure is None or not self._structure.knows(text):
            return None
        if self._touched is not None and self._touched(text):
            return None  # somebody answers the question itself
        chosen, chance = self._structure.choose(text)
        if chosen.count == 1:
            return None
        reason = f"{chosen.count} steps are likeliest for a question of this form ({chance:.2f})"
        return self._if_worth_it(text, Decomposition(make_graph(worded(text, chosen)), "structure", reason, chance))

    def _turns(self, text: str) -> list[Clause]:
        """The parts of a text that turns from one service's domain to another's; none if it stays with one."""
        parts = [part for part in _TURN.split(text) if part.strip()]
        if self._touched is None or not 1 < len(parts) <= MAX_OWN_STEPS:
            return []
        likeliest = {found[0].service for part in parts if (found := self._touched(part))}
        return [Clause(part) for part in parts] if len(likeliest) == len(parts) else []

    def _if_worth_it(self, question: str, found: Decomposition) -> Decomposition:
        if len(found.graph.steps) == 1:
            return Decomposition(whole(question), "whole", "it asks one thing twice")
        # A part that nobody covers, beside one that somebody does, stays apart too: what is known is answered.
        if self._touched is None or any(self._touched(text) for text in _standing_alone(found.graph)):
            return found
        return Decomposition(whole(question), "whole", f"{found.reason}, but no service here covers a part of it")


def _steps(asked: Sequence[Clause]) -> list[PlanStep]:
    """Return the steps of clauses: what their calculations need, and themselves."""
    steps: list[PlanStep] = []
    ends: dict[int, int] = {}
    for number, clause in enumerate(asked, 1):
        after = [ends[need] for need in clause.after]
        text = literal(clause.text)
        parts = operands(with_result(text, after[0]) if len(after) == 1 else text, len(steps))
        steps += [PlanStep(text=part) for part in parts[:-1]]
        steps.append(PlanStep(text=parts[-1], after=sorted({*after, *references(parts[-1])})))
        ends[number] = len(steps)
    return steps


def _why(asked: Sequence[Clause], count: int) -> str:
    if len(asked) == 1:
        return f"what it works with has to be found first: {count} steps"
    return f"it asks {len(asked)} things" + (f", in {count} steps" if count > len(asked) else "")


def _standing_alone(graph: TaskGraph) -> list[str]:
    """Return the texts whose relevance counts; one that only points back is judged with what it points to."""
    texts: list[str] = []
    for step in graph.steps:
        if references(step.text):
            continue
        before = " ".join(graph.steps[need - 1].text for need in step.after)
        texts.append(f"{before} {step.text}".strip().replace("##", "#"))
    return texts
