"""What makes an answer right: a small language of checks, and the files of questions that use it (see README.md)."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mqttcollab.errors import ConfigError

CATEGORIES = ("arithmetic", "sensors", "first aid", "general", "out of scope", "combinations")

# What the sensors measured about the time of a question, by key; each key with every value it had.
Measured = Mapping[str, Sequence[float]]

_UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
""".split()  # noqa: SIM905
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_WORDS |= {f"{ten}-{_UNITS[n]}": 10 * t + n for t, ten in enumerate(_TENS, 2) for n in range(1, 10)}
_NUMBER = re.compile(
    r"(?<![\w.,])(?:(?<![)\d] )[-−])?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\d])|\b("
    + "|".join(sorted(_WORDS, key=len, reverse=True))
    + r")\b",
    re.IGNORECASE,
)
_FIGURE = r"\d+(?:\.\d+)?"
_RANGE = re.compile(rf"(?:{_FIGURE}\s*(?:-|–|to)\s*{_FIGURE})|(?:between\s+{_FIGURE}\s+and\s+{_FIGURE})", re.IGNORECASE)
_NOBODY = re.compile(
    r"\b(?:nobody|no one|(?:is|are|see) no (?:people|persons?))\b|\bempty of moving people\b", re.IGNORECASE
)
_NEAR = 25

# Honest ways to say that one doesn't know: the orchestrator's, and a language model's in the first person. No device's
# own answer has them, such as "NO2 is not measured by itself".
_HONEST = re.compile(
    r"unverified|no specialist|nobody here|\bmissing: |nobody (?:who was asked )?(?:can|could)|nobody knows|"
    r"\bi(?: am|'m)(?: \w+)? (?:not|unable)\b|\bi(?: \w+)? (?:do not|don't|can't|cannot|can not|couldn't) (?:\w+ )?"
    r"(?:know|tell|say|predict|access|answer|provide|determine|measure|see|find|give|have|help|assist)\b|"
    r"\bi have no\b|\bas an ai\b|(?:not|im)possible to (?:know|predict|say|tell)|can(?:not|'t) be (?:known|predicted)",
)


@dataclass(frozen=True, slots=True)
class Given:
    """An answer as it came.

    Attributes:
        text: what was said; empty where an error came.
        error: the code of the error that came instead.
        missing: whether the answer itself names a part that is missing.
        measured: what sensors said about then.
    """

    text: str
    error: str | None = None
    missing: bool = False
    measured: Measured = field(default_factory=dict)


def numbers_in(text: str) -> list[float]:
    """The numbers in a text, in figures (with or without thousands separators) or in words up to ninety-nine."""
    return [value for _, _, value in _found(text)]


def _found(text: str) -> list[tuple[int, int, float]]:
    found = []
    for match in _NUMBER.finditer(text):
        if match[3]:
            value = float(_WORDS[match[3].lower()])
        else:
            value = float(match[1].replace(",", "") + (match[2] or ""))
            value = -value if match[0][0] in "-−" else value
        found.append((match.start(), match.end(), value))
    return found


def says(text: str, words: str) -> bool:
    """Whether a text has these words, whatever their case; the last one may be inflected (-s, -ed, -ing)."""
    return bool(re.search(rf"(?<!\w){re.escape(_plain(words))}(?:s|es|ed|ing)?(?!\w)", _plain(text)))


def _plain(text: str) -> str:
    text = text.replace("’", "'").replace("₂", "2").lower()
    return re.sub(r"\s+", " ", text.replace("*", ""))


def score(check: Mapping[str, Any], given: Given) -> float:
    """The share of a check's parts that hold, 0 to 1; the answer is right at 1.

    Raises:
        ConfigError: there is no such check.
    """
    return _CHECKS[_kind(check)](check, given)


def _kind(check: Any) -> str:
    kinds = [kind for kind in _CHECKS if isinstance(check, Mapping) and kind in check]
    if len(kinds) != 1:
        shown = json.dumps(check, ensure_ascii=False)
        raise ConfigError(f"a check has one of {', '.join(_CHECKS)}, and not {shown}")
    return kinds[0]


