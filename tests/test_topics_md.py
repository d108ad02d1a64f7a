"""`topics.md` says what the code does: its tables are compared with it, its examples are run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest

from mqttcollab import Agent, AgentOptions, RequestError
from mqttcollab.broker import Broker
from mqttcollab.cms import registry
from mqttcollab.codec import MAX_PAYLOAD, decode, decode_any
from mqttcollab.errors import ErrorCode
from mqttcollab.messages import (
    MAX_DIMENSION,
    MAX_EXAMPLES,
    MAX_HOPS,
    MAX_INTEGER,
    MAX_NESTING,
    MAX_STEP_TEXT,
    MAX_STEPS,
    MAX_TTL_MS,
    MESSAGE_TYPES,
    Embedding,
    ServiceRecord,
)
from mqttcollab.rpc import answered
from mqttcollab.schema import schemas
from mqttcollab.topics import (
    KEY_RE,
    LABEL_RE,
    MAX_LEVELS,
    ORCHESTRATION,
    SERVICE_RE,
    TEMPLATES,
    matches,
    parse,
    parse_status,
    record_filters,
)
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

TEXT = (Path(__file__).parent.parent / "topics.md").read_text(encoding="utf-8")
LIMIT_S = 20.0


def section(heading: str) -> str:
    """The text from a heading to the next one of its level or above."""
    level = heading.split(" ")[0]
    found = re.search(rf"^{re.escape(heading)}.*?$(.*?)(?=^#{{1,{len(level)}}} |\Z)", TEXT, re.M | re.S)
    assert found, f"topics.md has no section {heading!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """The rows of the first table in a text, without its head."""
    lines = text[text.index("\n|") :].strip().splitlines()
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[2:]


def codes(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def blocks(language: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a language, with the line in which they begin."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S):
        yield TEXT[: found.start()].count("\n") + 1, found[1]


# Topics and names


def test_topic_templates() -> None:
    rows = table(section("## 2. Topics"))
    assert {name: codes(template)[0] for name, template, *_ in rows} == TEMPLATES
    for name, *_, example in rows:
        assert parse(codes(example)[0]).kind == {"model": "slm", "metric": "slm", "inference": "slm"}.get(name, name)


def test_filters_of_records() -> None:
    rows = [[codes(cell)[0] for cell in row[1:]] for row in table(section("## 11. Finding agents"))]
    assert [filter_ for filter_, _ in rows] == record_filters("watch-7")
    for filter_, example in rows:
        assert parse(example).kind == "record"
        assert [matches(other, example) for other, _ in rows] == [other == filter_ for other, _ in rows]
        assert not matches(filter_, f"{example}/request")


def test_links_inside_the_page() -> None:
    slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", TEXT, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= slugs


# Messages


def every_map() -> dict[str, dict[str, Any]]:
    """The schema of every message, and of every map inside one."""
    found: dict[str, dict[str, Any]] = {}
    for name, schema in schemas().items():
        found |= {name: schema} | schema.get("$defs", {})
    return found


def forms(field: dict[str, Any]) -> list[dict[str, Any]]:
    return [form for form in field.get("anyOf", [field]) if form.get("type") != "null"]


def type_of(field: dict[str, Any]) -> str:
    names = {LABEL_RE.pattern: "agent name", SERVICE_RE.pattern: "service name", KEY_RE.pattern: "id"}
    first, *others = forms(field)
    if others:
        return f"{type_of(first)} or {type_of(others[0])}"
    if "$ref" in first:
        return f"map `{first['$ref'].rsplit('/', 1)[1]}`"
    if "pattern" in first:
        return names.get(first["pattern"][4:-2], "reply topic")
    if first["type"] == "array":
        return f"list of {type_of(first['items'])}"
    if first["type"] == "object":
        inner = first["additionalProperties"]
        return "map" if inner is True else f"map of {type_of(inner)}"
    return str(first["type"])


def limit_of(field: dict[str, Any]) -> str:
    form = forms(field)[0]
    if "const" in form or "enum" in form:
        return " ".join(f"`{value}`" for value in form.get("enum", [form.get("const")]))
    least, above = form.get("minimum", form.get("minItems")), form.get("exclusiveMinimum")
    most = form.get("maximum", form.get("maxItems", form.get("maxLength")))
    least = None if least == -MAX_INTEGER else least
    most = None if most == MAX_INTEGER else most  # said once, for all integers
    unit = " items" if "maxItems" in form else " characters" if "maxLength" in form else ""
    if least is not None and most is not None:
        return f"{least} to {most}{unit}"
    bounds = [("over", above), ("at least", least), ("at most", most)]
    return ", ".join(f"{word} {value}{unit}" for word, value in bounds if value is not None)


def row_of(name: str, field: dict[str, Any], required: bool) -> list[str]:
    """Field, type, unit, limit and default, as the tables have them."""
    units = {
        "_usd_per_mtok": "US dollars",
        "_per_h": "1/h",
        "_ms": "ms",
        "_usd": "US dollars",
        "tokens_per_s": "1/s",
        "_s": "s",
    }
    unit = next((unit for ending, unit in units.items() if name.endswith(ending)), "")
    default = "" if field.get("default") is None else f"`{json.dumps(field['default'])}`"
    return [f"`{name}`", type_of(field), unit, limit_of(field), "required" if required else default]


@pytest.mark.parametrize("name", every_map())
def test_fields(name: str) -> None:
    schema = every_map()[name]
    rows = table(section(f"### `{name}`"))
    expected = [row_of(field, of, field in schema.get("required", ())) for field, of in schema["properties"].items()]
    assert [row[:5] for row in rows] == expected
    assert all(len(row) == 6 and row[5] for row in rows)


def test_nothing_but_the_messages_there_are() -> None:
    headings = re.findall(r"^### `(.*?)`", section("## 3. Messages"), re.M)
    assert sorted(headings) == sorted(every_map())


def test_fields_written_at_their_default() -> None:
    sentence = re.search(r"Ours leaves out all of those but (.*)\.$", section("## 3. Messages"), re.M)
    assert sentence
    assert codes(sentence[1]) == ["type", *(name for kind in MESSAGE_TYPES.values() for name in kind.spelled_out)]


def test_error_codes() -> None:
    assert [codes(row[0])[0] for row in table(section("## 8. Error codes"))] == list(get_args(ErrorCode))


def test_limits() -> None:
    options = AgentOptions()
    [description] = [m for m in ServiceRecord.model_fields["description"].metadata if hasattr(m, "max_length")]
    remembered = (answered.MOST_REPLIES, answered.MOST_BYTES, int(answered.KEEP_S))
    expected: dict[str, tuple[float, ...]] = {
        "payload": (MAX_PAYLOAD,),
        "levels": (MAX_LEVELS,),
        "labels": (1, 4),
        "label": (63,),
        "id": (128,),
        "ttl_ms": (1, MAX_TTL_MS, 30_000),
        "hops": (MAX_HOPS,),
        "examples": (MAX_EXAMPLES,),
        "description": (description.max_length,),
        "numbers": (MAX_DIMENSION,),
        "steps": (MAX_STEPS,),
        "text": (MAX_STEP_TEXT,),
        "depth": (MAX_NESTING, 32),
        "requests": (options.queue_size,),
        "replies": remembered,
        "heartbeat": (int(options.heartbeat_s),),
        "lease": (registry._MISSED_HEARTBEATS,),
        "session": (options.connection.session_expiry_s,),
    }
    found = {re.split(r"[ ,]", row[0].replace("`", ""))[0]: row[1] for row in table(section("## 9. Limits"))}
    assert {name: tuple(map(int, re.findall(r"\d+", value))) for name, value in found.items()} == expected


def test_json_payloads() -> None:
    types = [decode_any(payload.encode()).type for _, payload in blocks("json")]
    assert set(types) == set(MESSAGE_TYPES) - {"mqttcollab.embedding.v1", "mqttcollab.observation.v1"}
    states = re.findall(r"`((?:online|offline) \d+)`", section("## 14. A minimal device"))
    assert {parse_status(state.encode()).state for state in states} == {"online", "offline"}


def test_cbor_payload() -> None:
    [(_, block)] = blocks("hex")
    payload = bytes.fromhex(re.sub(r"#.*|\s", "", block))
    embedding = decode(Embedding, payload)
    assert (embedding.agent, embedding.service, embedding.model) == ("cam-5", "data.gpt/vision", "m")
    assert embedding.vector == pytest.approx([0.5, -1.0, 0.25], abs=0.005)


# The orchestrator


async def test_progress_of_the_orchestrator() -> None:
    pytest.importorskip("wordllama", reason="wordllama is not installed (the extra `embed`)")
    from mqttcollab.orchestrator import orchestrator_agent
    from mqttcollab.runtimes.embedders import load_embedder

    broker = MemoryBroker()

    def connect(name: str, will: Any) -> MemoryTransport:
        return MemoryTransport(broker, name, will=will)

    adder = Agent("abacus-1")
    adder.service("computation.gpt/sum", description="Adds numbers", examples=["What is 17 + 25?"])(lambda _: "42")
    embedder = await asyncio.to_thread(load_embedder, "wordllama")
    async with adder.running(connect), orchestrator_agent("orchestrator", embedder).running(connect):
        async with Agent("asker").running(connect) as asker:
            reply = await asker.ask("What is 17 + 25?", service=ORCHESTRATION)
        task = f"slm/inference/{reply.id}"
        async with asyncio.timeout(LIMIT_S):
            while f"{task}/status" not in broker.retained or broker.retained[f"{task}/status"].payload != b"done":
                await asyncio.sleep(0.01)
        found = {topic.removeprefix(f"{task}/") for topic in broker.retained if topic.startswith(task)}
    described = section("## 10. Orchestration")
    keys = {codes(row[0])[0] for row in table(described[described.index("| key |") - 1 :])}
    assert {re.sub(r"steps/1/", "steps/<n>/", key) for key in found} == keys
    assert [step.agent for step in reply.steps] == ["abacus-1"] and reply.missing == []


# The examples, against a real Mosquitto

UNSTEADY = (
    (r"\b\d{13}\b", "<time>"),
    (r'"(queued_ms|elapsed_ms)":[\d.]+', r'"\1":<ms>'),
    (r'"hardware":\{[^}]*\}', '"hardware":<facts>'),
    (r"expires in \d+ s", "expires in <s> s"),
)


def steady(output: str) -> str:
    """An output without what differs from run to run and from machine to machine."""
    for pattern, replacement in UNSTEADY:
        output = re.sub(pattern, replacement, output)
    return output.strip()


def take_apart(block: str) -> tuple[str, str]:
    """What is typed in a console block, and what comes of it."""
    lines = block.splitlines()
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(typed), "\n".join(line for line in lines if not line.startswith("$ "))


@pytest.fixture
def shell(mosquitto: Broker, tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which the Mosquitto clients find the test's broker without being told."""
    if mosquitto.info.kind != "mosquitto" or not shutil.which("mosquitto_rr"):
        pytest.skip("the Mosquitto clients are not installed (apt-get install mosquitto-clients)")
    folder = tmp_path / "config"
    folder.mkdir()
    for client in ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr"):
        (folder / client).write_text(f"-p {mosquitto.info.port}\n")
    return os.environ | {"XDG_CONFIG_HOME": str(folder), "MQTTCOLLAB_BROKER": mosquitto.info.url}


