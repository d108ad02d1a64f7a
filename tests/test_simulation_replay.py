"""Simulation and reality: the same requests on a virtual clock and, in compressed time, on a real broker."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
from typing import Any

import pytest
from fleet import Watcher, client

from mqttcollab.broker import Broker, find_broker
from mqttcollab.cli.validate import run_validation
from mqttcollab.errors import BrokerError, ConfigError, MqttCollabError
from mqttcollab.simulation.clock import in_fast_time
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Result, Setting, Simulation
from mqttcollab.simulation.replay import replay
from mqttcollab.simulation.validate import Compared, Counts, compare

DEVICES = (Device("orin", 20, 200), Device("phone", 10, 100), Device("pi", 6, 60, slots=2))
CLOUD = Cloud()
SPEED_UP = 100.0


def bursts(seed: int, count: int = 60, prompt_tokens: float = 0.0) -> list[Arrival]:
    """Some requests close together, then a pause: more than the fleet can do at once, less than it can do in all."""
    source, time, found = random.Random(seed), 0.0, []
    for number in range(count):
        time += source.uniform(0.5, 1.5) if number % 6 else 25.0
        found.append(Arrival(time, prompt_tokens, source.choice((50.0, 100.0, 200.0))))
    return found


async def both(mosquitto: Broker, arrivals: list[Arrival], policy: str, setting: Setting) -> tuple[Result, Result]:
    """What simulation and replay come to."""
    real = await replay(DEVICES, arrivals, policy, setting, CLOUD, SPEED_UP, 1, mosquitto.info.url)
    linked = [dataclasses.replace(device, link_s=real.link_s) for device in DEVICES]
    return Simulation(linked, arrivals, policy, setting, CLOUD, 1).run(), real.result


# A slow machine delays a few requests so far that they find another agent busy, or free.
def close(one: float, other: float, of: int) -> bool:
    return abs(one - other) <= 0.15 * of


@pytest.mark.parametrize(
    ("policy", "patience_s"),
    [
        ("frugal", 5.0),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("frugal", 0.0), ("load-aware", 0.0), ("load-aware", 5.0))
        ),
    ],
)
async def test_simulation_and_reality_agree(mosquitto: Broker, policy: str, patience_s: float) -> None:
    arrivals = bursts(1)
    simulated, real = await both(mosquitto, arrivals, policy, Setting(patience_s=patience_s))
    assert 0 < simulated.redirected < simulated.processed
    assert close(real.processed, simulated.processed, len(arrivals))
    assert close(real.redirected, simulated.redirected, len(arrivals))
    assert real.processed + real.redirected == len(arrivals) == len(real.latencies)
    assert real.refused == 0
    assert close(sum(real.busy_s.values()), sum(simulated.busy_s.values()), round(sum(simulated.busy_s.values())))


async def test_all_of_a_setting_is_replayed(mosquitto: Broker) -> None:
    """Two orchestrators, late reports, wrong lengths, prompts."""
    arrivals = bursts(2, 30, prompt_tokens=20)
    setting = Setting(report_delay_s=2, orchestrators=2, length_error=0.5, patience_s=2, queue_size=1)
    simulated, real = await both(mosquitto, arrivals, "random", setting)
    assert real.processed + real.redirected == len(arrivals)
    assert close(real.processed, simulated.processed, 2 * len(arrivals))
    assert real.rejected > 0
    assert close(100 * real.cloud_cost_usd, 100 * simulated.cloud_cost_usd, round(200 * simulated.cloud_cost_usd))


@pytest.mark.slow
@pytest.mark.parametrize("orchestrators", [1, 2])
async def test_a_longer_hour_agrees_within_a_few_per_cent(mosquitto: Broker, orchestrators: int) -> None:
    policies, setting = ["random", "load-aware", "fastest-free", "frugal"], Setting(orchestrators=orchestrators)
    rows = await compare(DEVICES, {1: bursts(1, 120)}, policies, setting, CLOUD, mosquitto.info.url)
    for row in rows:
        assert abs(row.difference("processed")) < 10, row
        assert close(row.real.redirected, row.simulated.redirected, round(0.6 * row.arrivals)), row


async def test_nothing_of_a_replay_stays_on_the_broker(mosquitto: Broker) -> None:
    async with client().running(mosquitto.info.url) as watching:
        watcher = await Watcher().watch(watching.transport, "#")
        await replay(DEVICES, bursts(3, 6), "frugal", Setting(), CLOUD, 1000.0, 0, mosquitto.info.url)
        late = await Watcher().watch(watching.transport, "slm/#", "computation.gpt/#")
        await watching.transport.publish(
            dataclasses.replace(watcher.seen[0], topic="slm/end", payload=b"", retain=False)
        )
        await late.until(lambda: "slm/end" in late.last)
    assert any(topic.startswith("computation.gpt/replay/@orin-") for topic in watcher.last)
    assert list(late.last) == ["slm/end"]


async def test_a_replay_that_is_given_up_ends(mosquitto: Broker) -> None:
    async with client().running(mosquitto.info.url) as watching:
        watcher = await Watcher().watch(watching.transport, "#")
        hour = asyncio.ensure_future(replay(DEVICES, bursts(3), "frugal", Setting(), CLOUD, 1.0, 0, mosquitto.info.url))
        await watcher.until(lambda: any(topic.endswith("/load") for topic in watcher.last))
        hour.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hour


BAD: list[tuple[dict[str, Any], str]] = [
    ({"devices": ()}, "the fleet has no devices"),
    ({"devices": (Device("pi", 6, 60, down=((1.0, 2.0),)),)}, "pi is to be down: a replay has no crashes"),
    ({"devices": (Device("Pi 5", 6, 60),)}, "agent name 'Pi 5-"),
    ({"policy": "fair"}, "there is no policy 'fair'"),
    ({"speed_up": 0}, "the speed-up is 0; it must be a number above 0"),
    ({"speed_up": math.nan}, "the speed-up is nan"),
    ({"broker": "mqtt://127.0.0.1:1"}, "can't be reached"),
    ({"broker": "http://127.0.0.1"}, "http"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
async def test_what_can_not_be_replayed_is_refused_in_one_line(
    mosquitto: Broker, change: dict[str, Any], words: str
) -> None:
    good: dict[str, Any] = {"devices": DEVICES, "policy": "frugal", "speed_up": 100.0, "broker": "mqtt://127.0.0.1:1"}
    arguments = good | {"broker": mosquitto.info.url} | change
    with pytest.raises(MqttCollabError, match=words) as caught:
        await replay(arrivals=bursts(1, 3), setting=Setting(), cloud=CLOUD, seed=0, **arguments)
    assert "\n" not in str(caught.value)


# The comparison


async def test_the_comparison_is_told_per_policy(mosquitto: Broker) -> None:
    told: list[str] = []
    rows = await compare(
        DEVICES,
        {7: bursts(1, 6)},
        ["frugal", "random"],
        Setting(),
        CLOUD,
        mosquitto.info.url,
        speed_up=1000.0,
        progress=told.append,
    )
    assert told == ["frugal, seed 7: 6 requests", "random, seed 7: 6 requests"]
    assert [row.policy for row in rows] == ["frugal", "random"]
    for row in rows:
        assert (row.seeds, row.arrivals) == (1, 6)
        assert row.simulated.processed + row.simulated.redirected == row.real.processed + row.real.redirected == 6
        assert row.link_s > 0
    content = json.loads(json.dumps([row.as_json() for row in rows], allow_nan=False))
    assert content[0]["real"]["processed"] == rows[0].real.processed
    assert content[0]["setting"]["orchestrators"] == 1


def test_a_difference_is_in_per_cent_of_the_simulated_figure() -> None:
    row = Compared("frugal", Setting(), 1, 10, 0.1, Counts(8, 2, 0, 0.0), Counts(6, 4, 1, 0.0))
    assert (row.difference("processed"), row.difference("redirected")) == (-25, 100)
    assert (row.difference("rejected"), row.difference("cloud_cost_usd")) == (math.inf, 0)
    assert row.as_json()["difference_percent"] == {
        "processed": -25,
        "redirected": 100,
        "rejected": None,
        "cloud_cost_usd": 0,
    }


async def test_nothing_to_compare_is_said() -> None:
    for hours, policies in (({}, ["frugal"]), ({0: bursts(1, 3)}, [])):
        with pytest.raises(ConfigError, match="nothing to compare"):
            await compare(DEVICES, hours, policies, Setting(), CLOUD, "mqtt://127.0.0.1:1")


def test_the_command_prints_a_row_per_setting_and_policy(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_broker("mosquitto")
    except BrokerError as error:
        pytest.skip(str(error))
    hours, settings = {0.5: {0: bursts(1, 6)}}, [Setting(), Setting(orchestrators=2)]
    for json_wanted in (False, True):
        run_validation(
            DEVICES, CLOUD, hours, ("random",), settings, speed_up=1000.0, broker=None, json_wanted=json_wanted
        )
    title, *table, data = capsys.readouterr().out.splitlines()
    assert title == "load 0.5"
    assert [line.split("\t")[:3] for line in table[1:-1]] == [["random", "1", "0"], ["random", "2", "0"]]
    assert "1000 simulated seconds per second" in table[-1]
    runs = json.loads(data)["runs"]
    assert [run["load"] for run in runs] == [0.5, 0.5]
    assert [run["setting"]["orchestrators"] for run in runs] == [1, 2]
    assert all(run["real"]["processed"] + run["real"]["redirected"] == 6 for run in runs)


# The clock


async def test_a_fast_loop_counts_its_own_seconds_and_hands_out_what_came_of_the_work() -> None:
    async def an_hour() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.timeout(7200):
            await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.sleep(3600)
        return loop.time() - begun

    assert await in_fast_time(36_000, an_hour) >= 3660

    async def fails() -> None:
        raise ConfigError("so it is")

    with pytest.raises(ConfigError, match="so it is"):
        await in_fast_time(10, fails)
