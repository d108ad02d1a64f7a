"""The same hour on a real broker: agents that take the simulated time, orchestrators that place by the same policies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.codec import decode
from mqttcollab.errors import ConfigError, RequestError
from mqttcollab.messages import Load, Reply, Request, Usage
from mqttcollab.scheduling import Demand, LoadBook, Placer, Scheduler, Terms, make_policy
from mqttcollab.scheduling.scheduler import Placed
from mqttcollab.service import Answer
from mqttcollab.simulation.clock import in_fast_time
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Result, Setting, Simulation
from mqttcollab.topics import agent_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions

_log = logging.getLogger(__name__)

SERVICE = "computation.gpt/replay"
DEFAULT_SPEED_UP = 120.0
# What a broker and a busy machine may need, in seconds of true time, whatever the speed-up.
_TRANSPORT_S = 10.0
_DAY_S = 24 * 3600.0


async def replay(
    devices: Sequence[Device],
    arrivals: Sequence[Arrival],
    policy: str,
    setting: Setting,
    cloud: Cloud,
    speed_up: float,
    seed: int,
    broker: str,
) -> Result:
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
        ConfigError: there are no devices, one is to be down, or the speed-up is no number above 0.
        TransportError: the broker can't be reached.
    """
    return (await _replayed(devices, arrivals, policy, setting, cloud, speed_up, seed, broker)).result


