"""Back-pressure of a spool that is nearly full: gradual, in the order of arrival, never a long wait, gone when there is room."""

from __future__ import annotations

import asyncio

import pytest

from process_server.core.spool_budget import SpoolBudget, SpoolUse
from process_server.intake.back_pressure import LONGEST_RETRY_S, LONGEST_WAIT_S, SLOWEST_BYTES_PER_S, BackPressure
from replication.errors import Overloaded
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock

LIMIT = 10 * 2**30
DRAIN = 10e6


class Rig:
    def __init__(self, free: float) -> None:
        self.free, self.drained = free, DRAIN
        self.budget = SpoolBudget(LIMIT)
        self.pressure = BackPressure(self.budget, self.use, lambda: self.drained, virtual_clock())

    def use(self) -> SpoolUse:
        return SpoolUse(int(LIMIT * (1 - self.free)), 0)


@in_virtual_time
async def test_with_a_fifth_free_nobody_waits() -> None:
    rig = Rig(free=0.21)
    for _ in range(100):
        await rig.pressure.admit(8 * 2**20)
    assert (now_s(), rig.pressure.waited_s, rig.pressure.rate_bytes_per_s()) == (0, 0.0, None)


@in_virtual_time
async def test_agents_that_come_back_when_they_are_told_get_exactly_the_rate() -> None:
    rig = Rig(free=0.12)
    rate = rig.pressure.rate_bytes_per_s()
    assert rate is not None
    accepted = 0

    async def agent() -> None:
        nonlocal accepted
        while now_s() < 60:
            try:
                await rig.pressure.admit(2**20)
                accepted += 2**20
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or 0)

    await asyncio.gather(*(agent() for _ in range(64)))
    assert accepted == pytest.approx(60 * rate, rel=0.1)
    assert rig.pressure.waited_s > 0


@in_virtual_time
async def test_nobody_waits_long_and_who_is_sent_away_has_paid_nothing() -> None:
    rig = Rig(free=0.0)
    assert rig.pressure.rate_bytes_per_s() == SLOWEST_BYTES_PER_S
    await rig.pressure.admit(2**20)
    for _ in range(3):
        with pytest.raises(Overloaded, match="nearly full") as refused:
            await rig.pressure.admit(2**20)
        assert refused.value.retry_after_s == pytest.approx(2**20 / SLOWEST_BYTES_PER_S, abs=0.01)
    await rig.pressure._clock.sleep(2**20 / SLOWEST_BYTES_PER_S - 1)
    began_s = now_s()
    await rig.pressure.admit(2**30)
    assert now_s() - began_s == pytest.approx(1, abs=0.01)
    assert now_s() - began_s <= LONGEST_WAIT_S
    with pytest.raises(Overloaded) as refused:
        await rig.pressure.admit(1)
    assert refused.value.retry_after_s == LONGEST_RETRY_S


@in_virtual_time
async def test_once_there_is_room_debts_are_forgiven() -> None:
    rig = Rig(free=0.0)
    await rig.pressure.admit(2**30)
    rig.free = 0.5
    await rig.pressure.admit(2**30)
    assert now_s() == 0


@in_virtual_time
async def test_file_system_that_something_else_fills_counts_too() -> None:
    rig = Rig(free=1.0)
    assert rig.pressure.rate_bytes_per_s() is None
    rig.pressure.file_system_available_bytes = LIMIT // 10
    slow = rig.pressure.rate_bytes_per_s()
    assert slow is not None
    rig.drained = 10 * DRAIN
    assert rig.pressure.rate_bytes_per_s() == pytest.approx(10 * slow)
