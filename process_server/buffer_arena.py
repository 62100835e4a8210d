"""A bounded arena of memory, leased in contiguous pieces: what is on its way through the process server never takes more.

Called by the intake (a frame while it is received and sealed), the spool (segments that are sealed and not uploaded yet) and the uploader
(a segment while it is sent), each with an arena of its own, so that none can starve another. Small pieces leave room for many at once,
large ones for few. Pages are touched as they are used and used again, lowest addresses first, so a quiet server holds little.
"""

from __future__ import annotations

import asyncio
import bisect
import mmap
from collections import deque
from types import TracebackType
from typing import Final, Self

from replication.errors import InvalidInput, Overloaded

MOST_LEASES: Final = 16
MOST_WAITING: Final = 24
_GRAIN_BYTES: Final = 4096


class Lease:
    """``view`` is the caller's until ``close``; use as a context manager. Closing twice does nothing."""

    __slots__ = ("_arena", "_length", "_start", "view")

    def __init__(self, arena: BufferArena, start: int, length: int, view: memoryview) -> None:
        self._arena: BufferArena | None = arena
        self._start = start
        self._length = length
        self.view = view

    def shrink(self, length: int) -> None:
        """Give back what is behind the first ``length`` bytes, in whole pages; ``view`` becomes as short."""
        kept, given = _rounded(length), self._length
        if self._arena is not None and kept < given:
            self._length = kept
            self._arena._cut(self._start + kept, given - kept)
        self.view = self.view[:length]

    def close(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena._give_back(self._start, self._length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class BufferArena:
    """First fit over a sorted list of free pieces; waiters are served in order. Used on one event loop."""

    def __init__(
        self, capacity_bytes: int, *, most_leases: int = MOST_LEASES, most_waiting: int = MOST_WAITING
    ) -> None:
        """:param most_leases: at a time, however small: each has a connection behind it with buffers of its own.
        :param most_waiting: more than these are turned away at once, for the same reason.
        """
        self._most_leases = most_leases
        self._most_waiting = most_waiting
        self._leases = 0
        self.capacity_bytes = _rounded(capacity_bytes)
        self._memory = memoryview(mmap.mmap(-1, self.capacity_bytes))
        self._free: list[tuple[int, int]] = [(0, self.capacity_bytes)]
        self._waiting: deque[tuple[int, asyncio.Future[Lease]]] = deque()
        self.leased_bytes = 0

    def try_lease(self, length: int) -> Lease | None:
        """A piece of ``length`` bytes, or None if there is none now or others wait for theirs.

        :raises InvalidInput: if it is longer than the whole arena.
        """
        if length > self.capacity_bytes:
            raise InvalidInput(f"cannot hold {length} bytes at once", hint=f"the arena has {self.capacity_bytes}")
        return None if self._waiting else self._take(length)

    async def lease(self, length: int, wait_s: float) -> Lease:
        """A piece of ``length`` bytes; waits for its turn.

        :raises Overloaded: if none became free within ``wait_s``. On cancel nothing is held.
        """
        now = self.try_lease(length)
        if now is not None:
            return now
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded("cannot accept more: every buffer is in use and others wait", retry_after_s=1.0)
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        entry = (length, future)
        self._waiting.append(entry)
        try:
            await asyncio.wait([future], timeout=wait_s)
        except asyncio.CancelledError:
            self._withdraw(entry)
            raise
        if not future.done():
            self._withdraw(entry)
            raise Overloaded("cannot accept more: every buffer is in use", retry_after_s=1.0)
        return future.result()

    def _withdraw(self, entry: tuple[int, asyncio.Future[Lease]]) -> None:
        if entry[1].done():
            entry[1].result().close()
        else:
            self._waiting.remove(entry)
            self._serve()

    def _take(self, length: int) -> Lease | None:
        if self._leases >= self._most_leases:
            return None
        size = _rounded(length)
        for index, (start, free) in enumerate(self._free):
            if free >= size:
                if free == size:
                    del self._free[index]
                else:
                    self._free[index] = (start + size, free - size)
                self.leased_bytes += size
                self._leases += 1
                return Lease(self, start, size, self._memory[start : start + length])
        return None

    def _give_back(self, start: int, size: int) -> None:
        self._leases -= 1
        self._cut(start, size)

    def _cut(self, start: int, size: int) -> None:
        self.leased_bytes -= size
        index = bisect.bisect(self._free, (start, 0))
        if index < len(self._free) and start + size == self._free[index][0]:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            before, length = self._free[index - 1]
            self._free[index - 1] = (before, length + size)
        else:
            self._free.insert(index, (start, size))
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            length, future = self._waiting[0]
            found = self._take(length)
            if found is None:
                return
            self._waiting.popleft()
            future.set_result(found)


def _rounded(length: int) -> int:
    return -(-max(length, 1) // _GRAIN_BYTES) * _GRAIN_BYTES
