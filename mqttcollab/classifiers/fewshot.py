"""Which services a question touches, and whether anybody covers it, from a handful of examples of each service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.calibration import sigmoid
from mqttcollab.classifiers.calibration_file import FewShotCalibration, shipped_calibration
from mqttcollab.classifiers.signals import SIGNALS, Closeness, Described, Examples, normal
from mqttcollab.errors import ConfigError
from mqttcollab.messages import Relevance, ServiceRecord, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_REMEMBERED_TEXTS, _REMEMBERED_QUESTIONS = 20_000, 64
_WORDS, _KNOWN = SIGNALS.index("words"), SIGNALS.index("known")
_SHOWN = 80
_CERTAIN = 99.0  # log odds of what needs no weighing


@dataclass(frozen=True, slots=True)
class _Answer:
    closeness: Closeness
    log_odds: NDArray[np.float64]


class FewShotClassifier:
    """Weighs how close a question is to each service's examples, description and words (see `signals`).

    A logistic function per service gives the probability that the question touches it, whatever it is for the
    others; another one, of the best services' numbers, that nobody covers the question. Their weights and
    thresholds come from simulated fleets of other services (`mqttcollab calibrate`); nothing is trained here.

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
        self._services: list[str] = []
        self._examples: Examples | None = None
        self._answers: dict[str, _Answer] = {}

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
        described = {name: service for name, service in _pooled(records).items() if self._usable(service)}
        self._answers = {}
        self._services = list(described)
        background = self.calibration.background
        self._examples = Examples(list(described.values()), self._memory, background) if described else None

    def relevance(self, question: str) -> list[Relevance]:
        """Every service's probability that the question touches its domain, likeliest first."""
        if self._examples is None or not normal(question):
            return [
                Relevance(service=name, score=-_CERTAIN, probability=0.0, reason="the question is empty")
                for name in self._services
            ]
        answer = self._answer(question, self._examples)
        probabilities = sigmoid(answer.log_odds)
        return [
            Relevance(
                service=self._services[i],
                score=float(answer.log_odds[i]),
                probability=float(probabilities[i]),
                reason=f"{self._closest(answer, i)}; touches it with probability {probabilities[i]:.2f}"
                f" (counts from {self.relevance_threshold:.2f})",
            )
            for i in np.argsort(-answer.log_odds, kind="stable")
        ]

    def gap(self, question: str) -> Verdict:
        """The probability that the question is beyond what all records together cover; its score is the log odds."""
        if self._examples is None:
            return Verdict(score=_CERTAIN, probability=1.0, reason="nobody offers anything")
        if not normal(question):
            return Verdict(score=_CERTAIN, probability=1.0, reason="the question is empty")
        answer = self._answer(question, self._examples)
        log_odds = self.calibration.gap.log_odds(gap_signals(answer.log_odds, answer.closeness.signals)[None])
        probability = float(sigmoid(log_odds)[0])
        best = int(answer.log_odds.argmax())
        return Verdict(
            score=float(log_odds[0]),
            probability=probability,
            reason=f"{self._services[best]} comes closest: {self._closest(answer, best)}; nobody covers the question"
            f" with probability {probability:.2f} (a gap from {self.gap_threshold:.2f})",
        )

    def _answer(self, question: str, examples: Examples) -> _Answer:
        if (known := self._answers.get(question)) is not None:
            return known
        closeness = examples.closeness(question)
        answer = _Answer(closeness, self.calibration.relevance.log_odds(closeness.signals))
        if len(self._answers) >= _REMEMBERED_QUESTIONS:
            self._answers.pop(next(iter(self._answers)))
        self._answers[question] = answer
        return answer

    def _closest(self, answer: _Answer, service: int) -> str:
        place, cosine = answer.closeness.closest[service]
        text = self._examples.texts[place] if self._examples is not None else ""
        words = ", ".join(answer.closeness.known[service][:3])
        shared = f", shares {words}" if words else ", shares no word"
        return f"closest is {text[:_SHOWN]!r} (cosine {cosine:.2f}{shared})"

    def _usable(self, service: Described) -> bool:
        return bool(np.isfinite(self._memory([normal(text) for text in service.texts])).all())


def gap_signals(log_odds: NDArray[np.float64], signals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (4,), in the order of GAP_SIGNALS: the two largest log odds, the best services' words and share known."""
    best = np.sort(log_odds)[::-1]
    second = best[1] if len(best) > 1 else best[0] - 4.0
    return np.array([best[0], second, signals[:, _WORDS].max(), signals[:, _KNOWN].max()])


class EmbeddingMemory:
    """Embeds each text once.

    Args:
        embedder: makes the vectors.
        remembered: how many texts; past it all are forgotten.
    """

    def __init__(self, embedder: Embedder, remembered: int = _REMEMBERED_TEXTS) -> None:
        self._embedder, self._remembered = embedder, remembered
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), dimension)."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if missing:
            if len(self._vectors) + len(missing) > self._remembered:
                self._vectors = {}
                missing = list(dict.fromkeys(texts))
            self._vectors.update(zip(missing, self._embedder.embed(missing), strict=True))
        return np.stack([self._vectors[text] for text in texts])


def _pooled(records: Sequence[ServiceRecord]) -> dict[str, Described]:
    """Return what all agents say of each service; one that says nothing is known by its name."""
    pooled: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for record in records:
        descriptions, examples = pooled.setdefault(record.service, ({}, {}))
        descriptions.update(dict.fromkeys(text for text in (record.description,) if normal(text)))
        examples.update(dict.fromkeys(text for text in record.examples if normal(text)))
    return {
        name: Described(tuple(descriptions or ([] if examples else [_spoken(name)])), tuple(examples))
        for name, (descriptions, examples) in pooled.items()
    }


def _spoken(service: str) -> str:
    """Return the name's domain as words: `data.gpt/health/heart-rate` is about `health heart rate`."""
    return service.partition("/")[2].replace("/", " ").replace("-", " ")
