"""Whether a question takes more than one step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mqttcollab.classifiers.base import ComplexityClassifier
from mqttcollab.classifiers.calibration import expected_calibration_error
from mqttcollab.classifiers.complexity import CUES, SHIPPED, CueComplexity, cues, load
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.complexity import evaluate

DATA = Path(__file__).parents[2] / "shared" / "data"
QUESTIONS, INTENTS = DATA / "decompose" / "strategyqa.jsonl", DATA / "intents" / "val.jsonl"
ONE = [
    "What is 17+25?",
    "what is 17+25",
    "Is it hot outside?",
    "Is the door open?",
    "is my pulse too high",
    "How do I treat a burn?",
    "Turn on the light",
    "What is the capital of France",
]
SEVERAL = [
    "What is 17+25 and is it hot outside?",
    "how hot is it and should i take an umbrella",
    "What is my pulse, and what does the handbook say about a pulse like that?",
    "What should I do about a nosebleed? And what is 3*4?",
    "Tell me the temperature then multiply it by two",
    "Is the air on the ring road worse than yesterday?",
    "Did Aristotle use a laptop in the year of his death?",
]


def test_questions_to_devices_are_told_apart() -> None:
    default = CueComplexity()
    assert isinstance(default, ComplexityClassifier)
    assert {q for q in ONE if default.complexity(q).probability >= 0.5} == set()
    assert {q for q in SEVERAL if default.complexity(q).probability <= 0.5} == set()


def test_a_verdict_says_which_cues_it_is_by() -> None:
    several, one = map(CueComplexity().complexity, (SEVERAL[0], ONE[0]))
    assert several.reason == "more than one step: requests joined by a conjunction, a conjunction"
    assert one.reason == "one step: a plain question"
    assert several.probability == pytest.approx(1 / (1 + np.exp(-several.score)))


@pytest.mark.parametrize(
    "text", ["", " ?!", "\x00\u2028\xff", "and is " * 20_000, "whom " * 20_000, "a" * 100_000, "，？"]
)
def test_any_text_gets_a_verdict(text: str) -> None:
    verdict = CueComplexity().complexity(text)
    assert 0 <= verdict.probability <= 1
    assert verdict.reason


def test_no_cue_counts_against_its_meaning() -> None:
    texts = ["call and tell him", "pay and go", "is it", "was it"] * 20
    learned = CueComplexity.fit(texts, np.array([False, False, True, True] * 20))
    assert learned.complexity("call and tell him").score <= learned.complexity("tell him").score + 1e-9
    with pytest.raises(ConfigError, match="one kind is missing"):
        CueComplexity.fit(texts, np.ones(80, bool))


def test_weights_are_the_same_after_a_file(tmp_path: Path) -> None:
    path, default = tmp_path / "weights.json", CueComplexity()
    default.save(path, {"rows": 0})
    assert CueComplexity(load(path)).probabilities(SEVERAL).tolist() == default.probabilities(SEVERAL).tolist()
    assert cues([]).shape == (0, len(CUES))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no weights of complexity"),
        ("[]", "no weights of complexity"),
        ("{}", "no weights of complexity: 'type'"),
        ('{"type": "mqttcollab.router.v1"}', "of another version"),
        ('{"type": "mqttcollab.complexity.v1", "weights": {"a cue": 1}, "bias": 0}', "of another version"),
        (SHIPPED.read_text(encoding="utf-8").replace('"bias": ', '"bias": null, "x": '), "no weights of complexity"),
        (SHIPPED.read_text(encoding="utf-8").replace('"bias": ', '"bias": NaN, "x": '), "no numbers"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_in_a_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "weights.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


# On data


@pytest.mark.skipif(not QUESTIONS.exists(), reason="the data sets are not here")
def test_on_rows_not_learned_from_it_beats_length_and_is_calibrated(tmp_path: Path) -> None:
    report = evaluate(QUESTIONS, INTENTS, tmp_path / "weights.json")
    assert report["ours"]["auroc"] > 0.94 > report["baselines"]["length"]["auroc"] + 0.05
    assert report["ours"]["ece"] < 0.05
    written = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
    assert written["provenance"]["held_out"]["n"] == report["n"]


@pytest.mark.skipif(not QUESTIONS.exists(), reason="the data sets are not here")
def test_the_shipped_weights_are_what_the_command_makes(tmp_path: Path) -> None:
    evaluate(QUESTIONS, INTENTS.with_name("train.jsonl"), tmp_path / "weights.json")
    made, shipped = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "weights.json", SHIPPED))
    assert made["weights"] == pytest.approx(shipped["weights"], abs=0.01)
    assert made["provenance"]["rows"] == shipped["provenance"]["rows"]


def test_probabilities_off_by_a_tenth_have_that_error() -> None:
    happened = np.arange(100) % 2 == 0
    assert expected_calibration_error(np.full(100, 0.6), happened) == pytest.approx(0.1)
