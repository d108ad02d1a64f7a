"""The thread in which a model runs, and what passes between it and an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence

from mqttcollab.errors import MqttCollabError, RequestError, RuntimeFailure
from mqttcollab.runtimes.base import ChatMessage, Chunk, GenerationParameters
from mqttcollab.runtimes.decoder import Done
from mqttcollab.runtimes.engine import Died, Engine

_log = logging.getLogger(__name__)
# Chunks that a reader may be behind before the model waits for it.
WINDOW = 32
_EXIT_TIMEOUT_S = 5.0
_BACKOFF_S = 0.25
_MOST_BACKOFF_S = 60.0
_LONGEST_WAIT_S = 1.0  # of a request for a process that is to be started again


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
    """Owns an engine and works on one job after another. Does not know its runtime, so that can be collected.

    An engine that fails to load, or whose process dies, is started again: after a quarter of a second, then after twice
    as long each time, up to a minute, until a request has been answered. Who asks meanwhile waits where that takes a
    second at most, and is told `busy` where it takes longer.

    Attributes:
        jobs: those not answered yet.
        nudge: set when something changed for which a paused generation may be waiting.
        seconds_per_job: moving average.
        trouble: why the model can't answer just now, in one line; None if it can, or has not been loaded yet.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self.jobs: set[Job] = set()
        self.nudge = threading.Event()
        self.seconds_per_job = 1.0
        self.trouble: str | None = None
        self.engine = engine
        engine.on_end = self.look
        self._model = model
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._failures = 0
        self._retry_at = 0.0
        self._died = False
        self._listeners: list[tuple[asyncio.AbstractEventLoop | None, Callable[[str | None], None]]] = []
        self._thread = threading.Thread(target=self._main, name=f"llama {model}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def listen(self, listener: Callable[[str | None], None]) -> None:
        """Have changes of `trouble` told, on the event loop that runs now; without one, in the worker's thread."""
        try:
            self._listeners.append((asyncio.get_running_loop(), listener))
        except RuntimeError:
            self._listeners.append((None, listener))

    def look(self) -> None:
        """Have the thread see after its engine."""
        self._queue.put(None)

    def submit(self, job: Job) -> None:
        """Queue a job; the first one starts the thread."""
        if self._stopped.is_set():
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
        self._stopped.set()
        self.engine.interrupt()
        self.look()
        self.nudge.set()

    def stop_and_join(self) -> None:
        """Stop and wait, for at most a few seconds."""
        self.stop()
        if self.alive and self._thread is not threading.current_thread():
            self._thread.join(_EXIT_TIMEOUT_S)

    def _main(self) -> None:
        while not self._stopped.is_set():
            try:
                job = self._queue.get(timeout=self._until_retry() if self.trouble else None)
            except queue.Empty:
                job = None
            if job is None:
                self._recover()
            elif job.wanted and not self._stopped.is_set():
                self._serve(job)
        self.engine.close()
        for left in tuple(self.jobs):
            left.give(self._closed())

    def _serve(self, job: Job) -> None:
        try:
            self._ready()
            if job.messages is not None:
                self._answer(job, job.messages)
            job.give(None)
        except MqttCollabError as error:
            job.give(self._closed() if self._stopped.is_set() else error)
        except Exception as error:
            _log.exception("model %s failed", self._model)
            job.give(RuntimeFailure(f"model {self._model} failed while it ran: {error!r}"))

    def _ready(self) -> None:
        self._look()
        if self.engine.ready:
            return
        if self._died:
            wait_s = self._until_retry()
            if wait_s > _LONGEST_WAIT_S:
                raise RequestError("busy", f"{self.trouble}", retry_after_ms=math.ceil(wait_s * 1000))
            self._stopped.wait(wait_s)
        self._load()

    def _recover(self) -> None:
        """Notice that the engine has died, or start it again, if it is time."""
        self._look()
        if self.trouble and self._until_retry() <= 0 and not self._stopped.is_set():
            with contextlib.suppress(MqttCollabError):
                self._load()

    def _look(self) -> None:
        if (died := self.engine.reap()) is not None:
            self._failed(died)

    def _load(self) -> None:
        try:
            self.engine.load()
        except MqttCollabError as error:
            self._failed(error)
            raise
        except Exception as error:
            _log.exception("model %s failed", self._model)
            failure = RuntimeFailure(f"model {self._model} can't be loaded: {error!r}")
            self._failed(failure)
            raise failure from error
        self._say(None)

    def _failed(self, error: MqttCollabError) -> None:
        self._failures += 1
        self._died = isinstance(error, Died)
        self._retry_at = time.monotonic() + min(_MOST_BACKOFF_S, _BACKOFF_S * 2.0 ** min(self._failures - 1, 30))
        if not self._stopped.is_set():
            self._say(str(error))

    def _until_retry(self) -> float:
        return max(0.0, self._retry_at - time.monotonic())

    def _say(self, trouble: str | None) -> None:
        if trouble == self.trouble:
            return
        self.trouble = trouble
        if trouble is not None:
            _log.warning("%s", trouble)
        for loop, listener in self._listeners:
            try:
                if loop is None:
                    listener(trouble)
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(listener, trouble)
            except Exception:  # of a listener, or that loop is closed just now
                _log.exception("a listener of model %s failed", self._model)

    def _answer(self, job: Job, messages: Sequence[ChatMessage]) -> None:
        def wanted() -> bool:
            return job.wanted and not self._stopped.is_set()

        def emit(chunk: Chunk) -> bool:
            job.give(chunk)
            self._wait_for_reader(job)
            return wanted()

        started = time.monotonic()
        try:
            done = self.engine.answer(messages, job.parameters, emit, wanted)
        except Died as error:
            self._failed(error)
            raise
        self.seconds_per_job += 0.3 * (time.monotonic() - started - self.seconds_per_job)
        self._failures = 0
        if done is not None:
            job.give(done)
        elif self._stopped.is_set():
            raise self._closed()

    def _wait_for_reader(self, job: Job) -> None:
        """Pause while the reader is behind and nobody else waits: one slow reader must not hold up others."""
        while True:
            self.nudge.clear()
            if job.behind < WINDOW or not job.wanted or self._stopped.is_set() or len(self.jobs) > 1:
                return
            self.nudge.wait()

    def _closed(self) -> RuntimeFailure:
        return RuntimeFailure(f"model {self._model} is closed")
