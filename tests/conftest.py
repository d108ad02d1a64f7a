"""What every test gets: real brokers, and the watch over blocked event loops and things left behind."""

from __future__ import annotations

import asyncio
import inspect
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
from blockbuster import BlockBuster
from harness import Setup, running, set_up
from hypothesis import settings

from mqttcollab.broker import Broker, BrokerKind, find_broker
from mqttcollab.errors import BrokerError
from mqttcollab.transport.memory import MemoryBroker

# Threads of asyncio itself: the default executor's, and the one that waits for a child process.
_ASYNCIO_THREADS = re.compile(r"asyncio_\d+|waitpid-\d+")
_THREAD_PATIENCE_S = 2.0
# Where it is asked whether a certificate or a model file exists, and where the small files that come with the
# package are read, while nothing is served yet.
_ONCE_AT_START = (("mqttcollab/config.py", "parse"), ("mqttcollab/runtimes/config.py", "default_model_path"))
_SHIPPED_FILES = (
    ("mqttcollab/classifiers/calibration_file.py", "shipped_calibration"),
    ("mqttcollab/classifiers/complexity.py", "load"),
    ("mqttcollab/classifiers/answers.py", "load_weights"),
)

# A shell has what it starts in the background ignore SIGINT, and the commands that tests interrupt would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a deadline: the machine that runs the tests may be busy.
settings.register_profile("mqttcollab", deadline=None, max_examples=50)
settings.load_profile("mqttcollab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives slow tests time on a busy machine."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


def _missing() -> Iterator[tuple[str, str]]:
    for kind in ("mosquitto", "nats"):
        try:
            find_broker(cast(BrokerKind, kind))
        except BrokerError as error:
            yield kind, str(error)


_MISSING = dict(_missing())


@pytest.fixture(scope="session", autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """A call of our package that blocks a running event loop raises `blockbuster.BlockingError`."""
    watch = BlockBuster("mqttcollab")
    for function in watch.functions.values():
        function.can_block_in("<frozen importlib._bootstrap>", "_find_and_load")  # once per module
    for place, name in _ONCE_AT_START:
        watch.functions["os.stat"].can_block_in(place, name)
    for place, name in _SHIPPED_FILES:
        for function in ("os.stat", "os.listdir", "os.scandir", "io.TextIOWrapper.read"):
            watch.functions[function].can_block_in(place, name)
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
    """A Mosquitto of the test's own."""
    _skip_without("mosquitto")
    async with running("mosquitto") as broker:
        yield broker


@pytest.fixture
async def nats() -> AsyncIterator[Broker]:
    """A nats-server of the test's own."""
    _skip_without("nats")
    async with running("nats") as broker:
        yield broker


@pytest.fixture
def memory_broker() -> MemoryBroker:
    """A broker in memory."""
    return MemoryBroker()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority (ca.crt) and a certificate of 127.0.0.1 (server.crt, server.key)."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command line is not installed")
    folder = tmp_path_factory.mktemp("certs")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "server"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
    authority = ("-subj", "/CN=test CA", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", "-key", "ca.key", "-days", "2", "-out", "ca.crt", *authority)
    openssl("req", "-new", "-key", "server.key", "-subj", "/CN=localhost", "-out", "server.csr")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san", "-days", "2")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.crt")
    return folder


@pytest.fixture(params=["memory", "mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1"])
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    """Each of the four set-ups in turn."""
    _skip_without(request.param.partition("-")[0])
    async with set_up(request.param) as setup:
        yield setup


def _skip_without(kind: str) -> None:
    if kind in _MISSING:
        pytest.skip(_MISSING[kind])
