"""Examples as vectors, and how close a text comes to those of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.hashing import Grams, HashedTfIdf, SparseRows, grams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

# How much embeddings and words weigh in a row of features; their squares are 2:1.
_EMBEDDING_SCALE, _WORD_SCALE = np.float32(8), np.float32(5.66)
_CANDIDATES = 384
_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class Text:
    """A text, its embedding (dimension,) and its words."""

    text: str
    vector: NDArray[np.float32]
    grams: Grams


def read(embedder: Embedder, texts: Sequence[str]) -> list[Text]:
    """Embed texts and take them apart; a character that UTF-8 can't hold becomes a question mark."""
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    if not clean:
        return []
    vectors = np.nan_to_num(embedder.embed(clean))
    return [Text(text, vector, grams(text)) for text, vector in zip(clean, vectors, strict=True)]


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples: (n, dimension) unit vectors, hashed words, the class of each, and the classes' sizes."""

    texts: Sequence[str]
    hashing: HashedTfIdf
    vectors: NDArray[np.float32]
    words: SparseRows
    classes: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, texts: Sequence[Text], classes: NDArray[np.intp], count: int, width: int) -> Examples:
        """Prepare texts, each of one of `count` classes, with their words hashed to `width` columns."""
        hashing = HashedTfIdf(width)
        found = [text.grams for text in texts]
        hashing.fit_grams(found)
        vectors = np.stack([text.vector for text in texts])
        sizes = np.bincount(classes, minlength=count)
        return cls([text.text for text in texts], hashing, vectors, hashing.transform_grams(found), classes, sizes)

    @property
    def width(self) -> int:
        """How many features a row has."""
        return int(self.vectors.shape[1]) + self.words.width

    def rows(self, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the (len(chosen), width) features of examples."""
        return _features(self.vectors[chosen], self.words.dense(chosen))

    def features(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Return the (len(texts), width) features of other texts."""
        words = self.hashing.transform_grams([text.grams for text in texts])
        return _features(np.stack([text.vector for text in texts]), words.dense(np.arange(len(texts))))

    def closeness(self, row: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """Return how close a row of features is to each class, and its closest example.

        Closeness is the cosine of embeddings plus that of words, 0 to 2, averaged over the three closest examples
        of the class (k-nearest-neighbour detection, Sun et al. 2022); 0 where no example is among the candidates.
        """
        dimension = self.vectors.shape[1]
        cosines = self.vectors @ (row[:dimension] / _EMBEDDING_SCALE)
        if len(cosines) > _CANDIDATES:
            chosen = np.argpartition(cosines, -_CANDIDATES)[-_CANDIDATES:]
        else:
            chosen = np.arange(len(cosines))
        together = cosines[chosen] + self.words.dot(chosen, row[dimension:] / _WORD_SCALE)
        order = np.argsort(-together)
        classes = self.classes[chosen[order]]
        groups = np.argsort(classes, kind="stable")
        starts = np.searchsorted(classes[groups], classes[groups], "left")
        leading = groups[np.arange(len(groups)) - starts < _NEIGHBOURS]
        # A class with fewer candidates than neighbours has them at the edge of the candidates, or no more at all.
        counts = np.bincount(classes[leading], minlength=len(self.sizes))
        sums = np.bincount(classes[leading], together[order][leading], len(self.sizes))
        missing = np.maximum(0, np.minimum(_NEIGHBOURS, self.sizes) - counts)
        found = (sums + missing * float(together[order[-1]])) / np.maximum(1, counts + missing)
        return np.where(counts > 0, found, 0).astype(np.float32), int(chosen[order[0]])


def _features(vectors: NDArray[np.float32], words: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hstack([_EMBEDDING_SCALE * vectors, _WORD_SCALE * words])
