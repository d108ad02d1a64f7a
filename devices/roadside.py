"""A roadside unit: nitrogen oxides, traffic emission and wind of the current hour (see `analysis/air.py`).

It replays an hourly record; every answer says which hour of it is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import HERE, embedder_of, main, read_settings
from devices.analysis.air import AirReport, load, report
from devices.observer import Observer
from devices.replay import Replay
from mqttcollab import Agent, Answer, Request, Source

SERVICE = "data.gpt/traffic/air-quality"
DESCRIPTION = "Air pollution at the roadside: nitrogen oxides from traffic exhaust, and wind, this hour"
EXAMPLES = (
    "How is the air quality here?",
    "How polluted is the air at this road?",
    "How much nitrogen oxide is in the air?",
    "NOx and NO2 concentration",
    "Should I keep the window to the street closed because of the bad air?",
    "Are the exhaust fumes from traffic bad today?",
    "Is the air clean enough for an outdoor event or sport?",
    "What environmental hazards does this street have?",
    "Can people with asthma exercise outdoors here?",
    "How healthy is the air for a fair, a concert or a sports day outdoors?",
    "Is it safe to hold a festival or market in the street here today?",
    "What is the NO2 value at the crossing?",
    "Do cars and lorries foul the air at the moment?",
    "Is there smog?",
    "Is it a good idea to jog along this road?",
    "How bad are emissions from traffic right now?",
    "Is the pollution rising or falling?",
    "Would a pram beside the street breathe in too much exhaust?",
    "Are the limits for nitrogen dioxide exceeded?",
    "Is the traffic heavy on this road?",
    "My lungs are sensitive: is the air here all right for me?",
    "How does the air compare with WHO guidelines?",
)
UNITS = {
    "nox": "ppb",
    "nox_as_no2": "ug/m3",
    "wind": "m/s",
    "traffic_emission": "arbitrary",
    "trend_ratio": "1",
    "emission_ratio": "1",
    "z_score": "1",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the roadside unit; `start` is the row of the record to begin with."""

    name: str = "rsu-12"
    place: str = "beside a motorway"
    data: Path = HERE / "data" / "nox_hourly.csv"
    start: int = 398
    seconds_per_hour: float = 3600.0
    interval: float = 30.0
    embedder: str | None = None


def values_of(air: AirReport) -> dict[str, float]:
    """Return the numbers of a report, without those that can't be had; units in `UNITS`."""
    values = {
        "nox": air.now.nox_ppb,
        "nox_as_no2": round(air.nox_ugm3, 1),
        "wind": air.now.wind_ms,
        "traffic_emission": air.now.emission,
    }
    maybe = {"trend_ratio": air.trend_ratio, "emission_ratio": air.emission_ratio, "z_score": air.z_score}
    return values | {key: round(value, 2) for key, value in maybe.items() if value is not None}


def when_of(air: AirReport) -> str:
    """Name the hour of the record."""
    hour = "" if air.now.hour is None else f", {air.now.hour:02d}:00"
    return f"day {air.now.day}{hour} of the record"


def text_of(air: AirReport) -> str:
    """Say a report's measurements in one line."""
    trend = "no trend (gap or start of the record)"
    if air.trend_ratio is not None:
        trend = f"{air.trend}, {air.trend_ratio:.1f} times the mean of the 3 hours before"
    return (
        f"Air at the road: {air.level} nitrogen oxides: NOx {air.now.nox_ppb:.0f} ppb "
        f"({air.nox_ugm3:.0f} µg/m³ as NO2), {trend}; wind {air.now.wind_ms:.1f} m/s"
    )


def explain(air: AirReport) -> str:
    """Say what a report means, what is unusual, and what it can't tell."""
    parts = [f"{air.level.capitalize()}: {air.meaning}"]
    if air.z_score is not None:
        unusual = "unusually " if abs(air.z_score) >= 2 else "not unusually "
        side = "high" if air.z_score >= 0 else "low"
        parts.append(f"it is {unusual}{side} for this place (z = {air.z_score:+.1f} over {air.record_hours} h)")
    if air.emission_ratio is not None:
        parts.append(f"traffic emits {100 * air.emission_ratio:.0f}% of its mean so far")
    if air.now.wind_ms < 1.5:
        parts.append("the wind is too weak to thin it out quickly")
    if air.level in ("high", "very high"):
        parts.append("people with asthma or heart disease should keep away from the road and avoid exertion beside it")
    parts.append("particles and ozone are not measured, NO2 not by itself")
    return "; ".join(parts)


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    record = load(options.data)
    replay = Replay(len(record), start=options.start, seconds=options.seconds_per_hour)
    agent = Agent(
        options.name,
        description="A roadside unit that measures nitrogen oxides, traffic and wind",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "roadside unit", "sensors": "NOx, traffic, wind"},
    )
    observer = Observer(agent, SERVICE, UNITS)

    @agent.service(SERVICE, description=DESCRIPTION, examples=EXAMPLES)
    async def air_quality(request: Request) -> Answer:
        air = report(record, replay.position())
        return Answer(
            text=f"{text_of(air)}. {explain(air)}. (Replayed: {when_of(air)}.)",
            data={**values_of(air), "level": air.level, "trend": air.trend, "units": UNITS},
            confidence=0.9 if air.z_score is not None else 0.7,
            sources=[
                observer.source(f"{options.data.name}, {when_of(air)}", text_of(air)),
                Source(document="WHO global air quality guidelines 2021; EU directive 2008/50/EC"),
            ],
        )

    @agent.every(options.interval)
    async def observe() -> None:
        air = report(record, replay.position())
        await observer.publish(text_of(air), values_of(air))

    return agent


if __name__ == "__main__":
    main(build)
