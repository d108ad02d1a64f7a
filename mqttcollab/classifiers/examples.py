"""Which services a question touches and whether any covers it, from the examples in service records."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.nearest import Text, read
from mqttcollab.classifiers.scope import Scope, ScopeModel, ScopeOptions, nearest_model, trained_model
from mqttcollab.messages import Relevance, ServiceRecord, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

# Broad services need many examples before a trained head is better than weighing a few of them; narrow ones need fewer.
_ENOUGH_SERVICES, _ENOUGH_EXAMPLES = 10, 80


@dataclass(frozen=True, slots=True)
class _Known:
    """What the records say: the services, the agents of each, the examples with their label and group, the model."""

    services: Sequence[str]
    agents: Sequence[Sequence[str]]
    examples: Sequence[Text]
    labels: NDArray[np.intp]
    groups: NDArray[np.intp]
    model: ScopeModel


class ExampleClassifier:
    """Classifies questions by the examples and descriptions in service records, pooled over a service's agents.

    `learn` and `train` may run in different threads, and questions may be asked meanwhile. What `train` finds for
    records that `learn` has replaced in between is dropped: `trained` is False then, and `train` is to be called
    again. Records that say what was known already leave the training as it is.

    Args:
        embedder: of examples and questions; texts are always embedded here, whatever model a record names.
        options: how scope is judged.
    """

    def __init__(self, embedder: Embedder, options: ScopeOptions | None = None) -> None:
        self._embedder = embedder
        self._options = options or ScopeOptions()
        self._lock = threading.Lock()
        self._texts: dict[str, Text] = {}
        self._known: _Known | None = None
        self._last: tuple[ScopeModel, str, Scope] | None = None

    @property
    def trained(self) -> bool:
        """Whether the head for the present records is there."""
        return self._known is not None and self._known.model.head is not None

    def learn(self, records: Sequence[ServiceRecord]) -> None:
        """Take these records instead of any before; only texts not seen before are embedded.

        A record without any text stands for its centroid, if that is of our embedding model, else for its name.
        """
        with self._lock:
            ordered = sorted(records, key=lambda record: (record.service, record.agent))
            entries = {(r.service, text): vector for r in ordered for text, vector in self._entries(r)}
            self._read([text for (_, text), vector in entries.items() if vector is None])
            if not entries:
                self._known = None
                return
            services = sorted({service for service, _ in entries})
            agents = [sorted({r.agent for r in ordered if r.service == service}) for service in services]
            examples = [
                self._texts[text] if vector is None else replace(read(self._embedder, [text])[0], vector=vector)
                for (_, text), vector in entries.items()
            ]
            numbers = {service: number for number, service in enumerate(services)}
            labels = np.array([numbers[service] for service, _ in entries])
            groups = np.unique([names[0] for names in agents], return_inverse=True)[1][labels]
            self._known = self._modelled(services, agents, examples, labels, groups)

    def train(self) -> None:
        """Train a head over all examples; blocks for seconds, so call it in a thread.

        Does nothing for fewer than 5 services, or fewer than 4 examples a service on average.
        The result is dropped if `learn` has taken other examples meanwhile.
        """
        known = self._known
        if known is None or known.model.head is not None:
            return

        def outdated() -> bool:
            return self._known is None or self._known.model is not known.model

        model = trained_model(known.examples, known.labels, known.groups, self._options, outdated)
        with self._lock:
            if model is not None and self._known is not None and not outdated():
                self._known = replace(self._known, model=model)

    def judge(self, question: str) -> Scope | None:
        """Return what is known of a question with its signals; None if it is empty, or nothing was learned."""
        known = self._known
        return self._judge(known, question) if known is not None and question.strip() else None

    def relevance(self, question: str) -> list[Relevance]:
        """Every service's probability that the question touches its domain, likeliest first; several may be likely."""
        known = self._known
        if known is None:
            return []
        if not question.strip():
            return [_relevance(service, 0.0, 0.0, "the question is empty") for service in known.services]
        scope = self._judge(known, question)
        closest = known.examples[scope.closest].text[:80]
        of = known.services[known.labels[scope.closest]]
        return [
            _relevance(
                known.services[i],
                float(scope.scores[i]),
                float(scope.about[i]),
                f"its examples score {scope.scores[i]:.2f} for the question; the closest of all is {closest!r} of {of}",
            )
            for i in np.argsort(-scope.scores)
        ]

    def touched(self, question: str) -> list[Relevance]:
        """The services that count as touched, likeliest first."""
        return [one for one in self.relevance(question) if one.probability >= self.relevance_threshold]

    def gap(self, question: str) -> Verdict:
        """The probability that the question is beyond what all records together cover."""
        known = self._known
        if known is None or not question.strip():
            reason = "no service says what it covers" if known is None else "the question is empty"
            return Verdict(score=0.0, probability=1.0, reason=reason)
        scope = self._judge(known, question)
        said = ", ".join(f"{name} {value:.2f}" for name, value in scope.signals.items())
        service = known.services[int(scope.scores.argmax())]
        reason = f"closest to {service} and to {known.examples[scope.closest].text[:80]!r} ({said})"
        return Verdict(score=-scope.log_odds, probability=1 - scope.probability, reason=reason)

    def owners(self, question: str) -> list[tuple[str, float]]:
        """Return the agents and the share of the question that their services have, likeliest first.

        Shares add up to 1 over services; agents that offer the same service have its share each.
        """
        known = self._known
        if known is None or not question.strip():
            return []
        shares: dict[str, float] = {}
        for agents, share in zip(known.agents, self._judge(known, question).shares, strict=True):
            for agent in agents:
                shares[agent] = shares.get(agent, 0.0) + float(share)
        return sorted(shares.items(), key=lambda item: -item[1])

    @property
    def relevance_threshold(self) -> float:
        """The probability from which a service counts as touched: where F1 on held-out examples is best."""
        return 0.5 if self._known is None else self._known.model.touched

    @property
    def gap_threshold(self) -> float:
        """The probability of a gap from which a question counts as beyond everybody: `threshold` for 5%."""
        return self.threshold()

    def threshold(self, target: float = 0.05) -> float:
        """Return the gap probability above which to report a gap.

        Args:
            target: the share of examples that may be reported though they are covered, measured on held-out ones.
        """
        known = self._known
        return 0.5 if known is None else 1 - known.model.threshold(target)

    def _entries(self, record: ServiceRecord) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
        """Yield the texts that a record stands for, with a vector where it is not to be computed."""
        texts = [text for text in (record.description, *record.examples) if text.strip()]
        yield from ((text, None) for text in texts)
        if texts:
            return
        name = record.service.partition("/")[2].replace("/", " ").replace("-", " ")
        centroid = record.centroid_for(self._embedder.model, self._embedder.dimension)
        yield name, None if centroid is None else np.array(centroid, np.float32)

    def _read(self, texts: Sequence[str]) -> None:
        """Embed the texts that are new, and forget those that are gone."""
        new = list({text: None for text in texts if text not in self._texts})
        fresh = dict(zip(new, read(self._embedder, new), strict=True))
        self._texts = {text: fresh.get(text) or self._texts[text] for text in texts}

    def _modelled(
        self,
        services: Sequence[str],
        agents: Sequence[Sequence[str]],
        examples: Sequence[Text],
        labels: NDArray[np.intp],
        groups: NDArray[np.intp],
    ) -> _Known:
        old = self._known
        if (
            old is not None
            and old.services == services
            and np.array_equal(old.labels, labels)
            and all(
                a.text == b.text and (a is b or np.array_equal(a.vector, b.vector))
                for a, b in zip(old.examples, examples, strict=True)
            )
        ):
            return replace(old, agents=agents, groups=groups)
        return _Known(services, agents, examples, labels, groups, nearest_model(examples, labels, self._options))

    def _judge(self, known: _Known, question: str) -> Scope:
        last = self._last
        if last is not None and last[0] is known.model and last[1] == question:
            return last[2]
        scope = known.model.judge(read(self._embedder, [question])[0])
        self._last = (known.model, question, scope)
        return scope


def enough(records: Sequence[ServiceRecord]) -> bool:
    """Whether a head is worth training on these records: at least 10 services, half of them with 80 examples."""
    sizes: dict[str, set[str]] = {}
    for record in records:
        sizes.setdefault(record.service, set()).update(record.examples)
    return len(sizes) >= _ENOUGH_SERVICES and median(map(len, sizes.values())) >= _ENOUGH_EXAMPLES


def _relevance(service: str, score: float, probability: float, reason: str) -> Relevance:
    return Relevance(service=service, score=score, probability=probability, reason=reason)
