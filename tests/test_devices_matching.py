"""The devices' descriptions and examples: who is found by meaning for which question, with one threshold."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import pytest

from mqttcollab.runtimes.embedders import load_embedder

# Between the lowest cosine that must match and the highest that must not; see devices/README.md.
THRESHOLD = 0.4
ARITHMETIC, HEART, AIR = "computation.gpt/arithmetic", "data.gpt/health/heart-rate", "data.gpt/traffic/air-quality"
WEATHER, CAMERA, AREA = "data.gpt/weather", "data.gpt/vision/occupancy", "computation.gpt/area"
FIRST_AID, PHONE = "knowledge.gpt/medicine/first-aid", "knowledge.gpt/general"
MODULES = ("wearable", "roadside", "weather", "camera", "arithmetic", "first_aid", "phone", "area")
DEMO = {
    "What is 17 + 25?": {ARITHMETIC},
    "Evaluate the environmental risks of setting up an outdoor event here this afternoon": {WEATHER, AIR, CAMERA},
    "I feel dizzy and my heart is racing. What should I do?": {HEART, FIRST_AID},
}
# Each must find these and no others. The examples were tuned on them, so they guard against regressions and measure
# nothing.
QUESTIONS = {
    "Compute 12.5% of 640": {ARITHMETIC},
    "how much is 99 minus 45": {ARITHMETIC},
    "(3+4)*12": {ARITHMETIC},
    "How fast is my heart beating right now?": {HEART},
    "Show me my pulse": {HEART},
    "How hot is it outside?": {WEATHER},
    "Is it windy at the beach today?": {WEATHER},
    "How polluted is the street?": {AIR},
    "nitrogen dioxide level at the junction": {AIR},
    "Is the plaza crowded right now?": {CAMERA},
    "Did anybody walk past the camera?": {CAMERA},
    "Is anything odd around here?": {AREA},
    "Are there anomalies in what the sensors measure?": {AREA},
    "Is the temperature rising?": {AREA, WEATHER},
    "Someone is choking, help!": {FIRST_AID},
    "My grandfather collapsed and isn't breathing": {FIRST_AID},
    "A bee stung my son and his face is swelling": {FIRST_AID},
    "My chest hurts and my pulse is going crazy": {HEART, FIRST_AID},
}
OUT_OF_SCOPE = (
    "Who won the 1998 world cup?",
    "How do I change a tyre on my car?",
    "Recommend a good science fiction novel",
    "Book a table for two at an Italian restaurant",
    "What is the meaning of life?",
    "Set an alarm for six in the morning",
    "Play some jazz music",
    "How old is the universe?",
    "What's my account balance at the bank",
    "Write a poem about autumn",
)


def descriptions() -> dict[str, tuple[str, tuple[str, ...]]]:
    found = {}
    for name in MODULES:
        module: Any = importlib.import_module(f"devices.{name}")
        service = module.build({}).services[module.SERVICE]
        found[module.SERVICE] = (service.description, tuple(service.examples))
    return found


@cache
def vectors() -> dict[str, Any]:
    embedder = load_embedder("wordllama")
    return {service: embedder.embed([text, *examples]) for service, (text, examples) in descriptions().items()}


def likeness(question: str) -> dict[str, float]:
    asked = load_embedder("wordllama").embed([question])[0]
    return {service: float(np.max(rows @ asked)) for service, rows in vectors().items()}


def matches(question: str) -> set[str]:
    return {service for service, value in likeness(question).items() if value >= THRESHOLD}


@pytest.mark.parametrize(("question", "wanted"), (DEMO | QUESTIONS).items())
def test_the_right_services_match(question: str, wanted: set[str]) -> None:
    assert matches(question) == wanted, likeness(question)


@pytest.mark.parametrize("question", OUT_OF_SCOPE)
def test_no_specialist_matches_out_of_scope(question: str) -> None:
    assert matches(question) <= {PHONE}, likeness(question)


def test_no_example_is_a_question_of_the_demo() -> None:
    texts = {text.casefold() for description, examples in descriptions().values() for text in (description, *examples)}
    assert not texts & {question.casefold() for question in DEMO}


def test_each_service_has_enough_examples() -> None:
    for service, (description, examples) in descriptions().items():
        assert len(description) > 20, service
        assert 5 <= len(set(examples)) == len(examples), service
