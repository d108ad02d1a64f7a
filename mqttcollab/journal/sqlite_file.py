"""Opens a journal's file: is it one, is it whole, and of which version?"""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

from mqttcollab.errors import ConfigError

_HERE = Path(__file__).parent
SCHEMAS = {int(re.sub(r"\D", "", file.stem)): file for file in sorted(_HERE.glob("sqlite[0-9]*.sql"))}
VERSION = max(SCHEMAS)
PATIENCE_S = 5.0  # for another process that writes
_CHECK_S = 0.5  # for looking the file over: a large one is not held up by it, and is looked over in part
_MARK = 0x6D71636A  # "mqcj": the file is a journal


def open_file(path: Path) -> sqlite3.Connection:
    """Opens the file for writing, makes it, or brings it to this version.

    Raises:
        ConfigError: it can't be written, is no journal, is damaged, or is a newer version's.
    """
    limit = time.monotonic() + PATIENCE_S
    while True:
        db = None
        try:
            db = _connect(str(path))
            _check(db, path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            migrate(db, path)
            return db
        except (sqlite3.Error, ConfigError) as error:
            if db is not None:
                db.close()
            if isinstance(error, ConfigError):
                raise
            # Who changes the mode of the file locks others out without waiting for them.
            if not is_busy(error) or time.monotonic() > limit:
                raise ConfigError(f"the journal {path} can't be opened: {explain(error)}") from None
            time.sleep(0.02)


def open_to_read(path: Path) -> sqlite3.Connection:
    """Opens the file without writing to it, also while others do.

    Raises:
        ConfigError: it isn't there, can't be read, is no journal, is damaged, or is another version's.
    """
    db = None
    try:
        if not path.exists():
            raise ConfigError(f"there is no journal {path}: is this the right path?")
        db = _connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        version = _check(db, path)
        if version < VERSION:
            raise ConfigError(
                f"the journal {path} has version {version}, this program reads {VERSION}:"
                " whoever writes it next with this program brings it there"
            )
    except (sqlite3.Error, OSError, ConfigError) as error:
        if db is not None:
            db.close()
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the journal {path} can't be read: {explain(error)}") from None
    return db


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Brings a journal to this version, in one transaction."""
    db.execute("BEGIN IMMEDIATE")  # two processes may come up together
    try:
        for number in range(_check_version(db, path) + 1, VERSION + 1):
            for statement in SCHEMAS[number].read_text(encoding="utf-8").split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_MARK}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def explain(error: Exception) -> str:
    """What the system says, and what may be done about it."""
    said = str(error)
    for words, advice in (
        ("disk is full", "make room on its disk, or name a path on another"),
        ("readonly", "may it be written, and its folder too?"),
        ("unable to open", "is its folder there and writable?"),
        ("not a database", "move it away, or name another file"),
        ("malformed", "it is damaged: move it away, and a new one is made"),
        ("locked", "another process has held it too long"),
        ("disk I/O error", "is its disk still there and sound?"),
    ):
        if words in said:
            return f"{said}; {advice}"
    return said


def is_busy(error: Exception) -> bool:
    """Whether another process has it."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False, uri=uri)


def _check(db: sqlite3.Connection, path: Path) -> int:
    version = _check_version(db, path)
    limit = time.monotonic() + _CHECK_S
    db.set_progress_handler(lambda: time.monotonic() > limit, 100_000)
    try:
        found = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        found = ["ok"]
    finally:
        db.set_progress_handler(None, 0)
    if found != ["ok"]:
        why = " ".join(found[0].replace("*** in database main ***", "").split())
        raise ConfigError(f"the journal {path} is damaged ({why}): move it away, and a new one is made")
    return version


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    ((mark,),) = db.execute("PRAGMA application_id").fetchall()
    ((version,),) = db.execute("PRAGMA user_version").fetchall()
    ((others,),) = db.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if mark != _MARK and (mark or version or others):
        raise ConfigError(f"the journal {path} is a database of something else: name another file")
    if version > VERSION:
        raise ConfigError(f"the journal {path} has version {version}, this program knows {VERSION}: update it")
    return int(version)
