"""Asks every question of every system, checks the answers, and counts.

`python -m benchmarks.collaboration [--json] [--questions FILE] [--limit N] [--systems NAME,NAME] [--failures]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collaboration import systems
from benchmarks.collaboration.checks import CATEGORIES, Given, Question, load, score
from benchmarks.collaboration.systems import Ask, Place
from benchmarks.common import Benchmark, Result, aim, machine, show_aims, table
from mqttcollab.errors import ConfigError, MqttCollabError
from mqttcollab.messages import Reply

QUESTIONS = Path(__file__).with_name("questions.jsonl")
PHONE, ORCHESTRATOR = "phone alone", "orchestrator"
# What is switched off in each.
ORCHESTRATORS: Mapping[str, Mapping[str, Any]] = {
    ORCHESTRATOR: {},
    "without gap detection": {"detect_gaps": False},
    "without decomposition": {"decompose": False},
    "without sharing": {"share": False},
}
OTHERS: Mapping[str, Callable[[Place], AbstractAsyncContextManager[Ask]]] = {
    PHONE: systems.phone,
    "always refuse": systems.refuser,
    "ask everybody": systems.everybody,
    "oracle (limit)": systems.oracle,
}
SYSTEMS = (PHONE, *ORCHESTRATORS, *(name for name in OTHERS if name != PHONE))
RESAMPLES = 2000
# One specialist too many is a matter of taste; with more of them, telling everything would win.
MOST_NEEDLESS = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a question went.

    Attributes:
        score: the share of the parts that are right.
        needless: how many specialists answered that the question does not need.
    """

    id: str
    category: str
    score: float
    ms: float
    needless: int
    answer: str

    @property
    def right(self) -> bool:
        """All parts are, and they are not buried under what nobody asked for."""
        return self.score > 1 - 1e-9 and self.needless <= MOST_NEEDLESS


async def measure(
    questions: Sequence[Question], names: Sequence[str] = SYSTEMS, say: Callable[[str], None] = lambda _: None
) -> Result:
    """The outcomes of every system, by name, and what is counted of them; says how each did as it ends."""
    result: Result = {"n": len(questions), "systems": {}, "outcomes": {}}
    try:
        async with systems.fleet() as place:
            for name in names:
                options = ORCHESTRATORS.get(name, {})
                opened = OTHERS[name](place) if name in OTHERS else systems.orchestrator(place, options)
                async with opened as ask:
                    outcomes = [await _outcome(place, ask, question) for question in questions]
                result["outcomes"][name] = outcomes
                say(f"{name}: {sum(o.right for o in outcomes)} of {len(outcomes)} right")
    except ConfigError as error:
        return {"missing": str(error)}
    whole = result["outcomes"].get(ORCHESTRATOR)
    result["systems"] = {name: _counted(each, whole) for name, each in result["outcomes"].items()}
    result["aims"] = list(_aims(result["systems"]))
    return result


async def _outcome(place: Place, ask: Ask, question: Question) -> Outcome:
    begun = time.monotonic()
    reply, error = None, None
    try:
        reply = await ask(question)
    except MqttCollabError as failure:
        error = failure
    ms = 1000 * (time.monotonic() - begun)
    given = Given(
        text=(reply.output or "") if reply else "",
        error=str(getattr(error, "code", "internal")) if error else None,
        missing=bool(reply and reply.missing),
        measured=place.log.since(begun),
    )
    answer = given.text if reply else f"error {error}"
    needless = _needless(question, reply)
    return Outcome(question.id, question.category, score(question.check, given), round(ms, 1), needless, answer)


def _needless(question: Question, reply: Reply | None) -> int:
    answered = {step.service for step in reply.steps if step.status == "ok"} if reply else set()
    return len(answered - question.services - {systems.GENERAL})


def _counted(outcomes: Sequence[Outcome], whole: Sequence[Outcome] | None) -> Result:
    right = np.array([o.right for o in outcomes], dtype=float)
    counted: Result = {
        "right": float(right.mean()),
        "interval": _interval(right),
        "partial": statistics.fmean(o.score for o in outcomes),
        "categories": {c: _share([o for o in outcomes if o.category == c]) for c in CATEGORIES},
        "median_ms": statistics.median(o.ms for o in outcomes),
        "needless": statistics.fmean(o.needless for o in outcomes),
    }
    if whole is not None and whole is not outcomes:
        ahead = np.array([o.right for o in whole], dtype=float) - right
        counted["behind"] = {"mean": float(ahead.mean()), "interval": _interval(ahead)}
    return counted


