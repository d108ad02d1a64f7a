"""Whether the weak model's answer will do, or the strong model is worth its price.

A committee of four estimates of what the strong model would gain, each a ridge regression, so that training takes
a second on a small computer:

- two stages: from features of the prompt (and of the weak answer, where it may be read) how hard the prompt is and
  how much would be gained; then, from those two and their squares, the gain. A prompt too hard for both models
  gains nothing, and only the second stage can say so;
- the gain straight from the features; the gain from the prompt's embedding; and the prompt's length.

Where examples come in groups (subjects), all but the first have an equal say: it is the one that errs most on groups
never seen. Otherwise those have that rank folds left out at least half as well as the best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.arithmetic import LONGEST_TEXT
from mqttcollab.classifiers.calibration import isotonic
from mqttcollab.classifiers.committee import Committee, form_committee, group_folds, grouped, out_of_fold
from mqttcollab.classifiers.prompts import answer_features, option_similarities, prompt_features
from mqttcollab.classifiers.ridge import Linear, Scale, array, ridge
from mqttcollab.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.classifiers.ridge import Floats
    from mqttcollab.runtimes.base import Embedder

LEAST_EXAMPLES = 50
_TYPE = "mqttcollab.router.v1"
_PENALTY = 0.2  # per training row
_FARTHEST = 3.0  # standard deviations; what lies beyond counts as this far
_REASONS = 2


@dataclass(frozen=True, slots=True)
class RouteExample:
    """A prompt whose outcome is known: whether the weak and the strong model were right."""

    prompt: str
    weak_correct: bool
    strong_correct: bool
    weak_answer: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """What a router thinks of one prompt.

    Attributes:
        gain: the expected gain in being right by asking the strong model, from -1 to 1; the score to rank by.
        p_weak: the calibrated probability that the weak model is right.
        reason: what speaks most for or against the weak model, for a person.
    """

    gain: float
    p_weak: float
    reason: str

    def strong(self, price: float) -> bool:
        """Whether the strong model is worth its price, in right answers."""
        return self.gain > price


@dataclass(frozen=True, slots=True)
class Seen:
    """What a router sees of prompts and answers.

    Attributes:
        x: (n, features).
        meant: (n, dimension), the prompts' embeddings; without an embedder (n, 1), all zero.
        names: of the features, as they are told to a person.
    """

    x: Floats
    meant: Floats
    names: tuple[str, ...]

    def rows(self, chosen: NDArray[np.intp]) -> Seen:
        """Return the rows chosen."""
        return Seen(self.x[chosen], self.meant[chosen], self.names)


def see(prompts: Sequence[str], answers: Sequence[str | None] | None, embedder: Embedder | None) -> Seen:
    """Return what can be seen of at least one prompt and, unless None, of the weak model's answers."""
    rows = []
    for prompt, answer in zip(prompts, answers or [None] * len(prompts), strict=True):
        answered = answer_features(prompt, answer) if answer is not None else {}
        alike = option_similarities(prompt, embedder) if embedder is not None else {}
        rows.append(prompt_features(prompt) | answered | alike)
    meant = np.zeros((len(rows), 1))
    if embedder is not None:
        meant = embedder.embed([prompt[:LONGEST_TEXT] for prompt in prompts]).astype(float)
    return Seen(np.array([list(row.values()) for row in rows], float), meant, tuple(rows[0]))


