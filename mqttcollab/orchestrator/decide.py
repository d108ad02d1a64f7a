"""What a question takes: which subtasks, who could do each, and why. It asks nobody; it reads a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mqttcollab.classifiers.base import Offering
from mqttcollab.classifiers.chain import Classifiers
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation import KnowledgeBase, Notes, Recalled
from mqttcollab.errors import RequestError
from mqttcollab.messages import MAX_STEP_TEXT, MAX_STEPS, Plan, PlanStep, Relevance, Request, Verdict
from mqttcollab.orchestrator.schedule import Ranked
from mqttcollab.plans.decompose import Decomposer, Decomposition
from mqttcollab.plans.plan import LONGEST_QUESTION, comparable, fill, plain, renumber, requested, whole

# How many verdicts on services and agents the reply and the progress topics show.
_SHOWN = 5
_MOST_SERVICES = 4
# Of a request's time, for splitting it.
_SPLITTING = 0.3
# An agent whose answers have been wrong more often than this is left out where another service could help.
_LEAST_SKILL = 0.3
# A service that can decline is asked from this relevance on before a general model is.
_WORTH_ASKING = 0.1
GENERAL = "knowledge.gpt/general"
_TOO_DEAR = "the cloud was not asked: it charges more than the budget"
KEPT = "the cloud was not asked: the question must not leave the edge"


class Kept(NamedTuple):
    """What of a planned step is to be kept beside what its plan shows: who is asked is found anew."""

    spare: bool
    strong: bool
    answers: int
    whole: bool
    no_cloud: str


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One subtask as it is run.

    Attributes:
        text: what is asked; `#n` stands for the result of step n.
        ranked: who could do it, best first; empty if it is recalled, or if nobody can.
        spare: who is asked if none of them answers.
        strong: who is asked if an answer of `spare`, or of `ranked` where nobody covers the subtask, is not trusted.
        after: the numbers of the steps whose results it needs.
        recalled: the answer, where it is known already.
        answers: how many agents are asked at once.
        whole: it is the request's own input, which may be more than text.
        no_cloud: why nobody is asked who would be otherwise, in words.
    """

    number: int
    text: str
    service: str
    after: frozenset[int] = frozenset()
    ranked: tuple[Ranked, ...] = ()
    spare: tuple[Ranked, ...] = ()
    strong: tuple[Ranked, ...] = ()
    reason: str = ""
    gap: Verdict | None = None
    domains: tuple[Relevance, ...] = ()
    recalled: Recalled | None = None
    answers: int = 1
    whole: bool = False
    no_cloud: str = ""

    @property
    def relevance(self) -> float:
        """The probability that its service matters; 1 where somebody named it."""
        return next((one.probability for one in self.domains if one.service == self.service), 1.0)

    @property
    def kept(self) -> Kept:
        """What `Decider.again` needs of it beside its description."""
        return Kept(bool(self.spare), bool(self.strong), self.answers, self.whole, self.no_cloud)

    def described(self) -> PlanStep:
        """The step as others see it."""
        return PlanStep(
            text=_shortened(self.text),
            service=self.service,
            after=sorted(self.after),
            reason=self.reason,
            gap=self.gap,
            domains=list(self.domains[:_SHOWN]),
            candidates=[one.candidate for one in (*self.ranked, *self.spare, *self.strong)[:_SHOWN]],
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan for others to read, and its steps to be run."""

    plan: Plan
    steps: tuple[PlannedStep, ...]


@dataclass(slots=True)
class Decider:
    """The chain of classifiers, and what follows from their verdicts.

    Args:
        classifiers: whose verdicts it takes.
        decomposer: splits a question; None leaves every question whole.
        on_edge: the same for questions that must not leave the edge.
        knowledge: what was learned from peers before; None remembers nothing.
        fallback: the service that is asked where nobody covers a subtask.
        strong: the service that is asked where the fallback gives no answer, or one that can't be trusted.
        answers: how many agents are asked the same, but for data.
        detect_gaps: False asks the closest service however far it is.
        closeness: of a text to each offer's own examples (cosine); tells the agents of one service apart.
    """

    classifiers: Classifiers
    decomposer: Decomposer | None
    knowledge: KnowledgeBase | None
    fallback: str | None
    strong: str | None = None
    answers: int = 1
    detect_gaps: bool = True
    closeness: Callable[[str, Sequence[Offer]], list[float]] | None = None
    on_edge: Decomposer | None = None

    async def decide(self, request: Request, offers: Sequence[Offer]) -> Decision:
        """The plan for a question.

        Args:
            request: the question; it may bring a plan.
            offers: everything on offer but orchestration, the fallback among it.

        Raises:
            RequestError: the question is empty, its plan can't be run, or nobody can do any of it.
        """
        question = request.text
        if not question.strip():
            raise RequestError("bad_request", "the question is empty")
        split = await self._split(request)
        draft = _Draft(self, request, offers)
        for number, subtask in enumerate(split.graph.steps, 1):
            draft.add(number, subtask, whole=split.origin == "whole")
        if not any(step.ranked or step.recalled or step.spare for step in draft.steps):
            reason = "; ".join(dict.fromkeys(step.reason for step in draft.steps))
            touched = {self.fallback, *(one.service for one in self.classifiers.domains.touched(question))}
            touched |= {subtask.service for subtask in split.graph.steps}
            if dear := sorted(draft.too_dear.intersection(touched)):
                text = f"all that offer {', '.join(dear[:_SHOWN])} charge more than the budget, {request.budget_usd:g}"
                raise RequestError("quota_exceeded", f"{text} US dollars")
            raise RequestError("no_capability", f"{reason}; {KEPT}" if draft.kept else reason)
        plan = Plan(
            origin=split.origin,
            reason=split.reason,
            complexity=self.classifiers.complexity.complexity(question),
            gap=self.classifiers.domains.gap(question),
            domains=self.classifiers.domains.relevance(question)[:_SHOWN],
            steps=[step.described() for step in draft.steps],
        )
        return Decision(plan, tuple(draft.steps))

    def again(self, request: Request, plan: Plan, kept: Sequence[Kept], offers: Sequence[Offer]) -> Decision:
        """The same plan, to be run by those who are there now."""
        draft = _Draft(self, request, offers)
        steps = zip(plan.steps, kept, strict=True)
        return Decision(plan, tuple(draft.again(number, *step) for number, step in enumerate(steps, 1)))

    async def _split(self, request: Request) -> Decomposition:
        if request.plan is not None:
            return Decomposition(requested(request.plan), "request", "the requester gave the plan")
        decomposer = self.decomposer if request.may_leave_edge else self.on_edge or self.decomposer
        if decomposer is None:
            return Decomposition(whole(request.text), "whole", "questions are not split here")
        try:
            async with asyncio.timeout(request.ttl_ms / 1000 * _SPLITTING):
                return await decomposer.decompose(request.text)
        except TimeoutError:
            return Decomposition(whole(request.text), "whole", "it could not be split in time")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the classifiers say of a text, as far as it can be asked for."""

    gap: Verdict
    relevant: list[Relevance]
    touched: list[Relevance]
    gap_threshold: float

    @property
    def beyond(self) -> bool:
        """Whether nobody covers it."""
        return self.gap.probability >= self.gap_threshold


class _Draft:
    """A plan in the making: every subtask becomes a step for each service that it touches, data before the rest."""

    def __init__(self, decider: Decider, request: Request, offers: Sequence[Offer]) -> None:
        self.steps: list[PlannedStep] = []
        self._decider = decider
        self._request = request
        self._offers: dict[str, list[Offer]] = {}
        self.kept = False
        self.too_dear: set[str] = set()
        for offer in offers:
            affordable = request.budget_usd is None or offer.record.price_usd <= request.budget_usd
            leaves = offer.record.leaves_edge or offer.record.service == decider.strong
            self.kept |= leaves and not request.may_leave_edge
            if not affordable:
                self.too_dear.add(offer.record.service)
            elif request.may_leave_edge or not leaves:
                self._offers.setdefault(offer.record.service, []).append(offer)
        self._subtasks: dict[int, PlanStep] = {}
        self._ends: dict[int, list[int]] = {}

    def add(self, number: int, subtask: PlanStep, *, whole: bool) -> None:
        """Plans a subtask; those that it refers to were added before."""
        self._subtasks[number] = subtask
        needs = frozenset(end for need in subtask.after for end in self._ends[need])
        # A subtask may have become several steps: what refers to its result means what was measured, if anything was.
        results = {n: [end for end in self._ends[n] if _is_data(self.steps[end - 1].service)] for n in subtask.after}
        text = renumber(
            subtask.text, {n: " and ".join(f"#{end}" for end in found or self._ends[n]) for n, found in results.items()}
        )
        steps = self._known(text, subtask.service) if not needs else []
        if not steps and subtask.service is not None:
            steps = [self._named(text, subtask.service)]
        steps = [replace(step, whole=whole) for step in steps or self._found(subtask, text, needs)]
        data = [self._put(replace(s, after=needs)) for s in steps if _is_data(s.service)]
        rest = [self._put(replace(s, after=needs | set(data))) for s in steps if not _is_data(s.service)]
        self._ends[number] = [*data, *rest]

    def again(self, number: int, step: PlanStep, kept: Kept) -> PlannedStep:
        """A step that was planned before."""
        service, text = step.service or GENERAL, step.text
        likely = next((one.probability for one in step.domains if one.service == service), 1.0)
        ranked = self._rank(text, self._offers.get(service, []), likely)
        strong = self._strong(text) if kept.strong else ()
        return PlannedStep(
            number,
            text,
            service,
            after=frozenset(step.after),
            ranked=ranked or strong,
            spare=self._general(text) if kept.spare else (),
            strong=strong if ranked else (),
            reason=step.reason or "",
            gap=step.gap,
            domains=tuple(step.domains),
            answers=kept.answers,
            whole=kept.whole,
            no_cloud=kept.no_cloud,
        )

    def _known(self, text: str, service: str | None) -> list[PlannedStep]:
        """The step that recalls the answer, if a peer gave it before, under that service's name if there is one."""
        knowledge = self._decider.knowledge
        if knowledge is None or not all_in_words(self._request):
            return []
        recalled = knowledge.recall(plain(text), service=service)
        if recalled is None:
            return []
        return [PlannedStep(0, text, recalled.note.service or Notes.name, reason=recalled.reason, recalled=recalled)]

    def _named(self, text: str, service: str) -> PlannedStep:
        offers = self._offers.get(service, [])
        reason = "the plan names this service" + ("" if offers else ", which nobody here offers")
        return PlannedStep(0, text, service, ranked=self._rank(text, offers, 1.0), reason=reason)

    def _found(self, subtask: PlanStep, text: str, needs: frozenset[int]) -> list[PlannedStep]:
        """One step for each service that the subtask touches; the fallback where it touches none."""
        reading = self._read(subtask, needs)
        if self._decider.detect_gaps:
            chosen = [] if reading.beyond else reading.touched
        else:
            chosen = reading.touched or reading.relevant[:1]
        steps = [self._specialist(text, one) for one in chosen[:_MOST_SERVICES]]
        steps = [step for step in steps if self._able(step.ranked[0])] or steps
        if not steps:
            steps = [self._beyond(text, reading)]
        elif len(steps) == 1 and not _is_data(steps[0].service):
            steps = [replace(steps[0], spare=self._general(text), strong=self._strong(text))]
        return [replace(step, gap=reading.gap, domains=tuple(reading.relevant)) for step in steps]

    def _read(self, subtask: PlanStep, needs: frozenset[int]) -> _Reading:
        """What the subtask is about; if its text says little alone, together with what it points at."""
        done = {self.steps[need - 1].service for need in needs}
        # A result is a number where something is to be calculated with it; "Is that too high?" has none.
        texts = [fill(subtask.text, dict.fromkeys(subtask.after, "42"))]
        if subtask.after:
            texts.append(" ".join([*(plain(self._subtasks[n].text) for n in sorted(subtask.after)), texts[0]]))
        domains = self._decider.classifiers.domains
        found = [
            _Reading(
                domains.gap(asked),
                self._askable(domains.relevance(asked), done),
                self._askable(domains.touched(asked), done),
                domains.gap_threshold,
            )
            for asked in texts
        ]
        return next((one for one in found if one.touched and not one.beyond), found[0])

    def _specialist(self, text: str, one: Relevance) -> PlannedStep:
        ranked = self._rank(text, self._offers[one.service], one.probability)
        return PlannedStep(0, text, one.service, ranked=ranked, reason=one.reason)

    def _beyond(self, text: str, reading: _Reading) -> PlannedStep:
        """A general model, but first the closest of those who can say that they have nothing on it, if it is close."""
        closest = next((one for one in reading.relevant if not _is_data(one.service)), None)
        general = self._fallback(text, reading.gap)
        if not self._decider.detect_gaps or closest is None or closest.probability < _WORTH_ASKING:
            return general
        reason = f"maybe nobody covers it ({reading.gap.reason}): the closest is asked"
        step = self._specialist(text, closest)
        return replace(step, reason=reason, spare=general.ranked, strong=general.strong)

    def _able(self, best: Ranked) -> bool:
        agent, service = best.offer.agent.name, best.offer.record.service
        return self._decider.classifiers.capability.skill.expected(agent, service).probability >= _LEAST_SKILL

    def _askable(self, found: Sequence[Relevance], done: set[str]) -> list[Relevance]:
        """The services that are offered, but for general models and data that is there already."""
        skipped = {self._decider.fallback, self._decider.strong, *(service for service in done if _is_data(service))}
        return [one for one in found if one.service in self._offers and one.service not in skipped]

    def _general(self, text: str) -> tuple[Ranked, ...]:
        return self._rank(text, self._offers.get(self._decider.fallback or "", []), 1.0)

    def _strong(self, text: str) -> tuple[Ranked, ...]:
        return self._rank(text, self._offers.get(self._decider.strong or "", []), 1.0)

    def _fallback(self, text: str, gap: Verdict) -> PlannedStep:
        service = self._decider.fallback or GENERAL
        ranked, strong = self._general(text), self._strong(text)
        what = "a general model answers" if ranked or strong else f"nobody offers {service} to answer all the same"
        reason = f"no specialist covers it ({gap.reason}): {what}"
        return PlannedStep(0, text, service, ranked=ranked or strong, strong=strong if ranked else (), reason=reason)

    def _rank(self, text: str, offers: Sequence[Offer], relevance: float) -> tuple[Ranked, ...]:
        near: Sequence[float | None] = [None] * len(offers)
        if len(offers) > 1 and self._decider.closeness is not None:
            near = self._decider.closeness(plain(text), offers)
        offerings = [
            Offering(offer.record, relevance, closeness, breadth=len(offer.agent.records))
            for offer, closeness in zip(offers, near, strict=True)
        ]
        by_agent = {offer.agent.name: offer for offer in offers}
        ranked = self._decider.classifiers.capability.rank(plain(text), offerings)
        return tuple(Ranked(by_agent[candidate.agent], candidate) for candidate in ranked)

    def _put(self, step: PlannedStep) -> int:
        """Adds a step unless it is there already; returns its number. Data is asked for once, whatever about it."""
        for known in self.steps:
            if (known.service, known.after) != (step.service, step.after):
                continue
            if comparable(known.text) == comparable(step.text):
                return known.number
            both = f"{known.text} {step.text}"
            if _is_data(step.service) and not (step.recalled or known.recalled) and len(both) <= MAX_STEP_TEXT:
                self.steps[known.number - 1] = replace(known, text=both, whole=False)
                return known.number
        if len(self.steps) >= MAX_STEPS:
            raise RequestError("bad_request", f"the question takes more than {MAX_STEPS} steps; ask it in parts")
        answers = 1 if _is_data(step.service) else self._decider.answers
        no_cloud = KEPT if self.kept else _TOO_DEAR if self._decider.strong in self.too_dear else ""
        self.steps.append(replace(step, number=len(self.steps) + 1, answers=answers, no_cloud=no_cloud))
        return len(self.steps)


def all_in_words(request: Request) -> bool:
    """Whether its words are all that an answer depends on, so that it may come out of the memory, and go into it."""
    text_only = isinstance(request.input, str) or request.input.keys() == {"text"}
    text_only = text_only and len(request.text) <= LONGEST_QUESTION  # a longer one is cut in its step's text
    return text_only and not (request.context or request.session or request.tenant)


def _shortened(text: str) -> str:
    """A step's text as a plan can hold it: several steps' numbers, or questions to one service, make it longer."""
    return text if len(text) <= MAX_STEP_TEXT else text[: MAX_STEP_TEXT - 1] + "…"


def _is_data(service: str) -> bool:
    return service.startswith("data.gpt/")
