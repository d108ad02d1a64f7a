"""The benchmark of working together: its checks judge rightly, its questions are sound, and its table is one."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.collaboration import run
from benchmarks.collaboration.checks import CATEGORIES, Given, Question, load, numbers_in, says, score
from benchmarks.collaboration.systems import AGE_S, SensorLog
from devices.analysis import handbook
from devices.wearable import HeartRate
from mqttcollab.codec import encode
from mqttcollab.errors import ConfigError
from mqttcollab.messages import Observation, Reply, Step
from mqttcollab.topics import data_topic
from mqttcollab.transport.base import TransportMessage

FOLDER = Path(run.__file__).parent
FILES = {name: load(FOLDER / name) for name in ("questions.jsonl", "dev.jsonl")}
MEASURED = {
    "heart_rate": [58.2, 59.1],
    "humidity": [49.1],
    "people": [0.0],
    "data.gpt/weather:wind": [9.3],
    "wind": [2.7],
}
NEAR = ["moving", "people"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("17 + 25 = 42", [17, 25, 42]),
        ("It is 2,450.50 in all.", [2450.5]),
        ("1,000,000", [1000000]),
        ("forty-two, Seventy and three", [42, 70, 3]),
        ("-5 and 8 - 3", [-5, 8, 3]),
        ("8 -3", [8, 3]),
        ("NO2, H2O and v1.2b", []),
        ("3.", [3]),
        ("someone", []),
        ("", []),
    ],
)
def test_numbers_are_read_in_figures_and_words(text: str, numbers: list[float]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("text", "words", "there"),
    [
        ("Cool it under RUNNING  water", "running water", True),
        ("cooling helps", "cool", True),
        ("A category", "cat", False),
        ("H₂O", "H2O", True),
        ("don’t hold", "don't hold", True),
        ("**Paris** is it", "Paris", True),
        ("concatenate", "cat", False),
    ],
)
def test_words_are_found_whole(text: str, words: str, there: bool) -> None:
    assert says(text, words) is there


@pytest.mark.parametrize(
    ("check", "text", "wanted"),
    [
        ({"number": 42}, "17 + 25 = 42", 1),
        ({"number": 42}, "17 + 25 = 32", 0),
        ({"number": 42}, "142 or 4.2", 0),
        ({"number": 0.1}, "it is 0.1", 1),
        ({"number": 10, "tolerance": 0.5}, "10.5", 1),
        ({"number": 10, "tolerance": 0.5}, "10.51", 0),
        ({"number": 42}, "", 0),
        ({"contains_any": ["Rome", "Roma"]}, "It is Rome.", 1),
        ({"contains_any": ["Rome", "Roma"]}, "Romeo", 0),
        ({"contains_all": ["press", "clean"]}, "Press on it, clean it", 1),
        ({"contains_all": ["press", "clean"]}, "Press on it", 0.5),
        ({"not_contains": ["falling"]}, "rising", 1),
        ({"not_contains": ["falling"]}, "falling", 0),
        ({"not_contains": ["falling"]}, "", 0),
        ({"value_of": "heart_rate", "within": 0.6}, "Heart rate 59/min", 1),
        ({"value_of": "heart_rate", "within": 0.6}, "Heart rate 72/min", 0),
        ({"value_of": "heart_rate", "within": 2}, "usually 60 to 100, or 60-100, or between 60 and 100", 0),
        ({"value_of": "heart_rate", "within": 2, "times": 2}, "118", 1),
        ({"value_of": "heart_rate", "within": 2, "times": 2}, "59", 0),
        ({"value_of": "heart_rate", "within": 0, "plus": 10, "times": 1}, "69.1", 1),
        ({"value_of": ["heart_rate", "humidity"], "within": 0.5}, "108", 1),
        ({"value_of": "wind", "within": 0.1, "service": "data.gpt/weather"}, "9.3 m/s", 1),
        ({"value_of": "wind", "within": 0.1, "service": "data.gpt/weather"}, "2.7 m/s", 0),
        ({"value_of": "rmssd", "within": 100}, "50", 0),
        ({"value_of": "people", "within": 1, "near": NEAR}, "last 1 s: 0 moving (at most 1 at once)", 1),
        ({"value_of": "people", "within": 1, "near": NEAR}, "in the last 1 s of this film 4 moving", 0),
        ({"value_of": "people", "within": 0, "near": NEAR}, "Nobody moves", 1),
        ({"value_of": "people", "within": 0, "near": NEAR}, "3 moving (drawn figures, no camera and no people)", 0),
        ({"all": [{"number": 1}, {"number": 2}]}, "1 and 2", 1),
        ({"all": [{"number": 1}, {"number": 2}]}, "1", 0.5),
        ({"any": [{"number": 1}, {"all": [{"number": 2}, {"number": 3}]}]}, "2", 0.5),
    ],
)
def test_checks_of_what_is_said(check: Mapping[str, Any], text: str, wanted: float) -> None:
    assert score(check, Given(text, measured=MEASURED)) == wanted


@pytest.mark.parametrize(
    ("given", "honest"),
    [
        (Given("", error="no_capability"), True),
        (Given("", error="deadline_exceeded"), False),
        (Given("", error="internal"), False),
        (Given("I don't know."), True),
        (Given("I’m not able to tell you that"), True),
        (Given("I cannot predict the numbers"), True),
        (
            Given("It was ham.\n(Nobody here specialises in this question: a general model answered it, unverified.)"),
            True,
        ),
        (Given("Heart rate 59/min", missing=True), True),
        (Given("Your sister had a sandwich."), False),
        (Given("I know that they don't like it: 4, 8, 15, 16, 23, 42"), False),
        (Given("NO2 is not measured by itself; this gives no value to compare"), False),
        (Given(""), False),
    ],
)
def test_an_invention_is_no_refusal(given: Given, honest: bool) -> None:
    assert score({"refuses": True}, given) == honest
    assert score({"refuses": False}, given) == (not honest)


def test_what_the_handbook_says_is_no_refusal() -> None:
    entries = handbook.load(FOLDER.parents[1] / "devices" / "data" / "first_aid.toml").entries
    said = [" ".join([entry.title, *entry.steps, entry.emergency]) for entry in entries]
    assert len(said) > 20
    assert [text for text in said if score({"refuses": True}, Given(text))] == []


@pytest.mark.parametrize("check", [{}, {"numbers": 3}, {"number": 3, "refuses": True}, [], {"all": [{"x": 1}]}])
def test_an_unknown_check_is_refused(check: Any) -> None:
    with pytest.raises(ConfigError, match="a check has one of number, contains_any"):
        score(check, Given("3"))


@pytest.mark.parametrize(
    ("line", "says_why"),
    [
        ("{", "line 2: not a question"),
        ("[]", "line 2: not a question"),
        ('{"id": "a", "category": "arithmetic", "question": "?"}', "line 2: not a question .*'check'"),
        (
            '{"id": "a", "category": "sums", "question": "?", "check": {"number": 1}}',
            "line 2: .*category of arithmetic",
        ),
        ('{"id": "a", "category": "arithmetic", "question": " ", "check": {"number": 1}}', "line 2: needs a question"),
        ('{"id": "a", "category": "arithmetic", "question": "?", "check": {"number": "x"}}', "line 2: not a question"),
        ('{"id": "a", "category": "arithmetic", "question": "?", "check": {"all": []}}', "line 2: not a question"),
        ('{"id": "a", "category": "arithmetic", "question": "?", "check": {"maybe": 1}}', "line 2: a check has one of"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says_why: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": "b", "category": "general", "question": "?", "check": {"refuses": true}}\n' + line)
    with pytest.raises(ConfigError, match=says_why):
        load(file)


def test_a_file_that_cannot_be_read_or_is_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl can't be read"):
        load(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"empty\.jsonl has no question"):
        load(tmp_path / "empty.jsonl")


# The questions


def normal(text: str) -> str:
    return " ".join(re.findall(r"[\w+*/^%-]+", text.lower()))


def every() -> list[Question]:
    return [question for questions in FILES.values() for question in questions]


def numbers_checked(check: Mapping[str, Any]) -> Iterator[float]:
    if "number" in check:
        yield float(check["number"])
    for part in (*check.get("all", ()), *check.get("any", ())):
        yield from numbers_checked(part)


def test_there_are_enough_questions_of_every_kind() -> None:
    counts = Counter(question.category for question in FILES["questions.jsonl"])
    assert set(counts) == set(CATEGORIES) == {question.category for question in FILES["dev.jsonl"]}
    assert sum(counts.values()) >= 60
    assert min(counts.values()) >= 10


def test_no_question_is_asked_twice() -> None:
    assert [text for text, times in Counter(normal(q.text) for q in every()).items() if times > 1] == []
    assert [i for i, times in Counter(q.id for q in every()).items() if times > 1] == []


def test_no_question_is_one_that_the_devices_announce() -> None:
    modules = ("roadside", "weather", "camera", "arithmetic", "first_aid", "phone")
    announced = [text for name in modules for text in importlib.import_module(f"devices.{name}").EXAMPLES]
    known = {normal(text) for text in (*announced, *HeartRate.examples)}
    assert len(known) > 60
    assert known.isdisjoint(normal(question.text) for question in every())


@pytest.mark.parametrize("question", every(), ids=lambda question: question.id)
def test_repeating_the_question_or_saying_nothing_is_never_right(question: Question) -> None:
    assert set(numbers_checked(question.check)).isdisjoint(numbers_in(question.text))
    for text in ("", question.text):
        assert score(question.check, Given(text, measured=MEASURED)) < 1
    assert bool(question.plan) is (question.category != "out of scope")


# The count


def observation(**values: float) -> TransportMessage:
    content = Observation(id="0" * 32, agent="watch-7", service="data.gpt/health/heart-rate", values=values)
    topic = data_topic(content.service, content.agent, "observation")
    return TransportMessage(topic=topic, payload=encode(content))


def test_the_sensors_log_gives_what_was_measured_then_else_the_last_value() -> None:
    log = SensorLog()
    log.take(observation(heart_rate=59.0))
    log.take(observation(heart_rate=60.0))
    both = {"heart_rate": [59.0, 60.0], "data.gpt/health/heart-rate:heart_rate": [59.0, 60.0]}
    assert log.since(0) == both
    assert log.since(1e12 + AGE_S)["heart_rate"] == [60.0]


def outcome(share: float, needless: int = 0, category: str = "general") -> run.Outcome:
    return run.Outcome("q", category, share, 10.0, needless, "answer")


def test_an_answer_is_right_if_all_its_parts_are_and_nothing_buries_them() -> None:
    assert outcome(1.0).right and outcome(1.0, needless=1).right
    assert not outcome(0.5).right and not outcome(1.0, needless=2).right


def test_counts_intervals_and_the_distance_to_the_orchestrator() -> None:
    whole, half = [outcome(1.0) for _ in range(40)], [outcome(float(n % 2)) for n in range(40)]
    counted = run._counted(half, whole)
    assert counted["right"] == 0.5 and counted["categories"]["general"] == [20, 40]
    low, high = counted["interval"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert counted["behind"]["mean"] == 0.5 and counted["behind"]["interval"][0] > 0.3
    assert "behind" not in run._counted(whole, whole)


def test_only_specialists_that_a_question_does_not_need_are_needless() -> None:
    question = next(q for q in FILES["questions.jsonl"] if q.category == "arithmetic")
    services = ("computation.gpt/arithmetic", "knowledge.gpt/general", "data.gpt/weather", "data.gpt/weather")
    steps = [Step(number=n, service=service) for n, service in enumerate(services, 1)]
    failed = Step(number=9, service="data.gpt/vision/occupancy", status="error")
    reply = Reply(id="0" * 32, output="4", steps=[*steps, failed])
    assert run._needless(question, reply) == 1
    assert run._needless(question, None) == 0


def test_the_first_questions_of_each_kind() -> None:
    chosen = run.first_of_each(FILES["questions.jsonl"], 2)
    assert Counter(q.category for q in chosen) == dict.fromkeys(CATEGORIES, 2)
    assert run.first_of_each(FILES["dev.jsonl"], None) == FILES["dev.jsonl"]


def test_a_table_with_every_system_and_what_was_left_out() -> None:
    whole, worse = [outcome(1.0) for _ in range(20)], [outcome(0.0) for _ in range(20)]
    counted = {run.ORCHESTRATOR: run._counted(whole, whole), run.PHONE: run._counted(worse, whole)}
    result = {"n": 20, "systems": counted, "aims": list(run._aims(counted))}
    lines = list(run.show(result))
    assert any(line.startswith("orchestrator") and "100%" in line for line in lines)
    assert any(line.startswith("phone alone") and "+100%" in line for line in lines)
    assert [line for line in lines if line.startswith("holds")]
    assert list(run.show({"missing": "no model"})) == ["no model"]
    json.dumps(result)
