"""What every test gets: real brokers, and the watch over blocked event loops and things left behind."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import BlockBuster

from mqttcollab.broker import Broker, BrokerKind
from mqttcollab.errors import BrokerError
from mqttcollab.transport.memory import MemoryBroker

# Threads of asyncio itself: the default executor's, and the one that waits for a child process.
_ASYNCIO_THREADS = re.compile(r"asyncio_\d+|waitpid-\d+")
_THREAD_PATIENCE_S = 2.0
# Where it is asked whether a certificate or a model file exists, while nothing is served yet.
_ONCE_AT_START = (("mqttcollab/config.py", "parse"), ("mqttcollab/runtimes/config.py", "default_model_path"))


@pytest.fixture(scope="session", autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """A call of our package that blocks a running event loop raises `blockbuster.BlockingError`."""
    watch = BlockBuster("mqttcollab")
    for function in watch.functions.values():
        function.can_block_in("<frozen importlib._bootstrap>", "_find_and_load")  # once per module
    for place, name in _ONCE_AT_START:
        watch.functions["os.stat"].can_block_in(place, name)
    watch.activate()
    yield
    watch.deactivate()


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread, a task or a timer behind (its fixtures may still clean up)."""
    before = set(threading.enumerate())
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_no_leftover_tasks")
    yield
    left = [t for t in set(threading.enumerate()) - before if not _ASYNCIO_THREADS.fullmatch(t.name)]
    for thread in left:
        thread.join(_THREAD_PATIENCE_S / len(left))
    running = [thread.name for thread in left if thread.is_alive()]
    assert not running, f"threads left behind: {', '.join(running)}"


@pytest.fixture
async def _no_leftover_tasks() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    timers_before = set(_timers(loop))
    yield
    for _ in range(10):  # who was just cancelled gets a few turns to end
        await asyncio.sleep(0)
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() - before if task is not own]
    timers = [timer for timer in _timers(loop) if timer not in timers_before]
    assert not tasks, f"tasks left behind: {tasks}"
    assert not timers, f"timers left behind: {timers}"


def _timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    # No public way lists them; an event loop without this list goes unwatched.
    return [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]


@pytest.fixture
async def mosquitto() -> AsyncIterator[Broker]:
    """A Mosquitto of the test's own on free ports (it takes about 30 ms)."""
    async for broker in _running("mosquitto"):
        yield broker


@pytest.fixture
async def nats() -> AsyncIterator[Broker]:
    """A nats-server of the test's own on free ports."""
    async for broker in _running("nats"):
        yield broker


@pytest.fixture
def memory_broker() -> MemoryBroker:
    """A broker in memory."""
    return MemoryBroker()


async def _running(kind: BrokerKind) -> AsyncIterator[Broker]:
    broker = Broker(kind)
    try:
        await broker.start()
    except BrokerError as error:
        if str(error).startswith("no "):
            pytest.skip(str(error))
        raise
    yield broker
    await broker.kill()  # nothing of it is kept, and a clean end takes Mosquitto 0.3 s
    await broker.stop()