def _share(outcomes: Sequence[Outcome]) -> list[int]:
    return [sum(o.right for o in outcomes), len(outcomes)]


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """95% of the means of resampled questions."""
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return [float(x) for x in np.quantile(values[chosen].mean(axis=1), (0.025, 0.975))]


def _aims(counted: Mapping[str, Result]) -> Iterable[Result]:
    if ORCHESTRATOR not in counted:
        return
    if PHONE in counted:
        low = counted[PHONE]["behind"]["interval"][0]
        yield aim("more right than by the phone alone, lower end of 95%", low, least=0.2)
    for name in ORCHESTRATORS:
        if name != ORCHESTRATOR and name in counted:
            yield aim(f"more right than {name}", counted[name]["behind"]["mean"], least=0.01)


def show(result: Result) -> Iterable[str]:
    if "missing" in result:
        yield result["missing"]
        return
    head = ("right of", *CATEGORIES, "all", "95% interval", "parts", "behind orchestrator", "needless", "median")
    first = next(iter(result["systems"].values()), None)
    if first is None:
        return
    sizes = [f"{of}" for _, of in first["categories"].values()]
    yield from table(
        head, [("", *sizes, str(result["n"]), *[""] * 5), *(_row(*each) for each in result["systems"].items())]
    )
    yield from show_aims(result)


def _row(name: str, counted: Result) -> tuple[str, ...]:
    low, high = counted["interval"]
    behind = (
        "{mean:+.0%} ({low:+.0%} to {high:+.0%})".format(
            mean=counted["behind"]["mean"], low=counted["behind"]["interval"][0], high=counted["behind"]["interval"][1]
        )
        if "behind" in counted
        else ""
    )
    return (
        name,
        *(str(right) for right, _ in counted["categories"].values()),
        f"{counted['right']:.0%}",
        f"{low:.0%} to {high:.0%}",
        f"{counted['partial']:.0%}",
        behind,
        f"{counted['needless']:.2f}",
        f"{counted['median_ms']:.0f} ms",
    )


def failures(result: Result, questions: Sequence[Question]) -> Iterable[str]:
    """Every question that a system got wrong, with what it said."""
    text = {question.id: question.text for question in questions}
    for name, outcomes in result.get("outcomes", {}).items():
        for o in outcomes:
            if not o.right:
                yield f"{name}: {o.id} ({o.category}, {o.score:.2f}) {text[o.id]} -> {o.answer[:300]!r}"


def first_of_each(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each category, all of them if it is None."""
    kept: dict[str, int] = {}
    chosen = []
    for question in questions:
        kept[question.category] = kept.get(question.category, 0) + 1
        if limit is None or kept[question.category] <= limit:
            chosen.append(question)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collaboration", description=BENCHMARK.title + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every answer")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="a file of questions (see README.md)")
    parser.add_argument("--limit", type=int, help="the first so many questions of each category")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which systems, by name, with commas between")
    parser.add_argument("--failures", action="store_true", help="print also what was wrong")
    options = parser.parse_args()
    names = [name.strip() for name in options.systems.split(",")]
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"no system {unknown[0]!r}; there are {', '.join(SYSTEMS)}")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; it must be at least 1")
    try:
        questions = first_of_each(load(options.questions), options.limit)
    except ConfigError as error:
        parser.error(str(error))
    result = asyncio.run(measure(questions, names, partial(print, file=sys.stderr, flush=True)))
    if options.json:
        print(json.dumps({"machine": machine(), BENCHMARK.name: result}, indent=2, default=asdict))
        return
    print("\n".join([machine(), BENCHMARK.title, *(f"  {line}" for line in show(result))]))
    if options.failures:
        print("\n".join(failures(result, questions)))


async def _all(_: int | None) -> Result:
    """Temperature 0 and a replayed fleet: another round would say the same."""
    result = await measure(load(QUESTIONS))
    return {key: value for key, value in result.items() if key != "outcomes"}


BENCHMARK = Benchmark(
    "collaboration", "Questions answered together, by the phone alone, and with parts left out", _all, show
)
