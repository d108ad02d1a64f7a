"""Reading the small CSV files that the sensor devices replay."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mqttcollab.errors import ConfigError


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header line; lines that begin with `#` are comments.

    Raises:
        ConfigError: the file is missing or unreadable, lacks a column, has no rows or a row that is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"data file {path} can't be read: {reason}") from error
    reader = csv.DictReader(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(f"data file {path} has no column {missing[0]!r}; it needs {', '.join(columns)}")
    rows = list(reader)
    if not rows:
        raise ConfigError(f"data file {path} has no rows")
    if any(row[column] is None for row in rows for column in columns):
        raise ConfigError(f"data file {path} has a row with too few values")
    return rows


def numbers(path: Path, rows: Sequence[dict[str, str]], column: str) -> list[float]:
    """Return one column as floats; `nan` and an empty cell are NaN.

    Raises:
        ConfigError: a cell holds no number; the message says which.
    """
    values = []
    for index, row in enumerate(rows, start=1):
        try:
            values.append(float(row[column] or "nan"))
        except ValueError as error:
            raise ConfigError(f"data file {path}, row {index}: {column} is {row[column]!r}, no number") from error
    return values
