"""A weather station: the current hour, and what it means for being outdoors (see `analysis/meteo.py`).

It replays an hourly record; every answer says which hour of it is meant. It measures and does not forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import HERE, embedder_of, main, read_settings
from devices.analysis.meteo import (
    BEAUFORT_NAMES,
    WeatherHour,
    advice,
    apparent_temperature_c,
    beaufort,
    heat_index_c,
    load,
    rain_class,
)
from devices.observer import Observer
from devices.replay import Replay
from mqttcollab import Agent, Answer, Request, RequestError

SERVICE = "data.gpt/weather"
DESCRIPTION = "Weather here and now: temperature, humidity, wind, rain and visibility"
EXAMPLES = (
    "What is the weather like?",
    "Is it raining?",
    "How hot does it feel outside?",
    "How strong is the wind?",
    "What is the humidity?",
    "Is the weather good enough for an outdoor event, concert or party this afternoon?",
    "Do I need an umbrella or a jacket?",
    "Is there fog or mist, how far can I see?",
    "Is a storm or thunderstorm around?",
    "Will I get wet when I go out?",
    "Is it too hot for children to do sports outdoors?",
    "What are the weather risks for a street festival or open-air market today?",
    "What is the temperature?",
    "Is it cold outside?",
    "Is it sunny or cloudy?",
    "Are there strong gusts?",
    "How much has it rained in the last hour?",
    "Should I wear a coat?",
    "Is it slippery from frost or snow?",
    "Can I dry my laundry outside?",
    "How is the visibility for driving?",
    "Is it muggy out there?",
    "Is it pleasant for a walk or a picnic?",
    "Has it got warmer since the morning?",
)
UNITS = {
    "temperature": "Cel",
    "humidity": "%",
    "wind": "m/s",
    "rain": "mm/h",
    "visibility": "km",
    "heat_index": "Cel",
    "apparent_temperature": "Cel",
    "temperature_change_3h": "K",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the weather station; `start` is the row of the record to begin with."""

    name: str = "weather-3"
    place: str = "at the square"
    data: Path = HERE / "data" / "weather_hourly.csv"
    start: int = 470
    seconds_per_hour: float = 3600.0
    interval: float = 30.0
    embedder: str | None = None


def values_of(record: Sequence[WeatherHour], index: int) -> dict[str, float]:
    """Return the numbers of one hour, without those that were not measured; units in `UNITS`."""
    hour = record[index]
    values = {
        "temperature": hour.temperature_c,
        "humidity": hour.humidity_pct,
        "wind": hour.wind_ms,
        "rain": hour.precipitation_mm,
        "visibility": hour.visibility_km,
        "heat_index": heat_index_c(hour.temperature_c, hour.humidity_pct),
        "apparent_temperature": apparent_temperature_c(hour.temperature_c, hour.humidity_pct, hour.wind_ms),
    }
    if index >= 3:
        values["temperature_change_3h"] = hour.temperature_c - record[index - 3].temperature_c
    return {key: round(value, 1) for key, value in values.items() if math.isfinite(value)}


def text_of(values: Mapping[str, float]) -> str:
    """Say one hour's measurements in one line."""
    parts = [f"{values['temperature']:.0f} °C"] if "temperature" in values else []
    if "apparent_temperature" in values:
        parts[-1] += f" (feels like {values['apparent_temperature']:.0f} °C)"
    if "humidity" in values:
        parts.append(f"humidity {values['humidity']:.0f}%")
    if "wind" in values:
        parts.append(f"{BEAUFORT_NAMES[beaufort(values['wind'])]}, {values['wind']:.1f} m/s")
    if "rain" in values:
        amount = f" ({values['rain']:.1f} mm/h)" if values["rain"] > 0 else ""
        parts.append(rain_class(values["rain"]) + amount)
    if "visibility" in values:
        parts.append(f"visibility {values['visibility']:.0f} km")
    return "Weather: " + ", ".join(parts)


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    record = load(options.data)
    replay = Replay(len(record), start=options.start, seconds=options.seconds_per_hour)
    agent = Agent(
        options.name,
        description="A weather station",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "weather station", "sensors": "temperature, humidity, wind, rain, visibility"},
    )
    observer = Observer(agent, SERVICE, UNITS)

    @agent.service(SERVICE, description=DESCRIPTION, examples=EXAMPLES)
    async def weather(request: Request) -> Answer:
        index = replay.position()
        hour, values = record[index], values_of(record, index)
        if not values:
            raise RequestError("no_capability", f"nothing was measured at {hour.time}")
        outdoors = " ".join(advice(hour)) or "Nothing in heat, wind, rain or visibility speaks against being outdoors."
        measured = sum(key in values for key in ("temperature", "humidity", "wind", "rain", "visibility"))
        return Answer(
            text=f"{text_of(values)}. {outdoors} (Measured, no forecast; replayed record of {hour.time}.)",
            data={**values, "advice": advice(hour), "time": hour.time, "units": UNITS},
            confidence=round(0.95 * measured / 5, 2),
            sources=[observer.source(f"{options.data.name}, {hour.time}", text_of(values))],
        )

    @agent.every(options.interval)
    async def observe() -> None:
        values = values_of(record, replay.position())
        if values:
            await observer.publish(text_of(values), values)

    return agent


if __name__ == "__main__":
    main(build)
