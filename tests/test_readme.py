"""The README's agent is short, and runs as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

from fleet import client
from harness import LIMIT_S

from mqttcollab.broker import Broker

README = Path(__file__).parents[1] / "README.md"


async def test_the_agent_of_the_readme_answers_and_stops_cleanly(mosquitto: Broker, tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    code = found[1]
    assert len(code.splitlines()) < 15
    script = tmp_path / "door.py"
    script.write_text(code, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        env={**os.environ, "MQTTCOLLAB_BROKER": mosquitto.info.url},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with client().running(mosquitto.info.url) as asker:
            registry = await asker.follow()
            async with asyncio.timeout(LIMIT_S):
                while not registry.offers("data.gpt/building/visitors"):
                    await registry.changed()
            (offer,) = registry.offers("data.gpt/building/visitors")
            assert offer.record.description == "Counts who comes in at the north entrance."
            reply = await asker.ask("How many people came in?", service="data.gpt/building/visitors")
            assert reply.output == "41 people came in at the north entrance today."
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
