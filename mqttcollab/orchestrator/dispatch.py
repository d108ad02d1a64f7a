"""Runs a plan: asks the agents, in parallel or in sequence, within the deadline, and tries others where one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqttcollab.messages import ContextItem, ErrorInfo, Step, Verdict
from mqttcollab.orchestrator.asking import Asking
from mqttcollab.orchestrator.decide import PlannedStep
from mqttcollab.orchestrator.results import result_of
from mqttcollab.orchestrator.subtask import Means, Outcome, Subtask
from mqttcollab.plans.plan import fill, references

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder


@dataclass(slots=True)
class _Run:
    """A plan under way; `levels` says how many steps follow one after the other from each on."""

    asking: Asking
    started: float
    deadline: float
    levels: dict[int, int]
    tasks: dict[int, asyncio.Task[Outcome]] = field(default_factory=dict)


@dataclass(slots=True)
class Dispatcher:
    """Runs plans.

    Args:
        means: whom to ask by, and whom to trust.
        share: False passes no step's result on to another.
    """

    means: Means
    share: bool = True

    async def run(self, plan: Sequence[PlannedStep], asking: Asking, deadline: float) -> AsyncGenerator[Outcome, None]:
        """Runs all steps; yields each one's outcome as soon as it is known. Closing it cancels what still runs.

        Args:
            plan: its steps, each after those that it waits for.
            asking: sends subtasks to agents.
            deadline: loop time by which all has to be done. Steps that wait for each other share what remains.
        """
        run = _Run(asking, asyncio.get_running_loop().time(), deadline, _levels(plan))
        for step in plan:
            run.tasks[step.number] = asyncio.create_task(self._step(run, step))
        try:
            for done in asyncio.as_completed(list(run.tasks.values())):
                yield await done
        finally:
            for task in run.tasks.values():
                task.cancel()
            await asyncio.gather(*run.tasks.values(), return_exceptions=True)

    async def _step(self, run: _Run, step: PlannedStep) -> Outcome:
        """Waits for what the step needs, then asks."""
        known = run.asking.diary.answered.get(step.number)
        if known is not None:
            return Outcome(known.step, known.reply, relevance=known.relevance)
        loop = asyncio.get_running_loop()
        before = [await asyncio.shield(run.tasks[number]) for number in sorted(step.after)]
        begun = loop.time()
        result = Step(
            number=step.number,
            text=step.text,
            service=step.service,
            reason=step.reason,
            after=sorted(step.after),
            start_ms=round(1000 * (begun - run.started), 1),
        )
        outcome = Outcome(result, relevance=step.relevance)
        embedder = run.asking.agent.embedder
        results = {o.step.number: self._result(o, embedder) for o in before if o.reply is not None}
        if missing := sorted(references(step.text) - results.keys()):
            result.status = "skipped"
            result.error = ErrorInfo(code="no_capability", message=f"step {missing[0]} gave no result for it")
            return outcome
        result.text = fill(step.text, results)
        context = list(run.asking.request.context)
        if step.recalled is not None:
            outcome.reply, result.agent = step.recalled.reply(run.asking.request.id), step.recalled.note.agent
        else:
            passed = [_context(o) for o in before if o.reply is not None] if self.share else []
            context += passed
            seconds = max(0.0, run.deadline - begun) / run.levels[step.number]
            await Subtask(self.means, run.asking, step, outcome, context, begun + seconds).ask()
        result.elapsed_ms = round(1000 * (loop.time() - begun), 1)
        if outcome.reply is None:
            result.status = "skipped" if outcome.declined else "error"
        else:
            result.confidence = outcome.reply.confidence
            result.verdict = self._verdict(outcome, context)
            run.asking.diary.ended(result, outcome.reply, outcome.relevance)
        return outcome

    def _verdict(self, outcome: Outcome, context: Sequence[ContextItem]) -> Verdict:
        assert outcome.reply is not None
        verdict = self.means.trust.verdict(outcome.step, outcome.step.agent or "", outcome.reply, context)
        if outcome.consensus is None:
            return verdict
        agreement = outcome.consensus.agreement
        return Verdict(
            score=verdict.score,
            probability=verdict.probability * agreement,
            reason=f"{verdict.reason}; {agreement:.0%} of the votes agree",
        )

    def _result(self, outcome: Outcome, embedder: Embedder | None) -> str:
        """What stands for a step's result in another's text: the question itself where results are not passed on."""
        assert outcome.reply is not None
        if not self.share:
            return outcome.step.text or ""
        return result_of(outcome.step.text or "", outcome.step.service, outcome.reply, embedder)


def _levels(plan: Sequence[PlannedStep]) -> dict[int, int]:
    """How many steps follow one after the other from each on, itself included: what its time is divided by."""
    found: dict[int, int] = {}
    for step in reversed(plan):
        found[step.number] = 1 + max((found[o.number] for o in plan if step.number in o.after), default=0)
    return found


def _context(outcome: Outcome) -> ContextItem:
    assert outcome.reply is not None
    return ContextItem(
        text=outcome.reply.output or "",
        agent=outcome.step.agent,
        service=outcome.step.service,
        data=outcome.reply.data,
    )
