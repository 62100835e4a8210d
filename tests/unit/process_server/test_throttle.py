"""The throttle: the configured rate exactly, in order of arrival, changed live."""

from __future__ import annotations

import asyncio

import pytest

from process_server.throttle import Throttle
from replication.blob_client.pace import on_the_wire
from replication.blob_client.transport import SLICE_BYTES
from tests.harness.limit_windows import worst_window
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock

KIB = 1024
MBPS = 10**6


@in_virtual_time
async def test_without_a_limit_nobody_waits_and_slices_are_as_large_as_may_be() -> None:
    throttle = Throttle(None, virtual_clock())
    assert throttle.slice_bytes == SLICE_BYTES
    for _ in range(100):
        assert throttle.try_take_slice(2**30) == SLICE_BYTES
        assert await throttle.take_slice(2**30) == SLICE_BYTES
        await throttle.take(2**30)
    assert now_s() == 0
    assert throttle.sent_bytes == 100 * 2**30 + 200 * on_the_wire(SLICE_BYTES)


@in_virtual_time
async def test_the_rate_is_kept_to_over_time() -> None:
    throttle = Throttle(8 * MBPS, virtual_clock())  # a million bytes a second
    for _ in range(1000):
        await throttle.take(throttle.slice_bytes)
    await throttle.take(1)
    assert throttle.slice_bytes == 50_000
    assert now_s() == pytest.approx(50, rel=0.01)


@in_virtual_time
async def test_what_waits_goes_in_order_of_arrival() -> None:
    throttle, order = Throttle(8 * MBPS, virtual_clock()), []

    async def send(name: int, amount: int) -> None:
        await throttle.take(amount)
        order.append((name, round(now_s())))

    async with asyncio.TaskGroup() as tasks:
        for name, amount in enumerate((3_000_000, 2_000_000, 1)):
            tasks.create_task(send(name, amount))
    assert order == [(0, 0), (1, 3), (2, 5)]


@in_virtual_time
async def test_nobody_goes_at_once_while_others_wait_or_the_bucket_is_in_debt() -> None:
    throttle = Throttle(8 * MBPS, virtual_clock())
    await throttle.take(1_000_000)
    assert not throttle.try_take_slice(1)
    waiting = asyncio.create_task(throttle.take(1))
    await asyncio.sleep(0.99)
    assert not throttle.try_take_slice(1)
    await waiting
    assert throttle.sent_bytes == 1_000_001


@in_virtual_time
async def test_a_lifted_limit_reaches_who_waits_already() -> None:
    throttle = Throttle(512_000, virtual_clock())
    await throttle.take(8 * 2**20)  # a debt of two minutes
    waiting = asyncio.create_task(throttle.take(1))
    await asyncio.sleep(10)
    assert not waiting.done()
    throttle.set_limit(None)
    await waiting
    assert now_s() <= 10.25


@in_virtual_time
async def test_a_lowered_limit_counts_from_now_on() -> None:
    throttle = Throttle(None, virtual_clock())
    await throttle.take(10**9)
    throttle.set_limit(8 * MBPS)
    await throttle.take(1_000_000)
    assert now_s() == 0
    await throttle.take(1)
    assert now_s() == pytest.approx(1, abs=0.01)


@in_virtual_time
async def test_who_waits_already_when_the_limit_is_lowered_sends_no_slice_of_the_old_one() -> None:
    """As every ten seconds must keep to the limit from then on, with four uploads that have a slice of 256 KiB before them."""
    clock = virtual_clock()
    throttle, passed = Throttle(100 * MBPS, clock), []

    async def upload() -> None:
        while True:
            amount = throttle.try_take_slice(2**30) or await throttle.take_slice(2**30)
            passed.append((now_s(), on_the_wire(amount)))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(upload()) for _ in range(4)]
    await asyncio.sleep(5)
    throttle.set_limit(512_000)
    lowered_s = now_s()
    await asyncio.sleep(30)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    after = [each for each in passed if each[0] > lowered_s + 0.01]
    assert worst_window(after, [(lowered_s, 512_000)], now_s()) <= 1.03
    assert sum(amount for _, amount in after) >= 0.8 * 30 * 512_000 / 8


@in_virtual_time
async def test_who_is_cancelled_takes_nothing_and_holds_up_nobody() -> None:
    throttle = Throttle(8 * MBPS, virtual_clock())
    await throttle.take(1_000_000)
    first, second = asyncio.create_task(throttle.take(10**9)), asyncio.create_task(throttle.take(1))
    await asyncio.sleep(0.5)
    first.cancel()
    await second
    assert now_s() == pytest.approx(1, abs=0.01)
    assert throttle.sent_bytes == 1_000_001


@in_virtual_time
async def test_the_measured_rate_is_that_of_the_last_ten_seconds() -> None:
    throttle = Throttle(None, virtual_clock())
    for _ in range(40):
        await throttle.take(100 * KIB)
        await asyncio.sleep(0.5)
    assert throttle.measured_bytes_per_s() == pytest.approx(200 * KIB, rel=0.06)
    await asyncio.sleep(11)
    assert throttle.measured_bytes_per_s() == 0
