"""Simulated fleets of services with few examples, drawn from an intent file, and questions put to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mqttcollab.classifiers.fewshot import gap_signals
from mqttcollab.classifiers.signals import Background, Described, Embed, Examples, normal, words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_COUNT = 4  # a word that stands in fewer rows is as good as unknown
_JOINERS = (" and ", ", and ", ". ", "? ", "; ", ", also ")
_NAMED_TOPICS = 8


@dataclass(frozen=True, slots=True)
class Intent:
    """What one topic's rows say: half of them are examples of services, the others questions."""

    name: str
    domain: str
    examples: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its kind (`one`, `two`, `mixed`, `near` or `far`) and the places of the services it touches."""

    text: str
    kind: str
    touched: frozenset[int]


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How fleets are drawn.

    Attributes:
        fleets: how many.
        services: the fewest and the most of a fleet.
        examples: the fewest and the most of a service, evenly on a logarithmic scale.
        questions: put to each fleet.
        seed: makes it repeatable.
    """

    fleets: int = 120
    services: tuple[int, int] = (4, 30)
    examples: tuple[int, int] = (3, 30)
    questions: int = 60
    seed: int = 0


def background_of(texts: Sequence[str], embed: Embed) -> Background:
    """Return what these questions share."""
    normals = [normal(text) for text in texts]
    counts = Counter(word for text in normals for word in words_of(text))
    common = {word: count for word, count in counts.most_common() if count >= _LEAST_COUNT}
    return Background(embed(normals).mean(axis=0), len(texts), common)


def draw_fleet(
    random: np.random.Generator, intents: Sequence[Intent], options: FleetOptions
) -> tuple[list[Described], list[frozenset[int]]]:
    """Return services of one intent, of a few of a domain or of a whole domain, and the intents that each covers."""
    fewest, most = options.services
    # Some intents are nobody's: they are what a near miss asks for.
    offered = random.permutation(len(intents))[: max(fewest, int(len(intents) * random.uniform(0.3, 0.8)))]
    domains = sorted({intents[i].domain for i in offered})
    covered: dict[frozenset[int], Described] = {}
    for _ in range(int(random.integers(fewest, most + 1))):
        shape = random.random()
        domain = domains[int(random.integers(len(domains)))]
        siblings = [int(i) for i in offered if intents[i].domain == domain]
        if shape < 0.2:
            mine = siblings
        elif shape < 0.45:
            mine = siblings[: int(random.integers(2, 5))]
        else:
            mine = [int(random.choice(offered))]
        covered.setdefault(frozenset(mine), _service(random, [intents[i] for i in mine], options.examples))
    return list(covered.values()), list(covered)


def _service(random: np.random.Generator, intents: Sequence[Intent], sizes: tuple[int, int]) -> Described:
    pool = [text for intent in intents for text in intent.examples]
    size = round(float(np.exp(random.uniform(np.log(sizes[0]), np.log(sizes[1])))))
    examples = tuple(pool[int(i)] for i in random.permutation(len(pool))[:size])
    if random.random() < 0.25:
        return Described((), examples)
    domain = f"{_words(intents[0].domain)}: " if random.random() < 0.5 else ""
    return Described((domain + ", ".join(_words(intent.name) for intent in intents[:_NAMED_TOPICS]),), examples)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def draw_questions(
    random: np.random.Generator, intents: Sequence[Intent], covers: Sequence[frozenset[int]], number: int
) -> Iterator[Asked]:
    """Yield questions of covered intents, of two joined, and of intents that nobody covers, and mixtures."""
    owners = {i: frozenset(s for s, cover in enumerate(covers) if i in cover) for i in frozenset().union(*covers)}
    covered = sorted(owners)
    others = [i for i in range(len(intents)) if i not in owners]
    domains = {intents[i].domain for i in covered}
    for kind in random.choice(["one", "two", "mixed", "out"], number, p=[0.5, 0.2, 0.1, 0.2]):
        first, second = (int(i) for i in random.choice(covered, 2))
        if kind == "one" or (kind != "two" and not others):
            yield Asked(_row(random, intents[first]), "one", owners[first])
        elif kind == "two":
            text = _joined(random, intents[first], intents[second])
            yield Asked(text, "two", owners[first] | owners[second])
        else:
            other = int(random.choice(others))
            if kind == "mixed":
                pair = (intents[first], intents[other]) if random.random() < 0.5 else (intents[other], intents[first])
                yield Asked(_joined(random, *pair), "mixed", owners[first])
            else:
                near = "near" if intents[other].domain in domains else "far"
                yield Asked(_row(random, intents[other]), near, frozenset())


def _row(random: np.random.Generator, intent: Intent) -> str:
    return intent.questions[int(random.integers(len(intent.questions)))]


def _joined(random: np.random.Generator, first: Intent, second: Intent) -> str:
    return _row(random, first) + str(random.choice(_JOINERS)) + _row(random, second)


@dataclass(frozen=True, slots=True)
class Sample:
    """Every question put to every fleet.

    Attributes:
        signals: (pairs, signals) of each question with each service of its fleet.
        touched: (pairs,), whether the question touches the service.
        question: (pairs,), which question the pair belongs to; pairs of one question stand together.
        cosine: (pairs,), the largest cosine, of which a rule of thumb decides.
        kinds: (questions,).
    """

    signals: NDArray[np.float64]
    touched: NDArray[np.bool_]
    question: NDArray[np.intp]
    cosine: NDArray[np.float64]
    kinds: NDArray[np.str_]

    @property
    def starts(self) -> NDArray[np.intp]:
        """Where the pairs of each question begin."""
        return np.asarray(np.searchsorted(self.question, np.arange(len(self.kinds))))

    def gap_signals(self, log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (questions, signals) for what decides on gaps."""
        spans = zip(self.starts, [*self.starts[1:], len(self.question)], strict=True)
        return np.stack([gap_signals(log_odds[a:b]) for a, b in spans])


def simulate(intents: Sequence[Intent], embed: Embed, background: Background, options: FleetOptions) -> Sample:
    """Draw fleets and ask them."""
    random = np.random.default_rng(options.seed)
    signals, touched, cosine, sizes, kinds = [], [], [], [], []
    for _ in range(options.fleets):
        services, covers = draw_fleet(random, intents, options)
        examples = Examples(services, embed, background)
        vectors = embed([text for service in services for text in service.texts])
        starts = np.cumsum([0] + [len(service.texts) for service in services])[:-1]
        for asked in draw_questions(random, intents, covers, options.questions):
            signals.append(examples.closeness(asked.text).signals)
            touched.append([s in asked.touched for s in range(len(services))])
            cosine.append(np.maximum.reduceat(vectors @ embed([asked.text])[0], starts))
            sizes.append(len(services))
            kinds.append(asked.kind)
    return Sample(
        np.concatenate(signals),
        np.concatenate(touched),
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate(cosine).astype(np.float64),
        np.array(kinds),
    )


def split_intents(rows: Sequence[Mapping[str, object]], share: float, seed: int) -> tuple[list[Intent], list[Intent]]:
    """Return the intents to fit on and those (this share) to test on; a row has text, domain and intent."""
    random = np.random.default_rng(seed)
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["domain"] is not None and row["intent"] is not None:
            grouped.setdefault((str(row["domain"]), str(row["intent"])), []).append(str(row["text"]))
    intents = [
        Intent(name, domain, tuple(texts[::2]), tuple(texts[1::2]))
        for (domain, name), texts in sorted(grouped.items())
        if len(texts) > 1
    ]
    order = [intents[i] for i in random.permutation(len(intents))]
    tested = round(len(order) * share)
    return order[tested:], order[:tested]
