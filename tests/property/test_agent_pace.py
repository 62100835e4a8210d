"""At most 3 % over the read limit in any ten seconds, and no more processor time than allowed: the agent's pace under virtual time.

Several disks read steps of random sizes, at the speed of random disks, while limits change now and then. What was read is noted with its
time, and every window of ten seconds held against what the limits in it allowed (``limit_windows``). Timers fire late, as they do.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from mobility_agent.pace import Pace
from replication.clock import Clock
from replication.token_bucket import BURST_S
from tests.harness.limit_windows import allowed_bytes, worst_window
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock

OVER = 1.03
GRANULE = 64 * 1024
BUFFER = 8 * 2**20
CPU_S_PER_BYTE = 1 / 400e6


@dataclass
class Machine:
    """What was read when, which limit began when, and the processor time used so far."""

    read: list[tuple[float, int]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    used_s: float = 0.0


def late_clock(chance: random.Random) -> Clock:
    """Timers fire up to 20 ms late."""
    exact = virtual_clock()
    return Clock(exact.monotonic_s, exact.unix_ns, lambda seconds: asyncio.sleep(seconds + chance.random() * 0.02))


async def read_disk(machine: Machine, pace: Pace, chance: random.Random, until_s: float, *, pauses: bool) -> None:
    """As the shipper does: a step at a time, at least a granule; sometimes less than allowed is left of the epoch."""
    while now_s() < until_s:
        step = await pace.step()
        most = BUFFER if step.at_most_bytes is None else step.at_most_bytes
        amount = max(GRANULE, most // GRANULE * GRANULE)
        if pauses and chance.random() < 0.1:
            amount = GRANULE
        machine.read.append((now_s(), amount))
        await asyncio.sleep(amount / chance.choice((50e6, 500e6, 5e9)))
        machine.used_s += amount * CPU_S_PER_BYTE
        pace.read(step, amount)
        if pauses and chance.random() < 0.1:
            await asyncio.sleep(chance.random() * 3)


_RATES = st.one_of(st.sampled_from((4_000_000, 100_000_000, 2_000_000_000)), st.integers(4_000_000, 10**9))


@given(
    limits=st.lists(st.tuples(_RATES, st.floats(1, 15)), min_size=1, max_size=4),
    disks=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=15, deadline=None)
def test_no_ten_seconds_have_more_than_three_percent_above_the_read_limit(
    limits: list[tuple[int, float]], disks: int, seed: int
) -> None:
    machine, chance = Machine(), random.Random(seed)

    @in_virtual_time
    async def run() -> None:
        pace = Pace(late_clock(chance), lambda: machine.used_s)
        until_s = sum(seconds for _, seconds in limits)

        async def change() -> None:
            for bytes_per_s, seconds in limits:
                machine.limits.append((now_s(), bytes_per_s * 8))
                pace.set_limits(bytes_per_s, None)
                await asyncio.sleep(seconds)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change())
            await asyncio.sleep(0)
            for _ in range(disks):
                tasks.create_task(read_disk(machine, pace, random.Random(chance.random()), until_s, pauses=True))

    run()
    assert worst_window(machine.read, machine.limits) <= OVER


@given(rate=st.integers(1_000_000, 40_000_000), disks=st.integers(1, 3), seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_disks_that_never_pause_use_the_read_limit_up(rate: int, disks: int, seed: int) -> None:
    machine = Machine(limits=[(0.0, rate * 8)])

    @in_virtual_time
    async def run() -> None:
        chance = random.Random(seed)
        pace = Pace(late_clock(chance), lambda: machine.used_s)
        pace.set_limits(rate, None)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(disks):
                tasks.create_task(read_disk(machine, pace, chance, 30.0, pauses=False))

    run()
    assert sum(amount for at_s, amount in machine.read if at_s < 30) >= 0.95 * allowed_bytes(machine.limits, 0, 30.0)[0]


@given(cores=st.floats(0.05, 2.0), disks=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_no_more_processor_time_is_used_than_allowed_whatever_else_the_agent_does(
    cores: float, disks: int, seed: int
) -> None:
    machine = Machine()
    rest = cores / 10

    @in_virtual_time
    async def run() -> None:
        chance = random.Random(seed)
        pace = Pace(late_clock(chance), lambda: machine.used_s)
        pace.set_limits(None, cores)

        async def do_something_else() -> None:
            while now_s() < 30:
                await asyncio.sleep(0.1)
                machine.used_s += rest * 0.1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(do_something_else())
            for _ in range(disks):
                tasks.create_task(read_disk(machine, pace, chance, 30.0, pauses=False))
            await asyncio.sleep(0)
            begun_s, used_s = now_s(), machine.used_s
            while now_s() < 30:
                await asyncio.sleep(0.5)
                # A step of each disk may be under way.
                steps_s = (disks + 1) * 2**20 * CPU_S_PER_BYTE
                assert machine.used_s - used_s <= (now_s() - begun_s + BURST_S + 0.1) * cores + steps_s
        # Used up, unless the disks are slower.
        fastest_s = sum(amount for _, amount in machine.read) * CPU_S_PER_BYTE
        assert machine.used_s >= 0.9 * min(30 * cores, fastest_s + 30 * rest)

    run()
