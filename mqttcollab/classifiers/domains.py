"""The default domain classifier: a few examples at first, a head trained on many once there are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mqttcollab.classifiers.base import DomainClassifier
from mqttcollab.classifiers.examples import ExampleClassifier, enough
from mqttcollab.classifiers.fewshot import FewShotClassifier
from mqttcollab.messages import Relevance, ServiceRecord, Verdict

if TYPE_CHECKING:
    from mqttcollab.classifiers.calibration_file import FewShotCalibration
    from mqttcollab.runtimes.base import Embedder


class AdaptiveClassifier:
    """Few-shot from the moment a record arrives; a trained head takes over where there are examples enough for one.

    Args:
        embedder: of examples and questions.
        calibration: of the few-shot part; by default the one that comes with the package.

    Raises:
        ConfigError: there is no calibration for this embedding model, or it is one for another.
    """

    def __init__(self, embedder: Embedder, calibration: FewShotCalibration | None = None) -> None:
        self._few = FewShotClassifier(embedder, calibration)
        self._many = ExampleClassifier(embedder)

    @property
    def gap_threshold(self) -> float:
        """The probability from which a question counts as beyond everybody."""
        return self._current.gap_threshold

    def learn(self, records: Sequence[ServiceRecord]) -> None:
        """Takes these records instead of any before."""
        self._few.learn(records)
        self._many.learn(records if enough(records) else ())

    def train(self) -> None:
        """Trains the head, where there are services and examples enough; blocks for seconds."""
        self._many.train()

    def relevance(self, question: str) -> list[Relevance]:
        """Every service's probability that the question touches its domain, likeliest first."""
        return self._current.relevance(question)

    def touched(self, question: str) -> list[Relevance]:
        """The services that count as touched, likeliest first."""
        return self._current.touched(question)

    def gap(self, question: str) -> Verdict:
        """The probability that the question is beyond what all records together cover."""
        return self._current.gap(question)

    @property
    def _current(self) -> DomainClassifier:
        return self._many if self._many.trained else self._few
