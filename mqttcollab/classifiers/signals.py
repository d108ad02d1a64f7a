"""How close a question is to each of a few services with few examples each: numbers that a calibration weighs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.hashing import HashedTfIdf

if TYPE_CHECKING:
    from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]

# The largest cosine to a text of the service, to its mean and to its description; how much the most telling words
# speak for it; hashed words and characters; how far the first and the share of words known are above any other
# service's; and how many examples there are: of many, one is close by chance.
SIGNALS = ("example", "centre", "description", "words", "hashed", "lead", "words_lead", "examples")
# Of a longer text the first words say what it is about, as far as anything here can tell.
MAX_CHARACTERS = 4000
_MAX_PARTS, _MAX_WORDS = 12, 64
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPERATOR = re.compile(r"(?<=[\d)])\s*(\*\*|[-+*/^×÷−])\s*(?=[\d(])")
_OPERATORS = {"+": "plus", "-": "minus", "−": "minus", "*": "times", "×": "times", "/": "divided by", "÷": "divided by"}
_WORD = re.compile(r"[^\W_]+")
_PART = re.compile(r"[.?!;:,]+ (?:(?:and|also|then|but) )?| (?:and|also|then|but) ", re.IGNORECASE)
_WIDTH = 2048  # columns of hashed words
_TELLING = 0.4  # weight from which a word is worth naming
_EVIDENCE = 3  # words that speak most for a service


def normal(text: str) -> str:
    """Return the text cut to what counts, every number the same, operators between numbers as words."""
    valid = text[:MAX_CHARACTERS].encode(errors="replace").decode()  # a lone surrogate is no text to an embedder
    cut = " ".join(valid.replace("'", "").replace("’", "").split())
    spelt = _OPERATOR.sub(lambda found: f" {_OPERATORS.get(found[1], 'to the power of')} ", cut)
    return _NUMBER.sub("7", spelt).replace("7%", "7 percent")


def words_of(text: str) -> list[str]:
    """Return the distinct words of a normal text, in order, at most 64."""
    return list(dict.fromkeys(_WORD.findall(text.lower())))[:_MAX_WORDS]


def parts_of(text: str) -> list[str]:
    """Return a normal text and, where it has several clauses of at least two words, each of them too."""
    parts = [part for part in _PART.split(text) if len(_WORD.findall(part)) > 1]
    return [text, *parts[:_MAX_PARTS]] if len(parts) > 1 else [text]


@dataclass(frozen=True, slots=True)
class Background:
    """What questions in general are like.

    Attributes:
        mean: (dimension,), the mean of their embeddings.
        rows: how many there were.
        words: in how many of them each word stands; those that stand in few are left out.
    """

    mean: NDArray[np.float32]
    rows: int
    words: Mapping[str, int]

    def weight(self, word: str) -> float:
        """The word's inverse document frequency, 0 (in every question) to 1 (in none)."""
        return float(1 - np.log1p(self.words.get(word, 0)) / np.log1p(max(1, self.rows)))

    def centred(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, dimension) less what all questions share (Mu and Viswanath 2018), again of unit length."""
        moved = rows - self.mean * np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9), np.float32)


@dataclass(frozen=True, slots=True)
class Described:
    """A service as its records tell it: what it is, what one may ask it, and where only vectors tell that, these.

    A centroid, of unit length, counts as one example of which the words are not known.
    """

    descriptions: tuple[str, ...]
    examples: tuple[str, ...]
    centroids: tuple[tuple[float, ...], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All of it."""
        return (*self.descriptions, *self.examples)


@dataclass(frozen=True, slots=True)
class Closeness:
    """Of one question.

    Attributes:
        signals: (services, signals), in the order of SIGNALS.
        closest: for each service the place of its closest text, and the cosine.
        known: for each service the question's telling words that it has too.
    """

    signals: NDArray[np.float64]
    closest: list[tuple[int, float]]
    known: list[list[str]]


