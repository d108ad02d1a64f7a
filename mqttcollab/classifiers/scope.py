"""Whether a text lies in what examples cover, and what it is about: nearest examples at once, a trained head later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.calibration import Combination, fit_combination, sigmoid
from mqttcollab.classifiers.heads import HeadOptions, LinearHead, softmax, train_head
from mqttcollab.classifiers.nearest import Examples, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNALS = ("nearest", "meaning", "words", "margin")
_FOLDS = 5
_LEAST, _LEAST_EACH = 20, 4
_AT_ONCE, _PER_FOLD = 512, 1000
_INSIDE, _NEAR, _FAR = range(3)
# How much rows inside, near misses and far ones count in the calibration: more near ones would cost far ones.
_WEIGHTS = np.array([1 / 2, 1 / 6, 1 / 3])
# Weighs closeness (0 to 2) beside logits where it is said which label is meant.
_NEAR_IN_LABEL = np.float32(4)
# For so few examples that nothing can be held out: the closeness 0.9 of 2 is as likely in as out.
_UNLEARNT = Combination(np.array([6.0]), -5.4)


@dataclass(frozen=True, slots=True)
class ScopeOptions:
    """How scope is judged.

    Attributes:
        out_of_scope: the share of questions expected to be out of scope, which the probabilities assume.
        width: columns of the hashed words.
        head: how the head is trained.
    """

    out_of_scope: float = 0.1
    width: int = 4096
    head: HeadOptions = field(default_factory=HeadOptions)


@dataclass(frozen=True, slots=True)
class Scope:
    """What is known of one text.

    Attributes:
        log_odds: that it is in scope, calibrated.
        scores: (labels,), how much each label is meant, as log odds up to a constant.
        about: (labels,), the probability that the text is about each label; several may be likely.
        shares: (labels,), the same if it were about exactly one.
        closest: the number of the closest example.
        signals: `nearest`, and once trained `meaning`, `words` and `margin`.
    """

    log_odds: float
    scores: NDArray[np.float32]
    about: NDArray[np.float64]
    shares: NDArray[np.float32]
    closest: int
    signals: dict[str, float]

    @property
    def probability(self) -> float:
        """That the text is in scope."""
        return float(sigmoid(np.array(self.log_odds)))


@dataclass(frozen=True, slots=True)
class ScopeModel:
    """Tells known from unknown texts by examples of the known; it never changes, so threads may share it.

    Four signals. `nearest`: the cosine of embeddings plus that of words, averaged over the three closest examples
    of a label (k-nearest-neighbour detection, Sun et al. 2022), of the label where it is largest. `meaning` and
    `words`: what embeddings and what hashed words add to the logit of the likeliest label in a linear softmax head
    over both (the largest logit: Hendrycks et al. 2022); apart, since they deserve different trust. `margin`: how
    far the likeliest label is ahead of the second. They are combined and calibrated on examples of labels, and of
    whole groups of labels, that were held out: no out-of-scope text is ever needed.
    """

    examples: Examples
    options: ScopeOptions
    scope: Combination
    label: Combination
    held_out: NDArray[np.float64]
    touched: float = 0.5
    head: LinearHead | None = None

    def judge(self, text: Text) -> Scope:
        """Judge a text."""
        rows = self.examples.features([text])
        signals, scores, closest = _signals(self.examples, self.head, rows)
        log_odds = self.scope.log_odds(signals)[0] + self._prior
        about = sigmoid(self.label.log_odds(scores[0][:, None].astype(np.float64)))
        shares = softmax(scores if self.head else scores * np.float32(self.scope.weights[0]))[0]
        values = {name: float(value) for name, value in zip(SIGNALS, signals[0], strict=False)}
        return Scope(float(log_odds), scores[0], about, shares, int(closest[0]), values)

    def threshold(self, target: float = 0.05) -> float:
        """Return the probability of being in scope under which this share of held-out examples fell."""
        if not len(self.held_out):
            return 0.5
        return float(sigmoid(np.quantile(self.held_out, [target]) + self._prior)[0])

    @property
    def _prior(self) -> float:
        return float(np.log((1 - self.options.out_of_scope) / self.options.out_of_scope))


def nearest_model(texts: Sequence[Text], labels: NDArray[np.intp], options: ScopeOptions) -> ScopeModel:
    """Judge by nearest examples alone: tens of milliseconds for hundreds of examples, two seconds for 15,000.

    Args:
        texts: at least one.
        labels: (n,) of each, 0 to the number of labels - 1.
        options: how.
    """
    count = int(labels.max()) + 1
    examples = Examples.of(texts, labels, count, options.width)
    model = ScopeModel(examples, options, _UNLEARNT, Combination(np.array([8.0]), -10.0), np.zeros(0))
    if count < 2 or len(texts) < _LEAST:
        return model
    inside, outside, scores, meant = [], [], [], []
    random = np.random.default_rng(options.head.seed)
    parts = _blocks(labels)
    for fold in range(_FOLDS):
        asked = random.permutation(np.flatnonzero(parts == fold))[: _AT_ONCE // 2]
        part = _part(texts, labels, np.flatnonzero(parts != fold), options)
        for row, label in zip(part.features([texts[i] for i in asked]), labels[asked], strict=True):
            found, _ = part.closeness(row)
            inside.append(found.max())
            outside.append(np.delete(found, label).max())
            scores.append(found)
            meant.append(label)
        if len(inside) >= _AT_ONCE:
            break
    signals = np.array(inside + outside, np.float64)[:, None]
    scope = fit_combination(signals, np.repeat([True, False], len(inside)))
    if scope.weights[0] <= 0:
        return model
    held_out = scope.log_odds(signals[: len(inside)])
    label, touched = _fit_label([np.stack(scores)], [np.array(meant)])
    return replace(model, scope=scope, label=label, held_out=held_out, touched=touched)


def trained_model(
    texts: Sequence[Text],
    labels: NDArray[np.intp],
    groups: NDArray[np.intp],
    options: ScopeOptions,
    stopped: Callable[[], bool] = lambda: False,
) -> ScopeModel | None:
    """Train the head and calibrate: seconds, about five times as long as the head alone.

    Args:
        texts: the examples.
        labels: (n,) of each, 0 to the number of labels - 1.
        groups: (n,) of each, whatever number: labels of one group are alike, and those of another far from them.
        options: how.
        stopped: asked now and then whether to give up.

    Returns:
        None if stopped, or if there are too few labels or examples to hold any out: under 5, or 4 a label.
    """
    count = int(labels.max()) + 1
    if count < _FOLDS or len(texts) < _LEAST_EACH * count:
        return None
    grouped = np.unique(groups, return_inverse=True)[1]
    folds = list(_cross_fitted(texts, labels, grouped if grouped.max() + 1 >= _FOLDS else labels, options, stopped))
    if not folds or stopped():
        return None
    signals = np.concatenate([fold.signals for fold in folds])
    kinds = np.concatenate([fold.kinds for fold in folds])
    inside = kinds == _INSIDE
    sizes = np.maximum(np.bincount(kinds, minlength=len(_WEIGHTS)), 1)
    scope = fit_combination(signals, inside, len(kinds) * (_WEIGHTS / sizes)[kinds])
    label, touched = _fit_label([fold.scores for fold in folds], [fold.meant for fold in folds])
    examples = Examples.of(texts, labels, count, options.width)
    head = _train(examples, options.head)
    return ScopeModel(examples, options, scope, label, scope.log_odds(signals[inside]), touched, head)


@dataclass(frozen=True, slots=True)
class _Fold:
    """What was found of n held-out rows: signals (n, 4), scores (n, labels), kinds (n,), the label meant or -1 (n,)."""

    signals: NDArray[np.float64]
    scores: NDArray[np.float32]
    kinds: NDArray[np.intp]
    meant: NDArray[np.intp]


def _cross_fitted(
    texts: Sequence[Text],
    labels: NDArray[np.intp],
    groups: NDArray[np.intp],
    options: ScopeOptions,
    stopped: Callable[[], bool],
) -> Iterator[_Fold]:
    """Judge each fold's rows by what was trained without them."""
    for kept, asked, kinds in _folds(labels, groups, options.head.seed):
        if stopped():
            return
        if len(np.unique(labels[kept])) < 2:
            continue
        part = _part(texts, labels, kept, options)
        rows = part.features([texts[i] for i in asked])
        signals, scores, _ = _signals(part, _train(part, options.head), rows)
        yield _Fold(signals, scores, kinds, np.where(kinds == _INSIDE, labels[asked], -1))


