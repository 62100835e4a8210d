"""Changes: nobody who waits misses one that came while he looked, and nobody waits for ever."""

from __future__ import annotations

import asyncio

from mobility_agent.changes import Changes


async def test_what_came_since_the_look_ends_the_wait_at_once() -> None:
    changes = Changes()
    seen = changes.count
    changes.tell()
    await asyncio.wait_for(changes.beyond(seen, 3600.0), 20)


async def test_one_change_ends_every_wait() -> None:
    changes = Changes()
    waiting = [asyncio.create_task(changes.beyond(0, 3600.0)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.tell()
    await asyncio.wait_for(asyncio.gather(*waiting), 20)


async def test_without_a_change_the_wait_ends_all_the_same() -> None:
    await asyncio.wait_for(Changes().beyond(0, 0.001), 20)
