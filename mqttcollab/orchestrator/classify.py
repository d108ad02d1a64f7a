"""Which services a question is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mqttcollab.cms.views import Match, Offer


@dataclass(frozen=True, slots=True)
class Relevant:
    """A service that matters for a question, and the agents that offer it, closest and least loaded first."""

    service: str
    offers: tuple[Offer, ...]
    score: float
    reason: str


Classifier = Callable[[str, Sequence[Match]], list[Relevant]]


def by_similarity(threshold: float) -> Classifier:
    """Every service whose description or examples are at least so close to the question (cosine) matters."""

    def classify(question: str, matches: Sequence[Match]) -> list[Relevant]:
        offers: dict[str, list[Match]] = {}
        for match in matches:
            if match.score >= threshold:
                offers.setdefault(match.offer.record.service, []).append(match)
        return [
            Relevant(
                service,
                tuple(match.offer for match in found),
                found[0].score,
                f"its description or an example is close to the question ({found[0].score:.2f} ≥ {threshold:g})",
            )
            for service, found in offers.items()
        ]

    return classify
