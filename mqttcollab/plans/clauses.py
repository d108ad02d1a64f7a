"""Splits a question into what it asks, clause by clause, by the rules of English; other languages stay whole.

A clause is cut off only where both sides ask something of their own: "and" within one clause ("run and jump",
"bread and butter") never cuts. What clauses share (a statement, a condition, the verb of an enumeration) is
repeated, so that each stands alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_AUX = r"(?:is|are|was|were|am|do|does|did|can|could|would|will|should|shall|might|may|must|has|have|had)"
_PRONOUN = r"(?:i|you|he|she|it|we|they|this|that|these|those|there|anyone|anybody|someone|everyone)"
_DETERMINER = r"(?:the|a|an|my|your|our|his|her|its|their|any|some|all|today['’]s|this|that|these|those)"
_WH = r"(?:what|who|whom|whose|where|when|why|how|which)"
# What a calculation works on, and "half of" it; `operands` puts a result there.
RESULT = r"(?:it|that|this|the\s+(?:result|answer|sum|product|total))\b"
SHARE_OF = r"(?:half|twice|a\s+(?:half|third|quarter)\s+of|(?:the\s+)?(?:square|cube)\s+root\s+of)(?:\s+of)?\s+"
_IMPERATIVE = (
    r"(?:tell|show|give|find|calculate|compute|work out|explain|describe|measure|check|compare|list|count|convert"
    r"|summari[sz]e|report|multiply|divide|subtract|add|estimate|read|write|translate|suggest|let\s+me\s+know"
    rf"|(?:double|triple|halve|square)(?=\s+{RESULT}))"
)
_PREPOSITION = r"(?:in|at|on|for|to|from|with|by|of|about|since)"
_POLITE = re.compile(
    r"(?:(?:please|kindly|hey|hi|hello|ok|okay|so|well|now|also|and|then|but|thanks)\b[,!]?\s+"
    rf"|(?:can|could|would|will)\s+you\s+(?:please\s+|kindly\s+)?(?={_IMPERATIVE}\b))+",
    re.I,
)
# "what is", "how many people are", "which bus goes"; with a determiner before the verb it is no question of its own.
_OPEN = (
    rf"(?:{_PREPOSITION}\s+)?{_WH}"
    rf"(?:['’](?:s|re)\b|\s+(?:(?!{_DETERMINER}\b|{_PRONOUN}\b)[\w'’%/-]+\s+){{0,4}}?{_AUX}\b)"
)
_SUBJECT = (
    rf"(?:who\s+(?!{_DETERMINER}\b|{_PRONOUN}\b|to\b)(?-i:[a-z])\w+"
    rf"|(?:what|which\s+\w+)\s+(?!{_DETERMINER}\b|{_PRONOUN}\b|to\b)[a-z]+(?:s|ed|ote|ew|on|ame))\b"
)
_CLOSED = (
    rf"(?:(?:is|are|was|were|can|could|would|should|shall|might|may|must|am|has|does|did)\s+"
    rf"(?:{_PRONOUN}|{_DETERMINER}|(?-i:[A-Z])\w*)\b|(?:do|have|will|had)\s+{_PRONOUN}\b)"
)
_STARTS_OPEN = re.compile(_OPEN, re.I)
_STARTS_SUBJECT = re.compile(_SUBJECT, re.I)
_STARTS_CLOSED = re.compile(_CLOSED, re.I)
_STARTS_SENTENCE = re.compile(rf"(?:is|are|do|does|did|can|could|would|should|am)\s+[a-z]+\b(?=.*\?)|{_CLOSED}", re.I)
_STARTS_IMPERATIVE = re.compile(rf"{_IMPERATIVE}\b(?!\s+(?:of|is|are)\b)", re.I)
_STARTS_CONSEQUENCE = re.compile(r"if\s+(?:so|not|yes|no)\b", re.I)
# "And half of it?"
_STARTS_SHARE = re.compile(rf"{SHARE_OF}{RESULT}(?=\s*(?:[,;?.!]|and\b|$))", re.I)
_STARTS_EMBEDDED = re.compile(rf"(?:{_WH}|whether|if)\s+\S+\s+\S+", re.I)
# "Tell me how hot it is and how crowded the square is": the matrix clause, repeated before the second.
_MATRIX = re.compile(
    rf"((?:{_POLITE.pattern})?(?:(?:tell|show)\s+(?:me|us)|explain(?:\s+to\s+me)?|describe|check|find\s+out|do\s+you\s+know"
    r"|i(?:\s+want|\s+need|['’]d\s+like|\s+would\s+like)\s+to\s+know|(?:can|could)\s+you\s+say))"
    rf"\s+(?={_WH}\b|whether\b|if\b|{_DETERMINER}\b)",
    re.I,
)
_JOINT = re.compile(
    r",?\s+(?:and\s+also|and\s+then|and|then|also|as\s+well\s+as|but\s+also)\s+(?:please\s+)?|[,;]\s+", re.I
)
_SENTENCE_END = re.compile(r"(?<=[?!])[)\"”']*\s+|(?<=[.;])\s+(?=[A-Z0-9¿¡\"“]|(?-i:tell|show|what|how|is|can)\b)|\n+")
_CONDITION = re.compile(r"(?:if|when|while|as|since|because|after|before|given|suppose|assuming|once|in case)\b", re.I)
_UNFINISHED = re.compile(
    rf"\b(?:{_WH}|{_PREPOSITION}|{_DETERMINER}|(?:tell|show|give)\s+(?:me|us)|do\s+you\s+know|and|or|to)$"
    rf"|^\S+\s+{_AUX}$",
    re.I,
)
_INFINITIVE = re.compile(rf"\b(?:to|{_AUX}\s+(?:i|you|we|he|she|they|one|people))\s+[a-z]", re.I)
_ELLIPTIC = re.compile(
    r"(?:and\s+|or\s+)?(?:(?:what|how)\s+about\s+)?"
    rf"({_DETERMINER}\s+[\w'’-]+(?:\s[\w'’-]+){{0,5}}\s?)[?.!]*",
    re.I,
)
_ENUMERATION = re.compile(
    rf"((?:{_POLITE.pattern})?(?:(?:tell|show|give)\s+(?:me|us)|what\s+(?:is|are)|what['’]s|how\s+(?:is|are)|check|report"
    rf"|measure|compute|calculate|i\s+(?:want|need)(?:\s+to\s+know)?))\s+(?={_DETERMINER}\b|[(\d-])",
    re.I,
)
_ITEM_JOINT = re.compile(
    r",\s*(?:and\s+(?:also\s+)?|as\s+well\s+as\s+)?|\s+(?:and(?:\s+also)?|as\s+well\s+as)\s+", re.I
)
_ITEM = re.compile(
    rf"{_DETERMINER}\s+[\w'’.-]+(?:\s+[\w'’.-]+){{0,5}}|[\d\s.()%-]*\d[)%]?\s*[-+*/^×÷][-+\d\s.()%*/^×÷]*", re.I
)
_NO_ITEM = re.compile(
    r"\b(?:of|between|for|with|from|about|in|on|at|to|than|if|when|that|which|who|or|is|are|was|were|do|does|can)\b"
    r"|^\w+\s+(?:first|second|last|next|best|worst|other|same|sum|product|difference|ratio|\w+est)$",
    re.I,
)
# What must not be cut into: addresses, quotations, brackets, decimal points, abbreviations.
_PROTECTED = re.compile(
    r"\b(?:https?://|www\.)\S*[\w/]|\b[\w.+-]+@[\w-]+\.[\w.]*\w|\"[^\"]{1,500}\"|“[^”]{1,500}”|`[^`]{1,500}`"
    r"|\([^()]{1,500}\)|\d[.,]\d|\b(?:e\.g|i\.e|a\.m|p\.m|u\.s|u\.k|etc|approx|vs|cf|no|dr|mrs?|ms|prof|st|jr|min|max)\.",
    re.I,
)
_BACK = re.compile(
    r"\b(it|that|this|its|they|them|those|these|both|their|he|she|him|his|her"
    r"|the (?:result|answer|sum|product|total|former|latter))\b",
    re.I,
)
_PLURAL = frozenset(("they", "them", "those", "these", "both", "their"))
# "How hot is it", "is it raining", "is it true that": no pronoun that points anywhere.
_DUMMY = re.compile(
    r"\bhow\s+(?:hot|cold|warm|cool|windy|humid|dark|late|sunny|wet|foggy|far|long)\s+(?:is|was|will)\s+it\b"
    r"|\bwhat\s+(?:time|day|date|year)\s+is\s+it\b|\bhow\s+(?:hot|cold|warm|windy|humid|late)\s+it\s+is\b"
    r"|\b(?:is|was|will|does|whether|if)\s+it\s+(?:be\s+|is\s+|going\s+to\s+)?"
    r"(?:rain\w*|snow\w*|hot|cold|warm|windy|sunny|humid|foggy|dark|wet|late|true|possible|legal|safe\s+(?:to|for)|ok\w*\s+to)\b"
    r"|\b(?:this|that)\s+(?:morning|afternoon|evening|week|weekend|month|year|day|time)\b"
    rf"|\b{SHARE_OF}(?={RESULT})",
    re.I,
)
_NAMED = re.compile(r"\b(?:the|a|an|my|your|our)\s+\w+|(?<!^)(?-i:\b[A-Z][a-z]+)", re.I)
_PERSONAL = re.compile(r"\b(?:i|me|my|we|us|our)\b", re.I)


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing asked, and the numbers, from 1, of the clauses before whose answers it points back to ("is that …")."""

    text: str
    after: tuple[int, ...] = ()


