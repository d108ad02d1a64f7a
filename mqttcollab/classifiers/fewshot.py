"""Which services a question touches, and whether anybody covers it, from a handful of examples of each service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.calibration import sigmoid
from mqttcollab.classifiers.calibration_file import FewShotCalibration, shipped_calibration
from mqttcollab.classifiers.signals import Closeness, Described, Examples, normal
from mqttcollab.errors import ConfigError
from mqttcollab.messages import Relevance, ServiceRecord, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_REMEMBERED_TEXTS, _REMEMBERED_QUESTIONS = 20_000, 64
_SHOWN = 80
_CERTAIN = 99.0  # log odds of what needs no weighing
_CERTAIN_ENOUGH = 30.0  # past it 1 - probability is 0 in floating point


@dataclass(frozen=True, slots=True)
class _Answer:
    closeness: Closeness
    log_odds: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was learned last, and what was asked since: replaced as a whole, so that a thread may learn meanwhile."""

    services: tuple[str, ...] = ()
    examples: Examples | None = None
    answers: dict[str, _Answer] = field(default_factory=dict)


class FewShotClassifier:
    """Weighs how close a question is to each service's examples, description and words (see `signals`).

    A logistic function per service gives the probability that the question touches it, whatever it is for the
    others; another one, of the best services' numbers, that nobody covers the question. Their weights and
    thresholds come from simulated fleets of other services (`mqttcollab calibrate`); nothing is trained here.
    A record without texts counts by its centroid, if that is of the embedder's model, as one example would.

    Args:
        embedder: makes the vectors.
        calibration: of this embedder's model; by default the one that comes with the package.

    Raises:
        ConfigError: there is no calibration for this embedding model, or it is one for another.
    """

    def __init__(self, embedder: Embedder, calibration: FewShotCalibration | None = None) -> None:
        self.calibration = calibration or shipped_calibration(embedder.model)
        made_for = self.calibration.model
        if made_for != embedder.model or len(self.calibration.background.mean) != embedder.dimension:
            raise ConfigError(
                f"the calibration is for embedding model {made_for!r}, the embedder is {embedder.model!r};"
                " make one with: mqttcollab calibrate --embedder NAME --train INTENTS.jsonl"
            )
        self._memory = EmbeddingMemory(embedder)
        self._known = _Known()

    @property
    def relevance_threshold(self) -> float:
        """The probability from which a service counts as touched."""
        return self.calibration.relevance_threshold

    @property
    def gap_threshold(self) -> float:
        """The probability of a gap from which a question is to be handed over."""
        return self.calibration.gap_threshold

    def learn(self, records: Sequence[ServiceRecord]) -> None:
        """Takes these records instead of any before; those of one service are pooled."""
        pooled = _pooled(records, self._memory.embedder)
        described = {name: service for name, service in pooled.items() if self._usable(service)}
        background = self.calibration.background
        examples = Examples(list(described.values()), self._memory, background) if described else None
        self._known = _Known(tuple(described), examples)

    def relevance(self, question: str) -> list[Relevance]:
        """Every service's probability that the question touches its domain, likeliest first."""
        known = self._known
        if known.examples is None or not normal(question):
            return [
                Relevance(service=name, score=-_CERTAIN, probability=0.0, reason="the question is empty")
                for name in known.services
            ]
        answer = self._answer(question, known.examples, known.answers)
        probabilities = sigmoid(answer.log_odds)
        return [
            Relevance(
                service=known.services[i],
                score=float(answer.log_odds[i]),
                probability=float(probabilities[i]),
                reason=f"{_closest(answer, known.examples, i)}; touches it with probability {probabilities[i]:.2f}"
                f" (counts from {self.relevance_threshold:.2f})",
            )
            for i in np.argsort(-answer.log_odds, kind="stable")
        ]

    def touched(self, question: str) -> list[Relevance]:
        """The services that count as touched: likely enough, and not much less likely than the likeliest."""
        found = self.relevance(question)
        least = max([self.relevance_threshold, *(self.calibration.beside * one.probability for one in found[:1])])
        return [one for one in found if one.probability >= least]

    def gap(self, question: str) -> Verdict:
        """The probability that the question is beyond what all records together cover; its score is the log odds."""
        known = self._known
        if known.examples is None:
            return Verdict(score=_CERTAIN, probability=1.0, reason="nobody offers anything")
        if not normal(question):
            return Verdict(score=_CERTAIN, probability=1.0, reason="the question is empty")
        answer = self._answer(question, known.examples, known.answers)
        log_odds = self.calibration.gap.log_odds(gap_signals(answer.log_odds)[None])
        probability = float(sigmoid(log_odds)[0])
        best = int(answer.log_odds.argmax())
        return Verdict(
            score=float(log_odds[0]),
            probability=probability,
            reason=f"of all {known.services[best]} is likeliest: {_closest(answer, known.examples, best)};"
            f" nobody covers it with probability {probability:.2f} (a gap from {self.gap_threshold:.2f})",
        )

    def _answer(self, question: str, examples: Examples, answers: dict[str, _Answer]) -> _Answer:
        if (known := answers.get(question)) is not None:
            return known
        closeness = examples.closeness(question)
        answer = _Answer(closeness, self.calibration.relevance.log_odds(closeness.signals))
        if len(answers) >= _REMEMBERED_QUESTIONS:
            answers.clear()
        answers[question] = answer
        return answer

    def _usable(self, service: Described) -> bool:
        return bool(np.isfinite(self._memory([normal(text) for text in service.texts])).all())


