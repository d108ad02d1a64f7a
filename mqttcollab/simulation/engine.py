"""One hour of one fleet under one policy, on a virtual clock; the scheduler is the one that runs live."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mqttcollab.scheduling.base import Demand
from mqttcollab.scheduling.load import LoadBook, Terms
from mqttcollab.scheduling.policies import make_policy
from mqttcollab.scheduling.scheduler import Placed, Scheduler


class Arrival(NamedTuple):
    """A request: when it comes (s), the tokens to read and to write."""

    time: float
    prompt_tokens: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Device:
    """A simulated agent.

    Attributes:
        name: of the agent.
        tokens_per_s: that one slot writes.
        prompt_tokens_per_s: that one slot reads.
        slots: requests that it works on at once.
        link_s: one way between it and an orchestrator.
        down: when it is away, from and to, in seconds.
    """

    name: str
    tokens_per_s: float
    prompt_tokens_per_s: float
    slots: int = 1
    link_s: float = 0.002
    down: tuple[tuple[float, float], ...] = ()

    def seconds(self, arrival: Arrival) -> float:
        """How long it takes for a request."""
        return arrival.prompt_tokens / self.prompt_tokens_per_s + arrival.tokens / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Cloud:
    """What the cloud charges per million tokens, in US dollars, and how fast it is."""

    prompt_usd_per_mtok: float = 30.0
    completion_usd_per_mtok: float = 60.0
    tokens_per_s: float = 30.0
    overhead_s: float = 0.8

    def usd(self, prompt_tokens: float, tokens: float) -> float:
        """What a request costs."""
        return (prompt_tokens * self.prompt_usd_per_mtok + tokens * self.completion_usd_per_mtok) / 1e6

    def seconds(self, tokens: float) -> float:
        """How long it takes."""
        return self.overhead_s + tokens / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Setting:
    """What is varied.

    Attributes:
        report_delay_s: how old a load report is when it arrives.
        orchestrators: how many share the fleet, each with what it sees itself; requests go to any of them.
        length_error: how far the expected lengths are off, at most, as a share of the true ones.
        patience_s: how long a request may wait before it has to begin.
        detect_s: how long it takes to notice that a device is gone.
        queue_size: requests that wait at a device, at most.
    """

    report_delay_s: float = 0.0
    orchestrators: int = 1
    length_error: float = 0.0
    patience_s: float = 0.0
    detect_s: float = 5.0
    queue_size: int = 32


@dataclass(slots=True)
class Result:
    """What came of it; latencies in seconds, of everything that was answered; when the last of it was done with."""

    processed: int = 0
    rejected: int = 0
    redirected: int = 0
    refused: int = 0
    cloud_cost_usd: float = 0.0
    latencies: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)


class _Job:
    """A request on its way."""

    __slots__ = ("arrival", "begun", "demand", "orchestrator", "placed", "where")

    def __init__(self, arrival: Arrival, demand: Demand, orchestrator: _Orchestrator) -> None:
        self.arrival = arrival
        self.demand = demand
        self.orchestrator = orchestrator
        self.placed: Placed | None = None
        self.where: _Machine | None = None
        self.begun = -1.0


class _Machine:
    """A device at work."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.up = True
        self.life = 0
        self.running: dict[_Job, None] = {}  # in the order in which they began
        self.queue: deque[_Job] = deque()


class _Orchestrator:
    """A scheduler, its rows of the devices, and when it looks again at those that wait."""

    def __init__(self, scheduler: Scheduler, devices: Sequence[Device]) -> None:
        self.scheduler = scheduler
        rows = [
            scheduler.book.row(d.name, "", Terms(d.tokens_per_s, d.prompt_tokens_per_s, slots=d.slots)) for d in devices
        ]
        self.rows = rows
        self.machine = dict(zip(rows, range(len(devices)), strict=True))
        self.gone: set[int] = set()
        self.candidates = scheduler.book.candidates(rows)
        self.wake = float("inf")

    def lost(self, number: int, lost: bool) -> None:
        """Takes a device out of the candidates, or back in."""
        (self.gone.add if lost else self.gone.discard)(number)
        self.candidates = self.scheduler.book.candidates([r for r in self.rows if self.machine[r] not in self.gone])


