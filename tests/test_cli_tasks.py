"""`mqttcollab tasks`: what it prints of a journal that an orchestrator holds."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from command import in_terminal, run
from journals import SqliteStore

from mqttcollab.journal import Journal, NewTask

PLAN = {"plan": {"origin": "clauses", "reason": "two clauses", "steps": [{"text": "one"}, {"text": "two"}]}}
STEP = {"number": 1, "service": "math.gpt", "agent": "phone", "status": "ok"}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "tasks.db")
    yield store
    await store.close()


async def fill(store: SqliteStore) -> Journal:
    """Three tasks of an orchestrator that stays up."""
    journal = await store.open("orchestrator/7")
    for name, tenant in (("abc1", "city"), ("abc2", ""), ("dead", "")):
        request = json.dumps({"input": f"What is {name}?"}).encode()
        key = f"reply.gpt/@alice/{name}"
        await journal.accept(NewTask(key, "orchestrate.gpt", request, 30_000, tenant))
    key = "reply.gpt/@alice/abc1"
    journal.append(key, "plan", PLAN)
    journal.append(key, "dispatch", {"step": 1, "agent": "phone", "service": "math.gpt", "request": "r1"})
    reply = {"step": 1, "agent": "phone", "status": "ok", "elapsed_ms": 12.4, "cost_usd": 0.0015}
    journal.append(key, "reply", reply)
    journal.append(key, "step", {"step": STEP, "reply": {"output": "seven\x1b[31m"}})
    journal.append(key, "takeover", {"from": "orchestrator/6"})
    journal.append(key, "resumed", {"steps": [1], "why": "it came back"})
    assert await journal.answer(key, b'{"output":"It is seven."}', "ok")
    assert await journal.answer("reply.gpt/@alice/dead", None, "deadline_exceeded")
    return journal


async def test_tasks_are_listed_while_the_orchestrator_runs(store: SqliteStore) -> None:
    journal = await fill(store)
    result = await run("tasks", "--journal", store.where)
    assert (result.code, result.err) == (0, "")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [row[:6] for row in rows] == [
        ["dead", "done", "deadline_exceeded", "orchestrate.gpt", "orchestrator/7", "-"],
        ["abc2", "open", "-", "orchestrate.gpt", "orchestrator/7", "-"],
        ["abc1", "answered", "ok", "orchestrate.gpt", "orchestrator/7", "city"],
    ]
    assert re.fullmatch(r"\d+ s", rows[0][6]) and re.fullmatch(r"\d+\.\d\d s", rows[0][7]) and rows[1][7] == "-"
    assert await journal.answer("reply.gpt/@alice/abc2", b"{}", "ok")  # it was not taken over
    assert set(await journal.owners()) == {"orchestrator/7"}


async def test_tasks_are_filtered_and_given_as_json(store: SqliteStore) -> None:
    await fill(store)
    cases: dict[tuple[str, ...], list[str]] = {
        ("--owner", "orchestrator", "--tenant", "city"): ["abc1"],
        ("--outcome", "deadline_exceeded"): ["dead"],
        ("--since", "2h", "--most", "2"): ["dead", "abc2"],
    }
    for words, expected in cases.items():
        result = await run("tasks", *words, "--json", MQTTCOLLAB_JOURNAL=store.where)
        assert [task["id"] for task in json.loads(result.out)] == expected, (words, result.err)
    result = await run("tasks", "--state", "open", "--json", MQTTCOLLAB_JOURNAL=store.where)
    (task,) = json.loads(result.out)
    assert task["key"] == "reply.gpt/@alice/abc2" and task["deadline_ms"] - task["accepted_ms"] == 30_000


async def test_show_tells_what_happened(store: SqliteStore) -> None:
    await fill(store)
    result = await run("tasks", "show", "abc1", "--journal", store.where)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "abc1  orchestrate.gpt  ok (its reply may not be with the broker)"
    assert lines[1].strip() == "for @alice, tenant city"
    assert lines[2].endswith("30.0 s to live") and lines[3].strip() == "What is abc1?"
    timeline = [re.sub(r"^ *\+\d+\.\d{3} s  ", "", line) for line in lines[4:]]
    assert timeline == [
        "plan 2 steps (clauses): two clauses",
        "dispatch #1 to @phone math.gpt",
        "reply #1 from @phone ok 12 ms 0.001500 USD",
        "step #1 math.gpt ok “seven\\x1b[31m”",
        "takeover by orchestrator/7 from orchestrator/6",
        "resumed steps=[1] why=it came back",
        "ended: ok, by orchestrator/7",
        "              It is seven.",
    ]
    still = (await run("tasks", "--journal", store.where, "show", "abc2")).out.splitlines()
    assert re.search(r"open, \d+\.\d s left, with orchestrator/7", still[-1])


async def test_show_gives_all_as_json(store: SqliteStore) -> None:
    await fill(store)
    found = json.loads((await run("tasks", "show", "abc1", "-j", store.where, "--json")).out)
    assert (found["request"], found["reply"]) == ({"input": "What is abc1?"}, {"output": "It is seven."})
    assert [entry["kind"] for entry in found["history"]] == ["plan", "dispatch", "reply", "step", "takeover", "resumed"]
    assert found["history"][0]["facts"] == PLAN and found["outcome"] == "ok"


async def test_prune_deletes_what_has_ended(store: SqliteStore) -> None:
    journal = await fill(store)
    prune = ("tasks", "prune", "--journal", store.where)
    assert (await run(*prune, "--older-than", "7d")).out == "0 tasks were deleted\n"
    assert (await run(*prune, "--older-than", "0s", "--dry-run")).out == "1 tasks would be deleted\n"
    assert len(await journal.tasks()) == 3
    assert json.loads((await run(*prune, "--older-than", "0", "--json")).out) == {"pruned": 1, "dry_run": False}
    assert [task.id for task in await journal.tasks()] == ["abc2", "abc1"]
    assert set(await journal.owners()) == {"orchestrator/7"}


@pytest.mark.slow
async def test_what_can_not_be_done_is_one_line(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store)
    await asyncio.to_thread((tmp_path / "text").write_text, "not a database " * 1000)
    for words, said in (
        (["tasks"], "which journal? Name one with --journal, or in MQTTCOLLAB_JOURNAL"),
        (["tasks", "-j", str(tmp_path / "none")], f"there is no journal {tmp_path / 'none'}: is this the right path?"),
        (["tasks", "-j", str(tmp_path / "text")], "file is not a database"),
        (["tasks", "prune", "--older-than", "1d", "-j", str(tmp_path / "none")], "there is no journal"),
        (["tasks", "show", "xyz", "-j", store.where], f"there is no task 'xyz' in {store.where}"),
        (["tasks", "show", "abc", "-j", store.where], "'abc' is the beginning of several tasks (abc2, abc1 …)"),
        (["tasks", "-j", "postgresql://me:secret@127.0.0.1:1/x"], "postgresql://127.0.0.1:1/x can't be used"),
    ):
        error = (await run(*words, MQTTCOLLAB_JOURNAL="")).error
        assert error.startswith("error: ") and said in error and "secret" not in error, error
    assert not await asyncio.to_thread((tmp_path / "none").exists)
    refused = await run("tasks", "--since", "yesterday", "-j", store.where)
    assert refused.code == 2 and "is not a time such as 90s, 5m, 2h or 7d" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 130])
async def test_in_a_terminal_there_is_a_table(store: SqliteStore, columns: int) -> None:
    await fill(store)
    lines = await in_terminal(columns, "tasks", "--journal", store.where, broker="mqtt://127.0.0.1:1")
    assert all(len(line) <= columns for line in lines)
    text = "\n".join(lines)
    for word in (
        "abc1",
        "abc2",
        "open",
        "deadline_exceeded",
        "orchestrator/7",
        *(["tenant", "city"] * (columns > 100)),
    ):
        assert word in text
