"""`mqttcollab demo`: a broker, the devices and an orchestrator as processes, and questions for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.markup import escape

import mqttcollab
from mqttcollab.agent import Agent
from mqttcollab.broker import Broker
from mqttcollab.cli.fleet import read_fleet
from mqttcollab.cli.run import stop_signal
from mqttcollab.cli.show import client, console, errors, print_json, show_answer, step_line
from mqttcollab.config import BROKER_VARIABLE
from mqttcollab.errors import ConfigError, MqttCollabError, RequestError
from mqttcollab.messages import Reply
from mqttcollab.topics import ORCHESTRATION

QUESTIONS = (
    "What is 17 + 25?",
    "Evaluate the environmental risks of setting up an outdoor event here this afternoon",
    "I feel dizzy and my heart is racing. What should I do?",
)
GENERAL = "knowledge.gpt/general"
_START_LIMIT_S = 90.0
_ANSWER_LIMIT_S = 60.0


async def run_demo(
    questions: list[str] | None, broker: str | None, fleet: Path | None, *, keep: bool, as_json: bool
) -> int:
    """Runs the demo; returns the exit code: 0 if every question got an answer."""
    path = find_fleet(fleet)
    expected = {str(table.get("name", name)) for name, table in read_fleet(path).items()} | {"orchestrator"}
    async with contextlib.AsyncExitStack() as stack:
        if broker is None:
            info = (await stack.enter_async_context(Broker())).info
            broker = info.url
            _say(f"Broker: {info.kind} {info.version} at {info.url}", as_json)
            _say(f"Watch every step in another terminal: mosquitto_sub -p {info.port} -v -t '#'", as_json)
            _say(f"                           or decoded: mqttcollab sub --broker {info.url}", as_json)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mqttcollab-"))) / "log"
        processes = await stack.enter_async_context(_processes(path, broker, log))
        me = await stack.enter_async_context(client(broker).running(broker))
        await _wait_for(me, expected, processes, log, as_json)
        answered = [await _one(me, question, as_json) for question in questions or QUESTIONS]
        if keep:
            _say("\nThe fleet stays up; Ctrl-C ends it.", as_json)
            await stop_signal().wait()
    return 0 if all(answered) else 1


def find_fleet(given: Path | None) -> Path:
    """The fleet file: the one given, else devices/fleet.toml here or beside the package."""
    places = [given] if given else [Path("devices"), Path(mqttcollab.__file__).resolve().parents[1] / "devices"]
    for place in places:
        file = place / "fleet.toml" if place.is_dir() else place
        if file.is_file():
            return file
    raise ConfigError(
        f"no fleet at {places[0]}: run the demo in a clone of the repository, or name a file with --fleet"
    )


@contextlib.asynccontextmanager
async def _processes(fleet: Path, broker: str, log: Path) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """The fleet and the orchestrator, as a user would start them."""
    environment = {**os.environ, BROKER_VARIABLE: broker}
    with log.open("wb") as output:
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mqttcollab", "-v", *words, env=environment, stdout=output, stderr=output
            )
            for words in (["orchestrator"], ["agent", str(fleet)])
        ]
        try:
            yield processes
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))


async def _wait_for(
    me: Agent, expected: set[str], processes: list[asyncio.subprocess.Process], log: Path, as_json: bool
) -> None:
    """Waits until everybody is online; goes on without those that failed, and says which."""
    registry = await me.follow()
    deadline = asyncio.get_running_loop().time() + _START_LIMIT_S
    with errors.status("starting the devices …"):
        while missing := expected - {view.name for view in registry.present() if view.records}:
            text = log.read_text(encoding="utf-8", errors="replace")
            failures = [line for line in text.splitlines() if "error" in line.lower() or "ended with" in line]
            ended = [line for line in failures if "ended with exit code" in line]
            if asyncio.get_running_loop().time() > deadline or (ended and len(missing) <= len(ended)):
                break
            if any(process.returncode is not None for process in processes):
                raise RequestError("internal", f"the demo's processes ended: {' | '.join(failures) or text[-500:]}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await registry.changed()
    for view in registry.present():
        _say(f"  @{view.name}: {', '.join(sorted(view.records))}", as_json)
    for name in sorted(missing):
        errors.print(f"@{name} is not online: {' | '.join(failures) or 'no answer'}", style="yellow")


async def _one(me: Agent, question: str, as_json: bool) -> bool:
    """Asks one question together and alone, and shows both."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    if not as_json:
        console.print(f"\n[bold]{escape(question)}[/]")

    def on_part(part: Reply) -> None:
        for step in part.steps:
            console.print(step_line(step, loop.time() - begun))

    reply: Reply | None = None
    failure = ""
    try:
        reply = await me.ask(
            question, service=ORCHESTRATION, ttl_s=_ANSWER_LIMIT_S, on_part=None if as_json else on_part
        )
    except MqttCollabError as error:
        failure = str(error)
    elapsed_ms = round(1000 * (loop.time() - begun), 1)
    alone = await _alone(me, question)
    if as_json:
        print_json(_result(question, reply, failure, alone, elapsed_ms))
    else:
        console.print(f"[bold green]Together[/] ({elapsed_ms / 1000:.2f} s):")
        if reply is not None:
            show_answer(reply)
        else:
            console.print(f"[red]{escape(failure)}[/]")
        console.print(f"[bold yellow]The phone alone:[/] {escape(alone or '(the phone does not answer)')}")
    return reply is not None


async def _alone(me: Agent, question: str) -> str | None:
    """What the phone's own model says, asked directly."""
    try:
        return (await me.ask(question, service=GENERAL, ttl_s=_ANSWER_LIMIT_S)).output
    except MqttCollabError as error:
        errors.print(f"the phone alone: {error}", style="yellow")
        return None


def _result(question: str, reply: Reply | None, failure: str, alone: str | None, elapsed_ms: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "question": question,
        "answer": reply.output if reply else None,
        "sources": [s.model_dump(exclude_none=True) for s in reply.sources] if reply else [],
        "confidence": reply.confidence if reply else None,
        "alone": alone,
        "steps": [
            {"agent": s.agent, "service": s.service, "status": s.status, "elapsed_ms": s.elapsed_ms}
            for s in (reply.steps if reply else [])
        ],
        "missing": reply.missing if reply else [],
        "elapsed_ms": elapsed_ms,
    }
    return result if reply else {**result, "error": failure}


def _say(text: str, as_json: bool) -> None:
    (errors if as_json else console).print(text)
