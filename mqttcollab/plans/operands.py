"""What a calculation or a comparison needs first: "15% of 80 plus the temperature" asks for the temperature.

Only where every operand is a number or a thing with an article ("the temperature", "my heart rate"), and at
least one is such a thing; whatever is in another form stays as it is.
"""

from __future__ import annotations

import re

from mqttcollab.plans.clauses import RESULT, SHARE_OF

_THING = (
    r"(?:the|my|our|your)\s+(?!(?:(?:sum|product|difference|average|mean|ratio|square)\s+(?:of|between)|half|(?:square|cube)\s+root)\b)"
    r"(?!result\b|answer\b)[a-z][\w'’]*(?:[ -][^\W\d][\w'’]*){0,6}?"
)
_NUMBER = r"[-+]?\d[\d.,]*(?:\s*(?:%|percent|degrees?|°\s?[cf]))?"
_WORD_NUMBER = (
    r"(?:a |one )?(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty|hundred"
    r"|thousand|half|third|quarter)"
)
_OPERAND = re.compile(rf"(?:#\d+|{_NUMBER}|{_WORD_NUMBER}|({_THING}))", re.I)
_ASK = r"(?:please\s+)?(?:what\s+is|what['’]s|how\s+much\s+is|calculate|compute|work\s+out|tell\s+me)\s+"
_OPERATOR = re.compile(
    r"(\s*(?:\b(?:plus|minus|times|multiplied\s+by|divided\s+by|to\s+the\s+power\s+of)\b|(?:%|\bpercent)\s+of\b|\b(?:the\s+)?(?:square|cube)\s+root\s+of\b"
    r"|\b(?:half|twice|double|a\s+third|a\s+quarter)\s+(?:of\s+)?(?=the\b|my\b|our\b|your\b)"
    r"|(?<=[\d)\s])[+*/×÷](?=[\s\d(])|\s-(?=\s)|\bsquared\b)\s*|[()])",
    re.I,
)
_CALCULATIONS = tuple(
    re.compile(form.format(a="(?P<a>.+?)", b="(?P<b>.+)"), re.I)
    for form in (
        r"(?P<head>multiply\s+){a}(?P<mid>\s+(?:by|with|and)\s+){b}",
        r"(?P<head>divide\s+){a}(?P<mid>\s+by\s+){b}",
        r"(?P<head>(?:add|subtract)\s+){a}(?P<mid>\s+(?:to|and|from)\s+){b}",
        r"(?P<head>(?:increase|decrease|raise|reduce)\s+){a}(?P<mid>\s+by\s+){b}",
        r"(?P<head>double\s+|halve\s+){a}(?P<mid>)(?P<b>)",
        rf"(?P<head>(?:{_ASK})?the\s+(?:sum|product|average|mean|ratio)\s+of\s+){{a}}(?P<mid>\s+and\s+){{b}}",
        rf"(?P<head>(?:{_ASK})?the\s+difference\s+between\s+){{a}}(?P<mid>\s+and\s+){{b}}",
    )
)
_COMPARE = re.compile(r"(?P<head>compare\s+)(?P<a>.+?)(?P<mid>\s+(?:with|to|and|against)\s+)(?P<b>.+)", re.I)
_IS_MORE = re.compile(
    r"(?P<head>(?:is|are)\s+)(?P<a>.+?)(?P<mid>\s+(?:(?:much\s+)?\w+er|more\s+\w+|less\s+\w+|more|less)\s+than\s+)(?P<b>.+)",
    re.I,
)
# "Half of the humidity" is asked without a word for asking.
_SHARE = re.compile(r"(?=(?:half|twice|double|a\s+third|a\s+quarter)\b|\d[\d.]*\s*(?:%|percent)\s+of\b)", re.I)
_COURTESY = re.compile(r",?\s+(?:please|pls|thanks|thank\s+you|for\s+me)$", re.I)
_CALCULATES = re.compile(
    r"(?:multiply|divide|add|subtract|double|halve|triple|square|increase|decrease|raise|reduce|compare)\b"
    rf"|.*\b(?:plus|minus|times|divided by|(?:%|percent) of)\b|.*\b{RESULT}\s+(?:squared|cubed)\b"
    rf"|(?:and\s+)?{_ASK}(?:{SHARE_OF}|(?:double|triple)\s+){RESULT}",
    re.I,
)
_RESULT = re.compile(rf"\b{RESULT}", re.I)
# "And half of it?", "Double it.": asked in full, it is known for arithmetic whatever the result is.
_BARE_SHARE = re.compile(rf"(?:and\s+)?({SHARE_OF}|(?:double|triple|halve|square)\s+)({RESULT})[.!?]*", re.I)
_SHARE_OF_VERB = {"double": "twice", "triple": "3 times", "halve": "half of", "square": "the square of"}
_NAME = re.compile(r"[A-Z][\w'’.-]*(?:\s+(?:of\s+)?[A-Z][\w'’.-]*){0,4}")
_MEASURES = {
    "older": "old",
    "younger": "old",
    "taller": "tall",
    "higher": "high",
    "heavier": "heavy",
    "longer": "long",
    "faster": "fast",
    "hotter": "hot",
    "warmer": "warm",
    "colder": "cold",
    "bigger": "big",
    "larger": "large",
}