class Simulation:
    """Runs arrivals through a fleet.

    Args:
        devices: the fleet.
        arrivals: in the order of their times.
        policy: its name.
        setting: what is varied.
        cloud: prices and speed of the cloud.
        seed: of everything that is random.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        arrivals: Sequence[Arrival],
        policy: str,
        setting: Setting | None = None,
        cloud: Cloud | None = None,
        seed: int = 0,
    ) -> None:
        self.setting = setting or Setting()
        self.cloud = cloud or Cloud()
        self.result = Result(busy_s={device.name: 0.0 for device in devices})
        self._machines = [_Machine(device) for device in devices]
        self._orchestrators = [
            _Orchestrator(Scheduler(make_policy(policy, seed + 7919 * k), LoadBook()), devices)
            for k in range(self.setting.orchestrators)
        ]
        self._arrivals = arrivals
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._jobs: dict[str, _Job] = {}
        self.now = 0.0

    def run(self) -> Result:
        """Until the last request is done with."""
        for number, machine in enumerate(self._machines):
            for begins, ends in machine.device.down:
                self._at(begins, lambda number=number: self._crash(number))  # type: ignore[misc]
                self._at(ends, lambda number=number: self._recover(number))  # type: ignore[misc]
        upcoming = enumerate(self._arrivals)
        following = next(upcoming, None)
        while following is not None or self._events:
            if following is not None and (not self._events or following[1].time <= self._events[0][0]):
                number, arrival = following
                self.now = arrival.time
                self._arrive(number, arrival)
                following = next(upcoming, None)
            else:
                self.now, _, event = heapq.heappop(self._events)
                event()
        return self.result

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._counter), event))

    # Orchestrators

    def _arrive(self, number: int, arrival: Arrival) -> None:
        setting = self.setting
        off = 1 + setting.length_error * self._random.uniform(-1, 1) if setting.length_error else 1.0
        tokens = max(1.0, arrival.tokens * off)
        demand = Demand(
            id=str(number),
            tokens=tokens,
            prompt_tokens=arrival.prompt_tokens,
            arrived=self.now,
            wait_until=self.now + setting.patience_s,
            cloud_usd=self.cloud.usd(arrival.prompt_tokens, tokens),
            cloud_s=self.cloud.seconds(tokens),
        )
        orchestrators = self._orchestrators
        orchestrator = (
            orchestrators[self._random.randrange(len(orchestrators))] if orchestrators[1:] else orchestrators[0]
        )
        job = self._jobs[demand.id] = _Job(arrival, demand, orchestrator)
        self._go(job, orchestrator.scheduler.submit(demand, orchestrator.candidates, self.now))
        if job.placed is None:
            self._look_again(orchestrator)

    def _go(self, job: _Job, placed: Placed) -> None:
        """Does what was decided."""
        kind = placed.decision.kind
        if kind == "agent":
            job.placed = placed
            machine = self._machines[job.orchestrator.machine[placed.row]]
            self._at(self.now + machine.device.link_s, lambda: self._reach(job, placed, machine))
        elif kind == "cloud":
            self.result.cloud_cost_usd += self.cloud.usd(job.arrival.prompt_tokens, job.arrival.tokens)
            self.result.redirected += 1
            self._done(job, self.now + self.cloud.seconds(job.arrival.tokens))
        elif kind == "refuse":
            self.result.refused += 1
            self._close(job)

    def _done(self, job: _Job, time: float) -> None:
        self.result.latencies.append(time - job.arrival.time)
        self.result.ended_s = max(self.result.ended_s, time)
        self._close(job)

    def _close(self, job: _Job) -> None:
        job.orchestrator.scheduler.close(job.demand.id, self.now)
        del self._jobs[job.demand.id]

    def _look_again(self, orchestrator: _Orchestrator) -> None:
        """Sends those that waited and can go; asks to be woken when the next has waited long enough."""
        scheduler = orchestrator.scheduler
        if not scheduler.waiting:
            return
        for placed in scheduler.ready(self.now):
            self._go(self._jobs[placed.demand.id], placed)
        wake = scheduler.next_time(self.now)
        if wake < orchestrator.wake or orchestrator.wake <= self.now:
            orchestrator.wake = wake
            self._at(wake, lambda: self._look_again(orchestrator))

    def _again(self, job: _Job) -> None:
        """Decides anew of a request that came back without an answer."""
        self._go(job, job.orchestrator.scheduler.again(job.demand.id, self.now))
        self._look_again(job.orchestrator)

    # Devices

    def _reach(self, job: _Job, placed: Placed, machine: _Machine) -> None:
        """A request reaches a device."""
        if job.placed is not placed:
            return
        if not machine.up:
            job.where = machine
            machine.queue.append(job)  # the broker keeps it; whether it is ever answered shows later
        elif len(machine.running) < machine.device.slots and not machine.queue:
            self._begin(job, machine)
        elif (
            job.orchestrator.scheduler.policy.queues
            and self.setting.patience_s
            and len(machine.queue) < self.setting.queue_size
        ):
            job.where = machine
            machine.queue.append(job)
            self._report(machine)
            self._at(job.demand.wait_until, lambda: self._give_up(job, placed, machine))
        else:
            self.result.rejected += 1
            self._at(self.now + machine.device.link_s, lambda: self._turned_away(job, placed))

    def _turned_away(self, job: _Job, placed: Placed) -> None:
        job.placed = None
        job.orchestrator.scheduler.busy(placed, self.now)
        self._again(job)

    def _give_up(self, job: _Job, placed: Placed, machine: _Machine) -> None:
        if job.placed is not placed or job.begun >= 0 or job not in machine.queue:
            return
        machine.queue.remove(job)
        self._report(machine)
        job.placed = None
        job.orchestrator.scheduler.ended(placed, self.now, failed=True)
        self._again(job)

    def _begin(self, job: _Job, machine: _Machine) -> None:
        job.where, job.begun = machine, self.now
        machine.running[job] = None
        self._report(machine)
        life, placed = machine.life, job.placed
        self._at(self.now + machine.device.seconds(job.arrival), lambda: self._finish(job, placed, machine, life))

    def _finish(self, job: _Job, placed: Placed | None, machine: _Machine, life: int) -> None:
        if machine.life != life:
            return
        machine.running.pop(job, None)
        self.result.busy_s[machine.device.name] += self.now - job.begun
        while machine.queue and len(machine.running) < machine.device.slots:
            self._begin(machine.queue.popleft(), machine)
        self._report(machine)
        if job.placed is placed:
            self._at(self.now + machine.device.link_s, lambda: self._answer(job, placed))

    def _answer(self, job: _Job, placed: Placed | None) -> None:
        if placed is None or job.placed is not placed:
            return
        self.result.processed += 1
        tokens, orchestrator = job.arrival.tokens, job.orchestrator
        orchestrator.scheduler.ended(
            placed, self.now, seconds=0.0 if job.arrival.prompt_tokens else self.now - job.begun, tokens=tokens
        )
        self._done(job, self.now)
        self._look_again(orchestrator)

    def _report(self, machine: _Machine) -> None:
        """Publishes the load, which arrives later; a single orchestrator without delay has seen all of it itself."""
        running, queued = len(machine.running), len(machine.queue)
        name, slots = machine.device.name, machine.device.slots

        def arrive() -> None:
            for orchestrator in self._orchestrators:
                orchestrator.scheduler.book.reported(name, self.now, running=running, queued=queued, slots=slots)

        self._at(self.now + machine.device.link_s + self.setting.report_delay_s, arrive)

    def _crash(self, number: int) -> None:
        machine = self._machines[number]
        machine.up, machine.life = False, machine.life + 1
        lost = [*machine.running, *machine.queue]
        machine.running.clear()
        machine.queue.clear()
        self._at(self.now + self.setting.detect_s, lambda: self._notice(number, lost, machine.life))

    def _notice(self, number: int, lost: Sequence[_Job], life: int) -> None:
        machine = self._machines[number]
        for orchestrator in self._orchestrators:
            orchestrator.lost(number, not machine.up)
        if not machine.up:
            lost = [*lost, *machine.queue]
            machine.queue.clear()
        for job in lost:
            placed, job.placed, job.begun = job.placed, None, -1.0
            if placed is not None:
                job.orchestrator.scheduler.ended(placed, self.now, failed=True)
                self._again(job)

    def _recover(self, number: int) -> None:
        machine = self._machines[number]
        machine.up = True
        for orchestrator in self._orchestrators:
            orchestrator.lost(number, False)
        while machine.queue and len(machine.running) < machine.device.slots:
            self._begin(machine.queue.popleft(), machine)
