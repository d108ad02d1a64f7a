"""The thread in which a model runs, and what passes between it and an event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mqttcollab.errors import MqttCollabError, RuntimeFailure
from mqttcollab.runtimes.base import ChatMessage, Chunk, GenerationParameters
from mqttcollab.runtimes.decoder import Decoder, DecoderOptions, Done

_log = logging.getLogger(__name__)
# Chunks that a reader may be behind before the model waits for it.
WINDOW = 32
_EXIT_TIMEOUT_S = 5.0


class Job:
    """One request: the worker gives, the event loop takes. Make it in the event loop that takes.

    Attributes:
        messages: what to answer; None only loads the model.
        wanted: False once nobody waits for it.
    """

    def __init__(self, messages: Sequence[ChatMessage] | None, parameters: GenerationParameters) -> None:
        self.messages = messages
        self.parameters = parameters
        self.wanted = True
        self._items: asyncio.Queue[Chunk | Done | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._given = 0
        self._taken = 0

    @property
    def behind(self) -> int:
        """How many items the reader has not taken yet."""
        return self._given - self._taken

    def give(self, item: Chunk | Done | Exception | None) -> None:
        """Hand over an item, from the worker's thread; an exception or None is the last one."""
        self._given += 1
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # its event loop is closed
            self.wanted = False

    async def take(self) -> Chunk | Done | None:
        """Return the next item, None at the end; raise what the worker ran into."""
        item = await self._items.get()
        self._taken += 1
        if isinstance(item, Exception):
            raise item
        return item


class Worker:
    """Owns a model and works on one job after another. Does not know its runtime, so that can be collected.

    Attributes:
        jobs: those not answered yet.
        nudge: set when something changed for which a paused generation may be waiting.
        seconds_per_job: moving average.
    """

    def __init__(self, path: Path, model: str, options: DecoderOptions) -> None:
        self.jobs: set[Job] = set()
        self.nudge = threading.Event()
        self.seconds_per_job = 1.0
        self._path, self._model, self._options = path, model, options
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._main, name=f"llama {model}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a job; the first one starts the thread."""
        if self._stopped:
            raise self._closed()
        self.jobs.add(job)
        self._queue.put(job)
        self.nudge.set()
        if self._thread.ident is None:
            self._thread.start()

    def drop(self, job: Job) -> None:
        """Forget a job: it is answered, or nobody waits for it any more."""
        job.wanted = False
        self.jobs.discard(job)
        self.nudge.set()

    def stop(self) -> None:
        """Ask the thread to end; what runs or waits gets RuntimeFailure."""
        self._stopped = True
        self._queue.put(None)
        self.nudge.set()

    def stop_and_join(self) -> None:
        """Stop and wait, for at most a few seconds."""
        self.stop()
        if self.alive and self._thread is not threading.current_thread():
            self._thread.join(_EXIT_TIMEOUT_S)

    def _main(self) -> None:
        decoder: Decoder | None = None
        while (job := self._queue.get()) is not None and not self._stopped:
            if not job.wanted:
                continue
            try:
                decoder = decoder or Decoder(self._path, self._options)
                if job.messages is not None:
                    self._answer(decoder, job, job.messages)
                job.give(None)
            except MqttCollabError as error:
                job.give(error)
            except Exception as error:
                _log.exception("model %s failed", self._model)
                job.give(RuntimeFailure(f"model {self._model} failed while it ran: {error!r}"))
        if decoder is not None:
            decoder.close()
        for left in tuple(self.jobs):
            left.give(self._closed())

    def _answer(self, decoder: Decoder, job: Job, messages: Sequence[ChatMessage]) -> None:
        def wanted() -> bool:
            return job.wanted and not self._stopped

        def emit(chunk: Chunk) -> bool:
            job.give(chunk)
            self._wait_for_reader(job)
            return wanted()

        started = time.monotonic()
        done = decoder.generate(decoder.prompt(messages), job.parameters, emit, wanted)
        self.seconds_per_job += 0.3 * (time.monotonic() - started - self.seconds_per_job)
        if done is not None:
            job.give(done)
        elif self._stopped:
            raise self._closed()

    def _wait_for_reader(self, job: Job) -> None:
        """Pause while the reader is behind and nobody else waits: one slow reader must not hold up others."""
        while True:
            self.nudge.clear()
            if job.behind < WINDOW or not job.wanted or self._stopped or len(self.jobs) > 1:
                return
            self.nudge.wait()

    def _closed(self) -> RuntimeFailure:
        return RuntimeFailure(f"model {self._model} is closed")
