"""What an agent is and offers, as its author declares it; no connection yet."""

from __future__ import annotations

import math
import platform
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mqttcollab.codec import MAX_PAYLOAD, VectorType, encode
from mqttcollab.errors import ConfigError
from mqttcollab.journal import Limits
from mqttcollab.messages import Profile, ServiceRecord
from mqttcollab.presence import typed
from mqttcollab.service import HandlerFunction, Service, first_line, function_service, record_of
from mqttcollab.topics import agent_topic, check_agent, record_topic, slm_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions
from mqttcollab.trouble import Troubled, Troubles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

# Four digits keep a cosine exact to about 0.001, in some 2 kB of JSON at 256 dimensions.
_CENTROID_DIGITS = 4

Repeated = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What an agent can be told beside its name.

    Attributes:
        heartbeat_s: seconds between load reports at the most; three missed ones and the agent counts as gone.
        report_s: the least pause, in seconds, between load reports where requests come and go; the heartbeat apart,
            they are sent when the number of those running or waiting has changed.
        queue_size: requests that wait per service; one more is answered `busy`.
        grace_s: seconds that requests under way get when the agent stops.
        limit: the largest payload taken and sent, in bytes.
        match_threshold: the least closeness (cosine) at which `ask` by meaning turns to a peer.
        visible: whether it announces itself; False for a client that only asks and watches.
        vectors: element type of the embeddings it publishes.
        update_s: the least pause, in seconds, between two publications of records that change (`Agent.update`).
        journal: a file, or the URL of a PostgreSQL server: requests to services that are `durable` are written down
            there before they are acknowledged, and outlive the process. None: no service is durable.
        keep: what the journal keeps of what has ended.
        connection: time-outs and limits of the connection. The session outlives it for five minutes by default,
            so that a request sent while the agent reboots arrives.
    """

    heartbeat_s: float = 10.0
    report_s: float = 0.5
    queue_size: int = 32
    grace_s: float = 5.0
    limit: int = MAX_PAYLOAD
    match_threshold: float = 0.4
    visible: bool = True
    vectors: VectorType = "int8"
    update_s: float = 1.0
    journal: str | None = None
    keep: Limits = Limits()  # noqa: RUF009 - immutable
    connection: MqttOptions = MqttOptions(session_expiry_s=300)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.heartbeat_s <= 0:
            raise ConfigError(f"heartbeat_s is {self.heartbeat_s:g}; it is in seconds and over 0")
        for name, value in (("update_s", self.update_s), ("report_s", self.report_s)):
            if not value >= 0:
                raise ConfigError(f"{name} is {value:g}; it is in seconds and not under 0")


class _Condition:
    """A number in the load report that says how the device is; None where nobody measures it."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self._slot = name, f"_{name}"

    def __get__(self, agent: Declaration, owner: type) -> float | None:
        value: float | None = vars(agent).get(self._slot)
        return value

    def __set__(self, agent: Declaration, value: float | None) -> None:
        if value is not None and not self._least <= value <= self._most:
            limits = f"a number from {self._least:g} to {self._most:g}"
            raise ConfigError(f"@{agent.name}: {self._name} is {value}; it is {limits}")
        vars(agent)[self._slot] = value


