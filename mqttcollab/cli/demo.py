"""`mqttcollab demo`: questions for a fleet of devices, answered together and by the user's own device alone."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import mqttcollab
from mqttcollab.agent import Agent
from mqttcollab.cli.ask import Timeline
from mqttcollab.cli.children import Child
from mqttcollab.cli.client import running_client
from mqttcollab.cli.crew import ORCHESTRATOR, Crew, start_broker
from mqttcollab.cli.fleet import read_fleet
from mqttcollab.cli.show import answer_lines, console, errors, print_json, safe, warn
from mqttcollab.cli.signals import stop_event
from mqttcollab.config import BrokerAddress
from mqttcollab.errors import BrokerError, ConfigError, MqttCollabError
from mqttcollab.messages import Reply
from mqttcollab.topics import ORCHESTRATION

QUESTIONS = (
    "What is 17 + 25?",
    "Evaluate the environmental risks of setting up an outdoor event here this afternoon",
    "I feel dizzy and my heart is racing. What should I do?",
)
GENERAL = "knowledge.gpt/general"
_ANSWER_LIMIT_S = 60.0


class Demo:
    """One run of the demo.

    Args:
        fleet: its TOML file.
        as_json: standard output holds one JSON object per question, and nothing else.
    """

    def __init__(self, fleet: Path, *, as_json: bool) -> None:
        self.fleet = fleet
        self.tables = read_fleet(fleet)
        self.as_json = as_json
        self.view = errors if as_json else console

    async def run(self, questions: list[str], broker: str | None, *, keep: bool) -> int:
        """Starts everything, asks, and ends everything; returns the exit code: 0 if every question got an answer."""
        async with AsyncExitStack() as stack:
            broker_ended = asyncio.get_running_loop().create_future()
            if broker is None:
                broker = await self._broker(stack, broker_ended)
            me = await stack.enter_async_context(running_client(broker))
            crew = Crew(self.say)
            await stack.enter_async_context(crew.children)
            return await _unless(broker_ended, self._with(me, crew, broker, questions, keep=keep))

    async def _broker(self, stack: AsyncExitStack, ended: asyncio.Future[Child]) -> str:
        self.say("Starting a broker …")
        info = await start_broker(stack, ended.set_result)
        self.say(f"Broker: {info['kind']} {info['version']} at {info['url']}")
        self.say(f"Watch every step in another terminal: {_own_command()} sub -b {info['url']}")
        if shutil.which("mosquitto_sub"):
            self.say(f"                 or without decoding: mosquitto_sub -p {info['port']} -v -t '#'")
        return str(info["url"])

    async def _with(self, me: Agent, crew: Crew, broker: str, questions: list[str], *, keep: bool) -> int:
        registry = await me.follow()
        names = {ORCHESTRATOR, *(str(t["name"]) for t in self.tables.values() if "name" in t)}
        if taken := [view.name for view in registry.present() if view.name in names]:
            raise ConfigError(
                f"already online at {BrokerAddress.parse(broker)}: {', '.join('@' + name for name in taken)}; "
                "leave --broker away to start a fleet of your own, or ask the one there with `mqttcollab ask`"
            )
        many = f"{len(self.tables)} devices" if len(self.tables) > 1 else "1 device"
        self.say(f"Starting {many} of {self.fleet} and an orchestrator …")
        with self.view.status("starting …"):
            await crew.start(self.fleet, list(self.tables), broker)
            await registry.settle()
        if not registry.offers(GENERAL):
            warn(f"nobody offers {GENERAL}: there is no model to ask alone")
        answered = [await self._one(me, question) for question in questions]
        if keep:
            self.say(f"\nThe fleet stays up at {broker}; Ctrl-C ends it.")
            await stop_event().wait()
        return 0 if all(answered) else 1

    async def _one(self, me: Agent, question: str) -> bool:
        """Asks one question together and alone, and shows both."""
        loop = asyncio.get_running_loop()
        if not self.as_json:
            console.print(f"\n[bold]{safe(question)}[/]")
        reply, failure = None, ""
        with self.view.status("asking everybody who can help …") as status:
            together = Timeline(status, quiet=self.as_json)
            try:
                reply = await me.ask(question, service=ORCHESTRATION, ttl_s=_ANSWER_LIMIT_S, on_part=together.show)
            except MqttCollabError as error:
                failure = str(error)
        elapsed_ms = round(1000 * (loop.time() - together.begun), 1)
        if not self.as_json:
            console.print(f"[bold green]Together[/] ({elapsed_ms / 1000:.2f} s):")
            console.print(answer_lines(reply) if reply is not None else f"[red]{safe(failure)}[/]")
        alone = await self._alone(me, question)
        if self.as_json:
            print_json(_result(question, reply, together, alone, elapsed_ms, failure))
        return reply is not None

    async def _alone(self, me: Agent, question: str) -> str | None:
        """What the user's own device says by itself, shown as it says it."""
        offers = me.registry.offers(GENERAL)
        if not offers:
            return None
        name = offers[0].agent.name
        if not self.as_json:
            console.print(f"[bold yellow]Alone[/], @{name} says:")
        with self.view.status(f"@{name} is writing …") as status:
            timeline = Timeline(status, quiet=self.as_json)
            try:
                reply = await me.ask(
                    question, service=GENERAL, agent=name, ttl_s=_ANSWER_LIMIT_S, on_part=timeline.show
                )
            except MqttCollabError as error:
                warn(f"@{name} does not answer: {error}")
                return None
        if not self.as_json:
            console.print(timeline.end(reply))
        return reply.output

    def say(self, text: str) -> None:
        """A line about what the demo does."""
        self.view.print(text, markup=False)


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


async def _unless(broker_ended: asyncio.Future[Child], work: Coroutine[Any, Any, int]) -> int:
    """The result of the work; BrokerError if the broker ends before."""
    task = asyncio.ensure_future(work)
    first: list[asyncio.Future[Any]] = [task, broker_ended]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise BrokerError(f"the demo's broker is gone: {broker_ended.result().fate}")
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _own_command() -> str:
    """How this program can be called again from here."""
    if shutil.which("mqttcollab"):
        return "mqttcollab"
    if Path(sys.argv[0]).name == "mqttcollab":
        return sys.argv[0]
    return f"{sys.executable} -m mqttcollab"


def _result(
    question: str, reply: Reply | None, timeline: Timeline, alone: str | None, elapsed_ms: float, failure: str
) -> dict[str, Any]:
    steps = reply.steps if reply is not None else timeline.steps
    steps = sorted(steps, key=lambda step: (step.start_ms or 0) + (step.elapsed_ms or 0))  # as they ended
    result: dict[str, Any] = {
        "question": question,
        "answer": reply.output if reply else None,
        "sources": [source.model_dump(exclude_none=True) for source in reply.sources] if reply else [],
        "confidence": reply.confidence if reply else None,
        "alone": alone,
        "steps": [{key: getattr(step, key) for key in ("agent", "service", "status", "elapsed_ms")} for step in steps],
        "elapsed_ms": elapsed_ms,
    }
    if reply is not None and reply.missing:
        result["missing"] = reply.missing
    return result if reply else {**result, "error": failure}
