"""Notes in a file: JSON lines, replaced as a whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mqttcollab.cooperation.note import Note
from mqttcollab.errors import ConfigError

_NOTE = TypeAdapter(Note)


def write_notes(path: Path, notes: Sequence[tuple[Note, float]]) -> None:
    """Writes notes and their ages in seconds; whoever reads the file meanwhile gets the old one, whole.

    Raises:
        ConfigError: the file can't be written.
    """
    now = time.time()
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            for note, age_s in notes:
                content = asdict(note) | {"sources": [source.model_dump(exclude_none=True) for source in note.sources]}
                del content["learned_at"]  # the clock of one process says nothing to the next
                file.write(json.dumps(content | {"age_s": age_s, "saved_at": now}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: the notes can't be written: {error.strerror or error}") from None


def read_notes(path: Path) -> list[tuple[Note, float]]:
    """Notes and their present ages in seconds; none where the file is missing.

    Raises:
        ConfigError: the file can't be read, or a line of it is no note.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the notes can't be read: {error}") from None
    return [_read_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _read_line(line: str, where: str) -> tuple[Note, float]:
    try:
        content = json.loads(line)
        age_s = content.pop("age_s") + max(0.0, time.time() - content.pop("saved_at"))
        return _NOTE.validate_python(content), age_s
    except ValidationError as error:
        raise ConfigError(f"{where} is no note: {error.errors(include_url=False)[0]['msg']}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where} is no note: {type(error).__name__}: {error}") from None
