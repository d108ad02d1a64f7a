"""Weather: heat index, apparent temperature, and advice in plain words for being outdoors.

Formulas and classes:
- Heat index: US National Weather Service, Rothfusz regression with Steadman's simple formula below 80 °F
  and both humidity adjustments (SR 90-23, 1990; "The Heat Index Equation", wpc.ncep.noaa.gov); NWS classes
  caution 80 °F, extreme caution 90 °F, danger 103 °F, extreme danger 125 °F.
- Apparent temperature in the shade: Steadman 1994, Aust. Met. Mag. 43:1, as the Bureau of Meteorology uses
  it.
- Wind: Beaufort scale (WMO), here its lower limits in m/s.
- Rain: AMS Glossary of Meteorology: light up to 2.5 mm/h, moderate up to 7.6 mm/h, heavy above.
- Visibility: fog below 1 km, mist (or haze) to 5 km (WMO).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from devices.analysis.tables import numbers, read_csv

COLUMNS = ("temperature_c", "humidity_pct", "wind_ms", "precipitation_mm", "visibility_km")
BEAUFORT_MS = (0.3, 1.6, 3.4, 5.5, 8.0, 10.8, 13.9, 17.2, 20.8, 24.5, 28.5, 32.7)
BEAUFORT_NAMES = (
    "calm",
    "light air",
    "light breeze",
    "gentle breeze",
    "moderate breeze",
    "fresh breeze",
    "strong breeze",
    "near gale",
    "gale",
    "strong gale",
    "storm",
    "violent storm",
    "hurricane force",
)
HEAT_F = (80.0, 90.0, 103.0, 125.0)
HEAT_CLASSES = ("none", "caution", "extreme caution", "danger", "extreme danger")


@dataclass(frozen=True, slots=True)
class WeatherHour:
    """One hourly observation; a value that was not measured is NaN."""

    time: str
    temperature_c: float
    humidity_pct: float
    wind_ms: float
    precipitation_mm: float
    visibility_km: float


def load(path: Path) -> list[WeatherHour]:
    """Read the record.

    Raises:
        ConfigError: the file is missing or not of this form.
    """
    rows = read_csv(path, ("time_utc", *COLUMNS))
    columns = [numbers(path, rows, column) for column in COLUMNS]
    return [WeatherHour(row["time_utc"], *values) for row, *values in zip(rows, *columns, strict=True)]


def heat_index_c(temperature_c: float, humidity_pct: float) -> float:
    """Return the NWS heat index in °C; near the air temperature where it is mild."""
    t, rh = temperature_c * 9 / 5 + 32, humidity_pct
    simple = 0.5 * (t + 61.0 + (t - 68.0) * 1.2 + rh * 0.094)
    index = (simple + t) / 2
    if index >= 80:
        index = (
            -42.379
            + 2.04901523 * t
            + 10.14333127 * rh
            - 0.22475541 * t * rh
            - 6.83783e-3 * t * t
            - 5.481717e-2 * rh * rh
            + 1.22874e-3 * t * t * rh
            + 8.5282e-4 * t * rh * rh
            - 1.99e-6 * t * t * rh * rh
        )
        if rh < 13 and 80 <= t <= 112:
            index -= (13 - rh) / 4 * math.sqrt((17 - abs(t - 95)) / 17)
        elif rh > 85 and 80 <= t <= 87:
            index += (rh - 85) / 10 * (87 - t) / 5
    return (index - 32) * 5 / 9


def apparent_temperature_c(temperature_c: float, humidity_pct: float, wind_ms: float) -> float:
    """Return Steadman's apparent temperature in the shade, °C."""
    vapour_hpa = humidity_pct / 100 * 6.105 * math.exp(17.27 * temperature_c / (237.7 + temperature_c))
    return temperature_c + 0.33 * vapour_hpa - 0.70 * wind_ms - 4.00


def heat_class(index_c: float) -> str:
    """Return the NWS class of a heat index."""
    return HEAT_CLASSES[bisect_right(HEAT_F, round(index_c * 9 / 5 + 32, 6))]


def beaufort(wind_ms: float) -> int:
    """Return the Beaufort force of a mean wind."""
    return bisect_right(BEAUFORT_MS, wind_ms)


def rain_class(mm_per_hour: float) -> str:
    """Return `no rain`, `light rain`, `moderate rain` or `heavy rain`."""
    if mm_per_hour <= 0:
        return "no rain"
    return "light rain" if mm_per_hour <= 2.5 else "moderate rain" if mm_per_hour <= 7.6 else "heavy rain"


def advice(hour: WeatherHour) -> list[str]:
    """Return what matters for being or setting something up outdoors; one sentence each, empty where nothing does."""
    return [text for text in (_heat(hour), _wind(hour), _rain(hour), _visibility(hour)) if text]


def _heat(hour: WeatherHour) -> str:
    index = heat_index_c(hour.temperature_c, hour.humidity_pct)
    if math.isnan(index):
        return "Heat can't be judged: temperature or humidity is missing."
    name = heat_class(index)
    if name == "none":
        return ""
    text = f"Heat: {name} (heat index {index:.0f} °C)"
    if name == "caution":
        return f"{text}: tiredness is possible with long activity; offer water and shade."
    return f"{text}: heat illness is possible; plan shade, water and rest, and watch children and older people."


def _wind(hour: WeatherHour) -> str:
    if math.isnan(hour.wind_ms):
        return "Wind was not measured this hour."
    force = beaufort(hour.wind_ms)
    if force < 5:
        return ""
    text = f"Wind: {BEAUFORT_NAMES[force]} ({hour.wind_ms:.1f} m/s mean, Beaufort {force}; gusts are not measured)"
    if force < 7:
        return f"{text}: umbrellas, banners and light tents need to be secured."
    return f"{text}: do not put up tents, stages or stands."


def _rain(hour: WeatherHour) -> str:
    name = rain_class(hour.precipitation_mm)
    if math.isnan(hour.precipitation_mm) or name == "no rain":
        return ""
    text = f"Rain: {name} ({hour.precipitation_mm:.1f} mm in the hour)"
    if name == "light rain":
        return f"{text}: cover for people and electrical equipment is needed."
    return f"{text}: the ground gets slippery and floods in places; keep electrical equipment dry or off."


def _visibility(hour: WeatherHour) -> str:
    if not hour.visibility_km < 5:
        return ""
    return f"Visibility: {'fog' if hour.visibility_km < 1 else 'mist or haze'} ({hour.visibility_km:.1f} km)."
