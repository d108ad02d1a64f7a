"""How well cues tell questions of several steps from those of one, and where the shipped weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.calibration import expected_calibration_error
from mqttcollab.classifiers.complexity import CueComplexity
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.files import read_rows, text_of
from mqttcollab.evaluate.scoring import auroc, bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

_JOINTS = (" and ", " and also ", "? ", ". ", " and then ", "? and ", ", ", " but ")
_HELD_OUT = 4  # every fourth row


@dataclass(frozen=True, slots=True)
class Questions:
    """Texts, and whether each takes several steps, (n,)."""

    texts: list[str]
    several: NDArray[np.bool_]


def evaluate(questions: Path, intents: Path, save: Path | None = None) -> dict[str, Any]:
    """Fit the cues on three quarters of the rows, and rate them on the rest.

    Several steps: the questions of a decomposition file, and two single requests of different domains joined.
    One step: the steps there that need no other step, and single requests of an intent file. There are as many
    of either, and of either source.

    Raises:
        ConfigError: a file can't be read or written, or has too few rows.
    """
    split = _split(questions, intents)
    learned, rated = (_sample(*rows) for rows in split)
    ours = CueComplexity.fit(learned.texts, learned.several)
    length = np.array([len(text) for text in rated.texts], float)
    chance = np.full(len(rated.texts), 0.5)
    report = {
        "ours": _figures(ours.probabilities(rated.texts), rated.several, calibrated=True),
        "baselines": {
            "random": _figures(chance, rated.several, calibrated=True),
            "length": _figures(length, rated.several),
        },
        "oracle": _figures(rated.several.astype(float), rated.several, calibrated=True),
        "n": len(rated.texts),
    }
    if save is not None:
        ours.save(save, _provenance(questions, intents, learned, report))
    return report


Rows = tuple[list[str], list[str], list[tuple[str, str]]]


def _split(questions: Path, intents: Path) -> tuple[Rows, Rows]:
    asked: list[list[str]] = [[], []]
    steps: list[list[str]] = [[], []]
    single: list[list[tuple[str, str]]] = [[], []]
    for i, (number, row) in enumerate(read_rows(questions)):
        parts = row.get("decomposition")
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ConfigError(f"{questions}, line {number}: 'decomposition' is missing or no list of texts")
        part = i % _HELD_OUT == 0
        asked[part].append(text_of(questions, number, row, "question"))
        steps[part] += [step for step in parts if "#" not in step and step.strip()]
    for i, (number, row) in enumerate(read_rows(intents)):
        if row.get("domain") is not None:
            domain = text_of(intents, number, row, "domain")
            single[i % _HELD_OUT == 0].append((text_of(intents, number, row, "text"), domain))
    for name, found in ((questions, asked), (questions, steps), (intents, single)):
        if min(map(len, found)) < 10:
            raise ConfigError(f"{name} has too few rows that can be used; some 100 are needed")
    if len({domain for _, domain in single[0]}) < 2 or len({domain for _, domain in single[1]}) < 2:
        raise ConfigError(f"{intents} has one domain; two are needed to join requests")
    return (asked[0], steps[0], single[0]), (asked[1], steps[1], single[1])


def _sample(asked: Sequence[str], steps: Sequence[str], single: Sequence[tuple[str, str]]) -> Questions:
    random = np.random.default_rng(0)
    count = min(len(asked), len(steps))
    joined: list[str] = []
    while len(joined) < count:
        (one, domain), (other, another) = (single[i] for i in random.integers(len(single), size=2))
        if domain != another:
            joined.append(one.rstrip(".?! ") + _JOINTS[int(random.integers(len(_JOINTS)))] + other)
    alone = [single[i][0] for i in random.integers(len(single), size=count)]
    chosen = [steps[i] for i in random.permutation(len(steps))[:count]]
    several = [*asked[:count], *joined]
    return Questions([*several, *chosen, *alone], np.arange(4 * count) < len(several))


def _figures(scores: NDArray[np.float64], several: NDArray[np.bool_], *, calibrated: bool = False) -> dict[str, Any]:
    def over(rows: NDArray[np.intp]) -> dict[str, float]:
        found = {"auroc": auroc(scores[rows], several[rows])}
        if calibrated:
            found["ece"] = expected_calibration_error(scores[rows], several[rows])
        return found

    everything = np.arange(len(scores))
    return {**over(everything), "ci95": bootstrap(over, everything)}


def _provenance(questions: Path, intents: Path, learned: Questions, report: dict[str, Any]) -> dict[str, Any]:
    ours, length = report["ours"], report["baselines"]["length"]
    return {
        "made_by": f"mqttcollab eval complexity --questions {questions.name} --intents {intents.name} --save FILE",
        "rows": len(learned.texts),
        "held_out": {
            "n": report["n"],
            "auroc": round(ours["auroc"], 3),
            "ece": round(ours["ece"], 3),
            "auroc_of_length": round(length["auroc"], 3),
        },
    }