@asynccontextmanager
async def process(shell: dict[str, str], folder: Path, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in a session of its own; what is left of it in the end is killed."""
    running = await asyncio.create_subprocess_exec(
        *command,
        env=shell,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        await running.communicate()


async def run(shell: dict[str, str], folder: Path, script: str) -> str:
    """What a script prints."""
    async with process(shell, folder, "bash", "-c", script) as running, asyncio.timeout(LIMIT_S):
        output, _ = await running.communicate()
    return output.decode()


async def offered(broker: Broker, service: str) -> list[str]:
    """Who offers a service, as an agent sees it."""
    async with Agent("watcher").running(broker.info.url) as watcher:
        return [offer.agent.name for offer in (await watcher.follow()).offers(service)]


@pytest.mark.slow
async def test_console_examples(mosquitto: Broker, shell: dict[str, str], tmp_path: Path) -> None:
    [(_, source)] = blocks("python")
    (tmp_path / "abacus.py").write_text(source)
    async with process(shell, tmp_path, sys.executable, "abacus.py") as agent:
        load = await run(shell, tmp_path, "mosquitto_sub -C 1 -W 10 -t slm/agents/@abacus-1/load")
        assert "heartbeat_s" in load, "the agent did not come up"
        for line, block in blocks("console"):
            typed, expected = take_apart(block)
            assert steady(await run(shell, tmp_path, typed)) == steady(expected), f"topics.md, line {line}"
            if "-m 'online 1'" in typed:
                assert await offered(mosquitto, "data.gpt/building/window") == ["window-1"]
            if "-m 'offline 1'" in typed:
                assert await offered(mosquitto, "#") == ["abacus-1", "abacus-1"]
        agent.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            assert await agent.wait() == 0
    left = await run(shell, tmp_path, "mosquitto_sub -v -t 'slm/agents/@abacus-1/#' -t 'computation.gpt/#' -W 1")
    topics = [line.split(" ")[0] for line in left.splitlines() if "/" in line]
    assert sorted(topics) == ["slm/agents/@abacus-1/profile", "slm/agents/@abacus-1/status"]


async def test_device_in_the_shell(mosquitto: Broker, shell: dict[str, str], tmp_path: Path) -> None:
    [(_, source)] = blocks("sh")
    (tmp_path / "door.sh").write_text(source)
    service = "data.gpt/building/front-door"
    async with Agent("asker").running(mosquitto.info.url) as asker, asyncio.timeout(LIMIT_S):
        registry = await asker.follow()
        async with process(shell, tmp_path, "sh", "door.sh"):
            while not registry.offers(service):
                await registry.changed()
            reply = await asker.ask("Is the front door open?", service=service)
            assert (reply.output, reply.data, reply.agent) == ("The front door is closed.", {"open": False}, "door-1")
            (tmp_path / "door-is-open").touch()
            reply = await asker.ask("Is the front door open?", service=service)
            assert (reply.output, reply.data) == ("The front door is open.", {"open": True})
            version_2 = textwrap.dedent(f"""\
                mosquitto_rr -V 311 -W 5 -q 1 -t {service}/@door-1/request -e reply.gpt/@me/d1 \
                -m '{{"type": "mqttcollab.request.v2", "id": "d1", "reply_to": "reply.gpt/@me/d1"}}'""")
            with pytest.raises(RequestError, match=r"^unsupported: this device speaks mqttcollab\.request\.v1"):
                decode_any((await run(shell, tmp_path, version_2)).encode()).raise_for_error()  # type: ignore[attr-defined]
        while registry.offers(service):  # killed: its will says so
            await registry.changed()
        assert registry.agents["door-1"].status is not None
        assert registry.agents["door-1"].status.state == "offline"
