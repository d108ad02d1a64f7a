"""The agent in front of a cloud, with real HTTP endpoints that answer, refuse, talk nonsense or hang."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import DROP, HANG, MODEL, SERVICE, Endpoint, completion, endpoint, http, refusal, settings
from fleet import on, together

from mqttcollab import Agent, ConfigError, ContextItem, Parameters, Reply, RequestError
from mqttcollab.cloud import cloud_agent
from mqttcollab.cloud.ledger import Ledger, Totals
from mqttcollab.cloud.prices import Price
from mqttcollab.transport.memory import MemoryBroker

pytest.importorskip("openai", reason="the openai package is not installed")

# What a call for QUESTION may take at most: a token per byte, 16 per message, and 100 to write.
QUESTION = "What is the capital of Italy?"
WORST = Price(1.0, 2.0).worst(["Be brief.", QUESTION], 100).nano


class Cloud:
    """A cloud's agent, its endpoint, and somebody who asks."""

    def __init__(self, asker: Agent, agent: Agent, endpoint: Endpoint) -> None:
        self.asker, self.agent, self.endpoint = asker, agent, endpoint

    async def ask(self, question: str = QUESTION, **fields: Any) -> Reply:
        return await self.asker.ask(question, service=SERVICE, agent="cloud-1", **fields)

    async def refused(self, question: str = QUESTION, **fields: Any) -> RequestError:
        with pytest.raises(RequestError) as refused:
            await self.ask(question, **fields)
        assert "\n" not in refused.value.message
        return refused.value

    @property
    def calls(self) -> int:
        return len(self.endpoint.requests)


@pytest.fixture
async def server() -> AsyncIterator[Endpoint]:
    async with endpoint() as made:
        yield made


@contextlib.asynccontextmanager
async def running(folder: Path, server: Endpoint, **tables: Any) -> AsyncIterator[Cloud]:
    agent = cloud_agent(settings(folder, server.url, **tables))
    async with together(MemoryBroker(), agent) as asker:
        yield Cloud(asker, agent, server)


@pytest.fixture
async def cloud(tmp_path: Path, server: Endpoint) -> AsyncIterator[Cloud]:
    async with running(tmp_path, server) as made:
        yield made


async def totals(folder: Path) -> Totals:
    ledger = await Ledger.open(folder / "cloud.sqlite")
    try:
        return await ledger.totals(MODEL)
    finally:
        await ledger.close()


# Asking


async def test_an_answer_has_its_tokens_and_its_cost(cloud: Cloud) -> None:
    facts = [ContextItem(text="It rains in Rome.")]
    reply = await cloud.ask(context=facts, parameters=Parameters(max_tokens=20, stop=["."]))
    assert (reply.output, reply.confidence, reply.data) == ("Rome.", None, None)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.cost_usd) == (10, 5, 0.00002)
    assert reply.sources[0].document == "written by big-1, a model in the cloud; it may be wrong"
    (sent,) = cloud.endpoint.requests
    system, user = sent["messages"]
    assert system["content"].startswith("Be brief.\nUse these facts")
    assert system["content"].endswith("\n- It rains in Rome.")
    assert (user["content"], sent["max_tokens"], sent["stop"]) == (QUESTION, 20, ["."])


async def test_its_record_says_that_it_leaves_the_edge_and_what_it_costs(cloud: Cloud) -> None:
    record = cloud.agent.record(SERVICE)
    assert (record.leaves_edge, record.model) == (True, MODEL)
    assert (record.prompt_usd_per_mtok, record.completion_usd_per_mtok) == (1.0, 2.0)


async def test_what_may_not_leave_never_reaches_the_endpoint(cloud: Cloud) -> None:
    error = await cloud.refused(may_leave_edge=False)
    assert error.code == "unauthorized"
    assert "may not leave the edge (may_leave_edge: false)" in error.message
    assert cloud.calls == 0
    await cloud.ask()
    assert cloud.calls == 1


async def test_a_request_for_a_longer_answer_gets_no_more_than_the_settings_allow(cloud: Cloud) -> None:
    await cloud.ask(parameters=Parameters(max_tokens=5000))
    assert cloud.endpoint.requests[0]["max_tokens"] == 100


