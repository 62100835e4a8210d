"""A bounded arena of memory, leased in contiguous pieces: what is on its way through the process server never takes more.

Called by the intake (a frame while it is received and sealed), the spool (segments that are sealed and not uploaded yet) and the uploader
(a segment while it is sent), each with an arena of its own, so that none can starve another. Small pieces leave room for many at once,
large ones for few. Pages are touched as they are used and used again, lowest addresses first, so a quiet server holds little.

Whose turn it is, and whose body is broken off if others wait for long, is decided by machine in ``core/fair_turns.py``.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import mmap
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from process_server.core.fair_turns import (
    KEPT_FREE_FOR_S,
    PATIENCE_S,
    Incoming,
    is_kept_waiting,
    next_in_turn,
    to_break_off,
    to_send_away,
)
from replication.errors import InvalidInput, Overloaded

MOST_LEASES: Final = 16
MOST_WAITING: Final = 24
LONGEST_S: Final = 600.0
_GRAIN_BYTES: Final = 4096
_KEPT_FREE: Final = 4
"""One of so many parts is kept free for machines that have nothing: of the default arena that is the largest body."""
_LOOK_AGAIN_S: Final = 0.25


@dataclass(slots=True, eq=False)
class _Reception:
    """A body that is coming into a lease; at ``limit`` it is broken off."""

    since_s: float
    received_bytes: Callable[[], int]
    limit: asyncio.Timeout
    is_broken_off: bool = False


class Lease:
    """``view`` is the caller's until ``close``; use as a context manager. Closing twice does nothing."""

    __slots__ = ("_arena", "_length", "_machine", "_start", "view")

    def __init__(self, arena: BufferArena, machine: str, start: int, length: int, view: memoryview) -> None:
        self._arena: BufferArena | None = arena
        self._machine = machine
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

    @contextlib.asynccontextmanager
    async def receiving(self, received_bytes: Callable[[], int]) -> AsyncIterator[None]:
        """Inside, a body comes into ``view``, and may be broken off for others; ``received_bytes`` tells how much of it is here.

        :raises Overloaded: it was broken off.
        """
        arena = self._arena
        if arena is None:
            raise ValueError("cannot receive into a lease that is over")
        try:
            async with asyncio.timeout(None) as limit:
                reception = _Reception(asyncio.get_running_loop().time(), received_bytes, limit)
                arena._incoming[self] = reception
                try:
                    yield
                finally:
                    del arena._incoming[self]
        except TimeoutError as error:
            if not reception.is_broken_off:
                raise
            arena._on_broken_off()
            raise Overloaded(
                "cannot wait for the rest of a body: it comes slowly, and others wait for its buffer",
                retry_after_s=1.0,
                hint="send it again; fewer batches in flight are better on a slow line",
            ) from error

    def close(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena._give_back(self._machine, self._start, self._length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class BufferArena:
    """First fit over a sorted list of free pieces; waiters are served in turn. Used on one event loop."""

    def __init__(
        self,
        capacity_bytes: int,
        *,
        most_leases: int = MOST_LEASES,
        most_waiting: int = MOST_WAITING,
        longest_s: float = LONGEST_S,
        on_broken_off: Callable[[], None] = lambda: None,
    ) -> None:
        """:param most_leases: at a time, however small: each has a connection behind it with buffers of its own.
        :param most_waiting: more than these are turned away at once, for the same reason.
        :param longest_s: as long as a body may take as a whole.
        :param on_broken_off: is told of each body that goes for others.
        """
        self._most_leases = most_leases
        self._most_waiting = most_waiting
        self._longest_s = longest_s
        self._leases = 0
        self._held: Counter[str] = Counter()
        """Leases of each machine."""
        self._incoming: dict[Lease, _Reception] = {}
        self._kept_free_until_s = 0.0
        self._on_broken_off = on_broken_off
        self.capacity_bytes = _rounded(capacity_bytes)
        self._memory = memoryview(mmap.mmap(-1, self.capacity_bytes))
        self._free: list[tuple[int, int]] = [(0, self.capacity_bytes)]
        self._waiting: list[_Waiter] = []
        self.leased_bytes = 0

    def try_lease(self, length: int) -> Lease | None:
        """A piece of ``length`` bytes, or None if there is none now or others wait for theirs.

        :raises InvalidInput: if it is longer than the whole arena.
        """
        if length > self.capacity_bytes:
            raise InvalidInput(f"cannot hold {length} bytes at once", hint=f"the arena has {self.capacity_bytes}")
        return None if self._waiting else self._take(length, "")

    async def lease(self, length: int, wait_s: float, machine: str = "") -> Lease:
        """A piece of ``length`` bytes for ``machine``; waits for its turn.

        :raises InvalidInput: as ``try_lease``.
        :raises Overloaded: if none became free within ``wait_s``. On cancel nothing is held.
        """
        if length > self.capacity_bytes:
            raise InvalidInput(f"cannot hold {length} bytes at once", hint=f"the arena has {self.capacity_bytes}")
        if len(self._waiting) >= self._most_waiting:
            self._send_somebody_away(machine)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(machine, length, loop.create_future())
        self._waiting.append(waiter)
        self._serve()
        try:
            await self._wait(waiter, loop.time() + wait_s)
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        if not waiter.future.done():
            self._withdraw(waiter)
            raise Overloaded("cannot accept more: every buffer is in use", retry_after_s=1.0)
        return waiter.future.result()

    async def _wait(self, waiter: _Waiter, until_s: float) -> None:
        """Until it is served; from ``PATIENCE_S`` on, others' bodies are broken off for it, one at a time."""
        if waiter.future.done():
            return
        loop = asyncio.get_running_loop()
        next_s = loop.time() + PATIENCE_S
        await asyncio.wait([waiter.future], timeout=min(next_s, until_s) - loop.time())
        while not waiter.future.done() and loop.time() < until_s:
            if self._waiting[next_in_turn([each.machine for each in self._waiting], self._held)] is waiter:
                self._make_room(waiter, loop.time())
            await asyncio.wait([waiter.future], timeout=min(_LOOK_AGAIN_S, until_s - loop.time()))

    def _make_room(self, waiter: _Waiter, now_s: float) -> None:
        if is_kept_waiting(waiter.machine, self._held):
            self._kept_free_until_s = now_s + KEPT_FREE_FOR_S
        coming = [(lease, each) for lease, each in self._incoming.items() if not each.is_broken_off]
        incoming = [
            Incoming(lease._machine, each.since_s, each.received_bytes(), lease.view.nbytes) for lease, each in coming
        ]
        index = to_break_off(incoming, self._held, waiter.machine, now_s, self._longest_s)
        if index is not None:
            chosen = coming[index][1]
            chosen.is_broken_off = True
            chosen.limit.reschedule(now_s)

    def _send_somebody_away(self, newcomer: str) -> None:
        """:raises Overloaded: if that is the newcomer."""
        refusal = Overloaded("cannot accept more: every buffer is in use and others wait", retry_after_s=1.0)
        index = to_send_away([each.machine for each in self._waiting], newcomer) if self._waiting else None
        if index is None:
            raise refusal
        self._waiting.pop(index).future.set_exception(refusal)

    def _withdraw(self, waiter: _Waiter) -> None:
        if not waiter.future.done():
            self._waiting.remove(waiter)
            self._serve()
        elif waiter.future.exception() is None:
            waiter.future.result().close()

    def _take(self, length: int, machine: str) -> Lease | None:
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
                self._held[machine] += 1
                return Lease(self, machine, start, size, self._memory[start : start + length])
        return None

    def _give_back(self, machine: str, start: int, size: int) -> None:
        self._leases -= 1
        self._held[machine] -= 1
        if not self._held[machine]:
            del self._held[machine]
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
            index = next_in_turn([each.machine for each in self._waiting], self._held)
            waiter = self._waiting[index]
            found = self._take(waiter.length, waiter.machine) if self._may_have(waiter) else None
            if found is None:
                return
            del self._waiting[index]
            waiter.future.set_result(found)

    def _may_have(self, waiter: _Waiter) -> bool:
        """Whether enough stays free for others, if it is to be: who has less than others need not leave them any."""
        has_less = not self._held[waiter.machine] or is_kept_waiting(waiter.machine, self._held)
        if has_less or waiter.future.get_loop().time() >= self._kept_free_until_s:
            return True
        left_bytes = self.capacity_bytes - self.leased_bytes - _rounded(waiter.length)
        return left_bytes >= self.capacity_bytes // _KEPT_FREE and self._leases + 1 < self._most_leases


@dataclass(slots=True, eq=False)
class _Waiter:
    machine: str
    length: int
    future: asyncio.Future[Lease]


def _rounded(length: int) -> int:
    return -(-max(length, 1) // _GRAIN_BYTES) * _GRAIN_BYTES
