"""A first-aid adviser: retrieves from a handbook (`data/first_aid.toml`), takes a measured heart rate into account.

It says when it has nothing and never guesses: what it answers is the handbook's text with its source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import HERE, embedder_of, main, read_settings
from devices.analysis.handbook import Entry, Found, Handbook, load
from devices.analysis.vitals import describe_heart_rate, is_fast, is_slow
from mqttcollab import Agent, Answer, Request, RequestError, Source

SERVICE = "knowledge.gpt/medicine/first-aid"
DESCRIPTION = "First aid advice: what to do about symptoms, injuries and medical emergencies"
EXAMPLES = (
    "I feel dizzy and faint",
    "My chest hurts",
    "I have palpitations and feel weak and unwell",
    "Someone is choking",
    "How do I treat a burn?",
    "I burnt my hand on the stove",
    "I have a bad headache and feel sick",
    "How do I stop a cut from bleeding?",
    "My nose is bleeding",
    "She was stung by a wasp and her face swells",
    "He collapsed, is unconscious and not breathing",
    "Her face droops and her speech is slurred, is it a stroke?",
    "My child swallowed something poisonous",
    "My child has a high fever",
    "I fell and my ankle is swollen, is it broken?",
    "I think my arm is broken",
    "She hit her head and vomits",
    "He has a seizure",
    "I can't breathe well, an asthma attack",
    "A dog or a snake bit me",
    "I have diarrhoea and stomach ache",
    "Overheated and weak after hours in the sun",
    "Chemicals splashed into my eye",
)
CLOSE_SECOND = 0.8
SURE_SCORE = 0.6
WEAK_SCORE = 0.4
# Where the heart rate says something about the complaint.
_HEART_RELATED = """
racing-heart dizziness fainting chest-pain breathlessness panic shock low-sugar heat-exhaustion heat-stroke
dehydration anaphylaxis asthma fever
"""
HEART_RELATED = frozenset(_HEART_RELATED.split())
_RATE_IN_TEXT = re.compile(r"(?:heart rate|pulse)\D{0,20}?(\d{2,3}(?:\.\d+)?)", re.IGNORECASE)
CLOSING = (
    "Emergency number: 112 in Europe and many countries, 911 in North America, 999 in the UK. "
    "This is general first-aid information, no diagnosis; in doubt call for help."
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the adviser; `threshold` overrides the score that an entry must reach."""

    name: str = "medic-2"
    place: str = "anywhere"
    handbook: Path = HERE / "data" / "first_aid.toml"
    threshold: float | None = None
    embedder: str | None = "wordllama"


@dataclass(frozen=True, slots=True)
class Measured:
    """A heart rate (1/min) that another agent measured."""

    rate: float
    agent: str


def heart_rate_in(request: Request) -> Measured | None:
    """Return the heart rate among the results of earlier steps, if one is there and plausible."""
    for item in request.context:
        value: Any = (item.data or {}).get("heart_rate")
        if value is None and (found := _RATE_IN_TEXT.search(item.text or "")):
            value = float(found.group(1))
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if usable and 20 <= value <= 300:
            return Measured(float(value), item.agent or "")
    return None


def say_heart_rate(measured: Measured, entries: Sequence[Entry]) -> str:
    """Say what a measured heart rate is and what it changes, without more certainty than it has."""
    who = f"the wearable @{measured.agent.lstrip('@')}" if measured.agent else "a device"
    text = f"Just now {who} measured {round(measured.rate)}/min, {describe_heart_rate(measured.rate)}."
    if is_slow(measured.rate) or is_fast(measured.rate):
        return text
    if any(entry.id == "racing-heart" for entry in entries):
        text += (
            " So it shows no fast heart beat at this moment; such feelings come and go, a wearable can err,"
            " and it does not rule out a problem: feel your pulse yourself as well."
        )
    return text


def say_entry(entry: Entry) -> str:
    """Return an entry as plain text."""
    steps = " ".join(f"{number}. {step}" for number, step in enumerate(entry.steps, start=1))
    return f"{entry.title}: {steps} Emergency call: {entry.emergency}."


def advise(question: str, found: Sequence[Found], measured: Measured | None) -> str:
    """Compose the answer from the entries found, best first, and the measured heart rate."""
    entries = [item.entry for item in found]
    parts = []
    if found[0].score < WEAK_SCORE:
        parts.append(f"The handbook has no entry that fits exactly; the closest is: {entries[0].title}.")
    if measured and HEART_RELATED.intersection(entry.id for entry in entries):
        parts.append(say_heart_rate(measured, entries))
    parts += [say_entry(entry) for entry in entries]
    return "\n".join([*parts, CLOSING])


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    embedder = embedder_of(options.embedder)
    handbook = Handbook(load(options.handbook), embedder, options.threshold)
    agent = Agent(
        options.name,
        description="A first-aid adviser with a handbook",
        place=options.place,
        embedder=embedder,
        hardware={"kind": "software", "entries": str(len(handbook.entries))},
    )

    @agent.service(SERVICE, description=DESCRIPTION, examples=EXAMPLES)
    async def first_aid(request: Request) -> Answer:
        found = handbook.find(request.text, most=2)
        if not found:
            raise RequestError("no_capability", f"the first-aid handbook has nothing about: {request.text[:200]}")
        found = [item for item in found if item.score >= CLOSE_SECOND * found[0].score]
        measured = heart_rate_in(request)
        data: dict[str, Any] = {"entries": [item.entry.id for item in found]}
        if measured:
            data |= {"heart_rate": measured.rate, "units": {"heart_rate": "1/min"}}
        return Answer(
            text=advise(request.text, found, measured),
            data=data,
            confidence=round(min(1.0, found[0].score / SURE_SCORE), 2),
            sources=[
                Source(document=f"first-aid handbook, {item.entry.title}", text=item.entry.source) for item in found
            ],
        )

    return agent


if __name__ == "__main__":
    main(build)
