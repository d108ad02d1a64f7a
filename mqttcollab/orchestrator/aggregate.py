"""Puts the parts together: every statement keeps its source; what is missing and what is disputed is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

from mqttcollab.errors import ErrorCode, RequestError
from mqttcollab.messages import ErrorInfo, Source, Usage
from mqttcollab.orchestrator.subtask import Outcome
from mqttcollab.service import Answer

_MOST_CHARACTERS = 500
# An answer less likely right than this comes after all others.
_DOUBTFUL = 0.1

Aggregator = Callable[[Sequence[Outcome]], Answer]


def with_sources(outcomes: Sequence[Outcome]) -> Answer:
    """The answers one after another, conclusions before the data they rest on, each with who gave it.

    The confidence is the probability that all parts are right (as if they were independent), times the share of the
    parts that answered. Who declines a subtask that a likelier service did is not missed: it was a wrong guess to ask.

    Raises:
        RequestError: no part answered; with the code that the parts agree on, else `internal`.
    """
    answered = [o for o in outcomes if o.reply is not None]
    if not answered:
        raise _nothing(outcomes)
    missed = [o for o in outcomes if o.reply is None and not _needless(o, answered)]
    missing = [_missing(outcome) for outcome in missed] + [said for o in answered for said in _failed_before(o)]
    answered.sort(key=lambda o: (_doubtful(o), not o.step.after))
    sure = math.prod(o.step.verdict.probability for o in answered if o.step.verdict is not None)
    return Answer(
        text=_text(answered, missing),
        data=_data(answered),
        confidence=round(sure * len(answered) / (len(answered) + len(missed)), 3),
        sources=[source for o in answered for source in _sources(o)],
        usage=_usage(outcomes),
        steps=[o.step for o in outcomes],
        missing=missing,
    )


def _needless(outcome: Outcome, answered: Sequence[Outcome]) -> bool:
    return outcome.declined and any(
        other.step.text == outcome.step.text and other.relevance >= outcome.relevance for other in answered
    )


def _doubtful(outcome: Outcome) -> bool:
    return outcome.step.verdict is not None and outcome.step.verdict.probability < _DOUBTFUL


def _failed_before(outcome: Outcome) -> list[str]:
    """The specialists that failed, where somebody who is none answered in their place; not those that declined."""
    return [
        _said(attempt.offer.record.service, attempt.offer.agent.name, attempt.error)
        for attempt in outcome.attempts
        if attempt.error is not None and not attempt.declined and attempt.offer.record.service != outcome.step.service
    ]


def _text(answered: Sequence[Outcome], missing: Sequence[str]) -> str:
    disputed = [line for o in answered if o.consensus is not None for line in o.consensus.disagreements]
    if len(answered) == 1 and not missing and not disputed:
        return _output(answered[0])
    parts = [f"{_output(o)} [@{o.step.agent}]" for o in answered]
    parts += [f"Disputed: {line}" for line in disputed]
    if missing:
        parts.append("Missing: " + "; ".join(missing) + ".")
    return "\n".join(parts)


def _output(outcome: Outcome) -> str:
    return (outcome.reply.output or "").strip() if outcome.reply is not None else ""


def _data(answered: Sequence[Outcome]) -> dict[str, Any] | None:
    """The one part's data; of several, by service, and by `service#step` where a service did several."""
    if len(answered) == 1:
        return answered[0].reply.data if answered[0].reply is not None else None
    data: dict[str, Any] = {}
    for outcome in answered:
        if outcome.reply is not None and outcome.reply.data is not None:
            service = outcome.step.service
            data[service if service not in data else f"{service}#{outcome.step.number}"] = outcome.reply.data
    return data or None


def _sources(outcome: Outcome) -> list[Source]:
    assert outcome.reply is not None
    return outcome.reply.sources or [Source(agent=outcome.step.agent, service=outcome.step.service)]


def _usage(outcomes: Sequence[Outcome]) -> Usage | None:
    """What all answers took, also those that were not chosen."""
    replies = [attempt.reply for o in outcomes for attempt in o.attempts if attempt.reply is not None]
    # Where several were asked at once there are no attempts, but votes.
    polls = [o.consensus for o in outcomes if o.consensus is not None and not o.attempts]
    replies += [vote.reply for poll in polls for group in poll.groups for vote in group]
    used = [reply.usage for reply in replies if reply.usage is not None]
    if not used:
        return None
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in used),
        completion_tokens=sum(u.completion_tokens for u in used),
        cost_usd=sum(u.cost_usd for u in used),
    )


def _missing(outcome: Outcome) -> str:
    return _said(outcome.step.service, outcome.step.agent, outcome.step.error)


def _said(service: str, agent: str | None, error: ErrorInfo | None) -> str:
    """Who failed and why: a peer's words in one line, and no longer than a line may be."""
    why = f"{error.code}, {' '.join(error.message.split())[:_MOST_CHARACTERS]}" if error is not None else "no answer"
    who = f"@{agent}: " if agent is not None else ""
    return f"{service} ({who}{why})"


def _nothing(outcomes: Sequence[Outcome]) -> RequestError:
    codes = {o.step.error.code for o in outcomes if o.step.error is not None}
    agreed: ErrorCode = "internal"
    if len(codes) == 1 and (code := codes.pop()) in get_args(ErrorCode):
        agreed = cast(ErrorCode, code)
    return RequestError(agreed, "nobody who was asked could answer: " + "; ".join(_missing(o) for o in outcomes))
