"""A task graph: subtasks in plain words that refer to each other's results as `#1`, `#2`, …

A step that needs a result names it, "Is #1 greater than #2?"; a number sign that is meant literally is doubled,
"the ##1 song". Steps may stand in any order as long as none waits for itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mqttcollab.errors import RequestError, TopicError
from mqttcollab.messages import MAX_STEP_TEXT, MAX_STEPS, PlanStep
from mqttcollab.topics import check_service

# How many steps our own planners take; a requester may give messages.MAX_STEPS.
MAX_OWN_STEPS = 8
# In characters, of a question that is one step whatever it holds: with every number sign doubled it is no longer.
LONGEST_QUESTION = MAX_STEP_TEXT // 2
# Of a result where it is put into a later step's text, in characters.
MAX_RESULT = 500
_REFERENCE = re.compile(r"##|#([0-9]+)")


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """Steps in an order in which they can be done, each subtask once. Make it with `make_graph`."""

    steps: tuple[PlanStep, ...]

    @property
    def edges(self) -> frozenset[tuple[int, int]]:
        """The pairs (i, j) where step i needs the result of step j."""
        return frozenset((number, need) for number, step in enumerate(self.steps, 1) for need in step.after)


def references(text: str) -> set[int]:
    """Return the step numbers that a text refers to."""
    return {_number(found) for found in _REFERENCE.finditer(text) if found[1]}


def literal(text: str) -> str:
    """Return a text in which no number sign means a reference."""
    return text.replace("#", "##")


def plain(text: str) -> str:
    """Return a step's text for reading: doubled number signs single, references as they are."""
    return text.replace("##", "#")


def fill(text: str, results: Mapping[int, str]) -> str:
    """Return a step's text with results in the place of references, cut; `#n` inside a result stays as it is.

    Raises:
        KeyError: a result that it refers to is missing; see `references`.
    """
    return _substitute(text, lambda number: results[number][:MAX_RESULT])


def renumber(text: str, numbers: Mapping[int, str]) -> str:
    """Return a step's text with other references in the place of its own: `{1: "#3 and #4"}`."""
    return _substitute(text, lambda number: numbers[number], keep_doubled=True)


def whole(question: str) -> TaskGraph:
    """Return the graph of one step, the question itself; a question too long for a step's text is cut there."""
    text = literal(question)
    if len(text) > MAX_STEP_TEXT:
        text = literal(question[: LONGEST_QUESTION - 1]) + "…"
    return TaskGraph((PlanStep(text=text),))


def make_graph(steps: Sequence[PlanStep], *, limit: int = MAX_OWN_STEPS) -> TaskGraph:
    """Check steps, order them, and do what is asked twice only once.

    Args:
        steps: their texts, services, `after` and reasons are kept; references in a text need not stand in `after`.
        limit: how many there may be.

    Raises:
        RequestError: `bad_request`: no step, too many, an empty or over-long one, an unknown reference, a cycle.
    """
    _check_count(len(steps), limit)
    needs = [frozenset(step.after) | references(step.text) for step in steps]
    for number, (step, needed) in enumerate(zip(steps, needs, strict=True), 1):
        _check_step(number, step, needed, len(steps))
    renumbered: dict[int, int] = {}
    known: dict[tuple[str, str | None, tuple[int, ...]], int] = {}
    kept: list[PlanStep] = []
    for number in _ordered(needs):
        step = steps[number - 1]
        after = sorted({renumbered[need] for need in needs[number - 1]})
        text = _substitute(step.text, lambda n: f"#{renumbered[n]}", keep_doubled=True)
        key = (comparable(text), step.service, tuple(after))
        if key not in known:
            kept.append(step.model_copy(update={"text": text, "after": after}))
            known[key] = len(kept)
        renumbered[number] = known[key]
    return TaskGraph(tuple(kept))


