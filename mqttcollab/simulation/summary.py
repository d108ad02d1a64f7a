"""Means over seeds, their intervals, and how far they are from the bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from mqttcollab.simulation.study import Outcome, Run, Scene, Study

DEFAULT, YARDSTICK = "frugal", "load-aware"
_TAIL = 0.975


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds; `ci95` is None where one seed tells nothing of the spread, or nothing was measured."""

    value: float
    ci95: tuple[float, float] | None

    @property
    def half(self) -> float:
        """Half the interval's width; 0 without an interval."""
        return (self.ci95[1] - self.ci95[0]) / 2 if self.ci95 is not None else 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The mean of the bounds over the seeds, in US dollars, with the patience of the scene and with none."""

    usd: float
    without_waiting_usd: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a policy came to in a scene.

    Attributes:
        more_usd: what the cloud cost more than under `frugal`, seed by seed; None where that was not run.
        ratio: the mean cost over the mean bound; None without a bound, or where the bound is 0.
        excess: cost above the bound, over that of `load-aware`; None where it can't be said.
    """

    policy: str
    processed: Mean
    rejected: Mean
    redirected: Mean
    refused: Mean
    cost_usd: Mean
    p50_ms: Mean
    p95_ms: Mean
    utilisation: tuple[float, ...]
    more_usd: Mean | None
    ratio: float | None
    ratio_without_waiting: float | None
    excess: float | None


def mean(values: Sequence[float]) -> Mean:
    """The mean and its 95% interval (Student's t); what is NaN is left out."""
    finite = np.asarray([value for value in values if math.isfinite(value)], dtype=float)
    if not len(finite):
        return Mean(math.nan, None)
    middle = float(finite.mean())
    if len(finite) < 2:
        return Mean(middle, None)
    half = float(stdtrit(len(finite) - 1, _TAIL) * finite.std(ddof=1) / math.sqrt(len(finite)))
    return Mean(middle, (middle - half, middle + half))


def bounds_of(outcome: Outcome) -> Bounds | None:
    """The bounds of a scene; None where they were not sought."""
    if outcome.bounds is None or outcome.without_waiting is None:
        return None
    return Bounds(float(np.mean(outcome.bounds)), float(np.mean(outcome.without_waiting)))


def summarise(outcome: Outcome) -> list[Summary]:
    """One per policy, in their order."""
    bounds = bounds_of(outcome)
    costs = {policy: [run.cloud_cost_usd for run in runs] for policy, runs in outcome.runs.items()}
    yardstick = float(np.mean(costs[YARDSTICK])) if YARDSTICK in costs else None
    found = []
    for policy, runs in outcome.runs.items():
        cost = mean(costs[policy])
        more = None
        if DEFAULT in costs:
            more = mean([a - b for a, b in zip(costs[policy], costs[DEFAULT], strict=True)])
        found.append(
            Summary(
                policy=policy,
                cost_usd=cost,
                **{name: mean([getattr(run, name) for run in runs]) for name in _COUNTS},
                p50_ms=mean([1000 * run.p50_s for run in runs]),
                p95_ms=mean([1000 * run.p95_s for run in runs]),
                utilisation=_utilisation(runs),
                more_usd=more,
                ratio=_ratio(cost.value, bounds.usd if bounds else None),
                ratio_without_waiting=_ratio(cost.value, bounds.without_waiting_usd if bounds else None),
                excess=_excess(cost.value, yardstick, bounds),
            )
        )
    return found


def describe(study: Study, scene: Scene) -> str:
    """A scene in words."""
    setting = scene.setting
    offered = study.source.offered(scene.load, study.fleet.devices)
    orchestrators = f"{setting.orchestrators} orchestrator{'s' if setting.orchestrators > 1 else ''}"
    parts = [
        "the paper's arrivals" if study.source.name == "paper" else study.source.name,
        f"load {offered:.3g}",
        f"patience {setting.patience_s:g} s",
        f"report delay {setting.report_delay_s:g} s",
        orchestrators,
        f"length error {setting.length_error:g}",
    ]
    for device in study.fleet.devices:
        times = " and ".join(f"{begins:g} to {ends:g} s" for begins, ends in device.down)
        parts += [f"{device.name} down {times}"] if times else []
    return ", ".join(parts)


def as_json(study: Study, outcome: Outcome) -> list[dict[str, Any]]:
    """What `--json` prints of a scene: an object per policy; None for what can't be said."""
    scene, setting, bounds = outcome.scene, outcome.scene.setting, bounds_of(outcome)
    devices = study.fleet.devices
    where = {
        "arrivals": study.source.name,
        "load": scene.load,
        "offered_load": study.source.offered(scene.load, devices),
        "report_delay_s": setting.report_delay_s,
        "orchestrators": setting.orchestrators,
        "length_error": setting.length_error,
        "patience_s": setting.patience_s,
        "down": {device.name: [list(times) for times in device.down] for device in devices if device.down},
        "seeds": len(study.seeds),
        "first_seed": study.seeds.start,
        "bound_usd": bounds and bounds.usd,
        "bound_without_waiting_usd": bounds and bounds.without_waiting_usd,
    }
    return [{"policy": found.policy, **where, **_figures(study, found)} for found in summarise(outcome)]


_COUNTS = ("processed", "rejected", "redirected", "refused")


def _figures(study: Study, found: Summary) -> dict[str, Any]:
    intervals = {name: getattr(found, name).ci95 for name in (*_COUNTS, "p50_ms", "p95_ms")}
    return {
        **{name: getattr(found, name).value for name in _COUNTS},
        "cloud_cost_usd": found.cost_usd.value,
        "cloud_cost_ci95": _listed(found.cost_usd.ci95),
        "p50_ms": _finite(found.p50_ms.value),
        "p95_ms": _finite(found.p95_ms.value),
        "ci95": {name: _listed(interval) for name, interval in intervals.items()},
        "more_than_frugal_usd": found.more_usd and found.more_usd.value,
        "more_than_frugal_ci95": found.more_usd and _listed(found.more_usd.ci95),
        "utilisation": dict(zip((d.name for d in study.fleet.devices), found.utilisation, strict=True)),
        "excess": found.excess,
        "ratio_to_bound_without_waiting": found.ratio_without_waiting,
        "ratio_to_bound": found.ratio,
    }


def _utilisation(runs: Sequence[Run]) -> tuple[float, ...]:
    return tuple(map(float, np.mean([run.utilisation for run in runs], axis=0)))


def _ratio(cost: float, bound: float | None) -> float | None:
    return cost / bound if bound else None


def _excess(cost: float, yardstick: float | None, bounds: Bounds | None) -> float | None:
    if bounds is None or yardstick is None or yardstick <= bounds.usd:
        return None
    return (cost - bounds.usd) / (yardstick - bounds.usd)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return list(interval) if interval is not None else None
