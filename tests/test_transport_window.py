"""How many publishes may be under way, and in which order received messages are acknowledged."""

from __future__ import annotations

import asyncio

import pytest
from harness import eventually
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.errors import TransportError
from mqttcollab.transport.acks import OrderedAcks
from mqttcollab.transport.window import Window


async def waiting(window: Window, *bulks: bool) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(window.acquire(bulk)) for bulk in bulks]
    await asyncio.sleep(0)
    return tasks


def done(tasks: list[asyncio.Task[None]]) -> list[bool]:
    return [task.done() for task in tasks]


async def finish(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_bulk_gets_half_and_control_goes_first() -> None:
    window = Window(4)
    assert [window.try_acquire(True) for _ in range(3)] == [True, True, False]
    assert [window.try_acquire(False) for _ in range(3)] == [True, True, False]
    tasks = await waiting(window, True, False, False)
    window.release()
    await asyncio.sleep(0)
    assert done(tasks) == [False, True, False]
    for _ in range(4):
        window.release()
    await asyncio.sleep(0)
    assert done(tasks) == [True, True, True]


async def test_nobody_jumps_the_queue() -> None:
    window = Window(1)
    assert window.try_acquire(False)
    tasks = await waiting(window, False)
    window.used = 0  # room, which belongs to who waits
    assert not window.try_acquire(False)
    window.wake()
    await asyncio.gather(*tasks)
    assert window.used == 1


async def test_who_gives_up_leaves_no_slot_taken() -> None:
    window = Window(1)
    assert window.try_acquire(False)
    first, second, third = await waiting(window, False, False, False)
    first.cancel()
    await asyncio.sleep(0)
    window.release()
    second.cancel()  # it has its slot already, and passes it on
    await asyncio.gather(first, second, return_exceptions=True)
    await third
    assert window.used == 1
    window.release()
    assert window.used == 0


async def test_a_closed_window_fails_who_waits_and_who_comes() -> None:
    window = Window(1)
    assert window.try_acquire(False)
    tasks = await waiting(window, False, True)
    window.close(TransportError("closed"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["closed", "closed"]
    with pytest.raises(TransportError, match="closed"):
        await window.acquire(False)


async def test_a_larger_limit_lets_more_in() -> None:
    window = Window(1)
    assert window.try_acquire(False)
    tasks = await waiting(window, False, False)
    window.limit = 3
    window.wake()
    await asyncio.gather(*tasks)
    assert window.used == 3


@given(st.lists(st.sampled_from(["control", "bulk", "release", "cancel"]), max_size=60))
def test_slots_are_neither_lost_nor_invented(steps: list[str]) -> None:
    async def play() -> None:
        window, tasks = Window(4), []
        for step in steps:
            if step == "release":
                if window.used:
                    window.release()
            elif step == "cancel":
                if tasks:
                    tasks.pop(0).cancel()
            else:
                tasks += await waiting(window, step == "bulk")
            await asyncio.sleep(0)
            assert 0 <= window.used <= 4
        await finish(tasks)
        while window.used:
            window.release()
        assert [window.try_acquire(False) for _ in range(5)] == [True] * 4 + [False]

    asyncio.run(play())


# --- acknowledgements


async def test_acknowledgements_keep_the_order_of_receipt() -> None:
    sent: list[int] = []
    acks, events = OrderedAcks(sent.append), [asyncio.Event() for _ in range(3)]
    acks.received(1, [])
    acks.received(2, [events[0].wait(), events[1].wait()])
    acks.received(3, [events[2].wait()])
    acks.received(4, [])
    assert sent == [1]
    for event, expected in ((events[2], [1]), (events[0], [1]), (events[1], [1, 2, 3, 4])):
        event.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert sent == expected
    acks.received(5, [])
    assert sent[-1] == 5
    await acks.close()


async def test_after_a_break_old_messages_are_not_acknowledged() -> None:
    sent: list[int] = []
    acks, event = OrderedAcks(sent.append), asyncio.Event()
    acks.received(1, [event.wait()])
    acks.forget()
    acks.received(1, [])
    event.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert sent == [1]
    await acks.close()


async def test_what_waits_for_one_future_is_acknowledged_with_it() -> None:
    sent: list[int] = []
    acks = OrderedAcks(sent.append)
    commits: list[asyncio.Future[int]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for mid in range(6):
        acks.received(mid, [commits[mid // 3]])
    acks.received(6, [])
    assert len(acks) == 7
    for commit, expected in zip(reversed(commits), ([], [0, 1, 2, 3, 4, 5, 6]), strict=True):
        commit.set_result(1)
        await asyncio.sleep(0)
        assert sent == expected
    acks.received(7, [commits[0]])
    await asyncio.sleep(0)
    assert sent[-1] == 7
    await acks.close()


async def test_a_future_that_fails_is_logged_once_and_acknowledged(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[int] = []
    acks, commit = OrderedAcks(sent.append), asyncio.get_running_loop().create_future()
    for mid in range(3):
        acks.received(mid, [commit])
    commit.set_exception(ZeroDivisionError("no disk"))
    await asyncio.sleep(0)
    assert sent == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == ["a handler failed: no disk"]
    await acks.close()


async def test_a_handler_that_never_ends_does_not_hold_back_the_others_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[int] = []
    acks, stuck = OrderedAcks(sent.append, limit_s=0.05), asyncio.Event()
    acks.received(1, [stuck.wait()])
    for mid in range(2, 5):
        acks.received(mid, [])
    acks.received(5, [stuck.wait()])
    await asyncio.sleep(0)
    assert sent == []
    await eventually(lambda: sent == [1, 2, 3, 4, 5])
    assert [record.getMessage() for record in caplog.records] == [
        "2 messages are not handled after 0.05 s: acknowledged all the same"
    ]
    stuck.set()
    await asyncio.sleep(0)
    acks.received(6, [])
    assert sent == [1, 2, 3, 4, 5, 6]  # none of them a second time
    await acks.close()


async def test_closing_leaves_the_futures_of_others_alone() -> None:
    sent: list[int] = []
    acks, commit = OrderedAcks(sent.append), asyncio.get_running_loop().create_future()
    acks.received(1, [commit])
    await acks.close()
    assert not commit.done()
    commit.set_result(None)
    await asyncio.sleep(0)
    assert sent == []


async def test_closing_cancels_handlers_under_way() -> None:
    sent: list[int] = []
    acks = OrderedAcks(sent.append)
    acks.received(1, [asyncio.Event().wait()])
    await asyncio.sleep(0)
    await acks.close()
    assert sent == []
