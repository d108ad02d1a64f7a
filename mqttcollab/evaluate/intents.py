"""Intent files as a fleet: every domain is an agent, every intent a service of it with its own examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.files import optional_text, read_rows, text_of
from mqttcollab.messages import MAX_EXAMPLES, ServiceRecord

_NO_LABEL = re.compile(r"[^a-z0-9]+")
_MAX_LABEL = 60


@dataclass(frozen=True, slots=True)
class Question:
    """A row: its text, and the domain and intent it belongs to; None where it is out of scope."""

    text: str
    domain: str | None
    intent: str | None


def read_questions(path: Path) -> list[Question]:
    """Return the rows of an intent file (JSONL): text, domain (null: out of scope), intent.

    Raises:
        ConfigError: a row can't be read; says which.
    """
    questions = []
    for number, row in read_rows(path):
        text, domain = text_of(path, number, row, "text"), optional_text(path, number, row, "domain")
        questions.append(Question(text, domain, text_of(path, number, row, "intent") if domain is not None else None))
    return questions


def read_split(train: Path, test: Path) -> tuple[list[Question], list[Question]]:
    """Return the rows to learn from and those to rate with.

    Rows of `train` that are out of scope, or whose text is in `test`, are left out.

    Raises:
        ConfigError: a row can't be read, `train` has fewer than two domains, or `test` none.
    """
    asked = read_questions(test)
    texts = {question.text for question in asked}
    known = [
        question for question in read_questions(train) if question.domain is not None and question.text not in texts
    ]
    domains = {question.domain for question in known}
    if len(domains) < 2:
        raise ConfigError(f"{train} has rows of {len(domains)} domains that aren't in {test}; at least 2 are needed")
    if all(question.domain is None for question in asked):
        raise ConfigError(f"{test} has no row with a domain; accuracy and false gaps are measured on those")
    return known, asked


def held_out_intents(known: Sequence[Question], seed: int = 0) -> set[tuple[str | None, str | None]]:
    """Return (domain, intent) of a quarter of each domain's intents; none of a domain with fewer than four."""
    random = np.random.default_rng(seed)
    held: set[tuple[str | None, str | None]] = set()
    for domain in sorted({question.domain or "" for question in known}):
        intents = sorted({question.intent or "" for question in known if question.domain == domain})
        held.update((domain, intents[i]) for i in random.choice(len(intents), len(intents) // 4, replace=False))
    return held


@dataclass(frozen=True, slots=True)
class Fleet:
    """The records of agents that know the questions, and which agent and service each domain and intent became."""

    records: Sequence[ServiceRecord]
    agents: dict[str | None, str]
    services: dict[tuple[str | None, str | None], str]


def fleet_of(known: Sequence[Question]) -> Fleet:
    """Make an agent of every domain and a service of every intent, with at most 256 examples each."""
    name_agent, name_service = _namer(), _namer()
    agents: dict[str | None, str] = {}
    services: dict[tuple[str | None, str | None], str] = {}
    examples: dict[tuple[str | None, str | None], dict[str, None]] = {}
    for question in known:
        if question.domain not in agents:
            agents[question.domain] = name_agent("", question.domain)
        key = question.domain, question.intent
        if key not in services:
            services[key] = name_service(f"knowledge.gpt/{agents[question.domain]}/", question.intent)
        examples.setdefault(key, {})[question.text] = None
    records = [
        ServiceRecord(agent=agents[key[0]], service=service, examples=list(examples[key])[:MAX_EXAMPLES])
        for key, service in services.items()
    ]
    return Fleet(records, agents, services)


def _namer() -> Callable[[str, str | None], str]:
    """Return what makes a valid label of any text behind a prefix, never the same twice."""
    given: set[str] = set()

    def name(prefix: str, text: str | None) -> str:
        label = _NO_LABEL.sub("-", (text or "").lower())[:_MAX_LABEL].strip("-") or "x"
        name, number = prefix + label, 1
        while name in given:
            number += 1
            name = f"{prefix}{label[: _MAX_LABEL - 6]}-{number}"
        given.add(name)
        return name

    return name
