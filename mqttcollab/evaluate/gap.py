"""How well questions that no example covers are recognised, beside single signals, trivial baselines and the oracle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.examples import ExampleClassifier
from mqttcollab.classifiers.hashing import HashedTfIdf
from mqttcollab.classifiers.heads import HeadOptions, train_head
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.figures import scope_figures
from mqttcollab.evaluate.intents import Question, fleet_of, held_out_intents, read_split
from mqttcollab.evaluate.vectors import closest, means
from mqttcollab.runtimes.embedders import load_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_TIMED = 200
_WORDS = 2048
_SINGLE = ("1-NN", "linear_embeddings", "linear_tfidf")


def evaluate(train: Path, test: Path, *, near: bool = False, embedder: Embedder | None = None) -> dict[str, Any]:
    """Train the orchestrator's classifier on the records of a fleet that knows `train`, and rate it with `test`.

    `best_single` is the best of nearest example, linear head on embeddings and linear head on TF-IDF by AUROC;
    `our_head` is the classifier's own head without the rest. Rows with a domain that `train` hasn't are in scope.

    Args:
        train: the intent file to learn from; its rows whose text is in `test` are left out.
        test: the one to rate with; its rows without a domain are out of scope. Without any, AUROC and recall are None.
        near: a quarter of each domain's intents is left out of `train`, and out of scope in place of those.
        embedder: by default wordllama.

    Raises:
        ConfigError: a file can't be read, or its rows are too few.
    """
    known, asked = read_split(train, test)
    held = held_out_intents(known) if near else set()
    if near:
        known = [question for question in known if (question.domain, question.intent) not in held]
        asked = [question for question in asked if question.domain is not None]
        if not held:
            raise ConfigError(f"{train} has no domain with four intents, of which one could be held out")
    inside = np.array([q.domain is not None and (q.domain, q.intent) not in held for q in asked])
    embedder = embedder or load_embedder("wordllama")
    ours, head = _ours(known, asked, inside, embedder)
    baselines = _trivial(known, asked, inside, embedder) | _linear(known, asked, inside, embedder)
    single = max(_SINGLE, key=lambda name: baselines[name]["auroc"] or 0.0)
    baselines |= {"our_head": head, "best_single": baselines[single]}
    oracle = {"auroc": 1.0, "oos_recall_at_5": 1.0, "in_scope_accuracy": 1.0, "ece": 0.0, "ms_per_query": None}
    for found in baselines.values():
        found["ms_per_query"] = None
    return {"ours": ours, "baselines": baselines, "oracle": oracle, "n": len(asked)}


def _ours(
    known: Sequence[Question], asked: Sequence[Question], inside: NDArray[np.bool_], embedder: Embedder
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of the classifier and of its head alone."""
    fleet = fleet_of(known)
    classifier = ExampleClassifier(embedder)
    classifier.learn(fleet.records)
    classifier.train()
    gaps = [classifier.gap(question.text).probability for question in asked]
    named = [classifier.relevance(question.text)[0].service for question in asked]
    right = np.array([fleet.services.get((q.domain, q.intent)) == name for q, name in zip(asked, named, strict=True)])
    ours = scope_figures(1 - np.array(gaps), inside, right, calibrated=True)
    times = []
    for question in asked[-_TIMED:]:
        started = time.process_time()
        classifier.gap(question.text)
        times.append(time.process_time() - started)
    ours["ms_per_query"] = float(np.median(times)) * 1000
    scopes = [classifier.judge(question.text) for question in asked]
    logits = [scope.signals.get("meaning", 0.0) + scope.signals.get("words", 0.0) for scope in scopes if scope]
    return ours, scope_figures(np.array(logits), inside, right)


def _trivial(
    known: Sequence[Question], asked: Sequence[Question], inside: NDArray[np.bool_], embedder: Embedder
) -> dict[str, dict[str, Any]]:
    intents, labels = _labels(known)
    truth = np.array([intents.get((q.domain, q.intent), -1) for q in asked])
    vectors, questions = embedder.embed([q.text for q in known]), embedder.embed([q.text for q in asked])
    domains = np.unique([q.domain or "" for q in known], return_inverse=True)[1]
    near, nearest = closest(questions, vectors)
    to_domain, _ = closest(questions, means(vectors, domains))
    to_intent, intent = closest(questions, means(vectors, labels))
    random = np.random.default_rng(0)
    guesses = random.integers(len(intents), size=len(asked))
    lengths = np.array([len(question.text) for question in asked], np.float64)
    return {
        "random": scope_figures(random.random(len(asked)), inside, guesses == truth),
        "length": scope_figures(-lengths, inside),
        "domain_mean": scope_figures(to_domain, inside),
        "centroid": scope_figures(to_intent, inside, intent == truth),
        "1-NN": scope_figures(near, inside, labels[nearest] == truth),
    }


def _linear(
    known: Sequence[Question], asked: Sequence[Question], inside: NDArray[np.bool_], embedder: Embedder
) -> dict[str, dict[str, Any]]:
    """Return the figures of the largest logit of a linear head on either kind of features."""
    intents, labels = _labels(known)
    truth = np.array([intents.get((q.domain, q.intent), -1) for q in asked])
    texts, questions = [q.text for q in known], [q.text for q in asked]
    vectors, asked_vectors = 8 * embedder.embed(texts), 8 * embedder.embed(questions)
    hashing = HashedTfIdf(_WORDS)
    hashing.fit(texts)
    words, asked_words = hashing.transform(texts), hashing.transform(questions)
    longer = HeadOptions(epochs=20, rate=2e-3)
    heads = {
        "linear_embeddings": (
            train_head(lambda rows: vectors[rows], vectors.shape[1], labels, len(intents), longer),
            asked_vectors,
        ),
        "linear_tfidf": (
            train_head(lambda rows: 8 * words.dense(rows), _WORDS, labels, len(intents)),
            8 * asked_words.dense(np.arange(len(asked))),
        ),
    }
    logits = {name: head.logits(rows) for name, (head, rows) in heads.items()}
    return {
        name: scope_figures(found.max(axis=1).astype(np.float64), inside, found.argmax(axis=1) == truth)
        for name, found in logits.items()
    }


def _labels(known: Sequence[Question]) -> tuple[dict[tuple[str | None, str | None], int], NDArray[np.intp]]:
    """Return the number of each intent, and of each question's."""
    numbers: dict[tuple[str | None, str | None], int] = {}
    labels = [numbers.setdefault((question.domain, question.intent), len(numbers)) for question in known]
    return numbers, np.array(labels)
