"""Models in GGUF files, run by llama.cpp off the event loop, in a process of their own or in this one."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from mqttcollab.errors import ConfigError, RequestError
from mqttcollab.runtimes.base import (
    DEFAULT_PARAMETERS,
    ChatMessage,
    Chunk,
    Generation,
    GenerationParameters,
)
from mqttcollab.runtimes.decoder import DecoderOptions, Done
from mqttcollab.runtimes.engine import ChildEngine, Engine, LocalEngine
from mqttcollab.runtimes.gguf import check_gguf, describe_gguf, llama_cpp_module, open_gguf
from mqttcollab.runtimes.worker import Job, Worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaEmbedder", "LlamaRuntime", "check_gguf", "describe_gguf"]


class LlamaRuntime:
    """A GGUF model, in a child process of its own.

    llama.cpp ends the process that it runs in where something is wrong, and so does the system where memory runs out.
    The child that dies so, or hangs, is started again: the request under way ends with RuntimeFailure, and those that
    wait are answered by the next child. It ends with this process, however that ends.

    llama.cpp's context decodes one sequence at a time, so requests take turns, first come, first served.
    A reader that is slow holds up its own generation only while nobody else waits. The model is loaded by
    `load()`, or else by the first request.

    Args:
        path: the GGUF file.
        model: the name under which it is known; the file's name without its ending if None.
        context_length: tokens of a prompt and its answer together.
        threads: CPU threads; None leaves it to llama-cpp-python (half the cores to write, all to read).
        gpu_layers: layers to put on the GPU, -1 for all.
        queue_size: requests that may wait; more are refused as `busy`.
        reuse_prompts: keep the last prompt's tokens, so that a next one that begins alike is read faster.
        in_process: run the model in this process, in a worker thread: a little faster and without the memory of a
            second interpreter, but then what ends llama.cpp ends this process.
        stall_s: seconds without a token, or 128 tokens of a prompt read, after which the child counts as hanging, is
            ended and started again; ten times as long to load the model. Not for a model in this process.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        context_length: int = 2048,
        threads: int | None = None,
        gpu_layers: int = 0,
        queue_size: int = 16,
        reuse_prompts: bool = True,
        in_process: bool = False,
        stall_s: float = 60.0,
    ) -> None:
        for name, value in (
            ("context_length", context_length),
            ("threads", threads),
            ("queue_size", queue_size),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not stall_s > 0:
            raise ConfigError(f"stall_s is {stall_s}; it must be above 0")
        self.path = Path(path).expanduser()
        self.model = model or self.path.stem
        self.queue_size = queue_size
        options = DecoderOptions(context_length, threads, gpu_layers, reuse_prompts)
        engine: Engine = ChildEngine(self.path, self.model, options, stall_s)
        if in_process:
            engine = LocalEngine(self.path, options)
        self._worker = Worker(engine, self.model)
        # At exit the worker must have left llama.cpp before its library is torn down.
        weakref.finalize(self, self._worker.stop_and_join)

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._worker.engine.pid

    @property
    def trouble(self) -> str | None:
        """Why the model can't answer just now, in one line: it died or does not load, and is tried again by itself.

        None if it can, or was not asked to load yet.
        """
        return self._worker.trouble

    def on_trouble(self, listener: Callable[[str | None], None]) -> None:
        """Calls `listener` whenever `trouble` has changed: on the event loop that runs now, else in another thread."""
        self._worker.listen(listener)

    async def load(self) -> None:
        """Load the model now; a second call does nothing.

        Raises:
            RuntimeFailure: there is no such file, it is no GGUF or damaged, or llama-cpp-python is missing; or the
                child died.
            ConfigError: the context is longer than the model was trained for.
        """
        async for _ in self._run(None, DEFAULT_PARAMETERS):
            pass

    async def generate(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> Generation:
        """Answer as a whole.

        Raises:
            RequestError: `busy` (too many wait, or the child has died several times), `too_large` (for the context),
                `bad_request`, `unsupported` (a schema that makes no grammar).
            RuntimeFailure: as `load`; or the model failed while it ran, or was closed.
            ConfigError: as `load`.
        """
        chunks: list[Chunk] = []
        async with aclosing(self._run(messages, parameters)) as items:
            async for item in items:
                if isinstance(item, Chunk):
                    chunks.append(item)
                else:
                    done = item
        return Generation(
            text="".join(chunk.text for chunk in chunks),
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            logprobs=tuple(chunk.logprob for chunk in chunks if chunk.logprob is not None),
            finish_reason=done.finish_reason,
            tokens_per_s=done.tokens_per_s,
            tokens=tuple(chunk.text for chunk in chunks if chunk.logprob is not None),
        )

    async def stream(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> AsyncIterator[Chunk]:
        """Answer token by token; once closed, at most one more token is computed."""
        async with aclosing(self._run(messages, parameters)) as items:
            async for item in items:
                yield item if isinstance(item, Chunk) else Chunk("", finish_reason=item.finish_reason)

    async def close(self) -> None:
        """Free the model; what runs or waits ends with RuntimeFailure, and so does what comes later."""
        self._worker.stop()
        while self._worker.alive:  # noqa: ASYNC110 (it ends in another thread, within a token)
            await asyncio.sleep(0.002)

    async def _run(
        self, messages: Sequence[ChatMessage] | None, parameters: GenerationParameters
    ) -> AsyncGenerator[Chunk | Done, None]:
        job, worker = Job(messages, parameters), self._worker
        if messages is not None and len(worker.jobs) > self.queue_size:
            raise RequestError(
                "busy",
                f"model {self.model} has {self.queue_size} requests waiting already; ask again later",
                retry_after_ms=max(1, round(worker.seconds_per_job * 1000)),
            )
        worker.submit(job)
        try:
            while (item := await job.take()) is not None:
                worker.nudge.set()
                yield item
        finally:
            worker.drop(job)


class LlamaEmbedder:
    """A GGUF model as an embedder: the model's own pooling, or the mean over its tokens if it has none.

    Loading and `embed` block: call them in a thread (`asyncio.to_thread`). Threads take turns.

    Args:
        path: the GGUF file.
        model: the name under which its vectors are compared; the file's name without its ending if None.
        context_length: tokens of a text that count; what follows is cut off.
        threads: CPU threads; None leaves it to llama-cpp-python.
        gpu_layers: layers to put on the GPU, -1 for all.

    Raises:
        RuntimeFailure: there is no such file, it is no GGUF or damaged, or llama-cpp-python is missing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        context_length: int = 512,
        threads: int | None = None,
        gpu_layers: int = 0,
    ) -> None:
        path = Path(path).expanduser()
        self.model = model or path.stem
        options = {
            "embedding": True,
            "n_ctx": context_length,
            "n_batch": context_length,
            "n_ubatch": context_length,
            "n_threads": threads,
            "n_threads_batch": threads,
            "n_gpu_layers": gpu_layers,
        }
        self._llm = open_gguf(path, **options)
        llama_cpp = llama_cpp_module()
        if self._llm.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            self._llm.close()
            self._llm = open_gguf(path, **options, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        self.dimension: int = self._llm.n_embd()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), dimension), float32, rows of unit length; the row of an empty text is zero."""
        import numpy as np

        rows = np.zeros((len(texts), self.dimension), np.float32)
        filled = [i for i, text in enumerate(texts) if text.strip()]
        if filled:
            with self._lock:
                rows[filled] = self._llm.embed([texts[i] for i in filled])
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            np.divide(rows, lengths, out=rows, where=lengths > 0)
        return rows

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            self._llm.close()
