"""The evaluations of gaps and of matching: a small file always, the real ones where they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="evaluations need numpy")

from mqttcollab.errors import ConfigError  # noqa: E402
from mqttcollab.evaluate import gap, match  # noqa: E402
from mqttcollab.evaluate.figures import recall_at, scope_figures  # noqa: E402
from mqttcollab.evaluate.intents import Question, fleet_of, held_out_intents, read_questions, read_split  # noqa: E402

_DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "intents"
_INTENTS = {
    "money": ("balance", "loan", "card_lost", "exchange rate"),
    "home": ("lights", "heating", "vacuum", "locks"),
    "road": ("traffic", "fuel", "tyres", "parking"),
}
_FRAMES = ("tell me about {}", "i need {} now", "what about {} then", "{} please", "can you do {}", "is {} all right")
_OUTSIDE = ("who painted it", "zebra stripes", "volcano magnitude", "quantum photons", "poem by a child")
_GAP_KEYS = {"auroc", "oos_recall_at_5", "in_scope_accuracy", "ece", "ms_per_query"}
_MATCH_KEYS = {"owner_accuracy", "oos_recall", "false_gap_rate"}


class Words:
    """Embeds each text as the counts of its hashed letters in threes, of unit length."""

    model = "threes"
    dimension = 97

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for i in range(max(1, len(text) - 2)):
                row[sum(ord(c) * 31**k for k, c in enumerate(text[i : i + 3])) % self.dimension] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def row(text: str, domain: str | None, intent: str = "oos") -> dict[str, Any]:
    return {"text": text, "domain": domain, "intent": intent}


def rows(frames: Sequence[str]) -> list[dict[str, Any]]:
    return [
        row(frame.format(intent.replace("_", " ")), domain, intent)
        for domain, intents in _INTENTS.items()
        for intent, frame in product(intents, frames)
    ]


TRAIN = rows(_FRAMES)
TEST = rows(("how is {} going", "{} i said")) + [row(text, None) for text in _OUTSIDE]


def written(path: Path, content: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in content), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return written(tmp_path / "train.jsonl", TRAIN), written(tmp_path / "test.jsonl", TEST)


def check_shape(report: dict[str, Any], keys: set[str], baselines: set[str]) -> None:
    assert set(report) == {"ours", "baselines", "oracle", "n"}
    assert set(report["baselines"]) == baselines
    assert set(report["oracle"]) == keys
    for found in (report["ours"], *report["baselines"].values()):
        assert set(found) == keys | {"ci95"}
        for key, (low, high) in found["ci95"].items():
            assert low <= high and found[key] is not None
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("near", [False, True])
def test_gap_prints_every_figure_beside_the_baselines(files: tuple[Path, Path], near: bool) -> None:
    report = gap.evaluate(*files, near=near, embedder=Words())
    single = {"1-NN", "linear_embeddings", "linear_tfidf"}
    check_shape(report, _GAP_KEYS, single | {"random", "length", "domain_mean", "centroid", "our_head", "best_single"})
    assert report["n"] == len(TEST) - (len(_OUTSIDE) if near else 0)
    best = max(report["baselines"][name]["auroc"] for name in single)
    assert report["baselines"]["best_single"]["auroc"] == best
    assert report["ours"]["ms_per_query"] > 0 and report["oracle"]["auroc"] == 1.0
    if not near:
        assert report["ours"]["auroc"] > 0.9 > report["baselines"]["random"]["auroc"]
        assert report["ours"]["in_scope_accuracy"] > 0.9


def test_match_makes_an_agent_of_every_domain(files: tuple[Path, Path]) -> None:
    report = match.evaluate(*files, embedder=Words())
    check_shape(report, _MATCH_KEYS, {"random", "best_single", "1-NN", "centroid", "at_once"})
    assert report["ours"]["owner_accuracy"] > 0.9 > report["baselines"]["random"]["owner_accuracy"]
    assert report["baselines"]["best_single"]["owner_accuracy"] == pytest.approx(1 / 3)
    assert report["ours"]["oos_recall"] > report["ours"]["false_gap_rate"]


def test_the_same_files_give_the_same_figures(files: tuple[Path, Path]) -> None:
    first, second = (match.evaluate(*files, embedder=Words()) for _ in range(2))
    assert first == second


def test_without_rows_out_of_scope_what_they_would_tell_is_none(tmp_path: Path, files: tuple[Path, Path]) -> None:
    test = written(tmp_path / "inside.jsonl", TEST[: -len(_OUTSIDE)])
    found = gap.evaluate(files[0], test, embedder=Words())
    assert found["ours"]["auroc"] is None and found["ours"]["oos_recall_at_5"] is None
    assert found["ours"]["in_scope_accuracy"] > 0.9 and found["baselines"]["best_single"]["auroc"] is None
    matched = match.evaluate(files[0], test, embedder=Words())["ours"]
    assert matched["oos_recall"] is None and matched["owner_accuracy"] > 0.9


def test_nothing_is_learned_from_the_test_file(tmp_path: Path) -> None:
    both = [*TRAIN, *TEST, row("volcano", None), row("kept", "money", "loan")]
    train, test = written(tmp_path / "a", both), written(tmp_path / "b", TEST)
    known, asked = read_split(train, test)
    assert [question.text for question in asked] == [one["text"] for one in TEST]
    assert [question.text for question in known] == [one["text"] for one in TRAIN] + ["kept"]


def test_a_quarter_of_each_domains_intents_is_held_out(files: tuple[Path, Path]) -> None:
    known = read_questions(files[0])
    held = held_out_intents(known)
    assert {domain for domain, _ in held} == set(_INTENTS) and len(held) == 3
    assert held == held_out_intents(known) and held_out_intents(known, seed=5) != held


def test_services_get_valid_names_of_their_own() -> None:
    names = ("card lost", "card_lost", "Card-Lost!", "日本", "中文", "x" * 90, "x" * 91)
    questions = [Question(f"{d} {i}", d, i) for d in ("Über uns", "uber/uns", "ber uns") for i in names]
    fleet = fleet_of([*questions, *(Question(f"more {n}", "many", "one") for n in range(300))])
    assert len({record.service for record in fleet.records}) == 22 and len(set(fleet.agents.values())) == 4
    assert fleet.services["Über uns", "card_lost"] == "knowledge.gpt/ber-uns/card-lost-2"
    assert max(len(record.examples) for record in fleet.records) == 256


def test_separators_of_lines_within_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"text": "one\u2028two\x85three", "domain": "a", "intent": "b"}\r\n\n', encoding="utf-8")
    assert read_questions(path) == [Question("one\u2028two\x85three", "a", "b")]


@pytest.mark.parametrize("evaluate", [gap.evaluate, match.evaluate])
@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("", "good", "train.jsonl holds no rows"),
        ("good", "", "test.jsonl holds no rows"),
        ("good", '{"text": "x", "domain": "a"}', "test.jsonl, line 1: 'intent'"),
        ("good", '{"domain": "a", "intent": "b"}', "test.jsonl, line 1: 'text'"),
        ("good", '{"text": 3, "domain": "a", "intent": "b"}', "test.jsonl, line 1: 'text'"),
        ("good", '{"text": "x", "domain": 3, "intent": "b"}', "test.jsonl, line 1: 'domain'"),
        ("\n\n{", "good", "train.jsonl, line 3: not JSON"),
        ("\udcff", "good", "train.jsonl is not text"),
        ('{"text": "x", "domain": "a", "intent": "b"}', "good", "train.jsonl has rows of 1 domains"),
        ('{"text": "x", "domain": null}', "good", "train.jsonl has rows of 0 domains"),
        ("good", '{"text": "x", "domain": null}', "test.jsonl has no row with a domain"),
    ],
)
def test_a_bad_file_gets_one_line_that_names_it(
    tmp_path: Path, files: tuple[Path, Path], evaluate: Any, train: str, test: str, said: str
) -> None:
    for path, content in zip(files, (train, test), strict=True):
        if content != "good":
            path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        evaluate(*files, embedder=Words())
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_too_few_intents_to_hold_out_are_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl: No such file"):
        gap.evaluate(tmp_path / "nowhere.jsonl", files[1], embedder=Words())
    few = written(tmp_path / "few.jsonl", [row("a b", "money", "loan"), row("c d", "home", "lights")])
    with pytest.raises(ConfigError, match="no domain with four intents"):
        gap.evaluate(few, files[1], near=True, embedder=Words())


def test_recall_is_of_what_falls_below_nearly_all_that_is_inside() -> None:
    scores = np.concatenate([np.linspace(1, 2, 100), np.array([0.0, 0.5, 1.02, 1.5])])
    inside = np.arange(104) < 100
    assert recall_at(scores, inside) == 0.75
    with pytest.raises(ValueError, match="both"):
        recall_at(scores, np.ones(104, bool))
    perfect = scope_figures(inside.astype(float), inside, inside, calibrated=True)
    assert (perfect["auroc"], perfect["ece"], perfect["in_scope_accuracy"]) == (1.0, 0.0, 1.0)


@pytest.mark.slow
def test_real_questions_reach_the_published_figures(tmp_path: Path) -> None:
    pytest.importorskip("wordllama", reason="the embedder is not installed")
    if not _DATA.is_dir():
        pytest.skip("the intent files are not here")
    lines = {name: (_DATA / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") for name in ("train", "val")}
    known, asked = ([json.loads(line) for line in lines[name] if line.strip()] for name in ("train", "val"))
    half = {None, *sorted({one["domain"] for one in known})[::2]}
    real = [one for one in known if one["domain"] in half][::4]
    asked = [one for one in asked if one["domain"] in half]
    asked = [one for i, one in enumerate(asked) if one["domain"] is None or i % 5 == 0]
    train, test = written(tmp_path / "train.jsonl", real), written(tmp_path / "test.jsonl", asked)
    found = match.evaluate(train, test)
    assert found["ours"]["owner_accuracy"] > 0.96 > found["baselines"]["1-NN"]["owner_accuracy"]
    assert found["ours"]["oos_recall"] > 0.7 and found["ours"]["false_gap_rate"] < 0.09
