"""The agent: announces services, serves them, senses, and asks its peers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from mqttcollab.cms.registry import Registry
from mqttcollab.declaration import AgentOptions, Declaration
from mqttcollab.errors import ConfigError, MqttCollabError
from mqttcollab.journal import Journal
from mqttcollab.life import Life, TransportFactory
from mqttcollab.messages import ContextItem, Observation, Parameters, Reply
from mqttcollab.peers import Limits
from mqttcollab.presence import Presence, typed
from mqttcollab.service import Service
from mqttcollab.topics import record_topic
from mqttcollab.transport.base import Transport

__all__ = ["Agent", "AgentOptions", "TransportFactory"]

_log = logging.getLogger(__name__)


class Agent(Declaration):
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

    _life: Life | None = None

    def add(self, service: Service) -> Service:
        """Adds a service; before the agent starts.

        Raises:
            ConfigError: its name does not parse or is taken on this agent, or a field of it is out of range.
        """
        if self._life is not None:
            raise ConfigError(f"@{self.name}: add services before the agent starts")
        return super().add(service)

    def update(
        self,
        service: str,
        *,
        description: str | None = None,
        examples: Sequence[str] | None = None,
        accuracy: float | None = None,
        price_usd: float | None = None,
    ) -> None:
        """Changes what a service's record says, also while the agent runs; what is None stays as it is.

        The record is published again in the background: at once, and then at most every `options.update_s` seconds,
        however often this is called. After a reconnection it is the changed one that is announced.

        Args:
            service: one of the agent's services.
            description: one or two sentences.
            examples: questions that it answers, at most 256.
            accuracy: share of right answers, 0 to 1.
            price_usd: what a request costs, in US dollars.

        Raises:
            ConfigError: the agent has no such service, or a value is out of range; then nothing has changed.
        """
        super().update(service, description=description, examples=examples, accuracy=accuracy, price_usd=price_usd)
        if self._life is not None and self.options.visible:
            topic = record_topic(service, self.name)
            self.presence.renew(topic, lambda: typed(topic, self.record(service), retain=True))

    # Living

    async def start(self, broker: str | TransportFactory | None = None, *, patience_s: float | None = None) -> None:
        """Connects, announces itself and serves.

        Args:
            broker: its URL; None takes MQTTCOLLAB_BROKER, else mqtt://127.0.0.1:1883. Or a function that makes
                the transport from a client id and the will.
            patience_s: how long to wait for a broker that is not there yet; None for ever.

        Raises:
            ConfigError: the URL does not parse, or the agent is running already.
            ConnectError: the broker refuses, or is not there in time.
        """
        if self._life is not None:
            raise ConfigError(f"@{self.name} is running already")
        self._life = Life(self, broker)
        try:
            await self._life.start(patience_s)
        except BaseException:
            self._life = None
            raise

    async def stop(self) -> None:
        """Finishes what is under way, clears the records, says `offline` and disconnects."""
        if self._life is not None:
            try:
                await self._life.stop()
            finally:
                self._life = None

    @contextlib.asynccontextmanager
    async def running(
        self, broker: str | TransportFactory | None = None, *, patience_s: float | None = 0.0
    ) -> AsyncIterator[Agent]:
        """Runs the agent for the time of an `async with` block.

        Raises:
            DuplicateAgent: another process came up under this name; the block was cancelled.
        """
        await self.start(broker, patience_s=patience_s)
        over = self.presence.over
        try:
            async with asyncio.timeout(None) as block:
                end_block = lambda _: block.reschedule(0)  # noqa: E731 - to be removed by name
                over.add_done_callback(end_block)
                try:
                    yield self
                finally:
                    over.remove_done_callback(end_block)
        except TimeoutError:
            if not block.expired():
                raise
        finally:
            await self.stop()
        if not over.cancelled():
            over.result()

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

    async def wake(self) -> None:
        """Says `online` again."""
        await self.presence.say("online")

    @property
    def transport(self) -> Transport:
        """The connection to the broker."""
        return self._running().transport

    @property
    def journal(self) -> Journal | None:
        """Where durable services write their requests down; None without one."""
        return self._running().journal

    @property
    def presence(self) -> Presence:
        """The agent's status on the broker."""
        return self._running().presence

    @property
    def registry(self) -> Registry:
        """Who else is there; empty until `follow`."""
        return self._running().registry

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

        Raises:
            TopicError: the service is not under `data.gpt/`, or its name does not parse.
            ConfigError: a value is not a finite number, or the agent is not running.
        """
        return await self._running().senses.observe(service, text, values or {}, units or {})

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
        await self._running().senses.embed(service, vector, model, text, observation)

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
            agent: whom to ask, also where the registry does not know it; None takes the least loaded that is
                there, and tries up to two more if it is busy, has nothing on it, or vanishes.
            context: earlier results that the answer is to build on.
            ttl_s: seconds until the question is void.
            idle_s: seconds without a sign of life (parts count) after which to give up earlier.
            on_part: asks for a stream, and is called with every part.
            **fields: further fields of the request: session, tenant, budget_usd, may_leave_edge, max_wait_ms, priority.

        Raises:
            RequestError: nobody offers it (`no_capability`), or the answer is an error; DeadlineExceeded in time.
        """
        fields |= {"context": list(context), "parameters": parameters or Parameters(), "stream": on_part is not None}
        return await self._running().peers.ask(question, service, agent, Limits(ttl_s, idle_s, on_part), fields)

    async def follow(self) -> Registry:
        """The live registry, followed from the first call on."""
        return await self._running().peers.follow()

    def _running(self) -> Life:
        if self._life is None:
            raise ConfigError(f"@{self.name} is not running: start it first, e.g. `async with agent.running():`")
        return self._life


def _handle_signal(loop: asyncio.AbstractEventLoop, number: int, stop: asyncio.Event) -> bool:
    try:
        loop.add_signal_handler(number, stop.set)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows; or not the main thread
        return False
    return True
