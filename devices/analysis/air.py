"""Roadside nitrogen oxides: the current hour, its trend, how unusual it is, and a level in plain words.

What is and what is not comparable: the guideline values are for nitrogen dioxide (NO2, in µg/m³), the
record is NOx (NO + NO2) in ppb. Since NO2 is a part of NOx, NOx expressed as NO2 is an upper bound of NO2:
below a guideline value the hour certainly meets it, above it nothing can be concluded but that it may not.

Values: WHO global air quality guidelines 2021: NO2 25 µg/m³ (24 h mean) and 200 µg/m³ (1 h mean, carried
over from 2005). EU directive 2008/50/EC, Annex XII: alert threshold 400 µg/m³ over three consecutive hours.
Conversion at 20 °C and 1013 hPa, as that directive asks: 1 ppb NO2 = 1.9125 µg/m³.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from devices.analysis.tables import numbers, read_csv

UGM3_PER_PPB = 1.9125
WHO_DAY_UGM3 = 25.0
WHO_HOUR_UGM3 = 200.0
EU_ALERT_UGM3 = 400.0
TREND_HOURS = 3
STEADY = 0.15
MIN_RECORD_HOURS = 24
COLUMNS = ("day", "nox_ppb", "traffic_nox_emission", "wind_ms")


@dataclass(frozen=True, slots=True)
class AirHour:
    """One hour of the record. `emission` is in arbitrary units (the source's); `hour` is None on incomplete days."""

    day: int
    hour: int | None
    nox_ppb: float
    emission: float
    wind_ms: float


@dataclass(frozen=True, slots=True)
class AirReport:
    """What the record says about one of its hours.

    Attributes:
        nox_ugm3: NOx expressed as NO2, µg/m³: an upper bound of NO2.
        trend_ratio: NOx over the mean of the three hours before; None where the record has a gap there.
        trend: `rising`, `falling`, `steady` or `unknown`.
        z_score: of ln(NOx) against the record up to the hour before; None below 24 hours of record.
        emission_ratio: traffic emission over its mean so far; None at the first hour.
        level: `low`, `moderate`, `high` or `very high`.
    """

    now: AirHour
    nox_ugm3: float
    trend_ratio: float | None
    trend: str
    z_score: float | None
    emission_ratio: float | None
    level: str
    meaning: str
    record_hours: int


def load(path: Path) -> list[AirHour]:
    """Read the record, leaving out hours that lack a value.

    Raises:
        ConfigError: the file is missing or not of this form.
    """
    rows = read_csv(path, COLUMNS)
    days, nox, emission, wind = (numbers(path, rows, column) for column in COLUMNS)
    hours: list[AirHour] = []
    for index, day in enumerate(days):
        whole = days.count(day) == 24
        hour = index - days.index(day) if whole else None
        values = (nox[index], emission[index], wind[index])
        if all(math.isfinite(value) for value in values) and nox[index] > 0:
            hours.append(AirHour(int(day), hour, *values))
    return hours


def level_of(nox_ugm3: float) -> tuple[str, str]:
    """Return the level of NOx expressed as NO2 (µg/m³), and what can be concluded from it."""
    if nox_ugm3 <= WHO_DAY_UGM3:
        return "low", "even if all of it were NO2, it would be within the WHO 24-hour guideline (25 µg/m³)"
    if nox_ugm3 <= WHO_HOUR_UGM3:
        return (
            "moderate",
            "even if all of it were NO2, it would be within the WHO 1-hour guideline (200 µg/m³), "
            "but a whole day like this could exceed the 24-hour one (25 µg/m³)",
        )
    may = "NO2 may exceed the WHO 1-hour guideline (200 µg/m³), depending on its share, which is not measured"
    if nox_ugm3 <= EU_ALERT_UGM3:
        return "high", may
    return (
        "very high",
        f"{may}; NOx as NO2 is above even the EU alert threshold for NO2 (400 µg/m³ over 3 hours)",
    )


def report(record: Sequence[AirHour], index: int) -> AirReport:
    """Describe the hour `record[index]` from it and from what came before, nothing later."""
    now, before = record[index], record[:index]
    ugm3 = now.nox_ppb * UGM3_PER_PPB
    level, meaning = level_of(ugm3)
    ratio = _trend_ratio(record, index)
    return AirReport(
        now=now,
        nox_ugm3=ugm3,
        trend_ratio=ratio,
        trend=_trend(ratio),
        z_score=_z_score(now, before),
        emission_ratio=now.emission / fmean(hour.emission for hour in before) if before else None,
        level=level,
        meaning=meaning,
        record_hours=len(before),
    )


def _trend_ratio(record: Sequence[AirHour], index: int) -> float | None:
    stretch = record[max(0, index - TREND_HOURS) : index + 1]
    times = [24 * hour.day + hour.hour for hour in stretch if hour.hour is not None]
    # Days that are incomplete or do not follow each other leave a gap.
    if len(times) <= TREND_HOURS or times[-1] - times[0] != TREND_HOURS:
        return None
    return stretch[-1].nox_ppb / fmean(hour.nox_ppb for hour in stretch[:-1])


def _trend(ratio: float | None) -> str:
    if ratio is None:
        return "unknown"
    if abs(ratio - 1) <= STEADY:
        return "steady"
    return "rising" if ratio > 1 else "falling"


def _z_score(now: AirHour, before: Sequence[AirHour]) -> float | None:
    """Concentrations are nearly log-normal, so the score is taken on logarithms."""
    if len(before) < MIN_RECORD_HOURS:
        return None
    logs = [math.log(hour.nox_ppb) for hour in before]
    spread = stdev(logs)
    return (math.log(now.nox_ppb) - fmean(logs)) / spread if spread > 0 else None
