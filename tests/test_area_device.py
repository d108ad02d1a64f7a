"""The observer of an area, over a real broker, beside the sensors of the demo."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fleet import client, known, on, together
from harness import LIMIT_S, set_up

from devices import HERE
from devices.area import SERVICE
from mqttcollab import Agent, Reply, RequestError
from mqttcollab.broker import Broker
from mqttcollab.transport.memory import MemoryBroker

FLEET = tomllib.loads((HERE / "fleet.toml").read_text())
QUICK = {"interval": 0.06, "seconds_per_hour": 0.06}


def build(device: str, settings: Mapping[str, Any]) -> Agent:
    pytest.importorskip("wordllama")
    agent: Agent = importlib.import_module(FLEET[device]["module"]).build(FLEET[device] | settings)
    return agent


async def ask(asker: Agent, question: str) -> Reply:
    return await asker.ask(question, service=SERVICE, agent="area-1")


async def answer(asker: Agent, question: str, enough: Callable[[list[dict[str, Any]]], bool]) -> Reply:
    """The answer, once enough has come."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(RequestError):  # nothing was heard yet
                reply = await ask(asker, question)
                if enough((reply.data or {})["findings"]):
                    return reply
            await asyncio.sleep(0.1)


async def test_it_answers_from_what_the_sensors_publish_and_says_whose_it_is(mosquitto: Broker) -> None:
    area = await asyncio.to_thread(build, "area", {})
    sensors = [await asyncio.to_thread(build, device, QUICK) for device in ("weather", "roadside")]
    sensors.append(await asyncio.to_thread(build, "camera", {"interval": 0.1, "window_s": 0.1}))
    async with together(mosquitto.info.url, area, *sensors) as asker:
        rising = lambda findings: any(f["name"] == "nox" and "trend" in f for f in findings)  # noqa: E731
        nox = await answer(asker, "Is the NOx rising?", rising)
        assert nox.data is not None
        assert {finding["name"] for finding in nox.data["findings"]} == {"nox", "nox_as_no2"}
        assert "@rsu-12 (beside a motorway): nox " in (nox.output or "")
        (source,) = nox.sources
        assert (source.agent, source.service) == ("rsu-12", "data.gpt/traffic/air-quality")
        assert source.observation and source.text
        air = await ask(asker, "How has the air developed?")
        assert air.data is not None
        assert {finding["agent"] for finding in air.data["findings"]} == {"rsu-12"}
        all_three = lambda findings: len({f["agent"] for f in findings}) == 3  # noqa: E731
        everything = await answer(asker, "Is anything unusual here?", all_three)
        assert "values of 3 agents" in (everything.output or "")
        assert {source.agent for source in everything.sources} == {"rsu-12", "weather-3", "cam-5"}
        pollution = await ask(asker, "Is the street more polluted than usual?")  # named by no value: found by meaning
        assert {source.agent for source in pollution.sources} == {"rsu-12"}


async def test_without_any_sensor_it_has_nothing() -> None:
    area = await asyncio.to_thread(build, "area", {})
    async with set_up("memory") as setup, area.running(on(setup)), client().running(on(setup)) as asker:
        with pytest.raises(RequestError, match=r"Nothing was heard from data\.gpt/#") as error:
            await ask(asker, "Is anything unusual here?")
        assert error.value.code == "no_capability"


async def test_it_can_be_started_again(memory_broker: MemoryBroker) -> None:
    area = await asyncio.to_thread(build, "area", {"embedder": ""})
    async with client("c").running(on(memory_broker)) as sensor, client().running(on(memory_broker)) as asker:
        registry = await asker.follow()
        await sensor.observe("data.gpt/air", values={"nox": 1.0})
        for _ in range(2):
            async with area.running(on(memory_broker)):
                await known(lambda: registry.agents["area-1"].records)
                reply = await ask(asker, "Is anything unusual here?")
                assert "too few readings" in (reply.output or "")
                assert reply.confidence == pytest.approx(0.3)
