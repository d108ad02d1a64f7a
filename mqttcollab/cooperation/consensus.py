"""Several agents' answers to one question: which say the same, which outweigh the others, and where they disagree."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqttcollab.classifiers.answer_text import CONCLUSION, content_words
from mqttcollab.messages import Reply, Source

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

# Where an answering agent does not say how sure it is.
UNKNOWN_CONFIDENCE = 0.5
_SAME_WORDS, _SAME_MEANING = 2 / 3, 0.85
_SHOWN = 80
_MOST_TEXT = 2000
_NEGATION = re.compile(r"\b(?:not|no|never|none|nobody|neither|without)\b|n['’]t\b", re.I)
_UNIT = re.compile(r"\s{0,2}([°%‰]?[A-Za-zµΩ/³²]{0,12})")
# Factor and offset to the base unit of each kind.
_UNITS: dict[str, tuple[str, float, float]] = {
    **{name: ("temperature", 1, 0) for name in ("°c", "cel", "celsius")},
    **{name: ("temperature", 5 / 9, -160 / 9) for name in ("°f", "[degf]", "fahrenheit")},
    **{name: ("temperature", 1, -273.15) for name in ("k", "kelvin")},
    **{name: ("length", factor, 0) for name, factor in (("m", 1), ("km", 1e3), ("cm", 1e-2), ("mm", 1e-3))},
    **{name: ("mass", factor, 0) for name, factor in (("kg", 1), ("g", 1e-3), ("mg", 1e-6))},
    **{name: ("time", factor, 0) for name, factor in (("s", 1), ("ms", 1e-3), ("min", 60), ("h", 3600))},
    **{name: ("speed", factor, 0) for name, factor in (("m/s", 1), ("km/h", 1 / 3.6))},
    **{name: ("pressure", factor, 0) for name, factor in (("pa", 1), ("hpa", 100), ("kpa", 1e3), ("bar", 1e5))},
    **{name: ("share", factor, 0) for name, factor in (("%", 1e-2), ("percent", 1e-2), ("‰", 1e-3))},
    **{name: ("power", factor, 0) for name, factor in (("w", 1), ("kw", 1e3))},
    **{name: ("energy", factor, 0) for name, factor in (("j", 1), ("wh", 3600), ("kwh", 3.6e6))},
}


@dataclass(frozen=True, slots=True)
class Vote:
    """An answer, and how much it counts: the agent's skill times the confidence that it states."""

    agent: str
    reply: Reply
    votes: float


@dataclass(frozen=True, slots=True)
class Consensus:
    """What several agents together answer.

    Attributes:
        reply: the heaviest answer of the heaviest group.
        agent: who gave it.
        agreement: that group's share of all votes, 0 to 1.
        groups: the answers that say the same, heaviest group and heaviest answer first.
        disagreements: a line for each other group: who says what instead.
        failures: a line for each that was asked and gave no answer.
        settled: whether the agreement is as large as was asked for.
    """

    reply: Reply
    agent: str
    agreement: float
    groups: tuple[tuple[Vote, ...], ...]
    disagreements: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    settled: bool = True

    @property
    def sources(self) -> list[Source]:
        """Everything that the answer rests on: the sources of all who say the same."""
        return [
            source
            for vote in self.groups[0]
            for source in (vote.reply.sources or [Source(agent=vote.agent, service=vote.reply.service)])
        ]


def agree(
    replies: Sequence[tuple[str, Reply, float]],
    *,
    question: str = "",
    embedder: Embedder | None = None,
    agreement: float = 0.5,
) -> Consensus | None:
    """Group the answers that say the same, and let them vote; None where there is no answer among them.

    Args:
        replies: agent, reply and the agent's weight, its skill (0 to 1). A vote is weight x stated confidence.
        question: what was asked; its own words don't make answers alike.
        embedder: compares texts by meaning, where given; else by words.
        agreement: the share of votes that settles it.
    """
    votes = [
        Vote(agent, reply, weight * (UNKNOWN_CONFIDENCE if reply.confidence is None else reply.confidence))
        for agent, reply, weight in replies
        if reply.status != "error" and ((reply.output or "").strip() or reply.data)
    ]
    failures = tuple(f"@{agent}: {_failure(reply)}" for agent, reply, _ in replies if reply.status == "error")
    if not votes:
        return None
    groups: list[list[Vote]] = []
    for vote in sorted(votes, key=lambda v: (-v.votes, v.agent)):
        home = next((g for g in groups if say_the_same(g[0].reply, vote.reply, question, embedder)), None)
        if home is None:
            groups.append([vote])
        else:
            home.append(vote)
    groups.sort(key=lambda group: (-group_votes(group), -len(group)))
    total = sum(vote.votes for vote in votes)
    share = group_votes(groups[0]) / total if total else len(groups[0]) / len(votes)
    return Consensus(
        reply=groups[0][0].reply,
        agent=groups[0][0].agent,
        agreement=round(share, 4),
        groups=tuple(tuple(group) for group in groups),
        disagreements=tuple(_disagreement(group, groups[0]) for group in groups[1:]),
        failures=failures,
        settled=share >= agreement,
    )


