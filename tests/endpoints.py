"""An HTTP endpoint on loopback that answers, refuses, talks nonsense or hangs, as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mqttcollab.cloud.settings import CloudSettings, parse_cloud

MODEL = "big-1"
# At these prices a token is a micro-dollar to read and two to write.
PRICES = {MODEL: {"prompt_usd_per_mtok": 1.0, "completion_usd_per_mtok": 2.0}}
SERVICE = "computation.gpt/cloud"


def http(status: str, body: str, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body.encode())}"]
    return ("\r\n".join([*lines, "connection: close", *headers]) + "\r\n\r\n" + body).encode()


def completion(text: str | None = "Rome.", usage: Any = (10, 5), finish: str = "stop") -> bytes:
    """A good answer; `usage` as prompt and completion tokens, or as it is to stand there."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return http("200 OK", json.dumps(body | ({} if usage is None else {"usage": usage})))


def refusal(status: int, *headers: str) -> bytes:
    return http(f"{status} No", '{"error": {"message": "not now"}}', *headers)


HANG = b"hang"
DROP = b""


class Endpoint:
    """Gives one of `replies` per request, in turn, and the last one again and again."""

    def __init__(self) -> None:
        self.replies: list[bytes] = [completion()]
        self.requests: list[dict[str, Any]] = []
        self.url = ""
        self.came = asyncio.Event()
        self._handlers: set[asyncio.Task[Any]] = set()

    @property
    def prompts(self) -> str:
        """All that it was sent."""
        return json.dumps(self.requests, ensure_ascii=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            assert length is not None
            self.requests.append(json.loads(await reader.readexactly(int(length[1]))))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            self.came.set()
            if reply == HANG:
                await reader.read()
            writer.write(b"" if reply == HANG else reply)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._handlers.discard(task)

    async def end(self) -> None:
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


@contextlib.asynccontextmanager
async def endpoint() -> AsyncIterator[Endpoint]:
    """An endpoint that runs."""
    made = Endpoint()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield made
        await made.end()


def settings(folder: Path, url: str, **tables: Any) -> CloudSettings:
    """Settings with quick retries and a dollar a day, changed by `tables`."""
    given: dict[str, Any] = {
        "endpoint": {"model": MODEL, "base_url": url},
        "prices": PRICES,
        "limits": {"usd_per_day": 1.0},
        "retry": {"tries": 3, "backoff_s": 0.001, "backoff_max_s": 0.002},
        "max_tokens": 100,
        "system": "Be brief.",
    }
    return parse_cloud(given | tables, folder=folder, where="cloud.toml")
