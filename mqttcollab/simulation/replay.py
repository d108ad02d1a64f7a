"""An hour on a real broker: agents that take the simulated time, orchestrators that place by the same policies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import statistics
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.codec import decode
from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ConfigError, RequestError, RuntimeFailure, TransportError
from mqttcollab.messages import Load, Reply, Request, Usage
from mqttcollab.scheduling import Demand, LoadBook, Placer, Scheduler, Terms, make_policy
from mqttcollab.scheduling.scheduler import Placed
from mqttcollab.service import Answer
from mqttcollab.simulation.clock import in_fast_time
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Result, Setting
from mqttcollab.topics import agent_topic, check_agent, record_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

SERVICE = "computation.gpt/replay"
# What a broker and a busy machine may need, in seconds of true time, whatever the speed-up.
_TRANSPORT_S = 10.0
_DAY_S = 24 * 3600.0


@dataclass(slots=True)
class Replayed:
    """What one policy came to.

    Attributes:
        result: as of a simulation.
        link_s: the mean way from an orchestrator to an agent or back, in simulated seconds.
    """

    result: Result
    link_s: float = 0.0


async def replay(
    devices: Sequence[Device],
    arrivals: Sequence[Arrival],
    policy: str,
    setting: Setting,
    cloud: Cloud,
    speed_up: float,
    seed: int,
    broker: str,
) -> Replayed:
    """Sends the requests, in compressed time, to real agents over a real broker.

    Each device is an `Agent` whose service sleeps as long as the device would take; each orchestrator a client with a
    `Placer` of its own, which hears the load reports over the broker. All of them live on one event loop whose clock
    runs faster: the seconds of everything here are simulated ones, in the result too. The cloud is counted, not asked.

    Args:
        devices: the fleet; nobody crashes here.
        arrivals: in the order of their times.
        policy: its name.
        setting: what is varied; `detect_s` has no meaning here.
        cloud: prices and speed of the cloud.
        speed_up: simulated seconds per second.
        seed: of everything that is random, drawn as in the simulation.
        broker: its URL.

    Raises:
        ConfigError: there are no devices, one is to be down, there is no such policy, or the speed-up is no number
            above 0.
        TopicError: a device's name can't be an agent's.
        TransportError: the broker can't be reached.
        RuntimeFailure: an agent gave no answer.
    """
    if not devices:
        raise ConfigError("the fleet has no devices: there is nobody to replay the requests on")
    for device in devices:
        if device.down:
            raise ConfigError(f"device {device.name} is to be down: a replay has no crashes; leave `down` out")
    make_policy(policy)
    hour = _Hour(devices, setting, cloud, speed_up)
    try:
        await in_fast_time(speed_up, lambda: hour.go(arrivals, policy, seed, broker))
    finally:
        await _clear(broker, list(hour.names))
    return Replayed(hour.result, statistics.fmean(hour.links) if hour.links else 0.0)


class _Hour:
    """One policy's replay; lives on the fast loop."""

    def __init__(self, devices: Sequence[Device], setting: Setting, cloud: Cloud, speed_up: float) -> None:
        self.setting = setting
        self.cloud = cloud
        self.result = Result(busy_s={device.name: 0.0 for device in devices})
        self.links: list[float] = []
        self.transport_s = _TRANSPORT_S * speed_up
        self._mark = secrets.token_hex(4)  # nobody else on the broker has these names
        self.names = {check_agent(f"{device.name}-{self._mark}"): device for device in devices}
        self._options = AgentOptions(
            heartbeat_s=_DAY_S,
            report_s=0.0,
            queue_size=setting.queue_size,
            grace_s=0.0,
            connection=MqttOptions(timeout_s=self.transport_s, backoff_s=speed_up, backoff_max_s=3 * speed_up),
        )

    async def go(self, arrivals: Sequence[Arrival], policy: str, seed: int, broker: str) -> None:
        """Brings everybody up, sends every request at its time, and waits for the last answer."""
        async with contextlib.AsyncExitStack() as stack:
            for name, device in self.names.items():
                await stack.enter_async_context(self._agent(name, device).running(broker))
            orchestrators = []
            for number in range(self.setting.orchestrators):
                client = Agent(f"orchestrator-{number}-{self._mark}", options=replace(self._options, visible=False))
                await stack.enter_async_context(client.running(broker))
                scheduler = Scheduler(make_policy(policy, seed + 7919 * number), LoadBook())
                orchestrators.append(_Orchestrator(client, scheduler, self))
                stack.callback(orchestrators[-1].placer.stop)
                await orchestrators[-1].listen()
            loop = asyncio.get_running_loop()
            begin = loop.time()
            async with _tasks() as group:
                for number, (arrival, off, who) in enumerate(self._drawn(arrivals, seed)):
                    await asyncio.sleep(begin + arrival.time - loop.time())
                    group.create_task(orchestrators[who].answer(str(number), arrival, off))

    def _drawn(self, arrivals: Sequence[Arrival], seed: int) -> Iterator[tuple[Arrival, float, int]]:
        """Each request with the error of its expected length and its orchestrator, drawn as in the simulation."""
        source, error, many = random.Random(seed), self.setting.length_error, self.setting.orchestrators
        for arrival in arrivals:
            off = 1 + error * source.uniform(-1, 1) if error else 1.0
            yield arrival, off, source.randrange(many) if many > 1 else 0

    def _agent(self, name: str, device: Device) -> Agent:
        agent, loop = Agent(name, options=self._options), asyncio.get_running_loop()
        late = 0.0  # by which the latest sleep was too long; the next is shorter by it, so that their sum is right

        @agent.service(SERVICE, description=f"Takes the time of {device.name}", concurrency=device.slots)
        async def take_time(request: Request) -> Answer:
            nonlocal late
            assert isinstance(request.input, dict)
            arrival = Arrival(0.0, float(request.input["prompt_tokens"]), float(request.input["tokens"]))
            begun, seconds = loop.time(), device.seconds(arrival)
            owed, late = late, 0.0
            await asyncio.sleep(seconds - owed)
            late += loop.time() - begun - (seconds - owed)
            usage = Usage(prompt_tokens=round(arrival.prompt_tokens), completion_tokens=round(arrival.tokens))
            return Answer("", usage=usage)

        return agent