def _folds(
    labels: NDArray[np.intp], groups: NDArray[np.intp], seed: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
    """Yield rows to train on, other rows to ask, and whether what these are about was trained on.

    Each time a fifth of the groups is held out, and of the other groups a fifth of the labels.
    """
    random = np.random.default_rng(seed)
    group_folds = (random.permutation(int(groups.max()) + 1) % _FOLDS)[groups]
    label_folds = (random.permutation(int(labels.max()) + 1) % _FOLDS)[labels]
    parts = _blocks(labels)
    for fold in range(_FOLDS):
        kinds = np.where(group_folds == fold, _FAR, np.where(label_folds == fold, _NEAR, _INSIDE))
        asked = random.permutation(np.flatnonzero(parts == fold))[:_PER_FOLD]
        yield np.flatnonzero((kinds == _INSIDE) & (parts != fold)), asked, kinds[asked]


def _blocks(labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Cut each label's examples into folds of neighbours.

    Who writes examples writes variations of one in a row; in different folds they would make held-out examples
    look easier than questions are.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    places = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    folds = np.empty(len(labels), np.intp)
    folds[order] = (places * _FOLDS // np.repeat(sizes, sizes) + np.repeat(np.arange(len(sizes)), sizes)) % _FOLDS
    return folds


def _part(texts: Sequence[Text], labels: NDArray[np.intp], kept: NDArray[np.intp], options: ScopeOptions) -> Examples:
    return Examples.of([texts[i] for i in kept], labels[kept], int(labels.max()) + 1, options.width)


def _train(examples: Examples, options: HeadOptions) -> LinearHead:
    """Train a head; a label without examples has the logit -inf."""
    present, classes = np.unique(examples.classes, return_inverse=True)
    head = train_head(examples.rows, examples.width, classes, len(present), options)
    weights = np.zeros((examples.width, len(examples.sizes)), np.float32)
    bias = np.full(len(examples.sizes), -np.inf, np.float32)
    weights[:, present], bias[present] = head.weights, head.bias
    return LinearHead(weights, bias)


def _signals(
    examples: Examples, head: LinearHead | None, rows: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.intp]]:
    """Return of each row the signals (n, 1 or 4), how much each label is meant (n, labels), the closest example."""
    near = [examples.closeness(row) for row in rows]
    closeness = np.stack([found for found, _ in near])
    closest = np.array([example for _, example in near])
    nearest = closeness.max(axis=1).astype(np.float64)
    if head is None:
        return nearest[:, None], closeness, closest
    scores = head.logits(rows) + _NEAR_IN_LABEL * closeness
    best = scores.argmax(axis=1)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    split = examples.vectors.shape[1]
    meaning, words = (
        np.einsum("nf,fn->n", rows[:, part], head.weights[part][:, best]) for part in (slice(split), slice(split, None))
    )
    return np.column_stack([nearest, meaning, words, first - second]), scores, closest


def _fit_label(scores: Sequence[NDArray[np.float32]], meant: Sequence[NDArray[np.intp]]) -> tuple[Combination, float]:
    """Calibrate how much a label is meant, over all labels; -1 means that none is.

    Returns:
        The calibration, and the probability from which calling a label meant has the best F1.
    """
    right = [np.arange(part.shape[1]) == label[:, None] for part, label in zip(scores, meant, strict=True)]
    flat = np.concatenate([part.ravel() for part in scores]).astype(np.float64)
    positive = np.concatenate([part.ravel() for part in right])
    present = np.isfinite(flat)
    flat, positive = flat[present], positive[present]
    label = fit_combination(flat[:, None], positive, np.ones(len(flat)))
    order = np.argsort(-flat)
    found = np.cumsum(positive[order])
    best = int((2 * found / (np.arange(1, len(flat) + 1) + found[-1])).argmax())
    return label, float(sigmoid(label.log_odds(flat[order[best : best + 1], None]))[0])
