"""The calibration of the few-shot classifier as a file: made by `mqttcollab calibrate`, one per embedding model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mqttcollab.classifiers.calibration import Combination
from mqttcollab.classifiers.signals import SIGNALS, Background
from mqttcollab.errors import ConfigError

TYPE = "mqttcollab.fewshot-calibration.v1"
GAP_SIGNALS = ("best", "any")
_COMMAND = "mqttcollab calibrate --embedder NAME --train INTENTS.jsonl --output FILE"


@dataclass(frozen=True, slots=True)
class FewShotCalibration:
    """What turns signals into probabilities, for one embedding model.

    Attributes:
        model: the embedding model.
        relevance: weighs SIGNALS into the log odds that a question touches a service.
        relevance_threshold: the probability from which a service is touched.
        beside: the share of the likeliest service's probability that a further service must have to count as well.
        gap: weighs GAP_SIGNALS into the log odds that nobody covers the question.
        gap_threshold: the probability from which a question is handed over.
        background: what questions in general are like.
        about: command, data, target and figures; for people.
    """

    model: str
    relevance: Combination
    relevance_threshold: float
    beside: float
    gap: Combination
    gap_threshold: float
    background: Background
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's content."""
        content = {
            "type": TYPE,
            "embedding_model": self.model,
            **self.about,
            "relevance": {
                "beside": round(self.beside, 5),
                **_written(self.relevance, SIGNALS, self.relevance_threshold),
            },
            "gap": _written(self.gap, GAP_SIGNALS, self.gap_threshold),
            "background": {
                "rows": self.background.rows,
                "words": dict(self.background.words),
                "mean": [round(float(value), 5) for value in self.background.mean],
            },
        }
        lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def read_calibration(path: Path) -> FewShotCalibration:
    """Read a calibration file.

    Raises:
        ConfigError: it can't be read or is no calibration of this version; the message says what is wrong.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"can't read the calibration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no calibration: not UTF-8; make one with: {_COMMAND}") from None


def shipped_calibration(model: str) -> FewShotCalibration:
    """Return the calibration that comes with the package for an embedding model.

    Raises:
        ConfigError: there is none; the message says how to make one.
    """
    for entry in (resources.files("mqttcollab.classifiers") / "data").iterdir():
        if entry.name == f"{model}.json":
            return _parse(entry.read_text(encoding="utf-8"), entry.name)
    raise ConfigError(f"no calibration comes with embedding model {model!r}; make one with: {_COMMAND}")


def _written(combination: Combination, names: tuple[str, ...], threshold: float) -> dict[str, Any]:
    weights = dict(zip(names, (round(float(weight), 5) for weight in combination.weights), strict=True))
    return {"threshold": round(threshold, 5), "bias": round(combination.bias, 5), "weights": weights}


def _parse(text: str, where: str) -> FewShotCalibration:
    try:
        content = json.loads(text)
        kind = content.get("type") if isinstance(content, dict) else None
        if kind != TYPE:
            raise ValueError(f"its type is {kind!r}, not {TYPE!r}")
        background = content["background"]
        mean = np.array([_number(value) for value in background["mean"]], np.float32)
        words = {str(word): int(count) for word, count in background["words"].items()}
        return FewShotCalibration(
            str(content["embedding_model"]),
            *_read(content["relevance"], SIGNALS),
            _number(content["relevance"]["beside"]),
            *_read(content["gap"], GAP_SIGNALS),
            Background(mean, int(background["rows"]), words),
            {
                key: value
                for key, value in content.items()
                if key not in ("type", "embedding_model", "relevance", "gap", "background")
            },
        )
    except KeyError as error:
        problem = f"{error} is missing"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = str(error)
    raise ConfigError(f"{where} is no calibration: {problem}; make one with: {_COMMAND}")


def _read(part: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Combination, float]:
    if set(part["weights"]) != set(names):
        raise ValueError(f"its weights are {', '.join(part['weights'])}; this version has {', '.join(names)}")
    weights = np.array([_number(part["weights"][name]) for name in names])
    return Combination(weights, _number(part["bias"])), _number(part["threshold"])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