def _closest(answer: _Answer, examples: Examples, service: int) -> str:
    place, cosine = answer.closeness.closest[service]
    words = ", ".join(word[:_SHOWN] for word in answer.closeness.known[service][:3])
    shared = f"shares {words}" if words else "shares no telling word"
    text = examples.texts[place]
    closest = "the centroid of its examples" if text is None else repr(text[:_SHOWN])
    return f"closest is {closest} (cosine {cosine:.2f}, {shared})"


def gap_signals(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2,), in the order of GAP_SIGNALS, of the services' log odds: the best, and those that any is touched."""
    none = float(np.log1p(-sigmoid(np.minimum(log_odds, _CERTAIN_ENOUGH))).sum())
    return np.array([log_odds.max(), np.log(-np.expm1(none)) - none])


class EmbeddingMemory:
    """Embeds each text once.

    Args:
        embedder: makes the vectors.
        remembered: how many texts; past it all are forgotten.
    """

    def __init__(self, embedder: Embedder, remembered: int = _REMEMBERED_TEXTS) -> None:
        self.embedder, self._remembered = embedder, remembered
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), dimension)."""
        vectors = self._vectors
        missing = list(dict.fromkeys(text for text in texts if text not in vectors))
        if len(vectors) + len(missing) > self._remembered:
            vectors = self._vectors = {}  # another thread may still read the old ones
            missing = list(dict.fromkeys(texts))
        if missing:
            vectors.update(zip(missing, self.embedder.embed(missing), strict=True))
        return np.stack([vectors[text] for text in texts])


def _pooled(records: Sequence[ServiceRecord], embedder: Embedder) -> dict[str, Described]:
    """Return what all agents say of each service; one that says nothing is known by its name.

    A record without texts adds its centroid, if that is of the embedder's model.
    """
    pooled: dict[str, tuple[dict[str, None], dict[str, None], dict[tuple[float, ...], None]]] = {}
    for record in records:
        descriptions, examples, centroids = pooled.setdefault(record.service, ({}, {}, {}))
        texts = [text for text in record.examples if normal(text)]
        descriptions.update(dict.fromkeys(text for text in (record.description,) if normal(text)))
        examples.update(dict.fromkeys(texts))
        centroid = record.centroid_for(embedder.model, embedder.dimension)
        if centroid is not None and not texts and not normal(record.description):
            centroids[tuple(centroid)] = None
    return {
        name: Described(tuple(descriptions or ([] if examples else [_spoken(name)])), tuple(examples), tuple(centroids))
        for name, (descriptions, examples, centroids) in pooled.items()
    }


def _spoken(service: str) -> str:
    """Return the name's domain as words: `data.gpt/health/heart-rate` is about `health heart rate`."""
    return service.partition("/")[2].replace("/", " ").replace("-", " ")
