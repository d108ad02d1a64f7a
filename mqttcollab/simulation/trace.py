"""Traces of requests: CSV with TIMESTAMP, ContextTokens and GeneratedTokens, as Azure publishes them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mqttcollab.errors import ConfigError
from mqttcollab.simulation.arrivals import Trace
from mqttcollab.simulation.engine import Arrival

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_FORMAT = f"expected CSV with the columns {', '.join(_COLUMNS)}"


def read_trace(path: Path, hours: float = math.inf) -> Trace:
    """Reads a trace; times count from its first row, gaps are times at which nothing came.

    Args:
        path: of the file; further columns are passed over.
        hours: that are taken of it, from its beginning.

    Raises:
        ConfigError: the file can't be read, a row is malformed or comes before the one above it, or nothing is left.
    """
    requests: list[Arrival] = []
    begin: datetime | None = None
    try:
        for line, time, prompt_tokens, tokens in _rows(path):
            begin = begin or time
            try:
                seconds = (time - begin).total_seconds()
            except TypeError:
                raise _wrong(path, line, "its time has a time zone and others have none, or the other way round") from (
                    None
                )
            if requests and seconds < requests[-1].time:
                raise _wrong(path, line, "it is earlier than the row before; sort the file by TIMESTAMP")
            if seconds <= hours * 3600:
                requests.append(Arrival(seconds, prompt_tokens, tokens))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text; {_FORMAT}") from None
    if not requests:
        raise ConfigError(f"{path} holds no rows; {_FORMAT}")
    if not requests[-1].time:
        raise ConfigError(f"{path}: all that is taken of it came at one time; a rate takes two")
    if not any(request.tokens or request.prompt_tokens for request in requests):
        raise ConfigError(f"{path}: no row has any tokens")
    return Trace(path.name, tuple(requests))


def _rows(path: Path) -> Iterator[tuple[int, datetime, float, float]]:
    """The number of the line, the time, the tokens read and written."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in _COLUMNS if name not in header]
            if missing:
                has = ", ".join(repr(name[:40]) for name in header[:8]) or "nothing"
                raise ConfigError(f"{path}, line 1: {', '.join(missing)} missing, it has {has}; {_FORMAT}")
            places = [header.index(name) for name in _COLUMNS]
            for row in reader:
                if not row:
                    continue
                line = reader.line_num
                if len(row) != len(header):
                    raise _wrong(path, line, f"{len(row)} cells where the header has {len(header)}")
                time, prompt_tokens, tokens = (row[place].strip() for place in places)
                yield (
                    line,
                    _time(path, line, time),
                    _count(path, line, _COLUMNS[1], prompt_tokens),
                    _count(path, line, _COLUMNS[2], tokens),
                )
        except csv.Error as error:
            raise _wrong(path, reader.line_num, str(error)) from None


def _time(path: Path, line: int, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo is not None else time
    except (ValueError, OverflowError):
        raise _wrong(path, line, f"TIMESTAMP is {text[:40]!r}, no time such as 2023-11-16 18:17:03.97") from None


def _count(path: Path, line: int, name: str, text: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not (math.isfinite(count) and count >= 0):
        raise _wrong(path, line, f"{name} is {text[:40]!r}, no number of tokens")
    return count


def _wrong(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {what}")
