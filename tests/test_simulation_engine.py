"""The simulated hour: nothing is lost, the same seed gives the same, and what can be computed by hand comes out so."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.scheduling import POLICIES
from mqttcollab.simulation.arrivals import Paper
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Result, Setting, Simulation
from mqttcollab.simulation.fleet import read_fleet

CLOUD = Cloud(30.0, 60.0, tokens_per_s=50.0, overhead_s=1.0)


def device(name: str = "a", speed: float = 10.0, **more: Any) -> Device:
    return Device(name, speed, 10 * speed, **more)


def run(
    devices: list[Device], arrivals: list[Arrival], policy: str = "frugal", seed: int = 0, **setting: Any
) -> Result:
    return Simulation(devices, arrivals, policy, Setting(**setting), CLOUD, seed).run()


@pytest.mark.parametrize("policy", POLICIES)
def test_one_device_by_hand(policy: str) -> None:
    """The first takes 10 s, the second comes meanwhile and goes to the cloud (3 s), the third finds it free (5 s)."""
    arrivals = [Arrival(0, 0, 100), Arrival(5, 0, 100), Arrival(12, 0, 50)]
    found = run([device(link_s=0.5)], arrivals, policy)
    assert (found.processed, found.redirected, found.refused) == (2, 1, 0)
    assert found.cloud_cost_usd == pytest.approx(100 * 60 / 1e6)
    assert found.busy_s == pytest.approx({"a": 15.0})
    # Who sends it to the busy device first loses two ways on the link.
    lost = 0.0 if policy == "frugal" else 1.0
    assert found.rejected == bool(lost)
    assert sorted(found.latencies) == pytest.approx([3.0 + lost, 6.0, 11.0])


@pytest.mark.parametrize("policy", ["least-connections", "load-aware", "fastest-free", "frugal"])
def test_two_devices_by_hand(policy: str) -> None:
    """Whoever looks at the load gives the second request to the other device, and has none for the third."""
    arrivals = [Arrival(0, 0, 100), Arrival(1, 0, 100), Arrival(2, 0, 100)]
    found = run([device("a", 10, link_s=0.0), device("b", 5, link_s=0.0)], arrivals, policy)
    assert (found.processed, found.redirected) == (2, 1)
    assert found.busy_s == pytest.approx({"a": 10.0, "b": 20.0})
    assert found.cloud_cost_usd == pytest.approx(0.006)


def test_the_fastest_that_is_free_is_taken() -> None:
    fleet = [device("slow", 5), device("fast", 20), device("middle", 10)]
    for policy in ("fastest-free", "frugal"):
        found = run(fleet, [Arrival(0, 0, 100), Arrival(1, 0, 100)], policy)
        assert found.busy_s == pytest.approx({"slow": 0.0, "fast": 5.0, "middle": 10.0})


def test_load_is_per_slot() -> None:
    fleet = [device("one"), device("three", slots=3)]
    found = run(fleet, [Arrival(i / 10, 0, 100) for i in range(4)], "load-aware")
    assert (found.processed, found.rejected) == (4, 0)


def test_weights_are_speeds_and_two_choices_beat_one() -> None:
    fleet = [device("slow", 1, slots=1000), device("fast", 9, slots=1000)]
    arrivals = [Arrival(float(i), 0, 9) for i in range(500)]
    shares = {policy: run(fleet, arrivals, policy).busy_s["fast"] / 500 for policy in ("random", "weighted")}
    assert shares["random"] == pytest.approx(0.5, abs=0.1)
    assert shares["weighted"] == pytest.approx(0.9, abs=0.05)
    same = [device(str(i)) for i in range(8)]
    crowd = [Arrival(2.0 * i, 0, 100) for i in range(500)]
    assert run(same, crowd, "power-of-two").redirected < run(same, crowd, "random").redirected


def test_prompts_are_read_at_their_own_speed_and_priced() -> None:
    found = run([device(link_s=0.0)], [Arrival(0, 1000, 100), Arrival(1, 1000, 100)])
    assert found.busy_s == pytest.approx({"a": 1000 / 100 + 100 / 10})
    assert found.cloud_cost_usd == pytest.approx((1000 * 30 + 100 * 60) / 1e6)


@pytest.mark.parametrize("policy", POLICIES)
def test_who_may_wait_waits_for_the_only_device(policy: str) -> None:
    arrivals = [Arrival(0, 0, 100), Arrival(7, 0, 100), Arrival(7.5, 0, 100)]
    found = run([device(link_s=0.0)], arrivals, policy, patience_s=5)
    assert (found.processed, found.redirected) == (2, 1)
    assert found.busy_s == pytest.approx({"a": 20.0})
    # Which of the two goes to the cloud, when its patience ends, is all the same to what it costs.
    assert sorted(found.latencies) in (pytest.approx([8.0, 10.0, 12.5]), pytest.approx([8.0, 10.0, 13.0]))


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_waits_longer_than_its_patience(policy: str) -> None:
    """The first takes 100 s; each of the others goes to the cloud (3 s) after 5 s."""
    arrivals = [Arrival(0, 0, 1000), *(Arrival(float(i), 0, 100) for i in (1, 2, 2, 3))]
    found = run([device(link_s=0.0)], arrivals, policy, patience_s=5)
    assert (found.processed, found.redirected) == (1, 4)
    assert sorted(found.latencies) == pytest.approx([8.0] * 4 + [100.0])


def test_a_crash_loses_nothing() -> None:
    """It dies at 5 s, which is noticed at 10 s; from 100 s on it works again."""
    arrivals = [Arrival(0, 0, 100), Arrival(20, 0, 100), Arrival(101, 0, 100)]
    found = run([device(link_s=0.0, down=((5.0, 100.0),))], arrivals, "frugal", detect_s=5)
    assert (found.processed, found.redirected) == (1, 2)
    assert found.latencies == pytest.approx([10.0 + 3.0, 3.0, 10.0])
    assert found.busy_s == pytest.approx({"a": 10.0})  # what was lost is no work


def test_others_take_what_a_crash_lost() -> None:
    fleet = [device("fast", 20, link_s=0.0, down=((2.0, 50.0),)), device("slow", 10, link_s=0.0)]
    found = run(fleet, [Arrival(0, 0, 100)], "frugal", detect_s=1)
    assert (found.processed, found.redirected) == (1, 0)
    assert found.latencies == pytest.approx([3.0 + 10.0])


DOWN = st.lists(st.tuples(st.floats(0, 60), st.floats(0.1, 60)), max_size=1).map(
    lambda times: tuple((begins, begins + lasts) for begins, lasts in times)
)
DEVICES = st.lists(
    st.builds(
        device,
        speed=st.floats(1, 50),
        slots=st.integers(1, 3),
        link_s=st.sampled_from([0.0, 0.002, 0.3]),
        down=DOWN,
    ),
    min_size=1,
    max_size=4,
)
ARRIVALS = st.lists(
    st.tuples(st.floats(0, 60), st.sampled_from([0.0, 300.0]), st.sampled_from([0.0, 10.0, 50.0, 500.0])), max_size=40
)
SETTINGS = st.fixed_dictionaries(
    {
        "report_delay_s": st.sampled_from([0.0, 1.0, 10.0]),
        "orchestrators": st.integers(1, 3),
        "length_error": st.sampled_from([0.0, 0.5, 1.0]),
        "patience_s": st.sampled_from([0.0, 2.0, 20.0]),
        "queue_size": st.sampled_from([1, 32]),
    }
)


@given(DEVICES, ARRIVALS, SETTINGS, st.sampled_from(POLICIES), st.integers(0, 9))
def test_every_request_ends_in_one_way(
    devices: list[Device], requests: list[tuple[float, float, float]], setting: dict[str, Any], policy: str, seed: int
) -> None:
    named = [
        Device(str(i), d.tokens_per_s, d.prompt_tokens_per_s, d.slots, d.link_s, d.down) for i, d in enumerate(devices)
    ]
    arrivals = [Arrival(*request) for request in sorted(requests)]
    found = run(named, arrivals, policy, seed, **setting)
    assert found.processed + found.redirected + found.refused == len(arrivals)
    assert found.refused == 0  # the cloud takes all
    assert len(found.latencies) == len(arrivals)
    assert all(math.isfinite(latency) and latency >= 0 for latency in found.latencies)
    assert 0 <= found.cloud_cost_usd <= sum(CLOUD.usd(a.prompt_tokens, a.tokens) for a in arrivals) + 1e-9
    for each in named:
        assert 0 <= found.busy_s[each.name] <= each.slots * max(found.ended_s, 60) + 1e-6
    assert found == run(named, arrivals, policy, seed, **setting)


def test_the_seed_decides_and_nothing_else() -> None:
    devices = read_fleet().devices
    paper = Paper(600)
    first, again, other = (
        Simulation(
            devices, paper.arrivals(0.7, devices, seed), "random", Setting(orchestrators=2, length_error=0.5), seed=seed
        ).run()
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_clock_is_virtual() -> None:
    """A year passes before the test's time-out."""
    found = run([device()], [Arrival(0, 0, 100), Arrival(3e7, 0, 100)], "fastest-free")
    assert found.processed == 2
    assert found.ended_s > 3e7


def test_the_more_a_policy_looks_at_the_less_goes_to_the_cloud() -> None:
    devices = read_fleet().devices
    paper = Paper(3600)
    cost = {
        policy: sum(
            Simulation(devices, paper.arrivals(0.5, devices, seed), policy, seed=seed).run().cloud_cost_usd
            for seed in range(4)
        )
        for policy in ("random", "load-aware", "fastest-free", "frugal")
    }
    assert cost["random"] > 2 * cost["load-aware"]
    assert cost["load-aware"] > cost["fastest-free"] > 0
    assert cost["load-aware"] > cost["frugal"] > 0