@dataclass(frozen=True, slots=True)
class Compared:
    """What simulation and reality made of the same requests: means over the seeds, costs in US dollars.

    Attributes:
        link_s: one way between orchestrator and agent, as measured; simulated seconds, which the simulation was given.
    """

    policy: str
    orchestrators: int
    seeds: int
    arrivals: float
    simulated: Counts
    real: Counts
    link_s: float

    def difference(self, figure: str) -> float:
        """How much more the real one is than the simulated one, in per cent of the simulated one."""
        simulated, real = getattr(self.simulated, figure), getattr(self.real, figure)
        if not simulated:
            return 0.0 if not real else float("inf")
        return float(100 * (real - simulated) / simulated)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one run, or means over some."""

    processed: float
    redirected: float
    rejected: float
    cost_usd: float


async def compare(
    devices: Sequence[Device],
    hours: Sequence[Sequence[Arrival]],
    policies: Sequence[str],
    setting: Setting,
    cloud: Cloud,
    broker: str,
    speed_up: float = DEFAULT_SPEED_UP,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Compared]:
    """Runs every policy over the same requests, on the broker and simulated; the simulation gets the measured link.

    Args:
        devices: the fleet.
        hours: arrivals, one sequence per seed.
        policies: their names.
        setting: what is varied.
        cloud: prices and speed of the cloud.
        broker: its URL.
        speed_up: simulated seconds per second.
        progress: told what comes next, in words.

    Raises:
        ConfigError, TransportError: as `replay`.
    """
    rows = []
    for policy in policies:
        simulated, real, links = [], [], []
        for seed, arrivals in enumerate(hours):
            progress(f"{policy}, seed {seed}: {len(arrivals)} requests")
            run = await _replayed(devices, arrivals, policy, setting, cloud, speed_up, seed, broker)
            linked = [replace(device, link_s=run.link_s) for device in devices]
            real.append(run.result)
            simulated.append(Simulation(linked, arrivals, policy, setting, cloud, seed).run())
            links.append(run.link_s)
        rows.append(
            Compared(
                policy,
                setting.orchestrators,
                len(hours),
                statistics.fmean(map(len, hours)),
                _mean(simulated),
                _mean(real),
                statistics.fmean(links),
            )
        )
    return rows


def _mean(results: Sequence[Result]) -> Counts:
    return Counts(
        statistics.fmean(result.processed for result in results),
        statistics.fmean(result.redirected for result in results),
        statistics.fmean(result.rejected for result in results),
        statistics.fmean(result.cloud_cost_usd for result in results),
    )


@dataclass(slots=True)
class _Run:
    """What is measured."""

    result: Result
    links: list[float] = field(default_factory=list)

    @property
    def link_s(self) -> float:
        """The median way from an orchestrator to an agent or back."""
        return statistics.median(self.links) if self.links else 0.0


async def _replayed(
    devices: Sequence[Device],
    arrivals: Sequence[Arrival],
    policy: str,
    setting: Setting,
    cloud: Cloud,
    speed_up: float,
    seed: int,
    broker: str,
) -> _Run:
    if not devices:
        raise ConfigError("the fleet has no devices: there is nobody to replay the requests on")
    for device in devices:
        if device.down:
            raise ConfigError(f"device {device.name} is to be down: a replay has no crashes; leave `down` out")
    make_policy(policy)
    run = _Run(Result(busy_s={device.name: 0.0 for device in devices}))
    hour = _Hour(devices, setting, cloud, speed_up, run)
    await in_fast_time(speed_up, lambda: hour.go(arrivals, policy, seed, broker))
    return run


class _Hour:
    """One replay; lives on the fast loop."""

    def __init__(
        self, devices: Sequence[Device], setting: Setting, cloud: Cloud, speed_up: float, run: _Run
    ) -> None:
        self.devices = devices
        self.setting = setting
        self.cloud = cloud
        self.run = run
        self.transport_s = _TRANSPORT_S * speed_up
        # Nobody else on the broker has these names.
        mark = secrets.token_hex(3)
        self.names = {f"{device.name}-{mark}": device for device in devices}
        self.mark = mark
        self._options = AgentOptions(
            heartbeat_s=_DAY_S,
            report_s=0.0,
            queue_size=setting.queue_size,
            grace_s=0.0,
            connection=MqttOptions(timeout_s=self.transport_s),
        )

    async def go(self, arrivals: Sequence[Arrival], policy: str, seed: int, broker: str) -> None:
        """Brings everybody up, sends every request at its time, and waits for the last answer."""
        async with contextlib.AsyncExitStack() as stack:
            for name, device in self.names.items():
                await stack.enter_async_context(self._agent(name, device).running(broker))
            orchestrators = []
            for number in range(self.setting.orchestrators):
                client = Agent(f"orchestrator-{number}-{self.mark}", options=replace(self._options, visible=False))
                await stack.enter_async_context(client.running(broker))
                scheduler = Scheduler(make_policy(policy, seed + 7919 * number), LoadBook())
                orchestrators.append(_Orchestrator(client, scheduler, self))
                stack.callback(orchestrators[-1].placer.stop)
            for orchestrator in orchestrators:
                await orchestrator.listen()
            loop = asyncio.get_running_loop()
            begin = loop.time()
            async with asyncio.TaskGroup() as group:
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
        agent = Agent(name, options=self._options)

        @agent.service(SERVICE, description=f"Takes the time of {device.name}", concurrency=device.slots)
        async def take_time(request: Request) -> Answer:
            assert isinstance(request.input, dict)
            arrival = Arrival(0.0, float(request.input["prompt_tokens"]), float(request.input["tokens"]))
            await asyncio.sleep(device.seconds(arrival))
            usage = Usage(prompt_tokens=round(arrival.prompt_tokens), completion_tokens=round(arrival.tokens))
            return Answer("", usage=usage)

        return agent


class _Orchestrator:
    """A client that places requests and asks the agents."""

    def __init__(self, client: Agent, scheduler: Scheduler, hour: _Hour) -> None:
        self.client = client
        self.placer = Placer(scheduler)
        self.hour = hour
        book = scheduler.book
        self.names = {
            book.row(name, "", Terms(d.tokens_per_s, d.prompt_tokens_per_s, slots=d.slots)): name
            for name, d in hour.names.items()
        }
        self.candidates = book.candidates(list(self.names))

    async def listen(self) -> None:
        """Hears the load reports."""
        topics = [agent_topic(name, "load") for name in self.hour.names]
        await self.client.transport.subscribe(topics, self._on_load, qos=0)

    def _on_load(self, message: TransportMessage) -> None:
        if message.payload:
            load = decode(Load, message.payload, sent_type=message.type)
            asyncio.get_running_loop().call_later(self.hour.setting.report_delay_s, self._heard, load)

    def _heard(self, load: Load) -> None:
        self.placer.scheduler.book.reported(
            load.agent, self.placer.now, running=load.running, queued=load.queued, slots=load.slots
        )

    async def answer(self, number: str, arrival: Arrival, off: float) -> None:
        """Sees one request through."""
        setting, cloud, result, now = self.hour.setting, self.hour.cloud, self.hour.run.result, self.placer.now
        tokens = max(1.0, arrival.tokens * off)
        demand = Demand(
            id=number,
            tokens=tokens,
            prompt_tokens=arrival.prompt_tokens,
            arrived=now,
            wait_until=now + setting.patience_s,
            cloud_usd=cloud.usd(arrival.prompt_tokens, tokens),
            cloud_s=cloud.seconds(tokens),
        )
        try:
            placed = await self.placer.place(demand, self.candidates)
            while placed.decision.kind == "agent":
                if await self._ask(placed, arrival):
                    result.processed += 1
                    result.latencies.append(self.placer.now - now)
                    return
                placed = await self.placer.again(demand)
            if placed.decision.kind == "cloud":
                result.redirected += 1
                result.cloud_cost_usd += cloud.usd(arrival.prompt_tokens, arrival.tokens)
                result.latencies.append(self.placer.now - now + cloud.seconds(arrival.tokens))
            else:
                result.refused += 1
        finally:
            self.placer.close(demand)

    async def _ask(self, placed: Placed, arrival: Arrival) -> bool:
        """Asks an agent; whether it has answered."""
        name, setting, asked = self.names[placed.row], self.hour.setting, self.placer.now
        device = self.hour.names[name]
        waits = self.placer.scheduler.policy.queues and setting.patience_s > 0
        left = max(0.0, placed.demand.wait_until - asked) if waits else 0.0
        try:
            reply = await self.client.ask(
                {"prompt_tokens": arrival.prompt_tokens, "tokens": arrival.tokens},
                service=SERVICE,
                agent=name,
                ttl_s=min(_DAY_S, left + device.seconds(arrival) + self.hour.transport_s),
                max_wait_ms=round(1000 * left),
            )
        except RequestError as error:
            self._failed(placed, error)
            return False
        working = self._measured(device, reply, self.placer.now - asked)
        # As in the simulation: with a prompt the speed of writing can't be told from one figure.
        self.placer.ended(placed, seconds=0.0 if arrival.prompt_tokens else working, tokens=arrival.tokens)
        return True

    def _failed(self, placed: Placed, error: RequestError) -> None:
        waited = placed.demand.wait_until <= self.placer.now and self.hour.setting.patience_s > 0
        if error.code == "busy" and not (waited and self.placer.scheduler.policy.queues):
            self.hour.run.result.rejected += 1
            self.placer.busy(placed)
            return
        if error.code != "busy":
            _log.warning("@%s gave no answer: %s", self.names[placed.row], error)
        self.placer.ended(placed, failed=True)

    def _measured(self, device: Device, reply: Reply, took_s: float) -> float:
        """Notes how long an agent worked on its answer, and how long the way was; returns the former, in seconds."""
        timing = reply.timing
        assert timing is not None and timing.elapsed_ms is not None and timing.queued_ms is not None
        working = timing.elapsed_ms / 1000
        self.hour.run.result.busy_s[device.name] += working
        self.hour.run.links.append((took_s - working - timing.queued_ms / 1000) / 2)
        return working
