"""The default policy: whom it takes, when it waits, what it sheds, and why, in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedulers import book_of, demand, fleet_of

from mqttcollab.scheduling import Decision, Demand, LoadBook, Terms
from mqttcollab.scheduling.frugal import Frugal
from mqttcollab.scheduling.hardship import hardship
from mqttcollab.scheduling.market import Market

TWO = {"slow": 10.0, "fast": 20.0}
PATIENT = {"wait_until": 5.0, "cloud_usd": 0.01, "cloud_s": 1.0}


def rushed(usd: float = 1.0) -> Frugal:
    """A policy that has seen a rush of dear requests."""
    policy = Frugal()
    for number in range(64):
        policy.arrived(demand(f"before {number}", 100, arrived=-6.4 + number / 10, cloud_usd=usd))
    return policy


# Agents


def test_the_fastest_free_one_is_taken() -> None:
    found = Frugal().choose(demand(**PATIENT), fleet_of(TWO), 0.0)
    assert found == Decision("agent", "@fast is free, 5.00 s, the fastest of 2", 1)


def test_a_busy_one_is_not() -> None:
    found = Frugal().choose(demand(**PATIENT), fleet_of(TWO, running=[0, 1]), 0.0)
    assert found == Decision("agent", "@slow is free, 10.00 s", 0)


def test_a_sleeper_is_not_and_nobody_waits_for_a_better_one_that_sleeps() -> None:
    fleet = fleet_of(TWO, asleep=[0, 1], score=[0.5, 1.0])
    assert Frugal().choose(demand(**PATIENT), fleet, 0.0).agent == 0
    alone = fleet_of({"one": 10.0}, asleep=[1])
    assert Frugal().choose(demand(**PATIENT), alone, 0.0)[:2] == ("wait", "no agent is free")


def test_equally_fast_ones_share() -> None:
    fleet = fleet_of({"a": 10.0, "b": 10.0}, slots=[4, 4], running=[2, 1])
    assert Frugal().choose(demand(), fleet, 0.0).agent == 1


def test_a_less_able_one_gets_nothing_that_the_best_could_do() -> None:
    assert Frugal().choose(demand(), fleet_of(TWO, score=[1.0, 0.85]), 0.0).agent == 0
    assert Frugal().choose(demand(), fleet_of(TWO, score=[1.0, 0.95]), 0.0).agent == 1
    waits = Frugal().choose(demand(**PATIENT), fleet_of(TWO, score=[1.0, 0.7], running=[1, 0]), 0.0)
    assert waits == Decision("wait", "no agent is free")


@pytest.mark.parametrize(
    ("fields", "columns"),
    [({"deadline": 6.0}, {}), ({"budget_usd": 0.5}, {"price_usd": [1.0, 0.0]})],
    ids=["too slow", "too dear"],
)
def test_a_less_able_one_gets_what_the_best_could_not_do(
    fields: dict[str, float], columns: dict[str, list[float]]
) -> None:
    found = Frugal().choose(demand(**fields), fleet_of(TWO, score=[1.0, 0.5], **columns), 0.0)
    assert found[:2] == ("agent", "@fast is free, 5.00 s")


def test_a_less_able_one_is_better_than_a_refusal_but_the_cloud_is_better_than_that() -> None:
    fleet = fleet_of(TWO, score=[1.0, 0.5], running=[1, 0])
    assert Frugal().choose(demand(wait_until=5.0), fleet, 4.9).kind == "wait"
    assert Frugal().choose(demand(wait_until=5.0), fleet, 5.0)[0:3:2] == ("agent", 1)
    assert Frugal().choose(demand(**PATIENT), fleet, 5.0).kind == "cloud"


def test_who_is_likely_to_be_free_again_is_asked_and_who_is_hardly_is_not() -> None:
    fleet = fleet_of(TWO, running=[0.6, 0.7])
    found = Frugal().choose(demand(**PATIENT), fleet, 0.0)
    assert found == Decision("agent", "@slow may be free again: asking costs little", 0)
    assert Frugal().choose(demand(**PATIENT), fleet_of(TWO, running=[0.9, 0.9]), 0.0).kind == "wait"


# Deadline and budget


def test_the_deadline_rules_out_who_would_be_late() -> None:
    fleet = fleet_of(TWO, running=[0, 1])
    assert Frugal().choose(demand(deadline=7.0, wait_until=2.0), fleet, 0.0).kind == "wait"
    found = Frugal().choose(demand(deadline=4.0), fleet, 1.0)
    why = "no agent would be done in less than 5.0 s, and 3.0 s are left, and there is no cloud"
    assert found == Decision("refuse", why, code="deadline_exceeded")


def test_what_is_too_late_for_agents_goes_to_the_cloud_if_that_is_in_time() -> None:
    fleet = fleet_of(TWO)
    assert Frugal().choose(demand(deadline=4.0, cloud_usd=0.1, cloud_s=2.0), fleet, 0.0).kind == "cloud"
    found = Frugal().choose(demand(deadline=4.0, cloud_usd=0.1, cloud_s=4.5), fleet, 0.0)
    assert found.code == "deadline_exceeded"
    assert found.reason.endswith("and the cloud would need 4.5 s: too late")


def test_the_budget_rules_out_who_is_too_dear() -> None:
    assert Frugal().choose(demand(budget_usd=0.5), fleet_of(TWO, price_usd=[0.1, 1.0]), 0.0).agent == 0
    per_token = fleet_of(TWO, completion_usd_per_mtok=[0.0, 10_000.0])  # a dollar for a hundred tokens
    assert Frugal().choose(demand(budget_usd=0.5), per_token, 0.0).agent == 0
    found = Frugal().choose(demand(budget_usd=0.5, cloud_usd=2.0), fleet_of(TWO, price_usd=[1.0, 1.0]), 0.0)
    assert found.code == "quota_exceeded"
    assert found.reason == (
        "every agent charges more than the budget, and the cloud would cost 2.0000 US dollars of a budget of 0.5000"
    )


def test_a_budget_of_nothing_buys_what_is_free() -> None:
    assert Frugal().choose(demand(budget_usd=0.0), fleet_of(TWO), 0.0).kind == "agent"
    found = Frugal().choose(demand(budget_usd=0.0, cloud_usd=0.1), fleet_of(TWO, running=[1, 1]), math.inf)
    assert found.kind == "refuse"


def test_time_is_reckoned_by_those_within_the_budget() -> None:
    fleet = fleet_of(TWO, price_usd=[0.0, 1.0])
    found = Frugal().choose(demand(budget_usd=0.5, deadline=6.0), fleet, 0.0)
    assert found.code == "deadline_exceeded"
    assert found.reason.startswith("no agent would be done in less than 10.0 s, and 6.0 s are left")


# Waiting and the cloud


def test_it_waits_while_it_may_then_goes_to_the_cloud_or_is_refused() -> None:
    full = fleet_of(TWO, running=[1, 1])
    assert Frugal().choose(demand(**PATIENT), full, 4.9) == Decision("wait", "no agent is free")
    assert Frugal().choose(demand(**PATIENT), full, 5.0) == Decision("cloud", "no agent is free")
    refused = Frugal().choose(demand(wait_until=5.0, no_cloud="it may not leave the edge"), full, 5.0)
    assert refused == Decision("refuse", "no agent is free, and it may not leave the edge", code="busy")


def test_it_waits_no_longer_than_to_its_deadline() -> None:
    full = fleet_of({"a": math.inf}, running=[1])
    assert Frugal().choose(demand(deadline=3.0), full, 2.9) == Decision("wait", "no agent is free")
    assert Frugal().choose(demand(deadline=3.0), full, 3.0).kind == "refuse"


def test_the_last_slot_is_kept_for_dearer_ones_in_a_rush() -> None:
    last = fleet_of(TWO, running=[1, 0])
    found = rushed().choose(demand(**PATIENT), last, 0.0)
    assert found.kind == "wait"
    assert found.reason.startswith("the last free slot (@fast) is worth ")
    assert found.reason.endswith(" US dollars to what comes next")
    assert rushed().choose(demand(**PATIENT), last, 5.0).kind == "cloud"
    assert rushed().choose(demand(cloud_usd=2.0), last, 0.0).kind == "agent"
    assert rushed().choose(demand(), last, 0.0).kind == "agent", "what may not go to the cloud has no price"


def test_neither_the_last_but_one_nor_one_of_several_slots_is() -> None:
    assert rushed().choose(demand(**PATIENT), fleet_of(TWO), 0.0).kind == "agent"
    several = fleet_of(TWO, running=[1, 5], slots=[1, 8])
    assert rushed().choose(demand(**PATIENT), several, 0.0).kind == "agent"
    one_of_them = fleet_of(TWO, running=[1, 7], slots=[1, 8])
    assert rushed().choose(demand(**PATIENT), one_of_them, 0.0).kind == "wait"


# Who is shed


def order(waiting: list[Demand], running: float = 0.0, now: float = 0.0) -> list[str]:
    fleet = fleet_of({"one": 10.0}, running=[running])
    return [one.id for one in Frugal().order(waiting, fleet, now)]


def test_the_most_urgent_go_first_while_all_can_begin_in_time() -> None:
    # One agent, ten seconds each.
    waiting = [demand("c", wait_until=30.0), demand("a", wait_until=1.0), demand("b", wait_until=11.0)]
    assert order(waiting) == ["a", "b", "c"]


def test_what_cannot_be_begun_in_time_is_shed_from_its_cheap_end() -> None:
    waiting = [
        demand("a", wait_until=1.0, cloud_usd=1.0),
        demand("b", wait_until=5.0, cloud_usd=3.0),
        demand("c", wait_until=12.0, cloud_usd=2.0),
    ]
    assert order(waiting) == ["b", "c", "a"]


def test_saved_per_second_counts_and_what_has_no_cloud_is_never_shed_for_what_has() -> None:
    long = demand("long", 1000, wait_until=1.0, cloud_usd=5.0)
    short = demand("short", 100, wait_until=2.0, cloud_usd=1.0)
    assert order([long, short]) == ["short", "long"]
    kept = demand("kept", 1000, wait_until=1.0, no_cloud="it may not")
    assert order([short, kept]) == ["kept", "short"]


def test_nobody_goes_while_nobody_is_free() -> None:
    assert order([demand("a")], running=0.9) == []
    assert order([demand("a")], running=0.7) == ["a"]


@given(
    st.lists(
        st.tuples(st.floats(1, 1000), st.floats(0, 60), st.one_of(st.just(math.inf), st.floats(0, 1))), max_size=12
    )
)
def test_an_order_names_everybody_once_and_what_it_keeps_begins_in_time(
    waiting: list[tuple[float, float, float]],
) -> None:
    demands = [demand(str(n), tokens, wait_until=w, cloud_usd=usd) for n, (tokens, w, usd) in enumerate(waiting)]
    found = order(demands, now=1.0)
    assert sorted(found) == sorted(one.id for one in demands)
    by_name = {one.id: one for one in demands}
    kept = []
    for name in found:  # those that are kept are by urgency and begin in time; the others follow
        begins = 1.0 + sum(one.tokens / 10 for one in kept)
        if begins > by_name[name].wait_until + 1e-6 or (kept and by_name[name].wait_until < kept[-1].wait_until):
            break
        kept.append(by_name[name])
    assert kept or all(one.wait_until < 1.0 for one in demands)


# Condition


def test_hardship_by_hand() -> None:
    nothing = math.nan
    assert hardship(nothing, nothing, nothing, nothing) == 1.0
    assert hardship(1.0, nothing, 0.7, 1.0) == 1.0
    assert hardship(nothing, nothing, 1.0, nothing) == pytest.approx(1.99)
    assert hardship(0.5, 0.5, nothing, nothing) == pytest.approx(1 + 4 * math.exp(-1))
    assert hardship(0.0, 0.1, nothing, nothing) == 5.0
    assert hardship(0.0, -0.1, nothing, nothing) == 1.0, "it charges"
    assert hardship(nothing, nothing, nothing, 0.5) == 2.0
    assert hardship(nothing, nothing, nothing, 0.0) == 10.0


@given(*[st.floats(allow_infinity=True, allow_nan=True)] * 4)
def test_hardship_is_a_factor_whatever_is_reported(battery: float, drain: float, thermal: float, link: float) -> None:
    assert 1.0 <= hardship(battery, drain, thermal, link) <= 300


@pytest.mark.parametrize(
    "condition",
    [{"thermal": 1.5}, {"battery": 0.05, "drain_per_h": 0.5}, {"link": 0.3}],
    ids=["hot", "nearly empty", "badly connected"],
)
def test_who_is_in_hardship_counts_as_slower_but_is_not_taken_for_slower_than_it_is(
    condition: dict[str, float],
) -> None:
    book, candidates = book_of(TWO)
    book.reported("fast", 0.0, running=0, queued=0, slots=1, **condition)
    fleet = book.fleet(candidates, 0.0)
    assert Frugal().choose(demand(), fleet, 0.0).agent == 0
    assert Frugal().choose(demand(deadline=6.0), fleet, 0.0)[:2] == (
        "agent",
        "@fast is free, 5.00 s",
    )


# The market


def market(usd: list[float], tokens: list[float], rate: float) -> Market:
    found = Market()
    for number in range(64):
        kind = number % len(usd)
        found.arrived(demand(str(number), tokens[kind], arrived=number / rate, cloud_usd=usd[kind]))
    return found


def value_by_iteration(usd: np.ndarray, took: np.ndarray, rate: float, ends: float) -> float:
    """The fixed point of V = l / (l + h) E[max(r + V exp(-h d), V)], by brute force."""
    value = 0.0
    for _ in range(200_000):
        better = rate / (rate + ends) * np.maximum(usd + value * np.exp(-ends * took), value).mean()
        if abs(better - value) < 1e-12:
            break
        value = better
    return value


KINDS = [([0.01, 0.02, 0.05, 0.1], [50, 100, 200, 300], 3.0), ([1, 1], [10, 1000], 0.5), ([0.3, 0.0], [100, 100], 20.0)]


@pytest.mark.parametrize(("usd", "tokens", "rate"), KINDS)
def test_the_price_solves_the_process_it_says(usd: list[float], tokens: list[float], rate: float) -> None:
    agent = fleet_of({"one": 20.0}).rows[0]
    value = value_by_iteration(np.array(usd), np.array(tokens) / 20, rate, 1 / 30)
    for seconds in (0.0, 1.0, 10.0, 1e6):
        price = market(usd, tokens, rate).price(agent, seconds)
        assert price == pytest.approx(0.9 * value * (1 - math.exp(-seconds / 30)), rel=1e-4)


def test_the_price_is_what_a_slot_earns_in_a_simulated_rush_and_no_threshold_earns_more() -> None:
    usd, tokens, rate = np.array([0.2, 0.4, 1.0]), np.array([200.0, 100.0, 100.0]), 2.0
    took = tokens / 20
    value = value_by_iteration(usd, took, rate, 1 / 30)
    source = np.random.default_rng(3)

    def earns(taken: np.ndarray, rushes: int = 4000) -> float:
        total = 0.0
        for ends in source.exponential(30.0, rushes):
            now = source.exponential(1 / rate)
            while now < ends:
                kind = int(source.integers(3))
                if taken[kind]:
                    total += usd[kind]
                    now += took[kind]
                now += source.exponential(1 / rate)
        return total / rushes

    best = usd >= value * (1 - np.exp(-took / 30))
    assert best.tolist() == [False, False, True], "only the dear ones are worth the slot"
    found = earns(best)
    assert found == pytest.approx(value, rel=0.05)
    for others in ([True, True, True], [False, True, True]):
        assert earns(np.array(others)) < found


def test_a_slot_has_no_price_until_enough_is_known_and_none_where_nothing_costs() -> None:
    agent = fleet_of({"one": 20.0}).rows[0]
    few = Market()
    for number in range(15):
        few.arrived(demand(str(number), arrived=number / 10, cloud_usd=1.0))
    assert few.price(agent, 5.0) == 0.0
    few.arrived(demand("x", arrived=1.5, cloud_usd=1.0))
    assert few.price(agent, 5.0) > 0.0
    assert market([0.0], [100], 3.0).price(agent, 5.0) == 0.0
    edge_only = Market()
    for number in range(64):
        edge_only.arrived(demand(str(number), arrived=number / 10))
    assert edge_only.price(agent, 5.0) == 0.0


@pytest.mark.parametrize("times", [[1.0] * 64, [64.0 - n for n in range(64)]], ids=["all at once", "backwards"])
@pytest.mark.parametrize("speed", [1e-6, 1.0, math.inf])
def test_the_price_is_a_number_whatever_comes(times: list[float], speed: float) -> None:
    found = Market()
    for number, time in enumerate(times):
        found.arrived(demand(str(number), arrived=time, cloud_usd=1.0))
    price = found.price(fleet_of({"one": speed}).rows[0], 100 / speed)
    assert math.isfinite(price) and price >= 0


def after_rushes(lull_s: float) -> float:
    """The price of a slot after twenty rushes of four seconds, with lulls between them."""
    found, fleet, now = Market(), fleet_of({"one": 20.0}), 0.0  # five seconds each
    for _ in range(20):
        for number in range(48):
            now += 0.1 if number < 40 else lull_s
            found.arrived(demand("x", arrived=now, cloud_usd=1.0))
            found.rush(fleet, now)
    for number in range(64):
        found.arrived(demand("x", arrived=now + number / 10, cloud_usd=1.0))
    return found.price(fleet.rows[0], 1.0)


def test_how_long_a_rush_lasts_is_learnt_and_a_lull_of_hours_is_none() -> None:
    assert after_rushes(10.0) != pytest.approx(market([1.0], [100], 10.0).price(fleet_of({"one": 20.0}).rows[0], 1.0))
    assert after_rushes(3600.0) == pytest.approx(after_rushes(360.0))


def test_a_rush_for_one_service_makes_no_other_dear() -> None:
    policy, last = rushed(), fleet_of(TWO, running=[1, 0])
    assert policy.choose(demand(**PATIENT), last, 0.0).kind == "wait"
    assert policy.choose(demand(**PATIENT, service="another"), last, 0.0).kind == "agent"


def test_a_policy_sees_where_an_agent_is_and_says_so() -> None:
    book = LoadBook()
    rows = [book.row("a", "s", Terms(10.0)), book.row("b", "s", Terms(20.0, place="harbour"))]
    fleet = book.fleet(book.candidates(rows), 0.0)
    assert [fleet.place(number) for number in (0, 1)] == [None, "harbour"]
    assert Frugal().choose(demand(), fleet, 0.0).reason == "@b (harbour) is free, 5.00 s, the fastest of 2"
    book.row("b", "s", Terms(20.0, place="north pier"))
    assert book.fleet(book.candidates(rows), 0.0).place(1) == "north pier"
