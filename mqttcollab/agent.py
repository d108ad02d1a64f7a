"""The agent: announces services, serves them, reports its load, asks its peers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqttcollab.cms.registry import Registry
from mqttcollab.codec import CBOR, MAX_PAYLOAD, VectorType, encode
from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ConfigError, MqttCollabError, RequestError
from mqttcollab.messages import ContextItem, Embedding, Load, Observation, Parameters, Profile, Reply
from mqttcollab.presence import Presence, typed
from mqttcollab.rpc import Requester, Responder
from mqttcollab.service import HandlerFunction, Service, adapt, function_service, record_of
from mqttcollab.topics import (
    agent_topic,
    check_agent,
    check_service,
    data_topic,
    record_topic,
    request_topic,
    slm_topic,
)
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

_log = logging.getLogger(__name__)

TransportFactory = Callable[[str, TransportMessage], Transport]
_TRY_ANOTHER = ("busy", "no_capability", "unsupported")


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What an agent can be told beside its name.

    Attributes:
        heartbeat_s: seconds between load reports; three missed ones and the agent counts as gone.
        queue_size: requests that wait per service; one more is answered `busy`.
        grace_s: seconds that requests under way get when the agent stops.
        limit: the largest payload taken and sent, in bytes.
        match_threshold: the least closeness (cosine) at which `ask` by meaning turns to a peer.
        visible: whether it announces itself; False for a client that only asks and watches.
        vectors: element type of the embeddings it publishes.
        connection: time-outs and limits of the connection. The session outlives it for five minutes by default,
            so that a request sent while the agent reboots arrives.
    """

    heartbeat_s: float = 10.0
    queue_size: int = 32
    grace_s: float = 5.0
    limit: int = MAX_PAYLOAD
    match_threshold: float = 0.4
    visible: bool = True
    vectors: VectorType = "int8"
    connection: MqttOptions = MqttOptions(session_expiry_s=300)  # noqa: RUF009 - frozen


