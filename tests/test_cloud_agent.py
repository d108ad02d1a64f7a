"""The cloud's agent over a real Mosquitto: what a subscriber sees of the money, and the command."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from command import run, started
from endpoints import MODEL, SERVICE, Endpoint, completion, endpoint, refusal, settings
from fleet import Watcher, together
from harness import Cable, Setup, set_up

from mqttcollab import Agent, AgentOptions, RequestError
from mqttcollab.broker import Broker
from mqttcollab.cloud import cloud_agent
from mqttcollab.messages import ServiceRecord

pytest.importorskip("openai", reason="the openai package is not installed")

METRICS = f"slm/metrics/{MODEL}"
ZERO = {
    "cost_usd_total": "0",
    "cost_usd_today": "0",
    "tokens_used_total": "0",
    "calls_total": "0",
    "errors_total": "0",
    "redactions_total": "0",
    "inference_time_avg": "0.000",
    "breaker": "closed",
}


@pytest.fixture
async def server() -> AsyncIterator[Endpoint]:
    async with endpoint() as made:
        yield made


@pytest.fixture
async def place() -> AsyncIterator[Setup]:
    async with set_up("mosquitto-5") as setup:
        yield setup


def seen(watcher: Watcher) -> dict[str, str]:
    """The metrics of which a subscriber has heard."""
    return {
        topic.removeprefix(f"{METRICS}/"): payload.decode()
        for topic, payload in watcher.last.items()
        if topic.startswith(METRICS)
    }


async def test_a_subscriber_sees_what_is_spent(tmp_path: Path, server: Endpoint, place: Setup) -> None:
    watcher = await Watcher().watch(await place.connected("watcher"), f"{METRICS}/#")
    quick = {"breaker": {"failures": 2, "pause_s": 60}, "retry": {"tries": 1}}
    async with together(place, cloud_agent(settings(tmp_path, server.url, **quick))) as asker:
        await watcher.until(lambda: len(seen(watcher)) == 8)
        assert seen(watcher) == ZERO
        await asker.ask("Mail a@b.de", service=SERVICE, agent="cloud-1", tenant="alice")
        await asker.ask("Hello", service=SERVICE, agent="cloud-1", tenant="no topic/level")
        await watcher.until(lambda: seen(watcher)["calls_total"] == "2")
        await watcher.until(lambda: "tenants/alice/cost_usd_today" in seen(watcher))
        server.replies = [refusal(500)]
        for _ in range(2):
            with pytest.raises(RequestError):
                await asker.ask("Hello", service=SERVICE, agent="cloud-1")
        await watcher.until(lambda: seen(watcher)["breaker"] == "open" and seen(watcher)["errors_total"] == "2")
    values = seen(watcher)
    assert Decimal(values.pop("inference_time_avg")) > 0
    assert values == {
        "cost_usd_total": "0.00004",
        "cost_usd_today": "0.00004",
        "tokens_used_total": "30",
        "calls_total": "4",
        "errors_total": "2",
        "redactions_total": "1",
        "breaker": "open",
        "tenants/alice/cost_usd_today": "0.00002",
    }
    told = [(message.topic, message.payload) for message in watcher.seen]
    for topic in watcher.last:  # what has not changed is not published again
        values_told = [payload for other, payload in told if other == topic]
        assert all(one != next_one for one, next_one in pairwise(values_told))


async def test_totals_go_on_after_a_restart(tmp_path: Path, server: Endpoint, place: Setup) -> None:
    for _ in range(2):
        async with together(place, cloud_agent(settings(tmp_path, server.url))) as asker:
            await asker.ask("Hello", service=SERVICE, agent="cloud-1")
    watcher = await Watcher().watch(await place.connected("watcher"), f"{METRICS}/#")
    await watcher.until(lambda: len(seen(watcher)) == 8)
    assert (seen(watcher)["cost_usd_total"], seen(watcher)["calls_total"]) == ("0.00004", "2")


async def test_a_broker_that_forgot_everything_is_told_again(
    tmp_path: Path, server: Endpoint, mosquitto: Broker
) -> None:
    async with Cable(mosquitto.info) as cable:
        agent = cloud_agent(settings(tmp_path, server.url))
        async with (
            agent.running(cable.url()),
            Agent("asker", options=AgentOptions(visible=False)).running(mosquitto.info.url) as asker,
        ):
            await asker.ask("Hello", service=SERVICE, agent="cloud-1")
            watcher = await Watcher().watch(asker.transport, f"{METRICS}/#")
            await watcher.until(lambda: seen(watcher).get("calls_total") == "1")
            watcher.last.clear()
            cable.cut()
            await watcher.until(lambda: len(seen(watcher)) == 8)
            assert seen(watcher)["calls_total"] == "1"


def test_topics_md_lists_the_metrics() -> None:
    text = (Path(__file__).parent.parent / "topics.md").read_text(encoding="utf-8").partition("\n## 16. The cloud\n")[2]
    keys = re.findall(r"^\| `slm/metrics/<model>/(\S+)` \|", text, re.M)
    assert keys == [*ZERO, "tenants/<tenant>/cost_usd_today"]


# The command

CLOUD = """\
name = "cloud-7"
system = "Be brief."
[endpoint]
model = "big-1"
base_url = "URL"
api_key_env = "CLOUD_KEY_7"
[prices.big-1]
prompt_usd_per_mtok = 1.0
completion_usd_per_mtok = 2.0
[limits]
usd_per_day = 1.0
"""


async def test_the_command_runs_an_agent_and_keeps_its_ledger_beside_the_file(
    tmp_path: Path, server: Endpoint, mosquitto: Broker
) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(CLOUD.replace("URL", server.url))
    async with started("cloud", str(file), broker=mosquitto.info.url, CLOUD_KEY_7="secret") as command:
        asker = Agent("asker", options=AgentOptions(visible=False))
        async with asker.running(mosquitto.info.url):
            watcher = await Watcher().watch(asker.transport, f"{SERVICE}/+")
            topic = f"{SERVICE}/@cloud-7"
            await watcher.until(lambda: topic in watcher.last)
            record = ServiceRecord.model_validate_json(watcher.last[topic])
            assert record.leaves_edge and record.completion_usd_per_mtok == 2.0
            server.replies = [completion("Hello.")]
            reply = await asker.ask("Hi", service=SERVICE, agent="cloud-7")
            assert reply.output == "Hello."
        command.signal(signal.SIGINT)
        result = await command.result()
    assert (result.code, "Traceback" in result.err, "secret" in result.err) == (0, False, False)
    assert (tmp_path / "cloud.sqlite").is_file()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", "api_key_env names CLOUD_KEY_7, which is not set; export it"),
        ("[prices.big-1]", "[prices.big-2]", "prices has none for 'big-1'"),
        ('system = "Be brief."\n', 'ledger = "no/such/folder.sqlite"\n', "is its folder there and writable?"),
        ('system = "Be brief."\n', 'ledger = "cloud.toml"\n', "file is not a database"),
    ],
)
async def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(CLOUD.replace("URL", "http://127.0.0.1:1/v1").replace(old, new))
    keys = {} if not old else {"CLOUD_KEY_7": "secret"}
    assert said in (await run("cloud", str(file), broker="mqtt://127.0.0.1:1", **keys)).error
