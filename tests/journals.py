"""Journals for tests: both stores behind one face, and processes that write to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres import Postgres, server, why_not

from mqttcollab.journal import Journal, Limits, NewTask, open_journal

NO_LIMITS = Limits()
SERVICE = "knowledge.gpt/general"


def new(name: str, ttl_ms: int = 30_000, *, tenant: str = "", request: bytes = b'{"input":"?"}') -> NewTask:
    return NewTask(f"reply.gpt/@alice/{name}", SERVICE, request, ttl_ms, tenant)


class Store(ABC):
    """A store, and what is done to it from outside."""

    where: str

    def __init__(self) -> None:
        self._open: list[Journal] = []

    async def open(self, owner: str, *, limits: Limits = NO_LIMITS, lease_s: float = 60.0) -> Journal:
        """A journal; what the test does not close is closed after it."""
        self._open.append(await open_journal(self.where, owner, limits=limits, lease_s=lease_s))
        return self._open[-1]

    async def close(self) -> None:
        for journal in self._open:
            await journal.close()
        self._open.clear()

    async def sql(self, query: str) -> list[Any]:
        """Runs a query beside the journals; tables are named as they are in SQLite."""
        return await asyncio.to_thread(self.sql_now, query)

    async def expire(self, owner: str) -> None:
        """As if its lease had run out."""
        await self.sql(f"UPDATE owners SET until_ms = 1 WHERE owner = '{owner}'")

    @abstractmethod
    def sql_now(self, query: str) -> list[Any]: ...


class SqliteStore(Store):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.where = path, str(path)

    def sql_now(self, query: str) -> list[Any]:
        db = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()


class PostgresStore(Store):
    def __init__(self, server: Postgres) -> None:
        super().__init__()
        self.server, self.where = server, server.url()

    def sql_now(self, query: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self.where, autocommit=True, options="-c search_path=mqttcollab") as db:
            cursor = db.execute(query.encode())
            return cursor.fetchall() if cursor.description else []


def postgres_or_skip() -> Iterator[Postgres]:
    """A fixture: a running server."""
    if (why := why_not()) is not None:
        pytest.skip(why)
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'mqttcollab[postgres]'")
    with server() as running:
        yield running


@contextlib.asynccontextmanager
async def child(code: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process; `code` is the body of `async def main(*words)`."""
    program = "\n".join(
        [
            "import asyncio, os, sys",
            "from mqttcollab.journal import NewTask, open_journal",
            "async def main(*words):",
            *(f"    {line}" for line in textwrap.dedent(code).strip().splitlines()),
            "asyncio.run(main(*sys.argv[1:]))",
        ]
    )
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
