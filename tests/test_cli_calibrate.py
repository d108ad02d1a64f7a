"""`mqttcollab calibrate` as a user runs it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from command import run

from mqttcollab.classifiers.calibration_file import read_calibration
from mqttcollab.classifiers.fewshot import FewShotClassifier
from mqttcollab.cli.calibrate import read_intents
from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.fewshot import best_threshold, calibrate, fit_logistic, separation
from mqttcollab.evaluate.fleets import FleetOptions
from mqttcollab.runtimes.embedders import load_embedder

DATA = Path(__file__).parents[2] / "shared" / "data" / "intents" / "val.jsonl"
WORDS = ("north", "bread", "piano", "river", "metal", "bank", "garden", "moon")
FRAMES = ("where is the {}", "show me {} now", "i need {}", "tell me about {}", "buy {} today", "a {} please")


def small(path: Path) -> Path:
    """An intent file of 40 intents in 8 domains: enough for a run, too little for good figures."""
    rows = [
        {"text": frame.format(f"{domain} number {topic}x {other}"), "domain": domain, "intent": f"{domain}_{topic}"}
        for domain in WORDS
        for topic in range(5)
        for frame in FRAMES
        for other in ("one", "two")
    ]
    rows.append({"text": "nobody's", "domain": None, "intent": None})
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


@pytest.mark.slow
def test_it_prints_figures_and_writes_a_calibration_that_serves(tmp_path: Path) -> None:
    train, output = small(tmp_path / "intents.jsonl"), tmp_path / "calibration.json"
    words = ("calibrate", "--train", str(train), "--output", str(output), "--target", "0.1", "--source", "made up")
    result = asyncio.run(run(*words, "--embedder", "wordllama:64", "--fleets", "10", "--json"))
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert set(figures["baselines"]) == {"cosine_0.40", "1-NN"}
    assert {"recall", "precision", "gap_auroc", "ece"} <= set(figures["ours"])
    calibration = read_calibration(output)
    assert calibration.about["held_out"]["ours"] == figures["ours"]
    assert (calibration.about["target"], calibration.about["source"]) == (0.1, "made up")
    assert calibration.model == "wordllama-l2-supercat-64"
    classifier = FewShotClassifier(load_embedder("wordllama:64"), calibration)
    assert 0 < classifier.relevance_threshold < 1 and 0 < classifier.gap_threshold < 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"text": "a", "domain": "b", "intent": "c"}\nno', "line 2: no JSON"),
        ('{"text": 3, "domain": "b", "intent": "c"}', "line 1: needs text, domain and intent"),
        ('{"text": "a", "domain": "b"}', "line 1: needs text, domain and intent"),
        ("[]", "line 1: needs text, domain and intent"),
        ("", "0 intents .* at least 30"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "intents.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem) as error:
        calibrate(read_intents(path), load_embedder("wordllama"), 0.05)
    assert "\n" not in str(error.value)


async def test_errors_end_the_command_in_one_line(tmp_path: Path) -> None:
    missing = await run("calibrate", "--train", str(tmp_path / "none.jsonl"))
    assert missing.error.endswith("none.jsonl: No such file or directory")
    train = str(small(tmp_path / "intents.jsonl"))
    nowhere = await run("calibrate", "--train", train, "--output", str(tmp_path / "no" / "c.json"))
    assert "no folder" in nowhere.error
    assert "the target is 0" in (await run("calibrate", "--train", train, "--target", "0")).error
    assert "embedder is 'elmo'" in (await run("calibrate", "--train", train, "--embedder", "elmo")).error


def test_on_real_intents_it_beats_the_rules_on_fleets_it_was_not_fitted_to() -> None:
    if not DATA.exists():
        pytest.skip("the intent files are not beside the repository")
    rows = read_intents(DATA)
    fitted = calibrate(rows, load_embedder("wordllama"), 0.05, FleetOptions(fleets=12, examples=(3, 10), questions=40))
    ours, rule, nearest = (fitted.figures[name] for name in ("ours", "cosine_0.40", "1-NN"))
    assert ours["recall"] > max(rule["recall"], nearest["recall"])
    assert ours["gap_auroc"] > rule["gap_auroc"] and ours["recall_two"] > nearest["recall_two"]
    assert ours["ece"] < 0.05


@pytest.mark.slow
def test_the_same_seed_gives_the_same_calibration(tmp_path: Path) -> None:
    rows = read_intents(small(tmp_path / "intents.jsonl"))
    options = FleetOptions(fleets=4, questions=20)
    first, second = (calibrate(rows, load_embedder("wordllama:64"), 0.05, options) for _ in range(2))
    assert first.calibration.to_json() == second.calibration.to_json()


def test_a_logistic_function_is_found_again() -> None:
    random = np.random.default_rng(0)
    signals = random.normal(size=(20_000, 2))
    positive = random.random(20_000) < 1 / (1 + np.exp(-(2 * signals[:, 0] - signals[:, 1] - 1)))
    found = fit_logistic(signals, positive)
    assert np.allclose([*found.weights, found.bias], [2, -1, -1], atol=0.1)
    assert best_threshold(np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, True, False, False])) == 0.8
    assert separation(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0.875
