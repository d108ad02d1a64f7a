"""Grids: what is run, means and intervals over seeds, the ratio to the bound, and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling import POLICIES
from mqttcollab.simulation.arrivals import Paper, Trace
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Setting
from mqttcollab.simulation.fleet import SimulatedFleet, read_fleet
from mqttcollab.simulation.plot import plot, plot_files
from mqttcollab.simulation.study import Outcome, Run, Scene, Study, run_study
from mqttcollab.simulation.summary import as_json, bounds_of, describe, mean, summarise


def study(policies: tuple[str, ...] = ("load-aware", "frugal"), seeds: int = 2, **more: Any) -> Study:
    scenes = more.pop("scenes", (Scene(0.8, Setting()),))
    return Study(
        more.pop("fleet", read_fleet()), more.pop("source", Paper(240)), policies, scenes, range(seeds), **more
    )


def run(cost: float, latency: float = 1.0) -> Run:
    return Run(5, 1, 2, 0, cost, latency, 2 * latency, (0.5, 0.25))


def test_processes_give_what_one_process_gives() -> None:
    scenes = (Scene(0.8, Setting()), Scene(0.8, Setting(patience_s=2)), Scene(0.8, Setting(orchestrators=2)))
    wanted = study(scenes=scenes, seeds=3)
    seen: list[tuple[int, int]] = []
    alone = list(run_study(wanted))
    assert list(run_study(wanted, 2, lambda done, total: seen.append((done, total)))) == alone
    assert [outcome.scene for outcome in alone] == list(scenes)
    # Three seeds of two policies in three scenes, and as many of two bounds that are sought once.
    assert seen == [(i, 24) for i in range(1, 25)]
    for outcome in alone:
        assert [len(runs) for runs in outcome.runs.values()] == [3, 3]
        assert outcome.bounds is not None and outcome.without_waiting == alone[0].bounds
        for runs in outcome.runs.values():
            for cost, bound in zip(runs, outcome.bounds, strict=True):
                assert cost.cloud_cost_usd >= bound - 1e-9
    assert alone[0].bounds == alone[2].bounds
    assert sum(alone[1].bounds or []) < sum(alone[0].bounds or [])


def test_the_bound_of_an_hour_by_hand() -> None:
    """Of two requests at once one device can take one: it takes the dearer."""
    fleet = SimulatedFleet((Device("a", 10.0, 100.0),), Cloud(30.0, 60.0))
    source = Trace("t.csv", (Arrival(0, 0, 100), Arrival(0, 0, 200), Arrival(50, 0, 100)))
    (outcome,) = run_study(study(fleet=fleet, source=source, seeds=1, scenes=(Scene(9.0, Setting()),)))
    assert outcome.bounds == [pytest.approx(100 * 60 / 1e6, rel=1e-3)]
    assert outcome.runs["frugal"][0].utilisation == (pytest.approx(20 / 60, rel=0.01),)


@given(
    st.lists(
        st.builds(Device, st.uuids().map(str), st.floats(1, 50), st.just(100.0), st.integers(1, 2), st.just(0.0)),
        min_size=1,
        max_size=3,
    ),
    st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from([0.0, 300.0]), st.sampled_from([10.0, 50.0, 200.0])),
        min_size=2,
        max_size=15,
    ),
    st.sampled_from([0.0, 2.0, 10.0]),
    st.integers(1, 3),
)
def test_no_policy_is_below_the_bound(
    devices: list[Device], requests: list[tuple[float, float, float]], patience_s: float, orchestrators: int
) -> None:
    """Nobody works twice at once, longer than a slot is free, or on what has waited too long."""
    times = sorted(request[0] for request in requests)
    arrivals = tuple(Arrival(time, *request[1:]) for time, request in zip(times, requests, strict=True))
    scene = Scene(99.0, Setting(patience_s=patience_s, orchestrators=orchestrators, report_delay_s=1.0))
    fleet = SimulatedFleet(tuple(devices), Cloud())
    (outcome,) = run_study(study(POLICIES, 1, fleet=fleet, source=_Given(arrivals), scenes=(scene,)))
    assert outcome.bounds is not None
    for policy, (found,) in outcome.runs.items():
        assert found.cloud_cost_usd >= outcome.bounds[0] - 1e-6, policy


@dataclass(frozen=True)
class _Given:
    """Arrivals as they are, whatever the load."""

    requests: tuple[Arrival, ...]
    name: str = "given"
    duration_s: float = 20.0

    def offered(self, load: float, devices: Sequence[Device]) -> float:
        return load

    def arrivals(self, load: float, devices: Sequence[Device], seed: int) -> list[Arrival]:
        return list(self.requests)


def test_means_have_intervals_by_students_t() -> None:
    found = mean([1.0, 2.0, 3.0, math.nan])
    assert (found.value, found.ci95) == (2.0, pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4))
    assert mean([7.0, math.nan]).ci95 is None
    assert math.isnan(mean([math.nan]).value)


def test_ratios_and_differences() -> None:
    runs = {"load-aware": [run(4.0), run(6.0)], "fastest-free": [run(3.0), run(5.0)], "frugal": [run(2.0), run(4.0)]}
    outcome = Outcome(Scene(0.5, Setting()), runs, [1.0, 3.0], [2.0, 4.0])
    slow, fast, ours = summarise(outcome)
    assert [found.ratio for found in (slow, fast, ours)] == [2.5, 2.0, 1.5]
    assert [found.ratio_without_waiting for found in (slow, ours)] == [pytest.approx(5 / 3), 1.0]
    assert [found.excess for found in (slow, fast, ours)] == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3)]
    # Seed by seed both are dearer by the same, whatever the seeds are like.
    assert fast.more_usd is not None and (fast.more_usd.value, fast.more_usd.ci95) == (1.0, (1.0, 1.0))
    assert fast.cost_usd.ci95 is not None and fast.cost_usd.half > 10


def test_what_can_not_be_said_is_none_and_never_nan() -> None:
    nothing = Outcome(Scene(0.5, Setting()), {"random": [run(0.0, math.nan)]}, [0.0], [0.0])
    two = SimulatedFleet((Device("a", 1.0, 1.0), Device("b", 1.0, 1.0, down=((1.0, 2.0),))), Cloud())
    wanted = study(("random",), seeds=1, fleet=two)
    (found,) = as_json(wanted, nothing)
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        **{"policy": "random", "arrivals": "paper", "load": 0.5, "offered_load": 0.5, "report_delay_s": 0.0},
        **{"orchestrators": 1, "length_error": 0.0, "patience_s": 0.0, "down": {"b": [[1.0, 2.0]]}},
        **{"seeds": 1, "first_seed": 0, "bound_usd": 0.0, "bound_without_waiting_usd": 0.0},
        **{"processed": 5.0, "rejected": 1.0, "redirected": 2.0, "refused": 0.0},
        **{"cloud_cost_usd": 0.0, "cloud_cost_ci95": None, "p50_ms": None, "p95_ms": None},
        "ci95": dict.fromkeys(("processed", "rejected", "redirected", "refused", "p50_ms", "p95_ms")),
        **{"more_than_frugal_usd": None, "more_than_frugal_ci95": None, "utilisation": {"a": 0.5, "b": 0.25}},
        **{"excess": None, "ratio_to_bound_without_waiting": None, "ratio_to_bound": None},
    }
    unbounded = Outcome(Scene(0.5, Setting()), {"frugal": [run(1.0), run(2.0)]})
    assert bounds_of(unbounded) is None
    (found,) = as_json(wanted, unbounded)
    assert (found["bound_usd"], found["ratio_to_bound"]) == (None, None)
    assert found["cloud_cost_ci95"] == pytest.approx([1.5 - 6.353, 1.5 + 6.353], abs=1e-3)


def test_an_hour_in_which_nothing_comes() -> None:
    (outcome,) = run_study(study(scenes=(Scene(1e-9, Setting()),), seeds=1))
    assert summarise(outcome)[0].ratio is None
    json.dumps(as_json(study(seeds=1), outcome), allow_nan=False)


def test_a_scene_in_words() -> None:
    setting = Setting(report_delay_s=5, orchestrators=2, length_error=0.5, patience_s=2)
    assert describe(study(), Scene(0.5, setting)) == (
        "the paper's arrivals, load 0.5, patience 2 s, report delay 5 s, 2 orchestrators, length error 0.5"
    )


# Plots


def test_a_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    wanted = study(scenes=(Scene(0.8, Setting(patience_s=2)),))
    outcomes = list(run_study(wanted))
    paths = plot_files([str(tmp_path / "hour")], 1)
    assert [path.name for path in paths] == ["hour.png", "hour.svg"]
    plot(wanted, outcomes, paths)
    png, svg = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    texts = {"".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter()}
    words = {"load-aware", "frugal", "bound", "bound without waiting", "cloud cost in US dollars", "pi-4", "median"}
    assert words <= texts
    assert describe(wanted, wanted.scenes[0]) in texts


def test_a_single_seed_is_plotted_without_whiskers_and_bound(tmp_path: Path) -> None:
    wanted = study(("random",), seeds=1, bounded=False, scenes=(Scene(1e-9, Setting()),))
    plot(wanted, list(run_study(wanted)), [tmp_path / "one.svg"])
    assert "bound" not in (tmp_path / "one.svg").read_text(encoding="utf-8")


def test_where_plots_go(tmp_path: Path) -> None:
    assert plot_files([], 99) == []
    assert plot_files([str(tmp_path / "a.svg"), str(tmp_path / "b.PNG")], 1) == [tmp_path / "a.svg", tmp_path / "b.PNG"]
    folder = tmp_path / "made" / "now"
    both = [folder / "simulation.png", folder / "simulation.svg"]
    assert plot_files([f"{folder}/"], 1) == both
    assert plot_files([str(folder)], 1) == both


@pytest.mark.parametrize(
    ("name", "scenes", "told"),
    [
        ("a.jpg", 1, r"a\.jpg: plots are written as \.png or \.svg, not \.jpg"),
        ("none/a.png", 1, r"can't write .*none/a\.png: there is no folder .*none"),
        ("folder.png", 1, r"can't write .*folder\.png: it is a folder"),
        ("a.png", 13, "a plot shows 12 settings at most, these are 13: plot fewer at once"),
    ],
)
def test_plots_that_can_not_be_written_are_refused_before(tmp_path: Path, name: str, scenes: int, told: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=told):
        plot_files([str(tmp_path / name)], scenes)
