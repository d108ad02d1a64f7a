"""Where a model's decoder may live: in this process, or in one of its own that may die without taking ours along."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from mqttcollab.errors import RuntimeFailure
from mqttcollab.runtimes.base import ChatMessage, Chunk, GenerationParameters
from mqttcollab.runtimes.decoder import Decoder, DecoderOptions, Done
from mqttcollab.runtimes.pipe import Ended, Pipe, Silent, pack_request, unpack_error
from mqttcollab.runtimes.spawn import fate, how_to_run

_log = logging.getLogger(__name__)
# Opening a model shows no progress, and a large file on a slow disk takes long.
_LOAD_FACTOR = 10
_KEPT_LINES = 5
_REAP_S = 2.0


class Died(RuntimeFailure):
    """The model's process ended or hung; it has to be started again."""


class Engine(Protocol):
    """A decoder, for one thread.

    Attributes:
        on_end: called from another thread when its process has ended, whatever the reason.
    """

    on_end: Callable[[], None]

    @property
    def pid(self) -> int | None:
        """The process that it has of its own, if it runs."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        ...

    def reap(self) -> Died | None:
        """How the process ended, if it has while nobody asked anything of it; told once."""
        ...

    def load(self) -> None:
        """Load the model unless it is. Raises what `Decoder` raises, or Died."""
        ...

    def answer(
        self,
        messages: Sequence[ChatMessage],
        parameters: GenerationParameters,
        emit: Callable[[Chunk], bool],
        wanted: Callable[[], bool],
    ) -> Done | None:
        """As `Decoder.prompt` and `Decoder.generate`; raises Died as well."""
        ...

    def interrupt(self) -> None:
        """Hurry to the end, if that can be done; from any thread. The engine is of no use afterwards."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class LocalEngine:
    """A decoder in this process."""

    def __init__(self, path: Path, options: DecoderOptions) -> None:
        self.on_end = _nothing
        self._path, self._options = path, options
        self._decoder: Decoder | None = None

    @property
    def pid(self) -> int | None:  # noqa: D102
        return None

    @property
    def ready(self) -> bool:  # noqa: D102
        return self._decoder is not None

    def reap(self) -> Died | None:  # noqa: D102
        return None

    def load(self) -> None:  # noqa: D102
        self._decoder = self._decoder or Decoder(self._path, self._options)

    def answer(  # noqa: D102
        self,
        messages: Sequence[ChatMessage],
        parameters: GenerationParameters,
        emit: Callable[[Chunk], bool],
        wanted: Callable[[], bool],
    ) -> Done | None:
        assert self._decoder is not None
        return self._decoder.generate(self._decoder.prompt(messages), parameters, emit, wanted)

    def interrupt(self) -> None:  # noqa: D102
        pass

    def close(self) -> None:  # noqa: D102
        if self._decoder is not None:
            self._decoder.close()