class _Orchestrator:
    """A client that places requests and asks the agents."""

    def __init__(self, client: Agent, scheduler: Scheduler, hour: _Hour) -> None:
        self.placer = Placer(scheduler)
        self._client = client
        self._hour = hour
        self._waits = scheduler.policy.queues and hour.setting.patience_s > 0
        book = scheduler.book
        self._names = {
            book.row(name, "", Terms(d.tokens_per_s, d.prompt_tokens_per_s, slots=d.slots)): name
            for name, d in hour.names.items()
        }
        self._candidates = book.candidates(list(self._names))

    async def listen(self) -> None:
        """Hears the load reports, late if they are to be."""
        topics = [agent_topic(name, "load") for name in self._hour.names]
        await self._client.transport.subscribe(topics, self._on_load, qos=0)

    def _on_load(self, message: TransportMessage) -> None:
        if message.payload:
            load = decode(Load, message.payload, sent_type=message.type)
            asyncio.get_running_loop().call_later(self._hour.setting.report_delay_s, self._heard, load)

    def _heard(self, load: Load) -> None:
        book, now = self.placer.scheduler.book, self.placer.now
        book.reported(load.agent, now, running=load.running, queued=load.queued, slots=load.slots)

    async def answer(self, number: str, arrival: Arrival, off: float) -> None:
        """Sees one request through."""
        cloud, result, demand = self._hour.cloud, self._hour.result, self._demand(number, arrival, off)
        try:
            placed = await self.placer.place(demand, self._candidates)
            while placed.decision.kind == "agent":
                if await self._ask(placed, arrival):
                    result.processed += 1
                    result.latencies.append(self.placer.now - demand.arrived)
                    return
                placed = await self.placer.again(demand)
            if placed.decision.kind == "cloud":
                result.redirected += 1
                result.cloud_cost_usd += cloud.usd(arrival.prompt_tokens, arrival.tokens)
                result.latencies.append(self.placer.now - demand.arrived + cloud.seconds(arrival.tokens))
            else:
                result.refused += 1
        finally:
            self.placer.close(demand)

    def _demand(self, number: str, arrival: Arrival, off: float) -> Demand:
        now, cloud, tokens = self.placer.now, self._hour.cloud, max(1.0, arrival.tokens * off)
        return Demand(
            id=number,
            tokens=tokens,
            prompt_tokens=arrival.prompt_tokens,
            arrived=now,
            wait_until=now + self._hour.setting.patience_s,
            cloud_usd=cloud.usd(arrival.prompt_tokens, tokens),
            cloud_s=cloud.seconds(tokens),
        )

    async def _ask(self, placed: Placed, arrival: Arrival) -> bool:
        """Asks an agent; whether it had room."""
        name, asked = self._names[placed.row], self.placer.now
        device = self._hour.names[name]
        left = max(0.0, placed.demand.wait_until - asked) if self._waits else 0.0
        try:
            reply = await self._client.ask(
                {"prompt_tokens": arrival.prompt_tokens, "tokens": arrival.tokens},
                service=SERVICE,
                agent=name,
                ttl_s=min(_DAY_S, left + device.seconds(arrival) + self._hour.transport_s),
                max_wait_ms=round(1000 * left),
            )
        except RequestError as error:
            if error.code != "busy":
                raise RuntimeFailure(f"the replay is void, since @{name} did not answer: {error}") from None
            self._turned_away(placed)
            return False
        working = self._measured(device, reply, self.placer.now - asked)
        # As in the simulation: with a prompt the speed of writing can't be told from one figure.
        self.placer.ended(placed, seconds=0.0 if arrival.prompt_tokens else working, tokens=arrival.tokens)
        return True

    def _turned_away(self, placed: Placed) -> None:
        if self._waits and placed.demand.wait_until <= self.placer.now:
            self.placer.ended(placed, failed=True)  # it has waited there for as long as it may
        else:
            self._hour.result.rejected += 1
            self.placer.busy(placed)

    def _measured(self, device: Device, reply: Reply, took_s: float) -> float:
        """Notes how long an agent worked on its answer, and how long the way was; returns the former, in seconds."""
        timing = reply.timing
        assert timing is not None and timing.elapsed_ms is not None and timing.queued_ms is not None
        working = timing.elapsed_ms / 1000
        self._hour.result.busy_s[device.name] += working
        self._hour.links.append((took_s - working - timing.queued_ms / 1000) / 2)
        return working


@contextlib.asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first of its errors as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _clear(broker: str, names: Sequence[str]) -> None:
    """Takes away what is retained of agents that are gone for good; in time that runs as it should."""
    transport = MqttTransport(BrokerAddress.parse(broker), f"sweeper-{secrets.token_hex(4)}")
    try:
        async with asyncio.timeout(_TRANSPORT_S):
            await transport.connect()
            for name in names:
                own = [agent_topic(name, leaf) for leaf in ("load", "profile", "status")]
                for topic in (record_topic(SERVICE, name), *own):
                    await transport.publish(TransportMessage(topic, b"", retain=True))
    except (TransportError, TimeoutError):
        pass  # without a broker there is nothing to clear, and whoever replays has heard of it
    finally:
        await transport.close()
