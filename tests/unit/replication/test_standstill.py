"""A deadline that progress puts off: never late, rarely moved."""

from __future__ import annotations

import asyncio

import pytest

from replication.standstill import put_off


async def test_progress_puts_the_deadline_off_and_a_standstill_is_not_noticed_late() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5) as deadline:
        put_off(deadline, 100)
        when_s = deadline.when()
        assert when_s is not None
        assert loop.time() + 87 < when_s <= loop.time() + 100
        put_off(deadline, 100)  # near enough: the timer stays where it is
        assert deadline.when() == when_s
        put_off(deadline, 10)  # it was further away than that
        assert (deadline.when() or 0) <= loop.time() + 10
        put_off(deadline, 200)
        assert (deadline.when() or 0) > loop.time() + 174
        await asyncio.sleep(0)


async def test_a_deadline_that_has_passed_stays_so() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0) as deadline:
            await asyncio.sleep(10)
    put_off(deadline, 100)
    assert deadline.expired()
