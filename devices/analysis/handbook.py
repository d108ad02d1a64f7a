"""Retrieval from the first-aid handbook: likeness of meaning and shared words, and a clear no below a threshold.

Score of an entry, 0 to 1: 0.4 of the cosine to its closest phrasing, 0.4 of the cosine to all its phrasings
together, 0.2 of the share of the question's word weight that it holds. Word weight is the inverse document
frequency of Robertson and Spärck Jones 1976, as BM25 uses it; a word that no entry knows weighs most, so
that a question about something else scores low. Without an embedder only words count.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mqttcollab.errors import ConfigError

if TYPE_CHECKING:
    from mqttcollab.runtimes import Embedder

_STOP_WORDS = """
a about after all also am an and any are as at be been but by can could did do does doing for from get
gets getting give go goes got had has have having he help her here him his how i if in into is it its just
kind let like make makes may me might my myself need now of on one or our out please she should so some
someone somebody something suddenly tell than that the their them then there these they this to today too
up us very was we were what when where which who why will with would you your i'm it's don't can't won't
isn't doesn't
"""
_STOP = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the handbook; see `data/first_aid.toml`."""

    id: str
    title: str
    when: tuple[str, ...]
    steps: tuple[str, ...]
    emergency: str
    source: str


@dataclass(frozen=True, slots=True)
class Contents:
    """The handbook's entries, and phrasings of what it is not about."""

    entries: tuple[Entry, ...]
    other: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and how well it fits, 0 to 1."""

    entry: Entry
    score: float


def load(path: Path) -> Contents:
    """Read the handbook.

    Raises:
        ConfigError: the file is missing, is no TOML, or an entry lacks something; the message says which.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"handbook {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"handbook {path} is not TOML: {error}") from error
    tables = document.get("entry")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"handbook {path} has no [[entry]]")
    entries = [_entry(path, index, table) for index, table in enumerate(tables, start=1)]
    return Contents(tuple(entries), tuple(document.get("other", {}).get("when", ())))


def _entry(path: Path, index: int, table: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {}
    for field in fields(Entry):
        value = table.get(field.name)
        if not value:
            raise ConfigError(f"handbook {path}, entry {index} ({table.get('id', 'no id')}): {field.name} is missing")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return Entry(**values)


def words(text: str) -> list[str]:
    """Return the content words of `text`, lower case, without common endings."""
    plain = re.findall(r"[a-z][a-z']*", text.lower().replace("’", "'"))
    return [_stem(word) for word in plain if word not in _STOP and len(word) > 1]


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    for ending, least in (
        ("ingly", 4),
        ("iness", 3),
        ("ing", 3),
        ("ies", 3),
        ("ied", 3),
        ("ed", 3),
        ("es", 3),
    ):
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word.removesuffix(ending)
            return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word.removesuffix("e")
    for ending in ("s", "y", "e"):
        if len(word) > 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
    return word


class Handbook:
    """Finds entries for a question.

    Attributes:
        threshold: entries that score less do not count as an answer.
    """

    def __init__(self, contents: Contents, embedder: Embedder | None, threshold: float | None = None) -> None:
        self.entries = entries = contents.entries
        self.threshold = threshold if threshold is not None else 0.3
        self._embedder = embedder
        whole = [" ".join((entry.title, *entry.when)) for entry in entries]
        self._key_words = [set(words(text)) for text in whole]
        self._words = [set(words(" ".join((text, *entry.steps)))) for text, entry in zip(whole, entries, strict=True)]
        known = Counter(word for found in self._key_words for word in found)
        count = len(entries)
        self._weight = {word: math.log(1 + (count - n + 0.5) / (n + 0.5)) for word, n in known.items()}
        self._unknown_weight = math.log(1 + (count + 0.5) / 0.5)
        self._owner = np.repeat(np.arange(count), [1 + len(entry.when) for entry in entries])
        if embedder is not None:
            self._phrases = embedder.embed([phrase for entry in entries for phrase in (entry.title, *entry.when)])
            self._whole = embedder.embed(whole)
            self._other = embedder.embed(contents.other) if contents.other else None

    def find(self, question: str, most: int = 3) -> list[Found]:
        """Return up to `most` entries that reach the threshold, best first; none for a question about other things."""
        if self._is_other(question):
            return []
        ranked = self.rank(question)
        return [found for found in ranked[:most] if found.score >= self.threshold]

    def rank(self, question: str) -> list[Found]:
        """Return every entry with its score, best first."""
        scores = self._score(question)
        order = np.argsort(-scores, kind="stable")
        return [Found(self.entries[index], float(scores[index])) for index in order]

    def _is_other(self, question: str) -> bool:
        if self._embedder is None or self._other is None:
            return False
        asked = self._embedder.embed([question])[0]
        return float((self._other @ asked).max()) > float((self._phrases @ asked).max())

    def _score(self, text: str) -> NDArray[np.float64]:
        shares = np.asarray([self._share(text, index) for index in range(len(self.entries))])
        if self._embedder is None:
            return shares
        asked = self._embedder.embed([text])[0]
        closest = np.zeros(len(self.entries))
        np.maximum.at(closest, self._owner, self._phrases @ asked)
        scores: NDArray[np.float64] = 0.4 * closest + 0.4 * np.clip(self._whole @ asked, 0, 1) + 0.2 * shares
        return scores

    def _share(self, text: str, index: int) -> float:
        """Return how much of the question's word weight the entry holds; words of the steps count half."""
        asked = set(words(text))
        total = sum(self._weight.get(word, self._unknown_weight) for word in asked)
        if not total:
            return 0.0
        held = sum(
            self._weight.get(word, self._unknown_weight) * (1.0 if word in self._key_words[index] else 0.5)
            for word in asked
            if word in self._words[index]
        )
        return held / total
