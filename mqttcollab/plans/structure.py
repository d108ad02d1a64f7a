"""Which structure a yes-or-no question's decomposition has (how many steps, which need which), learned from examples.

StrategyQA (Geva et al. 2021) is such a set of examples. It knows only questions like its examples, and says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.errors import ConfigError
from mqttcollab.plans.plan import references

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMAT = "mqttcollab.structure.v1"
LEAST_EXAMPLES = 50
_PENALTY = 0.6  # per training row
_STRUCTURES = 14  # so many cover 97% of the decompositions of StrategyQA
# What a wrong step count and a superfluous reference cost, in references found.
_COUNT_COST, _REFERENCE_COST = 1.0, 0.5
# A form of asking that fewer of the examples have is not theirs.
_RARE = 0.01
_LEAST_DEVIATION = 0.02  # of a cue; one that no example has must not outweigh all others

_CUES: Mapping[str, str] = {
    "comparison": r"\b\w+er than\b|\bmore\b|\bless\b|\bfewer\b|\bthan\b",
    "time": r"before|after|during|\bever\b|prior|\bwhen\b|alive|contemporar|born|\bera\b|century|year",
    "capacity": r"enough|\bfit|cover|fill|afford|last|span|exceed|outnumber|reach|hold|beat|defeat|lift",
    "number": r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|hundred|million|dozen)\b",
    "would": r"^would",
    "could": r"^could",
    "did": r"^did",
    "be": r"^(?:is|are|was|were)\b",
    "do": r"^(?:do|does)\b",
    "can": r"^can\b",
    "hypothetical": r"hypothetical|theoretical",
    "and": r"\band\b",
    "or": r"\bor\b",
    "if": r"\bif\b",
    "for": r"\bfor\b",
    "by": r"\bby\b",
    "with": r"\bwith\b",
    "sameness": r"\bboth\b|same|similar|share|in common|related|each other",
    "possession": r"'s\b|’s",
    "quantity": r"\ball\b|every|most|\bany\b",
    "likelihood": r"likely|typical|usually|possible|common",
    "compatibility": r"compatible|safe|\beat|allowed|legal|illegal|appropriate|suitable",
    "members": r"member",
    "relative clause": r"\b(?:who|that|which)\b",
    "superlative": r"\b\w+est\b|first|last|largest",
}
_CUE_PATTERNS = tuple(re.compile(pattern) for pattern in _CUES.values())
_NAME = re.compile(r"[A-Z][\w'’.-]*(?:\s+(?:of |the |de |and )?[A-Z][\w'’.-]*)*")
# Who asks, and here and now: what measuring devices are asked, encyclopedias are not. ("I" is also a king's number.)
_SITUATED = re.compile(r"^\w+ (i)\b|\b(my|me|we|our|here|outside|now|currently|current|tonight)\b")


_OPEN = re.compile(
    r"(?:please|what|who|whom|whose|where|when|why|how|which|tell|show|give|find|calculate|compute|explain|describe"
    r"|measure|check|compare|list|multiply|divide|add|subtract|write|name)(?:['’]s)?$"
)


@dataclass(frozen=True, slots=True)
class Structure:
    """How many steps, and the pairs (i, j) where step i needs the result of step j."""

    count: int
    edges: frozenset[tuple[int, int]] = frozenset()


def structure_of(steps: Sequence[str]) -> Structure:
    """Return the structure of a decomposition given as texts; references forward or beyond it are left out."""
    edges = {(i, j) for i, text in enumerate(steps, 1) for j in references(text) if 1 <= j < i}
    return Structure(len(steps), frozenset(edges))


@dataclass(frozen=True, slots=True)
class StructureModel:
    """A ridge regression from a question's cues to the structures of decompositions, and what it knows.

    Attributes:
        structures: the commonest of the examples.
        mean, deviation: (cues,) of the examples.
        share: (structures,) of the examples.
        weights: (cues, structures).
        openers: the words with which examples begin.
        situated: words such as "my" and "now" that examples use.
        reach: how far, in mean squared deviations, the strangest example is from their mean.
    """

    structures: tuple[Structure, ...]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    share: NDArray[np.float64]
    weights: NDArray[np.float64]
    openers: frozenset[str]
    situated: frozenset[str]
    reach: float

    @classmethod
    def train(cls, examples: Sequence[tuple[str, Sequence[str]]]) -> StructureModel:
        """Learn from questions with their decompositions, at least 50; takes a second for thousands.

        Raises:
            ConfigError: there are too few examples.
        """
        if len(examples) < LEAST_EXAMPLES:
            raise ConfigError(
                f"{len(examples)} decompositions are too few to learn from; give at least {LEAST_EXAMPLES}"
            )
        found = [structure_of(steps) for _, steps in examples]
        structures = tuple(each for each, _ in Counter(found).most_common(_STRUCTURES))
        x = np.array([_cues(question) for question, _ in examples])
        y = np.array([[float(each == one) for one in structures] for each in found])
        mean, deviation, share = x.mean(axis=0), np.maximum(x.std(axis=0), _LEAST_DEVIATION), y.mean(axis=0)
        scaled = (x - mean) / deviation
        gram = scaled.T @ scaled + _PENALTY * len(x) * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, scaled.T @ (y - share))
        openers = Counter(_opener(question) for question, _ in examples)
        situated = Counter(word for question, _ in examples for word in _situated(question))
        return cls(
            structures,
            mean,
            deviation,
            share,
            weights,
            frozenset(word for word, count in openers.items() if count >= _RARE * len(examples)),
            frozenset(word for word, count in situated.items() if count >= _RARE * len(examples)),
            float((scaled**2).mean(axis=1).max()),
        )

    def knows(self, question: str) -> bool:
        """Whether a question is of the examples' form: open or not, who asks about where and when, its other cues."""
        opener = _opener(question)
        if not question.endswith("?") or (_OPEN.match(opener) and opener not in self.openers):
            return False
        distance = (((np.array(_cues(question)) - self.mean) / self.deviation) ** 2).mean()
        return _situated(question) <= self.situated and float(distance) <= self.reach

    def probabilities(self, question: str) -> NDArray[np.float64]:
        """Return the probability of each of `structures`, in their order."""
        scaled = (np.array(_cues(question)) - self.mean) / self.deviation
        raw = np.clip(scaled @ self.weights + self.share, 1e-3, 1.0)
        return np.asarray(raw / raw.sum())

    def choose(self, question: str) -> tuple[Structure, float]:
        """Return the structure that is least wrong in expectation, in steps and references, and its probability."""
        chances = self.probabilities(question)
        shared = np.array([[len(a.edges & b.edges) for b in self.structures] for a in self.structures], float)
        apart = np.array([[abs(a.count - b.count) for b in self.structures] for a in self.structures], float)
        sizes = np.array([len(each.edges) for each in self.structures], float)
        worth = 2 * shared @ chances - _REFERENCE_COST * sizes - _COUNT_COST * apart @ chances
        best = int(worth.argmax())
        return self.structures[best], float(chances[best])

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            ConfigError: the file can't be written.
        """
        content = {
            "type": _FORMAT,
            "cues": list(_CUES),
            "structures": [{"count": each.count, "edges": sorted(each.edges)} for each in self.structures],
            **{name: getattr(self, name).tolist() for name in ("mean", "deviation", "share", "weights")},
            "openers": sorted(self.openers),
            "situated": sorted(self.situated),
            "reach": self.reach,
        }
        try:
            path.write_text(json.dumps(content), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"can't write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> StructureModel:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file can't be read, or holds no structure model of these cues.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"can't read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("type") != _FORMAT:
            raise ConfigError(f"{path} is no structure model ({_FORMAT}); train one and save it there")
        if content.get("cues") != list(_CUES):
            raise ConfigError(f"{path} was trained on other cues than this version has; train it again")
        try:
            return cls._read(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is a damaged structure model ({error!r:.200}); train it again") from error

    @classmethod
    def _read(cls, content: dict[str, Any]) -> StructureModel:
        structures = tuple(
            Structure(int(each["count"]), frozenset((int(i), int(j)) for i, j in each["edges"]))
            for each in content["structures"]
        )
        if not structures or any(not 1 <= j < i <= s.count for s in structures for i, j in s.edges):
            raise ValueError("a structure's references don't point back")
        width, count = len(_cues("")), len(structures)
        shapes = {"mean": (width,), "deviation": (width,), "share": (count,), "weights": (width, count)}
        arrays = {name: np.array(content[name], np.float64) for name in shapes}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is not {shape} finite numbers")
        if not (arrays["deviation"] > 0).all():
            raise ValueError("a deviation is not above 0")
        openers, situated = (frozenset(map(str, content[name])) for name in ("openers", "situated"))
        mean, deviation, share, weights = arrays.values()
        return cls(structures, mean, deviation, share, weights, openers, situated, float(content["reach"]))


def _cues(question: str) -> list[float]:
    lower = question.strip().lower()
    names = _NAME.findall(question.strip()[1:])
    return [
        *(float(bool(pattern.search(lower))) for pattern in _CUE_PATTERNS),
        float(len(question.split())),
        float(np.log1p(len(question))),
        float(len(names)),
        float(min(len(names), 2)),
        float(sum(len(name.split()) for name in names)),
        float(question.count(",")),
        float(question.count(".")),
        float(len(re.findall(r"\b(?:of|in|on|at|from|to)\b", lower))),
    ]


def _opener(question: str) -> str:
    return next(iter(question.lower().split()), "")


def _situated(question: str) -> set[str]:
    return {found[1] or found[2] for found in _SITUATED.finditer(question.lower())}
