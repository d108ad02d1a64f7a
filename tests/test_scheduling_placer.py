"""The scheduler on the event loop."""

from __future__ import annotations

import asyncio

import pytest
from schedulers import book_of, demand

from mqttcollab.errors import RequestError
from mqttcollab.scheduling import Candidates, Demand, Placer, Scheduler, make_policy


def placer_of(speeds: dict[str, float]) -> tuple[Placer, Candidates]:
    book, candidates = book_of(speeds)
    return Placer(Scheduler(make_policy("frugal"), book)), candidates


def own(placer: Placer) -> float:
    book = placer.scheduler.book
    return float(book.fleet(book.candidates(range(len(book))), 0.0).rows["own"].sum())


def patient(placer: Placer, name: str, seconds: float = 30.0, **fields: float) -> Demand:
    return demand(name, arrived=placer.now, wait_until=placer.now + seconds, **fields)


async def waits(placer: Placer, one: Demand, candidates: Candidates) -> asyncio.Task[object]:
    """A request that waits."""
    task: asyncio.Task[object] = asyncio.create_task(placer.place(one, candidates))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_those_who_wait_go_as_slots_become_free() -> None:
    placer, one = placer_of({"a": 10.0})
    demands = [patient(placer, name) for name in ("first", "second", "third")]
    first = await placer.place(demands[0], one)
    tasks = [asyncio.create_task(placer.place(each, one)) for each in demands[1:]]
    await asyncio.sleep(0)
    placer.ended(first, seconds=1.0, tokens=100)
    placer.close(demands[0])
    second = await tasks[0]
    assert (second.demand.id, second.row) == ("second", 0)
    assert not tasks[1].done()
    placer.busy(second)
    placer.close(demands[1])
    placer.scheduler.book.reported("a", placer.now, running=0, queued=0, slots=1)
    placer.changed()
    assert (await tasks[1]).demand.id == "third"
    placer.close(demands[2])
    assert own(placer) == 0


async def test_it_is_woken_when_it_has_waited_long_enough() -> None:
    placer, one = placer_of({"a": 10.0})
    first = patient(placer, "first")
    await placer.place(first, one)
    found = await asyncio.gather(
        placer.place(patient(placer, "dear", 0.02, cloud_usd=0.1), one),
        placer.place(patient(placer, "barred", 0.01), one),
        placer.place(demand("due", deadline=placer.now + 11.0, wait_until=placer.now + 0.03), one),
    )
    assert [placed.decision.kind for placed in found] == ["cloud", "refuse", "refuse"]
    for name in ("dear", "barred", "due", "first"):
        placer.close(demand(name))
    assert own(placer) == 0


async def test_a_busy_agent_is_asked_again_by_itself() -> None:
    placer, one = placer_of({"a": 1e4})
    first = patient(placer, "first")
    placed = await placer.place(first, one)
    placer.busy(placed)
    again = await asyncio.wait_for(placer.again(first), 20)
    assert again.row == placed.row
    placer.close(first)
    assert own(placer) == 0


async def test_one_that_is_cancelled_while_it_waits_is_over() -> None:
    placer, one = placer_of({"a": 10.0})
    first, second, third = (patient(placer, name) for name in ("first", "second", "third"))
    placed = await placer.place(first, one)
    second_task, third_task = await waits(placer, second, one), await waits(placer, third, one)
    second_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second_task
    assert placer.scheduler.waiting == 1
    placer.ended(placed, failed=True)
    placer.close(first)
    assert (await third_task).demand.id == "third"  # type: ignore[attr-defined]
    placer.close(third)
    assert own(placer) == 0


async def test_one_that_is_cancelled_just_as_it_is_placed_gives_its_slot_to_the_next() -> None:
    placer, one = placer_of({"a": 10.0})
    first, second, third = (patient(placer, name) for name in ("first", "second", "third"))
    await placer.place(first, one)
    second_task, third_task = await waits(placer, second, one), await waits(placer, third, one)
    placer.close(first)  # the second has the slot now, and does not know yet
    second_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second_task
    assert (await third_task).demand.id == "third"  # type: ignore[attr-defined]
    placer.close(third)
    assert own(placer) == 0


async def test_another_beside_one_that_is_late() -> None:
    placer, both = placer_of({"a": 10.0, "b": 20.0})
    first = patient(placer, "first")
    placed = await placer.place(first, both)
    assert placer.straggles_s(placed) == float("inf"), "nobody knows yet"
    beside = placer.beside(first)
    assert beside is not None and {placed.row, beside.row} == {0, 1}
    assert placer.beside(first) is None
    placer.close(first)
    assert own(placer) == 0


async def test_stopping_cancels_those_who_wait_and_leaves_no_timer() -> None:
    placer, one = placer_of({"a": 10.0})
    first = patient(placer, "first")
    await placer.place(first, one)
    tasks = [await waits(placer, patient(placer, f"waits {number}"), one) for number in range(3)]
    placer.stop()
    assert await asyncio.gather(*tasks, return_exceptions=True) != []
    assert all(task.cancelled() for task in tasks)
    assert placer.scheduler.waiting == 0
    placer.close(first)
    assert own(placer) == 0
    assert placer._timer is None


async def test_an_id_that_is_not_over_is_refused_and_the_first_goes_on() -> None:
    placer, one = placer_of({"a": 10.0})
    first = patient(placer, "first")
    await placer.place(first, one)
    with pytest.raises(RequestError, match="not over yet"):
        await placer.place(first, one)
    assert own(placer) == 1
    placer.close(first)
