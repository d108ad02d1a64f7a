"""The statistics of an area: trends, outliers and drift of known series, real records with known faults."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from devices import HERE
from devices.analysis.tables import numbers, read_csv
from mqttcollab.cooperation.area_statistics import (
    distinct,
    drift,
    far_off,
    robust_z,
    scale_of,
    stuck_for,
    surprise,
    trend,
    unit_vector,
)


def hourly(values: list[float]) -> list[tuple[float, float]]:
    return [(3600.0 * hour, value) for hour, value in enumerate(values)]


def record(file: str, column: str) -> list[float]:
    path = HERE / "data" / file
    return [value for value in numbers(path, read_csv(path, (column,)), column) if math.isfinite(value)]


def noise(count: int, seed: int = 1, memory: float = 0.0) -> list[float]:
    dice, last, values = random.Random(seed), 0.0, []
    for _ in range(count):
        last = memory * last + dice.gauss(0, 1)
        values.append(last)
    return values


# --- trend


def test_the_slope_of_a_line_is_exact_and_one_outlier_does_not_move_it() -> None:
    line = [2.0 * hour for hour in range(20)]
    found = trend(hourly(line))
    assert found is not None
    assert (found.slope, found.low, found.high, found.direction) == (2.0, 2.0, 2.0, "rising")
    line[13] = 1e6
    bent = trend(hourly(line))
    assert bent is not None
    assert bent.slope == pytest.approx(2.0, rel=0.01)
    assert bent.direction == "rising"


def test_the_slope_is_that_of_sens_own_definition() -> None:
    values = noise(30)
    slopes = sorted((y - x) / (j - i) for i, x in enumerate(values) for j, y in enumerate(values) if j > i)
    found = trend(hourly(values))
    assert found is not None
    middle = len(slopes) // 2
    assert found.slope == pytest.approx(
        (slopes[middle] + slopes[middle - 1]) / 2 if len(slopes) % 2 == 0 else slopes[middle]
    )
    assert found.low <= found.slope <= found.high


@pytest.mark.parametrize(("memory", "most"), [(0.0, 0.08), (0.5, 0.12)])
def test_noise_seldom_has_a_trend_and_its_interval_holds_zero(memory: float, most: float) -> None:
    found = [trend(hourly(noise(40, seed, memory))) for seed in range(300)]
    assert sum(t is not None and t.direction != "steady" for t in found) / 300 <= most
    assert sum(t is not None and t.low <= 0 <= t.high for t in found) / 300 >= 0.97 - most


def test_a_rise_in_noise_is_found_and_its_interval_mostly_holds_it() -> None:
    found = [trend(hourly([0.1 * i + x for i, x in enumerate(noise(60, seed))])) for seed in range(100)]
    assert sum(t is not None and t.direction == "rising" for t in found) >= 98
    assert sum(t is not None and t.low <= 0.1 <= t.high for t in found) >= 90


@pytest.mark.parametrize("points", [[], hourly([1.0] * 7), [(5.0, float(i)) for i in range(20)]])
def test_too_little_for_a_trend(points: list[tuple[float, float]]) -> None:
    assert trend(points) is None


def test_a_constant_is_steady() -> None:
    found = trend(hourly([3.0] * 20))
    assert found is not None
    assert (found.slope, found.p, found.direction) == (0.0, 1.0, "steady")


def test_many_points_are_thinned_and_say_the_same() -> None:
    found = trend(hourly([0.5 * i + x for i, x in enumerate(noise(5000))]))
    assert found is not None
    assert found.slope == pytest.approx(0.5, rel=0.01)
    assert found.readings == 64


# --- outliers


def test_the_robust_scale_is_that_of_the_normal_distribution_and_outliers_leave_it() -> None:
    values = noise(5000)
    assert scale_of(values) == pytest.approx(1, abs=0.05)
    assert scale_of(values[:4500] + [1e9] * 500) == pytest.approx(1, abs=0.25)


def test_the_modified_z_score_of_iglewicz_and_hoaglin() -> None:
    before = [2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3]
    assert scale_of(before) / 1.4826 == pytest.approx(0.15)  # median 2.45
    assert robust_z(8.2, before) == pytest.approx((8.2 - 2.45) / (1.4826 * 0.15))
    assert robust_z(2.0, [2.0] * 20) is None
    assert robust_z(2.0, [1.0, 2.0]) is None
    assert robust_z(1e100, before) == 1e6


def test_a_spike_is_a_surprise_and_the_way_back_is_none() -> None:
    values = noise(60)
    up = surprise([*values, values[-1] + 20])
    back = surprise([*values, values[-1] + 20, values[-1]])
    down = surprise([*values, values[-1] - 20])
    assert up is not None and back is not None and down is not None
    assert up > 8 and down < -8 and abs(back) < 1


@pytest.mark.parametrize(
    ("file", "column", "size"),
    [
        ("nox_hourly.csv", "nox_ppb", 500.0),
        ("weather_hourly.csv", "temperature_c", 12.0),
        ("weather_hourly.csv", "humidity_pct", 50.0),
        ("weather_hourly.csv", "wind_ms", 8.0),
    ],
)
def test_spikes_in_real_records_are_found_at_few_false_alarms(file: str, column: str, size: float) -> None:
    values = record(file, column)
    windows = [values[i - 72 : i + 1] for i in range(72, len(values))]
    alarms = sum(abs(far_off(window) or 0) >= 1 for window in windows) / len(windows)
    found = sum(abs(far_off([*window[:-1], window[-1] + size]) or 0) >= 1 for window in windows) / len(windows)
    assert alarms <= 0.035
    assert found >= 0.9


def test_repetitions_are_no_readings() -> None:
    assert distinct([(1, 5.0), (2, 5.0), (3, 6.0), (4, 5.0)]) == [(1, 5.0), (3, 6.0), (4, 5.0)]
    assert far_off([5.0] * 50) is None
    assert far_off([]) is None


def test_a_stuck_sensor() -> None:
    values = [round(x, 3) for x in noise(50)]
    assert stuck_for(values) == 0
    assert stuck_for([*values, *[values[-1]] * 11]) == 12
    rain = [0.0] * 30 + [1.2, 0.4] + [0.0] * 25 + [2.0, 0.1, 0.3, 0.2] + [0.0] * 24
    assert stuck_for(rain) == 0  # it does not rain for days
    hourly_published_every_minute = [x for x in values for _ in range(20)]
    assert stuck_for(hourly_published_every_minute) == 0
    assert stuck_for([]) == 0


# --- vectors


def direction(*parts: float) -> list[float]:
    vector = unit_vector(parts)
    assert vector is not None
    return vector


def test_an_embedding_that_means_something_else_has_drifted() -> None:
    dice = random.Random(3)
    before = [direction(1 + dice.gauss(0, 0.1), dice.gauss(0, 0.1), dice.gauss(0, 0.1)) for _ in range(20)]
    same = drift(direction(1, 0.05, 0.0), before)
    other = drift(direction(0.0, 1.0, 0.0), before)
    assert same is not None and other is not None
    assert not same.drifted and other.drifted
    assert other.distance == pytest.approx(1, abs=0.1)
    assert drift(before[0], before[:7]) is None


def test_by_chance_one_in_n_plus_one_drifts() -> None:
    dice = random.Random(4)
    draw = [[direction(*(dice.gauss(1, 1) for _ in range(8))) for _ in range(17)] for _ in range(400)]
    found = [drift(vectors[-1], vectors[:-1]) for vectors in draw]
    assert sum(d is not None and d.drifted for d in found) / 400 == pytest.approx(1 / 17, abs=0.03)


@pytest.mark.parametrize("vector", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0], [1e-200, 0.0], [1.7e308, 1.7e308]])
def test_a_vector_without_a_direction(vector: list[float]) -> None:
    assert unit_vector(vector) is None


def test_the_first_step_of_a_lasting_jump_and_what_follows() -> None:
    values = noise(60)
    shifted = [*values, *(x + 15 for x in noise(5, seed=2))]
    assert all((far_off(shifted[: 61 + i]) or 0) >= 1 for i in range(5))
    assert all(y != x for x, y in pairwise(shifted))
