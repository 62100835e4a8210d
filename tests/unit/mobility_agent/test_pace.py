"""The agent's pace: nobody waits without limits or while they are lifted, changes are live, threads wait too."""

from __future__ import annotations

import asyncio

import pytest

from mobility_agent.pace import CPU_STEP_BYTES, Pace
from replication.clock import Clock
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock

MB = 10**6


async def read(pace: Pace, amount_bytes: int) -> None:
    pace.read(await pace.step(), amount_bytes)


async def test_without_limits_nobody_waits_and_no_clock_is_asked() -> None:
    asked = [0.0, 0.0]
    pace = Pace(Clock(monotonic_s=asked.pop, sleep=lambda _: asyncio.sleep(0)), asked.pop)
    for _ in range(100):
        step = await pace.step()
        assert step.at_most_bytes is None
        pace.read(step, 2**30)
    pace.wait_in_thread(2**30, lambda: False)


@in_virtual_time
async def test_the_read_limit_is_kept_to_in_small_steps() -> None:
    pace = Pace(virtual_clock(), lambda: 0.0)
    pace.set_limits(10 * MB, None)
    for _ in range(200):
        step = await pace.step()
        assert step.at_most_bytes == MB // 2
        pace.read(step, MB // 2)
    await pace.step()
    assert now_s() == pytest.approx(10, rel=0.01)
    assert pace.waited_s["read"] == pytest.approx(now_s(), rel=0.01)
    assert pace.waited_s["cpu"] == 0


@in_virtual_time
async def test_what_was_allowed_and_not_read_is_given_back() -> None:
    pace = Pace(virtual_clock(), lambda: 0.0)
    pace.set_limits(10 * MB, None)
    for _ in range(100):
        await read(pace, MB // 10)
    assert now_s() < 1.1


@in_virtual_time
async def test_what_the_whole_process_uses_delays_reading() -> None:
    used_s = 0.0
    pace = Pace(virtual_clock(), lambda: used_s)
    pace.set_limits(None, 0.5)
    step = await pace.step()
    assert step.at_most_bytes == CPU_STEP_BYTES
    used_s = 5.0  # an inventory, say
    pace.read(step, CPU_STEP_BYTES)
    await pace.step()
    assert now_s() == pytest.approx(10, abs=0.3)
    assert pace.waited_s["cpu"] == pytest.approx(now_s(), abs=0.3)


@in_virtual_time
async def test_hours_without_anything_to_read_are_no_debt_however_long_they_last() -> None:
    used_s = 0.0
    pace = Pace(virtual_clock(), lambda: used_s)
    pace.set_limits(None, 0.1)
    await read(pace, MB)
    await asyncio.sleep(3600)
    used_s += 0.02 * 3600  # heartbeats, say
    await read(pace, MB)
    assert now_s() == 3600
    for _ in range(3600):
        await asyncio.sleep(1)
        used_s += 0.02
        pace.settle()
    await read(pace, MB)
    assert now_s() == 7200
    used_s += 5  # a burst, and then a moment of rest: it is made good all the same
    for _ in range(10):
        await asyncio.sleep(1)
        pace.settle()
    await read(pace, MB)
    assert now_s() == pytest.approx(7200 + 50, abs=2)


@in_virtual_time
async def test_a_changed_limit_reaches_those_that_wait() -> None:
    pace = Pace(virtual_clock(), lambda: 0.0)
    pace.set_limits(MB, None)
    await read(pace, 3600 * MB)
    waiting = asyncio.create_task(pace.step())
    await asyncio.sleep(10)
    assert not waiting.done()
    pace.set_limits(None, None)
    await waiting
    assert now_s() == pytest.approx(10, abs=0.3)


@in_virtual_time
async def test_lifted_limits_let_everybody_go_and_nothing_of_it_is_paid_for() -> None:
    used_s = 0.0
    pace = Pace(virtual_clock(), lambda: used_s)
    pace.set_limits(MB, 0.1)
    await read(pace, 100 * MB)
    waiting = asyncio.create_task(read(pace, MB))
    await asyncio.sleep(1)
    with pace.lifted():
        await waiting
        for _ in range(100):
            await read(pace, 1000 * MB)
        used_s += 1000
        assert now_s() == pytest.approx(1, abs=0.3)
        assert pace.is_lifted
    await pace.step()
    assert now_s() == pytest.approx(100, abs=1), "the debt from before is left, and no other"


@in_virtual_time
async def test_who_waits_may_be_cancelled_and_holds_up_nobody() -> None:
    pace = Pace(virtual_clock(), lambda: 0.0)
    pace.set_limits(10 * MB, None)
    await read(pace, 100 * MB)
    first, second = asyncio.create_task(read(pace, MB)), asyncio.create_task(read(pace, MB))
    await asyncio.sleep(1)
    first.cancel()
    await second
    assert now_s() == pytest.approx(10, abs=0.3)


def test_a_thread_waits_too_and_no_longer_than_somebody_wants_it() -> None:
    time_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal time_s
        time_s += seconds

    pace = Pace(Clock(monotonic_s=lambda: time_s), lambda: 0.0, sleep)
    pace.set_limits(4 * MB, None)
    for _ in range(11):
        pace.wait_in_thread(4 * MB, lambda: False)
    assert time_s == pytest.approx(10, abs=0.3)
    pace.wait_in_thread(4000 * MB, lambda: False)
    pace.wait_in_thread(4 * MB, lambda: time_s > 20)
    assert time_s == pytest.approx(20, abs=0.3)