def operands(question: str, offset: int = 0) -> list[str]:
    """Return steps whose last one refers to the others' results; [question] where nothing is needed first.

    Args:
        question: number signs in it mean references, unless doubled.
        offset: how many steps come before these: the first of them is `#{offset + 1}`.
    """
    text = question.rstrip("?.! ")
    end = question[len(text) :].strip()
    text = _COURTESY.sub("", text)
    parts = _two_operands(text) or _expression(text)
    if parts and any(map(_is_thing, parts)):
        return _steps(parts, end, offset)
    return _names_compared(text, end, offset) or [question]


def with_result(question: str, number: int) -> str:
    """Return a calculation or a comparison with `#number` in place of "it"; any other question as it is."""
    if bare := _BARE_SHARE.fullmatch(question):
        share = bare[1].strip().lower()
        return f"What is {_SHARE_OF_VERB.get(share, share)} #{number}?"
    return _RESULT.sub(f"#{number}", question, count=1) if _CALCULATES.match(question) else question


def _two_operands(text: str) -> list[str] | None:
    """Return head, first operand, what stands between, second operand."""
    for form in (*_CALCULATIONS, _COMPARE, _IS_MORE):
        if (found := form.fullmatch(text)) is None:
            continue
        parts = [found["head"], found["a"], found["mid"], found["b"]]
        known = [operand for operand in parts[1::2] if operand and _OPERAND.fullmatch(operand)]
        fetched = sum(_is_thing(operand) or operand.startswith("#") for operand in known)
        if len(known) < (2 if parts[3] else 1):
            return None
        if form in (_COMPARE, _IS_MORE):  # "Is my pulse higher than 100?" takes one measurement
            return parts if fetched == 2 else None
        kitchen = text[:3].lower() == "add" and fetched == 2  # "Add the butter to the flour"
        return None if kitchen else parts
    return None


def _expression(text: str) -> list[str] | None:
    """Return the lead, the operands and the operators of "What is 15% of 80 plus the temperature"."""
    lead = re.match(_ASK, text, re.I) or _SHARE.match(text)
    parts = _OPERATOR.split(text[lead.end() :]) if lead else []
    values = [part.strip() for part in parts[::2] if part.strip()]
    if lead is None or len(parts) < 3 or not values or not all(map(_OPERAND.fullmatch, values)):
        return None
    return [lead[0], *parts]


def _names_compared(text: str, end: str, offset: int) -> list[str] | None:
    """Return "How hot is Berlin?", "How hot is Munich?" and the comparison, where the adjective names a measure."""
    found = _IS_MORE.fullmatch(text)
    if found is None or not (_NAME.fullmatch(found["a"]) and _NAME.fullmatch(found["b"])):
        return None
    measure = _MEASURES.get(found["mid"].split()[0].lower())
    if measure is None:
        return None
    asked = [f"How {measure} is {found[side]}?" for side in "ab"]
    return [*asked, f"{found['head']}#{offset + 1}{found['mid']}#{offset + 2}{end}"]


def _is_thing(part: str) -> bool:
    found = _OPERAND.fullmatch(part.strip())
    return found is not None and found[1] is not None


def _steps(parts: list[str], end: str, offset: int) -> list[str]:
    """Return the question for each thing among the parts, and what remains with references in their place."""
    first: list[str] = []
    last = ""
    for part in parts:
        if _is_thing(part):
            first.append(f"What is {part.strip()}?")
            part = part.replace(part.strip(), f"#{offset + len(first)}")
        last += part
    return [*first, f"{last}{end}"]
