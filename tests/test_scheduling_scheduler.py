"""A policy at work: who waits, who goes when, what is tried again, and that nothing is ever lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from schedulers import book_of, demand

from mqttcollab.errors import RequestError
from mqttcollab.scheduling import Candidates, Decision, Demand, LoadBook, Scheduler, Terms, make_policy
from mqttcollab.scheduling.scheduler import Placed

TWO = {"slow": 10.0, "fast": 20.0}


def scheduler_of(speeds: dict[str, float], policy: str = "frugal", **terms: Any) -> tuple[Scheduler, Candidates]:
    book, candidates = book_of(speeds, **terms)
    return Scheduler(make_policy(policy, 1), book), candidates


def own(scheduler: Scheduler) -> list[float]:
    book = scheduler.book
    return book.fleet(book.candidates(range(len(book))), 0.0).rows["own"].tolist()  # type: ignore[no-any-return]


def test_one_after_the_other_to_whoever_is_fastest_and_free() -> None:
    scheduler, both = scheduler_of(TWO)
    first, second, third = (scheduler.submit(demand(name, wait_until=9.0), both, 0.0) for name in "abc")
    assert (first.row, first.seconds, first.decision.reason) == (1, 5.0, "@fast is free, 5.00 s, the fastest of 2")
    assert (second.row, second.seconds) == (0, 10.0)
    assert third.decision[:2] == ("wait", "no agent is free")
    assert scheduler.waiting == 1 and scheduler.next_time(0.0) == 9.0
    assert scheduler.ready(1.0) == []
    scheduler.ended(first, 5.0, seconds=5.0, tokens=100)
    (woken,) = scheduler.ready(5.0)
    assert (woken.demand.id, woken.row) == ("c", 1)
    assert scheduler.waiting == 0 and math.isinf(scheduler.next_time(5.0))
    for name in "abc":
        scheduler.close(name, 6.0)
    assert own(scheduler) == [0, 0]


def test_who_comes_later_waits_behind_those_who_wait_unless_it_has_a_higher_priority() -> None:
    scheduler, one = scheduler_of({"a": 10.0})
    first = scheduler.submit(demand("first"), one, 0.0)
    scheduler.submit(demand("second", wait_until=50.0), one, 0.0)
    scheduler.ended(first, 1.0, failed=True)
    later = scheduler.submit(demand("later", wait_until=60.0), one, 1.0)
    assert later.decision == Decision("wait", "others wait as well")
    urgent = scheduler.submit(demand("urgent", priority=5), one, 1.0)
    assert urgent.decision.kind == "agent"
    scheduler.close("urgent", 2.0)
    assert [placed.demand.id for placed in scheduler.ready(2.0)] == ["second"]


def test_when_it_has_waited_long_enough_it_goes_to_the_cloud_or_is_refused() -> None:
    scheduler, one = scheduler_of({"a": 10.0})
    scheduler.submit(demand("first"), one, 0.0)
    scheduler.submit(demand("dear", wait_until=3.0, cloud_usd=0.1), one, 0.0)
    scheduler.submit(demand("barred", wait_until=4.0, no_cloud="it may not leave the edge"), one, 0.0)
    assert scheduler.next_time(0.0) == 3.0
    (dear,) = scheduler.ready(3.0)
    assert dear.decision == Decision("cloud", "no agent is free")
    (barred,) = scheduler.ready(scheduler.next_time(3.0))
    assert barred.decision == Decision("refuse", "no agent is free, and it may not leave the edge", code="busy")


def test_a_request_without_patience_limit_is_woken_by_its_deadline() -> None:
    scheduler, one = scheduler_of({"a": 100.0})
    scheduler.submit(demand("first"), one, 0.0)
    scheduler.submit(demand("second", deadline=7.0), one, 0.0)
    assert scheduler.next_time(0.0) == 7.0
    (second,) = scheduler.ready(7.0)
    assert second.decision.code == "deadline_exceeded"
    assert scheduler.waiting == 0


def test_those_who_wait_for_other_agents_block_nobody() -> None:
    scheduler, _ = scheduler_of(TWO)
    slow, fast = (scheduler.book.candidates([row]) for row in (0, 1))
    scheduler.submit(demand("occupies"), slow, 0.0)
    scheduler.submit(demand("waits", wait_until=50.0), slow, 0.0)
    placed = scheduler.submit(demand("passes", wait_until=50.0), fast, 0.0)
    if placed.decision.kind == "wait":
        (placed,) = scheduler.ready(0.0)
    assert (placed.demand.id, placed.row) == ("passes", 1)
    assert scheduler.waiting == 1


def test_admission_counts_only_those_who_wait_for_the_same_agents_and_are_as_urgent() -> None:
    scheduler, _ = scheduler_of(TWO)
    slow, fast = (scheduler.book.candidates([row]) for row in (0, 1))
    scheduler.submit(demand("occupies"), slow, 0.0)
    for number in range(10):
        scheduler.submit(demand(f"waits {number}", wait_until=500.0), slow, 0.0)
    passes = scheduler.submit(demand("passes", deadline=20.0), fast, 0.0)
    assert passes.decision.kind == "wait" and [one.row for one in scheduler.ready(0.0)] == [1]
    urgent = scheduler.submit(demand("urgent", wait_until=50.0, deadline=70.0), slow, 0.0)
    assert urgent.decision.kind == "wait"
    refused = scheduler.submit(demand("late", wait_until=600.0, deadline=70.0), slow, 0.0)
    assert refused.decision.code == "deadline_exceeded"
    # Eleven others go first, ten seconds each, and its own ten seconds.
    assert refused.decision.reason.startswith("no agent would be done in less than 120.0 s, and 70.0 s are left")


def test_a_flood_of_another_tenant_delays_no_longer_than_is_fair() -> None:
    scheduler, one = scheduler_of({"a": 100.0})  # a second each
    scheduler.submit(demand("occupies"), one, 0.0)
    for number in range(1000):
        scheduler.submit(demand(f"flood {number}", tenant="flood", wait_until=5000.0), one, 0.0)
    assert scheduler.submit(demand("mine", tenant="me", deadline=10.0), one, 0.0).decision.kind == "wait"
    scheduler.close("occupies", 1.0)
    first = scheduler.ready(1.0)
    scheduler.close(first[0].demand.id, 2.0)
    second = scheduler.ready(2.0)
    assert "mine" in {one.demand.id for one in (*first, *second)}


def test_who_was_busy_is_asked_again_later_and_who_failed_is_not() -> None:
    scheduler, both = scheduler_of(TWO)
    first = scheduler.submit(demand("a", wait_until=90.0), both, 0.0)
    scheduler.busy(first, 0.1)
    second = scheduler.again("a", 0.1)
    assert (first.row, second.row) == (1, 0)
    scheduler.ended(second, 0.2, failed=True)
    assert scheduler.again("a", 0.2).decision[:2] == ("wait", "no agent is free")
    assert scheduler.next_time(0.2) == pytest.approx(0.3), "others' work ends without our being told"
    now = 0.2
    while not (found := scheduler.ready(now)):
        now = scheduler.next_time(now)
        assert now < 10.0
    assert found[0].row == 1
    assert found[0].decision.reason == "@fast may be free again: asking costs little"
    scheduler.ended(found[0], now, failed=True)
    last = scheduler.again("a", now)
    assert last.decision == Decision("refuse", "nobody else offers it, and there is no cloud", code="no_capability")


@pytest.mark.parametrize(("policy", "asked"), [("random", 1), ("frugal", 8)])
def test_after_so_many_in_vain_it_goes_elsewhere_and_says_why(policy: str, asked: int) -> None:
    scheduler, many = scheduler_of({f"a{n}": 10.0 for n in range(20)}, policy)
    placed = scheduler.submit(demand("a", wait_until=90.0), many, 0.0)
    for _ in range(asked):
        assert placed.decision.kind == "agent"
        scheduler.busy(placed, 0.0)
        placed = scheduler.again("a", 0.0)
    whom = "the agent that was asked" if asked == 1 else "each of 8 agents that were asked"
    why = f"{whom} was busy or gave no answer, and there is no cloud"
    assert placed.decision == Decision("refuse", why, code="busy")
    assert scheduler.waiting == 0


def test_another_beside_one_that_is_late() -> None:
    scheduler, both = scheduler_of(TWO)
    first = scheduler.submit(demand("a"), both, 0.0)
    second = scheduler.beside("a", 1.0)
    assert second is not None and {first.row, second.row} == {0, 1}
    assert own(scheduler) == [1, 1]
    assert scheduler.beside("a", 1.0) is None, "both have it"
    assert scheduler.waiting == 0
    scheduler.ended(second, 2.0, seconds=1.0, tokens=100)
    scheduler.close("a", 2.0)
    assert own(scheduler) == [0, 0]


def test_what_comes_late_or_twice_changes_nothing() -> None:
    scheduler, both = scheduler_of(TWO)
    first = scheduler.submit(demand("a"), both, 0.0)
    other = scheduler.submit(demand("b"), both, 0.0)
    for _ in range(2):
        scheduler.ended(first, 1.0, failed=True)
    for _ in range(2):
        scheduler.close("a", 1.0)
    scheduler.ended(first, 1.0, failed=True)
    scheduler.busy(first, 1.0)
    assert own(scheduler) == [1, 0]
    scheduler.close("b", 1.0)
    scheduler.ended(other, 1.0)
    assert own(scheduler) == [0, 0]


def test_an_id_that_is_not_over_is_refused() -> None:
    scheduler, both = scheduler_of(TWO)
    scheduler.submit(demand("a"), both, 0.0)
    with pytest.raises(RequestError, match="request 'a' is not over yet; give every request its own id"):
        scheduler.submit(demand("a"), both, 0.0)
    scheduler.close("a", 0.0)
    assert own(scheduler) == [0, 0]
    assert scheduler.submit(demand("a"), both, 0.0).decision.kind == "agent"


def test_who_met_busy_agents_is_not_charged_for_it() -> None:
    scheduler, one = scheduler_of({"a": 10.0})
    for number in range(5):
        in_vain = scheduler.submit(demand(f"{number}", tenant="unlucky"), one, 0.0)
        scheduler.busy(in_vain, 0.0)
        scheduler.close(str(number), 0.0)
        scheduler.book.reported("a", 0.0, running=0, queued=0, slots=1)
    occupied = scheduler.submit(demand("occupies", tenant="x"), one, 0.0)
    scheduler.submit(demand("y", tenant="aardvark", wait_until=99.0), one, 0.0)
    scheduler.submit(demand("z", tenant="unlucky", wait_until=99.0), one, 0.0)
    order = []
    for _ in range(2):
        scheduler.close(occupied.demand.id, 1.0)
        (occupied,) = scheduler.ready(1.0)
        order.append(occupied.demand.id)
    assert order == ["y", "z"]
    groups = scheduler._room._shares[4].times
    assert groups["unlucky"] == groups["aardvark"] == 10.0


def test_all_that_are_late_at_once_are_dealt_with_at_once() -> None:
    scheduler, one = scheduler_of({"a": 10.0})
    scheduler.submit(demand("occupies"), one, 0.0)
    for number in range(3000):
        scheduler.submit(demand(str(number), tenant=f"t{number % 30}", wait_until=5.0, cloud_usd=0.1), one, 0.0)
    found = scheduler.ready(5.0)
    assert len(found) == 3000 and {placed.decision.kind for placed in found} == {"cloud"}
    assert scheduler.waiting == 0


def test_several_schedulers_share_a_fleet_by_what_agents_report() -> None:
    one, both = scheduler_of(TWO)
    other, _ = scheduler_of(TWO)
    first = one.submit(demand("a"), both, 0.0)
    for scheduler in (one, other):
        scheduler.book.reported("fast", 0.1, running=1, queued=0, slots=1)
    assert first.row == 1
    second = other.submit(demand("b"), both, 0.1)
    assert second.row == 0
    one.ended(first, 5.0, seconds=5.0, tokens=100)
    for scheduler in (one, other):
        scheduler.book.reported("fast", 5.1, running=0, queued=0, slots=1)
    assert [s.submit(demand(n), both, 5.1).row for s, n in ((one, "c"), (other, "d"))] == [1, 1]


@pytest.mark.parametrize("policy", ["random", "load-aware", "fastest-free"])
def test_the_classic_policies_let_nobody_wait_with_the_scheduler(policy: str) -> None:
    scheduler, both = scheduler_of(TWO, policy)
    for number in range(10):
        assert scheduler.submit(demand(str(number)), both, 0.0).decision.kind == "agent"
    assert sum(own(scheduler)) == 10 and scheduler.waiting == 0


class Machine(RuleBasedStateMachine):
    """A fleet, and whoever drives a scheduler, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LoadBook()
        self.rows = [
            self.book.row(f"a{n % 4}", f"s{n // 4}", Terms(5.0 * (n + 1), slots=1 + n % 3, price_usd=0.01 * n))
            for n in range(6)
        ]
        self.scheduler = Scheduler(make_policy("frugal"), self.book, {"t0": 3.0})
        self.now, self.count = 0.0, 0
        self.waiting: dict[str, Demand] = {}
        self.out: dict[str, list[Placed]] = {}
        self.elsewhere: set[str] = set()

    def go(self, placed: Placed) -> None:
        name = placed.demand.id
        assert placed.decision.reason
        if placed.decision.kind == "wait":
            self.waiting[name] = placed.demand
        elif placed.decision.kind == "agent":
            assert placed.row not in [other.row for other in self.out.get(name, [])]
            self.out.setdefault(name, []).append(placed)
        else:
            assert placed.decision.kind != "cloud" or math.isfinite(placed.demand.cloud_usd)
            self.elsewhere.add(name)

    def settle(self) -> None:
        for placed in self.scheduler.ready(self.now):
            del self.waiting[placed.demand.id]
            self.go(placed)

    def back(self, name: str) -> None:
        """Of a request that came back without an answer, if it has no other agent."""
        if not self.out[name]:
            del self.out[name]
            self.go(self.scheduler.again(name, self.now))

    def pick(self, data: st.DataObject) -> tuple[str, Placed]:
        name = data.draw(st.sampled_from(sorted(self.out)))
        return name, self.out[name].pop(data.draw(st.integers(0, len(self.out[name]) - 1)))

    @rule(
        tokens=st.sampled_from([1.0, 50.0, 500.0]),
        tenant=st.integers(0, 2),
        priority=st.sampled_from([0, 4, 9]),
        patience=st.sampled_from([0.0, 2.0, 30.0, math.inf]),
        deadline=st.sampled_from([1.0, 20.0, 200.0, math.inf]),
        cloud=st.sampled_from([0.001, 1.0, math.inf]),
        budget=st.sampled_from([0.0, 0.02, math.inf]),
        first=st.integers(0, 5),
        number=st.integers(0, 6),
    )
    def submit(self, patience: float, deadline: float, first: int, number: int, **kinds: Any) -> None:
        self.count += 1
        one = demand(
            str(self.count),
            kinds["tokens"],
            arrived=self.now,
            wait_until=self.now + patience,
            deadline=self.now + deadline,
            tenant=f"t{kinds['tenant']}",
            priority=kinds["priority"],
            cloud_usd=kinds["cloud"],
            cloud_s=2.0,
            budget_usd=kinds["budget"],
        )
        self.go(self.scheduler.submit(one, self.book.candidates(self.rows[first : first + number]), self.now))
        self.settle()

    @precondition(lambda self: self.out)
    @rule(data=st.data(), retry=st.sampled_from([0.0, 3.0]))
    def busy(self, data: st.DataObject, retry: float) -> None:
        name, placed = self.pick(data)
        self.scheduler.busy(placed, self.now, retry)
        self.back(name)
        self.settle()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        name, placed = self.pick(data)
        self.scheduler.ended(placed, self.now, failed=True)
        self.back(name)
        self.settle()

    @precondition(lambda self: self.out)
    @rule(data=st.data(), seconds=st.floats(0, 100), tokens=st.floats(0, 1000))
    def answered(self, data: st.DataObject, seconds: float, tokens: float) -> None:
        name, placed = self.pick(data)
        self.scheduler.ended(placed, self.now, seconds=seconds, tokens=tokens)
        del self.out[name]
        self.scheduler.close(name, self.now)
        self.settle()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def beside(self, data: st.DataObject) -> None:
        placed = self.scheduler.beside(data.draw(st.sampled_from(sorted(self.out))), self.now)
        if placed is not None:
            self.go(placed)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def given_up(self, data: st.DataObject) -> None:
        name = str(data.draw(st.integers(1, self.count)))
        self.scheduler.close(name, self.now)
        self.waiting.pop(name, None)
        self.out.pop(name, None)
        self.elsewhere.discard(name)
        self.settle()

    @rule(agent=st.integers(0, 4), running=st.integers(-1, 9), queued=st.integers(0, 3), thermal=st.floats(0, 2))
    def reported(self, agent: int, running: int, queued: int, thermal: float) -> None:
        self.book.reported(f"a{agent}", self.now, running=running, queued=queued, slots=4, thermal=thermal)
        self.settle()

    @rule(agent=st.integers(0, 4), state=st.booleans())
    def asleep(self, agent: int, state: bool) -> None:
        self.book.asleep(f"a{agent}", state)
        self.settle()

    @rule(most=st.floats(0.1, 20))
    def time_passes(self, most: float) -> None:
        self.now = min(self.now + most, max(self.now, self.scheduler.next_time(self.now)))
        self.settle()

    @invariant()
    def each_is_in_one_place_and_counted_once(self) -> None:
        assert self.scheduler.waiting == len(self.waiting)
        assert not (self.waiting.keys() & self.out.keys() or self.elsewhere & {*self.waiting, *self.out})
        counts = [sum(placed.row == row for each in self.out.values() for placed in each) for row in self.rows]
        rows = self.book.fleet(self.book.candidates(self.rows), self.now).rows
        assert rows["own"].tolist() == counts
        assert [bool(backlog) for backlog in rows["backlog_s"]] == [bool(count) for count in counts]
        for field in ("running", "queued", "backlog_s", "tokens_per_s", "overhead_s", "hardship"):
            assert np.isfinite(rows[field]).all() and (rows[field] >= 0).all()

    @invariant()
    def nobody_waits_longer_than_it_may(self) -> None:
        for one in self.waiting.values():
            assert self.now < one.due
        assert self.scheduler.next_time(self.now) <= min((one.due for one in self.waiting.values()), default=math.inf)

    def teardown(self) -> None:
        for name in map(str, range(1, self.count + 1)):
            self.scheduler.close(name, self.now)
        rows = self.book.fleet(self.book.candidates(self.rows), self.now).rows
        assert self.scheduler.waiting == 0 and math.isinf(self.scheduler.next_time(self.now))
        assert not rows["own"].any() and not rows["backlog_s"].any()
        assert not self.scheduler._open


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
