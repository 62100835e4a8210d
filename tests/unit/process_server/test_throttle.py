"""The throttle: the configured rate exactly, in order of arrival, changed live."""

from __future__ import annotations

import asyncio

import pytest

from process_server.throttle import Throttle
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock

KIB = 1024
MBPS = 10**6


@in_virtual_time
async def test_without_a_limit_nobody_waits() -> None:
    throttle = Throttle(None, virtual_clock())
    for _ in range(100):
        await throttle.acquire(2**30)
    assert now_s() == 0
    assert throttle.granted_bytes == 100 * 2**30


@in_virtual_time
async def test_the_rate_is_kept_to_over_time() -> None:
    throttle = Throttle(8 * MBPS, virtual_clock())  # a million bytes a second
    for _ in range(100):
        await throttle.acquire(500_000)
    await throttle.acquire(1)
    assert now_s() == pytest.approx(50, rel=0.01)


@in_virtual_time
async def test_what_waits_goes_in_order_of_arrival() -> None:
    throttle, order = Throttle(8 * MBPS, virtual_clock()), []

    async def send(name: int, amount: int) -> None:
        await throttle.acquire(amount)
        order.append((name, round(now_s())))

    async with asyncio.TaskGroup() as tasks:
        for name, amount in enumerate((3_000_000, 2_000_000, 1)):
            tasks.create_task(send(name, amount))
    assert order == [(0, 0), (1, 3), (2, 5)]


@in_virtual_time
async def test_a_lifted_limit_reaches_who_waits_already() -> None:
    throttle = Throttle(64_000, virtual_clock())
    await throttle.acquire(8 * 2**20)  # a debt of a quarter of an hour
    waiting = asyncio.create_task(throttle.acquire(1))
    await asyncio.sleep(10)
    assert not waiting.done()
    throttle.set_limit(None)
    await waiting
    assert now_s() <= 10.25


@in_virtual_time
async def test_a_lowered_limit_counts_from_now_on() -> None:
    throttle = Throttle(None, virtual_clock())
    await throttle.acquire(10**9)
    throttle.set_limit(8 * MBPS)
    await throttle.acquire(1_000_000)
    assert now_s() == 0
    await throttle.acquire(1)
    assert now_s() == pytest.approx(1, abs=0.01)


@in_virtual_time
async def test_who_is_cancelled_takes_nothing_and_holds_up_nobody() -> None:
    throttle = Throttle(8 * MBPS, virtual_clock())
    await throttle.acquire(1_000_000)
    first, second = asyncio.create_task(throttle.acquire(10**9)), asyncio.create_task(throttle.acquire(1))
    await asyncio.sleep(0.5)
    first.cancel()
    await second
    assert now_s() == pytest.approx(1, abs=0.01)
    assert throttle.granted_bytes == 1_000_001


@in_virtual_time
async def test_the_measured_rate_is_that_of_the_last_ten_seconds() -> None:
    throttle = Throttle(None, virtual_clock())
    for _ in range(40):
        await throttle.acquire(100 * KIB)
        await asyncio.sleep(0.5)
    assert throttle.measured_bytes_per_s() == pytest.approx(200 * KIB, rel=0.06)
    await asyncio.sleep(11)
    assert throttle.measured_bytes_per_s() == 0
