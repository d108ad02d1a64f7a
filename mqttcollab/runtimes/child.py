"""The process in which a model of a `LlamaRuntime` runs: `python -m mqttcollab.runtimes.child`, started by it alone.

It talks over its standard input and output (`mqttcollab.runtimes.pipe`) and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from mqttcollab.errors import MqttCollabError
from mqttcollab.runtimes.base import Chunk
from mqttcollab.runtimes.decoder import Decoder, DecoderOptions
from mqttcollab.runtimes.pipe import Ended, Pipe, pack_error, unpack_request

_PR_SET_PDEATHSIG = 1


class Child:
    """Answers one request after another.

    It tells news (a slice of the prompt read, a token) one item ahead of the parent's leave to go on, so that the
    model computes while the parent is busy with the last token.
    """

    def __init__(self, pipe: Pipe, path: Path, options: DecoderOptions) -> None:
        self._pipe, self._path, self._options = pipe, path, options
        self._decoder: Decoder | None = None
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._unanswered = 0
        self._wanted = True
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        """Never returns; the process ends when the parent closes the pipe."""
        while True:
            packed = self._inbox.get()
            self._unanswered, self._wanted = 0, True
            try:
                end = self._answer(packed)
            except MqttCollabError as error:
                end = pack_error(error)
            except Ended:
                return
            except Exception as error:
                logging.getLogger(__name__).exception("the model failed")
                end = ["failed", repr(error)]
            while self._unanswered:
                self._hear()
            self._pipe.send(end)

    def _answer(self, packed: Any) -> list[Any]:
        if self._decoder is None:
            self._decoder = Decoder(self._path, self._options)
        if packed is None:
            return ["ready"]
        messages, parameters = unpack_request(packed)
        done = self._decoder.generate(self._decoder.prompt(messages), parameters, self._emit, self._reading)
        if done is None:
            return ["stopped"]
        return ["done", done.prompt_tokens, done.completion_tokens, done.finish_reason, done.tokens_per_s]

    def _emit(self, chunk: Chunk) -> bool:
        return self._tell("chunk", chunk.text, chunk.logprob)

    def _reading(self) -> bool:
        return self._tell("reading")

    def _tell(self, *news: Any) -> bool:
        self._pipe.send(news)
        self._unanswered += 1
        while self._unanswered > 1:
            self._hear()
        return self._wanted

    def _hear(self) -> None:
        self._wanted = self._inbox.get() and self._wanted
        self._unanswered -= 1

    def _listen(self) -> None:
        with contextlib.suppress(Ended):
            while True:
                self._inbox.put(self._pipe.receive())
        os._exit(0)  # whatever the model is doing


def _give_way() -> None:
    """End when the parent does, even where llama.cpp hangs, and before it where memory runs out (on Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def main() -> None:
    """Takes one argument, a JSON object: path, options, debug."""
    told = json.loads(sys.argv[1])
    _give_way()
    for number in (signal.SIGINT, signal.SIGTERM):  # systemd sends it to all; the parent may still want to answer
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    logging.basicConfig(level=logging.DEBUG if told["debug"] else logging.WARNING, format="%(message)s")
    with contextlib.suppress(Ended):
        Child(Pipe(0, answers), Path(told["path"]), DecoderOptions(**told["options"])).run()


if __name__ == "__main__":
    main()
