"""`mqttcollab health`: exit codes and lines, over a real broker."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import pytest
from command import in_terminal, run
from fleet import Watcher, client, echo_agent
from harness import Cable

from mqttcollab import Agent
from mqttcollab.broker import Broker
from mqttcollab.cli.health import check_health
from mqttcollab.messages import Load
from mqttcollab.presence import typed
from mqttcollab.topics import Status
from mqttcollab.transport.base import TransportMessage


@pytest.fixture
async def me(mosquitto: Broker) -> AsyncIterator[Agent]:
    async with client().running(mosquitto.info.url) as me:
        yield me


async def pretend(me: Agent, name: str, state: str, reason: str = "", **load: float) -> None:
    """What an agent of any make would have said."""
    status = Status(state, 7, reason).payload  # type: ignore[arg-type]
    await me.transport.publish(TransportMessage(f"slm/agents/@{name}/status", status, retain=True))
    if load:
        report = Load(agent=name, **load)  # type: ignore[arg-type]
        await me.transport.publish(typed(f"slm/agents/@{name}/load", report, retain=True, qos=0))


async def health(
    capsys: pytest.CaptureFixture[str], url: str, agent: str | None = None, max_age_s: float | None = None
) -> tuple[int, str]:
    """The exit code and what is printed, without a process."""
    code = await check_health(agent, url, max_age_s, as_json=False)
    return code, capsys.readouterr().out


def now_ms(seconds_ago: float = 0.0) -> int:
    return int((time.time() - seconds_ago) * 1000)


async def test_an_agent_is_healthy_degraded_and_gone(mosquitto: Broker, me: Agent) -> None:
    url, agent = mosquitto.info.url, echo_agent()
    watcher = await Watcher().watch(me.transport, "slm/agents/@echo-1/status")
    async with agent.running(url):
        result = await run("health", "@echo-1", broker=url)
        assert (result.code, result.out, result.err) == (0, "@echo-1\thealthy\n", "")
        agent.degrade("disk", "the disk is\x1b[2J full")
        await watcher.until(lambda: watcher.last["slm/agents/@echo-1/status"].startswith(b"degraded"))
        result = await run("health", "echo-1", broker=url)
        assert (result.code, result.out, result.err) == (1, "@echo-1\tdegraded\tthe disk is [2J full\n", "")
        (found,) = json.loads((await run("health", "--json", broker=url)).out)
        assert (found["agent"], found["health"], found["status"]) == ("echo-1", "degraded", "degraded")
        assert (found["reason"], found["epoch"]) == ("the disk is [2J full", agent.presence.epoch)
        assert found["age_s"] >= 0
    result = await run("health", "echo-1", broker=url)
    assert (result.code, result.out) == (2, "@echo-1\tgone\tit is offline\n")


async def test_one_that_nobody_knows_is_not_there(mosquitto: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    url = mosquitto.info.url
    assert await health(capsys, url, "nobody") == (2, "@nobody\tgone\tit has no status at this broker\n")
    assert await health(capsys, url) == (2, "No agent is there.\n")


async def test_without_a_name_it_is_the_worst_of_all(
    mosquitto: Broker, me: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    url = mosquitto.info.url
    await pretend(me, "a", "online")
    await pretend(me, "b", "sleeping", heartbeat_s=1, time_ms=now_ms(9999))  # asleep: no lease
    await pretend(me, "c", "online", heartbeat_s=10, time_ms=now_ms(5))
    code, out = await health(capsys, url)
    assert (code, out) == (0, "@a\thealthy\n@b\thealthy\n@c\thealthy\n")
    await pretend(me, "d", "degraded", "hot", heartbeat_s=10, time_ms=now_ms())
    code, out = await health(capsys, url)
    assert (code, out.splitlines()[-1]) == (1, "@d\tdegraded\thot")
    await pretend(me, "e", "offline")
    assert (await health(capsys, url))[0] == 2
    lines = await in_terminal(60, "health", broker=url)
    assert "@d  degraded  hot" in [line.rstrip() for line in lines]


async def test_a_lease_that_has_run_out(mosquitto: Broker, me: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    url = mosquitto.info.url
    await pretend(me, "a", "online", heartbeat_s=0.5, time_ms=now_ms(100))
    code, out = await health(capsys, url, "a")
    assert code == 2
    assert out.startswith("@a\tgone\tits last report is 10")
    assert out.endswith(" s old; at most 1.5 s are allowed\n")
    assert (await health(capsys, url, "a", 3600))[0] == 0
    await pretend(me, "b", "online")
    assert (await health(capsys, url, "b"))[0] == 0  # it has promised nothing
    code, out = await health(capsys, url, "b", 5)
    assert (code, out.split("\t")[2]) == (2, "it has never sent a load report; at most 5 s are allowed\n")


async def test_an_agent_with_a_wrong_clock_is_listened_to(
    mosquitto: Broker, me: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    teller = client("teller")

    @teller.every(0.3)
    async def beat() -> None:
        await pretend(me, "a", "online", heartbeat_s=1, time_ms=now_ms(100_000))

    async with teller.running(mosquitto.info.url):
        assert (await health(capsys, mosquitto.info.url, "a"))[0] == 0


async def test_what_is_not_valid_is_passed_over(
    mosquitto: Broker, me: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    await pretend(me, "a", "online", heartbeat_s=10, time_ms=now_ms())
    for topic, payload in (("@a/load", b"{"), ("@b/status", b"what 1"), ("@C/status", b"online 1"), ("@b/load", b"")):
        await me.transport.publish(TransportMessage(f"slm/agents/{topic}", payload, retain=True))
    code, out = await health(capsys, mosquitto.info.url)
    assert (code, out) == (0, "@a\thealthy\n")


async def test_a_broker_that_can_not_be_asked(mosquitto: Broker) -> None:
    async with Cable(mosquitto.info) as cable:
        await cable.pull()
        result = await run("health", broker=cable.url())
    assert (result.code, result.out) == (3, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and "can't be reached" in line
    result = await run("health", "No Name", broker=mosquitto.info.url)
    assert (result.code, result.out) == (3, "") and "is not a DNS label" in result.err
