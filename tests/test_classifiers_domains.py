"""The default domain classifier: a few examples first, a trained head where there are many."""

from __future__ import annotations

import pytest

from mqttcollab.classifiers.domains import AdaptiveClassifier
from mqttcollab.messages import ServiceRecord
from mqttcollab.runtimes.embedders import load_embedder

pytest.importorskip("wordllama", reason="the classifiers take wordllama: pip install 'mqttcollab[embed]'")

TOPICS = ("ships", "cheese", "violins", "tyres", "tulips", "tax", "chess", "volcanoes", "kites", "bread")
FRAMES = ("where are the", "how old are the", "who sells", "why do people like", "what colour are the", "tell me about")
MANNERS = ("", " today", " please", " in town", " again", " over there", " for my aunt", " at night", " now", " then")
HEAD = "its examples score"


def records(count: int, topics: int = 10) -> list[ServiceRecord]:
    """Six services with so many examples, the others with four."""
    return [
        ServiceRecord(
            agent=topic,
            service=f"knowledge.gpt/{topic}",
            examples=[f"{frame} {topic}{manner}" for manner in MANNERS for frame in (*FRAMES, "are there", "buy")][
                : count if number < 6 else 4
            ],
        )
        for number, topic in enumerate(TOPICS[:topics])
    ]


def test_a_head_takes_over_once_it_is_trained_and_goes_with_the_examples() -> None:
    classifier = AdaptiveClassifier(load_embedder("wordllama"))
    classifier.learn(records(80))
    first = classifier.relevance("who repairs violins?")[0]
    assert first.service == "knowledge.gpt/violins" and not first.reason.startswith(HEAD)
    classifier.train()
    later = classifier.relevance("who repairs violins?")[0]
    assert later.service == "knowledge.gpt/violins" and later.reason.startswith(HEAD)
    assert classifier.gap("turn the radio down").probability > classifier.gap("who repairs violins?").probability
    classifier.learn(records(80, topics=9))
    assert not classifier.relevance("who repairs violins?")[0].reason.startswith(HEAD)


def test_few_examples_are_never_trained_on() -> None:
    classifier = AdaptiveClassifier(load_embedder("wordllama"))
    classifier.learn(records(8))
    classifier.train()
    assert not classifier.relevance("who repairs violins?")[0].reason.startswith(HEAD)
    assert [one.service for one in classifier.touched("who repairs violins?")] == ["knowledge.gpt/violins"]
