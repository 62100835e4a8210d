"""Machines on thin lines against the arena as it is by default, in virtual time: the others ship on, and each slow one gets through."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import pytest

from process_server.buffer_arena import BufferArena
from process_server.config import DEFAULT_INTAKE_BUFFER_BYTES
from process_server.core.long_bodies import SEEKS_FOR_S
from replication.batch_frame import MAX_FRAME_BYTES
from replication.errors import Overloaded
from tests.harness.process_time import in_virtual_time, now_s

FAST_BYTES_PER_S = 100e6
AT_ONCE = DEFAULT_INTAKE_BUFFER_BYTES // 2 // MAX_FRAME_BYTES
"""Large bodies of slow machines while others ship."""
MEASURING_S = 40.0
"""So long may a fast machine have to wait while dozens of unknown ones are measured."""


def _received_bytes(since_s: float, bytes_per_s: float) -> int:
    return int((now_s() - since_s) * bytes_per_s)


@dataclass
class Agents:
    """Each sends one body after the other, again if it is told to come back, as agents do."""

    arena: BufferArena = field(default_factory=lambda: BufferArena(DEFAULT_INTAKE_BUFFER_BYTES))
    whole: Counter[str] = field(default_factory=Counter)
    whole_at_s: dict[str, float] = field(default_factory=dict)
    most_between_s: dict[str, float] = field(default_factory=dict)
    running: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self, name: str, bytes_per_s: float, length: int = MAX_FRAME_BYTES, pause_s: float = 0.0) -> None:
        self.running.append(asyncio.create_task(self._ship(name, bytes_per_s, length, pause_s)))

    async def _ship(self, name: str, bytes_per_s: float, length: int, pause_s: float) -> None:
        self.whole_at_s[name] = now_s()
        while True:
            try:
                with await self.arena.lease(length, 2.0, name) as lease:
                    async with lease.receiving(partial(_received_bytes, now_s(), bytes_per_s)):
                        await asyncio.sleep(length / bytes_per_s)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or 1.0)
                continue
            self.whole[name] += 1
            self.most_between_s[name] = max(self.most_between_s.get(name, 0.0), now_s() - self.whole_at_s[name])
            self.whole_at_s[name] = now_s()
            await asyncio.sleep(pause_s)

    def through(self, kind: str) -> int:
        return sum(count for name, count in self.whole.items() if name.startswith(kind))

    async def end(self) -> None:
        for task in self.running:
            task.cancel()
        await asyncio.wait(self.running)
        self.running.clear()
        assert self.arena.leased_bytes == 0


@pytest.mark.parametrize(("slow", "bytes_per_s"), [(3, 20 * 1024), (4, 20 * 1024), (8, 125_000), (50, 20 * 1024)])
@in_virtual_time
async def test_however_many_slow_machines_ship_the_others_have_half_of_the_arena(slow: int, bytes_per_s: float) -> None:
    agents = Agents()
    for number in range(slow):
        agents.begin(f"slow{number}", bytes_per_s)
    await asyncio.sleep(10.0)
    for number in range(8):
        agents.begin(f"fast{number}", FAST_BYTES_PER_S)
    await asyncio.sleep(60.0)  # by now each slow machine has been measured
    before, window_s = agents.through("fast"), 20.0
    await asyncio.sleep(window_s)
    through = agents.through("fast") - before
    await agents.end()
    half = window_s * FAST_BYTES_PER_S / MAX_FRAME_BYTES * AT_ONCE
    assert through >= 0.9 * half


@pytest.mark.parametrize(("slow", "bytes_per_s"), [(4, 20 * 1024), (8, 20 * 1024), (50, 500_000)])
@in_virtual_time
async def test_each_slow_machine_gets_bodies_through_in_turn_while_others_ship(slow: int, bytes_per_s: float) -> None:
    agents = Agents()
    for number in range(3):
        agents.begin(f"fast{number}", FAST_BYTES_PER_S, pause_s=2.0)
    for number in range(slow):
        agents.begin(f"slow{number}", bytes_per_s)
    turn_s = (math.ceil(slow / AT_ONCE) + 1) * (MAX_FRAME_BYTES / bytes_per_s + SEEKS_FOR_S)
    await asyncio.sleep(1.5 * turn_s)
    longest_s = {
        name: max(agents.most_between_s.get(name, 0.0), now_s() - at_s) for name, at_s in agents.whole_at_s.items()
    }
    await agents.end()
    assert all(agents.whole[name] for name in longest_s)
    assert {name: each_s for name, each_s in longest_s.items() if each_s > turn_s} == {}
    assert max(longest_s[f"fast{number}"] for number in range(3)) < MEASURING_S


@in_virtual_time
async def test_slow_machines_alone_have_the_whole_arena() -> None:
    agents = Agents()
    for number in range(8):
        agents.begin(f"slow{number}", 125_000)
    await asyncio.sleep(600.0)
    assert agents.arena.leased_bytes >= 4 * MAX_FRAME_BYTES
    through = agents.through("slow")
    await agents.end()
    assert through >= 0.8 * 4 * 600.0 / (MAX_FRAME_BYTES / 125_000)


@in_virtual_time
async def test_a_line_that_has_become_better_is_found_out() -> None:
    agents = Agents()
    for number in range(4):
        agents.begin(f"slow{number}", 125_000)
    agents.begin("fast", FAST_BYTES_PER_S)
    await asyncio.sleep(100.0)
    assert agents.arena.slow_machines(asyncio.get_running_loop().time()) == 4
    await agents.end()
    agents.begin("slow0", FAST_BYTES_PER_S)
    await asyncio.sleep(10.0)
    assert agents.whole["slow0"] > 50
    await agents.end()


@in_virtual_time
async def test_being_turned_away_again_and_again_is_told_and_then_forgotten() -> None:
    agents, loop = Agents(), asyncio.get_running_loop()
    for number in range(12):
        agents.begin(f"slow{number}", 20 * 1024)
    await asyncio.sleep(400.0)
    assert 300.0 < agents.arena.pressed_for_s(loop.time()) <= 400.0
    await agents.end()
    await asyncio.sleep(61.0)
    assert agents.arena.pressed_for_s(loop.time()) == 0.0