async def test_an_empty_question_is_not_sent(cloud: Cloud) -> None:
    assert (await cloud.refused("  ")).code == "bad_request"
    assert cloud.calls == 0


async def test_a_stream_is_answered_as_a_whole(cloud: Cloud) -> None:
    parts: list[Reply] = []
    reply = await cloud.ask(on_part=parts.append)
    assert (reply.output, reply.usage is not None) == ("Rome.", True)


# Redaction


async def test_nothing_personal_leaves_and_the_answer_has_it_again(cloud: Cloud) -> None:
    cloud.endpoint.replies = [completion("Wrote to [EMAIL-1], called [PHONE-1]; [EMAIL-7] is nobody.")]
    facts = [ContextItem(text="Her mail is jane@example.org, her host 192.168.1.17")]
    question = "Write to jane@example.org or call +49 171 1234567"
    reply = await cloud.ask(question, context=facts, parameters=Parameters(stop=["jane@example.org"]))
    assert reply.output == "Wrote to jane@example.org, called +49 171 1234567; [EMAIL-7] is nobody."
    for secret in ("jane@example.org", "1234567", "192.168.1.17"):
        assert secret not in cloud.endpoint.prompts
    assert cloud.endpoint.requests[0]["messages"][1]["content"] == "Write to [EMAIL-1] or call [PHONE-1]"
    assert cloud.endpoint.requests[0]["stop"] == ["[EMAIL-1]"]


async def test_what_was_taken_out_stays_out_where_that_is_wished(
    tmp_path: Path, server: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="mqttcollab")
    server.replies = [refusal(500), completion("It is [BADGE-1].")]
    redaction = {"restore": False, "patterns": {"BADGE": r"B-\d+"}, "words": ["zebra"]}
    async with running(tmp_path, server, redaction=redaction) as cloud:
        reply = await cloud.ask("Whose badge is B-12345, Zebra?")
    assert reply.output == "It is [BADGE-1]."
    assert "B-12345" not in server.prompts + caplog.text
    assert (await totals(tmp_path)).redactions == 2  # once, though it was sent twice


# Limits


