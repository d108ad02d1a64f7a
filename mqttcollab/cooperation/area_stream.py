"""What the agents of an area publish, as it arrives: checked, and kept in windows of bounded size."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from weakref import WeakKeyDictionary

from mqttcollab.cms.reader import Reader
from mqttcollab.cooperation.area_statistics import unit_vector
from mqttcollab.cooperation.area_windows import (
    Arrival,
    Embedded,
    Sensed,
    SourceKey,
    SourceWindow,
    StreamLimits,
    Wanted,
)
from mqttcollab.errors import SubscribeError, TopicError, TransportError
from mqttcollab.messages import Embedding, Observation
from mqttcollab.topics import check_service, parse
from mqttcollab.transport.base import Handler, Transport, TransportMessage

_ARRIVALS = 1024
_STRANGERS = 1024
_MOST_PLACE = 64
_SERVICE_LABELS = 4


class EmbeddingStream:
    """Follows the embeddings and observations under a domain.

    Args:
        transport: the connection; may be connected later.
        domain: a service under `data.gpt`, or an MQTT filter over such: `data.gpt/#`, `data.gpt/air/#`.
        wanted: which embeddings are taken.
        limits: what is kept and taken at most.

    Attributes:
        sources: the windows, by agent and service.
        dropped: messages that came faster than the limits allow, or from more sources.
        received: messages that were read.
        limits: as given.
    """

    def __init__(self, transport: Transport, domain: str, wanted: Wanted, limits: StreamLimits) -> None:
        self.filters = stream_filters(domain)
        self.sources: dict[SourceKey, SourceWindow] = {}
        self.dropped = 0
        self.received = 0
        self._transport = transport
        self._wanted = wanted
        self.limits = limits
        self._reader = Reader()
        self._buckets: dict[str, _Bucket] = {}  # by topic, of the sources that we keep
        self._strangers: dict[str, _Bucket] = {}  # of others, the latest
        self._newcomers = _Bucket(limits.newcomers, int(10 * limits.newcomers))
        self._listeners: set[_Listener] = set()
        self._closed = False
        self.on_arrival: Callable[[Arrival], None] = lambda _: None

    @property
    def problems(self) -> dict[str, str]:
        """Why a message was not taken, by topic (the latest 256)."""
        return self._reader.problems

    def note(self, topic: str, problem: str) -> None:
        """Remembers a problem with what came on a topic."""
        self._reader.note(topic, problem)

    async def start(self) -> None:
        """Subscribes; raises SubscribeError if the broker refuses."""
        self._closed = False
        try:
            await _subscribe(self._transport, self.filters, self._take)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the subscriptions and everybody's iteration; the windows stay."""
        self._closed = True
        for listener in self._listeners:
            listener.news.set()
        await _unsubscribe(self._transport, self.filters, self._take)

    async def arrivals(self) -> AsyncIterator[Arrival]:
        """What comes in from now on, until the stream stops; of what nobody takes, the latest 1024 wait."""
        listener = _Listener()
        self._listeners.add(listener)
        try:
            while True:
                while listener.waiting:
                    yield listener.waiting.popleft()
                if self._closed:
                    return
                listener.news.clear()
                await listener.news.wait()
        finally:
            self._listeners.discard(listener)

    def _take(self, message: TransportMessage) -> None:
        now = asyncio.get_running_loop().time()
        if not self._passes(message.topic, now):
            self.dropped += 1
            return
        self.received += 1
        arrival = self._read(message, now)
        if arrival is not None:
            self.on_arrival(arrival)
            for listener in self._listeners:
                listener.waiting.append(arrival)
                listener.news.set()

    def _passes(self, topic: str, now: float) -> bool:
        bucket = self._buckets.get(topic) or self._strangers.get(topic)
        if bucket is None:
            if not self._newcomers.take(now):
                return False
            bucket = self._strangers[topic] = _Bucket(self.limits.rate, self.limits.burst)
            if len(self._strangers) > _STRANGERS:
                del self._strangers[next(iter(self._strangers))]
        return bucket.take(now)

    def _read(self, message: TransportMessage, now: float) -> Arrival | None:
        try:
            topic = parse(message.topic)
        except TopicError as error:
            self.note(message.topic, str(error))
            return None
        key = SourceKey(topic.agent, topic.service)
        if topic.kind == "observation":
            _, observation = self._reader.read(Observation, message)
            if observation is not None and self._is_of(observation, key, message.topic):
                return self._add_observation(key, observation, message, now)
        else:
            _, embedding = self._reader.read(Embedding, message)
            if embedding is not None and self._is_of(embedding, key, message.topic):
                return self._add_embedding(key, embedding, message.topic, now)
        return None

    def _is_of(self, content: Observation | Embedding, key: SourceKey, topic: str) -> bool:
        if content.service != key.service:  # the reader has compared the agent
            self.note(topic, f"it speaks of {content.service}")
        return content.service == key.service

    def _window(self, key: SourceKey, topic: str, now: float) -> SourceWindow | None:
        window = self.sources.get(key)
        if window is None:
            limits = self.limits
            if len(self.sources) >= limits.sources:
                silent = min(self.sources.values(), key=lambda w: w.heard)
                if now - silent.heard < limits.silent_s:
                    self.dropped += 1
                    return None
                self._forget(silent.key)
            window = SourceWindow(key, deque(maxlen=limits.observations), deque(maxlen=limits.embeddings))
            self.sources[key] = window
        if (bucket := self._strangers.pop(topic, None)) is not None:
            self._buckets[topic] = bucket
        window.heard = now
        return window

    def _forget(self, key: SourceKey) -> None:
        del self.sources[key]
        for leaf in ("observation", "embedding"):
            self._buckets.pop(f"{key.service}/@{key.agent}/{leaf}", None)

    def _add_observation(
        self, key: SourceKey, content: Observation, message: TransportMessage, now: float
    ) -> Arrival | None:
        window = self._window(key, message.topic, now)
        if window is None or any(known.id == content.id for known in window.observations):
            return None  # retained, and replayed after a reconnection
        names = [n for n, v in content.values.items() if len(n) <= 64 and abs(v) <= 1e100][: self.limits.values]
        if len(names) < len(content.values):
            left_out = len(content.values) - len(names)
            self.note(message.topic, f"{left_out} of {len(content.values)} values are left out: too many, or too large")
        values = {name: content.values[name] for name in names}
        window.place = content.place and content.place[:_MOST_PLACE]
        window.units = {name: content.units[name][:32] for name in names if name in content.units}
        sensed = Sensed(now, content.id, content.text[: self.limits.text], values, message.retain)
        window.observations.append(sensed)
        return Arrival(window.key, observation=sensed)

    def _add_embedding(self, key: SourceKey, content: Embedding, topic: str, now: float) -> Arrival | None:
        refusal = self._wanted.refusal(content)
        vector = unit_vector(content.vector) if refusal is None else None
        if vector is None:
            self.note(topic, refusal or "its embedding has no direction: it is zero or too large")
            return None
        window = self._window(key, topic, now)
        if window is None:
            return None
        if content.observation is None:
            window.place = content.place[:_MOST_PLACE] if content.place else window.place
        text = content.text if content.text is None or len(content.text) < self.limits.text else None
        observation = content.observation if content.observation is None or len(content.observation) <= 128 else None
        embedded = Embedded(now, array("f", vector), content.model, content.kind, text, observation)
        window.embeddings.append(embedded)
        return Arrival(window.key, embedding=embedded)


