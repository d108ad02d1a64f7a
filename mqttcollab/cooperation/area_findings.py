"""What is to be said of each value that is sensed: usual or not, alone or with its neighbours, its trend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal, NamedTuple

from mqttcollab.cooperation.area_statistics import (
    LEAST,
    Point,
    Trend,
    capped,
    distinct,
    far_off,
    scale_of,
    stuck_for,
    trend,
)
from mqttcollab.cooperation.area_windows import Embedded, Sensed, SourceKey

_APART = 3.0  # robust standard deviations that one may be off its neighbours

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
        surprise: how far it is off its own past, signed, unusual from 1 on (`far_off`); None for too few readings.
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
        where = f" ({s.place})" if s.place else ""
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
            times = f"{abs(self.against or 0):.1f} times what is usual between them"
            return f"and its {self.neighbours} neighbours are not ({times})"
        if self.verdict == "together":
            return "as most of its neighbours are"
        return f"{abs(self.surprise or 0):.1f} times what its own past makes usual"

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
        if self.stuck:
            content["stuck"] = self.stuck
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


def findings_of(every: Sequence[Series], now: float) -> list[Finding]:
    """What is unusual in each value, compared with its own past and with the same value of others at the same place.

    Against neighbours not the values are compared but how far each is off its own median: sensors differ by what
    they are and where exactly they hang, and what all of them do together is no fault of one.
    """
    facts = [_Facts.of(series) for series in every]
    together: dict[tuple[str, str, str | None], list[_Facts]] = {}
    for each in facts:
        together.setdefault((each.series.name, each.series.unit, each.series.place), []).append(each)
    return [
        _judge(each, [n for n in group if n.series.key.agent != each.series.key.agent and place is not None], now)
        for (_, _, place), group in together.items()
        for each in group
    ]


class _Facts(NamedTuple):
    """What is computed of a series once, however many neighbours it has."""

    series: Series
    values: list[float]
    own: float | None
    move: float | None

    @classmethod
    def of(cls, series: Series) -> _Facts:
        values = [value for _, value in distinct(series.points)]
        return cls(series, values, far_off(values), move_of(values) if len(values) > LEAST else None)


def _judge(facts: _Facts, neighbours: Sequence[_Facts], now: float) -> Finding:
    series, values = facts.series, facts.values
    stuck = stuck_for([value for _, value in series.points])
    moves = [n.move for n in neighbours if n.move is not None]
    against = against_neighbours(values, moves)
    share = _share_with(facts.own, [n.own for n in neighbours if n.own is not None])
    return Finding(
        series=series,
        value=values[-1],
        age_s=now - series.points[-1][0],
        usual=median(values[:-1]) if len(values) > LEAST else None,
        surprise=facts.own,
        against=against,
        neighbours=len(moves),
        verdict="stuck" if stuck else _verdict(facts.own, against, share),
        stuck=stuck,
        trend=trend(distinct(series.timed)),
    )


def move_of(values: Sequence[float]) -> float:
    """How far the newest value is off the median of those before it."""
    return values[-1] - median(values[:-1])


def against_neighbours(values: Sequence[float], moves: Sequence[float]) -> float | None:
    """How far a value is off its past beyond what its neighbours are off theirs, in unusual from 1 on.

    Args:
        values: oldest first.
        moves: `move_of` each neighbour; at least two, else nobody knows which one is wrong.
    """
    if len(values) <= LEAST or len(moves) < 2:
        return None
    # The steps' scale, not the values': a day's rise and fall is common to all, and would hide a sensor's own fault.
    scale = max(scale_of([b - a for a, b in pairwise(values[:-1])]), scale_of(moves))
    return capped((move_of(values) - median(moves)) / scale / _APART) if scale > 0 else None


def _share_with(own: float | None, others: Sequence[float]) -> float:
    if own is None or not others:
        return 0.0
    return sum(abs(z) >= 1 and (z > 0) == (own > 0) for z in others) / len(others)


def _verdict(own: float | None, against: float | None, share: float) -> Verdict:
    if own is None:
        return "unknown"
    if against is not None and abs(against) >= 1 and share < 0.5:
        return "alone"
    if abs(own) >= 1:
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