@dataclass(frozen=True)
class Router:
    """Says when to ask the strong model; made by `fit` from examples, or by `load` from a file.

    Attributes:
        reads_answers: whether it decides after the weak model has answered.
        names: of the features, as they are told to a person.
        levels, chances: the knots of the map from the estimate to the probability that the weak model is right.
    """

    reads_answers: bool
    embedder: Embedder | None
    names: tuple[str, ...]
    scale: Scale
    meant_scale: Scale
    first: Linear
    committee: Committee = field(repr=False)
    levels: Floats
    chances: Floats

    @classmethod
    def fit(
        cls,
        examples: Sequence[RouteExample],
        embedder: Embedder | None = None,
        *,
        read_answers: bool = True,
        seen: Seen | None = None,
    ) -> Router:
        """Learn from prompts with known outcomes; takes seconds.

        Args:
            examples: at least 50; read with their weak answers if all of them have one.
            embedder: adds what prompts and their options mean; None goes without.
            read_answers: False leaves the weak answers unread, so that the weak model need not be called first.
            seen: what `see` returned for these examples, where that was called before.

        Raises:
            ConfigError: there are too few examples, or nothing can be learned from them.
        """
        if len(examples) < LEAST_EXAMPLES:
            raise ConfigError(f"{len(examples)} routing examples are too few; give at least {LEAST_EXAMPLES}")
        weak = np.array([e.weak_correct for e in examples], float)
        strong = np.array([e.strong_correct for e in examples], float)
        if strong.sum() <= weak.sum():
            raise ConfigError("the strong model is not better than the weak one on the routing examples to learn from")
        reads = read_answers and all(e.weak_answer is not None for e in examples)
        answers = [e.weak_answer for e in examples] if reads else None
        seen = seen or see([e.prompt for e in examples], answers, embedder)
        scale, meant_scale = Scale.of(seen.x, _FARTHEST), Scale.of(seen.meant, _FARTHEST)
        x, meant = scale(seen.x), meant_scale(seen.meant)
        targets = np.column_stack([(weak + strong) / 2, strong - weak, weak])
        groups = [e.group for e in examples]
        folds = list(group_folds(groups))
        estimates = out_of_fold(x, targets, _PENALTY, folds)
        committee = form_committee(x, meant, estimates, (weak, strong), folds, grouped=grouped(groups))
        levels, chances = isotonic(estimates[:, 2], weak)
        first = ridge(x, targets, _PENALTY)
        return cls(reads, embedder, seen.names, scale, meant_scale, first, committee, levels, chances)

    def decide(self, prompts: Sequence[str], weak_answers: Sequence[str] | None = None) -> list[RouteDecision]:
        """Return a decision for each prompt.

        Raises:
            ConfigError: the router reads weak answers, and there is none for each prompt.
        """
        if self.reads_answers and (weak_answers is None or len(weak_answers) != len(prompts)):
            raise ConfigError("this router reads the weak model's answers; give one for each prompt")
        if not prompts:
            return []
        return self.decide_seen(see(prompts, weak_answers if self.reads_answers else None, self.embedder))

    def decide_seen(self, seen: Seen) -> list[RouteDecision]:
        """Return a decision for each row of what `see` returned."""
        x, meant = self.scale(seen.x), self.meant_scale(seen.meant)
        estimates = self.first(x)
        gains = np.clip(self.committee(estimates, x, meant), -1, 1)
        chances = np.interp(estimates[:, 2], self.levels, self.chances)
        return [
            RouteDecision(gain, chance, self._reason(row, chance))
            for gain, chance, row in zip(gains.tolist(), chances.tolist(), x, strict=True)
        ]

    def _reason(self, row: Floats, chance: float) -> str:
        parts = row * self.first.weights[:, 2]
        said = [
            f"{'much' if row[i] > 0 else 'little'} of “{self.names[i]}” speaks "
            f"{'for' if parts[i] > 0 else 'against'} it"
            for i in np.argsort(-np.abs(parts))[:_REASONS]
        ]
        return f"the weak model is right with probability {chance:.2f}; {', '.join(said)}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, with the name of the embedder, not the embedder."""
        return {
            "type": _TYPE,
            "reads_answers": self.reads_answers,
            "embedder": self.embedder.model if self.embedder is not None else None,
            "features": list(self.names),
            "scale": self.scale.to_dict(),
            "meant_scale": self.meant_scale.to_dict(),
            "first": self.first.to_dict(),
            "committee": self.committee.to_dict(),
            "levels": self.levels.tolist(),
            "chances": self.chances.tolist(),
        }

    @classmethod
    def from_dict(cls, content: object, embedder: Embedder | None = None) -> Router:
        """Return what `to_dict` described.

        Raises:
            ConfigError: it is no router, or one of other features, or of another embedder than this.
        """
        if not isinstance(content, dict) or content.get("type") != _TYPE:
            raise ConfigError(f"no router ({_TYPE}); `mqttcollab eval route --save` makes one")
        if content.get("embedder") is None:
            embedder = None
        elif embedder is None or content["embedder"] != embedder.model:
            given = "none" if embedder is None else embedder.model
            raise ConfigError(f"the router needs the embedder {content['embedder']}, and was given {given}")
        try:
            return cls._from_parts(content, embedder)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"a damaged router: {type(error).__name__}: {error}; make it anew") from None

    @classmethod
    def _from_parts(cls, content: dict[str, Any], embedder: Embedder | None) -> Router:
        reads = content["reads_answers"]
        if not isinstance(reads, bool):
            raise ValueError("reads_answers is true or false")
        seen = see([""], [""] if reads else None, embedder)
        if content["features"] != list(seen.names):
            raise ConfigError("a router of another version, which saw other features; train it again")
        width, dimension = len(seen.names), seen.meant.shape[1]
        committee = Committee.from_dict(content["committee"], width, dimension)
        levels = array(content["levels"], (len(content["levels"]),))
        if not len(levels) or (np.diff(levels) < 0).any():
            raise ValueError("levels do not ascend")
        chances = array(content["chances"], levels.shape)
        if chances.min() < 0 or chances.max() > 1:
            raise ValueError("chances lie outside 0 to 1")
        scale, meant_scale = (
            Scale.from_dict(content["scale"], width),
            Scale.from_dict(content["meant_scale"], dimension),
        )
        first = Linear.from_dict(content["first"], width, (3,))
        return cls(reads, embedder, seen.names, scale, meant_scale, first, committee, levels, chances)

    def save(self, path: str | Path) -> None:
        """Write it as JSON; raises ConfigError where that can't be."""
        try:
            Path(path).write_text(json.dumps(self.to_dict(), allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"can't write {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path, embedder: Embedder | None = None) -> Router:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file can't be read, or holds no router for this embedder.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            raise ConfigError(f"{path}: no router: not JSON") from None
        try:
            return cls.from_dict(content, embedder)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
