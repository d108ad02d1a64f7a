"""What of a step's answer stands in for it in a later step's text."""

from __future__ import annotations

import re

from mqttcollab.messages import Reply

_WORD = re.compile(r"[a-z0-9]+")


def result_of(text: str, service: str, reply: Reply) -> str:
    """The number that the step asked for, where the answer's data tell which it is; else the answer in words.

    A number is the one that was asked for if its name stands in the step's text ("the humidity"), if it alone is
    there, or if the service is named after it (`heart_rate` of `data.gpt/health/heart-rate`).

    Args:
        text: of the step.
        service: that answered.
        reply: its answer.
    """
    numbers = {
        name: value
        for name, value in (reply.data or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    asked, label = f" {_plain(text)} ", _plain(service.rsplit("/", 1)[-1])
    named = [name for name in numbers if f" {_plain(name)} " in asked]
    named = named or (list(numbers) if len(numbers) == 1 else [name for name in numbers if _plain(name) == label])
    if len(named) != 1:
        return (reply.output or "").strip()
    value = numbers[named[0]]
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
