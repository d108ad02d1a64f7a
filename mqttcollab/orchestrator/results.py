"""What of a step's answer stands in for it in a later step's text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mqttcollab.messages import Reply

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

_WORD = re.compile(r"[a-z0-9]+")
# How close (cosine) a number's name is at least to a question that asks for it in other words.
_CLOSE = 0.3


def result_of(text: str, service: str, reply: Reply, embedder: Embedder | None = None) -> str:
    """The number that the step asked for, where the answer's data tell which it is; else the answer in words.

    A number is the one that was asked for if its name stands in the step's text ("the humidity"), if it alone is
    there, if the service is named after it (`heart_rate` of `data.gpt/health/heart-rate`), or if its name is closest
    in meaning to a text about data ("How warm is it?").

    Args:
        text: of the step.
        service: that answered.
        reply: its answer.
        embedder: compares names with the text; None goes without.
    """
    numbers = {
        name: value
        for name, value in (reply.data or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    asked, label = f" {_plain(text)} ", _plain(service.rsplit("/", 1)[-1])
    named = [name for name in numbers if f" {_plain(name)} " in asked]
    named = named or (list(numbers) if len(numbers) == 1 else [name for name in numbers if _plain(name) == label])
    if not named and numbers and embedder is not None and service.startswith("data.gpt/"):
        vectors = embedder.embed([text, *(_plain(name) for name in numbers)])
        closeness = [float(score) for score in vectors[1:] @ vectors[0]]
        named = [name for name, score in zip(numbers, closeness, strict=True) if score == max(closeness) >= _CLOSE]
    if len(named) != 1:
        return (reply.output or "").strip()
    value = numbers[named[0]]
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
