"""Texts, by rule, for the steps of a structure: what to ask about each thing named, then the question itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mqttcollab.messages import PlanStep
from mqttcollab.plans.plan import literal

if TYPE_CHECKING:
    from mqttcollab.plans.structure import Structure

_AUXILIARY = r"(?:is|are|was|were|am|do|does|did|can|could|would|will|should|might|may|has|have|had)"
_NAME = re.compile(r"[A-Z][\w'’.-]*(?:\s+(?:of |the |de |and )?[A-Z][\w'’.-]*)*")
_MEASURES: Mapping[str, str] = {
    r"\b(?:older|younger|outlive\w*|longest-lived)\b": "How old is",
    r"\b(?:taller|shorter|tower\w*)\b": "How tall is",
    r"\b(?:higher|lower)\b": "How high is",
    r"\b(?:heavier|lighter|outweigh\w*|lift)\b": "How heavy is",
    r"\b(?:longer|span|reach)\b": "How long is",
    r"\b(?:faster|slower|outrun)\b": "How fast is",
    r"\b(?:hotter|colder|warmer|cooler)\b": "How hot is",
    r"\b(?:bigger|larger|smaller|fit|cover|fill|hold)\b": "How big is",
    r"\b(?:afford|richer|costlier|cheaper|more expensive)\b": "How much money is there in",
    r"\b(?:more|fewer|less|outnumber|exceed|enough)\b": "How many or how much is it for",
    r"\b(?:before|after|during|alive|contemporar\w*|born|era|prior)\b": "What is the time of",
    r"\b(?:closer|farther|further|near|located)\b": "Where is",
}
_MEASURE_PATTERNS = [(re.compile(pattern, re.I), start) for pattern, start in _MEASURES.items()]
_GLUE = re.compile(
    rf"\b(?:{_AUXILIARY}|than|and|or|with|by|for|in|on|at|from|to|of|into|before|after|during|about|without|be|been"
    r"|being|ever|not|as|if|able|likely|enough|more|less|fewer|that|which|who|each|other|same|\w+er(?= than))\b|[,?;:]",
    re.I,
)


def worded(question: str, wanted: Structure) -> list[PlanStep]:
    """Return the steps of that structure."""
    topics = _topics(question) or [question.rstrip("?")]
    start = next((start for pattern, start in _MEASURE_PATTERNS if pattern.search(question)), "What is known of")
    steps: list[PlanStep] = []
    roots = 0
    for number in range(1, wanted.count + 1):
        needed = sorted(j for i, j in wanted.edges if i == number)
        given = " and ".join(f"#{n}" for n in needed)
        if number == wanted.count:
            text = f"Given {given}: {literal(question)}" if given else literal(question)
        elif len(needed) > 1:
            text = f"How do {given} compare?"
        elif given:
            text = f"What about {given} matters for: {literal(question)}"
        else:
            again = f", part {roots // len(topics) + 1}" if roots >= len(topics) else ""
            text, roots = f"{start} {literal(topics[roots % len(topics)])}{again}?", roots + 1
        if any(step.text == text for step in steps):  # it would be done once, and the structure be another
            text = f"{text} (part {number})"
        steps.append(PlanStep(text=text, after=needed))
    return steps


def _topics(question: str) -> list[str]:
    """Return the things that a question is about: its names first, then what stands between its small words."""
    found = [re.sub(rf"^{_AUXILIARY}(?:\s+|$)", "", name, flags=re.I) for name in _NAME.findall(question)]
    names = list(filter(None, found))
    if len(names) >= 2:
        return sorted(set(names), key=question.find)
    chunks = [re.sub(r"^(?:a|an|the|my|your)\s+", "", part.strip(), flags=re.I) for part in _GLUE.split(question)]
    chunks = [part for part in chunks if len(part) > 2 and part not in names]
    longest = sorted(dict.fromkeys(chunks), key=len, reverse=True)[: max(0, 3 - len(names))]
    return sorted({*names, *longest}, key=question.find)