def group_votes(group: Sequence[Vote]) -> float:
    """Return the votes of a group together."""
    return sum(vote.votes for vote in group)


def say_the_same(a: Reply, b: Reply, question: str = "", embedder: Embedder | None = None) -> bool:
    """Whether two answers say the same: by their data where both have some of the same name, else by their texts."""
    one, other = a.data or {}, b.data or {}
    shared = [key for key in one if key in other and not _beside(key, one[key]) and not _beside(key, other[key])]
    # Where there are numbers they are the answer, and the words beside them are places, names and the like.
    numbers = [key for key in shared if _is_number(one[key]) and _is_number(other[key])]
    if shared:
        return all(_same_field(key, one, other) for key in numbers or shared)
    return _same_text((a.output or "")[:_MOST_TEXT], (b.output or "")[:_MOST_TEXT], question, embedder)


def _beside(key: str, value: Any) -> bool:
    """Whether a field says nothing about the answer: units, times, nested things."""
    return key == "units" or "time" in key or key.endswith("_ms") or isinstance(value, dict | list)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_field(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one[key], other[key]
    if _is_number(a) and _is_number(b):
        return _same_number(_written(a), _unit_of(one, key), _written(b), _unit_of(other, key))
    return str(a).strip().casefold() == str(b).strip().casefold()


def _unit_of(data: dict[str, Any], key: str) -> str:
    units = data.get("units")
    found = units.get(key) if isinstance(units, dict) else units
    return found if isinstance(found, str) else ""


def _written(number: float) -> str:
    return f"{number:.10f}".rstrip("0").rstrip(".") if math.isfinite(number) and abs(number) < 1e15 else str(number)


def _same_number(a: str, a_unit: str, b: str, b_unit: str) -> bool:
    """Whether two written numbers are one, rounded as the coarser one is; units are converted where known."""
    kind, factor, offset = _UNITS.get(a_unit.lower(), (a_unit, 1.0, 0.0))
    other_kind, other_factor, other_offset = _UNITS.get(b_unit.lower(), (b_unit, 1.0, 0.0))
    if kind and other_kind and kind != other_kind:
        return False
    if not (a_unit and b_unit):  # said without its unit: in the other's
        factor, offset, other_factor, other_offset = 1.0, 0.0, 1.0, 0.0
    margin = max(_half_step(a) * factor, _half_step(b) * other_factor)
    if "." not in a and "." not in b and factor == other_factor:
        margin = 0.0  # two whole numbers of one unit are counts as likely as roundings
    one, other = float(a) * factor + offset, float(b) * other_factor + other_offset
    return abs(one - other) <= margin * 1.02 + 1e-9 * max(abs(one), abs(other))


def _half_step(written: str) -> float:
    return 0.5 * 10.0 ** -len(written.partition(".")[2])


def _conclusion(text: str) -> tuple[str, str] | None:
    """The number that a text arrives at and the unit behind it; a text that is nothing else need not say `is`."""
    found = list(CONCLUSION.finditer(text)) or list(re.finditer(r"^\W{0,3}(-?\d[\d,]{0,24}(?:\.\d{1,24})?)", text))
    if not found:
        return None
    unit = _UNIT.match(text, found[-1].end(1))
    return found[-1][1].replace(",", ""), _known(unit[1]) if unit is not None else ""


def _known(unit: str) -> str:
    return unit if unit.lower() in _UNITS else ""


def _same_text(a: str, b: str, question: str, embedder: Embedder | None) -> bool:
    if " ".join(a.casefold().split()) == " ".join(b.casefold().split()):
        return True
    one, other = _conclusion(a), _conclusion(b)
    if one is not None and other is not None:
        return _same_number(*one, *other)
    if bool(_NEGATION.search(a)) != bool(_NEGATION.search(b)):
        return False
    asked = content_words(question)
    mine, its = content_words(a) - asked, content_words(b) - asked
    numbers, others = _numbers(mine), _numbers(its)
    if numbers and others and numbers != others:
        return False
    if not (mine and its):
        return mine == its and content_words(a) == content_words(b)
    if mine <= its or its <= mine or len(mine & its) / len(mine | its) >= _SAME_WORDS:
        return True
    if embedder is None:
        return False
    rows = embedder.embed([a, b])
    return float(rows[0] @ rows[1]) >= _SAME_MEANING


def _numbers(found: set[str]) -> set[str]:
    return {word for word in found if any(c.isdigit() for c in word)}


def _disagreement(group: Sequence[Vote], winners: Sequence[Vote]) -> str:
    return f"{_names(group)}: {_short(group[0].reply)}; but {_names(winners)}: {_short(winners[0].reply)}"


def _names(group: Sequence[Vote]) -> str:
    return ", ".join(f"@{vote.agent}" for vote in group)


def _short(reply: Reply) -> str:
    text = " ".join((reply.output or str(reply.data)).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _failure(reply: Reply) -> str:
    return f"{reply.error.code}, {reply.error.message}" if reply.error is not None else "an error"
