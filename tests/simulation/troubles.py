"""Troubles beside the faults: a store that answers 500 and 503 or is full for a while; clocks that are set, of any machine but the source.

Used by ``simulation``. They are drawn from a random stream of their own, and for a part of the seeds: the others tell the story that
they told before there were troubles.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Final

from tests.simulation.faults import Fault
from tests.simulation.world import World

TROUBLED_SHARE: Final = 0.35
_HOUR_S: Final = 3600.0


class Troubles:
    """Strike one world."""

    def __init__(self, world: World, random: Random) -> None:
        self.clocks_set = 0
        self._world = world
        self._random = random

    def drawn(self, *, certainly: bool) -> list[Fault]:
        """What this seed's site suffers beside its faults: nothing for most seeds, unless ``certainly``."""
        if not certainly and self._random.random() >= TROUBLED_SHARE:
            return []
        kinds = (self.fail_store, self.fill_store, self.set_a_clock, self.set_a_clock)
        return [self._random.choice(kinds) for _ in range(self._random.randrange(1, 4))]

    async def _later(self, longest_s: float) -> None:
        await asyncio.sleep(self._random.random() * self._random.choice((longest_s / 5, longest_s)))

    async def fail_store(self) -> None:
        world, trouble, random = self._world, self._world.network.store_trouble, self._random
        await self._later(15.0)
        strength, share = random.choice((0.05, 0.3, 0.8, 1.0)), random.choice((0.0, 0.5, 1.0))
        trouble.busy, trouble.failing = strength * share, strength * (1 - share)
        world.note("trouble", f"the store answers 503 ({trouble.busy:.2f}) and 500 ({trouble.failing:.2f})")
        await self._later(30.0)
        trouble.busy = trouble.failing = 0.0
        world.note("trouble", "the store answers as it should")

    async def fill_store(self) -> None:
        world, trouble = self._world, self._world.network.store_trouble
        await self._later(15.0)
        trouble.is_full, trouble.is_brimful = True, self._random.random() < 0.4
        world.note("trouble", f"the store is {'brimful' if trouble.is_brimful else 'full'}")
        await self._later(60.0)
        trouble.is_full = trouble.is_brimful = False
        world.note("trouble", "the store has room")

    async def set_a_clock(self) -> None:
        """Forward or back, for good or until somebody notices."""
        world, random = self._world, self._random
        names = ["store", "config", *(each.name for each in world.process_servers)]
        names += [each.name for each in world.writers]
        await self._later(20.0)
        name = random.choice(names)
        by_s = random.choice((1.0, 30.0, 2 * _HOUR_S, 30 * 24 * _HOUR_S)) * random.choice((1, -1))
        self._set(name, by_s)
        if random.random() < 0.5:
            await self._later(30.0)
            self._set(name, -by_s)

    def _set(self, name: str, by_s: float) -> None:
        self.clocks_set += 1
        self._world.note("trouble", f"the clock of {name} is set by {by_s} s")
        self._world.clocks_ns[name] += int(by_s * 1e9)
