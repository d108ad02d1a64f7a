"""A linear softmax head over embeddings and hashed words, trained in seconds with numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = Callable[["NDArray[np.intp]"], "NDArray[np.float32]"]

_BATCH = 256
_FIRST, _SECOND, _TINY = np.float32(0.9), np.float32(0.99), np.float32(1e-8)


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How a head is trained.

    Attributes:
        epochs: passes over the rows.
        rate: Adam's step, falling linearly to zero.
        decay: decoupled weight decay.
        seed: of the order of the rows.
    """

    epochs: int = 12
    rate: float = 3e-3
    decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Multinomial logistic regression: logits = rows @ weights + bias.

    Attributes:
        weights: (features, classes).
        bias: (classes,).
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, classes). Unnormalised: their maximum tells known from unknown better than the softmax's."""
        return np.asarray(rows @ self.weights + self.bias, np.float32)


def train_head(
    rows: Rows, width: int, labels: NDArray[np.intp], classes: int, options: HeadOptions | None = None
) -> LinearHead:
    """Train by Adam with decoupled weight decay (Loshchilov and Hutter 2019) on the cross entropy.

    Started at zero and stopped early, so that directions without examples keep small weights: that is
    what keeps the logits of unknown texts low.

    Args:
        rows: gives the (chosen, width) features of the rows chosen, each kind already scaled.
        width: how many features.
        labels: (n,), 0 to classes - 1.
        classes: how many.
        options: how.
    """
    options = options or HeadOptions()
    random = np.random.default_rng(options.seed)
    parameters = [np.zeros((width, classes), np.float32), np.zeros(classes, np.float32)]
    means, squares = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    batches = max(1, len(labels) // _BATCH)
    # Few rows still need enough steps: an agent may have ten examples.
    epochs = max(options.epochs, -(-200 // batches))
    step, steps = 0, epochs * batches
    for _ in range(epochs):
        for chosen in np.array_split(random.permutation(len(labels)), batches):
            step += 1
            gradients = _gradients(parameters, rows(chosen), labels[chosen])
            rate = np.float32(options.rate * (1 - (step - 1) / steps))
            for p, mean, square, gradient in zip(parameters, means, squares, gradients, strict=True):
                mean += (1 - _FIRST) * (gradient - mean)
                square += (1 - _SECOND) * (gradient * gradient - square)
                scale = np.sqrt(square / (1 - _SECOND**step)) + _TINY
                p -= rate * (mean / (1 - _FIRST**step) / scale + np.float32(options.decay) * p)
    return LinearHead(*parameters)


def _gradients(
    parameters: list[NDArray[np.float32]], rows: NDArray[np.float32], labels: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    errors = softmax(rows @ parameters[0] + parameters[1])
    errors[np.arange(len(labels)), labels] -= 1
    errors /= len(labels)
    return rows.T @ errors, errors.sum(axis=0)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return exp(logits) over its sum along the rows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