def _number(check: Mapping[str, Any], given: Given) -> float:
    wanted, tolerance = float(check["number"]), float(check.get("tolerance", 0))
    return float(
        any(abs(value - wanted) <= tolerance + 1e-9 * max(1.0, abs(wanted)) for value in numbers_in(given.text))
    )


def _value_of(check: Mapping[str, Any], given: Given) -> float:
    """A measured value, or the sum of several, times and plus constants; usual ranges ("60 to 100") don't count."""
    keys = [check["value_of"]] if isinstance(check["value_of"], str) else list(check["value_of"])
    place = f"{check['service']}:" if "service" in check else ""
    histories = [given.measured.get(place + key, ()) for key in keys]
    times, plus, within = (
        float(check.get(key, default)) for key, default in (("times", 1), ("plus", 0), ("within", 0))
    )
    wanted = [sum(values) * times + plus for values in itertools.product(*histories)]
    said = _near(_RANGE.sub(" ", given.text), check.get("near"))
    return float(any(abs(a - b) <= within + 1e-9 for a in said for b in wanted))


def _near(text: str, words: Sequence[str] | None) -> list[float]:
    """The numbers of a text, only those with one of the words closely behind if there are words; nobody is 0."""
    if not words:
        return numbers_in(text)
    text = _NOBODY.sub(f"0 {words[0]}", text)
    found = _found(text)
    ends = [start for start, _, _ in found[1:]] + [len(text)]
    return [
        value
        for (_, end, value), following in zip(found, ends, strict=False)  # there may be no number at all
        if any(says(text[end : min(end + _NEAR, following)], word) for word in words)
    ]


def _refuses(check: Mapping[str, Any], given: Given) -> float:
    honest = given.error == "no_capability" or given.missing or bool(_HONEST.search(_plain(given.text)))
    return float(honest is bool(check["refuses"]))


def _shares(parts: Sequence[float]) -> float:
    return math.fsum(parts) / len(parts)


_CHECKS: dict[str, Callable[[Mapping[str, Any], Given], float]] = {
    "number": _number,
    "contains_any": lambda check, given: float(any(says(given.text, words) for words in check["contains_any"])),
    "contains_all": lambda check, given: _shares([float(says(given.text, words)) for words in check["contains_all"]]),
    "not_contains": lambda check, given: float(
        bool(given.text) and not any(says(given.text, words) for words in check["not_contains"])
    ),
    "value_of": _value_of,
    "refuses": _refuses,
    "all": lambda check, given: _shares([score(part, given) for part in check["all"]]),
    "any": lambda check, given: max(score(part, given) for part in check["any"]),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what makes an answer right, and who would be asked what by somebody who knows everybody.

    Attributes:
        plan: `{"service": …, "text": …}` in order; `{key}` in a text is a value of an earlier answer.
    """

    id: str
    category: str
    text: str
    check: Mapping[str, Any]
    plan: tuple[Mapping[str, str], ...] = ()

    @property
    def services(self) -> set[str]:
        """Who is needed."""
        return {step["service"] for step in self.plan}


def load(path: Path) -> list[Question]:
    """Reads a file of questions, one JSON object per line.

    Raises:
        ConfigError: it can't be read, or a line is not a question with a check.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    questions = [_question(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ConfigError(
            f"{path} has no question: write a JSON object per line, as benchmarks/collaboration/README.md"
        )
    return questions


def _question(where: str, line: str) -> Question:
    try:
        row = json.loads(line)
        question = Question(row["id"], row["category"], row["question"], row["check"], tuple(row.get("plan", ())))
        score(question.check, Given("tried"))
        steps_are_whole = all(
            isinstance(step["service"], str) and isinstance(step["text"], str) for step in question.plan
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: not a question with id, category, question and check ({error!r})") from None
    if not steps_are_whole or question.category not in CATEGORIES or not str(question.text).strip():
        raise ConfigError(f"{where}: needs a question and a category of {', '.join(CATEGORIES)}")
    return question
