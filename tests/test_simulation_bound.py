"""The bound against the optimum of tiny instances, found by trying every schedule."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from mqttcollab.errors import ConfigError
from mqttcollab.simulation import programme
from mqttcollab.simulation.bound import Instance, lower_bound

pytest.importorskip("highspy", reason="the bound needs the extra `simulate`")


def optimum(instance: Instance, patience_s: float) -> float:
    """The least cost over all schedules: slot after slot, every order of every subset, each job as early as it can."""
    slots = [device for device, count in enumerate(instance.slots) for _ in range(count)]

    def start(request: int, device: int, free: float) -> float:
        begin = max(free, instance.arrivals[request])
        for down, up in instance.down[device]:
            if begin + instance.seconds[request, device] > down and begin < up:
                begin = up
        return begin

    @cache
    def least(slot: int, free: float, left: frozenset[int]) -> float:
        if slot == len(slots):
            return float(sum(instance.cloud_usd[request] for request in left))
        best = least(slot + 1, -np.inf, left)
        for request in left:
            begin = start(request, slots[slot], free)
            end = begin + instance.seconds[request, slots[slot]]
            if begin <= instance.arrivals[request] + patience_s and np.isfinite(end):
                best = min(best, least(slot, end, left - {request}))
        return best

    return least(0, -np.inf, frozenset(range(len(instance.arrivals))))


def tiny(seed: int, *, whole: bool = False) -> Instance:
    """Six requests at most on one or two devices, in overload; now and then a device is down, or can't do a request."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 7)), int(rng.integers(1, 3))
    arrivals = np.sort(rng.uniform(0, 6, n))
    seconds = rng.uniform(0.5, 6, (n, m))
    if whole:  # jobs that touch, and arrivals at the same time
        arrivals, seconds = np.floor(arrivals), np.ceil(seconds)
    seconds[rng.random((n, m)) < 0.1] = np.inf
    down = [[(t, t + 1.5) for t in rng.uniform(0, 6, int(rng.integers(0, 3)))] for _ in range(m)]
    return Instance(arrivals, rng.uniform(0.1, 1, n), seconds, rng.integers(1, 3, m), down)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("patience_s", "near"), [(0.0, 0.95), (0.1, 0.9), (0.5, 0.95), (2.0, 0.9), (7.0, 0.85)])
def test_never_above_the_optimum_and_near_it(patience_s: float, near: float, whole: bool) -> None:
    bounds, optima = [], []
    for seed in range(100):
        instance = tiny(seed, whole=whole)
        bounds.append(lower_bound(instance, patience_s).cost_usd)
        optima.append(optimum(instance, patience_s))
    assert np.all(np.array(bounds) <= np.array(optima) + 1e-6)
    assert sum(bounds) >= near * sum(optima)


