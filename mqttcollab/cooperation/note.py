"""An answer worth keeping, and which answers are."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mqttcollab.cooperation.sameness import read
from mqttcollab.errors import TopicError
from mqttcollab.messages import Reply, Source
from mqttcollab.topics import check_agent, check_service

LONGEST = 16_384
# Under this key of `data` an answer from somebody's notes says how old it is.
NOTE_KEY = "note"
_FORMATTING = ("Cc", "Cf", "Cs", "Co", "Cn")
_KEPT = "\n\t\u200c\u200d"  # joiners belong to letters in some scripts


@dataclass(slots=True)
class Note:
    """A question and its answer, with where the answer comes from and when.

    Attributes:
        data: the answer for machines.
        sources: where the first who gave the answer had it from.
        agent, service: who gave it first, and under which name.
        via: out of whose notes it came, where it did; the rest is as that one says.
        confidence: the giver's own.
        learned_at: seconds on the clock of the knowledge base that holds the note; earlier than the note was
            taken, where the answer was old by then.
        ttl_s: how long it holds from then on.
        volatile: whether it tells what was the case at a moment: a measurement, something of today.
        uses: how often it was recalled.
    """

    question: str
    text: str
    data: dict[str, Any] | None = None
    sources: list[Source] = field(default_factory=list)
    agent: str | None = None
    service: str | None = None
    via: str | None = None
    confidence: float | None = None
    learned_at: float = 0.0
    ttl_s: float = 0.0
    volatile: bool = False
    uses: int = 0

    @property
    def shareable(self) -> bool:
        """Whether the answer is as right for somebody else: it is not of the moment, nor about who asked."""
        return not self.volatile and not read(self.question).personal

    def quoted(self, age_s: float) -> str:
        """The answer with its source and age, in quotation marks that it can't break out of."""
        who = f"@{self.agent}" if self.agent else "an unnamed agent"
        name = f" ({self.service})" if self.service else ""
        name += f", say the notes of @{self.via}," if self.via else ""
        question, text = (json.dumps(words, ensure_ascii=False) for words in (self.question, self.text))
        return f"{age_in_words(age_s)} {who}{name} answered {question} with {text}"


def refusal(question: str, reply: Reply, least_confidence: float) -> str | None:
    """Why an answer is not worth keeping, for a person; None if it is."""
    text = clean(reply.output or "").strip()
    if reply.status != "ok" or not reply.last:
        return f"it is no whole answer but {'a part' if reply.status == 'partial' else 'an error'}"
    if not text:
        return "it has no text"
    if len(text) > LONGEST:
        return f"it has {len(text)} characters, more than {LONGEST}"
    if reply.missing:
        return f"it lacks {len(reply.missing)} of its parts"
    if reply.confidence is not None and reply.confidence < least_confidence:
        return f"its confidence is {reply.confidence:.2f}, under {least_confidence:g}"
    if not read(question).standalone:
        return "the question can't be understood on its own"
    return None


def is_volatile(question: str, reply: Reply) -> bool:
    """Whether a reply holds for the moment only: data had a part in it, or the question asks about a moment."""
    return read(question).momentary or any(name.startswith("data.gpt/") for name in _services(reply))


def unpack(data: dict[str, Any] | None) -> tuple[dict[str, Any] | None, float | None, float | None]:
    """Data without the word about its age; age and time left in seconds, None where it is no note of another's."""
    note = (data or {}).get(NOTE_KEY)
    if data is None or not isinstance(note, dict):
        return data, None, None
    age_s, left_s = note.get("age_s"), note.get("left_s")
    if not isinstance(age_s, int | float) or not isinstance(left_s, int | float):
        return data, None, None
    return {name: value for name, value in data.items() if name != NOTE_KEY} or None, max(0.0, age_s), left_s


def _services(reply: Reply) -> Iterator[str]:
    yield reply.service or ""
    yield from (source.service or "" for source in reply.sources)
    yield from (step.service for step in reply.steps)


def clean(text: str) -> str:
    """A text without control characters, invisible ones, and those that turn the direction of writing."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in _FORMATTING)


def clean_data(value: Any) -> Any:
    """What a map or list from a peer holds, its texts cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): clean_data(item) for name, item in value.items()}
    return [clean_data(item) for item in value] if isinstance(value, list | tuple) else value


def clean_source(source: Source) -> Source:
    """A source with its texts cleaned, and without a name of an agent or service that is none: names stand unquoted."""
    fields = clean_data(source.model_dump(exclude_none=True))
    return Source(
        **fields | {"agent": _valid(source.agent, check_agent), "service": _valid(source.service, check_service)}
    )


def _valid(name: str | None, check: Callable[[str], str]) -> str | None:
    with suppress(TopicError):
        return check(name or "")
    return None


def age_in_words(age_s: float) -> str:
    """`just now`, `5 minutes ago`, `2 days ago`."""
    for seconds, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if age_s >= seconds:
            count = int(age_s // seconds)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now" if age_s < 5 else f"{int(age_s)} seconds ago"