def clauses(question: str) -> list[Clause]:
    """Return what a question asks, in order; one clause where it asks one thing, or is in no form known here."""
    texts: list[str] = []
    lead = ""
    for sentence in _cut(question, _SENTENCE_END):
        if elliptic := _completed(texts[-1] if texts else "", sentence):
            texts.append(elliptic)
        elif not _asks(sentence) and not _asks(_split_lead(sentence)[1]):
            if sentence.rstrip(")\"'” ").endswith("?") and texts:
                texts[-1] = f"{texts[-1]} {sentence}"
            else:
                lead = f"{lead} {sentence}".strip()
        else:
            found = _of_sentence(sentence)
            first = not texts or not any(lead in text for text in texts)
            texts += [
                f"{lead} {text}" if lead and ((first and not i) or _points(text) or _PERSONAL.search(text)) else text
                for i, text in enumerate(found)
            ]
    if not texts:
        return [Clause(" ".join(question.split()))]
    if lead and not any(lead in text for text in texts):
        texts[-1] = f"{texts[-1]} {lead}"
    if len(texts) == 1:
        return [Clause(" ".join(question.split()))]
    return [Clause(text, _after(number, text)) for number, text in enumerate(texts, 1)]


def _of_sentence(sentence: str) -> list[str]:
    lead, body = _split_lead(sentence)
    matrix = _MATRIX.match(body)
    parts: list[str] = []
    for part in _coordinated(body, matrix is not None):
        text = _POLITE.sub("", part, count=1) if parts and _POLITE.match(part) else part
        if parts and matrix and _embedded(text):
            text = f"{_POLITE.sub('', matrix[1], count=1) or matrix[1]} {text}"
        parts += _enumerated(text)
    if len(parts) == 1:
        return [sentence]
    shared = _CONDITION.match(lead) is not None
    return [
        _ended(f"{lead} {part}" if lead and (shared or not i or _PERSONAL.search(part)) else part)
        for i, part in enumerate(parts)
    ]


