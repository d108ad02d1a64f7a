"""What can be read off a question and an answer: exact values, refusals, repetition, overlap of words."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from mqttcollab.classifiers.arithmetic import LONGEST_TEXT, evaluate

_NUMBER = r"-?\d[\d,]{0,24}(?:\.\d{1,24})?"
CONCLUSION = re.compile(
    r"(?:=|\b(?:is|are|equals|has|have|answer:?|total:?|gets?|costs?))\s{0,3}[*$€£\\(]{0,4}(" + _NUMBER + ")", re.I
)
_ANY_NUMBER = re.compile(r"(?<![\w.,])" + _NUMBER)
_WORD = re.compile(r"\w+")
_SPOKEN = (
    (re.compile(r"\b(?:multiplied by|times)\b|(?<=\d)\s*[xX×]\s*(?=\d)"), "*"),
    (re.compile(r"\b(?:divided by|over)\b|÷"), "/"),
    (re.compile(r"\bplus\b"), "+"),
    (re.compile(r"\bminus\b|−"), "-"),
    (re.compile(r"(?:%|\bpercent) of\b"), "/100*"),
    (re.compile(rf"\b(?:add|sum of) ({_NUMBER}) (?:and|to) ({_NUMBER})"), r"(\1)+(\2)"),
    (re.compile(rf"\bsubtract ({_NUMBER}) from ({_NUMBER})"), r"(\2)-(\1)"),
    (re.compile(rf"\bmultiply ({_NUMBER}) (?:by|and|with) ({_NUMBER})"), r"(\1)*(\2)"),
    (re.compile(rf"\bproduct of ({_NUMBER}) and ({_NUMBER})"), r"(\1)*(\2)"),
    (re.compile(rf"\bdivide ({_NUMBER}) by ({_NUMBER})"), r"(\1)/(\2)"),
)
_EXPRESSION = re.compile(r"[\d(.][\d,.()%+*/ -]*")
_ASKING = re.compile(
    r"\b(?:what|what's|whats|is|are|calculate|compute|evaluate|how|much|result|value|of|the|please|equals?|tell|me|"
    r"can|you|give|does|make|work|out|answer|to)\b|[?=.!,:'\s]"
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|not (?:sure|able|aware|familiar|certain)|unable)"
    r"|i(?:'m| am) (?:just |only )?an? (?:ai|language model)"
    r"|i (?:do not|don't|can't|cannot|can not|couldn't|could not)"
    r" (?:know|have|find|give|provide|help|tell|answer|see|access|say)"
    r"|as an ai|no idea|not known to me|i have no (?:access|information|way|data))",
    re.I,
)
_LIVE = re.compile(
    r"\b(?:my|our|mine|here|now|today|tonight|tomorrow|yesterday|currently|current|latest|at the moment|"
    r"last night|this (?:morning|evening|week)|did i|have i|am i|what time is it|outside|next (?:bus|train))\b",
    re.I,
)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can do does did for from had has have how i in into is it its me of on or please that"
        " the their there these they this to was we were what when where which who whom whose why will with would you"
        " your",
    )
)


def final_number(text: str) -> float | None:
    """Return the number that an answer arrives at: the last behind `=`, `is`, …, else the last; None without any."""
    found = CONCLUSION.findall(text[:LONGEST_TEXT]) or _ANY_NUMBER.findall(text[:LONGEST_TEXT])
    return float(found[-1].replace(",", "")) if found else None


def number_count(text: str) -> int:
    """Return how many numbers are written in a text in digits."""
    return len(_ANY_NUMBER.findall(text[:LONGEST_TEXT]))


def asked_value(question: str) -> Fraction | None:
    """Return the exact value of a question that asks for one calculation and nothing else, else None."""
    text = question[:LONGEST_TEXT].lower()
    for pattern, replacement in _SPOKEN:
        text = pattern.sub(replacement, text)
    spans = [found for found in _EXPRESSION.finditer(text) if any(c in "+*/-" for c in found[0])]
    if len(spans) != 1:
        return None
    rest = text[: spans[0].start()] + text[spans[0].end() :]
    return None if _ASKING.sub("", rest) else evaluate(spans[0][0].strip().rstrip(".,"))


def hits(value: Fraction, text: str) -> bool | None:
    """Whether the number that a text arrives at is this value, rounded as it is written; None without a number."""
    found = CONCLUSION.findall(text[:LONGEST_TEXT]) or _ANY_NUMBER.findall(text[:LONGEST_TEXT])
    if not found:
        return None
    decimals = len(found[-1].partition(".")[2])
    return abs(Fraction(found[-1].replace(",", "")) - value) <= Fraction(51, 100 * 10**decimals) * bool(decimals)


def refuses(text: str) -> bool:
    """Whether an answer says, early on, that it can't answer."""
    return bool(_REFUSAL.search(text[:200].replace("’", "'")))


def asks_of_now(question: str) -> bool:
    """Whether it is about the asker's own things or about now: what nobody can know without sensing or being told."""
    return bool(_LIVE.search(question[:LONGEST_TEXT]))


def echoes(question: str, answer: str) -> bool:
    """Whether an answer is the question again, word by word."""
    return bool(said := _words(answer)) and said == _words(question)


def repetition(text: str) -> float:
    """Return the share of word triples that stood before, 0 to 1; close to 1 for a model caught in a loop."""
    words = _words(text)
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(triples) / triples.total() if triples else 0.0


def content_words(text: str) -> set[str]:
    """Return the lower-case words that carry meaning."""
    return {word for word in _words(text) if word not in _COMMON}


def reference(question: str, answer: str) -> float:
    """Return the share of the question's content words that the answer takes up, 0 to 1; 1 if it has none."""
    asked = content_words(question)
    return len(asked & content_words(answer)) / len(asked) if asked else 1.0


def novelty(question: str, answer: str) -> int:
    """Return how many content words an answer adds to the question."""
    return len(content_words(answer) - content_words(question))


def word_overlap(a: str, b: str) -> float:
    """Return the Jaccard index of the content words; two texts without any agree where they are equal."""
    one, other = content_words(a), content_words(b)
    if not one and not other:
        return float(a.strip() == b.strip())
    return len(one & other) / len(one | other)


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:LONGEST_TEXT].lower())
