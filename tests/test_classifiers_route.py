"""When to ask the strong model: the arithmetic read in answers, what is learned, and files that hold a router."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mqttcollab.classifiers.arithmetic import evaluate, noted_calculations, numbers, spelled_calculations
from mqttcollab.classifiers.committee import group_folds
from mqttcollab.classifiers.recovery import route_figures
from mqttcollab.classifiers.router import RouteExample, Router
from mqttcollab.errors import ConfigError

HOSTILE = [
    "",
    " ",
    "\x00\xff\u2028",
    "ⅷ²٣ ∀x",
    "1+" * 50_000,
    "<<" * 50_000,
    "(" * 100_000,
    "9" * 100_000,
    "\nA. " * 9_000,
]


class Letters:
    """An embedder that counts letters."""

    model, dimension = "letters", 26

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
        return np.asarray(counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1), np.float32)


def examples(count: int = 200, seed: int = 0) -> list[RouteExample]:
    """The weak model miscalculates half of the time; its prompts say nothing of that."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b, right = chance.randrange(2, 60), chance.randrange(2, 60), chance.random() < 0.5
        result = a + b if right else a + b + 7
        answer = f"Together <<{a}+{b}={result}>>{result} apples.\n#### {result}"
        rows.append(RouteExample(f"Ann has {a} apples and Bob has {b}. How many have they?", right, True, answer))
    return rows


# Calculations


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1+0.2", Fraction(3, 10)),
        ("(2+3)*4 - 10%", Fraction(199, 10)),
        ("007/2", Fraction(7, 2)),
        ("3 × 4 ÷ 6", 2),
        ("-$1,000", -1000),
        ("1/0", None),
        ("2**9", None),
        ("1 2", None),
        ("__import__", None),
        ("1.2.3", None),
        ("(" * 100, None),
        ("-" * 150 + "1", 1),
        ("1+" * 500 + "1", None),
    ],
)
def test_expressions_are_worked_out_exactly_or_not_at_all(expression: str, value: Fraction | None) -> None:
    assert evaluate(expression) == value


def test_calculations_in_an_answer_are_checked_up_to_the_rounding_shown() -> None:
    noted = noted_calculations("<<17+25=42>> <<17+25=32>> <<1/3=.33>> <<2*x=4>>")
    assert [c.right for c in noted] == [True, False, True, None]
    assert [c.right for c in spelled_calculations("So 17 + 25 = 42, and $3 x 4 = $13.")] == [True, False]
    assert numbers("1,000 men at $2.50, .5 each") == [1000, 2.5, 0.5]


# What a ranking is worth


def test_the_gap_recovered_of_rankings_that_can_be_reckoned_by_hand() -> None:
    weak, strong = np.array([0.0, 0, 1, 1]), np.ones(4)
    best = route_figures(strong - weak, weak, strong)
    assert best.apgr == pytest.approx(0.75, abs=1e-3)  # 0 to 1 over the first half, then 1
    assert (best.cpt50, best.cpt80) == pytest.approx((0.25, 0.4), abs=2e-3)
    assert route_figures(weak - strong, weak, strong).apgr == pytest.approx(0.25, abs=1e-3)
    assert route_figures(np.zeros(4), weak, strong).apgr == pytest.approx(0.5)
    # Charged 20% for reading, it affords four fifths of the strong calls that others do.
    charged = route_figures(strong - weak, weak, strong, weak_cost=0.2)
    assert (charged.cpt50, charged.cpt80) == pytest.approx((0.25 / 0.8, 0.5), abs=2e-3)
    with pytest.raises(ValueError, match="no gap to recover"):
        route_figures(strong, strong, strong)


def test_whole_groups_are_left_out_where_there_are_enough() -> None:
    groups = [f"subject {i % 20}" for i in range(200)]
    for inside, outside in group_folds(groups):
        assert not {groups[i] for i in inside} & {groups[i] for i in outside}
        assert len(inside) + len(outside) == 200
    singles = list(group_folds([None] * 70))
    assert sorted(np.concatenate([outside for _, outside in singles])) == list(range(70))
    assert [len(outside) for _, outside in singles] == [10] * 7


# The router


