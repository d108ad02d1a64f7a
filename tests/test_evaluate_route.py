"""Reading data sets, intervals, and the evaluation of the router beside its baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mqttcollab.classifiers.router import Router
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.files import flag_of, optional_text, read_rows, text_of
from mqttcollab.evaluate.route import evaluate, read_examples
from mqttcollab.evaluate.scoring import auroc, bootstrap
from mqttcollab.runtimes.embedders import load_embedder

ROUTING = Path(__file__).parents[2] / "shared" / "data" / "routing"
with_data = pytest.mark.skipif(not ROUTING.exists(), reason="the data sets are not here")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(i: int, **changes: Any) -> dict[str, Any]:
    easy = i % 2 == 0
    prompt = f"Name colour {i}." if easy else f"Find the ratio of {i} to 9, if half of it is left, step by step."
    return {"prompt": prompt, "weak_correct": easy, "strong_correct": i % 7 != 0 or easy} | changes


# Files


def test_rows_are_read_with_their_lines_and_any_separator_within(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x\xe2\x80\xa8y"}\r\n\n  \n{"a": "\\u2028", "b": 1e400}')
    assert read_rows(path) == [(1, {"a": "x\u2028y"}), (4, {"a": "\u2028", "b": float("inf")})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", " holds no rows; expected a JSON object a line"),
        (b"\n \n", " holds no rows"),
        (b"\x89PNG\r\n\x1a\n\xff", " is not text"),
        (b'{"a": 1}\n{"a": \n', ", line 2: not JSON (Expecting value)"),
        (b'{"a": 1}\n\n[1]\n', ", line 3: no JSON object"),
        (b'{"a": NaN}', ", line 1: not JSON (NaN is no JSON number)"),
        (b'{"a": "\\ud800"}', ", line 1: text that is not valid Unicode"),
        (b"[" * 100_000, ", line 1: not JSON"),
        (b"1" * 10_000, ", line 1: not JSON"),
        (b"text,domain\nhello,travel\n", ", line 1: not JSON"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_rows(tmp_path)


def test_a_key_that_is_missing_or_of_another_kind_is_named() -> None:
    path = Path("rows.jsonl")
    with pytest.raises(ConfigError, match=r"^rows.jsonl, line 3: 'text' is missing or no text; it has 'a', 'b'$"):
        text_of(path, 3, {"a": 1, "b": 2}, "text")
    with pytest.raises(ConfigError, match="line 3: 'text' is missing"):
        text_of(path, 3, {"text": " "}, "text")
    with pytest.raises(ConfigError, match="line 3: 'right' is missing or neither true nor false"):
        flag_of(path, 3, {"right": 1}, "right")
    with pytest.raises(ConfigError, match="line 3: 'domain' is no text"):
        optional_text(path, 3, {"domain": 1}, "domain")
    assert optional_text(path, 3, {"domain": None}, "domain") is None


# Figures


def test_the_area_under_the_curve_counts_ties_half() -> None:
    positive = np.array([True, False, True, False])
    assert auroc(np.array([4.0, 3, 2, 1]), positive) == 0.75
    assert auroc(np.zeros(4), positive) == 0.5
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.zeros(4), np.ones(4, bool))


def test_intervals_are_wider_where_rows_hang_together() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=30), 10)
    mean = lambda rows: {"mean": float(values[rows].mean())}  # noqa: E731
    alone = bootstrap(mean, np.arange(300))["mean"]
    together = bootstrap(mean, np.repeat(np.arange(30), 10))["mean"]
    assert alone[0] < values.mean() < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


# The evaluation


def test_a_report_has_ours_the_baselines_and_the_oracle(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [row(i) for i in range(150)])
    test = write(tmp_path / "test.jsonl", [row(i) for i in range(1000, 1080)])
    report = evaluate(train, test, save=tmp_path / "router.json")
    assert set(report) == {"ours", "baselines", "oracle", "n"}
    assert set(report["baselines"]) == {"random", "length", "domain_mean", "best_single", "1-NN"}
    assert report["n"] == 80
    assert set(report["ours"]) == {"apgr", "cpt50", "cpt80", "ece", "ci95"}
    assert report["baselines"]["random"]["apgr"] == pytest.approx(0.5)
    assert report["ours"]["apgr"] > 0.7
    low, high = report["ours"]["ci95"]["apgr"]
    assert low < report["ours"]["apgr"] < high
    (decision,) = Router.load(tmp_path / "router.json", load_embedder("wordllama")).decide(["Name colour 7."])
    assert decision.p_weak > 0.8
    assert evaluate(train)["n"] == 150


def test_what_is_rated_is_never_learned_from(tmp_path: Path) -> None:
    """The weak model is right at random, so only somebody who saw the rows could do better than chance."""
    flips = np.random.default_rng(0).random(120) < 0.5
    rows = [row(i, prompt=f"prompt {i}", weak_correct=bool(flip), strong_correct=True) for i, flip in enumerate(flips)]
    train, test = write(tmp_path / "train.jsonl", rows), write(tmp_path / "test.jsonl", rows[:60])
    found = evaluate(train, test)
    assert 0.3 < found["baselines"]["1-NN"]["apgr"] < 0.7
    assert 0.3 < found["ours"]["apgr"] < 0.7
    with pytest.raises(ConfigError, match=r"has 0 prompts that aren't in .*train.jsonl; 50 are needed"):
        evaluate(train, train)


def test_reading_is_charged_and_can_be_left_out(tmp_path: Path) -> None:
    rows = [row(i, weak_answer="<<2+2=4>>" if i % 2 == 0 else "<<2+2=5>>", strong_correct=True) for i in range(120)]
    path = write(tmp_path / "rows.jsonl", rows)
    free, charged = (evaluate(path, weak_cost=cost) for cost in (0.0, 0.5))
    assert charged["ours"]["apgr"] < free["ours"]["apgr"] - 0.1
    assert charged["baselines"]["length"] == free["baselines"]["length"]
    unread = evaluate(path, weak_cost=0.5, read_answers=False, save=tmp_path / "router.json")
    assert unread["ours"]["apgr"] == pytest.approx(evaluate(path, weak_cost=0, read_answers=False)["ours"]["apgr"])
    assert not Router.load(tmp_path / "router.json", load_embedder("wordllama")).reads_answers


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(i) for i in range(30)], "has 30 rows; without --test 100 are needed"),
        ([row(i, strong_correct=False) for i in range(120)], "there is no gap to recover"),
        ([row(i, weak_correct=True, strong_correct=True) for i in range(120)], "there is no gap to recover"),
        ([{"question": "Why?", "answer": True}], "line 1: 'prompt' is missing or no text; it has 'question', 'answer'"),
        ([row(0), row(1, weak_correct="yes")], "line 2: 'weak_correct' is missing or neither true nor false"),
        ([row(0, weak_answer=7)], "line 1: 'weak_answer' is no text"),
        ([row(0, subject=[])], "line 1: 'subject' is no text"),
    ],
)
def test_rows_that_can_not_be_used_are_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate(write(tmp_path / "rows.jsonl", rows))


def test_a_cost_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        evaluate(Path("rows.jsonl"), weak_cost=float("nan"))


@with_data
def test_reading_the_weak_answer_recovers_most_of_the_gap_on_gsm8k() -> None:
    report = evaluate(ROUTING / "gsm8k.jsonl")
    assert report["ours"]["apgr"] > 0.78
    assert report["ours"]["ece"] < 0.05
    best = max(found["apgr"] for found in report["baselines"].values())
    assert report["ours"]["ci95"]["apgr"][0] > best


@pytest.mark.slow
@with_data
def test_subjects_never_seen_are_ranked_better_than_by_length(tmp_path: Path) -> None:
    rows = [row for _, row in read_rows(ROUTING / "mmlu.jsonl")]
    held_out = set(sorted({row["subject"] for row in rows} - {"moral_scenarios", "professional_law"})[::2])
    train = write(tmp_path / "train.jsonl", [row for row in rows if row["subject"] not in held_out][::3])
    test = write(tmp_path / "test.jsonl", [row for row in rows if row["subject"] in held_out])
    report = evaluate(train, test)
    assert report["ours"]["apgr"] > report["baselines"]["length"]["apgr"] + 0.005


@with_data
def test_line_separators_in_texts_are_no_ends_of_lines() -> None:
    examples = read_examples(ROUTING / "mmlu.jsonl")
    assert len(examples) == 7485
    assert any("\x85" in example.prompt for example in examples)
