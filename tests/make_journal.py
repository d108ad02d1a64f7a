"""Makes a small journal with a task in every state, as an orchestrator leaves it that is killed.

`python tests/make_journal.py FILE`. The files of old versions in tests/data were made so, each with the code of its
version: journal1.db at the commit that brought the journal.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path

from mqttcollab.journal import NewTask
from mqttcollab.journal.sqlite import SqliteJournal

NOW_MS = 1_795_000_000_000


async def make(path: Path, folder: Path) -> None:
    journal = await SqliteJournal.open(folder / "journal", "orchestrator/1", now_ms=lambda: NOW_MS)
    for state in ("open", "answered", "done", "failed"):
        key = f"reply.gpt/@alice/{state}"
        await journal.accept(NewTask(key, "orchestrate.gpt", b'{"input":"hello"}', 30_000, tenant="city"))
        journal.append(key, "plan", {"plan": [state]})
        journal.append(key, "dispatch", {"step": 1, "agent": "phone"})
        if state == "failed":
            await journal.answer(key, None, "deadline_exceeded")
        elif state != "open":
            await journal.answer(key, f'{{"output":"{state}"}}'.encode(), "ok")
        if state == "done":
            journal.sent(key)
    while journal.waiting:
        await asyncio.sleep(0.01)
    with sqlite3.connect(folder / "journal") as live, sqlite3.connect(path) as copy:
        live.backup(copy)
    live.close()
    copy.close()
    await journal.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(make(Path(sys.argv[1]), Path(folder)))
