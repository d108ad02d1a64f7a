"""The same with a journal: every request and every answer is on disk before it goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from benchmarks.contenders import Ask, ours

NOTE = "the same, each request written down before it is acknowledged, each answer before it is sent (fsync)"


async def respond(url: str, ready: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await ours.respond(url, ready, "durable", f"{folder}/journal")


def asking(url: str) -> AbstractAsyncContextManager[Ask]:
    return ours.asking(url, "durable")
