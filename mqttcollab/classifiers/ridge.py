"""Standardisation and ridge regression: what trains in a second on a small computer and fits into a JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linear:
    """(x - centre) @ weights + mean.

    Attributes:
        centre: (features,).
        weights: (features,) or (features, targets).
        mean: () or (targets,).
    """

    centre: Floats
    weights: Floats
    mean: Floats

    def __call__(self, x: Floats) -> Floats:
        """Return (n,) or (n, targets) of the (n, features)."""
        return np.asarray((x - self.centre) @ self.weights + self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"centre": self.centre.tolist(), "weights": self.weights.tolist(), "mean": self.mean.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any], features: int, targets: tuple[int, ...] = ()) -> Linear:
        """Return what `to_dict` wrote; raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            array(content["centre"], (features,)),
            array(content["weights"], (features, *targets)),
            array(content["mean"], targets),
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """Brings each feature to mean 0 and deviation 1 and cuts it at `farthest` deviations.

    Attributes:
        mean: (features,).
        factor: (features,), one over the deviation; 0 for a feature that never varied, as it says nothing.
    """

    mean: Floats
    factor: Floats
    farthest: float

    @classmethod
    def of(cls, x: Floats, farthest: float) -> Scale:
        """Return that of the (n, features)."""
        deviation = x.std(axis=0)
        factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9)
        return cls(x.mean(axis=0), factor, farthest)

    def __call__(self, x: Floats) -> Floats:
        """Return (n, features)."""
        return np.asarray(np.clip((x - self.mean) * self.factor, -self.farthest, self.farthest))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"mean": self.mean.tolist(), "factor": self.factor.tolist(), "farthest": self.farthest}

    @classmethod
    def from_dict(cls, content: dict[str, Any], features: int) -> Scale:
        """Return what `to_dict` wrote; raises KeyError, TypeError or ValueError for anything else."""
        farthest = float(array(content["farthest"], ()))
        return cls(array(content["mean"], (features,)), array(content["factor"], (features,)), farthest)


def ridge(x: Floats, y: Floats, penalty: float) -> Linear:
    """Return the ridge regression (Hoerl and Kennard 1970) of y on x, its intercept unpenalised.

    Args:
        x: (n, features).
        y: (n,) or (n, targets).
        penalty: per row.
    """
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - centre
    gram = centred.T @ centred + penalty * len(x) * np.eye(x.shape[1])
    return Linear(centre, np.linalg.solve(gram, centred.T @ (y - mean)), np.asarray(mean))


def array(content: object, shape: tuple[int, ...]) -> Floats:
    """Return finite numbers of this shape; raises ValueError for anything else."""
    try:
        found = np.array(content, float)
    except (TypeError, OverflowError):
        raise ValueError("numbers are expected") from None
    if found.shape != shape or not np.isfinite(found).all():
        raise ValueError(f"finite numbers of shape {shape} are expected, found shape {found.shape}")
    return found
