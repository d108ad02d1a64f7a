"""Reads the rows of a data set, and says in which line one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from mqttcollab.errors import ConfigError

_FORMAT = "expected a JSON object a line (JSONL, UTF-8)"


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return each row with the number of its line, from 1; empty lines are left out.

    Lines end with a line feed alone: texts may hold other separators, such as U+2028.

    Raises:
        ConfigError: the file can't be read, holds nothing, or a line is no JSON object.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text; {_FORMAT}") from None
    lines = enumerate(text.split("\n"), 1)
    rows = [(number, _row(path, number, line)) for number, line in lines if line.strip()]
    if not rows:
        raise ConfigError(f"{path} holds no rows; {_FORMAT}")
    return rows


def text_of(path: Path, number: int, row: dict[str, Any], key: str) -> str:
    """Return the text under a key; raises ConfigError where there is none."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{path}, line {number}: {key!r} is missing or no text; it has {_keys(row)}")
    return value


def optional_text(path: Path, number: int, row: dict[str, Any], key: str) -> str | None:
    """Return the text under a key, empty or not, or None where it is missing or null."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{path}, line {number}: {key!r} is no text")
    return value


def flag_of(path: Path, number: int, row: dict[str, Any], key: str) -> bool:
    """Return the truth value under a key; raises ConfigError where there is none."""
    value = row.get(key)
    if not isinstance(value, bool):
        raise ConfigError(f"{path}, line {number}: {key!r} is missing or neither true nor false; it has {_keys(row)}")
    return value


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=_no_number)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except UnicodeEncodeError:
        raise ConfigError(f"{path}, line {number}: text that is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ConfigError(f"{path}, line {number}: not JSON ({why}); {_FORMAT}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{path}, line {number}: no JSON object; {_FORMAT}")
    return row


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(repr(key[:40]) for key in list(row)[:8]) or "no keys"
