"""What every agent turned out to be worth: how often it was right, by domain, and what its own confidence means."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mqttcollab.errors import ConfigError
from mqttcollab.messages import Verdict

# Beta priors, in verdicts: an unknown agent's, and what a parent domain lends its children.
_PRIOR, _PRIOR_STRENGTH, _LENT = 0.65, 4.0, 4.0
# Of a stated confidence until verdicts tell: its usual value, how much of a deviation from it is believed, and the
# strength of either belief (in verdicts, and in their summed squared deviation).
_USUAL, _SLOPE, _CONFIDENCES, _DEVIATION = 0.75, 0.5, 2.0, 0.5
# The most that a claimed accuracy adds to the prior: claims decide between equals, not more.
_PROUD = 0.05
_LEAST, _MOST = 0.02, 0.98


@dataclass(slots=True)
class _Tally:
    """Verdicts on one agent in one domain, older ones counting less; `c_…` of those with a stated confidence."""

    right: float = 0.0
    count: float = 0.0
    c_count: float = 0.0
    c_sum: float = 0.0
    c_squares: float = 0.0
    c_right: float = 0.0
    c_products: float = 0.0

    def add(self, right: float, confidence: float | None, kept: float) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) * kept)
        self.right += right
        self.count += 1
        if confidence is not None:
            self.c_count += 1
            self.c_sum += confidence
            self.c_squares += confidence * confidence
            self.c_right += right
            self.c_products += confidence * right


@dataclass(frozen=True, slots=True)
class _Belief:
    """A Beta posterior by its mean and strength, and the usual stated confidence."""

    mean: float
    strength: float
    usual: float


class SkillBook:
    """Measured skill per agent and domain: a Beta posterior of right and wrong verdicts, which fades.

    A domain borrows from its parents (`knowledge.gpt/medicine/cardiology`, then `knowledge.gpt/medicine`, then all
    that the agent does), as in partial pooling (Gelman and Hill 2007, chapter 12): a new domain of an agent that is
    mostly wrong starts low. What an agent states about itself is believed as far as it went with later verdicts.

    Args:
        memory: verdicts after which an old one counts 1/e; at least 2.
        capacity: pairs of an agent and a domain that are kept; the longest unused go. At least 1.

    Raises:
        ConfigError: one of them is too small.
    """

    def __init__(self, memory: float = 100.0, capacity: int = 4096) -> None:
        if not (memory >= 2 and capacity >= 1):
            raise ConfigError(f"memory is {memory:g} and capacity {capacity}; they must be at least 2 and 1")
        self._kept = math.exp(-1 / memory)
        self._memory = memory
        self._capacity = capacity
        self._tallies: OrderedDict[tuple[str, str], _Tally] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tallies)

    def note(self, agent: str, service: str, right: float, confidence: float | None = None) -> None:
        """Take a verdict on an answer.

        Args:
            agent: who gave it.
            service: the domain.
            right: 1 right, 0 wrong; between them the probability that it was right.
            confidence: what the agent had stated, 0 to 1.

        Raises:
            ConfigError: a number is out of range.
        """
        for name, value in (("right", right), ("confidence", confidence)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} of the verdict on @{agent} is {value}; it must be from 0 to 1")
        for domain in _domains(service):  # the parents last, so that they are kept longest
            tally = self._tallies.setdefault((agent, domain), _Tally())
            tally.add(right, confidence, self._kept)
            self._tallies.move_to_end((agent, domain))
        while len(self._tallies) > self._capacity:
            self._tallies.popitem(last=False)

    def expected(self, agent: str, service: str, stated: float | None = None, *, prior: float | None = None) -> Verdict:
        """Return the probability that an answer of the agent is right; its score is the skill without `stated`.

        Args:
            agent: who answers.
            service: the domain.
            stated: the confidence that it states with the answer, if there is one.
            prior: what to expect where there is no verdict, e.g. from `prior_of`.
        """
        belief = self._belief(agent, service, prior)
        tally = self._tallies.get((agent, service)) or _Tally()
        reason = f"@{agent} was right in {tally.right:.1f} of {tally.count:.1f} verdicts on {service}"
        everything = self._tallies.get((agent, ""))
        if everything is not None and everything.count > tally.count + 0.5:
            reason += f" and {everything.right:.1f} of {everything.count:.1f} on all"
        probability = belief.mean
        if stated is not None:
            probability += self._slope(agent) * (stated - belief.usual)
            reason += f"; it states {stated:.2f}, usually {belief.usual:.2f}"
        return Verdict(
            score=round(belief.mean, 4), probability=round(min(_MOST, max(_LEAST, probability)), 4), reason=reason
        )

    def uncertainty(self, agent: str, service: str, *, prior: float | None = None) -> float:
        """Return the posterior's standard deviation, about .2 where nothing is known: what a verdict would teach."""
        belief = self._belief(agent, service, prior)
        return math.sqrt(belief.mean * (1 - belief.mean) / (belief.strength + 1))

    def _belief(self, agent: str, service: str, prior: float | None) -> _Belief:
        belief = _Belief(_PRIOR if prior is None else min(_MOST, max(_LEAST, prior)), _PRIOR_STRENGTH, _USUAL)
        tallies = [self._tallies.get((agent, domain)) or _Tally() for domain in _domains(service)]
        for narrower, tally in zip([*reversed(tallies[:-1]), _Tally()], reversed(tallies), strict=True):
            # A verdict speaks once, in the narrowest domain: what a parent lends comes from its other children.
            right, count = max(0.0, tally.right - narrower.right), max(0.0, tally.count - narrower.count)
            c_sum, c_count = max(0.0, tally.c_sum - narrower.c_sum), max(0.0, tally.c_count - narrower.c_count)
            lent = min(_LENT, belief.strength)
            usual = (_CONFIDENCES * belief.usual + c_sum) / (_CONFIDENCES + c_count)
            belief = _Belief(min(1.0, (lent * belief.mean + right) / (lent + count)), lent + count, usual)
        return belief

    def _slope(self, agent: str) -> float:
        """How much likelier right an answer is per stated confidence: ridge regression towards what is believed."""
        tally = self._tallies.get((agent, "")) or _Tally()
        count = max(1.0, tally.c_count)
        squares = tally.c_squares - tally.c_sum**2 / count
        products = tally.c_products - tally.c_sum * tally.c_right / count
        return min(1.5, max(0.0, (products + _DEVIATION * _SLOPE) / (squares + _DEVIATION)))

    def verdicts(self, agent: str, service: str) -> float:
        """Return how many verdicts there are on the agent's answers in this domain, faded."""
        return (self._tallies.get((agent, service)) or _Tally()).count

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON holds, the longest unused first."""
        tallies = [[agent, domain, asdict(tally)] for (agent, domain), tally in self._tallies.items()]
        return {"memory": self._memory, "capacity": self._capacity, "tallies": tallies}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> SkillBook:
        """Return the book that `to_dict` wrote; raises ConfigError where it is none."""
        try:
            book = cls(float(found["memory"]), int(found["capacity"]))
            for agent, domain, numbers in found["tallies"][-book._capacity :]:
                tally = _Tally(**{name: float(value) for name, value in numbers.items()})
                if not all(0 <= number < math.inf for number in asdict(tally).values()) or tally.right > tally.count:
                    raise ValueError(f"impossible counts of {agent!r} on {domain!r}")
                book._tallies[str(agent), str(domain)] = tally
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"these are no skills that were saved: {type(error).__name__}, {error}") from None
        return book


def prior_of(accuracy: float | None, breadth: int) -> float:
    """Return what to expect of an agent of which there is no verdict.

    Args:
        accuracy: what its record claims; half believed where it is modest, and hardly where it is proud.
        breadth: how many services it offers: who offers very many is believed less in each.
    """
    base = 0.5 + (_PRIOR - 0.5) / (1 + math.log2(max(1, breadth)) / 2)
    return base if accuracy is None else base + min(_PROUD, (accuracy - _PRIOR) / 2)


def _domains(service: str) -> Iterator[str]:
    """The service, its parents below the zone, and "" for everything."""
    labels = service.split("/")
    for length in range(len(labels), 1, -1):
        yield "/".join(labels[:length])
    yield ""
