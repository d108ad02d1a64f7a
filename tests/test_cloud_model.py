"""The cloud's agent in front of a real OpenAI-compatible server: llama_cpp.server with SmolLM2-135M."""

from __future__ import annotations

from pathlib import Path

import pytest
from endpoints import SERVICE, settings
from fleet import Watcher, together
from harness import set_up
from test_runtimes_model import KEY, pytestmark, server

from mqttcollab import ContextItem, Parameters, RequestError
from mqttcollab.cloud import cloud_agent
from mqttcollab.cloud.prices import Price

assert pytestmark and server  # a mark and a fixture

MODEL = "smollm2"
PRICE = {"prompt_usd_per_mtok": 30.0, "completion_usd_per_mtok": 60.0}
METRICS = f"slm/metrics/{MODEL}"


async def test_a_real_server_answers_within_its_price(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_KEY_7", KEY)
    endpoint = {"model": MODEL, "base_url": server, "api_key_env": "CLOUD_KEY_7"}
    given = settings(tmp_path, server, endpoint=endpoint, prices={MODEL: PRICE}, max_tokens=40)
    async with set_up("mosquitto-5") as place, together(place, cloud_agent(given)) as asker:
        watcher = await Watcher().watch(asker.transport, f"{METRICS}/#")
        fact = ContextItem(text="The user's mail is jane@example.org.")
        reply = await asker.ask("What is 17 + 25?", service=SERVICE, agent="cloud-1", context=[fact], tenant="alice")
        assert reply.output and reply.usage is not None
        assert 20 < reply.usage.prompt_tokens < 200 and 0 < reply.usage.completion_tokens <= 40
        cost = Price(30.0, 60.0).nano(reply.usage.prompt_tokens, reply.usage.completion_tokens)
        assert reply.usage.cost_usd == cost / 1e9
        with pytest.raises(RequestError) as refused:
            await asker.ask("hello " * 600, service=SERVICE, agent="cloud-1", parameters=Parameters(max_tokens=4))
        assert refused.value.code == "too_large"
        with pytest.raises(RequestError) as refused:
            await asker.ask("Hi", service=SERVICE, agent="cloud-1", may_leave_edge=False)
        assert refused.value.code == "unauthorized"

        def number(key: str) -> float:
            return float(watcher.last.get(f"{METRICS}/{key}", b"-1"))

        def told() -> bool:
            return (number("calls_total"), number("errors_total"), number("redactions_total")) == (2, 1, 1)

        await watcher.until(lambda: told() and number("tenants/alice/cost_usd_today") > 0)
    assert number("cost_usd_total") == number("tenants/alice/cost_usd_today") == cost / 1e9
    assert number("tokens_used_total") == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert number("inference_time_avg") > 0


async def test_a_wrong_key_is_said_so_and_costs_nothing(server: str, tmp_path: Path) -> None:
    given = settings(tmp_path, server, endpoint={"model": MODEL, "base_url": server}, prices={MODEL: PRICE})
    async with set_up("mosquitto-5") as place, together(place, cloud_agent(given)) as asker:
        with pytest.raises(RequestError, match=r"refused \(401\)") as refused:
            await asker.ask("What is 17 + 25?", service=SERVICE, agent="cloud-1")
    assert refused.value.code == "unauthorized"
