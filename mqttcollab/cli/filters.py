"""MQTT filters as a user writes them."""

from __future__ import annotations

import re

from mqttcollab.errors import TopicError


def check_filter(name: str) -> None:
    """Raises TopicError for what is no MQTT filter; some brokers would just hang up."""
    levels = name.split("/")
    if not re.fullmatch(r"[^\x00\ud800-\udfff]+", name) or len(name.encode()) > 65535:
        raise TopicError(f"{name[:80]!r} is no MQTT filter: use 1 to 65535 bytes of UTF-8, such as data.gpt/#")
    if "#" in name and (name.count("#") > 1 or levels[-1] != "#"):
        raise TopicError(f"{name[:80]!r} is no MQTT filter: # stands alone in the last level, as in data.gpt/#")
    if any("+" in level and level != "+" for level in levels):
        raise TopicError(f"{name[:80]!r} is no MQTT filter: + stands alone in its level, as in slm/agents/+/status")
