"""The least that any schedule can pay the cloud, clairvoyant or not: a linear programme that knows the future.

A request either runs in one slot of one device, without interruption and started within its patience, or goes to the
cloud at its price. Each of the three steps to the bound can only lower it:

1. Relaxation. A request may be split among devices and starts. With patience 0 what runs at each arrival must fit the
   slots (interval packing: Arkin and Silverberg, Discrete Applied Mathematics 18, 1987). With patience, time is cut
   into cells, and the work inside a cell must fit the slots times its length (time-indexed relaxation: Dyer and Wolsey,
   Discrete Applied Mathematics 26, 1990). Starts are not rounded: between two starts at which an end of the job meets
   an edge, the work in each cell is linear in the start, so that a mix of the two stands for all between them.
2. Quiet hours. The programme holds only requests that arrive near one for which the fastest-free policy has no device;
   a request that is left out can pay nothing in it.
3. Prices. Of the solver's answer only the prices of slots over time are used, and made non-negative. For any such
   prices the sum over all requests of min(cloud, cheapest start), less what all slots earn, is at most the optimum
   (weak duality). It is summed in numpy: a solver that is imprecise or stops early lowers it, and can't make it wrong.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mqttcollab.errors import ConfigError
from mqttcollab.simulation.programme import Bools, Floats, Ints, Starts, solve

_ROUNDING_S = 1e-7
"""Jobs count as shorter by this, so that rounding never makes two that touch overlap."""
_SHORT_PATIENCE = 0.06
"""A patience below this part of the usual job: waiting hardly matters, and points are tighter than cells."""
_CELL_OF_JOB = 0.25
"""Cells of a device are no finer than this part of its usual job: finer ones cost more than they give."""


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """What happened in one run, all of it known.

    Attributes:
        arrivals: (n,) s, sorted.
        cloud_usd: (n,) US dollars that each request costs in the cloud.
        seconds: (n, m) how long request r takes in one slot of device i; inf where it can't run.
        slots: (m,) requests that a device runs at once.
        down: for each device the times [from, to) in s at which nothing runs; empty: none of them is ever down.

    Raises:
        ConfigError: no devices, shapes that don't match, or a value that is not possible.
    """

    arrivals: Floats
    cloud_usd: Floats
    seconds: Floats
    slots: Ints
    down: Sequence[Sequence[tuple[float, float]]] = ()

    def __post_init__(self) -> None:
        for name in ("arrivals", "cloud_usd", "seconds", "slots"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        n, m = self.arrivals.size, self.slots.size
        if m == 0:
            raise ConfigError("bound: a fleet with no devices; give slots for at least one")
        for name, shape in (("arrivals", (n,)), ("cloud_usd", (n,)), ("slots", (m,)), ("seconds", (n, m))):
            found = getattr(self, name).shape
            if found != shape and not (n == 0 and name == "seconds"):
                raise ConfigError(f"bound: {name} has shape {found}, expected {shape} ({n} requests, {m} devices)")
        _refuse("arrivals", self.arrivals, ~np.isfinite(self.arrivals), "finite seconds")
        _refuse("arrivals", self.arrivals[1:], np.diff(self.arrivals) < 0, "not before the one ahead of it: sort them")
        _refuse("cloud_usd", self.cloud_usd, ~(np.isfinite(self.cloud_usd) & (self.cloud_usd >= 0)), "0 or more")
        _refuse("seconds", self.seconds, ~(self.seconds > 0), "more than 0 (inf where a request can't run)")
        whole = np.isfinite(self.slots) & (self.slots == np.floor(self.slots))
        _refuse("slots", self.slots, ~(whole & (self.slots >= 1)), "a whole number from 1")
        object.__setattr__(self, "slots", self.slots.astype(np.int64))
        object.__setattr__(self, "down", _merged(self.down, m))


class Bound(NamedTuple):
    """A cost that no schedule can go below.

    Attributes:
        cost_usd: the bound, US dollars.
        gap_usd: what the solver's imprecision gives away; not what the relaxation does.
        seconds: time spent.
        requests: how many of the requests the programme held; the others arrived in quiet hours.
    """

    cost_usd: float
    gap_usd: float
    seconds: float
    requests: int


def lower_bound(instance: Instance, patience_s: float = 0.0, *, cells: int = 4) -> Bound:
    """A cost in the cloud, US dollars, below which no schedule of this instance can come (see the module).

    Args:
        instance: arrivals, prices, run times and the fleet.
        patience_s: seconds after its arrival within which a request must start; 0: at once.
        cells: grid cells for one patience; more are tighter and slower (4 give away some 0.5 %).

    Raises:
        ConfigError: a patience that is not 0 or more, cells below 1, or no highspy.
        MqttCollabError: the solver gave no prices.
    """
    if not (np.isfinite(patience_s) and patience_s >= 0):
        raise ConfigError(f"bound: patience {patience_s} s is not possible; give 0 or more seconds")
    if cells < 1:
        raise ConfigError(f"bound: {cells} cells for one patience are not possible; give 1 or more")
    began = time.perf_counter()
    if not instance.arrivals.size:
        return Bound(0.0, 0.0, 0.0, 0)
    busy = _busy(instance, patience_s)
    if patience_s <= _SHORT_PATIENCE * _usual(instance.seconds):
        starts = _at_arrivals(instance, patience_s)
    else:
        starts = _in_cells(instance, patience_s, patience_s / cells, busy)
    cost, gap = solve(instance.cloud_usd, starts, busy)
    return Bound(cost, gap, time.perf_counter() - began, int(busy.sum()))


def _numbers(name: str, values: object) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"bound: {name} holds something that is not a number; give an array of numbers") from None


def _refuse(name: str, values: Floats | Ints, wrong: Bools, expected: str) -> None:
    if wrong.any():
        at = [int(k) for k in np.argwhere(wrong)[0]]
        raise ConfigError(f"bound: {name} holds {values[tuple(at)]:g} at {at}; it must be {expected}")


def _merged(down: Sequence[Sequence[tuple[float, float]]], devices: int) -> list[Floats]:
    """Down times of each device as (k, 2), sorted, without overlaps."""
    if len(down) not in (0, devices):
        raise ConfigError(f"bound: down holds {len(down)} devices, expected {devices} (or none)")
    merged: list[Floats] = []
    for number, windows in enumerate(down or [()] * devices):
        union: list[list[float]] = []
        for begin, end in sorted(windows):
            if not (np.isfinite(begin) and begin < end):
                raise ConfigError(f"bound: device {number} is down from {begin} to {end} s; give from < to")
            if union and begin <= union[-1][1]:
                union[-1][1] = max(union[-1][1], end)
            else:
                union.append([begin, end])
        merged.append(np.array(union, dtype=np.float64).reshape(-1, 2))
    return merged


def _usual(seconds: Floats, part: float = 0.5) -> float:
    """Quantile of the run times that are possible, s; 0 without any."""
    finite = seconds[np.isfinite(seconds)]
    return float(np.quantile(finite, part)) if finite.size else 0.0


def _possible(instance: Instance, device: int, begin: Floats) -> Bools:
    """Where a job of each request (n, …) that starts then (n, …) runs to its end."""
    seconds = instance.seconds[:, device].reshape(-1, *[1] * (begin.ndim - 1))
    possible = np.isfinite(begin + seconds)
    for down, up in instance.down[device]:
        possible &= (begin + seconds <= down + 2 * _ROUNDING_S) | (begin >= up - _ROUNDING_S)
    return possible


def _able(instance: Instance, patience_s: float) -> Bools:
    """(n, m) who can run where within its patience, were nobody else there."""
    able = np.empty(instance.seconds.shape, dtype=np.bool_)
    for device, windows in enumerate(instance.down):
        seconds, begin = instance.seconds[:, device], instance.arrivals
        for down, up in windows:
            begin = np.where((begin + seconds > down + 2 * _ROUNDING_S) & (begin < up - _ROUNDING_S), up, begin)
        able[:, device] = np.isfinite(seconds) & (begin <= instance.arrivals + patience_s + _ROUNDING_S)
    return able


def _busy(instance: Instance, patience_s: float) -> Bools:
    """(n,) requests near one that finds no device free, if the fastest free one always takes a request at once."""
    ends = [[-np.inf] * int(count) for count in instance.slots]
    possible = _able(instance, 0.0)
    order = np.argsort(instance.seconds, axis=1)
    refused = []
    for request, now in enumerate(instance.arrivals):
        for device in order[request]:
            running = ends[device]
            slot = min(range(len(running)), key=running.__getitem__)
            if possible[request, device] and running[slot] <= now:
                running[slot] = now + instance.seconds[request, device]
                break
        else:
            refused.append(now)
    near = patience_s + _usual(instance.seconds, 0.95)
    times = np.array([*refused, np.inf])
    return times[np.searchsorted(times, instance.arrivals - near)] <= instance.arrivals + near


def _at_arrivals(instance: Instance, patience_s: float) -> Starts:
    """Whoever waits up to its patience surely runs from then to its earliest end; only arrivals are looked at."""
    n, m = instance.seconds.shape
    able = _able(instance, patience_s)
    sure = np.maximum(np.where(able, instance.seconds, 0.0) - patience_s - _ROUNDING_S, 0.0)
    first = np.searchsorted(instance.arrivals, instance.arrivals)  # of those that arrive together
    last = np.maximum(np.searchsorted(instance.arrivals, instance.arrivals[:, None] + sure), first[:, None])
    begin, end = np.empty((n, m)), np.empty((n, m))
    for device in range(m):
        # Between two ends nothing leaves, so that the last arrival before the next end stands for all.
        ending = np.zeros(n + 1, dtype=np.int64)
        ending[last[:, device]] = 1
        group = np.cumsum(ending)
        begin[:, device], end[:, device] = group[first], group[last[:, device]]
    request, device_of = np.nonzero(able)
    capacity = np.repeat(instance.slots[:, None].astype(np.float64), int(end.max()) + 1, axis=1)
    return Starts(request, device_of, begin[able], end[able], capacity)


def _in_cells(instance: Instance, patience_s: float, width_s: float, busy: Bools) -> Starts:
    """A grid for each device; a device with long jobs makes do with wider cells, up to the patience."""
    parts = []
    for device, slots in enumerate(instance.slots):
        width = min(max(width_s, _CELL_OF_JOB * _usual(instance.seconds[:, device])), patience_s)
        edges = _edges(instance, patience_s, width, busy)
        begin = _choices(instance, device, patience_s, edges)
        request, choice = np.nonzero(_possible(instance, device, begin))
        start = begin[request, choice]
        end = start + instance.seconds[request, device] - _ROUNDING_S
        index = np.arange(edges.size, dtype=np.float64)
        up = 1 - _down_in_cells(edges, instance.down[device]) / np.diff(edges)
        parts.append(
            (request, np.interp(start, edges, index), np.interp(end, edges, index), slots * np.maximum(up, 0.0))
        )
    capacity = np.repeat(instance.slots[:, None].astype(np.float64), max(part[3].size for part in parts), axis=1)
    for device, part in enumerate(parts):
        capacity[device, : part[3].size] = part[3]
    device_of = np.repeat(np.arange(len(parts)), [part[0].size for part in parts])
    request, begin, end = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return Starts(request, device_of, begin, end, capacity)


def _edges(instance: Instance, patience_s: float, width_s: float, busy: Bools) -> Floats:
    """Edges of cells of one width where busy requests can start, and one long cell over each quiet stretch."""
    begin, end = instance.arrivals[0], instance.arrivals[-1] + patience_s
    edges = begin + width_s * np.arange(int(np.ceil((end - begin) / width_s)) + 2)
    times = np.append(instance.arrivals[busy], np.inf)
    fine = times[np.searchsorted(times, edges - patience_s - width_s)] <= edges + width_s
    fine[[0, -1]] = True
    return np.asarray(edges[fine])


def _choices(instance: Instance, device: int, patience_s: float, edges: Floats) -> Floats:
    """(n, choices) starts at which an end of a job meets an edge, or of its patience or a down time; NaN: no choice."""
    arrivals, seconds = instance.arrivals, np.maximum(instance.seconds[:, device] - _ROUNDING_S, 0.0)
    choices = [arrivals, arrivals + patience_s]
    for run in (np.zeros_like(seconds), np.where(np.isfinite(seconds), seconds, 0.0)):
        first = np.searchsorted(edges, arrivals + run)
        beyond = np.searchsorted(edges, arrivals + run + patience_s)
        steps = range(int((beyond - first).max()))
        choices += [edges[np.minimum(first + step, edges.size - 1)] - run for step in steps]
    for down, up in instance.down[device]:
        choices += [down - seconds, np.full_like(seconds, up)]
    begin = np.stack(choices, axis=1)
    inside = (begin >= arrivals[:, None]) & (begin <= arrivals[:, None] + patience_s)
    return np.where(inside, begin, np.nan)


def _down_in_cells(edges: Floats, windows: Any) -> Floats:
    """Seconds of each cell in which a device is down."""
    total = np.zeros(edges.size - 1)
    for down, up in windows:
        total += np.maximum(np.minimum(edges[1:], up) - np.maximum(edges[:-1], down), 0.0)
    return total