class ChildEngine:
    """A decoder in a process of its own, started by `load`.

    Args:
        path: the GGUF file.
        model: its name, for messages.
        options: how to open it.
        stall_s: seconds without a token, or a slice of the prompt, after which the process counts as hanging.
    """

    def __init__(self, path: Path, model: str, options: DecoderOptions, stall_s: float) -> None:
        self.on_end = _nothing
        self._path, self._model, self._options, self._stall_s = path, model, options, stall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None
        self._words: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader: threading.Thread | None = None
        self._loaded = self._interrupted = False

    @property
    def pid(self) -> int | None:  # noqa: D102
        process = self._process
        return None if process is None else process.pid

    @property
    def ready(self) -> bool:  # noqa: D102
        return self._loaded and self._process is not None and self._process.poll() is None

    def reap(self) -> Died | None:  # noqa: D102
        if self._process is None or self._process.poll() is None:
            return None
        return Died(f"{self._fate()}; it is started again")

    def load(self) -> None:  # noqa: D102
        pipe = self._pipe or self._start()
        self._talk(lambda: self._load(pipe))

    def answer(  # noqa: D102
        self,
        messages: Sequence[ChatMessage],
        parameters: GenerationParameters,
        emit: Callable[[Chunk], bool],
        wanted: Callable[[], bool],
    ) -> Done | None:
        assert self._pipe is not None
        pipe, packed = self._pipe, pack_request(messages, parameters)
        return self._talk(lambda: self._answer(pipe, packed, emit, wanted))

    def interrupt(self) -> None:  # noqa: D102
        self._interrupted = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:  # noqa: D102
        if self._process is not None:
            self._end(self._process, kill=True)

    def _start(self) -> Pipe:
        told = {
            "path": str(self._path),
            "options": asdict(self._options),
            "debug": _log.isEnabledFor(logging.DEBUG),
        }
        try:
            process = subprocess.Popen(
                **how_to_run("mqttcollab.runtimes.child", json.dumps(told)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise RuntimeFailure(f"the process of model {self._model} can't be started: {error}") from error
        self._process = process
        if self._interrupted:  # just now
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._words.clear()
        self._reader = threading.Thread(target=self._read_words, args=[process], name=f"words of {self._model}")
        self._reader.daemon = True
        self._reader.start()
        self._pipe = Pipe(process.stdout.fileno(), process.stdin.fileno())
        return self._pipe

    def _talk(self, what: Callable[[], Done | None]) -> Done | None:
        try:
            return what()
        except Ended:
            raise Died(f"{self._fate()}; it is started again") from None
        except Silent:
            limit = f"{self._stall_s:g} s" if self._loaded else f"{self._stall_s * _LOAD_FACTOR:g} s while it loaded"
            self.close()
            raise Died(
                f"the process of model {self._model} was silent for {limit} and was ended; it is started again"
            ) from None

    def _load(self, pipe: Pipe) -> None:
        limit_s = self._stall_s * _LOAD_FACTOR
        pipe.send(None, limit_s)
        kind, *facts = pipe.receive(limit_s)
        if kind != "ready":
            raise self._error(kind, facts)
        self._loaded = True

    def _answer(
        self, pipe: Pipe, packed: Any, emit: Callable[[Chunk], bool], wanted: Callable[[], bool]
    ) -> Done | None:
        go_on = True
        pipe.send(packed, self._stall_s)
        while True:
            kind, *facts = pipe.receive(self._stall_s)
            if kind not in ("chunk", "reading"):
                break
            if go_on:
                go_on = emit(Chunk(*facts)) if kind == "chunk" else wanted()
            pipe.send(go_on, self._stall_s)
        if kind == "done":
            return Done(*facts) if go_on else None
        if kind == "stopped":
            return None
        raise self._error(kind, facts)

    def _error(self, kind: str, facts: list[Any]) -> Exception:
        if kind == "refused":
            return unpack_error(*facts)
        return RuntimeFailure(f"model {self._model} failed while it ran: {facts[0]}")

    def _read_words(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                if text := line.decode("utf-8", "replace").strip():
                    self._words.append(text)
                    _log.debug("%s: %s", self._model, text)
        self.on_end()

    def _fate(self) -> str:
        """How the process ended that has ended, or is about to, with the last thing that it wrote."""
        process = self._process
        assert process is not None
        code = self._end(process)
        return f"the process of model {self._model} {fate(code, self._words)}"

    def _end(self, process: subprocess.Popen[bytes], *, kill: bool = False) -> int:
        if kill:
            process.kill()
        try:
            code = process.wait(_REAP_S)
        except subprocess.TimeoutExpired:  # it has closed its pipe, but goes on
            process.kill()
            code = process.wait()
        if self._reader is not None:
            self._reader.join(_REAP_S)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        self._process = self._pipe = self._reader = None
        self._loaded = False
        return code


def _nothing() -> None:
    pass