class Agent:
    """A device on the broker.

    Args:
        name: one DNS label, unique on the broker: `watch-7`.
        description: what it is, for people.
        place: where it is, for people and for matching by place.
        hardware: facts for its profile.
        firmware: its version of whatever runs on it.
        embedder: turns observations into embeddings, and finds peers by meaning.
        options: limits and intervals.
    """

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
        self.battery: float | None = None
        self._loops: list[tuple[float, Callable[[], Awaitable[None]]]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = False

    # Declaring

    def add(self, service: Service) -> Service:
        """Adds a service; before the agent starts.

        Raises:
            TopicError: its name does not parse.
            ConfigError: the name is taken on this agent, or a field of it is out of range.
        """
        if self._started:
            raise ConfigError(f"@{self.name}: add services before the agent starts")
        if check_service(service.name) in self.services:
            raise ConfigError(f"@{self.name} has a service {service.name} already")
        try:
            record_of(service, self.name, self.place, self.options.heartbeat_s)
        except ValueError as error:
            raise ConfigError(f"@{self.name}: the service {service.name} is not valid: {error}") from None
        self.services[service.name] = service
        return service

    def service(
        self, name: str, *, description: str = "", examples: Sequence[str] = (), concurrency: int = 1
    ) -> Callable[[HandlerFunction], HandlerFunction]:
        """Decorates a function that answers the requests to a service; see `Service.handle` for its forms."""

        def decorate(handler: HandlerFunction) -> HandlerFunction:
            text = description or (handler.__doc__ or "").strip()
            self.add(
                function_service(handler, name, description=text, examples=tuple(examples), concurrency=concurrency)
            )
            return handler

        return decorate

    def every(self, seconds: float) -> Callable[[Callable[[], Awaitable[None]]], Callable[[], Awaitable[None]]]:
        """Decorates a coroutine function that runs at once and then every so many seconds while the agent runs."""

        def decorate(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            self._loops.append((seconds, work))
            return work

        return decorate

    def describe_model(self, model: str, **facts: Any) -> None:
        """Publishes facts under `slm/models/<model>/…` at every birth: architecture, quantization, context_length."""
        for key in facts:
            slm_topic("models", model, key)
        self.models[model] = facts

    # Living

    async def start(self, broker: str | TransportFactory | None = None, *, patience_s: float | None = None) -> None:
        """Connects, announces itself and serves.

        Args:
            broker: its URL; None takes MQTTCOLLAB_BROKER, else mqtt://127.0.0.1:1883. Or a function that makes
                the transport from a client id and the will.
            patience_s: how long to wait for a broker that is not there yet; None for ever.

        Raises:
            ConfigError: the URL does not parse.
            ConnectError: the broker refuses, or is not there in time.
        """
        self.transport, self.presence = self._connect_to(broker)
        self.requester = Requester(self.transport, self.name, self.options.limit)
        self.responder = Responder(self.transport, self.name, self.options.limit)
        self.registry = Registry(self.transport, self.embedder)
        self._following = False
        ready = asyncio.Event()
        await self.requester.start()
        for service in self.services.values():
            await self.responder.serve(
                service.name,
                adapt(service, self.name, ready),
                concurrency=service.concurrency,
                queue_size=self.options.queue_size,
            )
        if self.options.visible:
            await self.presence.start()
        try:
            await self.transport.connect(patience_s=patience_s)
            for service in self.services.values():
                await self.presence.until(service.started())
            ready.set()
            if self.options.visible:
                await self.presence.until(self.presence.announce())
        except BaseException:
            await self.presence.stop()
            await self.transport.close()
            raise
        self._started = True
        if self.options.visible:
            self._spawn(self._repeat(self.options.heartbeat_s, self._report_load))
        for seconds, work in self._loops:
            self._spawn(self._repeat(seconds, work))

    async def stop(self) -> None:
        """Finishes what is under way, clears the records, says `offline` and disconnects."""
        if not self._started:
            return
        self._started = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        lost = self.presence.over.done()
        await self.responder.stop(grace_s=0 if lost else self.options.grace_s)
        for service in self.services.values():
            await service.stopping()
        await self.requester.stop()
        await self.registry.stop()
        if self.options.visible and not lost:
            await self.presence.say_goodbye(record_topic(service, self.name) for service in self.services)
        await self.presence.stop()
        await self.transport.close()

    @contextlib.asynccontextmanager
    async def running(
        self, broker: str | TransportFactory | None = None, *, patience_s: float | None = 0.0
    ) -> AsyncIterator[Agent]:
        """Runs the agent for the time of an `async with` block."""
        await self.start(broker, patience_s=patience_s)
        try:
            yield self
        finally:
            await self.stop()

    async def serve(self, broker: str | TransportFactory | None = None) -> None:
        """Runs until it is cancelled or gets SIGINT or SIGTERM; stops cleanly.

        Raises:
            DuplicateAgent: another process came up under this name.
        """
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        handled = [s for s in (signal.SIGINT, signal.SIGTERM) if _handle_signal(loop, s, stop)]
        starting = asyncio.ensure_future(self.start(broker))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                _log.info("@%s is online: %s", self.name, ", ".join(self.services) or "no services")
                await self.presence.until(stop.wait())
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self.stop()
            for number in handled:
                loop.remove_signal_handler(number)

    def run(self, broker: str | None = None) -> None:
        """Runs until SIGINT or SIGTERM. An error ends the process with one line and exit code 1."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        try:
            asyncio.run(self.serve(broker))
        except MqttCollabError as error:
            raise SystemExit(f"@{self.name}: {error}") from None

    async def sleep(self) -> None:
        """Says `sleeping`: the records stay, and requests wait at the broker up to their ttl."""
        await self.presence.say("sleeping")

    # Sensing

    async def observe(
        self,
        service: str,
        *,
        text: str = "",
        values: dict[str, float] | None = None,
        units: dict[str, str] | None = None,
    ) -> Observation:
        """Publishes an observation (retained: the latest stays) and, with an embedder, the embedding of its text.

        Args:
            service: a name under `data.gpt/`.
            text: the observation in words.
            values: numbers by name.
            units: their units by the same names.
        """
        topic = data_topic(service, self.name, "observation")
        try:
            observation = Observation(
                id=secrets.token_hex(8),
                agent=self.name,
                service=service,
                text=text,
                values=values or {},
                units=units or {},
                place=self.place,
                time_ms=time.time_ns() // 1_000_000,
            )
        except ValueError as error:
            raise ConfigError(f"@{self.name}: the observation for {service} is not valid: {error}") from None
        await self.transport.publish(typed(topic, observation, retain=True))
        if self.embedder is not None and text:
            vector = self.embedder.embed([text])[0].tolist()
            await self.publish_embedding(service, vector, text=text, observation=observation.id)
        return observation

    async def publish_embedding(
        self,
        service: str,
        vector: Sequence[float],
        *,
        model: str | None = None,
        text: str | None = None,
        observation: str | None = None,
    ) -> None:
        """Publishes an embedding as CBOR, QoS 0; `model` defaults to the embedder's name."""
        name = model or (self.embedder.model if self.embedder is not None else None)
        if name is None:
            raise ConfigError(f"@{self.name}: an embedding names its model; pass model=")
        embedding = Embedding(
            agent=self.name,
            service=service,
            model=name,
            vector=list(vector),
            observation=observation,
            text=text,
            place=self.place,
            time_ms=time.time_ns() // 1_000_000,
        )
        payload = encode(embedding, CBOR, vectors=self.options.vectors)
        topic = data_topic(service, self.name, "embedding")
        message = TransportMessage(topic, payload, qos=0, content_type=CBOR, type=embedding.type)
        await self.transport.publish(message, bulk=True)

    # Asking

    async def ask(
        self,
        question: str | dict[str, Any],
        *,
        service: str | None = None,
        agent: str | None = None,
        context: Sequence[ContextItem] = (),
        parameters: Parameters | None = None,
        ttl_s: float = 30.0,
        idle_s: float | None = None,
        on_part: Callable[[Reply], None] | None = None,
        **fields: Any,
    ) -> Reply:
        """Asks a peer and waits for its answer.

        Args:
            question: in words, or a map.
            service: a name, or an MQTT filter over names (`knowledge.gpt/medicine/#`); None chooses by meaning.
            agent: which agent of the service; None takes the least loaded that is there, and tries up to two
                more if it is busy or gone.
            context: earlier results that the answer is to build on.
            ttl_s: seconds until the question is void.
            idle_s: seconds without a sign of life (parts count) after which to give up earlier.
            on_part: asks for a stream, and is called with every part.
            **fields: further fields of the request: session, tenant, budget_usd, may_leave_edge.

        Raises:
            RequestError: nobody offers it (`no_capability`), or the answer is an error; DeadlineExceeded in time.
        """
        deadline = asyncio.get_running_loop().time() + ttl_s
        if agent is not None and service is not None:
            targets = [(service, agent)]
        else:
            targets = await self._find(question, service, agent)
        fields |= {"context": list(context), "parameters": parameters or Parameters(), "stream": on_part is not None}
        for last, (name, peer) in enumerate(targets, 1 - len(targets)):
            left_ms = int(1000 * (deadline - asyncio.get_running_loop().time()))
            request = self.requester.new_request(question, service=name, ttl_ms=max(1, left_ms), **fields)
            try:
                return await self.requester.ask(request_topic(name, peer), request, idle_s=idle_s, on_part=on_part)
            except RequestError as error:
                if last == 0 or error.code not in _TRY_ANOTHER:
                    raise
                _log.info("@%s does not answer (%s); trying another", peer, error)
        raise AssertionError("unreachable: targets is never empty")

    async def follow(self) -> Registry:
        """The live registry, followed from the first call on."""
        if not self._following:
            self._following = True
            await self.registry.start()
            await self.registry.settle()
        return self.registry

    async def _find(
        self, question: str | dict[str, Any], service: str | None, agent: str | None
    ) -> list[tuple[str, str]]:
        registry = await self.follow()
        if service is not None:
            offers = [offer for offer in registry.offers(service) if offer.agent.name != self.name]
            wanted = service
        else:
            text = question if isinstance(question, str) else str(question.get("text", question))
            ranked = [m for m in registry.nearest(text) if m.offer.agent.name not in (self.name,)]
            if agent is not None:
                ranked = [m for m in ranked if m.offer.agent.name == agent]
            offers = [m.offer for m in ranked if m.score >= self.options.match_threshold]
            wanted = (
                f"this question (closest: {ranked[0].offer.record.service}, {ranked[0].score:.2f})" if ranked else "it"
            )
        if not offers:
            raise RequestError("no_capability", f"no agent that is online offers {wanted}")
        return [(offer.record.service, offer.agent.name) for offer in offers[:3]]

    # Announcing

    def _connect_to(self, broker: str | TransportFactory | None) -> tuple[Transport, Presence]:
        presence = Presence(self.name, self._descriptions)
        if callable(broker):
            transport = broker(self.name, presence.will)
        else:
            will, options = presence.will if self.options.visible else None, self.options.connection
            transport = MqttTransport(BrokerAddress.parse(broker), self.name, will=will, options=options)
        presence.transport = transport
        return transport, presence

    def _descriptions(self) -> Iterator[TransportMessage]:
        """What others are to know of this agent, to be retained: profile, models, service records."""
        profile = Profile(
            agent=self.name,
            description=self.description,
            hardware=self.hardware,
            firmware=self.firmware,
            place=self.place,
            services=list(self.services),
        )
        yield typed(agent_topic(self.name, "profile"), profile, retain=True)
        for model, facts in self.models.items():
            for key, value in facts.items():
                yield TransportMessage(slm_topic("models", model, key), str(value).encode(), retain=True)
        for service in self.services.values():
            record = record_of(service, self.name, self.place, self.options.heartbeat_s)
            yield typed(record_topic(service.name, self.name), record, retain=True)

    def _load(self) -> Load:
        stats = [entry.stats for entry in self.responder.services.values()]
        return Load(
            agent=self.name,
            running=sum(s.running for s in stats),
            queued=sum(s.queued for s in stats),
            slots=max(1, sum(s.slots for s in stats)),
            completed=sum(s.completed for s in stats),
            failed=sum(s.failed for s in stats),
            rejected=self.responder.rejected,
            last_rejection=self.responder.last_rejection,
            battery=self.battery,
            heartbeat_s=self.options.heartbeat_s,
            time_ms=time.time_ns() // 1_000_000,
        )

    # Running things

    async def _report_load(self) -> None:
        await self.transport.publish(typed(agent_topic(self.name, "load"), self._load(), retain=True, qos=0))

    async def _repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                _log.error("@%s: %s failed: %s", self.name, getattr(work, "__name__", work), error, exc_info=error)
            await asyncio.sleep(seconds)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _handle_signal(loop: asyncio.AbstractEventLoop, number: int, stop: asyncio.Event) -> bool:
    try:
        loop.add_signal_handler(number, stop.set)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows; or not the main thread
        return False
    return True
