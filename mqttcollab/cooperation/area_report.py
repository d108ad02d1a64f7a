"""What a unified view of an area says: what is unusual, what changes, who is silent; in words and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from mqttcollab.cooperation.area_findings import Finding, Window, duration, findings_of, series_of
from mqttcollab.cooperation.area_statistics import LEAST, Drift, drift
from mqttcollab.cooperation.area_windows import Embedded, SourceKey
from mqttcollab.messages import Source

_SILENT_INTERVALS = 5
_MOST_LINES = 12
_MOST_SERIES = 500


@dataclass(frozen=True, slots=True)
class Change:
    """What a source says has changed in meaning: its newest embedding against those before it."""

    key: SourceKey
    drift: Drift
    text: str


@dataclass(frozen=True, slots=True)
class AreaReport:
    """An area as its agents see it, with where each statement comes from."""

    domain: str
    place: str | None
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]
    silent: tuple[tuple[SourceKey, float], ...]
    sources: tuple[Source, ...]

    @property
    def unusual(self) -> tuple[Finding, ...]:
        """What is not as usual, the most surprising first."""
        found = [f for f in self.findings if f.verdict in ("alone", "together", "unusual", "stuck")]
        return tuple(sorted(found, key=lambda f: -max(abs(f.surprise or 0), abs(f.against or 0))))

    @property
    def trends(self) -> tuple[Finding, ...]:
        """What rises or falls, and is not stuck."""
        moving = (f for f in self.findings if f.trend is not None and f.trend.direction != "steady")
        return tuple(f for f in moving if f.verdict != "stuck")

    @property
    def known(self) -> int:
        """How many values have enough readings to say what is usual."""
        return sum(f.verdict != "unknown" for f in self.findings)

    @property
    def text(self) -> str:
        """For a person: what is unusual, then what changes, then how much was looked at."""
        agents = {f.series.key.agent for f in self.findings}
        if not agents:
            return f"Nothing was heard from {self.domain}{_at(self.place)} so far."
        lines = [f.text for f in self.unusual]
        lines += [
            f"@{c.key.agent} reports something new (cosine distance {c.drift.distance:.2f}): {c.text[:200]}"
            for c in self.changes
        ]
        lines += [f"@{key.agent} has been silent for {duration(age)}" for key, age in self.silent]
        shown = {id(f) for f in self.unusual}
        lines += [f.text for f in self.trends if id(f) not in shown]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"and {len(lines) - _MOST_LINES} more"]
        return ". ".join([self._summary(len(agents)), *lines]) + "."

    def _summary(self, agents: int) -> str:
        unknown = len(self.findings) - self.known
        said = f"{len(self.findings)} values of {agents} {'agent' if agents == 1 else 'agents'}{_at(self.place)}"
        count = len(self.unusual) + len(self.changes) + len(self.silent)
        if not self.known and not count:
            return f"{said}: too few readings so far to say what is unusual"
        rest = f"; {unknown} have too few readings yet" if unknown else ""
        return f"{said}: {f'{count} unusual' if count else 'nothing unusual'}{rest}"

    @property
    def data(self) -> dict[str, Any]:
        """The same for machines, as JSON can hold it."""
        return {
            "domain": self.domain,
            "place": self.place,
            "findings": [finding.data for finding in self.findings],
            "changes": [
                {
                    "agent": c.key.agent,
                    "service": c.key.service,
                    "distance": round(c.drift.distance, 4),
                    "threshold": round(c.drift.threshold, 4),
                    "text": c.text,
                }
                for c in self.changes
            ],
            "silent": [{"agent": k.agent, "service": k.service, "age_s": round(age, 1)} for k, age in self.silent],
        }


def report_of(domain: str, place: str | None, windows: Sequence[Window], now: float) -> AreaReport:
    """Looks at all windows; takes some milliseconds per value, of which it takes the 500 that were heard last."""
    every = sorted(series_of(windows), key=lambda s: -s.points[-1][0])[:_MOST_SERIES]
    findings = tuple(sorted(findings_of(every, now), key=lambda f: (f.series.key, f.series.name)))
    changes = tuple(change for window in windows if (change := _change(window)) is not None)
    silent = tuple((window.key, age) for window in windows if (age := _silence(window, now)) > 0)
    sources = tuple(
        Source(agent=w.key.agent, service=w.key.service, observation=o.id, text=o.text or None)
        for w in windows
        for o in w.observations[-1:]
    )
    return AreaReport(domain, place, findings, changes, silent, sources)


def _change(window: Window) -> Change | None:
    newest = window.embeddings[-1] if window.embeddings else None
    if newest is None:
        return None
    before: list[Embedded] = []
    for one in window.embeddings:
        same = one.model == newest.model and len(one.vector) == len(newest.vector)
        if same and (not before or before[-1].vector != one.vector):
            before.append(one)
    if not before or before[-1].vector != newest.vector:
        return None
    found = drift(newest.vector, [one.vector for one in before[:-1]])
    if found is None or not found.drifted:
        return None
    texts = {o.id: o.text for o in window.observations}
    return Change(window.key, found, newest.text or texts.get(newest.observation or "", "") or "(no text)")


def _silence(window: Window, now: float) -> float:
    times = [o.at for o in window.observations if not o.replayed]
    if len(times) <= LEAST:
        return 0.0
    age = now - times[-1]
    return age if age > _SILENT_INTERVALS * max(1.0, median(b - a for a, b in pairwise(times))) else 0.0


def _at(place: str | None) -> str:
    return f" at {place}" if place else ""