class Declaration:
    """A device's name, facts, services and repeated work; see `Agent`.

    Attributes:
        battery: its charge, 0 to 1, for the load report; this and the others are None where nobody measures them.
        drain_per_h: the share of a full battery that an hour like now takes; below 0 it is charging.
        thermal: how near the device is to throttling: 0 is cool, from 1 on it throttles.
        link: quality of its link to the broker, 0 to 1.
    """

    battery = _Condition(0, 1)
    drain_per_h = _Condition(-1000, 1000)
    thermal = _Condition(0, 100)
    link = _Condition(0, 1)

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        place: str | None = None,
        hardware: dict[str, Any] | None = None,
        firmware: str | None = None,
        embedder: Embedder | None = None,
        options: AgentOptions | None = None,
    ) -> None:
        self.name = check_agent(name)
        self.description = description
        self.place = place
        self.hardware = {"machine": platform.machine(), "system": platform.system(), **(hardware or {})}
        self.firmware = firmware
        self.embedder = embedder
        self.options = options or AgentOptions()
        self.services: dict[str, Service] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.repeated: list[tuple[float, Repeated]] = []
        self.troubles = Troubles()
        self._changes: dict[str, dict[str, Any]] = {}
        self._vectors: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.profile()

    def add(self, service: Service) -> Service:
        """Adds a service; before the agent starts.

        Raises:
            ConfigError: its name does not parse or is taken on this agent, or a field of it is out of range.
        """
        record = self._record(service, {})
        if record.service in self.services:
            raise ConfigError(f"@{self.name} has a service {record.service} already")
        self.services[record.service] = service
        return service

    def update(
        self,
        service: str,
        *,
        description: str | None = None,
        examples: Sequence[str] | None = None,
        accuracy: float | None = None,
        price_usd: float | None = None,
    ) -> None:
        """Changes what a service's record says; what is None stays as it is. See `Agent.update`."""
        if service not in self.services:
            known = ", ".join(self.services) or "none"
            raise ConfigError(f"@{self.name} has no service {service} to update; its services: {known}")
        given = {"description": description, "examples": examples, "accuracy": accuracy, "price_usd": price_usd}
        changes = self._changes.get(service, {}) | {name: value for name, value in given.items() if value is not None}
        if changes.get("examples") and not isinstance(changes["examples"], str):
            changes["examples"] = list(changes["examples"])
        self._record(self.services[service], changes)
        self._changes[service] = changes

    def record(self, service: str) -> ServiceRecord:
        """The present record of one of its services."""
        return self._record(self.services[service], self._changes.get(service, {}))

    def service(
        self, name: str, *, description: str = "", examples: Sequence[str] = (), concurrency: int = 1
    ) -> Callable[[HandlerFunction], HandlerFunction]:
        """Decorates a function that answers the requests to a service; see `Service.handle` for its forms."""

        def decorate(handler: HandlerFunction) -> HandlerFunction:
            text = description or (handler.__doc__ or "").strip()
            self.add(function_service(handler, name, description=text, examples=examples, concurrency=concurrency))
            return handler

        return decorate

    def every(self, seconds: float) -> Callable[[Repeated], Repeated]:
        """Decorates a coroutine function that runs at once and then every so many seconds while the agent runs."""
        if seconds <= 0:
            raise ConfigError(f"@{self.name}: every({seconds:g}): the interval is in seconds and over 0")

        def decorate(work: Repeated) -> Repeated:
            self.repeated.append((seconds, work))
            return work

        return decorate

    def describe_model(self, model: str, **facts: Any) -> None:
        """Publishes facts under `slm/models/<model>/…` at every birth: architecture, quantization, context_length."""
        for key in facts:
            slm_topic("models", model, key)
        self.models[model] = facts

    def degrade(self, source: str, reason: str) -> None:
        """Says that something is wrong: the agent's status is `degraded` until the source recovers.

        Several sources may be in trouble at once; the status gives all reasons. It is said at once, but at most every
        second, however often it changes; after a reconnection or a new start it is said again. From any thread.

        Args:
            source: what is in trouble, a name of the caller's choice: `"disk"`.
            reason: what is wrong, in one line; a status gives at most 200 characters.
        """
        self.troubles.tell(source, reason or source)

    def recover(self, source: str) -> None:
        """Says that nothing is wrong with a source any more. From any thread."""
        self.troubles.tell(source, None)

    def watch(self, source: str, part: Troubled) -> None:
        """Is degraded for as long as a part of the agent (a journal, a model's runtime) says that it is in trouble."""
        part.on_trouble(lambda reason: self.troubles.tell(source, reason))
        self.troubles.tell(source, part.trouble)

    def profile(self) -> Profile:
        """What the agent is, for others; raises ConfigError where a fact about it can't be sent."""
        try:
            return Profile(
                agent=self.name,
                description=self.description,
                hardware=self.hardware,
                firmware=self.firmware,
                place=self.place,
                services=list(self.services),
            )
        except ValidationError as error:
            raise ConfigError(f"@{self.name}: the profile is not valid: {first_line(error)}") from None

    def descriptions(self) -> Iterator[TransportMessage]:
        """What others are to know of this agent, to be retained: profile, models, service records."""
        yield typed(agent_topic(self.name, "profile"), self.profile(), retain=True)
        for model, facts in self.models.items():
            for key, value in facts.items():
                yield TransportMessage(slm_topic("models", model, key), str(value).encode(), retain=True)
        for service in self.services:
            yield typed(record_topic(service, self.name), self.record(service), retain=True)

    def _record(self, service: Service, changes: dict[str, Any]) -> ServiceRecord:
        record = record_of(service, self.name, self.place, self.options.heartbeat_s, self.embedder, **changes)
        record.durable = service.durable and self.options.journal is not None
        record.centroid = self._centroid(record)
        size = len(encode(record))
        if size > self.options.limit:
            raise ConfigError(
                f"@{self.name}: the record of {record.service} has {size} bytes, over the limit of"
                f" {self.options.limit}: give it fewer or shorter examples"
            )
        return record

    def _centroid(self, record: ServiceRecord) -> list[float] | None:
        """The mean of the examples' embeddings (without examples, the description's), at unit length."""
        texts = [text for text in record.examples or [record.description] if text.strip()]
        if self.embedder is None or not texts:
            return None
        known = self._vectors.get(record.service, {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known = known | dict(zip(new, self.embedder.embed(new), strict=True))
        self._vectors[record.service] = {text: known[text] for text in texts}
        rows = [known[text] for text in texts]
        total: list[float] = sum(rows[1:], rows[0]).tolist()
        length = math.hypot(*total)
        if not 0 < length < math.inf:
            return None
        return [round(value / length, _CENTROID_DIGITS) for value in total]