def _split_lead(sentence: str) -> tuple[str, str]:
    """Return what stands before the question in its sentence ("If it is hot, …", "I feel dizzy, …"), and the rest."""
    if _asks(sentence) and not _CONDITION.match(sentence):
        return "", sentence
    for comma in re.finditer(r"[,:]\s+(?:and\s+|so\s+|then\s+)?", _shadow(sentence)):
        rest = sentence[comma.end() :]
        if _STARTS_OPEN.match(rest) or _STARTS_CLOSED.match(rest) or _MATRIX.match(rest):
            return sentence[: comma.end()].strip(), rest
    return "", sentence


def _coordinated(text: str, matrix: bool) -> list[str]:
    """Return the parts of a sentence that ask something each."""
    shadow, parts, start = _shadow(text), [], 0
    for joint in _JOINT.finditer(shadow):
        left, right = text[start : joint.start()].strip(), text[joint.end() :]
        if joint.start() > start and _finished(left) and _begins(left, right, joint[0], matrix):
            parts.append(left)
            start = joint.end()
    return [*parts, text[start:].strip()]


def _begins(left: str, right: str, joint: str, matrix: bool) -> bool:
    """Return whether what follows a joint asks something of its own."""
    conjunction = bool(joint.strip(" ,;"))
    if _STARTS_OPEN.match(right):
        return True
    if _STARTS_IMPERATIVE.match(right):
        if not conjunction and not _STARTS_IMPERATIVE.match(_POLITE.sub("", left, count=1)):
            return False
        return not _INFINITIVE.search(_POLITE.sub("", left, count=1))
    if not conjunction:
        return matrix and re.match(rf"(?:{_WH}|whether)\b", right, re.I) is not None
    if _STARTS_CONSEQUENCE.match(right) or _STARTS_SHARE.match(right):
        return True
    if matrix and _STARTS_EMBEDDED.match(right):
        return True
    if _STARTS_SUBJECT.match(right):
        return _INFINITIVE.search(left) is None
    # "Who lives here and is the mayor": the second verb has the first one's subject.
    subject = re.match(rf"who\s+(?!{_AUX}\b)", left, re.I) is not None
    return _STARTS_CLOSED.match(right) is not None and not subject


