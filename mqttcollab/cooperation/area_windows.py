"""What is kept of an area's agents: their latest observations and embeddings, and how much of them at most."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from mqttcollab.messages import Embedding

_MOST_NAME = 128


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What an area keeps and takes at most.

    Attributes:
        observations, embeddings: kept of each source (an agent's service).
        sources: kept in all; a newcomer then takes the place of one that was silent for `silent_s`, or is refused.
        values: numbers of an observation; further ones are left out.
        text: characters of an observation's or embedding's text that is kept.
        rate, burst: messages per second and topic, and at once; what is over them is dropped undecoded.
        newcomers: messages per second on topics not heard before; ten seconds' worth may come at once.
    """

    observations: int = 256
    embeddings: int = 32
    sources: int = 256
    silent_s: float = 600.0
    values: int = 64
    text: int = 4000
    rate: float = 20.0
    burst: int = 50
    newcomers: float = 100.0


class Sensed(NamedTuple):
    """An observation and when it came here, by this device's clock (loop time, seconds).

    `replayed`: the broker had retained it, so it was measured some time before that.
    """

    at: float
    id: str
    text: str
    values: dict[str, float]
    replayed: bool


class Embedded(NamedTuple):
    """An embedding (at length 1) and when it came here; `text` or `observation` says what it stands for."""

    at: float
    vector: array[float]
    model: str
    kind: str
    text: str | None
    observation: str | None


class SourceKey(NamedTuple):
    """An agent's service."""

    agent: str
    service: str


@dataclass(slots=True)
class SourceWindow:
    """The latest of one source, oldest first; `place` and `units` are what it last said."""

    key: SourceKey
    observations: deque[Sensed]
    embeddings: deque[Embedded]
    place: str | None = None
    units: dict[str, str] = field(default_factory=dict)
    heard: float = 0.0


class Arrival(NamedTuple):
    """Something that came in; exactly one of the two is there."""

    source: SourceKey
    observation: Sensed | None = None
    embedding: Embedded | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which embeddings are taken; None leaves it open. Vectors of different models are never compared."""

    model: str | None = None
    kind: str | None = None
    dimension: int | None = None

    def refusal(self, message: Embedding) -> str | None:
        """Why an embedding is not taken, if so."""
        if len(message.model) > _MOST_NAME or len(message.kind) > _MOST_NAME:
            return "its embedding names a model or kind of more than 128 characters"
        if self.model is not None and message.model != self.model:
            return f"its embedding is of model {message.model!r}; wanted is {self.model!r}"
        if self.kind is not None and message.kind != self.kind:
            return f"its embedding is of kind {message.kind!r}; wanted is {self.kind!r}"
        if self.dimension is not None and len(message.vector) != self.dimension:
            return f"its embedding has {len(message.vector)} dimensions; wanted are {self.dimension}"
        return None
