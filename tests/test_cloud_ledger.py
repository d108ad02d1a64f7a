"""The ledger: limits by day and tenant, across restarts, crashes and processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mqttcollab.cloud.ledger import Ledger, Limits, Outcome, utc_now
from mqttcollab.errors import ConfigError, RequestError

MANY = Limits(10**12)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(*times: datetime) -> Callable[[], datetime]:
    """A clock that shows these times, and then the last one."""
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


Opener = Callable[..., Awaitable[Ledger]]


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Opener]:
    """Opens the ledger; what the test does not close is closed after it."""
    ledgers: list[Ledger] = []

    async def open_it(now: Callable[[], datetime] = utc_now) -> Ledger:
        ledgers.append(await Ledger.open(path, now))
        return ledgers[-1]

    yield open_it
    for ledger in ledgers:
        await ledger.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


async def test_what_was_spent_holds_after_a_restart(opened: Opener) -> None:
    first = await opened()
    booked = await first.reserve("alice", "big", 900, MANY)
    await first.settle(booked, Outcome(600, tokens=7, seconds=1.5, redactions=2))
    booked = await first.reserve("bob", "big", 100, MANY)
    await first.settle(booked, Outcome(0, failed=True, seconds=9))
    before = await first.totals("big")
    await first.close()
    second = await opened()
    after = await second.totals("big")
    tenants = await second.tenants("big")
    with pytest.raises(RequestError, match=r"the limit over all is 0.0000007 USD a day; 0.0000006 are spent"):
        await second.reserve("alice", "big", 101, Limits(700))
    await second.close()
    assert before == after
    assert (after.nano, after.nano_today, after.tokens, after.calls) == (600, 600, 7, 2)
    assert (after.errors, after.redactions, after.seconds) == (1, 2, 1.5)
    assert tenants == {"alice": 600, "bob": 0}


async def test_each_limit_is_named_with_what_is_spent_and_when_it_begins_anew(opened: Opener) -> None:
    ledger = await opened(at(NOON))
    limits = Limits(2000, 300, {"alice": 500, "eve": 0})
    for tenant, nano in (("alice", 500), ("bob", 300)):
        await ledger.settle(await ledger.reserve(tenant, "big", nano, limits), Outcome(nano))
    for tenant, nano, said in (
        ("alice", 1, "the limit of tenant 'alice' is 0.0000005 USD a day; 0.0000005 are spent or reserved"),
        ("bob", 1, "the limit of tenant 'bob' is 0.0000003 USD"),
        ("", 1201, "the limit over all is 0.000002 USD a day; 0.0000008 are spent"),
    ):
        with pytest.raises(RequestError, match=f"{said}.*begins anew at 00:00 UTC") as refused:
            await ledger.reserve(tenant, "big", nano, limits)
        assert (refused.value.code, refused.value.retry_after_ms) == ("quota_exceeded", 12 * 3600 * 1000)
    for tenant, nano, said in (
        ("", 301, "the limit of requests without a tenant is 0.0000003 USD"),
        ("eve", 0, "the limit of tenant 'eve' is 0 USD"),
        ("alice", 2001, "the limit over all"),
    ):
        with pytest.raises(RequestError, match=said) as refused:
            await ledger.reserve(tenant, "big", nano, limits)
        assert refused.value.retry_after_ms is None  # waiting is of no use
    await ledger.reserve("", "big", 200, limits)
    assert (await ledger.totals("big")).calls == 2


async def test_a_limit_of_zero_lets_nothing_through_not_even_what_is_free(opened: Opener) -> None:
    ledger = await opened()
    with pytest.raises(RequestError, match="is 0 USD a day"):
        await ledger.reserve("", "free", 0, Limits(0))


async def test_a_day_begins_at_midnight_utc(opened: Opener) -> None:
    late = datetime(2026, 3, 1, 23, 59, 59, 500_000, tzinfo=UTC)
    ledger = await opened(at(late, late, late + timedelta(seconds=1)))
    limits = Limits(100)
    booked = await ledger.reserve("alice", "big", 100, limits)
    with pytest.raises(RequestError) as refused:
        await ledger.reserve("alice", "big", 1, limits)
    assert refused.value.retry_after_ms == 500
    await ledger.settle(booked, Outcome(80))  # on the day on which it was sent
    assert (await ledger.totals("big")).nano_today == 0
    assert await ledger.tenants("big") == {"alice": 0}
    await ledger.reserve("alice", "big", 100, limits)
    await ledger.close()
    ledger = await opened(at(late))
    assert (await ledger.totals("big")).nano_today == 80


async def test_what_a_crash_left_counts_as_spent_and_is_told(
    opened: Opener, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from mqttcollab.cloud.ledger import Ledger, Limits\n"
        "async def main():\n"
        "    ledger = await Ledger.open(Path(sys.argv[1]))\n"
        "    await ledger.reserve('alice', 'big', 700_000, Limits(10**9))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), env=os.environ)
    assert await process.wait() == -signal.SIGKILL
    with caplog.at_level(logging.WARNING):
        ledger = await opened()
    assert "1 calls in the ledger were never settled" in caplog.text
    assert "their worst case, 0.0007 USD" in caplog.text
    assert (await ledger.totals("big")).nano_today == 700_000
    with pytest.raises(RequestError, match=r"0.0007 are spent or reserved"):
        await ledger.reserve("bob", "big", 300_001, Limits(1_000_000))
    await ledger.reserve("bob", "big", 300_000, Limits(1_000_000))


async def test_two_processes_do_not_overspend_together(opened: Opener, path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from mqttcollab.cloud.ledger import Ledger, Limits, Outcome\n"
        "from mqttcollab.errors import RequestError\n"
        "async def main():\n"
        "    ledger, sent = await Ledger.open(Path(sys.argv[1])), 0\n"
        "    for _ in range(60):\n"
        "        try:\n"
        "            booked = await ledger.reserve('alice', 'big', 10, Limits(1000))\n"
        "        except RequestError as error:\n"
        "            assert error.code == 'quota_exceeded', error\n"
        "            break\n"
        "        await ledger.settle(booked, Outcome(10))\n"
        "        sent += 1\n"
        "    await ledger.close()\n"
        "    print(sent)\n"
        "asyncio.run(main())"
    )
    start = asyncio.create_subprocess_exec
    both = [await start(sys.executable, "-c", code, str(path), stdout=asyncio.subprocess.PIPE) for _ in range(2)]
    sent = [int((await process.communicate())[0]) for process in both]
    ledger = await opened()
    assert sum(sent) == 100
    assert (await ledger.totals("big")).nano == 1000


async def test_many_at_once_do_not_overspend_and_those_under_way_are_not_shown(opened: Opener) -> None:
    ledger = await opened()
    limits = Limits(1000)
    tries = await asyncio.gather(*(ledger.reserve("", "big", 300, limits) for _ in range(8)), return_exceptions=True)
    booked = [found for found in tries if not isinstance(found, BaseException)]
    assert len(booked) == 3
    assert (await ledger.totals("big")).nano == 0
    await asyncio.gather(*(ledger.settle(found, Outcome(1)) for found in booked))
    assert (await ledger.totals("big")).nano == 3


async def test_who_is_cancelled_leaves_no_transaction_half_done(opened: Opener, path: Path) -> None:
    ledger = await opened()
    for _ in range(20):
        task = asyncio.create_task(ledger.reserve("", "big", 5, MANY))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    booked = await ledger.reserve("", "big", 5, MANY)
    await ledger.settle(booked, Outcome(5))
    await ledger.close()
    ledger = await opened()
    sums = await ledger.totals("big")
    assert (sums.nano, sums.calls) == (5, 1)
    await ledger.close()


def scribble(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


async def test_a_ledger_that_can_not_be_used_is_one_line(path: Path, tmp_path: Path) -> None:
    def make() -> list[tuple[Path, str]]:
        (tmp_path / "text").write_text("this is not a database at all, " * 100)
        scribble(tmp_path / "other", "CREATE TABLE cats (name TEXT)")
        scribble(tmp_path / "newer", "PRAGMA user_version = 99")
        return [
            (tmp_path / "text", "can't be used: file is not a database"),
            (tmp_path / "other", "is a database of something else: name another file"),
            (tmp_path / "newer", "has version 99, this program knows 1: update it"),
            (tmp_path, "unable to open database file"),
            (tmp_path / "no" / "such" / "folder", "unable to open database file; is its folder there and writable?"),
        ]

    for file, said in await asyncio.to_thread(make):
        with pytest.raises(ConfigError, match=said) as error:
            await Ledger.open(file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


async def test_where_the_file_can_not_be_written_nothing_is_sent(opened: Opener, path: Path) -> None:
    ledger = await opened()
    await asyncio.to_thread(scribble, path, "DROP TABLE days")
    with pytest.raises(RequestError, match=r"internal: the ledger can't be written \(.*\), so nothing was sent"):
        await ledger.reserve("", "big", 5, MANY)