class Examples:
    """The texts of all services as vectors and words.

    Args:
        services: each with one text at least.
        embed: gives rows of unit length; remembers what it has seen.
        background: what to discount.

    Attributes:
        texts: of each row of the vectors; None for a centroid's.
    """

    def __init__(self, services: Sequence[Described], embed: Embed, background: Background) -> None:
        self.texts = [text for service in services for text in (*service.texts, *[None] * len(service.centroids))]
        self._embed, self._background = embed, background
        counts = np.array([len(service.texts) + len(service.centroids) for service in services])
        self._starts = np.cumsum(counts) - counts
        self._ends = np.cumsum(counts)
        normals = [normal(text or "") for text in self.texts]
        told = np.array([text is not None for text in self.texts])
        self._vectors = np.empty((len(told), len(background.mean)), np.float32)
        self._vectors[told] = background.centred(embed([normal(text) for text in self.texts if text is not None]))
        if given := [centroid for service in services for centroid in service.centroids]:
            self._vectors[~told] = background.centred(np.array(given, np.float32))
        sums = np.add.reduceat(self._vectors, self._starts)
        self._centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        self._described = np.concatenate(
            [np.arange(n) < len(service.descriptions) for n, service in zip(counts, services, strict=True)]
        )
        self._sizes = np.log1p([len(service.examples) + len(service.centroids) for service in services])
        self._hashing = HashedTfIdf(_WIDTH)
        self._hashing.fit(normals)
        self._hashed = self._hashing.transform(normals)
        self._words = [
            sorted({word for text in normals[start:end] for word in words_of(text)} or {"7"})
            for start, end in zip(self._starts, self._ends, strict=True)
        ]
        sizes = np.array([len(words) for words in self._words])
        self._word_starts = np.cumsum(sizes) - sizes
        self._word_vectors = embed([word for words in self._words for word in words])

    def closeness(self, question: str) -> Closeness:
        """Compare a question with every service; the question has at least one character that counts."""
        text = normal(question)
        parts = parts_of(text)
        vectors = self._background.centred(self._embed(parts))
        best = (self._vectors @ vectors.T).max(axis=1)
        example = np.maximum.reduceat(best, self._starts)
        spans = zip(self._starts, self._ends, strict=True)
        places = [int(a + best[a:b].argmax()) for a, b in spans]
        centre = (self._centres @ vectors.T).max(axis=1)
        described = np.maximum.reduceat(np.where(self._described, best, 0.0), self._starts)
        hashed = self._hashed.dot(np.arange(len(self.texts)), self._hashing.transform([text]).dense(np.arange(1))[0])
        evidence, share, words = self._by_words(text)
        columns = (
            *(example, centre, described, evidence, np.maximum.reduceat(hashed, self._starts)),
            *(_lead(example), _lead(share), self._sizes),
        )
        closest = [(place, float(best[place])) for place in places]
        return Closeness(np.column_stack(columns).astype(np.float64), closest, words)

    def _by_words(self, text: str) -> tuple[NDArray[np.float64], NDArray[np.float64], list[list[str]]]:
        """Return for each service how much the most telling words speak for it, the share known, and those words."""
        words = words_of(text)
        if not words:
            nothing = np.zeros(len(self._words))
            return nothing, nothing, [[] for _ in self._words]
        weights = np.array([self._background.weight(word) for word in words]) ** 1.5
        near = np.maximum.reduceat(self._embed(words) @ self._word_vectors.T, self._word_starts, axis=1)
        each = np.sort(weights[:, None] * near, axis=0)[-_EVIDENCE:].sum(axis=0) / _EVIDENCE
        share = weights @ near / max(float(weights.sum()), 1e-9)
        telling = [words[i] for i in np.argsort(-weights) if weights[i] >= _TELLING]
        known = [[word for word in telling if word in own] for own in map(set, self._words)]
        return each, share, known


def _lead(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return how far each value is above the largest of the others; 0 where there is no other."""
    if len(values) == 1:
        return np.zeros_like(values)
    first, second = np.argsort(-values)[:2]
    others = np.full(len(values), values[first])
    others[first] = values[second]
    return np.asarray(values - others)
