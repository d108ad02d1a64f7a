"""The committee that estimates what the strong model would gain, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.recovery import route_figures
from mqttcollab.classifiers.ridge import Linear, Scale, array, ridge
from mqttcollab.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.classifiers.ridge import Floats

    Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]

_FOLDS = 7
# Penalties per training row; the last only keeps a committee that never differs from dividing by zero.
_DIRECT_PENALTY = 1.0
_MEANING_PENALTY = 3.0
_SECOND_PENALTY = 0.02
_FINAL_PENALTY = 1e-6
# Standard deviations; what lies beyond counts as this far.
_FARTHEST_ESTIMATE = 2.2
_FARTHEST_MEMBER = 1e6
_MEMBERS = 4
# The two-stage member errs most on groups never seen; the others together hardly ever rank them worse than length.
_SHARES_OF_GROUPED = np.array([0, 1, 1, 1]) / 3


@dataclass(frozen=True, slots=True)
class Committee:
    """The four members' estimates of the gain, and what makes one of them."""

    estimate_scale: Scale
    second: Linear
    direct: Linear
    meaning: Linear
    member_scale: Scale
    shares: Floats
    final: Linear

    def members(self, estimates: Floats, x: Floats, meant: Floats) -> Floats:
        """Return (n, 4)."""
        second = self.second(_with_squares(self.estimate_scale(estimates[:, :2])))
        return np.column_stack([second, self.direct(x), self.meaning(meant), x[:, 0]])

    def __call__(self, estimates: Floats, x: Floats, meant: Floats) -> Floats:
        """Return the gains (n,)."""
        return self.final((self.member_scale(self.members(estimates, x, meant)) @ self.shares)[:, None])

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "estimate_scale": self.estimate_scale.to_dict(),
            "second": self.second.to_dict(),
            "direct": self.direct.to_dict(),
            "meaning": self.meaning.to_dict(),
            "member_scale": self.member_scale.to_dict(),
            "shares": self.shares.tolist(),
            "final": self.final.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], features: int, dimension: int) -> Committee:
        """Return what `to_dict` wrote; raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            Scale.from_dict(content["estimate_scale"], 2),
            Linear.from_dict(content["second"], 5),
            Linear.from_dict(content["direct"], features),
            Linear.from_dict(content["meaning"], dimension),
            Scale.from_dict(content["member_scale"], _MEMBERS),
            array(content["shares"], (_MEMBERS,)),
            Linear.from_dict(content["final"], 1),
        )


def form_committee(
    x: Floats, meant: Floats, estimates: Floats, outcomes: tuple[Floats, Floats], folds: Folds, *, grouped: bool
) -> Committee:
    """Train a committee.

    Args:
        x: (n, features), scaled; the first is the prompt's length.
        meant: (n, dimension), scaled embeddings.
        estimates: (n, 2 or more), of difficulty and gain, each row's by a regression on the folds without it.
        outcomes: (n,) whether the weak and (n,) whether the strong model was right.
        folds: rows inside and outside.
        grouped: the folds are of whole groups.

    Raises:
        ConfigError: no member ranks the folds left out better than chance.
    """
    gain = outcomes[1] - outcomes[0]
    estimate_scale = Scale.of(estimates[:, :2], _FARTHEST_ESTIMATE)
    second = ridge(_with_squares(estimate_scale(estimates[:, :2])), gain, _SECOND_PENALTY)
    members = np.column_stack(
        [
            second(_with_squares(estimate_scale(estimates[:, :2]))),
            out_of_fold(x, gain, _DIRECT_PENALTY, folds),
            out_of_fold(meant, gain, _MEANING_PENALTY, folds),
            x[:, 0],
        ]
    )
    member_scale = Scale.of(members, _FARTHEST_MEMBER)
    members = member_scale(members)
    # How well a member ranks a few groups says little about others.
    shares = _SHARES_OF_GROUPED if grouped else _shares(members, outcomes, [outside for _, outside in folds])
    final = ridge((members @ shares)[:, None], gain, _FINAL_PENALTY)
    direct, meaning = ridge(x, gain, _DIRECT_PENALTY), ridge(meant, gain, _MEANING_PENALTY)
    return Committee(estimate_scale, second, direct, meaning, member_scale, shares, final)


def out_of_fold(x: Floats, y: Floats, penalty: float, folds: Folds) -> Floats:
    """Return estimates of y, each row's by a regression on the folds without it."""
    estimates = np.zeros_like(y)
    for inside, outside in folds:
        estimates[outside] = ridge(x[inside], y[inside], penalty)(x[outside])
    return estimates


def _with_squares(x: Floats) -> Floats:
    first, second = x[:, 0], x[:, 1]
    return np.column_stack([first, second, first**2, first * second, second**2])


def _shares(members: Floats, outcomes: tuple[Floats, Floats], folds: Sequence[NDArray[np.intp]]) -> Floats:
    """Return equal shares, summing to 1, for members that rank folds left out at least half as well as the best one."""
    weak, strong = outcomes
    above = np.zeros(_MEMBERS)
    for fold in folds:
        if strong[fold].sum() <= weak[fold].sum():
            continue  # no gap to recover here
        figures = [route_figures(column, weak[fold], strong[fold]) for column in members[fold].T]
        above += [figure.apgr - 0.5 for figure in figures]
    if above.max() <= 0:
        raise ConfigError("nothing in the routing examples tells when the strong model is worth asking; give more")
    heard = (above >= above.max() / 2).astype(float)
    return np.asarray(heard / heard.sum())


def grouped(groups: Sequence[str | None]) -> bool:
    """Whether there are enough groups for whole ones to be left out."""
    return len(set(groups)) >= 2 * _FOLDS


def group_folds(groups: Sequence[str | None]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield seven times (inside, outside) row indices; whole groups where there are two a fold, else single rows."""
    _, group = np.unique([name or "" for name in groups], return_inverse=True)
    if not grouped(groups):
        group = np.arange(len(groups))
    fold = (np.random.default_rng(0).permutation(int(group.max()) + 1) % _FOLDS)[group]
    for i in range(_FOLDS):
        yield np.flatnonzero(fold != i), np.flatnonzero(fold == i)
