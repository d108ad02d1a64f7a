"""Whether a question takes more than one step, by cues in its words; no model.

Case and the last punctuation are ignored, since what people type or say to a device mostly lacks them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.arithmetic import LONGEST_TEXT
from mqttcollab.classifiers.calibration import Combination, fit_combination, sigmoid
from mqttcollab.errors import ConfigError
from mqttcollab.messages import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = Path(__file__).with_name("complexity.json")
_TYPE = "mqttcollab.complexity.v1"
_AUXILIARY = (
    r"(?:is|are|was|were|am|do|does|did|can|could|will|would|should|shall|has|have|had|may|might"
    r"|isn't|aren't|don't|doesn't|didn't|can't|couldn't|won't|wouldn't|shouldn't)"
)
_ASKING = r"(?:what|what's|whats|who|who's|whose|whom|which|when|when's|where|where's|why|how|how's)"
_DOING = (
    r"(?:tell|give|show|find|get|set|turn|switch|play|call|text|send|add|remove|delete|put|make|change|check|book"
    r"|remind|schedule|cancel|pay|transfer|order|read|open|close|start|stop|help|let|look|list|name|explain|describe"
    r"|calculate|compute|subtract|multiply|divide|compare|translate|convert|measure|count|report|say|write|ask)"
)
_HERE = r"(?:i|i'm|me|my|we|our|us|you|your|it|there|this|here|now|today|tonight|tomorrow|outside)\b"
_CLAUSE = rf"(?:(?:please|also|then|could you|can you|would you)\s+)*(?:{_ASKING}|{_AUXILIARY}|{_DOING})\b"
# Cues, by the phrase with which one is told to a person. What speaks against several steps counts negative.
_FOR: dict[str, str] = {
    "requests joined by a conjunction": rf"(?<!ahead )(?<!try )\b(?:and|or|but|also|plus|then),?\s+{_CLAUSE}",
    "requests after a comma": rf"[,;]\s+{_CLAUSE}",
    "several sentences": rf"[.?!;？。]\s*(?:(?:and|or|but|also|then)\s+)?{_CLAUSE}",
    "an order of events": r"\b(?:then|after that|afterwards|before|after|during|first|finally|since|until)\b",
    "a comparison": r"\b(?:than|compare[ds]?|difference|versus|vs|both|same|equal|exceed|as \w+ as)\b|^which\b.* or\b",
    "a conjunction": r"\b(?:and|or|but|also)\b",
    "what would be": r"^(?:would|could|should|might)\b|\bhypothetical\w*|\btheoretically",
    "a long yes-or-no question": rf"^{_AUXILIARY}\b(?!.*\b{_HERE})(?: \S+){{6}}",
}
_AGAINST: dict[str, str] = {
    "it is about the asker": r"\b(?:i|i'm|i'd|i've|me|my|we|our|us)\b",
    "a plain question": rf"^{_ASKING}\b",
    "an instruction": rf"^(?:(?:please|can you|could you|would you|i want you to)\s+)*{_DOING}\b",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in (_FOR | _AGAINST).items()}
CUES = ("a long question", *_PATTERNS)
_MOST = 3
_REMEDY = "`mqttcollab eval complexity` makes some"


class CueComplexity:
    """The default ComplexityClassifier: Platt-scaled counts of cues; the classes are taken for equally frequent.

    Args:
        combination: weights of `CUES` and a bias; None takes those shipped, which
            `mqttcollab eval complexity --save` makes and the file describes.
    """

    def __init__(self, combination: Combination | None = None) -> None:
        self._combination = combination or load(SHIPPED)

    @classmethod
    def fit(cls, questions: Sequence[str], several: NDArray[np.bool_]) -> CueComplexity:
        """Learn from questions and whether each takes more than one step; no cue ever counts against its meaning.

        Raises:
            ConfigError: one of the two kinds is missing.
        """
        if several.all() or not several.any():
            raise ConfigError("questions of one step and of several are needed, and one kind is missing")
        return cls(fit_combination(cues(questions), several))

    def complexity(self, question: str) -> Verdict:
        """The probability that the question takes more than one step."""
        found = cues([question])
        log_odds = self._combination.log_odds(found)
        told = found[0] * self._combination.weights
        told[0] = 0.0  # every question has a length
        probability = float(sigmoid(log_odds)[0])
        several = probability > 0.5
        names = [CUES[i] for i in np.argsort(-np.abs(told)) if (told[i] > 0 if several else told[i] < 0)][:_MOST]
        steps = "more than one step" if several else "one step"
        reason = f"{steps}: {', '.join(names) or ('a long question' if several else 'no cue of more')}"
        return Verdict(score=float(log_odds[0]), probability=probability, reason=reason)

    def probabilities(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return that probability of each question, (n,)."""
        return sigmoid(self._combination.log_odds(cues(questions)))

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write the weights and where they are from as JSON; raises ConfigError where that can't be."""
        content = {
            "type": _TYPE,
            "provenance": provenance,
            "weights": dict(zip(CUES, np.round(self._combination.weights, 4).tolist(), strict=True)),
            "bias": round(self._combination.bias, 4),
        }
        try:
            path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"can't write {path}: {error.strerror or error}") from None


def cues(questions: Sequence[str]) -> NDArray[np.float64]:
    """Return (n, cues): log(1 + words), and up to 3 of each cue, negative for those against."""
    rows = []
    for question in questions:
        text = re.sub(r"\s+", " ", question[:LONGEST_TEXT].lower().replace("’", "'")).strip(" .?!？。")
        counts = [min(_MOST, sum(1 for _ in pattern.finditer(text))) for pattern in _PATTERNS.values()]
        signed = [-n if name in _AGAINST else n for name, n in zip(_PATTERNS, counts, strict=True)]
        rows.append([math.log1p(text.count(" ") + 1), *signed])
    return np.array(rows, float).reshape(len(rows), len(CUES))


@cache
def load(path: Path) -> Combination:
    """Return the weights in a file that `CueComplexity.save` wrote; raises ConfigError for any other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["type"] != _TYPE or list(content["weights"]) != list(CUES):
            raise ValueError("it is of another version")
        weights = np.array(list(content["weights"].values()), float)
        bias = float(content["bias"])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: no weights of complexity: {error}; `mqttcollab eval complexity` makes some"
        ) from None
    if not (np.isfinite(weights).all() and math.isfinite(bias)):
        raise ConfigError(f"{path}: weights of complexity that are no numbers; {_REMEDY}")
    return Combination(weights, bias)