async def test_a_day_s_limit_holds_after_a_restart(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [completion(usage=(10, 100))]
    limits = {"usd_per_day": (WORST + 210_000) / 1e9}
    async with running(tmp_path, server, limits=limits) as cloud:
        await cloud.ask()
        await cloud.ask()
        assert (await cloud.refused()).code == "quota_exceeded"
    async with running(tmp_path, server, limits=limits) as cloud:
        error = await cloud.refused()
    assert error.code == "quota_exceeded"
    assert "0.00042 are spent or reserved" in error.message
    assert error.retry_after_ms is not None and 0 < error.retry_after_ms <= 24 * 3600 * 1000
    assert cloud.calls == 2


async def test_tenants_have_limits_of_their_own(tmp_path: Path, server: Endpoint) -> None:
    tenants = {"default": WORST / 1e9, "alice": 2 * WORST / 1e9, "eve": 0.0}
    async with running(tmp_path, server, limits={"usd_per_day": 1.0, "tenants": tenants}) as cloud:
        for tenant in ("alice", "alice", "bob"):
            await cloud.ask(tenant=tenant)
        for tenant in ("bob", "eve"):
            error = await cloud.refused(tenant=tenant)
            assert error.code == "quota_exceeded" and f"tenant '{tenant}'" in error.message
        assert (await cloud.refused(tenant="x" * 257)).code == "bad_request"
    assert cloud.calls == 3


async def test_a_request_s_own_budget(cloud: Cloud) -> None:
    for budget in (0.0, WORST / 1e9 - 1e-9):
        error = await cloud.refused(budget_usd=budget)
        assert (error.code, error.retry_after_ms) == ("quota_exceeded", None)
        assert "nothing was sent" in error.message
    assert cloud.calls == 0
    await cloud.ask(budget_usd=WORST / 1e9)


@pytest.mark.parametrize("price", [{"free": True}, {"prompt_usd_per_mtok": 1.0, "completion_usd_per_mtok": 2.0}])
async def test_a_limit_of_zero_sends_nothing_ever(tmp_path: Path, server: Endpoint, price: dict[str, Any]) -> None:
    async with running(tmp_path, server, limits={"usd_per_day": 0}, prices={MODEL: price}) as cloud:
        assert (await cloud.refused()).code == "quota_exceeded"
    assert cloud.calls == 0


async def test_many_at_once_do_not_overspend(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [completion(usage=(60, 100))]
    async with running(tmp_path, server, limits={"usd_per_day": 3 * WORST / 1e9}, concurrency=20) as cloud:
        replies = await asyncio.gather(*(cloud.ask() for _ in range(20)), return_exceptions=True)
    answered = [reply for reply in replies if isinstance(reply, Reply)]
    assert 1 <= len(answered) == cloud.calls
    assert all(isinstance(r, Reply) or (isinstance(r, RequestError) and r.code == "quota_exceeded") for r in replies)
    assert (await totals(tmp_path)).nano == len(answered) * 260_000 <= 3 * WORST


# What an endpoint can do wrong: one clear error, and the money right


HTML = http("200 OK", "<html>hello</html>", kind="text/html")
NO_CHOICES = http("200 OK", '{"id": "1"}')
EMPTY_CHOICES = http("200 OK", '{"choices": []}')
ODD_CHOICES = http("200 OK", '{"choices": [{"message": null}]}')
PAID_NONSENSE = http("200 OK", '{"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}')
NO_JSON = http("200 OK", '{"choices": [')


@pytest.mark.parametrize(
    ("reply", "tries", "code", "said", "nano"),
    [
        (HTML, 1, "internal", "does not answer like an OpenAI endpoint", 0),
        (NO_CHOICES, 1, "internal", "does not answer like an OpenAI endpoint", 0),
        (EMPTY_CHOICES, 1, "internal", "does not answer like an OpenAI endpoint", 0),
        (ODD_CHOICES, 1, "internal", "does not answer like an OpenAI endpoint", 0),
        (PAID_NONSENSE, 1, "internal", "does not answer like an OpenAI endpoint", 20_000),
        (NO_JSON, 1, "internal", "failed: ", 0),
        (completion("", None), 1, "internal", "answered with nothing (it says: stop)", 0),
        (completion(None, (10, 100), "length"), 1, "internal", "answered with nothing (it says: length)", 210_000),
        (refusal(500), 3, "internal", "refused (500): not now (tried 3 times)", 0),
        (refusal(503, "retry-after-ms: 1"), 3, "busy", "refused (503): not now (tried 3 times)", 0),
        (refusal(429), 3, "busy", "refused (429): not now (tried 3 times)", 0),
        (refusal(429, "retry-after: 3600"), 1, "busy", "refused (429): not now (tried once)", 0),
        (http("429 No", '{"error": {"code": "insufficient_quota"}}'), 1, "quota_exceeded", "refused (429)", 0),
        (refusal(400), 1, "bad_request", "refused (400): not now", 0),
        (refusal(401), 1, "unauthorized", "refused (401): not now", 0),
        (refusal(403), 1, "unauthorized", "refused (403): not now", 0),
        (refusal(404), 1, "bad_request", "refused (404): not now", 0),
        (refusal(413), 1, "too_large", "refused (413): not now", 0),
        (refusal(422), 1, "bad_request", "refused (422): not now", 0),
        (DROP, 3, "internal", "can't reach http://127.0.0.1", 3 * WORST),
    ],
)
async def test_no_answer_is_one_error_and_the_right_charge(
    tmp_path: Path, server: Endpoint, reply: bytes, tries: int, code: str, said: str, nano: int
) -> None:
    server.replies = [reply]
    async with running(tmp_path, server) as cloud:
        error = await cloud.refused()
    assert (error.code, cloud.calls) == (code, tries)
    assert said in error.message
    sums = await totals(tmp_path)
    assert (sums.nano, sums.calls, sums.errors) == (nano, tries, tries)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -10, "completion_tokens": 5},
        {"prompt_tokens": 10, "completion_tokens": float("nan")},
        {"prompt_tokens": "ten", "completion_tokens": "five"},
        {"prompt_tokens": 10**12, "completion_tokens": 5},
        {"prompt_tokens": 10, "completion_tokens": 0},
        "nothing",
    ],
)
async def test_without_a_usage_that_can_be_the_worst_case_is_charged_and_said_so(
    tmp_path: Path, server: Endpoint, usage: Any
) -> None:
    server.replies = [completion(usage=usage)]
    async with running(tmp_path, server) as cloud:
        reply = await cloud.ask()
    assert (reply.output, reply.data) == ("Rome.", {"cost_estimated": True})
    assert reply.usage is not None and reply.usage.cost_usd == WORST / 1e9
    sums = await totals(tmp_path)
    assert (sums.nano, sums.tokens, sums.errors) == (WORST, 0, 0)