def requested(steps: Sequence[PlanStep]) -> TaskGraph:
    """Return the graph of a requester's steps; of each only text, service and `after` count.

    Raises:
        RequestError: `bad_request`, saying which step is wrong.
    """
    return make_graph(
        [PlanStep(text=step.text, service=step.service, after=step.after) for step in steps], limit=MAX_STEPS
    )


def parse(source: str | Sequence[object], *, limit: int = MAX_OWN_STEPS) -> TaskGraph:
    """Read a plan: JSON, or what JSON decodes to.

    A list of steps, each a text or `{"text": …, "service": …, "after": [1, …]}`; or `{"steps": [...]}` as a language
    model writes it. Unknown keys are ignored.

    Raises:
        RequestError: `bad_request`, saying which step is wrong.
    """
    found: object = source
    if isinstance(source, str):
        try:
            found = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise RequestError("bad_request", f"the plan is not JSON: {error}") from error
    if isinstance(found, Mapping):
        found = found.get("steps")
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise RequestError("bad_request", 'the plan is no list of steps; give ["…", "… #1 …"] or {"steps": [...]}')
    _check_count(len(found), limit)
    return make_graph([_parse_step(number, step) for number, step in enumerate(found, 1)], limit=limit)


def _parse_step(number: int, found: object) -> PlanStep:
    if isinstance(found, str):
        found = {"text": found}
    if not isinstance(found, Mapping) or not isinstance(text := found.get("text"), str):
        raise RequestError("bad_request", f'step {number} of the plan is neither a text nor an object with a "text"')
    service, after = found.get("service"), found.get("after")
    try:
        checked = None if service is None else check_service(service)
    except (TopicError, TypeError) as error:
        raise RequestError("bad_request", f"step {number} of the plan names no service: {error}"[:300]) from error
    after = [] if after is None else after
    if not isinstance(after, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in after):
        raise RequestError("bad_request", f'step {number} of the plan has an "after" that is no list of step numbers')
    # Unchecked here, since make_graph says what is wrong in one line and with the step's number.
    return PlanStep.model_construct(text=text, service=checked, after=after)


def _check_count(count: int, limit: int) -> None:
    if not count:
        raise RequestError("bad_request", "the plan has no steps; give at least one")
    if count > limit:
        raise RequestError("bad_request", f"the plan has {count} steps, at most {limit}; join some of them")


def _check_step(number: int, step: PlanStep, needed: frozenset[int], count: int) -> None:
    if not step.text.strip():
        raise RequestError("bad_request", f"step {number} of the plan is empty; say what it is to find out")
    if len(step.text) > MAX_STEP_TEXT:
        raise RequestError(
            "bad_request", f"step {number} of the plan has {len(step.text)} characters, at most {MAX_STEP_TEXT}"
        )
    if unknown := sorted(n for n in needed if not 1 <= n <= count):
        raise RequestError("bad_request", f"step {number} refers to #{unknown[0]}; the plan has steps #1 to #{count}")


def _ordered(needs: Sequence[frozenset[int]]) -> list[int]:
    """Return step numbers, each after those that it needs, otherwise as they came."""
    done: list[int] = []
    waiting = list(range(1, len(needs) + 1))
    while waiting:
        ready = next((n for n in waiting if needs[n - 1] <= set(done)), None)
        if ready is None:
            circle = ", ".join(f"#{n}" for n in waiting)
            raise RequestError("bad_request", f"steps of the plan wait for each other in a circle, among {circle}")
        waiting.remove(ready)
        done.append(ready)
    return done


def comparable(text: str) -> str:
    """Return what two wordings of one subtask share; case counts inside, since mW and MW differ."""
    plain = " ".join(text.split()).rstrip("?.! ")
    return plain[:1].casefold() + plain[1:]


def _substitute(text: str, replacement: Callable[[int], str], *, keep_doubled: bool = False) -> str:
    def replace(found: re.Match[str]) -> str:
        return replacement(_number(found)) if found[1] else ("##" if keep_doubled else "#")

    return _REFERENCE.sub(replace, text)


def _number(found: re.Match[str]) -> int:
    return int(found[1][:9])  # longer ones are unknown steps all the same