def _finished(left: str) -> bool:
    return " " in left and _asks(left) and _UNFINISHED.search(left) is None


def _asks(text: str) -> bool:
    """Return whether a text begins like an English question or request."""
    plain = _POLITE.sub("", text, count=1) if _POLITE.match(text) else text
    starts = (_STARTS_OPEN, _STARTS_SENTENCE, _STARTS_IMPERATIVE, _MATRIX, _STARTS_CONSEQUENCE, _STARTS_SHARE)
    if any(pattern.match(plain) for pattern in starts):
        return True
    return _STARTS_SUBJECT.match(plain) is not None


def _embedded(text: str) -> bool:
    return _STARTS_EMBEDDED.match(text) is not None and not (
        _STARTS_OPEN.match(text) or _STARTS_CONSEQUENCE.match(text)
    )


def _enumerated(text: str) -> list[str]:
    """Return one request per item of "Tell me my pulse, the temperature and the air quality", else the text."""
    lead = _ENUMERATION.match(text)
    if lead is None:
        return [text]
    items = _cut(text[lead.end() :].rstrip("?.! "), _ITEM_JOINT)
    simple = [
        _ITEM.fullmatch(item) and not _NO_ITEM.search(item if number < len(items) else item.split(" in ")[0])
        for number, item in enumerate(items, 1)
    ]
    if len(items) < 2 or not all(simple):
        return [text]
    end = "?" if re.match(_WH, lead[1], re.I) else "."
    return [f"{_agreeing(lead[1], item)} {item}{end}" for item in items]


def _agreeing(lead: str, item: str) -> str:
    plural = re.search(r"(?<![su])s$", item.split(" in ")[0])
    return re.sub(r"\bare$", "are" if plural else "is", lead)


def _completed(before: str, sentence: str) -> str | None:
    """Return "And the humidity?" with the verb of the question before it, where that has one to lend."""
    found = _ELLIPTIC.fullmatch(sentence)
    lead = _ENUMERATION.match(before)
    if found is None or lead is None or _NO_ITEM.search(found[1].strip()):
        return None
    return f"{_agreeing(lead[1], found[1].strip())} {found[1].strip()}?"


def _after(number: int, text: str) -> tuple[int, ...]:
    if number == 1:
        return ()
    if _STARTS_CONSEQUENCE.match(text):
        return (number - 1,)
    pointer = _points(text)
    if pointer is None:
        return ()
    return tuple(range(1, number)) if pointer.lower() in _PLURAL else (number - 1,)


def _points(text: str) -> str | None:
    """Return the pronoun that points to what was asked before, if nothing named earlier in the text is meant by it."""
    plain = _DUMMY.sub("", text)
    found = _BACK.search(plain)
    if found is None or _NAMED.search(plain[: found.start()]):
        return None
    return found[1]


def _ended(text: str) -> str:
    """Return a clause with its capital and its mark."""
    text = text.rstrip(" ,;")
    if not text.endswith(("?", ".", "!")):
        text += "." if re.match(rf"(?:please\s+)?{_IMPERATIVE}\b", text, re.I) else "?"
    return text[:1].upper() + text[1:]


def _cut(text: str, joint: re.Pattern[str]) -> list[str]:
    shadow, parts, start = _shadow(text), [], 0
    for found in joint.finditer(shadow):
        parts.append(text[start : found.start()])
        start = found.end()
    return [part for part in (" ".join(part.split()) for part in (*parts, text[start:])) if part]


def _shadow(text: str) -> str:
    """Return a text of the same length in which nothing within a quotation, an address or a number separates."""
    return _PROTECTED.sub(lambda found: "x" * len(found[0]), text)
