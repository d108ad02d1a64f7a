"""The chain as a whole, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqttcollab.classifiers.answers import DefaultJudge
from mqttcollab.classifiers.base import AnswerJudge, CapabilityClassifier, ComplexityClassifier, DomainClassifier
from mqttcollab.classifiers.capability import CapabilityMatcher
from mqttcollab.classifiers.complexity import CueComplexity
from mqttcollab.classifiers.domains import AdaptiveClassifier
from mqttcollab.classifiers.skill import SkillBook

if TYPE_CHECKING:
    from mqttcollab.classifiers.calibration_file import FewShotCalibration
    from mqttcollab.runtimes.base import Embedder


@dataclass(frozen=True, slots=True)
class Classifiers:
    """Who says how much a question takes, what it is about, who should do it, and whether an answer can be trusted."""

    complexity: ComplexityClassifier
    domains: DomainClassifier
    capability: CapabilityClassifier
    judge: AnswerJudge


def default_classifiers(embedder: Embedder, calibration: FewShotCalibration | None = None) -> Classifiers:
    """The defaults, with the calibrations that come with the package but for what is given.

    Raises:
        ConfigError: there is none for this embedding model; it says how to make one.
    """
    return Classifiers(
        CueComplexity(), AdaptiveClassifier(embedder, calibration), CapabilityMatcher(SkillBook()), DefaultJudge()
    )
