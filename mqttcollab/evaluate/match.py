"""How well questions find the agent that they belong to, beside trivial baselines and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.examples import ExampleClassifier
from mqttcollab.evaluate.figures import mean, with_intervals
from mqttcollab.evaluate.intents import Question, fleet_of, read_split
from mqttcollab.evaluate.vectors import closest, means
from mqttcollab.runtimes.embedders import load_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_TARGET = 0.05


def evaluate(train: Path, test: Path, *, embedder: Embedder | None = None) -> dict[str, Any]:
    """Make every domain of `train` an agent that knows its own rows, and put the questions of `test` to all.

    `ours` is the orchestrator's classifier once trained, `at_once` the same before: on nearest examples. A gap is
    reported where 5% of the held-out examples would be; rows with a domain for which a gap is reported are false
    gaps. Owner accuracy is over rows with a domain, whether a gap is reported or not.

    Args:
        train: the intent file to learn from; its rows whose text is in `test` are left out.
        test: the one to rate with; rows without a domain belong to nobody. Without any, their recall is None.
        embedder: by default wordllama.

    Raises:
        ConfigError: a file can't be read, or its rows are too few.
    """
    known, asked = read_split(train, test)
    embedder = embedder or load_embedder("wordllama")
    fleet = fleet_of(known)
    agents = np.array([fleet.agents.get(question.domain, "") for question in asked])
    inside = np.array([question.domain is not None for question in asked])
    classifier = ExampleClassifier(embedder)
    classifier.learn(fleet.records)
    at_once = _classified(classifier, asked, agents, inside)
    classifier.train()
    ours = _classified(classifier, asked, agents, inside)

    names, owners = np.unique([fleet.agents[question.domain] for question in known], return_inverse=True)
    vectors, questions = embedder.embed([q.text for q in known]), embedder.embed([q.text for q in asked])
    guesses = np.random.default_rng(0).choice(names, len(asked))
    found = {
        "random": guesses,
        "best_single": np.full(len(asked), max(names, key=lambda name: (agents[inside] == name).sum())),
        "1-NN": names[owners[closest(questions, vectors)[1]]],
        "centroid": names[closest(questions, means(vectors, owners))[1]],
    }
    baselines = {name: _figures(agents == guess, inside, None) for name, guess in found.items()}
    oracle = {"owner_accuracy": 1.0, "oos_recall": 1.0, "false_gap_rate": 0.0}
    return {"ours": ours, "baselines": baselines | {"at_once": at_once}, "oracle": oracle, "n": len(asked)}


def _classified(
    classifier: ExampleClassifier, asked: Sequence[Question], agents: NDArray[np.str_], inside: NDArray[np.bool_]
) -> dict[str, Any]:
    threshold = classifier.threshold(_TARGET)
    gaps = [classifier.gap(question.text).probability > threshold for question in asked]
    owners = [classifier.owners(question.text)[0][0] for question in asked]
    return _figures(np.array(owners) == agents, inside, np.array(gaps))


def _figures(right: NDArray[np.bool_], inside: NDArray[np.bool_], gaps: NDArray[np.bool_] | None) -> dict[str, Any]:
    def figures(rows: NDArray[np.intp]) -> dict[str, float]:
        found = {"owner_accuracy": mean(right[rows], inside[rows])}
        if gaps is not None:
            found["false_gap_rate"] = mean(gaps[rows], inside[rows])
            if not inside.all():
                found["oos_recall"] = mean(gaps[rows], ~inside[rows])
        return found

    return with_intervals(figures, len(inside), ("owner_accuracy", "oos_recall", "false_gap_rate"))
