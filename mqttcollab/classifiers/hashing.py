"""Words and characters of texts as hashed TF-IDF rows: what an embedding of the meaning smooths away."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As in the embedders: past it a text is no question any more, and time and memory grow.
_MAX_CHARACTERS = 16384
_WORD = re.compile(r"\w+")
_GRAMS = range(2, 6)
_REMEMBERED_WORDS = 50_000
_BUCKETS = 1 << 18


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Rows mostly zero: row i has values[starts[i]:starts[i + 1]]; a column may repeat, then they add up."""

    width: int
    starts: NDArray[np.int64]
    columns: NDArray[np.uint16]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def dense(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return (len(rows), width) of the rows chosen."""
        flat, lengths = self._places(rows)
        keys = np.repeat(np.arange(len(rows)) * self.width, lengths) + self.columns[flat]
        full = np.bincount(keys, self.values[flat], len(rows) * self.width)
        return full.reshape(len(rows), self.width).astype(np.float32)

    def dot(self, rows: NDArray[np.intp], other: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the products of the rows chosen with a dense vector (width,)."""
        flat, lengths = self._places(rows)
        owners = np.repeat(np.arange(len(rows)), lengths)
        return np.bincount(owners, self.values[flat] * other[self.columns[flat]], len(rows)).astype(np.float32)

    def _places(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(lengths)
        flat = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[rows] - ends + lengths, lengths)
        return flat, lengths


@dataclass(slots=True)
class HashedTfIdf:
    """Signed feature hashing (Weinberger et al. 2009) of words, word pairs and characters 2 to 5 within words.

    Each of the two kinds (words, characters) has sublinear counts, smoothed inverse document frequencies and unit
    length, so the product of two rows is half the words' cosine plus half the characters'. Grams that no example
    has count in the length alone: they make a text less like every example.

    Args:
        width: columns.
    """

    width: int = 2048
    _frequency: NDArray[np.float32] = field(default_factory=lambda: np.zeros(_BUCKETS, np.float32))
    _documents: int = 0
    _words: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def fit(self, texts: Sequence[str]) -> None:
        """Count in how many of the texts each gram stands."""
        self._frequency = np.zeros(_BUCKETS, np.float32)
        self._documents = len(texts)
        for text in texts:
            for hashes in self._hashes(text):
                self._frequency[np.unique(hashes % _BUCKETS)] += 1

    def transform(self, texts: Sequence[str]) -> SparseRows:
        """Return a row per text, of unit length if all its grams are known; empty for a text without any word."""
        parts = [[self._row(hashes) for hashes in self._hashes(text)] for text in texts]
        counts = [sum(len(columns) for columns, _ in part) for part in parts]
        flat = [pair for part in parts for pair in part]
        return SparseRows(
            self.width,
            np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            np.concatenate([columns for columns, _ in flat] or [np.zeros(0, np.uint16)]),
            np.concatenate([values for _, values in flat] or [np.zeros(0, np.float32)]),
        )

    def _row(self, hashes: NDArray[np.int64]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        grams, counts = np.unique(hashes, return_counts=True)
        frequency = self._frequency[grams % _BUCKETS]
        values = (1 + np.log(counts)) * (1 + np.log((1 + self._documents) / (1 + frequency)))
        # A gram of a single example is noise to the others; one of no example counts as strange.
        values[frequency == 1] = 0
        values *= np.where(grams >> 31, 1.0, -1.0) * (np.sqrt(0.5) / max(float(np.linalg.norm(values)), 1e-9))
        seen = frequency > 1
        return ((grams[seen] >> 7) % self.width).astype(np.uint16), values[seen].astype(np.float32)

    def _hashes(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        words = _words(text)
        pairs = [f"{a} {b}" for a, b in pairwise(words)]
        grams = [self._characters(word) for word in words]
        return (
            np.array([_hash(gram) for gram in (*words, *pairs)], np.int64),
            np.concatenate(grams) if grams else np.zeros(0, np.int64),
        )

    def _characters(self, word: str) -> NDArray[np.int64]:
        if (known := self._words.get(word)) is not None:
            return known
        padded = f" {word} "
        grams = [padded[i : i + n] for n in _GRAMS for i in range(max(1, len(padded) - n + 1))]
        hashes = np.array([_hash("#" + gram) for gram in grams], np.int64)
        if len(self._words) < _REMEMBERED_WORDS:
            self._words[word] = hashes
        return hashes


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:_MAX_CHARACTERS].lower())


def _hash(gram: str) -> int:
    return zlib.crc32(gram.encode("utf-8", "replace"))