def stream_filters(domain: str) -> list[str]:
    """The narrowest filters over the observations and embeddings of a domain: one of each per number of levels.

    `data.gpt/#` itself would bring every request as well, and brokers with narrow permissions refuse it.

    Raises:
        TopicError: it is no service or filter under `data.gpt`.
    """
    levels = domain.split("/")
    open_end = levels[-1] == "#"
    base = levels[:-1] if open_end else levels
    try:
        if base != ["data.gpt"] or not open_end:
            check_service("/".join("x" if level == "+" else level for level in base))
        if base[0] != "data.gpt":
            raise TopicError("only services under data.gpt publish what they sense")
    except TopicError as error:
        raise TopicError(f"area of domain {domain[:80]!r}: {error}; use e.g. data.gpt/# or data.gpt/air/#") from None
    most = _SERVICE_LABELS + 1 - len(base) if open_end else 0
    services = ["/".join([*base, *["+"] * more]) for more in range(most + 1) if len(base) + more > 1]
    return [f"{service}/+/{leaf}" for service in services for leaf in ("observation", "embedding")]


class _Listener:
    """Somebody who iterates."""

    def __init__(self) -> None:
        self.waiting: deque[Arrival] = deque(maxlen=_ARRIVALS)
        self.news = asyncio.Event()


class _Bucket:
    """A token bucket (per second, at once)."""

    __slots__ = ("_burst", "_left", "_rate", "_then")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._then = float(burst), 0.0

    def take(self, now: float) -> bool:
        """Whether one more may pass."""
        self._left = min(self._burst, self._left + (now - self._then) * self._rate)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


# A transport knows one handler per filter; several areas of one connection may want the same.
_shared: WeakKeyDictionary[Transport, dict[str, list[Handler]]] = WeakKeyDictionary()


async def _subscribe(transport: Transport, filters: list[str], handler: Handler) -> None:
    shared = _shared.setdefault(transport, {})

    async def one(filter_: str) -> None:
        handlers = shared.setdefault(filter_, [])
        handlers.append(handler)

        def hand_out(message: TransportMessage) -> None:
            for each in list(handlers):
                each(message)

        # Also where it is subscribed already: the broker sends the retained observations again. At QoS 0, since
        # what waits at the broker for a session would arrive all at once, as if it were sensed together.
        await transport.subscribe(filter_, hand_out, qos=0)

    for error in await asyncio.gather(*map(one, filters), return_exceptions=True):
        # Where the connection broke meanwhile, the next one brings it.
        if error is not None and (isinstance(error, SubscribeError) or not isinstance(error, TransportError)):
            raise error


async def _unsubscribe(transport: Transport, filters: list[str], handler: Handler) -> None:
    shared = _shared.setdefault(transport, {})
    for filter_ in filters:
        handlers = shared.get(filter_, [])
        if handler in handlers:
            handlers.remove(handler)
            if not handlers:
                del shared[filter_]
                await transport.unsubscribe(filter_)
