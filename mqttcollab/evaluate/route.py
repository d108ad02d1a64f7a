"""How well the router decides between a weak and a strong model, beside trivial baselines and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.calibration import expected_calibration_error
from mqttcollab.classifiers.committee import group_folds
from mqttcollab.classifiers.prompts import answer_features
from mqttcollab.classifiers.recovery import route_figures
from mqttcollab.classifiers.router import LEAST_EXAMPLES, RouteExample, Router, Seen, see
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.files import flag_of, optional_text, read_rows, text_of
from mqttcollab.evaluate.scoring import bootstrap
from mqttcollab.runtimes.embedders import load_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

    Floats = NDArray[np.float64]
    Rows = NDArray[np.intp]

# What a token of Mixtral 8x7B cost, in tokens of GPT-4 (Ong et al. 2024: 0.24 and 24.7 USD a million).
WEAK_COST = 0.01


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores of test rows, higher for what goes to the strong model, and whether the weak one was called first."""

    scores: Floats
    reads: bool = False
    p_weak: Floats | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """Examples, what was seen of them, and which of them to learn from and to rate with."""

    examples: Sequence[RouteExample]
    seen: Seen
    inside: Rows
    outside: Rows
    reads: bool
    embedder: Embedder

    @property
    def train(self) -> list[RouteExample]:
        """Those to learn from."""
        return [self.examples[i] for i in self.inside]

    @property
    def test(self) -> list[RouteExample]:
        """Those to rate with."""
        return [self.examples[i] for i in self.outside]


Ranker = Callable[[Trial], Ranking]


def read_examples(path: Path) -> list[RouteExample]:
    """Return the rows of a routing file (JSONL): prompt, weak_correct, strong_correct, maybe weak_answer and subject.

    Raises:
        ConfigError: a row can't be read; says which.
    """
    return [
        RouteExample(
            text_of(path, number, row, "prompt"),
            flag_of(path, number, row, "weak_correct"),
            flag_of(path, number, row, "strong_correct"),
            optional_text(path, number, row, "weak_answer"),
            optional_text(path, number, row, "subject"),
        )
        for number, row in read_rows(path)
    ]


def evaluate(
    train: Path,
    test: Path | None = None,
    *,
    weak_cost: float = WEAK_COST,
    read_answers: bool = True,
    save: Path | None = None,
) -> dict[str, Any]:
    """Train the orchestrator's router and rate it and the baselines.

    Args:
        train: the routing file to learn from; its rows whose prompt is in `test` are left out.
        test: the one to rate with; None cross-validates over `train`, whole subjects at a time where there are enough.
        weak_cost: the price of a weak call in strong calls, charged to whoever reads answers.
        read_answers: whether the weak model's answers may be read, where all rows have one.
        save: write the router there that learned from all of `train` that was not rated with.

    Raises:
        ConfigError: a file can't be read or written, or its rows are too few or too alike.
    """
    if not 0 <= weak_cost <= 1:
        raise ConfigError(f"the weak model's cost is {weak_cost:g}; it is given in strong calls, from 0 to 1")
    examples = read_examples(train)
    known = np.arange(len(examples))
    if test is not None:
        examples += read_examples(test)
    folds = _folds(examples, known, train, test)
    rated = [examples[i] for _, outside in folds for i in outside]
    learned = [examples[i] for i in (known if test is None else folds[0][0])]
    _check_gap(learned, train)
    _check_gap(rated, test or train)
    reads = read_answers and all(e.weak_answer is not None for e in examples)
    embedder = load_embedder("wordllama")
    seen = see([e.prompt for e in examples], [e.weak_answer for e in examples] if reads else None, embedder)
    trials = [Trial(examples, seen, *fold, reads, embedder) for fold in folds]
    report = _report({name: _joined(map(rank, trials)) for name, rank in RANKERS.items()}, rated, weak_cost)
    if save is not None:
        Router.fit(learned, embedder, read_answers=reads).save(save)
    return report


def _folds(examples: Sequence[RouteExample], known: Rows, train: Path, test: Path | None) -> list[tuple[Rows, Rows]]:
    """Return rows to learn from and to rate with; no prompt is in both."""
    if test is not None:
        rated = np.arange(len(known), len(examples))
        known = _others(examples, known, rated)
        if len(known) < LEAST_EXAMPLES:
            raise ConfigError(f"{train} has {len(known)} prompts that aren't in {test}; {LEAST_EXAMPLES} are needed")
        return [(known, rated)]
    if len(known) < 2 * LEAST_EXAMPLES:
        raise ConfigError(f"{train} has {len(known)} rows; without --test {2 * LEAST_EXAMPLES} are needed")
    return [(_others(examples, *fold), fold[1]) for fold in group_folds([e.group for e in examples])]


def _others(examples: Sequence[RouteExample], inside: Rows, outside: Rows) -> Rows:
    """Return the rows inside whose prompt isn't outside as well."""
    rated = {examples[i].prompt for i in outside}
    return np.array([i for i in inside if examples[i].prompt not in rated], np.intp)


