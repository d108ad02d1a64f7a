"""Words and characters of texts as hashed TF-IDF rows: what an embedding of the meaning smooths away."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As in the embedders: past it a text is no question any more, and time and memory grow.
_MAX_CHARACTERS = 16384
_MAX_WORD = 64
_WORD = re.compile(r"\w+")
_GRAMS = range(2, 6)
_REMEMBERED_WORDS = 20_000
_BUCKETS = 1 << 18
_CHUNK = 1024


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
        sums = np.zeros(len(rows), np.float32)
        some = lengths > 0
        if some.any():
            products = self.values[flat] * other[self.columns[flat]]
            sums[some] = np.add.reduceat(products, (np.cumsum(lengths) - lengths)[some])
        return sums

    def _places(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(lengths)
        flat = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[rows] - ends + lengths, lengths)
        return flat, lengths


@dataclass(frozen=True, slots=True)
class Grams:
    """What stands in a text: (m,) hashes, the weight of how often, and of which kind (0 words, 1 characters)."""

    hashes: NDArray[np.uint32]
    weights: NDArray[np.float32]
    kinds: NDArray[np.int8]


def grams(text: str) -> Grams:
    """Return the words, word pairs and characters 2 to 5 within words of a text."""
    words = [word[:_MAX_WORD] for word in _WORD.findall(text[:_MAX_CHARACTERS].lower())]
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    none = np.zeros(0, np.uint32)
    kinds = (
        np.array([_hash(gram) for gram in (*words, *pairs)], np.uint32),
        np.concatenate([none, *(_characters(word) for word in words)]),
    )
    found = [np.unique(hashes, return_counts=True) for hashes in kinds]
    counts = np.concatenate([counts for _, counts in found])
    return Grams(
        np.concatenate([hashes for hashes, _ in found]),
        (1 + np.log(np.maximum(counts, 1))).astype(np.float32),
        np.repeat(np.arange(2, dtype=np.int8), [len(hashes) for hashes, _ in found]),
    )


@dataclass(slots=True)
class HashedTfIdf:
    """Signed feature hashing (Weinberger et al. 2009) of words, word pairs and characters 2 to 5 within words.

    Each of the two kinds (words, characters) has sublinear counts, smoothed inverse document frequencies and unit
    length, so the product of two rows is half the words' cosine plus half the characters'. Grams that no example
    has count in the length alone: they make a text less like every example.

    Args:
        width: columns, at most 65,536.
    """

    width: int = 2048
    _frequency: NDArray[np.float32] = field(default_factory=lambda: np.zeros(_BUCKETS, np.float32))
    _documents: int = 0

    def fit(self, texts: Sequence[str]) -> None:
        """Count in how many of the texts each gram stands."""
        self.fit_grams([grams(text) for text in texts])

    def transform(self, texts: Sequence[str]) -> SparseRows:
        """Return a row per text, of unit length if all its grams are known; empty for a text without any word."""
        return self.transform_grams([grams(text) for text in texts])

    def fit_grams(self, texts: Sequence[Grams]) -> None:
        """As `fit`, of texts whose grams are there."""
        self._frequency = np.zeros(_BUCKETS, np.float32)
        self._documents = len(texts)
        for chunk in _chunks(texts):
            buckets = np.concatenate([text.hashes for text in chunk]) % _BUCKETS
            self._frequency += np.bincount(buckets, minlength=_BUCKETS).astype(np.float32)

    def transform_grams(self, texts: Sequence[Grams]) -> SparseRows:
        """As `transform`, of texts whose grams are there."""
        parts = [self._rows(chunk) for chunk in _chunks(texts)]
        counts = np.concatenate([np.zeros(1, np.int64), *(part[0] for part in parts)])
        columns = np.concatenate([np.zeros(0, np.uint16), *(part[1] for part in parts)])
        values = np.concatenate([np.zeros(0, np.float32), *(part[2] for part in parts)])
        return SparseRows(self.width, np.cumsum(counts), columns, values)

    def _rows(self, texts: Sequence[Grams]) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.float32]]:
        """Return how many values each text has, their columns and themselves."""
        hashes = np.concatenate([text.hashes for text in texts])
        owners = np.repeat(np.arange(len(texts)), [len(text.hashes) for text in texts])
        frequency = self._frequency[hashes % _BUCKETS]
        values = np.concatenate([text.weights for text in texts])
        values = values * (1 + np.log((1 + self._documents) / (1 + frequency)))
        # A gram of a single example is noise to the others; one of no example counts as strange.
        values[frequency == 1] = 0
        kinds = 2 * owners + np.concatenate([text.kinds for text in texts])
        lengths = np.sqrt(2 * np.bincount(kinds, values * values, 2 * len(texts)))
        values = values * np.where(hashes >> 31, 1.0, -1.0) / np.maximum(lengths[kinds], 1e-9)
        seen = frequency > 1
        columns = ((hashes[seen] >> 7) % self.width).astype(np.uint16)
        return np.bincount(owners[seen], minlength=len(texts)), columns, values[seen].astype(np.float32)


def _chunks(texts: Sequence[Grams]) -> Iterator[Sequence[Grams]]:
    return (texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK))


@functools.lru_cache(_REMEMBERED_WORDS)
def _characters(word: str) -> NDArray[np.uint32]:
    padded = f" {word} "
    found = [padded[i : i + n] for n in _GRAMS for i in range(max(1, len(padded) - n + 1))]
    return np.array([_hash("#" + gram) for gram in found], np.uint32)


def _hash(gram: str) -> int:
    return zlib.crc32(gram.encode("utf-8", "replace"))
