"""What requesters sent against what they got, and what an observer saw on the wire."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from worker import ECHO, answer_to, tokens

from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ErrorCode
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

CODES = get_args(ErrorCode)
_LAG_MS = 500  # how late the observer may see what was said before
_VARIES = re.compile(r"[0-9]+([.][0-9]+)?|\bt[0-9a-f]{16}\b")


@dataclass(slots=True)
class Task:
    """A request as its requester sees it.

    Attributes:
        token: what is asked, unique.
        steps: how many services work on it, one after the other.
        sent, ended: loop times.
        kind: of requester.
        expected: the token that the answer must have.
        outcome: `ok`; `partial`: an answer that says what is missing; an error code of the protocol; `timer`:
            `deadline_exceeded` by the requester's own timer. What must not be: `lost`, `wrong`, `uncoded`.
        said: what the error said.
    """

    token: str
    steps: int
    sent: float
    kind: str
    expected: str = ""
    ended: float | None = None
    outcome: str = ""
    said: str = ""

    def __post_init__(self) -> None:
        self.expected = self.token
        for _ in range(self.steps):
            self.expected = answer_to(self.expected)

    @property
    def chain(self) -> Iterator[str]:
        """What its workers are asked, one after the other."""
        token = self.token
        for _ in range(self.steps):
            yield token
            token = answer_to(token)

    def answered(self, output: str | None, missing: Collection[str]) -> None:
        """Notes an answer."""
        if self.expected in tokens(output or ""):
            self.end("ok")
        elif missing:
            self.end("partial", "; ".join(missing))
        else:
            self.end("wrong", f"expected {self.expected}, got {output!r}")

    def end(self, outcome: str, said: str = "") -> None:
        """Notes how it ended."""
        assert self.ended is None, f"{self.token} ended twice at its requester"
        self.ended = _now()
        self.outcome, self.said = outcome, said


@dataclass(slots=True)
class Observer:
    """Sees every last reply on the wire, and every request to a worker, past all that disturbs the others."""

    url: str
    replies: dict[str, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    answers: list[tuple[float, str, str]] = field(default_factory=list)
    asked: list[tuple[float, str, str]] = field(default_factory=list)
    first_ms: dict[bytes, int] = field(default_factory=dict)
    _transport: MqttTransport = field(init=False)

    async def start(self) -> None:
        options = MqttOptions(session_expiry_s=300, backoff_s=0.02, backoff_max_s=0.1)
        self._transport = MqttTransport(BrokerAddress.parse(self.url), "chaos-observer", options=options)
        await self._transport.subscribe("reply.gpt/#", self._on_reply)
        await self._transport.subscribe(f"{ECHO}/+/request", self._on_request)
        await self._transport.connect()

    async def stop(self) -> None:
        await self._transport.close()

    def _on_reply(self, message: TransportMessage) -> None:
        reply: dict[str, Any] = json.loads(message.payload)
        if reply.get("last", True):
            self.replies[message.topic][message.payload] += 1
            self.first_ms.setdefault(message.payload, time.time_ns() // 1_000_000)
            self.answers.append((_now(), reply.get("agent", ""), message.topic))

    def _on_request(self, message: TransportMessage) -> None:
        request: dict[str, Any] = json.loads(message.payload)
        requester = request["reply_to"].split("/")[1][1:]
        self.asked.append((_now(), requester, tokens(request["input"])[-1]))

    def several(self, agents: Collection[str]) -> dict[str, list[bytes]]:
        """By reply topic, the different last replies of requests that got several, at least one by one of `agents`."""
        many = {topic: list(seen) for topic, seen in self.replies.items() if len(seen) > 1}
        return {t: seen for t, seen in many.items() if any(json.loads(one).get("agent") in agents for one in seen)}

    def twice(self, agents: Collection[str], accepted_ms: Mapping[str, int]) -> list[list[bytes]]:
        """Those of them that must not be: two ends, or `busy` for what a journal had accepted before.

        A `busy` before that is no end of the task: a further copy of the request is a new one.

        Args:
            agents: that must never do so.
            accepted_ms: when their journal accepted a request, in Unix time, by reply topic.
        """
        found = []
        for topic, seen in self.several(agents).items():
            refusals = [one for one in seen if (json.loads(one).get("error") or {}).get("code") == "busy"]
            since = accepted_ms.get(topic, math.inf)
            if len(seen) - len(refusals) > 1 or any(self.first_ms[one] > since + _LAG_MS for one in refusals):
                found.append(seen)
        return found

    @property
    def repeated(self) -> int:
        """Last replies that came again with the same bytes."""
        return sum(seen.total() - len(seen) for seen in self.replies.values())


@dataclass(slots=True)
class Row:
    """What came of one fault."""

    fault: str
    seed: str
    tasks: int
    ok: int
    partial: int
    timer: int
    errors: dict[str, int]
    lost: int
    wrong: int
    uncoded: int
    twice: int
    twice_elsewhere: int
    repeated: int
    double_work: int
    faults: int
    seconds: float
    recovery: dict[str, list[float]]
    reasons: dict[str, int]


@dataclass(slots=True)
class Checker:
    """Keeps all tasks of a test, and judges them at its end."""

    observer: Observer
    tasks: list[Task] = field(default_factory=list)
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: int = 0

    def open_at(self, moment: float) -> list[Task]:
        """Tasks that were under way at a loop time."""
        return [t for t in self.tasks if t.sent < moment and (t.ended is None or t.ended > moment)]

    def resumed(self, killed: float, agent: str) -> float | None:
        """Seconds from the kill of an orchestrator to the first step that is asked of a task that it had in hand."""
        asked = self.observer.asked
        begun = {token for time, who, token in asked if who == agent and time <= killed}
        in_hand = {token for task in self.open_at(killed) if begun & set(task.chain) for token in task.chain}
        # What the dead process had sent may still be on its way for a moment.
        late = {agent: killed + 0.1}
        times = [time for time, who, token in asked if time > late.get(who, killed) and token in in_hand]
        return min(times) - killed if times else None

    def answered_after(self, moment: float, *, sent_after: float) -> float | None:
        """Seconds from a moment to the first answer to a request sent after another moment."""
        times = [t.ended for t in self.tasks if t.outcome == "ok" and t.ended is not None and t.sent > sent_after]
        return min((time - moment for time in times if time > moment), default=None)

    def story(self, task: Task) -> str:
        """How a task went, in a line: when it was sent, and when after that its steps were asked on the wire."""
        chain = set(task.chain)
        asked = [f"{time - task.sent:+.2f} @{who}" for time, who, token in self.observer.asked if token in chain]
        return f"{task.sent:.3f} {task.kind} {task.steps} {task.outcome} {task.token} {asked} {task.said}"

    def row(self, fault: str, seed: str, executed: Counter[str], twice: int, seconds: float) -> Row:
        """The counts."""
        outcomes = Counter(task.outcome or "lost" for task in self.tasks)
        mine = {token for task in self.tasks for token in task.chain}
        return Row(
            fault=fault,
            seed=seed,
            tasks=len(self.tasks),
            ok=outcomes["ok"],
            partial=outcomes["partial"],
            timer=outcomes["timer"],
            errors={code: outcomes[code] for code in CODES if outcomes[code]},
            lost=outcomes["lost"],
            wrong=outcomes["wrong"],
            uncoded=outcomes["uncoded"],
            twice=twice,
            twice_elsewhere=len([seen for seen in self.observer.replies.values() if len(seen) > 1]) - twice,
            repeated=self.observer.repeated,
            double_work=sum(count - 1 for token, count in executed.items() if token in mine),
            faults=self.faults,
            seconds=round(seconds, 1),
            recovery={name: [round(s, 3) for s in times] for name, times in self.recovery.items()},
            reasons=dict(Counter(_reason(task) for task in self.tasks if task.said).most_common(5)),
        )


def _reason(task: Task) -> str:
    """What ended a task without an answer, the same for all tasks that it befell."""
    said = _VARIES.sub("…", task.said)
    return f"{task.outcome}, {task.kind}: {said[:120]}"


def brief(payload: bytes) -> str:
    """A last reply in a line."""
    reply = json.loads(payload)
    error = reply.get("error") or {}
    said = f"{error.get('code')}: {error.get('message')}" if error else f"{reply.get('output')!r}"
    return f"{reply['id']} @{reply.get('agent')} {reply.get('status')} {said[:200]} {reply.get('timing')}"


def _now() -> float:
    return asyncio.get_running_loop().time()
