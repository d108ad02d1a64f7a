"""A circuit breaker: an endpoint that fails again and again is left alone for a while.

M. T. Nygard, Release It!, 2007.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from mqttcollab.cloud.prices import seconds_in_ms
from mqttcollab.errors import RequestError

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed until `failures` calls in a row have failed, then open for `pause_s`, then half-open: one trial call.

    Whoever is admitted tells what came of it, once: `succeeded`, `failed`, or `forgotten` where it says nothing
    about the endpoint.

    Args:
        failures: how many in a row open it.
        pause_s: how long it stays open.
        clock: seconds that only go forward.
    """

    def __init__(self, failures: int = 5, pause_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._failed = 0
        self._until: float | None = None
        self._trial = False

    @property
    def state(self) -> BreakerState:
        """What it does now."""
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "half-open"

    def admit(self) -> bool:
        """Lets a call through, and returns whether it is the trial.

        Raises:
            RequestError: `busy`, with the time until the next trial.
        """
        if self._until is None:
            return False
        rest = self._until - self._clock()
        if rest > 0:
            text = f"the cloud's endpoint failed {self._failed} times in a row and is left alone for {rest:.1f} s more"
            raise RequestError("busy", text, retry_after_ms=seconds_in_ms(rest))
        if self._trial:
            text = "the cloud's endpoint has failed, and one call tries whether it works again"
            raise RequestError("busy", text, retry_after_ms=1000)
        self._trial = True
        return True

    def succeeded(self, trial: bool) -> None:
        """The endpoint works. What was sent before it failed does not close the breaker again."""
        if trial or self._until is None:
            self._until, self._failed = None, 0
        self._trial = self._trial and not trial

    def failed(self, trial: bool) -> None:
        """The endpoint failed."""
        self._failed += 1
        if trial or (self._until is None and self._failed >= self._most):
            self._until = self._clock() + self._pause_s
        self._trial = self._trial and not trial

    def forgotten(self, trial: bool) -> None:
        """Nothing was learnt of the endpoint; the next call may be the trial."""
        self._trial = self._trial and not trial
