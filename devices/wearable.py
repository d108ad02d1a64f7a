"""A wearable: heart rate and heart rate variability, computed from a photoplethysmogram (see `analysis/ppg.py`).

The recording is replayed in real time; the window that is analysed moves through it and starts again at its
end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devices import HERE, embedder_of, main, read_settings
from devices.analysis.ppg import NoPulse, Pulse, analyse
from devices.analysis.tables import numbers, read_csv
from devices.analysis.vitals import describe_heart_rate
from devices.observer import Observer
from devices.replay import Replay
from mqttcollab import Agent, Answer, ConfigError, Request, RequestError, Service

SERVICE = "data.gpt/health/heart-rate"
UNITS = {
    "heart_rate": "1/min",
    "rmssd": "ms",
    "sdnn": "ms",
    "quality": "1",
    "window_start": "s",
    "window": "s",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the wearable; `data` is a CSV file with a column `ppg`."""

    name: str = "watch-7"
    place: str = "on the wrist of the user"
    data: Path = HERE / "data" / "ppg_100hz.csv"
    sample_rate: float = 100.0
    note: str = "replayed recording of a resting adult"
    window_s: float = 15.0
    interval: float = 5.0
    embedder: str | None = None


class Recording:
    """A photoplethysmogram with a window that moves through it as time goes."""

    def __init__(self, settings: Settings) -> None:
        rows = read_csv(settings.data, ("ppg",))
        self.samples = np.asarray(numbers(settings.data, rows, "ppg"))
        self.rate = settings.sample_rate
        self.name = settings.data.name
        self.note = settings.note
        self._width = round(settings.window_s * settings.sample_rate)
        starts = int((len(self.samples) - self._width) / self.rate) + 1
        if not settings.window_s >= 5 or starts < 1:
            longest = len(self.samples) / self.rate
            raise ConfigError(f"setting 'window_s' is {settings.window_s}; it must be from 5 to {longest:.0f} s")
        self._replay = Replay(starts, seconds=1.0)

    def measure(self) -> tuple[float, Pulse]:
        """Return the start of the current window (s) and the pulse in it. Raises NoPulse."""
        start = self._replay.position()
        first = round(start * self.rate)
        return float(start), analyse(self.samples[first : first + self._width], self.rate)


def values_of(start: float, pulse: Pulse) -> dict[str, float]:
    """Return the numbers of a measurement, rounded to what they are worth; units in `UNITS`."""
    values = {
        "heart_rate": round(pulse.heart_rate, 1),
        "sdnn": round(pulse.sdnn, 1),
        "quality": round(pulse.quality, 2),
        "window_start": start,
        "window": pulse.seconds,
    }
    if pulse.rmssd is not None:
        values["rmssd"] = round(pulse.rmssd, 1)
    return values


def variability_of(pulse: Pulse) -> str:
    """Say the variability in one phrase."""
    rmssd = "not measurable" if pulse.rmssd is None else f"{pulse.rmssd:.0f} ms"
    return f"heart rate variability over {pulse.seconds:.0f} s: RMSSD {rmssd}, SDNN {pulse.sdnn:.0f} ms"


def text_of(pulse: Pulse) -> str:
    """Say a measurement in one line."""
    return f"Heart rate {pulse.heart_rate:.0f}/min; {variability_of(pulse)}"


class HeartRate(Service):
    """Answers with the pulse of the current window."""

    name = SERVICE
    description = "Heart rate (pulse) and heart rate variability of the wearer, measured now at the wrist"
    examples = (
        "What is my heart rate?",
        "Is my pulse too high?",
        "My heart is pounding and beats fast",
        "I feel faint and my heart flutters",
        "What is my heart rate variability?",
        "Am I stressed or relaxed?",
        "My heartbeat feels irregular",
        "Did my pulse go up?",
        "How many beats per minute does my heart do at rest?",
        "Measure my pulse",
        "Is my heart racing?",
        "What does my watch say about my heart?",
        "Is my heart beating regularly?",
        "Am I calm or agitated?",
        "Heart rate after climbing the stairs",
        "Do I have tachycardia?",
        "Is a pulse of mine this slow normal?",
        "RMSSD and SDNN of my heartbeat",
        "How quickly does my heart recover?",
        "Is my body under strain?",
        "Has my heart skipped a beat?",
    )

    def __init__(self, recording: Recording, observer: Observer) -> None:
        self._recording = recording
        self._observer = observer

    async def handle(self, request: Request) -> Answer:
        """Measure now; without a pulse that can be trusted there is no answer."""
        try:
            start, pulse = self._recording.measure()
        except NoPulse as error:
            raise RequestError("no_capability", f"no heart rate can be measured: {error}") from error
        details = (
            f"{pulse.intervals} beat intervals, {pulse.rejected} rejected as artefacts, signal quality "
            f"{pulse.quality:.2f}; so short a window gives no value to compare with 5-minute norms; "
            f"signal: {self._recording.note}"
        )
        where = f"{self._recording.name}, {start:.0f} to {start + pulse.seconds:.0f} s"
        return Answer(
            text=f"Heart rate {pulse.heart_rate:.0f}/min, {describe_heart_rate(pulse.heart_rate)}; "
            f"{variability_of(pulse)} ({details}).",
            data={**values_of(start, pulse), "units": UNITS},
            confidence=round(min(1.0, pulse.quality), 2),
            sources=[self._observer.source(where, text_of(pulse))],
        )


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    recording = Recording(options)
    agent = Agent(
        options.name,
        description="A wearable that measures the pulse",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "wearable", "sensors": f"photoplethysmogram, {options.sample_rate:.0f} Hz"},
    )
    observer = Observer(agent, SERVICE, UNITS)
    agent.add(HeartRate(recording, observer))

    @agent.every(options.interval)
    async def observe() -> None:
        try:
            start, pulse = recording.measure()
        except NoPulse:
            return  # an observation that says nothing is none; who asks is told why
        await observer.publish(text_of(pulse), values_of(start, pulse))

    return agent


if __name__ == "__main__":
    main(build)
