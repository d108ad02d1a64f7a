"""The waiting room: priorities, and fair shares of tenants."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedulers import demand

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling.fair import WaitingRoom


def serve(room: WaitingRoom, work: float = 1.0) -> str:
    """Serves the first that waits, who asks for the same again at once; returns the tenant."""
    first = room.groups()[0].demands[0]
    room.remove(first.id)
    room.served(first, work)
    room.add(first)
    return first.tenant


def crowd(tenants: dict[str, int], weights: dict[str, float] | None = None) -> WaitingRoom:
    """So many requests of each tenant."""
    room = WaitingRoom(weights or {})
    for tenant, count in tenants.items():
        for number in range(count):
            room.add(demand(f"{tenant}{number}", tenant=tenant))
    return room


def test_a_flood_gets_no_more_than_its_share() -> None:
    room = crowd({"flood": 500, "one": 1, "two": 2})
    found = Counter(serve(room) for _ in range(300))
    assert found == {"flood": 100, "one": 100, "two": 100}


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5), st.integers(0, 3))
def test_shares_are_in_proportion_to_weights_over_a_long_run(weights: list[float], flooding: int) -> None:
    names = {f"t{number}": weight for number, weight in enumerate(weights)}
    room = crowd({name: 20 if number == flooding else 1 for number, name in enumerate(names)}, names)
    found = Counter(serve(room) for _ in range(1000))
    for name, weight in names.items():
        # Never more than one request off its share, for each of the tenants.
        assert abs(found[name] - 1000 * weight / sum(weights)) <= len(weights)


def test_work_counts_not_requests() -> None:
    room, got = WaitingRoom(), Counter[str]()
    for tenant in ("long", "short"):
        room.add(demand(tenant, tenant=tenant))
    for _ in range(600):
        tenant = room.groups()[0].tenant
        got[tenant] += 10 if tenant == "long" else 1
        serve(room, 10.0 if tenant == "long" else 1.0)
    assert abs(got["long"] - got["short"]) <= 10


def test_higher_priorities_go_first_whatever_their_tenants_had() -> None:
    room = WaitingRoom()
    for number, (tenant, priority) in enumerate([("a", 0), ("b", 4), ("a", 9), ("b", 9)]):
        room.add(demand(str(number), tenant=tenant, priority=priority))
    room.served(demand(tenant="a", priority=9), 100.0)
    assert [(group.priority, group.tenant) for group in room.groups()] == [(9, "b"), (9, "a"), (4, "b"), (0, "a")]
    assert room.occupied(9) and not WaitingRoom().occupied(0)


def test_who_was_away_can_not_have_saved_up() -> None:
    room = crowd({"there": 5})
    for _ in range(1000):
        serve(room)
    room.add(demand("back", tenant="back"))
    assert [serve(room) for _ in range(10)].count("back") in (5, 6)


def test_a_low_priority_that_starves_lets_nobody_else_catch_up_on_what_was_never_lost() -> None:
    room = crowd({"there": 5})
    room.add(demand("starving", tenant="starving", priority=0))
    for _ in range(1000):
        assert serve(room) == "there"
    room.add(demand("new", tenant="new"))
    assert [serve(room) for _ in range(10)].count("new") in (5, 6)


def test_those_who_wait_for_an_agent_that_is_gone_do_not_either() -> None:
    room = WaitingRoom()
    room.add(demand("stuck", tenant="stuck"), b"gone")
    for _ in range(1000):
        room.served(demand(tenant="there"), 1.0)
    room.served(demand(tenant="new"), 1.0)
    room.add(demand("x", tenant="there"))
    room.add(demand("y", tenant="new"))
    assert [serve(room) for _ in range(10)].count("new") <= 6


def test_what_is_given_back_is_not_charged() -> None:
    room = crowd({"a": 1, "b": 1})
    for _ in range(50):
        room.served(demand(tenant="a"), 7.0)
        room.returned(demand(tenant="a"), 7.0)
    assert Counter(serve(room) for _ in range(10)) == {"a": 5, "b": 5}
    room.returned(demand(tenant="stranger"), 7.0)


def test_tenants_without_number_are_forgotten() -> None:
    room = WaitingRoom()
    for number in range(20_000):
        room.served(demand(tenant=f"t{number}"), 1.0 + number % 3)
    assert sum(len(shares.times) for shares in room._shares.values()) <= 1025


def test_in_a_group_they_stay_as_they_came_and_leave_no_trace() -> None:
    room = WaitingRoom()
    for name in "cab":
        room.add(demand(name))
    room.add(demand("a"))  # again
    assert [one.id for one in room.groups()[0].demands] == ["c", "a", "b"]
    assert len(room) == 3 and "a" in room
    room.add(demand("d"), b"others")
    assert len(room.groups()) == 2
    for name in "abcd":
        removed = room.remove(name)
        assert removed is not None and removed.id == name
        assert room.remove(name) is None
    assert not len(room) and not list(room) and not room.groups() and not room._groups


def test_work_before_a_newcomer_by_hand() -> None:
    room = WaitingRoom({"heavy": 2.0})
    room.add(demand("1", tenant="me", wait_until=5.0), b"x", 1.0)
    room.add(demand("2", tenant="me", wait_until=50.0), b"x", 2.0)  # less urgent than the newcomer
    room.add(demand("3", tenant="other", wait_until=5.0), b"x", 100.0)
    room.add(demand("4", tenant="heavy", wait_until=5.0), b"x", 100.0)
    room.add(demand("5", tenant="little", wait_until=5.0), b"x", 0.5)
    room.add(demand("6", tenant="other", priority=9), b"x", 10.0)
    room.add(demand("7", tenant="other", priority=0), b"x", 1000.0)
    room.add(demand("8", tenant="other"), b"y", 1000.0)  # for other agents
    newcomer = demand("new", tenant="me", wait_until=10.0)
    assert room.before(newcomer, b"x", 3.0) == pytest.approx(10 + 1 + (1 + 3) + 2 * (1 + 3) + 0.5)
    assert room.before(newcomer, b"z", 3.0) == 0.0


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_weight_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"the weight of tenant 'a' is .*; it must be above 0 and finite"):
        WaitingRoom({"a": weight})
