"""What a free slot is worth: the opportunity cost of giving it away while more comes than the fleet can do."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from mqttcollab.scheduling.base import Demand, Fleet

# How many arrivals say how fast they come, and how many what they are like.
_ARRIVALS, _SAMPLES = 16, 64
_LEAST_SAMPLES = 16
# A rush lasts this long, in seconds, until we have seen some; so many of them make its mean.
_RUSH_S, _RUSHES = 30.0, 20
_REFRESH = 4
# Of the price: the estimates are rough, and an idle slot is lost for sure.
_CAUTION = 0.9
_STEPS = 8
# What is not known to take time takes this, in seconds.
_LEAST_S = 1e-3


class Market:
    """Prices a slot by what would come for it.

    While requests come at rate l and the rush ends at rate h, a free slot is worth V, where
    V = l / (l + h) E[max(r + V exp(-h d), V)]: the next request is taken for its saving r, after which the slot is free
    again d seconds later if the rush is not over by then, or it is let go by. A slot that is taken for d seconds is
    therefore worth V (1 - exp(-h d)): that much a request has to save. This is a semi-Markov decision process with one
    slot (Ross, Applied Probability Models, 1970, chapter 7); l, h, r and d come from what was seen lately.
    """

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_ARRIVALS)
        self._usd = np.zeros(_SAMPLES)
        self._tokens = np.zeros(_SAMPLES)
        self._prompts = np.zeros(_SAMPLES)
        self._seen = 0
        self._rushing_since: float | None = None
        self._rush_s, self._rushes = _RUSH_S, 1.0

    def arrived(self, demand: Demand) -> None:
        """Notes a request."""
        if not math.isfinite(demand.cloud_usd):
            return
        place = self._seen % _SAMPLES
        self._usd[place], self._tokens[place], self._prompts[place] = (
            demand.cloud_usd,
            demand.tokens,
            demand.prompt_tokens,
        )
        self._seen += 1
        self._times.append(demand.arrived)

    def rate(self) -> float:
        """Requests per second, by the latest arrivals; 0 until there are some."""
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(1e-6, self._times[-1] - self._times[0])

    def rush(self, fleet: Fleet, now: float) -> None:
        """Notes whether more comes than the fleet can do, to learn how long that lasts."""
        if self._seen % _REFRESH:
            return
        count = max(1, min(self._seen, _SAMPLES))
        rows = fleet.rows
        took = rows["overhead_s"] + self._tokens[:count].mean() / rows["tokens_per_s"]
        took += self._prompts[:count].mean() / rows["prompt_tokens_per_s"]
        rushing = self.rate() > float(np.sum(rows["slots"] / np.maximum(took, _LEAST_S)))
        if rushing and self._rushing_since is None:
            self._rushing_since = now
        elif not rushing and self._rushing_since is not None:
            lasted = max(1.0, now - self._rushing_since)
            self._rush_s = (self._rush_s * self._rushes + lasted) / (self._rushes + 1)
            self._rushes = min(self._rushes + 1, _RUSHES)
            self._rushing_since = None

    def price(self, agent: Any, seconds: float) -> float:
        """What a slot of an agent is worth that is given away for so many seconds, in US dollars.

        Args:
            agent: its row.
            seconds: how long it is taken.
        """
        rate = self.rate()
        count = min(self._seen, _SAMPLES)
        if count < _LEAST_SAMPLES or not rate:
            return 0.0
        ends = 1 / self._rush_s
        usd = self._usd[:count]
        took = self._tokens[:count] / agent["tokens_per_s"] + self._prompts[:count] / agent["prompt_tokens_per_s"]
        again = np.exp(-ends * (took + agent["overhead_s"]))
        share = rate / (rate + ends)
        value = share * usd.mean() / (1 - share * again.mean())
        for _ in range(_STEPS):  # policy iteration: whom to take at this value, what it is worth then
            taken = usd >= value * (1 - again)
            better = share * usd[taken].sum() / (count - share * (again[taken].sum() + count - taken.sum()))
            if better <= value * (1 + 1e-6):
                break
            value = better
        return float(_CAUTION * value * -math.expm1(-ends * seconds))
