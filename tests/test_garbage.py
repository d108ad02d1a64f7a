"""A device that sends garbage at full speed changes nobody else's answers."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import client, echo_agent, known
from fuzz.seeds import HOSTILE, PAYLOADS
from harness import eventually

from mqttcollab import Request
from mqttcollab.broker import Broker
from mqttcollab.orchestrator import orchestrator_agent
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.topics import ORCHESTRATION

ECHO, HOLD = "knowledge.gpt/echo", "knowledge.gpt/hold"
HONEST, QUESTIONS = 4, 50
_GROWTH_MB = 100  # replies are remembered up to 16 MB by each of the agents, and Python keeps what it once had
_MOST_LINES = 400


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _packet(head: int, body: bytes) -> bytes:
    size, length = bytearray(), len(body)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([head]) + bytes([*size, length]) + body


def garbage(chance: random.Random) -> Iterator[tuple[bytes, bytes, bool]]:
    """Topics, payloads and whether they are retained, without end: noise, what is cut off, and what nobody wants."""
    topics = [
        *(f"{service}/@echo-1/{leaf}" for service in (ECHO, HOLD) for leaf in ("request", "cancel")),
        *(f"{ORCHESTRATION}/@boss/{leaf}" for leaf in ("request", "cancel")),
        *(f"slm/agents/@{name}/{leaf}" for name in ("g-1", "g-2") for leaf in ("status", "profile", "load")),
        *(f"{service}/@g-1" for service in (ECHO, "data.gpt/air")),
        *(f"reply.gpt/@honest-{number}/{{id}}" for number in range(HONEST)),
        *("slm/models/m/context_length", f"{ECHO}/request", "data.gpt/air/@g-1/observation", "slm/inference/x/y"),
    ]
    while True:
        topic = chance.choice(topics).format(id=chance.randbytes(16).hex())
        payload = chance.choice(PAYLOADS + HOSTILE)
        match chance.randrange(6):
            case 0:
                payload = chance.randbytes(chance.choice([0, 1, 30, 3000]))
            case 1:
                payload = payload[: chance.randrange(len(payload) + 1)]
            case 2 if payload:
                at = chance.randrange(len(payload))
                payload = payload[:at] + chance.randbytes(3) + payload[at + 3 :]
            case 3 if chance.random() < 0.02:
                payload = b"[" * chance.choice([300_000, 100_000])
            case 4:
                payload = chance.choice([b"online 1", b"offline 2", b"sleeping 3", chance.randbytes(16).hex().encode()])
            case _:
                pass
        yield topic.encode(), payload, topic.startswith(("slm/", "data.gpt")) or chance.random() < 0.1


class Rogue:
    """A client in MQTT 3.1.1 that only writes, as fast as the broker reads; QoS 0, so that nobody slows it down."""

    def __init__(self, broker: Broker, seed: int) -> None:
        self._broker = broker
        self._chance = random.Random(seed)
        self.sent = self.refused = 0

    async def run(self) -> None:
        messages = garbage(self._chance)
        while True:
            reader, writer = await asyncio.open_connection(self._broker.info.host, self._broker.info.port)
            try:
                writer.write(_packet(0x10, _string(b"MQTT") + bytes([4, 2, 0, 60]) + _string(b"rogue")))
                await reader.readexactly(4)
                while True:
                    for _ in range(20):
                        topic, payload, retain = next(messages)
                        writer.write(_packet(0x30 | retain, _string(topic) + payload))
                        self.sent += 1
                    if self._chance.random() < 0.001:  # the broker closes the connection for each of these
                        bad = self._chance.choice([b"slm/agents/\xff/status", b"a/+/b", b"\xed\xa0\x80", b"a\0b", b""])
                        writer.write(_packet(0x30, _string(bad) + b"x"))
                    await writer.drain()
                    await asyncio.sleep(0)
            except (OSError, asyncio.IncompleteReadError):
                self.refused += 1
            finally:
                writer.close()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    load_embedder("wordllama")  # before the event loop runs; it is kept


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.timeout(120)
async def test_everybody_else_gets_the_right_answers(mosquitto: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="mqttcollab")
    echo = echo_agent(heartbeat_s=1.0, report_s=0.2)

    @echo.service(HOLD, description="Holds on", concurrency=4)
    async def hold(request: Request) -> str:
        await asyncio.sleep(0.05)
        return request.text

    embedder = load_embedder("wordllama")
    boss, rogue = orchestrator_agent("boss", embedder), Rogue(mosquitto, seed=1)
    url = mosquitto.info.url
    async with echo.running(url), boss.running(url), asyncio.TaskGroup() as group:
        askers = [client(f"honest-{number}") for number in range(HONEST)]
        for asker in askers:
            await asker.start(url, patience_s=5)
        registry = await askers[0].follow()
        await known(lambda: registry.agents["boss"].records)
        before_mb = resident_mb()
        flood = group.create_task(rogue.run())
        await eventually(lambda: rogue.sent > 1000)

        async def ask_all(number: int) -> list[str | None]:
            answers = []
            for question in range(QUESTIONS):
                words = f"{number} asks {question}"
                service = (ECHO, HOLD)[question % 2]
                reply = await askers[number].ask(words, service=service, agent="echo-1", ttl_s=30)
                answers.append(reply.output)
            return answers

        found = await asyncio.gather(*(ask_all(number) for number in range(HONEST)))
        orchestrated = await askers[0].ask("Say hello", service=ORCHESTRATION, agent="boss", ttl_s=30)
        load = registry.agents["echo-1"].load
        sent, after_mb = rogue.sent, resident_mb()
        flood.cancel()
        assert registry.agents["echo-1"].present and "echo-1" in [o.agent.name for o in registry.offers(ECHO)]
        for asker in askers:
            await asker.stop()

    for number, answers in enumerate(found):
        for question, answer in enumerate(answers):
            words = f"{number} asks {question}"
            assert answer == (f"@echo-1: {words}" if question % 2 == 0 else words)
    assert orchestrated.output is not None and "Say hello" in orchestrated.output
    assert load is not None and load.rejected > 50 and load.last_rejection
    lines = [record for record in caplog.records if record.name.startswith("mqttcollab")]
    print(f"{sent} sent, {rogue.refused} times cut off, {len(lines)} log lines, {after_mb - before_mb:.1f} MB more")
    assert len(lines) < _MOST_LINES, [record.getMessage()[:120] for record in lines[:20]]
    assert not [record for record in lines if record.levelno >= logging.ERROR]
    assert after_mb - before_mb < _GROWTH_MB
