"""The classic policies: each picks whom its name says."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedulers import book_of, demand, fleet_of, occupy

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling import POLICIES, Decision, Fleet, make_policy

FOUR = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0}
CLASSIC = [name for name in POLICIES if name != "frugal"]


def picks(name: str, fleet: Fleet, times: int = 4000, seed: int = 1) -> Counter[str]:
    policy = make_policy(name, seed)
    return Counter(fleet.name(policy.choose(demand(), fleet, 0.0).agent) for _ in range(times))


def test_random_is_uniform() -> None:
    found = picks("random", fleet_of(FOUR))
    # Chi-squared, three degrees of freedom: above 16.3 once in a thousand.
    assert sum((found[name] - 1000) ** 2 / 1000 for name in FOUR) < 16.3


def test_weighted_is_in_proportion_to_speed_and_slots() -> None:
    found = picks("weighted", fleet_of(FOUR, slots=[4, 2, 2, 1]))
    shares = {"a": 40, "b": 40, "c": 60, "d": 40}
    expected = {name: 4000 * share / 180 for name, share in shares.items()}
    assert sum((found[name] - expected[name]) ** 2 / expected[name] for name in FOUR) < 16.3


@pytest.mark.parametrize(
    ("speeds", "shares"),
    [
        ({"a": 10.0, "b": math.inf, "c": 30.0, "d": math.inf}, {"a": 10, "b": 30, "c": 30, "d": 30}),
        (dict.fromkeys(FOUR, math.inf), dict.fromkeys(FOUR, 25)),
    ],
)
def test_weighted_takes_an_unknown_speed_for_the_fastest_known(
    speeds: dict[str, float], shares: dict[str, float]
) -> None:
    found = picks("weighted", fleet_of(speeds))
    expected = {name: 4000 * share / 100 for name, share in shares.items()}
    assert sum((found[name] - expected[name]) ** 2 / expected[name] for name in FOUR) < 16.3


def test_least_connections_counts_requests_and_load_aware_counts_them_per_slot() -> None:
    fleet = fleet_of(FOUR, slots=[1, 8, 2, 2], running=[1, 2, 2, 2], queued=[0, 0, 0, 3])
    assert set(picks("least-connections", fleet, 50)) == {"a"}
    assert set(picks("load-aware", fleet, 50)) == {"b"}


@pytest.mark.parametrize("name", ["least-connections", "load-aware"])
def test_equals_share(name: str) -> None:
    found = picks(name, fleet_of(FOUR, running=[1, 0, 0, 1], slots=[2, 2, 2, 2]), 1000)
    assert set(found) == {"b", "c"}
    assert min(found.values()) > 400


@given(running=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_power_of_two_takes_the_less_loaded_of_its_two(running: list[int], seed: int) -> None:
    fleet = fleet_of({f"a{n}": 10.0 for n in range(len(running))}, running=running, slots=[5.0] * len(running))
    source = random.Random(seed)
    drawn = [source.randrange(len(running)) for _ in range(2)]
    picked = make_policy("power-of-two", seed).choose(demand(), fleet, 0.0).agent
    assert picked in drawn
    assert running[picked] == min(running[number] for number in drawn)


def test_fastest_free_takes_the_fastest_that_has_a_slot_and_is_awake() -> None:
    fleet = fleet_of(FOUR, running=[0, 0, 0, 1], asleep=[0, 0, 1, 0])
    assert set(picks("fastest-free", fleet, 20)) == {"b"}


@pytest.mark.parametrize("wait_until", [0.0, 5.0, math.inf])
def test_fastest_free_takes_who_is_to_be_free_first_where_nobody_is(wait_until: float) -> None:
    book, candidates = book_of(FOUR)
    for row in range(4):
        occupy(book, row)
    occupy(book, 3)  # 10, 5, 3.3 and 2 times 2.5 seconds
    found = make_policy("fastest-free").choose(demand(wait_until=wait_until), book.fleet(candidates, 0.0), 0.0)
    assert found == Decision("agent", "fastest-free: @c", 2)


@pytest.mark.parametrize("name", POLICIES)
def test_nobody_offers_it(name: str) -> None:
    policy, fleet = make_policy(name), fleet_of({})
    found = policy.choose(demand(), fleet, 0.0)
    assert found[:2] == ("refuse", "nobody else offers it, and there is no cloud")
    assert found.code == "no_capability"
    assert policy.choose(demand(cloud_usd=0.1), fleet, 0.0)[:2] == ("cloud", "nobody else offers it")
    assert not policy.order([], fleet, 0.0)


@pytest.mark.parametrize("name", CLASSIC)
def test_a_seed_repeats_the_choice_and_the_reason_names_the_policy(name: str) -> None:
    fleet = fleet_of(FOUR)
    first, second = ([make_policy(name, 7).choose(demand(), fleet, 0.0) for _ in range(20)] for _ in range(2))
    assert first == second
    assert first[0].reason == f"{name}: @{fleet.name(first[0].agent)}"


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"there is no policy 'best'; use one of random, weighted, .*frugal"):
        make_policy("best")


def test_the_policy_of_the_docs_chooses_the_fullest_battery_of_those_that_are_free() -> None:
    docs = Path(__file__).parents[1] / "docs" / "scheduling.md"
    found = re.search(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(found[1], names)
    fleet = fleet_of({"a": 10.0, "b": 20.0, "c": 30.0}, battery=[0.5, 0.2, 0.9], running=[0.0, 0.0, 1.0])
    decision = names["Greenest"]().choose(demand(), fleet, 0.0)
    assert (decision.kind, fleet.name(decision.agent)) == ("agent", "a")
    assert names["options"].policy.name == "greenest"
