"""A plain Python function as a runtime: rules, retrieval, a simulation, a stand-in for a model."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from mqttcollab.errors import RuntimeFailure
from mqttcollab.runtimes.base import (
    DEFAULT_PARAMETERS,
    ChatMessage,
    Chunk,
    Generation,
    GenerationParameters,
)

_END = object()


class FunctionRuntime:
    """Answers with what a function of the messages returns.

    The generation parameters are not applied: the function decides how it answers. Tokens are not
    counted (0). What the function raises reaches the caller unchanged.

    Args:
        fn: takes the messages and returns a string, or the parts of one as a generator. A coroutine function
            or an async generator function runs in the event loop, anything else in a thread.
        model: the name under which it is known.
    """

    def __init__(self, fn: Callable[[Sequence[ChatMessage]], Any], model: str = "function") -> None:
        self.model = model
        self._fn = fn

    async def generate(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> Generation:
        """Answer as a whole."""
        async with aclosing(self._parts(messages)) as parts:
            text = "".join([part async for part in parts])
        return Generation(text, prompt_tokens=0, completion_tokens=0)

    async def stream(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> AsyncIterator[Chunk]:
        """Answer part by part; one part where the function is no generator."""
        async with aclosing(self._parts(messages)) as parts:
            async for part in parts:
                yield Chunk(part)

    async def close(self) -> None:
        """Do nothing: there is nothing to free."""

    async def _parts(self, messages: Sequence[ChatMessage]) -> AsyncGenerator[str, None]:
        fn, messages = self._fn, tuple(messages)
        quick = inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn)
        result = fn(messages) if quick else await asyncio.to_thread(fn, messages)
        if inspect.isasyncgen(result):
            async with aclosing(result):
                async for part in result:
                    yield self._text(part)
        elif isinstance(result, Iterator):
            while (part := await asyncio.to_thread(next, result, _END)) is not _END:
                yield self._text(part)
        else:
            yield self._text(await result if inspect.isawaitable(result) else result)

    def _text(self, value: object) -> str:
        if not isinstance(value, str):
            kind = type(value).__name__
            raise RuntimeFailure(f"the function of {self.model} returned {kind}, not a string: {value!r}")
        return value