@pytest.mark.parametrize("embedder", [None, Letters()])
def test_a_router_that_reads_answers_knows_wrong_calculations(embedder: Letters | None) -> None:
    router, asked = Router.fit(examples(), embedder), examples(100, seed=1)
    decisions = router.decide([e.prompt for e in asked], [e.weak_answer or "" for e in asked])
    right = np.array([e.weak_correct for e in asked])
    chances = np.array([decision.p_weak for decision in decisions])
    assert chances[right].min() > 0.8
    assert chances[~right].max() < 0.2
    assert all(decision.strong(0.5) != e.weak_correct for decision, e in zip(decisions, asked, strict=True))
    assert "calculation" in decisions[0].reason
    assert f"{decisions[0].p_weak:.2f}" in decisions[0].reason


def test_a_router_that_reads_no_answers_decides_by_the_prompt() -> None:
    known = [
        RouteExample("Name a colour." if i % 2 else f"Find the ratio of {i} to 9, step by step.", i % 2 == 1, True)
        for i in range(100)
    ]
    router = Router.fit(known)
    easy, hard = router.decide(["Name a colour.", "Find the ratio of 4 to 9, step by step."])
    assert not router.reads_answers
    assert easy.gain < 0.2 < 0.8 < hard.gain
    assert router.decide([]) == []


def test_answers_are_read_only_where_all_have_one_and_it_is_wanted() -> None:
    known = examples()
    assert Router.fit(known).reads_answers
    assert not Router.fit([*known, RouteExample("Why?", True, True)]).reads_answers
    with pytest.raises(ConfigError, match="reads the weak model's answers"):
        Router.fit(known).decide(["Why?"])


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_gets_a_decision(text: str) -> None:
    router = Router.fit(examples(60), Letters())
    (decision,) = router.decide([text], [text])
    assert -1 <= decision.gain <= 1
    assert 0 <= decision.p_weak <= 1


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (examples(49), "49 routing examples are too few; give at least 50"),
        ([RouteExample("Why?", True, True)] * 50, "the strong model is not better"),
        ([RouteExample("Why?", i % 2 == 0, True) for i in range(60)], "nothing in the routing examples tells"),
    ],
)
def test_examples_from_which_nothing_can_be_learned_are_refused(known: list[RouteExample], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Router.fit(known, read_answers=False)


# Files


@pytest.mark.parametrize("embedder", [None, Letters()])
def test_a_router_is_the_same_after_a_file(tmp_path: Path, embedder: Letters | None) -> None:
    router, asked, path = Router.fit(examples(), embedder), examples(20, seed=1), tmp_path / "router.json"
    router.save(path)
    texts = [e.prompt for e in asked], [e.weak_answer or "" for e in asked]
    assert Router.load(path, embedder).decide(*texts) == router.decide(*texts)


def damaged(**changes: Any) -> str:
    return json.dumps(Router.fit(examples(60), Letters()).to_dict() | changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "no router"),
        (b'{"type": "mqttcollab.router.v2"}', "no router"),
        (b'{"type": "mqttcollab.router.v1"}', "a damaged router: KeyError: 'reads_answers'; make it anew"),
        (damaged(embedder="MiniLM"), "needs the embedder MiniLM, and was given letters"),
        (damaged(features=["length"]), "saw other features"),
        (damaged(chances=[]), "damaged"),
        (damaged(levels=[2.0, 1.0], chances=[0.1, 0.2]), "levels do not ascend"),
        (damaged(first={"centre": [1], "weights": [[1]], "mean": 0}), "finite numbers of shape"),
        (damaged(scale={"mean": ["NaN"], "factor": [1], "farthest": 3}), "finite numbers of shape"),
        (damaged(committee=None), "damaged"),
        (damaged(levels=[float("nan")], chances=[0.1]), "damaged"),
    ],
)
def test_a_file_that_holds_no_router_is_refused_in_a_line(tmp_path: Path, content: bytes | str, said: str) -> None:
    path = tmp_path / "router.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        Router.load(path, Letters())
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_router_of_an_embedder_is_not_loaded_without_it(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    Router.fit(examples(60), Letters()).save(path)
    with pytest.raises(ConfigError, match="needs the embedder letters, and was given none"):
        Router.load(path)


def test_places_that_can_not_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        Router.load(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        Router.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"can't write .*Is a directory"):
        Router.fit(examples(60)).save(tmp_path)
