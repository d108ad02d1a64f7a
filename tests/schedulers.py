"""Load books and requests for the tests of the scheduler."""

from __future__ import annotations

import math
from typing import Any

from mqttcollab.scheduling import Candidates, Demand, Fleet, LoadBook, Terms


def demand(name: str = "one", tokens: float = 100.0, **fields: Any) -> Demand:
    """A request of 100 tokens, unless told otherwise."""
    return Demand(name, tokens, **fields)


def book_of(speeds: dict[str, float], slots: int = 1, **terms: float) -> tuple[LoadBook, Candidates]:
    """A book of agents, by their names, with their tokens per second; all of them as candidates."""
    book = LoadBook()
    rows = [book.row(name, "s", Terms(speed, math.inf, slots=slots, **terms)) for name, speed in speeds.items()]
    return book, book.candidates(rows)


def fleet_of(speeds: dict[str, float], **columns: list[float]) -> Fleet:
    """A fleet as a policy sees it, with columns as they are given."""
    book, candidates = book_of(speeds)
    fleet = book.fleet(candidates, 0.0)
    for field, values in columns.items():
        fleet.rows[field] = values
    return fleet


def occupy(book: LoadBook, row: int, times: int = 1, now: float = 0.0) -> None:
    """Sends requests to an agent that don't come back."""
    for number in range(times):
        book.sent(row, demand(f"occupies {row}.{number}"), now)
