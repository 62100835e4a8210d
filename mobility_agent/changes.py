"""That something has changed, for loops that would else look again and again. Built by ``daemon``; told by the parts of an item at work.

Who waits looks by himself at what it is: telling too often costs a look, telling too seldom the wait until the next one.
"""

from __future__ import annotations

import asyncio
import contextlib


class Changes:
    """Counts; any number of loops may wait, each for what is beyond the ``count`` that it has seen. Used on one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        self.count += 1
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def beyond(self, seen: int, longest_s: float) -> None:
        """Until there was a change after the ``seen``-th one, at most ``longest_s``."""
        if self.count == seen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(longest_s):
                    await self._next.wait()