@pytest.mark.parametrize("patience_s", [0.0, 0.5, 2.0])
def test_a_solver_that_stops_early_lowers_the_bound_and_never_makes_it_wrong(
    patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = [lower_bound(tiny(seed), patience_s).cost_usd for seed in range(40)]
    monkeypatch.setitem(programme._OPTIONS, "ipm_iteration_limit", 1)
    early = [lower_bound(tiny(seed), patience_s) for seed in range(40)]
    assert all(bound.cost_usd <= optimum(tiny(seed), patience_s) + 1e-6 for seed, bound in enumerate(early))
    assert sum(bound.cost_usd for bound in early) < sum(exact)


def test_without_hipo_another_interior_point_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [lower_bound(tiny(seed), 1.0).cost_usd for seed in range(40)]
    monkeypatch.setattr(programme, "_SOLVERS", ("none of its solvers", "ipx"))
    assert [lower_bound(tiny(seed), 1.0).cost_usd for seed in range(40)] == pytest.approx(usual, abs=2e-3)


def test_of_two_at_once_the_cheaper_goes_to_the_cloud_unless_it_can_wait() -> None:
    instance = Instance(np.array([1.0, 1.0]), np.array([0.3, 0.2]), np.array([[2.0], [2.0]]), np.array([1]))
    assert lower_bound(instance).cost_usd == pytest.approx(0.2, rel=1e-3)
    assert lower_bound(instance, 2.0).cost_usd == 0


def test_a_request_that_arrives_as_another_ends_costs_nothing() -> None:
    times = np.arange(20) * 0.1
    instance = Instance(times, np.ones(20), np.diff(np.append(times, 2.0))[:, None], np.array([1]))
    assert lower_bound(instance).cost_usd == 0


@pytest.mark.parametrize(("patience_s", "cost"), [(0.0, 1.0), (4.0, 1.0), (6.0, 0.0)])
def test_nothing_runs_into_a_down_time(patience_s: float, cost: float) -> None:
    instance = Instance(np.array([0.0]), np.ones(1), np.array([[2.0]]), np.array([1]), [[(1.0, 4.0), (3.0, 5.0)]])
    assert lower_bound(instance, patience_s).cost_usd == cost


@pytest.mark.parametrize("patience_s", [0.0, 2.0])
def test_what_no_device_can_run_goes_to_the_cloud(patience_s: float) -> None:
    instance = Instance(np.array([0.0, 1.0]), np.array([3.0, 4.0]), np.full((2, 2), np.inf), np.array([1, 2]))
    assert lower_bound(instance, patience_s).cost_usd == 7


@pytest.mark.parametrize("patience_s", [0.0, 3.0])
def test_no_requests_cost_nothing(patience_s: float) -> None:
    assert lower_bound(Instance(np.array([]), np.array([]), np.empty((0, 2)), np.array([1, 1])), patience_s)[0] == 0


@pytest.mark.parametrize("patience_s", [0.0, 2.0])
def test_in_an_overloaded_hour_it_stands_between_a_policy_and_what_the_fleet_lacks(patience_s: float) -> None:
    rng = np.random.default_rng(3)
    arrivals = np.sort(np.concatenate([rng.uniform(0, 900, 250), rng.uniform(300, 360, 100)]))
    tokens = rng.choice([50.0, 100, 200, 300, 500], 350, p=[0.35, 0.3, 0.2, 0.1, 0.05])
    instance = Instance(arrivals, tokens, tokens[:, None] / np.array([60.0, 35, 20, 8]), np.array([1, 1, 2, 1]))
    bound = lower_bound(instance, patience_s)
    burst = (arrivals >= 300) & (arrivals <= 360)
    served = (60 + patience_s + 500 / np.array([60, 35, 20, 20, 8])) @ np.array([60.0, 35, 20, 20, 8])
    assert tokens[burst].sum() - served <= bound.cost_usd <= fastest_free(instance)
    assert bound.gap_usd < 0.01 * bound.cost_usd
    assert bound.requests < len(arrivals)


def fastest_free(instance: Instance) -> float:
    ends = [[0.0] * count for count in instance.slots]
    paid = 0.0
    for request, now in enumerate(instance.arrivals):
        free = [device for device, running in enumerate(ends) if min(running) <= now]
        if free:
            device = min(free, key=instance.seconds[request].__getitem__)
            ends[device][ends[device].index(min(ends[device]))] = now + instance.seconds[request, device]
        else:
            paid += instance.cloud_usd[request]
    return paid


FINE: dict[str, Any] = {"arrivals": [0, 1], "cloud_usd": [1, 1], "seconds": [[1], [1]], "slots": [1]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slots": [], "seconds": np.empty((2, 0))}, "a fleet with no devices"),
        ({"arrivals": [1, 0]}, r"arrivals holds 0 at \[0\]; it must be not before the one ahead"),
        ({"arrivals": [0, np.nan]}, "arrivals holds nan"),
        ({"arrivals": [[0, 1]]}, r"arrivals has shape \(1, 2\)"),
        ({"cloud_usd": [1]}, r"cloud_usd has shape \(1,\), expected \(2,\)"),
        ({"cloud_usd": [1, -1]}, r"cloud_usd holds -1 at \[1\]"),
        ({"cloud_usd": [1, np.nan]}, "cloud_usd holds nan"),
        ({"cloud_usd": [1, None]}, "cloud_usd holds nan"),
        ({"cloud_usd": ["dear", 1]}, "cloud_usd holds something that is not a number"),
        ({"seconds": [[1, 1], [1, 1]]}, r"seconds has shape \(2, 2\), expected \(2, 1\)"),
        ({"seconds": [[1], [0]]}, r"seconds holds 0 at \[1, 0\]"),
        ({"seconds": [[-2], [1]]}, "seconds holds -2"),
        ({"seconds": [[np.nan], [1]]}, "seconds holds nan"),
        ({"slots": [0]}, "slots holds 0"),
        ({"slots": [1.5]}, "slots holds 1.5"),
        ({"slots": [np.inf]}, "slots holds inf"),
        ({"down": [[], []]}, "down holds 2 devices, expected 1"),
        ({"down": [[(3, 2)]]}, "device 0 is down from 3 to 2 s"),
        ({"down": [[(np.nan, 2)]]}, "device 0 is down from nan"),
    ],
)
def test_an_instance_that_is_not_possible_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Instance(**{**FINE, **wrong})


@pytest.mark.parametrize(("patience_s", "cells"), [(-1.0, 4), (np.nan, 4), (np.inf, 4), (1.0, 0)])
def test_a_patience_that_is_not_possible_is_refused(patience_s: float, cells: int) -> None:
    with pytest.raises(ConfigError, match="not possible; give"):
        lower_bound(Instance(**FINE), patience_s, cells=cells)


def test_without_highspy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(ConfigError, match=r"mqttcollab\[simulate\]"):
        lower_bound(Instance(**{**FINE, "arrivals": [0, 0]}))
