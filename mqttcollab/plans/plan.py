"""A plan: subtasks in plain words that refer to each other's results as `#1`, `#2`, …

A step that needs a result names it, "Is #1 greater than #2?"; a number sign that is meant literally is doubled,
"the ##1 song". Steps may stand in any order as long as none waits for itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mqttcollab.errors import RequestError

MAX_STEPS = 8
# Of a step's text, and of a result where it is put into a later step's text, in characters.
MAX_TEXT = 2000
MAX_RESULT = 500
_REFERENCE = re.compile(r"##|#(\d+)")


@dataclass(frozen=True, slots=True)
class Subtask:
    """One step of a plan.

    Attributes:
        text: what to find out; may refer to other steps.
        service: who shall do it; None leaves that to capability matching.
        after: the numbers, from 1, of the steps whose results it needs: those in its text and any others given.
    """

    text: str
    service: str | None = None
    after: frozenset[int] = field(default=frozenset())


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in an order in which they can be done, each subtask once. Make it with `make_plan` or `parse_plan`."""

    steps: tuple[Subtask, ...]

    @property
    def edges(self) -> set[tuple[int, int]]:
        """The pairs (i, j) where step i needs the result of step j."""
        return {(number, need) for number, step in enumerate(self.steps, 1) for need in step.after}

    def stages(self) -> list[list[int]]:
        """Return the numbers of the steps that can run together, stage after stage."""
        depth: dict[int, int] = {}
        for number, step in enumerate(self.steps, 1):
            depth[number] = 1 + max((depth[need] for need in step.after), default=0)
        return [[n for n in depth if depth[n] == stage] for stage in range(1, max(depth.values()) + 1)]

    def filled(self, number: int, results: Mapping[int, str]) -> str:
        """Return the text of a step with results in the place of references; `#n` inside a result stays as it is.

        Raises:
            RequestError: `bad_request`, a result that it refers to is missing.
        """
        text = self.steps[number - 1].text
        if missing := sorted(references(text) - results.keys()):
            raise RequestError(
                "bad_request", f"step {number} needs the result of step {missing[0]}, which is not there"
            )
        return _substitute(text, lambda reference: results[reference][:MAX_RESULT])


def references(text: str) -> set[int]:
    """Return the step numbers that a text refers to."""
    return {_number(found) for found in _REFERENCE.finditer(text) if found[1]}


def literal(text: str) -> str:
    """Return a text in which no number sign means a reference."""
    return text.replace("#", "##")


def make_plan(steps: Sequence[Subtask]) -> Plan:
    """Check steps, order them, and do what is asked twice only once.

    Raises:
        RequestError: `bad_request`: no step, too many, an empty or over-long one, an unknown reference, a cycle.
    """
    if not steps:
        raise RequestError("bad_request", "the plan has no steps; give at least one")
    if len(steps) > MAX_STEPS:
        raise RequestError("bad_request", f"the plan has {len(steps)} steps, at most {MAX_STEPS}; join some of them")
    needs = [step.after | references(step.text) for step in steps]
    for number, (step, needed) in enumerate(zip(steps, needs, strict=True), 1):
        _check_step(number, step, needed, len(steps))
    order = _ordered(needs)
    renumbered: dict[int, int] = {}
    known: dict[tuple[str, str | None, frozenset[int]], int] = {}
    kept: list[Subtask] = []
    for number in order:
        after = frozenset(renumbered[need] for need in needs[number - 1])
        text = _substitute(steps[number - 1].text, lambda n: f"#{renumbered[n]}", keep_doubled=True)
        step = Subtask(text, steps[number - 1].service, after)
        key = (re.sub(r"[\s?.!]+", " ", text).strip().casefold(), step.service, after)
        if key not in known:
            kept.append(step)
            known[key] = len(kept)
        renumbered[number] = known[key]
    return Plan(tuple(kept))


def parse_plan(source: str | Sequence[object]) -> Plan:
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
    if len(found) > MAX_STEPS:
        raise RequestError("bad_request", f"the plan has {len(found)} steps, at most {MAX_STEPS}; join some of them")
    return make_plan([_parse_step(number, step) for number, step in enumerate(found, 1)])


def _parse_step(number: int, found: object) -> Subtask:
    if isinstance(found, str):
        return Subtask(found)
    if not isinstance(found, Mapping) or not isinstance(text := found.get("text"), str):
        raise RequestError("bad_request", f'step {number} of the plan is neither a text nor an object with a "text"')
    service, after = found.get("service"), found.get("after", [])
    if service is not None and not isinstance(service, str):
        raise RequestError("bad_request", f"step {number} of the plan names a service that is no text: {service!r:.80}")
    if not isinstance(after, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in after):
        raise RequestError("bad_request", f'step {number} of the plan has an "after" that is no list of step numbers')
    return Subtask(text, service, frozenset(after))


def _check_step(number: int, step: Subtask, needed: frozenset[int], count: int) -> None:
    if not step.text.strip():
        raise RequestError("bad_request", f"step {number} of the plan is empty")
    if len(step.text) > MAX_TEXT:
        raise RequestError(
            "bad_request", f"step {number} of the plan has {len(step.text)} characters, at most {MAX_TEXT}"
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


def _substitute(text: str, replacement: Callable[[int], str], *, keep_doubled: bool = False) -> str:
    def replace(found: re.Match[str]) -> str:
        return replacement(_number(found)) if found[1] else ("##" if keep_doubled else "#")

    return _REFERENCE.sub(replace, text)


def _number(found: re.Match[str]) -> int:
    return int(found[1][:9])  # longer ones are unknown steps all the same
