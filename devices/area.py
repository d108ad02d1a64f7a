"""An observer without a sensor: keeps what all the sensors around publish, and says how it develops and what is odd.

Its statements are about the time since it started: what is usual is what it has seen.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devices import embedder_of, main, read_settings
from mqttcollab import Agent, Answer, Request, RequestError, Service
from mqttcollab.cooperation import Area, AreaReport, Finding

SERVICE = "computation.gpt/area"
DESCRIPTION = "Trends and anomalies over all sensors of an area: what is rising or falling, which reading is unusual"
EXAMPLES = (
    "Is anything unusual here?",
    "Is anything unusual going on around here?",
    "Do the sensors show any anomalies?",
    "Which sensor readings are abnormal?",
    "Is a sensor broken, stuck or wrong?",
    "Do all the sensors agree with each other?",
    "Has any device gone silent?",
    "How has the air developed?",
    "How have the readings developed over the last hours?",
    "What is the trend of the measurements?",
    "Is the NOx rising?",
    "Has the NOx been falling lately, or rising?",
    "Is the temperature going up or down?",
    "Is the humidity going up or down?",
    "Has the number of people been increasing?",
    "What has changed in this area lately?",
    "Which values are rising and which are falling?",
    "Give me an overview of all sensor data",
    "Summarise what all devices here observe",
    "Detect outliers in the sensor data",
)
CLOSE = 0.4
# What is asked here is how things develop, or what is odd: a single reading is known better by who measures it.
_ASKED = re.compile(
    r"usual|normal|anomal|odd\b|strange|weird|outlier|trend|\bris(?:e|es|ing|en)\b|\brose\b|\bf[ae]ll(?:s|ing|en)?\b"
    r"|increas|decreas|\bup\b|\bdown\b|chang|develop|evol|lately|recent|stuck|broken|wrong|faulty|silent|agree|overview"
    r"|summar|compar|histor|over time|so far|\blast (?:few )?(?:hours?|days?)|getting|worse|better|growing|shrinking"
    r"|\ball (?:the )?(?:sensors?|devices?|readings?|data)|everything|than before",
    re.I,
)
# Words of value and service names that say nothing by themselves.
_COMMON = frozenset({"rate", "quality", "data", "gpt", "index", "score", "z", "ratio", "change", "as", "no2", "3h"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the observer; `domain` is what it follows, `only` the place of sensors that it looks at."""

    name: str = "area-1"
    place: str = "the whole area"
    domain: str = "data.gpt/#"
    only: str | None = None
    embedder: str | None = None


class AreaService(Service):
    """Answers from the unified view of an area."""

    name = SERVICE
    description = DESCRIPTION
    examples = EXAMPLES

    def __init__(self, agent: Agent, options: Settings) -> None:
        self._agent = agent
        self._options = options
        self._running = contextlib.AsyncExitStack()
        self._area: Area | None = None

    async def started(self) -> None:
        """Begins to follow the sensors, and who they are."""
        if self._agent.embedder is not None:
            await self._agent.follow()
        area = Area(self._agent, self._options.domain, place=self._options.only)
        self._area = await self._running.enter_async_context(area)

    async def stopping(self) -> None:
        """Follows them no longer."""
        await self._running.aclose()

    async def handle(self, request: Request) -> Answer:
        """What is asked about: values or services that the question names, or is close to; else everything."""
        assert self._area is not None
        if not _ASKED.search(request.text):
            raise RequestError("no_capability", "it asks neither how anything develops nor what is unusual")
        report = await self._area.report()
        if not report.findings:
            raise RequestError("no_capability", report.text)
        about = named_in(request.text, report.findings) or self._close_to(request.text, report)
        findings = about or report.findings
        keys = {finding.series.key for finding in findings}
        said = ". ".join(finding.text for finding in about) + "." if about else report.text
        return Answer(
            text=f"{said} (Usual is what was seen since this observer started.)",
            data={**report.data, "findings": [finding.data for finding in findings]},
            confidence=round(0.3 + 0.6 * sum(f.verdict != "unknown" for f in findings) / len(findings), 2),
            sources=[source for source in report.sources if (source.agent, source.service) in keys],
        )

    def _close_to(self, question: str, report: AreaReport) -> list[Finding]:
        if self._agent.embedder is None:
            return []
        # By what services say of themselves, since a reading in words is close to no question; and only where they
        # are closer than this one, which is asked about everything.
        matches = self._agent.registry.nearest(question)
        least = max([CLOSE, *(m.score for m in matches if m.offer.record.service == SERVICE)])
        near = {(m.offer.agent.name, m.offer.record.service) for m in matches if m.score >= least}
        return [finding for finding in report.findings if finding.series.key in near]


def named_in(question: str, findings: tuple[Finding, ...]) -> list[Finding]:
    """The findings whose value the question names, else those whose service it names."""
    words = set(re.findall(r"[a-z0-9]+", question.lower()))
    values = [f for f in findings if _words(f.series.name) & words]
    return values or [f for f in findings if _words(f.series.key.service) & words]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower())) - _COMMON


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    agent = Agent(
        options.name,
        description="An observer of all the sensors around",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "software"},
    )
    agent.add(AreaService(agent, options))
    return agent


if __name__ == "__main__":
    main(build)
