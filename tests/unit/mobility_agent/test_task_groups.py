"""Tasks that live and end together: one plain error, no lost cancellation, nobody left behind."""

from __future__ import annotations

import asyncio

import pytest

from mobility_agent.task_groups import Crew, first_cause, together
from replication.errors import ResyncRequired, Retryable


async def value(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def fail(error: BaseException) -> int:
    await asyncio.sleep(0)
    raise error


async def wait_for_ever(ended: list[str]) -> int:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")
    return 0


async def test_results_come_in_order() -> None:
    assert await together(value(number) for number in range(5)) == [0, 1, 2, 3, 4]
    assert await together([]) == []


async def test_one_failure_ends_the_others_and_is_raised_as_it_is() -> None:
    ended: list[str] = []
    with pytest.raises(Retryable, match="cannot"):
        await together([wait_for_ever(ended), fail(Retryable("cannot")), wait_for_ever(ended)])
    assert ended == ["ended", "ended"]


async def test_an_error_of_the_product_goes_before_others() -> None:
    own, foreign = ResyncRequired("cannot go on"), OSError(5, "io")
    assert first_cause([foreign, own]) is own
    assert first_cause([foreign]) is foreign
    with pytest.raises(ResyncRequired):
        await together([fail(foreign), fail(own)])


async def test_a_cancellation_is_never_lost_to_an_error_of_the_same_moment() -> None:
    async def fail_when_cancelled() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Retryable("cannot even be cancelled") from None
        return 0

    task = asyncio.create_task(together([fail_when_cancelled()]))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancellation_waits_until_all_have_ended_however_often_it_comes() -> None:
    leave = asyncio.Event()
    ended: list[str] = []

    async def end_slowly() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            while not leave.is_set():
                try:
                    await leave.wait()
                except asyncio.CancelledError:
                    continue
            ended.append("ended")
            raise

    task = asyncio.create_task(together([end_slowly()]))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.001)
        assert not task.done()
    leave.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == ["ended"]


async def test_work_that_is_started_while_it_is_waited_for_is_waited_for_too() -> None:
    crew, done = Crew(), []

    async def start_another(left: int) -> None:
        await asyncio.sleep(0)
        if left:
            crew.start(start_another(left - 1))
        done.append(left)

    crew.start(start_another(3))
    await crew.finish()
    assert sorted(done) == [0, 1, 2, 3]
