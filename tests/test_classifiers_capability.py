"""Who gets a subtask."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from mqttcollab.classifiers.base import Offering
from mqttcollab.classifiers.capability import CapabilityMatcher, Worth
from mqttcollab.classifiers.skill import SkillBook
from mqttcollab.errors import ConfigError
from mqttcollab.messages import ServiceRecord

SERVICES = [f"knowledge.gpt/{name}" for name in ("medicine", "law", "cooking", "chess", "birds")]
TRUE_SKILL = {"specialist": 0.9, "boaster": 0.4}


def offering(agent: str, service: str = SERVICES[0], *, breadth: int = 1, **fields: Any) -> Offering:
    own = {key: fields.pop(key) for key in ("relevance", "closeness") if key in fields}
    record = ServiceRecord(agent=agent, service=service, **fields)
    return Offering(record, breadth=breadth, **({"relevance": 0.9} | own))


def test_a_boaster_loses_its_share_and_the_specialists_win() -> None:
    """The boaster claims every service with every example, an accuracy of 1 and a confidence of 1."""
    shares = []
    for seed in range(20):
        dice, matcher = random.Random(seed), CapabilityMatcher(SkillBook())
        won: list[str] = []
        for _ in range(120):
            service = dice.choice(SERVICES)
            specialist = offering(f"specialist-{service[-3:]}", service, closeness=0.7)
            boaster = offering("boaster", service, closeness=0.75, accuracy=1.0, breadth=len(SERVICES))
            chosen = matcher.rank("?", [boaster, specialist])[0].agent
            right = dice.random() < TRUE_SKILL[chosen.partition("-")[0]]
            matcher.skill.note(chosen, service, float(right), 1.0 if chosen == "boaster" else 0.8)
            won.append(chosen.partition("-")[0])
        shares.append(Counter(won[60:])["boaster"] / 60)
    assert sum(shares) / len(shares) < 0.1 and max(shares) < 0.35


def test_verdicts_in_a_few_domains_tell_on_the_boasters_others() -> None:
    matcher = CapabilityMatcher(SkillBook())
    for _ in range(30):
        matcher.skill.note("boaster", SERVICES[0], 0.0, 1.0)
    ranked = matcher.rank("?", [offering("boaster", SERVICES[1]), offering("unknown", SERVICES[1])])
    assert [c.agent for c in ranked] == ["unknown", "boaster"]


def test_bad_luck_at_the_start_is_no_end() -> None:
    """One wrong answer puts an agent behind; the other's mistakes bring it back."""
    matcher, dice = CapabilityMatcher(SkillBook()), random.Random(3)
    matcher.skill.note("good", SERVICES[0], 0.0)
    chosen: Counter[str] = Counter()
    for _ in range(150):
        agent = matcher.rank("?", [offering("good"), offering("fair")])[0].agent
        matcher.skill.note(agent, SERVICES[0], float(dice.random() < (0.95 if agent == "good" else 0.6)))
        chosen[agent] += 1
    assert chosen["good"] > 90


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"relevance": 0.9}, {"relevance": 0.5}),
        ({"closeness": 0.9}, {"closeness": 0.3}),
        ({}, {"price_usd": 0.02}),
        ({"accuracy": 0.9}, {"accuracy": 0.3}),
        ({"breadth": 1}, {"breadth": 40}),
        ({"place": "kitchen"}, {"place": "garage"}),
    ],
)
def test_what_counts(better: dict[str, Any], worse: dict[str, Any]) -> None:
    # Names sort the other way round, so that a tie is no success.
    offerings = [offering("b-better", **better), offering("a-worse", **worse)]
    ranked = CapabilityMatcher(SkillBook()).rank("How warm is it in the kitchen?", offerings)
    assert [c.agent for c in ranked] == ["b-better", "a-worse"]
    assert ranked[0].score > ranked[1].score


def test_the_place_spoken_of_beats_the_requesters() -> None:
    offerings = [offering("a-hall", place="hall"), offering("b-roof", place="on the roof")]
    matcher = CapabilityMatcher(SkillBook())
    assert matcher.rank("How windy is it on the roof?", offerings, place="hall")[0].agent == "b-roof"
    assert matcher.rank("How windy is it?", offerings, place="roof")[0].agent == "b-roof"
    assert matcher.rank("How windy is it?", offerings)[0].agent == "a-hall"


def test_the_score_is_in_right_answers_and_the_reason_says_what_it_is_made_of() -> None:
    matcher = CapabilityMatcher(SkillBook(), Worth(answer_usd=0.1, curiosity=0.0))
    [found] = matcher.rank("?", [offering("a", relevance=0.8, price_usd=0.01)])
    assert found.probability == pytest.approx(0.65 * 0.8)
    assert found.score == pytest.approx(0.65 * 0.8 - 0.1)
    assert found.reason.startswith("right 0.65 x fit 0.80") and "price -0.100" in found.reason
    assert matcher.rank("?", []) == []


def test_a_worth_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="answer_usd must be positive"):
        Worth(answer_usd=0)
