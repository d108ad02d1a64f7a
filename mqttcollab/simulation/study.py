"""A grid of settings, policies and seeds, over all cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess

import numpy as np

from mqttcollab.errors import RuntimeFailure
from mqttcollab.simulation.arrivals import Source
from mqttcollab.simulation.bound import Instance, lower_bound
from mqttcollab.simulation.engine import Arrival, Setting, Simulation
from mqttcollab.simulation.fleet import SimulatedFleet

_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Scene:
    """A setting at a load."""

    load: float
    setting: Setting


@dataclass(frozen=True, slots=True)
class Study:
    """What is simulated: every policy in every scene with every seed.

    Attributes:
        fleet: with its outages.
        source: of arrivals.
        policies: their names.
        scenes: settings and loads.
        seeds: of arrivals and of all else that is random.
        bounded: whether the bounds are sought as well.
    """

    fleet: SimulatedFleet
    source: Source
    policies: tuple[str, ...]
    scenes: tuple[Scene, ...]
    seeds: range
    bounded: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """What one policy made of one seed; latencies are NaN where nothing was answered.

    Attributes:
        utilisation: by device, of the time until the last request was done with.
    """

    processed: int
    rejected: int
    redirected: int
    refused: int
    cloud_cost_usd: float
    p50_s: float
    p95_s: float
    utilisation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All runs of a scene.

    Attributes:
        runs: by policy, one per seed.
        bounds: the least that the cloud can cost, in US dollars, per seed; None where they were not sought.
        without_waiting: the same where no request may wait.
    """

    scene: Scene
    runs: dict[str, list[Run]]
    bounds: list[float] | None = None
    without_waiting: list[float] | None = None


def simulate(study: Study, scene: Scene, policy: str, seed: int) -> Run:
    """One policy, one seed."""
    fleet = study.fleet
    simulation = Simulation(fleet.devices, _arrivals(study, scene, seed), policy, scene.setting, fleet.cloud, seed)
    result = simulation.run()
    latencies = np.asarray(result.latencies)
    p50, p95 = np.quantile(latencies, (0.5, 0.95)) if len(latencies) else (np.nan, np.nan)
    lasted = max(study.source.duration_s, result.ended_s)
    return Run(
        processed=result.processed,
        rejected=result.rejected,
        redirected=result.redirected,
        refused=result.refused,
        cloud_cost_usd=result.cloud_cost_usd,
        p50_s=float(p50),
        p95_s=float(p95),
        utilisation=tuple(result.busy_s[d.name] / d.slots / lasted for d in fleet.devices),
    )


def bound(study: Study, scene: Scene, patience_s: float, seed: int) -> float:
    """The least that the cloud can cost, in US dollars."""
    devices, cloud = study.fleet
    arrivals = _arrivals(study, scene, seed)
    instance = Instance(
        arrivals=np.array([arrival.time for arrival in arrivals]),
        cloud_usd=np.array([cloud.usd(arrival.prompt_tokens, arrival.tokens) for arrival in arrivals]),
        # Without tokens a request takes no time, which the programme can't have.
        seconds=np.array([[max(_LEAST_S, device.seconds(arrival)) for device in devices] for arrival in arrivals]),
        slots=np.array([device.slots for device in devices]),
        down=[device.down for device in devices],
    )
    return lower_bound(instance, patience_s).cost_usd


def run_study(study: Study, jobs: int = 1, progress: Callable[[int, int], None] | None = None) -> Iterator[Outcome]:
    """Runs a study, over so many processes; yields the scenes in their order, each as soon as it is done.

    Args:
        study: what to run.
        jobs: processes; with 1 all is done in this one.
        progress: called with how many tasks are done, and of how many.

    Raises:
        RuntimeFailure: a process died.
    """
    tasks = list(dict.fromkeys(task for scene in study.scenes for task in _tasks(study, scene)))
    if jobs <= 1 or len(tasks) == 1:
        results = ((task, _work(study, task)) for task in tasks)
        yield from _collected(study, results, len(tasks), progress)
        return
    # Spawned: a fork of a process that has threads may hang. The study goes to each process once.
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=get_context("spawn"), initializer=_prepare, initargs=(study,)
    )
    workers: list[BaseProcess] = []
    try:
        futures = _submitted(pool, tasks, workers)
        yield from _collected(study, ((task, future.result()) for task, future in futures), len(tasks), progress)
    except BrokenProcessPool:
        raise RuntimeFailure("a process of the simulation died (out of memory?); try fewer with --jobs") from None
    except BaseException:  # nobody waits for what is under way
        for worker in workers:
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# A policy's run, or (policy "") a bound with a patience. Hashable: the same bound is sought once.
@dataclass(frozen=True, slots=True)
class _Task:
    scene: Scene
    seed: int
    policy: str = ""
    patience_s: float = 0.0


def _tasks(study: Study, scene: Scene) -> Iterator[_Task]:
    for seed in study.seeds:
        if study.bounded:
            yield from (_bound_task(scene, seed, patience) for patience in (scene.setting.patience_s, 0.0))
        for policy in study.policies:
            yield _Task(scene, seed, policy)


def _bound_task(scene: Scene, seed: int, patience_s: float) -> _Task:
    """Who knows all has no use for reports: only the load and the patience tell bounds apart."""
    return _Task(Scene(scene.load, Setting()), seed, patience_s=patience_s)


def _collected(
    study: Study,
    results: Iterator[tuple[_Task, Run | float]],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Outcome]:
    """Puts results together, which come in the order of the tasks."""
    found: dict[_Task, Run | float] = {}
    for scene in study.scenes:
        for task in _tasks(study, scene):
            while task not in found:
                done, result = next(results)
                found[done] = result
                if progress is not None:
                    progress(len(found), total)
        yield _outcome(study, scene, found)


def _outcome(study: Study, scene: Scene, found: dict[_Task, Run | float]) -> Outcome:
    runs = {policy: [found[_Task(scene, seed, policy)] for seed in study.seeds] for policy in study.policies}
    bounds = [
        [found[_bound_task(scene, seed, patience)] for seed in study.seeds] if study.bounded else None
        for patience in (scene.setting.patience_s, 0.0)
    ]
    return Outcome(scene, runs, *bounds)  # type: ignore[arg-type]  # a run for a policy, a number for a bound


def _work(study: Study, task: _Task) -> Run | float:
    if task.policy:
        return simulate(study, task.scene, task.policy, task.seed)
    return bound(study, task.scene, task.patience_s, task.seed)


def _arrivals(study: Study, scene: Scene, seed: int) -> Sequence[Arrival]:
    return study.source.arrivals(scene.load, study.fleet.devices, seed)


# In the processes

_study: Study | None = None


def _prepare(study: Study) -> None:
    global _study
    _study = study
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), name="end-with-parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    """However the process that started this one ends: nobody would read what this one finds."""
    connection.wait([sentinel])
    os._exit(1)


def _do(task: _Task) -> Run | float:
    assert _study is not None
    return _work(_study, task)


def _submitted(
    pool: ProcessPoolExecutor, tasks: Sequence[_Task], workers: list[BaseProcess]
) -> list[tuple[_Task, Future[Run | float]]]:
    """Submits all; the processes that this starts inherit that SIGINT is blocked: ending them is ours."""
    others = set(active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return [(task, pool.submit(_do, task)) for task in tasks]
    finally:
        workers += set(active_children()) - others
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