async def test_an_answer_that_was_cut_off_says_so(cloud: Cloud) -> None:
    cloud.endpoint.replies = [completion("Once upon a", finish="length")]
    assert (await cloud.ask()).data == {"truncated": True}


async def test_an_endpoint_that_is_not_there_costs_nothing(tmp_path: Path) -> None:
    async with endpoint() as gone:
        pass
    async with running(tmp_path, gone) as cloud:
        error = await cloud.refused()
    assert error.code == "internal"
    assert "is the server running? (tried 3 times)" in error.message
    assert (await totals(tmp_path)).nano == 0


async def test_it_tries_again_after_429_and_500_and_pays_once(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [refusal(429, "retry-after-ms: 5"), refusal(502), completion()]
    async with running(tmp_path, server) as cloud:
        reply = await cloud.ask()
    assert reply.usage is not None and reply.usage.cost_usd == 0.00002
    sums = await totals(tmp_path)
    assert (cloud.calls, sums.nano, sums.calls, sums.errors) == (3, 20_000, 3, 2)


async def test_what_retries_take_is_within_the_budget(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [DROP, completion()]
    async with running(tmp_path, server) as cloud:
        error = await cloud.refused(budget_usd=1.5 * WORST / 1e9)
        assert error.code == "quota_exceeded" and "are spent on it" in error.message
        server.replies = [DROP, completion()]
        reply = await cloud.ask(budget_usd=2 * WORST / 1e9)
    assert reply.usage is not None and reply.usage.cost_usd == (WORST + 20_000) / 1e9


async def test_a_wish_past_the_deadline_is_told_at_once(cloud: Cloud) -> None:
    cloud.endpoint.replies = [refusal(429, "retry-after: 3600")]
    error = await cloud.refused(ttl_s=30)
    assert (error.code, error.retry_after_ms, cloud.calls) == ("busy", 3_600_000, 1)


async def test_a_silent_endpoint_is_paid_as_if_it_had_answered(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [HANG]
    async with running(tmp_path, server, endpoint={"model": MODEL, "base_url": server.url, "timeout_s": 0.2}) as cloud:
        error = await cloud.refused()
    assert (error.code, cloud.calls) == ("deadline_exceeded", 1)
    assert error.message.endswith("was silent for 0.2 s")
    assert (await totals(tmp_path)).nano == WORST


async def test_the_deadline_of_a_request_ends_the_call_with_an_answer(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [HANG]
    async with running(tmp_path, server) as cloud:
        error = await cloud.refused(ttl_s=0.5)
    assert (error.code, cloud.calls) == ("deadline_exceeded", 1)
    assert "the cloud's endpoint did not answer within the 0." in error.message
    assert (await totals(tmp_path)).nano == WORST


async def test_a_request_that_is_given_up_under_way_has_cost_the_worst_case(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [HANG]
    async with running(tmp_path, server) as cloud:
        asking = asyncio.create_task(cloud.ask())
        await server.came.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        server.replies = [completion()]
        await cloud.ask()
    assert (await totals(tmp_path)).nano == WORST + 20_000


async def test_a_ledger_that_breaks_stops_the_spending(tmp_path: Path, cloud: Cloud) -> None:
    def spoil() -> None:
        with sqlite3.connect(tmp_path / "cloud.sqlite") as db:
            db.execute("ALTER TABLE days RENAME TO gone")
        db.close()

    await cloud.ask()
    await asyncio.to_thread(spoil)
    error = await cloud.refused()
    assert (error.code, cloud.calls) == ("internal", 1)
    assert "the ledger can't be written" in error.message and "nothing was sent" in error.message


# The breaker


def quick(pause_s: float) -> dict[str, Any]:
    return {"breaker": {"failures": 2, "pause_s": pause_s}, "retry": {"tries": 1}}


async def test_an_endpoint_that_fails_again_and_again_is_left_alone(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [refusal(500)]
    async with running(tmp_path, server, **quick(60)) as cloud:
        for _ in range(2):
            assert (await cloud.refused()).code == "internal"
        error = await cloud.refused()
    assert (error.code, cloud.calls) == ("busy", 2)
    assert "failed 2 times in a row" in error.message
    assert error.retry_after_ms is not None and error.retry_after_ms <= 60_000
    assert (await totals(tmp_path)).calls == 2


async def test_after_the_pause_one_call_tries_and_closes_it(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [refusal(500), refusal(500), HANG]
    async with running(tmp_path, server, **quick(0.05), concurrency=3) as cloud:
        for _ in range(2):
            await cloud.refused()
        server.came.clear()
        await asyncio.sleep(0.06)
        trial = asyncio.create_task(cloud.ask())
        await server.came.wait()
        error = await cloud.refused()
        assert error.code == "busy" and "one call tries whether it works again" in error.message
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        server.replies = [completion()]

        async def works() -> bool:
            with contextlib.suppress(RequestError):
                return (await cloud.ask()).output == "Rome."
            return False

        while not await works():  # until the trial's cancel has arrived
            await asyncio.sleep(0.01)
        assert (await cloud.ask()).output == "Rome."


async def test_a_trial_that_is_told_to_wait_opens_it_again(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [refusal(500), refusal(500), refusal(429), completion()]
    async with running(tmp_path, server, **quick(0.6)) as cloud:
        for _ in range(2):
            await cloud.refused()
        await asyncio.sleep(0.65)
        assert "refused (429)" in (await cloud.refused()).message
        assert "failed 3 times in a row" in (await cloud.refused()).message


async def test_silence_opens_it_and_a_short_deadline_does_not(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [HANG, HANG, completion(), HANG]
    async with running(tmp_path, server, **quick(60)) as cloud:
        for _ in range(2):
            assert (await cloud.refused(ttl_s=0.5)).code == "deadline_exceeded"
        assert (await cloud.ask()).output == "Rome."
    slow = {"model": MODEL, "base_url": server.url, "timeout_s": 0.1}
    async with running(tmp_path, server, **quick(60), endpoint=slow) as cloud:
        for _ in range(2):
            assert (await cloud.refused()).code == "deadline_exceeded"
        assert (await cloud.refused()).code == "busy"


async def test_answers_that_a_request_s_own_limit_left_empty_do_not_open_it(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [completion("", (10, 1), "length")]
    async with running(tmp_path, server, **quick(60)) as cloud:
        for _ in range(4):
            assert "answered with nothing" in (await cloud.refused(parameters=Parameters(max_tokens=1))).message
    assert cloud.calls == 4


async def test_refusals_of_one_request_do_not_open_it(tmp_path: Path, server: Endpoint) -> None:
    server.replies = [refusal(400)]
    async with running(tmp_path, server, **quick(60)) as cloud:
        for _ in range(4):
            assert (await cloud.refused()).code == "bad_request"
    assert cloud.calls == 4


async def test_an_agent_without_a_ledger_does_not_start(tmp_path: Path, server: Endpoint) -> None:
    agent = cloud_agent(settings(tmp_path / "no" / "such", server.url))
    with pytest.raises(ConfigError, match="is its folder there and writable"):
        await agent.start(on(MemoryBroker()))
