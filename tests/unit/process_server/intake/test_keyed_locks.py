"""Locks by key: one at a time for each, side by side for different ones, nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from process_server.intake.keyed_locks import KeyedLocks
from tests.harness.process_time import in_virtual_time, now_s


@in_virtual_time
async def test_one_at_a_time_for_a_key_and_others_side_by_side() -> None:
    locks: KeyedLocks[str] = KeyedLocks()

    async def work(key: str) -> None:
        async with locks.hold(key):
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as tasks:
        for key in "aaab":
            tasks.create_task(work(key))
        await asyncio.sleep(0.5)
        assert len(locks) == 2
    assert now_s() == 3
    assert len(locks) == 0


@in_virtual_time
async def test_who_is_cancelled_or_fails_leaves_the_lock_to_the_next() -> None:
    locks: KeyedLocks[str] = KeyedLocks()

    async def work() -> None:
        async with locks.hold("a"):
            await asyncio.sleep(1)

    first, second, third = (asyncio.create_task(work()) for _ in range(3))
    await asyncio.sleep(0.5)
    second.cancel()
    await asyncio.wait([first, second, third])
    assert now_s() == 2
    with pytest.raises(ZeroDivisionError):
        async with locks.hold("a"):
            raise ZeroDivisionError
    assert len(locks) == 0
