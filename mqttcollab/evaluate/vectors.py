"""Means of vectors and the closest one, as baselines need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 512


def means(vectors: NDArray[np.float32], labels: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the mean of each label's vectors, of unit length."""
    sums = np.stack([vectors[labels == label].sum(axis=0) for label in range(int(labels.max()) + 1)])
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9), np.float32)


def closest(
    questions: NDArray[np.float32], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the largest cosine of each question with a vector, and that vector's number."""
    tops, places = [], []
    for start in range(0, len(questions), _BLOCK):  # by blocks, to save memory
        cosines = questions[start : start + _BLOCK] @ vectors.T
        tops.append(cosines.max(axis=1))
        places.append(cosines.argmax(axis=1))
    return np.concatenate(tops).astype(np.float64), np.concatenate(places)
