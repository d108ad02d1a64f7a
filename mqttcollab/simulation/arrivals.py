"""When requests come: in bursts as the paper's, or as in a trace; at a load that is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mqttcollab.simulation.engine import Arrival, Device

_TOKENS = (50.0, 100.0, 200.0, 300.0, 500.0)
_SHARES = (0.35, 0.30, 0.20, 0.10, 0.05)
_MEAN = sum(tokens * share for tokens, share in zip(_TOKENS, _SHARES, strict=True))
_BURST_S, _PERIOD_S, _TIMES = 20.0, 200.0, 5.0


class Source(Protocol):
    """Where requests come from.

    Attributes:
        name: for tables.
        duration_s: how long they come.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def duration_s(self) -> float: ...  # noqa: D102

    def offered(self, load: float, devices: Sequence[Device]) -> float:
        """The load that comes where this one is asked for."""
        ...

    def arrivals(self, load: float, devices: Sequence[Device], seed: int) -> list[Arrival]:
        """The requests in the order of their times; the same for the same seed."""
        ...


@dataclass(frozen=True, slots=True)
class Paper:
    """Bursts: a Markov-modulated Poisson process of two states, and answers most of which are short.

    Bursts of 20 s on average come every 200 s and bring five times the base rate. The paper gives the lengths (50 to
    500 tokens, skewed small) and says that it is bursty; how much is ours. Nothing is read: there are no prompt tokens.

    Args:
        duration_s: how long requests come.
    """

    duration_s: float = 3600.0
    name: str = "paper"

    def offered(self, load: float, devices: Sequence[Device]) -> float:
        """Any load can be had."""
        return load

    def arrivals(self, load: float, devices: Sequence[Device], seed: int) -> list[Arrival]:
        """See `Source`."""
        source = random.Random(seed)
        bursting = _BURST_S / _PERIOD_S
        base = load * capacity(devices, 0.0, _MEAN) / (1 - bursting + bursting * _TIMES)
        found: list[Arrival] = []
        time, burst = 0.0, False
        changes = source.expovariate(1 / (_PERIOD_S - _BURST_S))
        while True:
            later = time + source.expovariate(base * (_TIMES if burst else 1))
            if later > changes:  # memoryless: begin anew with the other rate
                time, burst = changes, not burst
                changes = time + source.expovariate(1 / (_BURST_S if burst else _PERIOD_S - _BURST_S))
            else:
                time = later
                if time < self.duration_s:
                    found.append(Arrival(time, 0.0, source.choices(_TOKENS, _SHARES)[0]))
            if time >= self.duration_s:
                return found


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests as they once came, from the first one's time on; a load below the trace's own keeps some at random.

    Thinning keeps the bursts. A load above the trace's own can't be had: then it is taken whole.

    Attributes:
        name: the file's.
        requests: at least two, at two times or more.
    """

    name: str
    requests: tuple[Arrival, ...]

    @property
    def duration_s(self) -> float:
        """From the first to the last."""
        return self.requests[-1].time

    def offered(self, load: float, devices: Sequence[Device]) -> float:
        """At most what is in the trace."""
        return min(load, self._own(devices))

    def arrivals(self, load: float, devices: Sequence[Device], seed: int) -> list[Arrival]:
        """See `Source`."""
        share = load / self._own(devices)
        if share >= 1:
            return list(self.requests)
        source = random.Random(seed)
        return [request for request in self.requests if source.random() < share]

    def _own(self, devices: Sequence[Device]) -> float:
        count = len(self.requests)
        prompt = sum(request.prompt_tokens for request in self.requests) / count
        tokens = sum(request.tokens for request in self.requests) / count
        return count / self.duration_s / capacity(devices, prompt, tokens)


def capacity(devices: Sequence[Device], prompt_tokens: float, tokens: float) -> float:
    """Requests of such a mean length that the devices could do in a second, all of them always busy."""
    request = Arrival(0.0, prompt_tokens, tokens)
    return sum(device.slots / device.seconds(request) for device in devices)
