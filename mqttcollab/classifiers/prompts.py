"""What can be seen in a prompt, and in a weak model's answer to it, that tells whether the answer is right.

Each feature's name is the phrase with which a decision is explained to a person. Counts are as log(1 + n).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.arithmetic import (
    LONGEST_TEXT,
    Calculation,
    noted_calculations,
    numbers,
    spelled_calculations,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_MOST_OPTIONS = 10
_PROMPT_CUES: Mapping[str, str] = {
    "percentages": r"%|percent",
    "fractions": r"\d/\d|half|third|quarter|fifth",
    "ratios": r"\bratio\b",
    "'each'": r"\beach\b",
    "multiples": r"\btimes\b|twice|double|triple",
    "comparisons": r"more than|less than|fewer|older|younger",
    "conditions": r"\bif\b|suppose|assume",
    "remainders": r"\bleft\b|remain|\brest\b",
    "times": r"hour|minute|week|month|year|\bday",
    "averages": r"average",
    "money": r"\$|dollar|cent\b|cents\b",
    "rates": r"\bevery\b|\bper\b",
    "'half'": r"half",
    "decimals": r"\d\.\d",
    "an order of events": r"first|second|third|next|then",
    "negations": r"\b(?:not|except|least|incorrect|false|untrue|never)\b",
    "blanks to fill": r"_{2,}",
    "'which of the following'": r"which of the following",
    "statements to judge": r"statement",
    "superlatives": r"\b(?:best|most)\b",
    "calculations asked for": r"calculate|how (?:many|much)|find the|what is the (?:value|probability)|approximately",
    "years": r"\b1[5-9]\d\d\b|\b20\d\d\b",
    "quotations": r"[\"“]",
    "definitions": r"refers to|is called|known as|defin|\bterm\b",
    "reasons asked for": r"\bwhy\b|because|reason|explain",
    "'who'": r"\bwho\b",
    "'when'": r"\bwhen\b",
    "places": r"\bwhere\b|country|city",
    "a passage to read": r"refers to the following|passage|excerpt",
    "a case at law": r"plaintiff|defendant|court|statute|landowner|sued",
    "a patient": r"patient|year-old|\bmg\b",
    "formal logic": r"∀|∃|⊃|≡|argument|premise",
    "scenarios": r"scenario|for which|main character",
    "'according to'": r"according to",
    "'all' or 'none of these'": r"all of|none of|both",
    "'only'": r"\bonly\b",
}
_CUE_PATTERNS = {name: re.compile(pattern) for name, pattern in _PROMPT_CUES.items()}
_HEDGES = re.compile(
    r"however|assum|not clear|unclear|cannot|can't|approximately|about \d|≈|either|seems|would be|not possible"
    r"|impossible|closest|\bround"
)
_TROUBLE = re.compile(r"however|mistake|not possible|impossible|assum|cannot|not enough")
_UNKNOWNS = re.compile(r"\blet'?s? (?:us )?(?:denote|say|x|call|assume|define)|\b\d*[xy]\s*[=+-]|[=+-]\s*\d*[xy]\b")
_NUMBER_WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "dozen": 12, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "hundred": 100,
    "half": 2, "twice": 2, "double": 2, "triple": 3, "third": 3, "quarter": 4, "thrice": 3, "week": 7, "weeks": 7,
    "couple": 2,
}  # fmt: skip


def _log(n: float) -> float:
    return math.log1p(max(n, 0.0))


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _spread(values: list[int]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def _spoken_numbers(text: str) -> list[float]:
    return [float(_NUMBER_WORDS[word]) for word in re.findall(r"[a-z]+", text.lower()) if word in _NUMBER_WORDS]


def split_options(prompt: str) -> tuple[str, list[str]]:
    """Return a multiple-choice question and its options (`A. …` on lines of their own); no options otherwise."""
    question, *rest = re.split(r"\n[A-Z][.)] ?", prompt)
    return question, [re.sub(r"\nAnswer:\s*$", "", option) for option in rest[:_MOST_OPTIONS]]


def prompt_features(prompt: str) -> dict[str, float]:
    """What can be seen before any model was asked."""
    prompt = prompt[:LONGEST_TEXT]
    lower, (question, options) = prompt.lower(), split_options(prompt)
    words = re.findall(r"[A-Za-z']+", prompt) or [""]
    spoken = numbers(question) + _spoken_numbers(question)
    features = {
        "the length of the prompt": _log(len(prompt)),
        "the length of the question": _log(len(question)),
        "sentences": _log(len(re.findall(r"[.?!](?:\s|$)", question))),
        "ends in a question mark": float(question.rstrip().endswith("?")),
        "numbers": _log(len(spoken)),
        "numbers in words": _log(len(_spoken_numbers(question))),
        "large numbers": _log(max(spoken, default=0.0)),
        "symbols": _log(len(re.findall(r"[=^+*/<>∀∃≡⊃~•|\\{}]", prompt))),
        "density of symbols": len(re.findall(r"[^\w\s.,;:'\"?!()-]", prompt)) / max(1, len(prompt)),
        "long words": _share([len(word) > 9 for word in words]),
        "word length": sum(map(len, words)) / len(words),
        "names": _share([word[:1].isupper() for word in words]),
        "variety of words": len({word.lower() for word in words}) / len(words),
    }
    features |= {name: _log(len(pattern.findall(lower))) for name, pattern in _CUE_PATTERNS.items()}
    return features | _option_features(question, options)


def _option_features(question: str, options: list[str]) -> dict[str, float]:
    options = options or [""]
    lengths = [len(option) for option in options]
    asked = set(re.findall(r"[a-z]+", question.lower()))
    shared = [len(asked & set(re.findall(r"[a-z]+", o.lower()))) / max(1, len(o.split())) for o in options]
    words = [set(option.lower().split()) for option in options]
    alike = [len(a & b) / max(1, len(a | b)) for a, b in combinations(words, 2)] or [0.0]
    numeric = re.compile(r"[\s$£€\-−–+]*[\d,.]+\s*(?:%|[a-zA-Z/°^0-9 ]{0,12})\.?")
    return {
        "the length of the options": _log(sum(lengths) / len(lengths)),
        "a long option": _log(max(lengths)),
        "options of unequal length": _log(_spread(lengths)),
        "options long beside the question": _log(sum(lengths) / len(lengths)) - _log(len(question)),
        "numeric options": _share([bool(numeric.fullmatch(option)) for option in options]),
        "digits in the options": _share([any(c.isdigit() for c in option) for option in options]),
        "commas in the options": _share(["," in option for option in options]),
        "options that repeat the question": sum(shared) / len(shared),
        "one option repeats the question": max(shared) - sum(shared) / len(shared),
        "options in the same words": sum(alike) / len(alike),
    }


def option_similarities(prompt: str, embedder: Embedder) -> dict[str, float]:
    """How close the options of a multiple-choice question are in meaning, to it and to each other."""
    question, options = split_options(prompt[:LONGEST_TEXT])
    to_question: NDArray[np.floating[Any]] = np.zeros(1)
    to_others: NDArray[np.floating[Any]] = np.zeros(1)
    if len(options) > 1:
        vectors = embedder.embed([question, *options])
        to_question = np.sort(vectors[1:] @ vectors[0])
        to_others = (vectors[1:] @ vectors[1:].T)[np.triu_indices(len(options), 1)]
    return {
        "options close to the question": float(to_question.mean()),
        "one option closest to the question": float(to_question[-1] - to_question[-2:][0]),
        "an option far closer to the question": float(to_question[-1] - to_question.mean()),
        "options close to each other": float(to_others.mean()),
        "two options alike": float(to_others.max()),
        "two options far apart": float(to_others.min()),
    }


def answer_features(prompt: str, answer: str) -> dict[str, float]:
    """What can be seen once the weak model has answered."""
    prompt, answer = prompt[:LONGEST_TEXT], answer[:LONGEST_TEXT]
    body, marked, final = answer.partition("####")
    noted, spelled = noted_calculations(answer), spelled_calculations(answer)
    wrong = [c for c in (*noted, *spelled) if c.right is False]
    lower, stripped = body.lower(), answer.strip()
    features = {
        "the length of the answer": _log(len(answer)),
        "an answer short for its prompt": _log(len(prompt)) - _log(len(body)),
        "no marked final answer": float(not marked),
        "an unfinished answer": float(not marked and not stripped.endswith(".")),
        "words in the final answer": float(bool(re.search(r"[a-z]{3}", final.lower()))),
        "a final answer that is one number": float(bool(re.search(r"####\s*\$?-?[\d,.]+\s*$", stripped))),
        "lines of the answer": _log(stripped.count("\n")),
        "paragraphs of the answer": float("\n\n" in stripped),
        "explanations": float(bool(re.search(r"explanation|note:|therefore|first,", lower))),
        "hedges in the answer": float(bool(_HEDGES.search(lower))),
        "doubts in the answer": float(bool(_TROUBLE.search(lower))),
        "unknowns in the answer": float(bool(_UNKNOWNS.search(lower))),
        "rounding": float(bool(re.search(r"approximately|≈|\bround", lower))),
        "wrong calculations in annotations": min(3, sum(c.right is False for c in noted)),
        "unreadable calculations": min(3, sum(c.right is None for c in noted)),
        "wrong calculations in the prose": min(3, sum(c.right is False for c in spelled)),
        "a wrong calculation": float(bool(wrong)),
        "calculations": _log(len(noted)),
        "calculations in the prose": _log(len(spelled)),
        "no annotated calculation": float(not noted),
        "subtractions": _log(sum(c.expression.count("-") for c in noted)),
        "divisions": _log(sum(c.expression.count("/") for c in noted)),
        "multiplications": _log(sum(c.expression.count("*") for c in noted)),
        "additions": _log(sum(c.expression.count("+") for c in noted)),
        "long calculations": max((len(numbers(c.expression)) for c in noted), default=0),
    }
    return features | _final_features(prompt, body, final, noted, spelled) | _use_features(prompt, body, noted)


def _final_features(
    prompt: str, body: str, final: str, noted: list[Calculation], spelled: list[Calculation]
) -> dict[str, float]:
    given, marked = numbers(prompt), numbers(final)
    value = (marked or numbers(body)[-1:] or [0.0])[0]
    results = [n for c in (*noted, *spelled) for n in numbers(c.result)]
    last = numbers(noted[-1].result)[-1:] if noted else []
    return {
        "not exactly one final number": float(len(marked) != 1),
        "a final number that is not whole": float(abs(value - round(value)) > 1e-9),
        "a large final number": _log(abs(value)),
        "a final number above those of the prompt": _log(abs(value)) - _log(max(given, default=0.0)),
        "a final number taken from the prompt": float(value in given),
        "a final number that is the last result": float(bool(last) and abs(last[0] - value) < 1e-6),
        "a final number that was calculated": float(any(abs(r - value) < 1e-6 for r in results)),
        "results that are not whole": _log(sum(abs(r - round(r)) > 1e-9 for r in results)),
        "results that are not round": _log(sum(abs(100 * r - round(100 * r)) > 1e-6 for r in results)),
    }


def _use_features(prompt: str, body: str, noted: list[Calculation]) -> dict[str, float]:
    given = numbers(prompt)
    spoken = _spoken_numbers(prompt)
    seen = set(numbers(body)) | set(_spoken_numbers(body))
    unused = [n for n in given if n not in seen and n / 100 not in seen]
    known, invented, dangling = {*given, *spoken}, 0, 0
    for i, step in enumerate(noted):
        operands, result = numbers(step.expression), numbers(step.result)
        invented += sum(all(min(abs(n - k), abs(n - k / 100)) >= 1e-6 for k in known) for n in operands)
        known |= set(result)
        later = {n for other in noted[i + 1 :] for n in numbers(other.expression)}
        dangling += bool(i + 1 < len(noted) and result and result[-1] not in later)
    return {
        "numbers of the prompt left unused": _log(len(unused)),
        "the share of numbers left unused": len(unused) / max(1, len(given)),
        "numbers from nowhere": _log(invented),
        "results left unused": _log(dangling),
        "steps beyond the numbers given": len(noted) - len(given) - len(spoken),
    }
