"""Runtimes and embedders without a model: functions, bad files, settings, word vectors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from mqttcollab.errors import ConfigError, DeadlineExceeded, MqttCollabError, RequestError, RuntimeFailure
from mqttcollab.runtimes import ChatMessage, Chunk, Embedder, GenerationParameters, Runtime
from mqttcollab.runtimes.config import default_model_path, load_runtime
from mqttcollab.runtimes.decoder import TextTail
from mqttcollab.runtimes.embedders import WordLlamaEmbedder, load_embedder
from mqttcollab.runtimes.function import FunctionRuntime
from mqttcollab.runtimes.gguf import check_gguf
from mqttcollab.runtimes.llama import LlamaRuntime
from mqttcollab.runtimes.openai import OpenAIRuntime
from mqttcollab.runtimes.pipe import Ended, Pipe, Silent, pack_error, pack_request, unpack_error, unpack_request

HELLO = [ChatMessage("user", "hello")]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, mqttcollab.runtimes\n"
        "print(sorted({'numpy', 'llama_cpp', 'openai', 'wordllama'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- messages and parameters


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop": "end"}, "stop is 'end'"),
        ({"stop": ("",)}, "stop is ('',)"),
        ({"seed": -1}, "seed is -1"),
        ({"loop_tokens": -1}, "loop_tokens is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"schema": {}}, "schema is {}"),
        ({"schema": "object"}, "schema is 'object'"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(setting: dict[str, object], named: str) -> None:
    with pytest.raises(RequestError) as error:
        GenerationParameters(**setting)  # type: ignore[arg-type]
    assert error.value.code == "bad_request"
    assert named in error.value.message


def test_a_message_of_an_unknown_role_is_refused() -> None:
    with pytest.raises(RequestError, match="role is 'tool'"):
        ChatMessage("tool", "x")  # type: ignore[arg-type]


# --- text from tokens


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_text_from_bytes_is_whole_characters_and_ends_before_a_stop_string(size: int) -> None:
    data = "Grüße, 東京 🙂 END. more".encode()
    tail, parts = TextTail(["END"]), []
    for start in range(0, len(data), size):
        text, stopped = tail.push(data[start : start + size])
        parts.append(text)
        if stopped:
            break
    assert "".join(parts) + tail.flush() == "Grüße, 東京 🙂 "
    assert "�" not in "".join(parts)


def test_text_that_only_began_like_a_stop_string_is_given_in_full() -> None:
    tail = TextTail(["\n\nUser:", "###"])
    texts = [tail.push(piece)[0] for piece in (b"a\n", b"\nUse", b" it #", b"#")]
    assert texts == ["a", "", "\n\nUse it ", ""]
    assert tail.flush() == "##"


def test_the_earliest_of_several_stop_strings_ends_the_text() -> None:
    assert TextTail(["two", "one"]).push(b"zero one two") == ("zero ", True)


# --- function runtime


def shout(messages: Sequence[ChatMessage]) -> str:
    return messages[-1].content.upper()


async def shout_async(messages: Sequence[ChatMessage]) -> str:
    await asyncio.sleep(0)
    return messages[-1].content.upper()


def shout_parts(messages: Sequence[ChatMessage]) -> Iterator[str]:
    yield from messages[-1].content.upper()


async def shout_parts_async(messages: Sequence[ChatMessage]) -> AsyncIterator[str]:
    for letter in messages[-1].content.upper():
        await asyncio.sleep(0)
        yield letter


class Shouter:
    async def __call__(self, messages: Sequence[ChatMessage]) -> str:
        return await shout_async(messages)


@pytest.mark.parametrize("fn", [shout, shout_async, shout_parts, shout_parts_async, Shouter()])
async def test_a_function_of_any_kind_answers_and_streams(fn: object) -> None:
    runtime = FunctionRuntime(fn, model="shout")  # type: ignore[arg-type]
    assert isinstance(runtime, Runtime)
    assert (await runtime.generate(HELLO)).text == "HELLO"
    assert "".join([chunk.text async for chunk in runtime.stream(HELLO)]) == "HELLO"
    await runtime.close()


async def test_closing_a_function_s_stream_closes_its_generator() -> None:
    closed = []

    async def endless(messages: Sequence[ChatMessage]) -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            closed.append(True)

    stream = FunctionRuntime(endless).stream(HELLO)
    assert (await anext(stream)).text == "x"
    await stream.aclose()  # type: ignore[attr-defined]
    assert closed == [True]


async def test_what_a_function_raises_reaches_the_caller() -> None:
    def refuse(messages: Sequence[ChatMessage]) -> str:
        raise RequestError("no_capability", "nothing about that")

    with pytest.raises(RequestError, match="nothing about that"):
        await FunctionRuntime(refuse).generate(HELLO)


async def test_a_function_that_returns_no_string_is_named() -> None:
    with pytest.raises(RuntimeFailure, match=r"function of add returned int, not a string: 42"):
        await FunctionRuntime(lambda messages: 42, model="add").generate(HELLO)


# --- files that are no model


def test_a_path_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"missing\.gguf does not exist"):
        check_gguf(tmp_path / "missing.gguf")


def test_a_folder_is_said_to_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="is not a file"):
        check_gguf(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>404</html>"])
def test_a_file_that_is_no_gguf_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(RuntimeFailure, match="is not a GGUF file: it begins with"):
        check_gguf(path)


@pytest.mark.parametrize("in_process", [False, True])
async def test_the_runtime_says_what_is_wrong_with_its_file_each_time(tmp_path: Path, in_process: bool) -> None:
    runtime = LlamaRuntime(tmp_path / "missing.gguf", in_process=in_process)
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match="does not exist"):
            await runtime.load()
    with pytest.raises(RuntimeFailure, match="does not exist"):
        await runtime.generate(HELLO)
    await runtime.close()


@pytest.mark.parametrize("in_process", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGUF", "failed to read header"),
        (b"GGUF" + bytes(60), "version"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 60, "tensors"),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "architecture"),
    ],
)
async def test_a_damaged_gguf_gives_llama_cpp_s_reason_in_one_line(
    tmp_path: Path, content: bytes, reason: str, in_process: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    runtime = LlamaRuntime(path, in_process=in_process)
    with pytest.raises(RuntimeFailure, match=f"can't open .*{reason}.*damaged") as error:
        await runtime.load()
    await runtime.close()
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


async def test_a_closed_runtime_says_so() -> None:
    runtime = LlamaRuntime("unused.gguf", model="small")
    await runtime.close()
    with pytest.raises(RuntimeFailure, match="small is closed"):
        await runtime.generate(HELLO)


@pytest.mark.parametrize("setting", ["context_length", "threads", "queue_size"])
def test_a_llama_setting_below_one_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is 0"):
        LlamaRuntime("unused.gguf", **{setting: 0})  # type: ignore[arg-type]


def test_a_stall_of_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="stall_s is 0"):
        LlamaRuntime("unused.gguf", stall_s=0)


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"phone\.kind is None"),
        ({"kind": "gpt"}, r"phone\.kind is 'gpt'"),
        (
            {"kind": "llama", "path": "m.gguf", "contex_length": 1},
            r"phone\.contex_length is not a setting; known",
        ),
        ({"kind": "llama", "path": "m.gguf", "context_length": "2k"}, r"phone\.context_length is '2k'"),
        ({"kind": "llama", "path": "m.gguf", "queue_size": 0}, r"phone\.queue_size is 0"),
        ({"kind": "llama", "path": "m.gguf", "in_process": "no"}, r"phone\.in_process is 'no'"),
        ({"kind": "openai", "model": "m"}, r"phone\.base_url is missing"),
        ({"kind": "openai", "model": "m", "base_url": "localhost:8000"}, "must begin with http"),
        (
            {"kind": "openai", "model": "m", "base_url": "http://h/v1", "api_key": "k"},
            r"phone\.api_key is not",
        ),
        (
            {"kind": "openai", "model": "m", "base_url": "http://h/v1", "api_key_env": "NO_SUCH_KEY_7"},
            r"phone\.api_key_env names NO_SUCH_KEY_7, which is not set",
        ),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_runtime(settings, where="phone")


def test_a_llama_runtime_from_settings(tmp_path: Path) -> None:
    runtime = load_runtime({"kind": "llama", "path": str(tmp_path / "a.Q8_0.gguf"), "queue_size": 2})
    assert isinstance(runtime, LlamaRuntime)
    assert (runtime.model, runtime.queue_size) == ("a.Q8_0", 2)


def test_the_environment_names_the_default_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MQTTCOLLAB_MODEL", str(tmp_path / "mine.gguf"))
    assert default_model_path() == tmp_path / "mine.gguf"
    runtime = load_runtime({"kind": "llama"})
    assert runtime.model == "mine"


# --- an HTTP endpoint that misbehaves (a good one: test_runtimes_model.py)


@contextlib.asynccontextmanager
async def endpoint(reply: bytes | None, seen: bytearray | None = None, *, body: bool = False) -> AsyncIterator[str]:
    """Listen on loopback and send `reply` to each request, or nothing at all; yield the base URL.

    What comes goes into `seen`, with its body if so wished.
    """
    handlers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.extend(head)
        if seen is not None and body:
            length = re.search(rb"content-length: (\d+)", head, re.I)
            assert length is not None
            seen.extend(await reader.readexactly(int(length[1])))
        if reply is None:
            await reader.read()
        else:
            writer.write(reply)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    await asyncio.gather(*filter(None, handlers))


def http(status: str, body: str, *headers: str, kind: str = "application/json") -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return ("\r\n".join([*lines, *headers]) + "\r\n\r\n" + body).encode()


DATE = "Wed, 21 Oct 2026 07:28"


@pytest.mark.parametrize(
    ("reply", "code", "retry_after_ms"),
    [
        (http("429 Too Many", '{"error": {"message": "slow down"}}', "retry-after: 1.5"), "busy", 1500),
        (http("429 Too Many", '{"error": {"message": "slow down"}}', "retry-after-ms: 20"), "busy", 20),
        (http("429 Too Many", '{"error": {"message": "slow down"}}', "retry-after: soon"), "busy", None),
        (http("429 Too Many", "no", f"date: {DATE}:30 GMT", f"retry-after: {DATE}:32 GMT"), "busy", 2000),
        (http("429 Too Many", "no", f"date: {DATE}:30 GMT", f"retry-after: {DATE}:29 GMT"), "busy", 0),
        (http("429 Too Many", '{"error": {"code": "insufficient_quota"}}'), "quota_exceeded", None),
        (http("400 Bad", '{"error": {"code": "context_length_exceeded"}}'), "too_large", None),
        (http("400 Bad", '{"error": {"message": "no such parameter"}}'), "bad_request", None),
        (http("404 Not Found", '{"error": {"message": "no such model"}}'), "bad_request", None),
        (http("403 Forbidden", "no"), "unauthorized", None),
        (http("503 Unavailable", "overloaded"), "internal", None),
    ],
)
async def test_the_refusal_of_an_endpoint_becomes_a_code(reply: bytes, code: str, retry_after_ms: int | None) -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    async with endpoint(reply) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        for answer in (runtime.generate(HELLO), anext(runtime.stream(HELLO))):
            with pytest.raises(RequestError, match=f"{code}: {url} refused") as error:
                await answer
            assert (error.value.code, error.value.retry_after_ms) == (code, retry_after_ms)
        await runtime.close()


SCHEMA = {"type": "object", "properties": {"minLength": {"type": "string", "minLength": 1}}}


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (http("400 Bad", '{"error": {"message": "response_format json_schema is not supported"}}'), "unsupported"),
        (http("422 Unprocessable", '{"detail": "Invalid schema for the answer"}'), "unsupported"),
        (http("400 Bad", '{"error": {"message": "no such model"}}'), "bad_request"),
        (http("429 Too Many", '{"error": {"message": "schema"}}'), "busy"),
    ],
)
async def test_an_endpoint_that_takes_no_schema_is_said_so(reply: bytes, code: str) -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    async with endpoint(reply) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        with pytest.raises(RequestError) as error:
            await runtime.generate(HELLO, GenerationParameters(schema=SCHEMA))
        await runtime.close()
    assert error.value.code == code


async def test_an_endpoint_gets_the_schema_without_what_strict_mode_refuses() -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    answer = {"index": 0, "message": {"role": "assistant", "content": "{}"}, "finish_reason": "stop"}
    seen = bytearray()
    async with endpoint(http("200 OK", json.dumps({"choices": [answer]})), seen, body=True) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        assert (await runtime.generate(HELLO, GenerationParameters(schema=SCHEMA))).text == "{}"
        await runtime.close()
    assert json.loads(seen.partition(b"\r\n\r\n")[2])["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {"type": "object", "properties": {"minLength": {"type": "string"}}},
        },
    }


async def test_a_web_page_instead_of_an_endpoint_is_said_so() -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    async with endpoint(http("200 OK", "<html>hello</html>", kind="text/html")) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        with pytest.raises(RuntimeFailure, match="does not answer like an OpenAI endpoint; check base_url"):
            await runtime.generate(HELLO)
        await runtime.close()


async def test_an_answer_that_is_cut_off_is_not_taken_for_a_whole_one() -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    part = '{"choices": [{"index": 0, "delta": {"content": "half an"}, "finish_reason": null}]}'
    body = f"data: {part}\n\ndata: [DONE]\n\n"
    async with endpoint(http("200 OK", body, kind="text/event-stream")) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        stream = runtime.stream(HELLO)
        assert (await anext(stream)).text == "half an"
        with pytest.raises(RuntimeFailure, match="cut off the answer of small"):
            await anext(stream)
        await runtime.close()


async def test_a_silent_endpoint_exceeds_the_deadline() -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    async with endpoint(None) as url:
        runtime = OpenAIRuntime("small", base_url=url, timeout_s=0.2)
        with pytest.raises(DeadlineExceeded, match=f"{url} was silent for 0.2 s"):
            await runtime.generate(HELLO)
        await runtime.close()


async def test_an_endpoint_that_is_not_there_is_named() -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    async with endpoint(None) as url:
        pass
    runtime = OpenAIRuntime("small", base_url=url)
    with pytest.raises(RuntimeFailure, match=f"can't reach {url}: .*is the server running"):
        await runtime.generate(HELLO)
    await runtime.close()


async def test_the_users_own_key_goes_to_no_other_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    seen = bytearray()
    async with endpoint(b"", seen) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        with pytest.raises(RuntimeFailure):
            await runtime.generate(HELLO)
        await runtime.close()
    assert b"POST /v1/chat/completions" in seen
    assert b"private" not in seen


# --- embedders


@pytest.mark.parametrize("name", ["word2vec", "llama:", "wordllama:big", ""])
def test_an_unknown_embedder_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ConfigError, match=f"embedder is '{name}'; use wordllama"):
        load_embedder(name)


def test_an_embedder_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="does not exist"):
        load_embedder(f"llama:{tmp_path}/missing.gguf")


def test_a_dimension_that_wordllama_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="dimension is 300"):
        WordLlamaEmbedder(300)


@pytest.mark.parametrize("dimension", [256, 64])
def test_wordllama_rows_have_unit_length_and_like_texts_are_near(dimension: int) -> None:
    np = pytest.importorskip("numpy")
    pytest.importorskip("wordllama", reason="wordllama is not installed")
    embedder = load_embedder("wordllama" if dimension == 256 else f"wordllama:{dimension}")
    assert isinstance(embedder, Embedder)
    assert (embedder.model, embedder.dimension) == (f"wordllama-l2-supercat-{dimension}", dimension)
    rows = embedder.embed(["What is my heart rate?", "Is my pulse too high?", "Where can I park the car?", ""])
    assert rows.shape == (4, dimension)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]


def test_wordllama_takes_no_texts_and_very_long_ones() -> None:
    np = pytest.importorskip("numpy")
    pytest.importorskip("wordllama", reason="wordllama is not installed")
    embedder = load_embedder("wordllama")
    assert embedder.embed([]).shape == (0, 256)
    long, short = embedder.embed(["river " * 50_000, "river"])
    assert np.linalg.norm(long) == pytest.approx(1, abs=1e-5)
    assert long @ short > 0.9


def test_an_embedder_is_loaded_once_and_leaves_logging_alone() -> None:
    pytest.importorskip("wordllama", reason="wordllama is not installed")
    code = (
        "import logging\n"
        "from mqttcollab.runtimes.embedders import load_embedder\n"
        "assert load_embedder('wordllama') is load_embedder('wordllama')\n"
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] 30"


async def test_an_endpoint_s_stream_that_repeats_itself_is_ended_as_a_loop() -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    texts = [*"Once upon", *(["very ", "very, "] * 400)]
    parts = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
    async with endpoint(
        http("200 OK", "".join(f"data: {part}\n\n" for part in parts), kind="text/event-stream")
    ) as url:
        runtime = OpenAIRuntime("small", base_url=url)
        chunks = [chunk async for chunk in runtime.stream(HELLO)]
        await runtime.close()
    assert len(chunks) == len("Once upon") + 128 + 1
    assert chunks[-1] == Chunk("", finish_reason="loop")


# --- what passes to a model's process


def test_a_request_arrives_as_it_was_sent() -> None:
    parameters = GenerationParameters(7, 0.1, 0.2, 3, ("é", "\n"), 2**32 - 2, {"type": "string", "maxLength": 3}, 64)
    assert all(getattr(parameters, f.name) != getattr(GenerationParameters(), f.name) for f in fields(parameters))
    messages = [ChatMessage("system", "be \0 brief"), ChatMessage("user", "東京 🙂")]
    assert unpack_request(pack_request(messages, parameters)) == (messages, parameters)


def test_halves_of_characters_do_not_keep_a_request_from_being_sent() -> None:
    packed = pack_request([ChatMessage("user", "a\ud83db")], GenerationParameters(stop=("\ud83d", "end")))
    assert unpack_request(packed) == ([ChatMessage("user", "a?b")], GenerationParameters(stop=("end",)))


def test_a_schema_that_is_no_json_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RequestError, match="the schema is not JSON") as error:
        pack_request(HELLO, GenerationParameters(schema={"enum": {1, 2}}))
    assert error.value.code == "bad_request"


@pytest.mark.parametrize(
    "error", [RequestError("busy", "later", retry_after_ms=7), ConfigError("wrong"), RuntimeFailure("broken")]
)
def test_an_error_arrives_as_it_was_raised(error: MqttCollabError) -> None:
    _, *facts = pack_error(error)
    arrived = unpack_error(*facts)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert getattr(arrived, "retry_after_ms", None) == getattr(error, "retry_after_ms", None)


def test_a_pipe_carries_items_of_any_size_and_tells_silence_from_the_end() -> None:
    read, write = os.pipe()
    pipe, item = Pipe(read, write), {"text": "x" * 300_000}
    sending = threading.Thread(target=pipe.send, args=[item])
    sending.start()
    assert pipe.receive(10.0) == item
    sending.join()
    with pytest.raises(Silent):
        pipe.receive(0.01)
    os.set_blocking(write, False)
    with pytest.raises(Silent):
        pipe.send(item, 0.01)
    os.close(write)
    with pytest.raises(Ended):
        while True:
            pipe.receive(10.0)
    os.close(read)
