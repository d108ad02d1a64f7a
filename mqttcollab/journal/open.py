"""Opens a journal by what names it: a path, or a server's URL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mqttcollab.errors import ConfigError
from mqttcollab.journal.base import Journal, Limits

if TYPE_CHECKING:
    from mqttcollab.journal.postgres import PostgresJournal
    from mqttcollab.journal.sqlite import SqliteJournal

_NO_LIMITS = Limits()


async def open_journal(where: str, owner: str, *, limits: Limits = _NO_LIMITS, lease_s: float = 3.0) -> Journal:
    """Opens the journal at a path, or on a PostgreSQL server (`postgresql://…`); makes it where there is none.

    Args:
        owner: the incarnation that writes, `<name>/<epoch>`; empty to prune what is there, without a lease.
        lease_s: after so many seconds without a sign of life others may take its tasks over.

    Raises:
        ConfigError: it can't be used, or the package for it is not installed.
    """
    return await _store(where).open(where, owner, limits=limits, lease_s=lease_s)


async def read_journal(where: str) -> SqliteJournal | PostgresJournal:
    """Opens a journal that is there only to look at it: nobody's lease, and nothing can be written.

    Raises:
        ConfigError: it isn't there, can't be used, or the package for it is not installed.
    """
    return await _store(where).read(where)


def _store(where: str) -> type[SqliteJournal] | type[PostgresJournal]:
    server = where.startswith(("postgresql://", "postgres://"))
    package, extra = ("psycopg", "postgres") if server else ("aiosqlite", "journal")
    try:
        module = import_module(f"mqttcollab.journal.{'postgres' if server else 'sqlite'}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ConfigError(f"this journal needs {package}; get it with: pip install 'mqttcollab[{extra}]'") from None
    found: type[SqliteJournal] | type[PostgresJournal] = module.PostgresJournal if server else module.SqliteJournal
    return found
