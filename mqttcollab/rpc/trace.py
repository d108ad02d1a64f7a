"""W3C trace context (https://www.w3.org/TR/trace-context/): one id follows a question through all agents."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from mqttcollab.messages import Request

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")

# The request that is being handled; requests made meanwhile carry on its trace, its hops and its restrictions.
current_request: ContextVar[Request | None] = ContextVar("current_request", default=None)


def well_formed(traceparent: str | None) -> str | None:
    """The same, or None for one that is malformed, as the specification asks."""
    return traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None


def child_trace(parent: str | None = None) -> str:
    """A new span in the parent's trace, or in a new trace where the parent is missing or malformed."""
    known = _TRACEPARENT.fullmatch(parent) if parent else None
    trace, flags = known.groups() if known else (secrets.token_hex(16), "01")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"
