"""Progress under slm/inference where the broker takes it more slowly than it comes."""

from __future__ import annotations

import logging

import pytest
from harness import eventually

from mqttcollab.messages import Plan
from mqttcollab.orchestrator.progress import Progress
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

TASKS = 3000  # of three topics each: more than the queue takes


async def test_what_is_over_is_cleared_however_slow_the_broker_is(
    memory_broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="mqttcollab")
    transport = MemoryTransport(memory_broker, "head")
    await transport.connect()
    progress = Progress(transport)
    for number in range(TASKS):
        task = progress.of(f"task-{number}")
        task.asked("?")
        task.planned(Plan(origin="whole", reason="it is one question"))
        task.done("42")
    await eventually(lambda: progress._queue.empty())
    await eventually(lambda: len({topic.split("/")[2] for topic in memory_broker.retained}) <= 64)
    assert len(caplog.records) < 10
    await progress.close()
    assert not memory_broker.retained
    await transport.close()
