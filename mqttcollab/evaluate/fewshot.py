"""Fits the few-shot classifier's calibration to simulated fleets, and measures it on fleets of other intents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.calibration import Combination, expected_calibration_error, sigmoid
from mqttcollab.classifiers.calibration_file import FewShotCalibration
from mqttcollab.classifiers.fewshot import EmbeddingMemory
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.fleets import FleetOptions, Sample, background_of, simulate, split_intents
from mqttcollab.evaluate.scoring import auroc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

COSINE_RULE = 0.4
_TESTED = 1 / 2
_LEAST_INTENTS = 30
_STEPS, _RIDGE = 50, 1e-2


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration, and the figures of it and of simple rules on fleets of intents that it was not fitted to."""

    calibration: FewShotCalibration
    figures: dict[str, dict[str, float]]


def calibrate(
    rows: Sequence[Mapping[str, Any]],
    embedder: Embedder,
    target: float,
    options: FleetOptions | None = None,
    about: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fit weights and thresholds to fleets of one half of the intents; measure on fleets of the other half.

    Args:
        rows: of an intent file: `text`, `domain`, `intent`; those without an intent are not used.
        embedder: the calibration is for its model.
        target: the share of in-scope questions that may be taken for gaps, in (0, 0.5].
        options: how fleets are drawn.
        about: kept in the calibration for people.

    Raises:
        ConfigError: too few intents, or a target out of range.
    """
    if not 0 < target <= 0.5:
        raise ConfigError(f"the target is {target:g}; it must be above 0 and at most 0.5")
    options = options or FleetOptions()
    fitted, tested = split_intents(rows, _TESTED, options.seed)
    domains = {intent.domain for intent in (*fitted, *tested)}
    if len(fitted) + len(tested) < _LEAST_INTENTS or len(domains) < 2:
        raise ConfigError(
            f"{len(fitted) + len(tested)} intents with two rows or more in {len(domains)} domains;"
            f" calibration takes at least {_LEAST_INTENTS} intents in 2 domains"
        )
    embed = EmbeddingMemory(embedder, remembered=1_000_000)
    background = background_of([text for intent in fitted for text in intent.examples + intent.questions], embed)
    sample = simulate(fitted, embed, background, options)
    relevance = fit_logistic(sample.signals, sample.touched)
    log_odds = relevance.log_odds(sample.signals)
    covered, uncovered = _covered(sample), _uncovered(sample)
    gap_signals = sample.gap_signals(log_odds)
    gap = fit_logistic(gap_signals[covered | uncovered], uncovered[covered | uncovered])
    handed_over = float(np.quantile(sigmoid(gap.log_odds(gap_signals[covered])), 1 - target))
    threshold = best_threshold(sigmoid(log_odds), sample.touched)
    calibration = FewShotCalibration(
        embedder.model,
        relevance,
        threshold,
        needless_share(sample, sigmoid(log_odds), threshold, target),
        gap,
        handed_over,
        background,
    )
    held_out = simulate(tested, embed, background, replace(options, seed=options.seed + 1))
    figures = measure(calibration, held_out)
    return Fitted(replace(calibration, about={**(about or {}), "target": target, "held_out": figures}), figures)


def fit_logistic(signals: NDArray[np.float64], positive: NDArray[np.bool_]) -> Combination:
    """Maximum likelihood with a slight ridge, by Newton's method; classes weigh as often as they occur.

    Signals may come out negative: a lead or a size corrects the others.
    """
    mean, scale = signals.mean(axis=0), signals.std(axis=0) + 1e-9
    columns = np.column_stack([(signals - mean) / scale, np.ones(len(signals))])
    ridge = _RIDGE * np.eye(columns.shape[1])
    solution = np.zeros(columns.shape[1])
    for _ in range(_STEPS):
        p = sigmoid(columns @ solution)
        hessian = (columns * np.maximum(p * (1 - p), 1e-6)[:, None]).T @ columns + ridge
        step = np.linalg.solve(hessian, columns.T @ (p - positive) + ridge @ solution)
        solution -= step
        if np.abs(step).max() < 1e-6:
            break
    weights = solution[:-1] / scale
    return Combination(weights, float(solution[-1] - mean @ weights))


def best_threshold(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the probability at which taking all from it on has the best F1."""
    order = np.argsort(-probability)
    hits = np.cumsum(positive[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + positive.sum())
    return float(probability[order[int(f1.argmax())]])


def needless_share(sample: Sample, probability: NDArray[np.float64], threshold: float, target: float) -> float:
    """Return the share of the likeliest service's probability that at most `target` of needless services reach.

    Needless is a service over the threshold beside the likeliest one, of a question about one service.
    """
    found = []
    for question in np.flatnonzero(sample.kinds == "one"):
        pairs = sample.question == question
        mine, touched = probability[pairs], sample.touched[pairs]
        needless = mine[~touched & (mine < mine.max()) & (mine >= threshold)]
        found.append(needless.max() / mine.max() if len(needless) else 0.0)
    return float(np.quantile(found, 1 - target)) if found else 0.0


def counted(calibration: FewShotCalibration, sample: Sample, probability: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (pairs,), which services count as touched, as `FewShotClassifier.touched` has it."""
    best = np.maximum.reduceat(probability, sample.starts)[sample.question]
    return (probability >= calibration.relevance_threshold) & (probability >= calibration.beside * best)


def measure(calibration: FewShotCalibration, sample: Sample) -> dict[str, dict[str, float]]:
    """Return the figures of the calibration, of the rule `cosine at least .40` and of the nearest example's service."""
    log_odds = calibration.relevance.log_odds(sample.signals)
    probability = sigmoid(log_odds)
    gap = sigmoid(calibration.gap.log_odds(sample.gap_signals(log_odds)))
    judged = _covered(sample) | _uncovered(sample)
    ours = _figures(sample, counted(calibration, sample, probability), gap, gap >= calibration.gap_threshold)
    ours["ece"] = round(expected_calibration_error(probability, sample.touched), 4)
    ours["gap_ece"] = round(expected_calibration_error(gap[judged], _uncovered(sample)[judged]), 4)
    top = np.maximum.reduceat(sample.cosine, sample.starts)
    nearest = sample.cosine >= top[sample.question]
    return {
        "ours": ours,
        "cosine_0.40": _figures(sample, sample.cosine >= COSINE_RULE, -top, top < COSINE_RULE),
        "1-NN": _figures(sample, nearest, -top, np.zeros(len(top), bool)),
    }


def _covered(sample: Sample) -> NDArray[np.bool_]:
    return np.isin(sample.kinds, ("one", "two"))


def _uncovered(sample: Sample) -> NDArray[np.bool_]:
    return np.isin(sample.kinds, ("near", "far"))


def _figures(
    sample: Sample, chosen: NDArray[np.bool_], gap: NDArray[np.float64], is_gap: NDArray[np.bool_]
) -> dict[str, float]:
    """Return recall and precision of (question, service) pairs and how well gaps are told."""
    covered, uncovered = _covered(sample), _uncovered(sample)
    found = {
        "recall": _share(chosen[sample.touched]),
        "precision": _share(sample.touched[chosen]),
        "gap_auroc": separation(gap[uncovered], gap[covered]),
        "gap_recall": _share(is_gap[uncovered]),
        "handed_over": _share(is_gap[covered]),
        "gap_recall_at_5": _share(gap[uncovered] > np.quantile(gap[covered], 0.95)) if covered.any() else 0.0,
    }
    for kind in ("near", "far"):
        found[f"gap_auroc_{kind}"] = separation(gap[sample.kinds == kind], gap[covered])
    for kind in ("one", "two", "mixed"):
        pairs = sample.kinds[sample.question] == kind
        found[f"recall_{kind}"] = _share(chosen[pairs & sample.touched])
        found[f"precision_{kind}"] = _share(sample.touched[pairs & chosen])
    return {name: round(value, 4) for name, value in found.items()}


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def separation(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the probability that a positive's score is above a negative's (AUROC); 0.5 without either."""
    if not len(positive) or not len(negative):
        return 0.5
    return auroc(np.concatenate([positive, negative]), np.repeat([True, False], [len(positive), len(negative)]))
