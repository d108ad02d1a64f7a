"""The command line against real brokers: what it prints, how it fails, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from command import Result, environment, in_terminal, run, started

from mqttcollab import Agent, Answer, Request, RequestError, Source
from mqttcollab.broker import Broker
from mqttcollab.cli.reference import reference
from mqttcollab.codec import CBOR, encode
from mqttcollab.messages import Embedding
from mqttcollab.schema import schemas
from mqttcollab.transport.base import TransportMessage

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"
NOBODY = "mqtt://127.0.0.1:1"


@pytest.fixture
def broker(mosquitto: Broker) -> str:
    return mosquitto.info.url


@contextlib.asynccontextmanager
async def sage(broker: str) -> AsyncIterator[Agent]:
    """An agent with two services: one tells, one refuses."""
    agent = Agent("sage-1", place="on a very high mountain in the north")

    @agent.service("knowledge.gpt/weather/lore", description="Weather lore", examples=["Will it rain?"])
    async def lore(request: Request) -> AsyncIterator[str | Answer]:
        words = f"You asked [{request.text}]. \x1b[31mRed sky at night."
        for word in words.split(" "):
            yield word + " "
        yield Answer(text=words, confidence=0.25, sources=[Source(document="an old book")])

    @agent.service("knowledge.gpt/nothing", description="Nothing")
    async def nothing(request: Request) -> str:
        raise RequestError("no_capability", "the sage is silent")

    async with agent.running(broker):
        yield agent


def tell(topic: str, payload: bytes | str) -> TransportMessage:
    return TransportMessage(topic, payload if isinstance(payload, bytes) else payload.encode(), retain=True)


# Errors: one line that says what to do


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("agents", "can't be reached: Connection refused; start one with `mqttcollab broker`, or name another"),
        ("ask hello", "can't be reached"),
        ("sub", "can't be reached"),
        ("agents -b http://example.com", "expected mqtt://, mqtts://, ws:// or wss://"),
        ("sub a/#/b", "'a/#/b' is no MQTT filter: # stands alone in the last level"),
        ("sub a+", "'a+' is no MQTT filter: + stands alone in its level"),
        ("ask hello --service data.gpt/Weather", "does not parse"),
        ("ask hello --agent Sage", "is not a DNS label"),
        ("orchestrator --embedder none", "use wordllama"),
        ("orchestrator --name X", "is not a DNS label"),
        ("schema nothing", "known: mqttcollab.request.v1"),
        ("agent nothing.toml", "No such file"),
        ("agent .", "is a folder"),
        ("demo --fleet nothing.toml", "no fleet at nothing.toml"),
        ("broker --config nothing.conf", "nothing.conf does not exist"),
    ],
)
async def test_an_error_is_one_line_that_says_what_to_do(words: str, said: str) -> None:
    line = (await run(*words.split(), broker=NOBODY)).error
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask", " "], "the question is empty"),
        (["ask", b"\xff".decode("utf-8", "surrogateescape")], "the question is not valid UTF-8"),
        (["demo", "--ask", ""], "the question is empty"),
        (["broker", "--port", "70000"], "--port"),
        (["dance"], "No such command"),
    ],
)
async def test_a_command_that_does_not_parse_has_an_exit_code_of_its_own(words: list[str], said: str) -> None:
    result = await run(*words, broker=NOBODY)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("package", ["typer", "rich"])
async def test_without_its_extra_it_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from mqttcollab.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, env=environment(None)
    )
    _, err = await process.communicate()
    expected = f"error: the command line needs {package}: pip install 'mqttcollab[cli]'\n"
    assert (process.returncode, err.decode()) == (1, expected)


async def test_a_refused_password_is_one_line(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    config = f"allow_anonymous false\npassword_file {passwords}"
    async with Broker("mosquitto", extra_config=config) as closed:
        url = closed.info.url.replace("//", "//watch-7:wrong@")
        line = (await run("agents", "-b", url)).error
    assert "refuses 'watch-7-" in line
    assert "mqtt://user:password@host" in line
    assert "wrong" not in line


def test_the_reference_in_the_docs_is_the_programs_own() -> None:
    assert DOCS.read_text(encoding="utf-8") == reference()


# agents


async def test_agents_says_who_is_there(broker: str) -> None:
    assert (await run("agents", broker=broker)).out == "No agent is online.\n"
    async with sage(broker):
        rows = [line.split("\t") for line in (await run("agents", broker=broker)).out.splitlines()]
        (described,) = json.loads((await run("agents", "--json", broker=broker)).out)
    assert [row[:3] for row in rows] == [
        ["@sage-1", "online", "knowledge.gpt/nothing"],
        ["@sage-1", "online", "knowledge.gpt/weather/lore"],
    ]
    assert (described["agent"], described["status"]) == ("sage-1", "online")
    assert {service["service"] for service in described["services"]} == {row[2] for row in rows}


async def test_agents_says_what_is_wrong(broker: str) -> None:
    async with sage(broker) as agent, started("agents", "--watch", broker=broker) as command:
        assert (await command.line("@sage-1")).endswith("\t-")
        agent.degrade("disk", "the disk\x1b[2J is full")
        while " degraded " not in (line := await command.line("")):
            pass
        assert line.endswith("@sage-1 degraded the disk [2J is full")
        rows = [line.split("\t") for line in (await run("agents", broker=broker)).out.splitlines()]
        assert {(row[1], row[-1]) for row in rows} == {("degraded", "the disk [2J is full")}
        (described,) = json.loads((await run("agents", "--json", broker=broker)).out)
        assert (described["status"], described["reason"]) == ("degraded", "the disk [2J is full")
        for columns in (60, 120):
            shown = " ".join(" ".join(await in_terminal(columns, "agents", broker=broker)).split())
            assert "the disk [2J is full" in shown and "degraded" in shown


@pytest.mark.parametrize("columns", [60, 80, 120])
async def test_the_agents_are_readable_in_a_terminal_of_any_width(broker: str, columns: int) -> None:
    async with sage(broker):
        lines = await in_terminal(columns, "agents", broker=broker)
    assert all(len(line) <= columns for line in lines)
    text = "\n".join(lines)
    for word in ("@sage-1", "online", "knowledge.gpt/weather/lore", "0/2"):
        assert word in text


async def test_agents_names_retained_messages_that_are_not_valid(broker: str) -> None:
    async with sage(broker) as agent:
        for number in range(12):
            await agent.transport.publish(tell(f"slm/agents/@bad-{number}/status", "\x1b[2Jbogus"))
        result = await run("agents", broker=broker)
    assert result.code == 0
    first, *rest = result.err.splitlines()
    assert first.startswith("not valid: slm/agents/@bad-0/status: status ")
    assert (len(rest), rest[-1]) == (10, "… and 2 more that are not valid")
    assert "\x1b" not in result.err


async def test_agents_watches_what_changes_until_it_is_interrupted(broker: str) -> None:
    async with started("agents", "--watch", "--json", broker=broker) as command:
        assert await command.line("[") == "[]"
        async with sage(broker):
            assert json.loads(await command.line("{"))["kind"] == "online"
        while json.loads(await command.line("{"))["kind"] != "offline":
            pass
        command.signal(signal.SIGINT)
        result = await command.result()
    assert (result.code, result.err) == (-signal.SIGINT, "")


# ask


async def test_ask_shows_the_text_as_it_comes_and_once(broker: str) -> None:
    async with sage(broker):
        result = await run("ask", "Will it [bold]rain?", "--service", "knowledge.gpt/weather/#", broker=broker)
    assert result == Result(
        0,
        "You asked [Will it [bold]rain?]. \\x1b[31mRed sky at night. \n"
        "  source: @sage-1 knowledge.gpt/weather/lore: an old book\n"
        "  confidence: 0.25\n",
        "",
    )


async def test_ask_prints_the_reply_as_json(broker: str) -> None:
    async with sage(broker):
        words = ("ask", "Rain?", "--service", "knowledge.gpt/weather/lore", "--agent", "@sage-1", "--json")
        reply = json.loads((await run(*words, broker=broker)).out)
    assert reply["output"].startswith("You asked [Rain?]")
    assert (reply["status"], reply["agent"], reply["confidence"]) == ("ok", "sage-1", 0.25)


async def test_ask_sends_the_terms_that_it_is_given(broker: str) -> None:
    agent = Agent("clerk-1")

    @agent.service("knowledge.gpt/terms", description="Says on which terms it was asked")
    async def terms(request: Request) -> str:
        return f"{request.budget_usd} {request.may_leave_edge} {request.tenant} {request.priority}"

    async with agent.running(broker):
        ask = ("ask", "Which terms?", "--agent", "clerk-1")
        assert (await run(*ask, broker=broker)).out == "None True None 4\n"
        given = ("--budget", "0.5", "--on-edge", "--tenant", "alice", "--priority", "9")
        assert (await run(*ask, *given, broker=broker)).out == "0.5 False alice 9\n"
    wrong = (await run(*ask, "--budget", "nan", broker=broker)).error
    assert wrong == "error: --budget is nan; write US dollars, 0 or more"


async def test_ask_needs_the_service_only_of_an_agent_with_several(broker: str) -> None:
    async with sage(broker):
        several = (await run("ask", "Rain?", "--agent", "sage-1", broker=broker)).error
        silent = (await run("ask", "Rain?", "--service", "knowledge.gpt/nothing", broker=broker)).error
        gone = (await run("ask", "Rain?", "--agent", "sage-2", broker=broker)).error
    assert "knowledge.gpt/nothing, knowledge.gpt/weather/lore: choose one with --service" in several
    assert silent == "error: no_capability: the sage is silent"
    assert "`mqttcollab agents` says who" in gone
    hermit = Agent("hermit-1")

    @hermit.service("knowledge.gpt/silence", description="Silence")
    async def silence(request: Request) -> str:
        return "…"

    async with hermit.running(broker):
        assert (await run("ask", "Rain?", "--agent", "hermit-1", broker=broker)).out == "…\n"


async def test_ask_without_an_orchestrator_says_how_to_start_one(broker: str) -> None:
    line = (await run("ask", "Will it rain?", broker=broker)).error
    assert line.startswith("error: no_capability: no orchestrator is online at mqtt://127.0.0.1:")
    assert "`mqttcollab orchestrator`" in line


async def test_a_terminal_without_unicode_gets_the_answer_all_the_same(broker: str) -> None:
    async with sage(broker):
        words = ("ask", "Höhe?", "--service", "knowledge.gpt/weather/lore")
        result = await run(*words, broker=broker, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("You asked [H?he?].")


async def test_ask_that_is_interrupted_cancels_its_request(broker: str) -> None:
    agent, heard, cancelled = Agent("slow-1"), asyncio.Event(), asyncio.Event()

    @agent.service("knowledge.gpt/slow", description="Takes its time")
    async def slow(request: Request) -> str:
        heard.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    async with agent.running(broker):
        async with started("ask", "Now?", "--service", "knowledge.gpt/slow", broker=broker) as command:
            await heard.wait()
            command.signal(signal.SIGINT)
            result = await command.result()
        await cancelled.wait()
    assert result == Result(130, "", "")


# sub


async def test_sub_decodes_what_programs_send(broker: str) -> None:
    vector = [0.6, 0.8, *[0.0] * 254]
    embedding = Embedding(agent="cam-5", service="data.gpt/vision", model="m", vector=vector, time_ms=1)
    messages = [
        tell("t/json", '{"a": 1, "b": {"c": null}}'),
        tell("t/cbor", encode(embedding, CBOR, vectors="int8")),
        tell("t/text", "two\nlines \x1b[2J[bold]"),
        tell("t/bytes", b"\xff\xfe"),
        tell("t/nan", '{"a": NaN}'),
    ]
    async with Agent("writer").running(broker) as writer:
        for message in messages:
            await writer.transport.publish(message)
    words = ("sub", "t/#", "t/+", "-C", str(len(messages)))  # filters that overlap
    lines = dict(line.split(" ", 1) for line in sorted((await run(*words, broker=broker)).out.splitlines()))
    said = {
        line["topic"]: line for line in map(json.loads, (await run(*words, "--json", broker=broker)).out.splitlines())
    }
    assert lines["t/json"] == '(retained) a=1  b={"c": null}'
    assert "vector=[0.598, 0.800, 0.000, 0.000, … 256 dimensions, norm 0.999]" in lines["t/cbor"]
    assert lines["t/text"] == r"(retained) two\nlines \x1b[2J[bold]"
    assert lines["t/bytes"] == "(retained) 2 bytes: ff fe"
    assert said["t/cbor"]["payload"]["vector"] == pytest.approx(vector, abs=0.01)
    assert said["t/nan"] == {"topic": "t/nan", "retain": True, "qos": 1, "payload": {"a": None}}


async def test_sub_leaves_out_what_was_retained_and_ends_after_a_while(broker: str) -> None:
    async with Agent("writer").running(broker) as writer:
        await writer.transport.publish(tell("t/old", "old"))
        result = await run("sub", "t/#", "--no-retained", "-W", "0.3", broker=broker)
    assert result == Result(0, "", "")


async def test_sub_says_how_many_messages_it_dropped(broker: str) -> None:
    """Nobody reads its output while more come than it keeps; then it goes on."""
    async with (
        started("sub", "flood/#", "-C", "10001", broker=broker) as command,
        Agent("writer").running(broker) as writer,
    ):
        ready = asyncio.create_task(command.line("flood/ready"))
        while not ready.done():
            await writer.transport.publish(TransportMessage("flood/ready", b"?"))
            await asyncio.wait([ready], timeout=0.05)
        for number in range(25_000):
            await writer.transport.publish(TransportMessage("flood/water", b"%0200d" % number, qos=0), bulk=True)
        await asyncio.sleep(0.5)
        result = await command.result()
    assert result.code == 0
    assert len(result.out.splitlines()) == 10_001
    dropped, _, rest = result.err.partition(" messages were dropped")
    assert 0 < int(dropped) < 25_000
    assert rest.startswith(" so far")


async def test_a_reader_that_has_gone_ends_it_without_a_word(broker: str) -> None:
    pipeline = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m mqttcollab sub 't/#' | head -n 1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(broker),
    )
    written = asyncio.create_task(pipeline.communicate())
    async with Agent("writer").running(broker) as writer:
        while not written.done():
            await writer.transport.publish(TransportMessage("t/x", b"?"))
            await asyncio.wait([written], timeout=0.02)
    assert written.result() == (b"t/x ?\n", b"")


# broker, schema


@pytest.mark.parametrize("kind", ["mosquitto", "nats"])
async def test_the_broker_runs_until_it_is_stopped_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    async with started("broker", "--kind", kind, "--port", "0", "--json", TMPDIR=str(tmp_path)) as command:
        info = json.loads(await command.line("{"))
        assert info["kind"] == kind
        taken = (await run("broker", "--port", str(info["port"]))).error
        assert f"port {info['port']} is in use" in taken
        assert (await run("agents", broker=info["url"])).out == "No agent is online.\n"
        command.signal(signal.SIGTERM)
        result = await command.result()
    assert (result.code, result.err) == (0, "")
    assert list(tmp_path.iterdir()) == []


async def test_a_broker_that_dies_is_named(tmp_path: Path) -> None:
    async with started("broker", "--port", "0", "--json", TMPDIR=str(tmp_path)) as command:
        info = json.loads(await command.line("{"))
        os.kill(info["pid"], signal.SIGKILL)
        result = await command.result()
    assert result.code == 1
    assert f"(process {info['pid']}) was ended by SIGKILL" in result.err
    assert list(tmp_path.iterdir()) == []


async def test_schema_prints_and_writes_every_type(tmp_path: Path) -> None:
    assert json.loads((await run("schema")).out) == schemas()
    assert json.loads((await run("schema", "reply")).out) == schemas()["mqttcollab.reply.v1"]
    assert (await run("schema", "--out", str(tmp_path / "new"))).code == 0
    written = {path.name.removesuffix(".schema.json"): json.loads(path.read_text()) for path in tmp_path.glob("new/*")}
    assert written == schemas()
