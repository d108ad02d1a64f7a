"""A unified view of an area: what its agents sense, kept, compared and searched without computing it again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from mqttcollab.agent import Agent
from mqttcollab.cooperation.area_findings import Series, Window, series_of
from mqttcollab.cooperation.area_report import AreaReport, report_of
from mqttcollab.cooperation.area_statistics import dot, unit_vector
from mqttcollab.cooperation.area_stream import EmbeddingStream
from mqttcollab.cooperation.area_windows import (
    Arrival,
    Embedded,
    Sensed,
    SourceKey,
    StreamLimits,
    Wanted,
)
from mqttcollab.errors import ConfigError
from mqttcollab.threads import Threads

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

__all__ = ["Area", "Near", "Reused"]

_MOST_TEXTS = 2048


class Near(NamedTuple):
    """A source whose latest embedding is close to what was looked for; `score` is the cosine."""

    source: SourceKey
    score: float
    embedding: Embedded
    text: str


class Reused(NamedTuple):
    """A vector (at length 1) that a peer has computed, and which peer."""

    vector: Sequence[float]
    model: str
    source: SourceKey


class Area:
    """Follows what agents publish under a domain, from `async with` to its end.

    Args:
        agent: a running agent; its connection is used, and its embedder if it has one.
        domain: a service under `data.gpt`, or an MQTT filter over such: `data.gpt/#`, `data.gpt/air/#`.
        place: only what is said to be there; None for every place.
        kind: the kind of embeddings, e.g. `text`; None for all.
        model: the model of embeddings; None for that of the agent's embedder, or for all if it has none.
        dimension: their dimension; None likewise.
        embedder: embeds what is looked for; None for the agent's.
        limits: how much is kept and taken.

    Attributes:
        distrusted: agents whose vectors are not reused any more.

    Raises:
        TopicError: the domain is no service or filter under `data.gpt`.
        ConfigError: model or dimension are not those of `embedder`.
    """

    def __init__(
        self,
        agent: Agent,
        domain: str = "data.gpt/#",
        *,
        place: str | None = None,
        kind: str | None = None,
        model: str | None = None,
        dimension: int | None = None,
        embedder: Embedder | None = None,
        limits: StreamLimits | None = None,
    ) -> None:
        if embedder is not None and (model or embedder.model, dimension or embedder.dimension) != (
            embedder.model,
            embedder.dimension,
        ):
            raise ConfigError(
                f"the area wants embeddings of {model}, {dimension} dimensions, and its embedder makes"
                f" {embedder.model}, {embedder.dimension}: vectors of different models are never compared"
            )
        own = embedder or agent.embedder
        # An agent whose own model is another one may still follow embeddings of this one.
        if own is not None and (model not in (None, own.model) or dimension not in (None, own.dimension)):
            own = None
        if own is not None:
            model, dimension = own.model, own.dimension
        self.domain = domain
        self.place = place
        self.embedder = own
        self.wanted = Wanted(model, kind, dimension)
        self.stream = EmbeddingStream(agent.transport, domain, self.wanted, limits or StreamLimits())
        self.distrusted: set[str] = set()
        self._texts: OrderedDict[str, Reused] = OrderedDict()
        self._threads = Threads("an area", 1)

    async def __aenter__(self) -> Self:
        """Subscribes; retained observations come in a little later.

        Raises:
            SubscribeError: the broker refuses it.
        """
        self.stream.on_arrival = self._remember
        await self.stream.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stream.stop()

    def __aiter__(self) -> AsyncIterator[Arrival]:
        """What comes in from now on."""
        return self.stream.arrivals()

    @property
    def problems(self) -> dict[str, str]:
        """Why a message was not taken, by topic (the latest 256)."""
        return self.stream.problems

    # The unified view

    def windows(self, *, place: str | None = None) -> list[Window]:
        """What is kept of every source, by name; of a place if one is given here or for the area."""
        where = place if place is not None else self.place
        return [
            Window(key, window.place, dict(window.units), tuple(window.observations), tuple(window.embeddings))
            for key, window in sorted(self.stream.sources.items())
            if where is None or window.place == where
        ]

    def latest(self, *, place: str | None = None) -> dict[SourceKey, Sensed]:
        """The newest observation of every source that has one."""
        return {w.key: w.observations[-1] for w in self.windows(place=place) if w.observations}

    def values(self, name: str, *, place: str | None = None) -> list[Series]:
        """One value (`temperature`) over time, of every source that has it."""
        return series_of(self.windows(place=place), name)

    async def report(self, *, place: str | None = None) -> AreaReport:
        """Trends and what is unusual. Computed in a thread, some milliseconds per value."""
        now = asyncio.get_running_loop().time()
        where = place if place is not None else self.place
        report = await self._threads.run(report_of, self.domain, where, self.windows(place=place), now)
        assert isinstance(report, AreaReport)
        return report

    # Reusing embeddings

    def nearest(
        self, query: str | Sequence[float], most: int = 5, *, model: str | None = None, place: str | None = None
    ) -> list[Near]:
        """The sources whose latest embedding is closest, by cosine; nothing of theirs is computed again.

        Args:
            query: a text (embedded once by the area's embedder, unless a peer has embedded it), or a vector.
            most: how many at most.
            model: of which model a vector is; None for that of the area.

        Raises:
            ConfigError: a text and no embedder of the peers' model; a vector of no known model or no direction.
        """
        if isinstance(query, str):
            vector, model = self._embed(query), self.wanted.model
        else:
            model = model or self.wanted.model
            if model is None:
                raise ConfigError("a vector compares with those of its own model only: name it, model=…")
            unit = unit_vector(query)
            if unit is None:
                raise ConfigError("the vector to look for has no direction: it is zero or not finite")
            vector = unit
        found = []
        for window in self.windows(place=place):
            same = [e for e in window.embeddings if e.model == model and len(e.vector) == len(vector)]
            if same:
                texts = {o.id: o.text for o in window.observations}
                text = same[-1].text or texts.get(same[-1].observation or "", "")
                found.append(Near(window.key, dot(same[-1].vector, vector), same[-1], text))
        return sorted(found, key=lambda near: -near.score)[:most]

    def embedding_of(self, what: str) -> Reused | None:
        """The vector that a peer has published for an observation (its id) or for exactly this text, if one has."""
        if (known := self._texts.get(what)) is not None:
            return known
        for key, window in list(self.stream.sources.items()):  # copies: embedders may run in threads
            for embedded in reversed(list(window.embeddings)):
                if embedded.observation == what and key.agent not in self.distrusted:
                    return Reused(embedded.vector, embedded.model, key)
        return None

    def distrust(self, agent: str, why: str) -> None:
        """Does not reuse an agent's vectors any more, for a reason that is found among the problems."""
        self.distrusted.add(agent)
        for text in [text for text, reused in self._texts.items() if reused.source.agent == agent]:
            del self._texts[text]
        self.stream.note(f"@{agent}", why)

    def _embed(self, text: str) -> Sequence[float]:
        if (known := self._texts.get(text)) is not None and known.model == self.wanted.model:
            return known.vector
        if self.embedder is None:
            raise ConfigError(
                "finding by meaning takes an embedder of the peers' model: pass embedder=load_embedder('wordllama')"
            )
        vector = unit_vector(self.embedder.embed([text])[0].tolist())
        if vector is None:
            raise ConfigError(f"{text[:80]!r} has no meaning to {self.embedder.model}: its vector is zero")
        return vector

    def _remember(self, arrival: Arrival) -> None:
        """Keeps which text a vector is of, whichever of observation and embedding came first."""
        window = self.stream.sources[arrival.source]
        if (embedded := arrival.embedding) is not None:
            text = embedded.text
            if text is None and embedded.observation is not None:
                text = next((o.text for o in window.observations if o.id == embedded.observation), None)
            self._keep(text, embedded, arrival.source)
        elif (sensed := arrival.observation) is not None:
            for embedded in window.embeddings:
                if embedded.observation == sensed.id and embedded.text is None:
                    self._keep(sensed.text, embedded, arrival.source)

    def _keep(self, text: str | None, embedded: Embedded, source: SourceKey) -> None:
        # A text of the greatest length was cut: the vector is that of the whole one.
        if text and len(text) < self.stream.limits.text and source.agent not in self.distrusted:
            self._texts[text] = Reused(embedded.vector, embedded.model, source)
            self._texts.move_to_end(text)
            if len(self._texts) > _MOST_TEXTS:
                self._texts.popitem(last=False)