def _check_gap(examples: Sequence[RouteExample], path: Path) -> None:
    weak, strong = _outcomes(examples)
    if strong.sum() <= weak.sum():
        raise ConfigError(
            f"{path}: the strong model is right {strong.sum():.0f} times and the weak one {weak.sum():.0f} times in "
            f"{len(examples)} rows; there is no gap to recover"
        )


def by_router(trial: Trial) -> Ranking:
    """The router that the orchestrator runs."""
    known = trial.seen.rows(trial.inside)
    router = Router.fit(trial.train, trial.embedder, read_answers=trial.reads, seen=known)
    decisions = router.decide_seen(trial.seen.rows(trial.outside))
    gains, chances = np.array([d.gain for d in decisions]), np.array([d.p_weak for d in decisions])
    return Ranking(gains, trial.reads, chances)


def by_chance(trial: Trial) -> Ranking:
    """All scores equal, that is, random in expectation; the weak model's share of right answers as its chance."""
    share = float(np.mean([e.weak_correct for e in trial.train]))
    return Ranking(np.zeros(len(trial.test)), p_weak=np.full(len(trial.test), share))


def by_length(trial: Trial) -> Ranking:
    """Long prompts go to the strong model."""
    return Ranking(np.array([len(e.prompt) for e in trial.test], float))


def by_domain(trial: Trial) -> Ranking:
    """The mean gain of the prompt's subject in training, above that of all; 0 where it was never seen."""
    gains: dict[str | None, list[int]] = {}
    for e in trial.train:
        gains.setdefault(e.group, []).append(e.strong_correct - e.weak_correct)
    overall = np.mean([gain for values in gains.values() for gain in values])
    means = {group: float(np.mean(values) - overall) for group, values in gains.items()}
    return Ranking(np.array([means.get(e.group, 0.0) for e in trial.test]))


def by_best_feature(trial: Trial) -> Ranking:
    """The one feature, with its sign, that ranks the training rows best."""
    known, asked = trial.seen.x[trial.inside], trial.seen.x[trial.outside]
    weak, strong = _outcomes(trial.train)
    figures = np.array([route_figures(column, weak, strong).apgr for column in known.T]) - 0.5
    best = int(np.argmax(np.abs(figures)))
    read_first = trial.reads and trial.seen.names[best] in answer_features("", "")
    sign = np.sign(figures[best])
    below = np.searchsorted(np.sort(sign * known[:, best]), sign * asked[:, best])
    return Ranking(below / len(known), read_first)  # shares, so that folds with other features can be joined


def by_neighbour(trial: Trial) -> Ranking:
    """The gain of the training prompt nearest in meaning."""
    known, asked = trial.seen.meant[trial.inside], trial.seen.meant[trial.outside]
    weak, strong = _outcomes(trial.train)
    parts = np.array_split(asked, -(-len(asked) // 500))
    return Ranking(np.concatenate([(strong - weak)[(part @ known.T).argmax(axis=1)] for part in parts]))


RANKERS: dict[str, Ranker] = {
    "ours": by_router,
    "random": by_chance,
    "length": by_length,
    "domain_mean": by_domain,
    "best_single": by_best_feature,
    "1-NN": by_neighbour,
}


def _outcomes(examples: Sequence[RouteExample]) -> tuple[Floats, Floats]:
    return np.array([e.weak_correct for e in examples], float), np.array([e.strong_correct for e in examples], float)


def _joined(parts: Iterator[Ranking]) -> Ranking:
    rankings = list(parts)
    chances = [ranking.p_weak for ranking in rankings if ranking.p_weak is not None]
    scores = np.concatenate([ranking.scores for ranking in rankings])
    return Ranking(scores, any(ranking.reads for ranking in rankings), np.concatenate(chances) if chances else None)


def _report(rankings: dict[str, Ranking], test: Sequence[RouteExample], weak_cost: float) -> dict[str, Any]:
    weak, strong = _outcomes(test)
    found = {name: _figures(ranking, weak, strong, weak_cost) for name, ranking in rankings.items()}
    oracle = _figures(Ranking(strong - weak), weak, strong, weak_cost)
    return {"ours": found.pop("ours"), "baselines": found, "oracle": oracle, "n": len(test)}


def _figures(ranking: Ranking, weak: Floats, strong: Floats, weak_cost: float) -> dict[str, Any]:
    """Return apgr, cpt50, cpt80 and ece (None without probabilities), with 95% bootstrap intervals in `ci95`."""
    cost = weak_cost if ranking.reads else 0.0

    def over(rows: Rows) -> dict[str, float]:
        found = route_figures(ranking.scores[rows], weak[rows], strong[rows], weak_cost=cost).as_dict()
        if ranking.p_weak is not None:
            found["ece"] = expected_calibration_error(ranking.p_weak[rows], weak[rows] > 0)
        return found

    everything = np.arange(len(weak))
    return {**over(everything), "ci95": bootstrap(over, everything)}
