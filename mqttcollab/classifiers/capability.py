"""Who should get a subtask: by what an agent covers, what it turned out to be worth, its cost and place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mqttcollab.classifiers.base import Offering
from mqttcollab.classifiers.skill import SkillBook, prior_of
from mqttcollab.errors import ConfigError
from mqttcollab.messages import Candidate

_WORD = re.compile(r"\w+")
_COMMON = frozenset(re.findall(r"\w+", "a an and at by in is my near of on or our the to what how where who"))


@dataclass(frozen=True, slots=True)
class Worth:
    """What counts how much. Everything is in right answers: 1 is the worth of an answer that is certainly right.

    Attributes:
        answer_usd: what a right answer is worth in US dollars, so a price of that much eats all of it.
        place: what it brings if the agent is at the place that is spoken of, or that the requester is at.
        distance: how much less likely a right answer gets per unit of cosine behind the closest agent's examples.
        curiosity: what a standard deviation of the agent's skill adds, times √log of the verdicts on all candidates:
            nobody is written off for bad luck (upper confidence bounds, Auer et al. 2002).

    Raises:
        ConfigError: `answer_usd` is not positive, or another one is negative.
    """

    answer_usd: float = 0.05
    place: float = 0.1
    distance: float = 0.5
    curiosity: float = 0.3

    def __post_init__(self) -> None:
        if not (self.answer_usd > 0 and min(self.place, self.distance, self.curiosity) >= 0):
            raise ConfigError(f"{self}: answer_usd must be positive, and nothing negative")


class CapabilityMatcher:
    """Ranks agents by expected utility; what it learns, it learns from the verdicts noted in `skill`.

    Args:
        skill: who was right how often.
        worth: what counts how much.
    """

    def __init__(self, skill: SkillBook, worth: Worth | None = None) -> None:
        self.skill = skill
        self.worth = worth or Worth()

    def rank(self, subtask: str, offerings: Sequence[Offering], *, place: str | None = None) -> list[Candidate]:
        """Return the candidates, best first.

        `probability` = skill x relevance x closeness: that its answer will be right. `score` = probability - price /
        answer_usd + place x (share of its place's words that are spoken of) + curiosity, in right
        answers.

        Args:
            subtask: its text.
            offerings: who could do it.
            place: where the requester is.
        """
        closest = max((o.closeness for o in offerings if o.closeness is not None), default=0.0)
        wanted = _words(subtask) or set()
        here = wanted if any(wanted & _words(o.record.place) for o in offerings) else _words(place)
        seen = sum(self.skill.verdicts(o.record.agent, o.record.service) for o in offerings)
        curiosity = self.worth.curiosity * math.sqrt(math.log1p(seen))
        ranked = [self._candidate(offering, closest, here, curiosity) for offering in offerings]
        return sorted(ranked, key=lambda c: (-c.score, c.agent, c.service))

    def _candidate(self, offering: Offering, closest: float, here: set[str], curiosity: float) -> Candidate:
        record, worth = offering.record, self.worth
        prior = prior_of(record.accuracy, offering.breadth)
        skill = self.skill.expected(record.agent, record.service, prior=prior)
        behind = 0.0 if offering.closeness is None else max(0.0, closest - offering.closeness)
        fit = offering.relevance * max(0.0, 1 - worth.distance * behind)
        probability = skill.probability * fit
        price = record.price_usd / worth.answer_usd
        its = _words(record.place)
        near = worth.place * len(its & here) / max(1, len(its))
        deviation = self.skill.uncertainty(record.agent, record.service, prior=prior)
        curious = curiosity * deviation * offering.relevance
        parts = [f"right {skill.probability:.2f} x fit {fit:.2f} ({skill.reason})"]
        parts += [f"price -{price:.3f}"] if price else []
        parts += [f"at {record.place} +{near:.2f}"] if near else []
        parts += [f"curiosity +{curious:.2f}"] if curious >= 0.005 else []
        return Candidate(
            agent=record.agent,
            service=record.service,
            score=round(probability - price + near + curious, 4),
            probability=round(probability, 4),
            reason="; ".join(parts),
        )


def _words(text: str | None) -> set[str]:
    return {word for word in _WORD.findall((text or "").lower()) if word not in _COMMON}
