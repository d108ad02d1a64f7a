"""Opens a journal by what names it: a path, or a server's URL."""

from __future__ import annotations

from mqttcollab.errors import ConfigError
from mqttcollab.journal.base import Journal, Limits


async def open_journal(where: str, owner: str, *, limits: Limits = Limits(), lease_s: float = 3.0) -> Journal:  # noqa: B008 - immutable
    """Opens the journal at a path.

    Raises:
        ConfigError: it can't be used, or the package for it is not installed.
    """
    try:
        from mqttcollab.journal.sqlite import SqliteJournal
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "aiosqlite":
            raise
        raise ConfigError("a journal needs aiosqlite; get it with: pip install 'mqttcollab[journal]'") from None
    return await SqliteJournal.open(where, owner, limits=limits, lease_s=lease_s)
