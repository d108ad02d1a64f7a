"""The journals against a simple model of what they promise: any order of calls, deaths and takeovers."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from journals import PostgresStore, SqliteStore, Store, new, postgres_or_skip
from postgres import Postgres

from mqttcollab.journal import Accepted, Journal

OWNERS = ("a/1", "a/2", "b/1", "c/1")  # two lives of one agent, and two others
KEYS = [new(name).key for name in ("one", "two", "three")]
SERVICES = dict(zip(KEYS, ("math.gpt", "math.gpt", "weather.gpt"), strict=True))
REPLIES = (None, b"x", b"y")

owners = st.sampled_from(OWNERS)
keys = st.sampled_from(KEYS)


@dataclasses.dataclass
class Model:
    owner: str
    state: str = "open"
    reply: bytes | None = None
    outcome: str = ""
    takeovers: int = 0


class JournalMachine(RuleBasedStateMachine):
    """Owners that do as they like; `make` gives a new, empty store."""

    make: Callable[[], Store]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.make()
        self.tasks: dict[str, Model] = {}
        self.alive = set(OWNERS)
        self.journals: dict[str, Journal] = {}

    @initialize()
    def open(self) -> None:
        async def open_all() -> None:
            for owner in OWNERS:
                self.journals[owner] = await self.store.open(owner)

        self.runner.run(open_all())

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()

    def dead(self, owner: str, me: str) -> bool:
        return owner != me and (owner == "" or owner.split("/")[0] == me.split("/")[0] or owner not in self.alive)

    def take(self, task: Model, me: str) -> None:
        task.owner, task.takeovers = me, task.takeovers + 1

    @rule(me=owners, key=keys)
    def accept(self, me: str, key: str) -> None:
        task = self.tasks.setdefault(key, Model(me))
        taken = task.state == "open" and self.dead(task.owner, me)
        if taken:
            self.take(task, me)
        if task.state != "open":
            expected = Accepted("ended", task.reply)
        else:
            expected = Accepted("mine" if task.owner == me else "others", taken=taken)
        asked = dataclasses.replace(new(key.rpartition("/")[2]), service=SERVICES[key])
        assert self.runner.run(self.journals[me].accept(asked)) == expected

    @rule(me=owners, key=keys, reply=st.sampled_from(REPLIES), outcome=st.sampled_from(("ok", "busy")))
    def answer(self, me: str, key: str, reply: bytes | None, outcome: str) -> None:
        task = self.tasks.get(key)
        if task is None or task.owner != me:
            expected = False
        elif task.state == "open":
            task.state = "done" if reply is None else "answered"
            task.reply, task.outcome, expected = reply, outcome, True
        else:
            expected = (task.reply, task.outcome) == (reply, outcome)
        assert self.runner.run(self.journals[me].answer(key, reply, outcome)) is expected

    @rule(me=owners, key=keys)
    def sent(self, me: str, key: str) -> None:
        if key in self.tasks and self.tasks[key].state == "answered":
            self.tasks[key].state = "done"

        async def note() -> None:
            journal = self.journals[me]
            journal.sent(key)
            async with asyncio.timeout(10):
                while journal.waiting:
                    await asyncio.sleep(0.001)

        self.runner.run(note())

    @rule(me=owners, gone=st.sets(owners), services=st.none() | st.sets(st.sampled_from(sorted(SERVICES.values()))))
    def claim(self, me: str, gone: set[str], services: set[str] | None) -> None:
        expected = set()
        ended = set()
        for key, task in self.tasks.items():
            if task.state != "done" and (self.dead(task.owner, me) or (task.owner in gone and task.owner != me)):
                ended.add(task.owner)
                if services is None or SERVICES[key] in services:
                    self.take(task, me)
                    expected.add((key, task.state, task.reply, task.takeovers))
        self.alive = (self.alive - ended) | {me}  # who claims is alive
        found = self.runner.run(self.journals[me].claim(gone, services))
        assert {(task.key, task.state, task.reply, task.takeovers) for task in found} == expected
        assert all(29_000 < task.left_ms <= 30_000 for task in found)
        assert [task.accepted_ms for task in found] == sorted(task.accepted_ms for task in found)

    @rule(me=owners)
    def release(self, me: str) -> None:
        for task in self.tasks.values():
            if task.owner == me and task.state == "open":
                task.owner = ""
        self.runner.run(self.journals[me].release())

    @rule(me=owners)
    def lease_runs_out(self, me: str) -> None:
        self.alive.discard(me)
        self.runner.run(self.store.expire(me))

    @rule(me=owners)
    def prune(self, me: str) -> None:
        ended = [key for key, task in self.tasks.items() if task.state == "done"]
        for key in ended:
            del self.tasks[key]
        assert self.runner.run(self.journals[me].prune()) == len(ended)

    @invariant()
    def the_journal_says_the_same(self) -> None:
        if not self.journals:
            return
        found = self.runner.run(self.journals["a/1"].tasks())
        assert {task.key: (task.owner, task.state, task.outcome, task.takeovers) for task in found} == {
            key: (task.owner, task.state, task.outcome, task.takeovers) for key, task in self.tasks.items()
        }
        alive = self.runner.run(self.journals["b/1"].owners())
        assert set(alive) == self.alive


def check(machine: type[JournalMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, print_blob=True)
    )


postgres = pytest.fixture(scope="module")(postgres_or_skip)


def sqlite_machine(folder: Path) -> type[JournalMachine]:
    def make() -> Store:
        return SqliteStore(Path(tempfile.mkdtemp(dir=folder)) / "journal")

    return type("OnSqlite", (JournalMachine,), {"make": staticmethod(make)})


def postgres_machine(postgres: Postgres) -> type[JournalMachine]:
    def make() -> Store:
        store = PostgresStore(postgres)
        store.sql_now("DROP SCHEMA IF EXISTS mqttcollab CASCADE")
        return store

    return type("OnPostgres", (JournalMachine,), {"make": staticmethod(make)})


def test_a_file_does_what_the_model_does(tmp_path: Path) -> None:
    check(sqlite_machine(tmp_path), 8)


@pytest.mark.slow
def test_a_file_does_what_the_model_does_at_length(tmp_path: Path) -> None:
    check(sqlite_machine(tmp_path), 100)


@pytest.mark.slow
def test_a_server_does_what_the_model_does(postgres: Postgres) -> None:
    check(postgres_machine(postgres), 40)
