"""How much slower an agent counts for its heat, its battery and its link."""

from __future__ import annotations

import math

# From this share of the way to throttling on, heat counts; at the throttle the agent is twice as slow.
_WARM, _HOTTEST, _HEAT = 0.7, 2.0, 3.3
# An agent whose battery lasts no hour counts as so many times slower.
_EMPTY = 4.0
_WORST_LINK = 0.1


def hardship(battery: float, drain_per_h: float, thermal: float, link: float) -> float:
    """At least 1; what is NaN does not count.

    Args:
        battery: the share that is left.
        drain_per_h: of it, per hour; one that charges drains nothing.
        thermal: the share of the way to throttling.
        link: its quality, 0 to 1.
    """
    factor = 1.0
    if thermal > _WARM:
        factor += _HEAT * (min(thermal, _HOTTEST) - _WARM)
    if drain_per_h > 0 and not math.isnan(battery):
        factor *= 1 + _EMPTY * math.exp(-min(1.0, max(0.0, battery)) / drain_per_h)
    return factor if math.isnan(link) else factor / min(1.0, max(_WORST_LINK, link))
