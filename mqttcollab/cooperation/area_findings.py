"""What is to be said of each value that an area's agents sense: usual or not, alone or with its neighbours, its trend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from mqttcollab.cooperation.area_statistics import (
    LEAST,
    Point,
    Trend,
    capped,
    distinct,
    scale_of,
    stuck_for,
    surprise,
    trend,
)
from mqttcollab.cooperation.area_windows import Embedded, Sensed, SourceKey

UNUSUAL = 3.0  # robust standard deviations; what that costs in false alarms: benchmarks/area.py

Verdict = Literal["usual", "unusual", "alone", "together", "stuck", "unknown"]


@dataclass(frozen=True, slots=True)
class Window:
    """A source's window, as it stood when the report was asked for."""

    key: SourceKey
    place: str | None
    units: dict[str, str]
    observations: tuple[Sensed, ...]
    embeddings: tuple[Embedded, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One value of one source.

    Attributes:
        points: (loop time, value), oldest first, repetitions included.
        timed: those of them that came as they were measured; our clock does not know when a retained one was.
        observation: the id of the newest one.
        replayed: the newest was retained at the broker, and so is older than it looks.
    """

    key: SourceKey
    name: str
    unit: str
    place: str | None
    points: tuple[Point, ...]
    timed: tuple[Point, ...]
    observation: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of one value of one source.

    Attributes:
        age_s: seconds since it came in.
        usual: the median of the window before it.
        surprise: robust standard deviations off its own past, signed; None where there is too little of it.
        against: the same against what its neighbours (same place, same value) did meanwhile.
        neighbours: how many those are.
        verdict: `alone`: it moved and its neighbours did not; `together`: most of them moved with it; `unusual`:
            it moved and has no neighbours; `stuck`: it does not move any more; `unknown`: too few readings.
        stuck: how often the same value came.
    """

    series: Series
    value: float
    age_s: float
    usual: float | None
    surprise: float | None
    against: float | None
    neighbours: int
    verdict: Verdict
    stuck: int
    trend: Trend | None

    @property
    def text(self) -> str:
        """One line for a person."""
        s = self.series
        unit = f" {s.unit}" if s.unit not in ("", "1") else ""
        where = f" at {s.place}" if s.place else ""
        parts = [f"@{s.key.agent}{where}: {s.name} {self.value:g}{unit}{_age(self.age_s, s.replayed)}"]
        if self.verdict == "stuck":
            parts.append(f"the same {self.stuck} times, which it never was before: the sensor may be stuck")
        elif self.verdict in ("alone", "together", "unusual"):
            side = "high" if (self.surprise or self.against or 0) > 0 else "low"
            parts.append(f"unusually {side}, {self._reason()}")
        elif self.verdict == "usual":
            parts.append(f"as usual (median {self.usual:g}{unit})")
        else:
            parts.append("too few readings to say what is usual")
        if self.trend is not None:
            t = self.trend
            parts.append(
                t.direction
                + (f" by {t.slope:+.3g}{unit}/h ({t.low:+.3g} to {t.high:+.3g})" if t.direction != "steady" else "")
            )
        return ", ".join(parts)

    def _reason(self) -> str:
        if self.verdict == "alone":
            return f"and its {self.neighbours} neighbours are not (z = {self.against or 0:+.1f} against them)"
        z = f"z = {self.surprise or 0:+.1f}"
        return f"as its neighbours are too ({z})" if self.verdict == "together" else f"{z} against its own past"

    @property
    def data(self) -> dict[str, Any]:
        """The same for machines."""
        s, t = self.series, self.trend
        content: dict[str, Any] = {
            "agent": s.key.agent,
            "service": s.key.service,
            "name": s.name,
            "value": self.value,
            "unit": s.unit,
            "place": s.place,
            "observation": s.observation,
            "age_s": round(self.age_s, 1),
            "verdict": self.verdict,
            "readings": len(s.points),
        }
        for name in ("usual", "surprise", "against"):
            if (number := getattr(self, name)) is not None:
                content[name] = round(number, 3)
        if t is not None:
            content["trend"] = {
                "direction": t.direction,
                "per_hour": t.slope,
                "low": t.low,
                "high": t.high,
                "p": round(t.p, 5),
            }
        return content


def series_of(windows: Iterable[Window], name: str | None = None) -> list[Series]:
    """The values of all windows (or those called `name`) over time."""
    found = []
    for window in windows:
        newest: dict[str, Sensed] = {n: o for o in window.observations for n in o.values}
        for value_name, last in newest.items():
            if name is None or value_name == name:
                having = [o for o in window.observations if value_name in o.values]
                found.append(
                    Series(
                        key=window.key,
                        name=value_name,
                        unit=window.units.get(value_name, ""),
                        place=window.place,
                        points=tuple((o.at, o.values[value_name]) for o in having),
                        timed=tuple((o.at, o.values[value_name]) for o in having if not o.replayed),
                        observation=last.id,
                        replayed=last.replayed,
                    )
                )
    return found


def neighbours_of(series: Series, every: Iterable[Series]) -> list[Series]:
    """The same value, in the same unit, of other agents at the same place."""
    if series.place is None:
        return []
    return [
        s
        for s in every
        if s.key.agent != series.key.agent and (s.name, s.unit, s.place) == (series.name, series.unit, series.place)
    ]


def judge(series: Series, neighbours: Sequence[Series], now: float) -> Finding:
    """What is unusual in one value.

    Against neighbours not the values are compared but how far each is off its own median: sensors differ by what
    they are and where exactly they hang, and what all of them do together is no fault of one.
    """
    points = distinct(series.points)
    values = [value for _, value in points]
    stuck = stuck_for([value for _, value in series.points])
    own = surprise(values)
    usual = median(values[:-1]) if len(values) > LEAST else None
    others = [distinct(n.points) for n in neighbours]
    moves = [_move([value for _, value in other]) for other in others if len(other) > LEAST]
    against = _against(values, moves)
    return Finding(
        series=series,
        value=values[-1],
        age_s=now - series.points[-1][0],
        usual=usual,
        surprise=own,
        against=against,
        neighbours=len(moves),
        verdict="stuck" if stuck else _verdict(own, against, _share_with(own, others)),
        stuck=stuck,
        trend=trend(distinct(series.timed)),
    )


def _move(values: Sequence[float]) -> float:
    return values[-1] - median(values[:-1])


def _against(values: Sequence[float], moves: Sequence[float]) -> float | None:
    if len(values) <= LEAST or len(moves) < 2:
        return None
    # The steps' scale, not the values': a day's rise and fall is common to all, and would hide a sensor's own fault.
    scale = max(scale_of([b - a for a, b in pairwise(values[:-1])]), scale_of(moves))
    return capped((_move(values) - median(moves)) / scale) if scale > 0 else None


def _share_with(own: float | None, others: Sequence[Sequence[Point]]) -> float:
    found = [z for other in others if (z := surprise([value for _, value in other])) is not None]
    if own is None or not found:
        return 0.0
    return sum(abs(z) >= UNUSUAL and (z > 0) == (own > 0) for z in found) / len(found)


def _verdict(own: float | None, against: float | None, share: float) -> Verdict:
    if own is None:
        return "unknown"
    if against is not None and abs(against) >= UNUSUAL and share < 0.5:
        return "alone"
    if abs(own) >= UNUSUAL:
        return "together" if share >= 0.5 else "unusual"
    return "usual"


def _age(seconds: float, replayed: bool) -> str:
    return " (retained)" if replayed else f" ({duration(seconds)} ago)"


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{math.floor(seconds / size)} {unit}"
    return f"{seconds:.0f} s"
