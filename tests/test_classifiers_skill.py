"""What agents turned out to be worth."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mqttcollab.classifiers.skill import SkillBook, prior_of
from mqttcollab.errors import ConfigError

HEART, SKIN, CHESS = "knowledge.gpt/medicine/cardiology", "knowledge.gpt/medicine/skin", "knowledge.gpt/chess"


def noted(book: SkillBook, agent: str, service: str, right: int, of: int, confidence: float | None = None) -> None:
    for n in range(of):  # spread evenly
        book.note(agent, service, float((n + 1) * right // of > n * right // of), confidence)


def test_verdicts_move_the_expectation_and_narrow_it() -> None:
    book = SkillBook()
    before, wide = book.expected("medic", HEART), book.uncertainty("medic", HEART)
    noted(book, "medic", HEART, 18, 20)
    after = book.expected("medic", HEART)
    assert before.probability == 0.65 and after.probability == pytest.approx(0.87, abs=0.04)
    assert "of 18." in after.reason and "@medic was right in" in after.reason
    assert book.uncertainty("medic", HEART) < wide / 2
    assert book.expected("other", HEART).probability == before.probability


def test_a_new_domain_of_a_bad_agent_starts_low_and_a_related_one_lower() -> None:
    book = SkillBook()
    noted(book, "quack", HEART, 2, 30)
    noted(book, "quack", CHESS, 24, 30)
    related, strange = book.expected("quack", SKIN), book.expected("quack", "knowledge.gpt/poetry")
    assert related.probability < strange.probability < 0.65
    assert "on all" in related.reason


def test_it_forgets() -> None:
    book = SkillBook(memory=20)
    noted(book, "medic", HEART, 0, 200)
    noted(book, "medic", HEART, 60, 60)
    assert book.expected("medic", HEART).probability > 0.85


def test_soft_verdicts_count_by_their_probability() -> None:
    book = SkillBook()
    for _ in range(60):
        book.note("medic", HEART, 0.8)
    assert book.expected("medic", HEART).probability == pytest.approx(0.8, abs=0.02)


def test_who_always_says_certain_is_worth_what_it_was_worth() -> None:
    book = SkillBook()
    naive = book.expected("loud", HEART, 1.0).probability
    noted(book, "loud", HEART, 16, 40, confidence=1.0)
    assert naive > 0.7
    assert book.expected("loud", HEART, 1.0).probability == pytest.approx(0.42, abs=0.05)


def test_a_confidence_that_tells_right_from_wrong_is_believed() -> None:
    book, dice = SkillBook(), random.Random(1)
    for _ in range(200):
        confidence = dice.choice((0.2, 0.5, 0.9))
        book.note("honest", HEART, float(dice.random() < confidence), confidence)
        book.note("noise", HEART, float(dice.random() < 0.5), confidence)
    honest, noise = ([book.expected(a, HEART, c).probability for c in (0.2, 0.5, 0.9)] for a in ("honest", "noise"))
    assert honest == pytest.approx([0.2, 0.5, 0.9], abs=0.12)
    assert noise[2] - noise[0] < 0.25


def test_what_is_kept_is_bounded_and_survives_saving() -> None:
    book = SkillBook(capacity=50)
    for n in range(200):
        book.note(f"agent-{n}", HEART, 1.0, 0.5)
    assert len(book) == 50
    assert book.expected("agent-199", HEART).probability > book.expected("agent-0", HEART).probability
    again = SkillBook.from_dict(json.loads(json.dumps(book.to_dict())))
    assert again.expected("agent-199", HEART, 0.9) == book.expected("agent-199", HEART, 0.9)
    assert again.to_dict() == book.to_dict()


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_verdict_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="it must be from 0 to 1"):
        SkillBook().note("medic", HEART, value)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"memory": 1, "capacity": 5, "tallies": []},
        {"memory": 100, "capacity": 5, "tallies": [["a", "b", {"right": 3, "count": 1}]]},
        {"memory": 100, "capacity": 5, "tallies": [["a", "b", {"right": float("nan"), "count": 1}]]},
        {"memory": 100, "capacity": 5, "tallies": [["a", "b", {"wrong": 1}]]},
        {"memory": 100, "capacity": 5, "tallies": [["a", "b", {"c_sum": float("nan"), "count": 1}]]},
        {"memory": 100, "capacity": 5, "tallies": 7},
    ],
)
def test_what_was_not_saved_by_it_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SkillBook.from_dict(found)


def test_claims_are_half_believed_and_breadth_lowers_them() -> None:
    assert 0.65 < prior_of(1.0, 1) < 0.9 and prior_of(0.1, 1) < 0.5
    assert prior_of(None, 1) > prior_of(None, 8) > prior_of(None, 64) > 0.5
    assert prior_of(1.0, 64) < prior_of(None, 1) + 0.1
