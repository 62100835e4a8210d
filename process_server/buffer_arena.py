"""A bounded arena of memory, leased in contiguous pieces: what is on its way through the process server never takes more.

Called by the intake (a frame while it is received and sealed), the spool (segments that are sealed and not uploaded yet) and the uploader
(a segment while it is sent), each with an arena of its own, so that none can starve another. Small pieces leave room for many at once,
large ones for few. Pages are touched as they are used and used again, lowest addresses first, so a quiet server holds little.

Whose turn it is, and whose body is broken off if others wait for long, is decided by machine in ``core/fair_turns.py``; what bodies from
slow lines may have together, and whose turn it is among these, in ``core/long_bodies.py``.
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
from process_server.core.long_bodies import LongBodies, is_long
from replication.errors import InvalidInput, Overloaded

MOST_LEASES: Final = 16
MOST_WAITING: Final = 24
LONGEST_S: Final = 600.0
_GRAIN_BYTES: Final = 4096
_KEPT_FREE: Final = 4
"""One of so many parts is kept free for machines that have nothing: of the default arena that is the largest body."""
_LOOK_AGAIN_S: Final = 0.25
_NEXT_IN_TURN: Final = 4
"""So many machines with long bodies may wait beyond those there is room for: the others do not take places in the queue."""
_PRESSED_APART_S: Final = 60.0
"""Refusals that are closer together are one time of pressure."""


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
                    arena._end_reception(self, reception)
        except TimeoutError as error:
            if not reception.is_broken_off:
                raise
            arena._on_broken_off()
            arena._note_refused(self._machine, at_most_held=1)
            raise Overloaded(
                "cannot wait for the rest of a body: it comes slowly, and others wait for its buffer",
                retry_after_s=1.0,
                hint="send it again; fewer batches in flight are better on a slow line",
            ) from error

    def close(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena._long.pop(self, None)
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
        self._long_bodies = LongBodies()
        self._long: dict[Lease, bool] = {}
        """Leases that long bodies have; True if they were given as such."""
        self._others_ship_until_s = 0.0
        """So long do long bodies keep to their half."""
        self._pressed_since_s = self._pressed_at_s = float("-inf")
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

    def slow_machines(self, now_s: float) -> int:
        """How many machines have long bodies coming, or ask for room for them."""
        return len(self._long_bodies.asking(now_s) | set(self._long_held()))

    def pressed_for_s(self, now_s: float) -> float:
        """How long machines have been turned away, or broken off, that had no other buffer; 0 if not within the last minute."""
        return self._pressed_at_s - self._pressed_since_s if now_s - self._pressed_at_s <= _PRESSED_APART_S else 0.0

    async def lease(self, length: int, wait_s: float, machine: str = "") -> Lease:
        """A piece of ``length`` bytes for ``machine``; waits for its turn.

        :raises InvalidInput: as ``try_lease``.
        :raises Overloaded: if none became free within ``wait_s``. On cancel nothing is held.
        """
        if length > self.capacity_bytes:
            raise InvalidInput(f"cannot hold {length} bytes at once", hint=f"the arena has {self.capacity_bytes}")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(machine, length, self._long_bodies.is_long(machine, length, loop.time()), loop.create_future())
        self._note_asked(waiter, loop.time())
        if len(self._waiting) >= self._most_waiting:
            self._send_somebody_away(machine)
        self._waiting.append(waiter)
        self._serve()
        try:
            await self._wait(waiter, loop.time() + wait_s)
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        if not waiter.future.done():
            self._withdraw(waiter)
            self._note_refused(machine)
            if waiter.is_long:
                self._long_bodies.ask(machine, loop.time())
            raise Overloaded("cannot accept more: every buffer is in use", retry_after_s=1.0)
        return waiter.future.result()

    async def _wait(self, waiter: _Waiter, until_s: float) -> None:
        """Until it is served; from ``PATIENCE_S`` on, others' bodies are broken off for it, one at a time.

        For a short body that begins sooner if long ones have more than their part.
        """
        if waiter.future.done():
            return
        loop = asyncio.get_running_loop()
        next_s = loop.time() + (_LOOK_AGAIN_S if self._is_crowded_out(waiter) else PATIENCE_S)
        await asyncio.wait([waiter.future], timeout=min(next_s, until_s) - loop.time())
        while not waiter.future.done() and loop.time() < until_s:
            self._serve()  # time alone may have made it its turn
            if not waiter.future.done() and (self._is_crowded_out(waiter) or self._is_next_of_its_kind(waiter)):
                self._make_room(waiter, loop.time())
            await asyncio.wait([waiter.future], timeout=min(_LOOK_AGAIN_S, until_s - loop.time()))

    def _is_next_of_its_kind(self, waiter: _Waiter) -> bool:
        if waiter.is_long:
            return self._long_bodies.before(waiter.machine, self._long_held(), waiter.future.get_loop().time()) == 0
        short = [each for each in self._waiting if not each.is_long]
        return short[next_in_turn([each.machine for each in short], self._held)] is waiter

    def _make_room(self, waiter: _Waiter, now_s: float) -> None:
        if is_kept_waiting(waiter.machine, self._held):
            self._kept_free_until_s = now_s + KEPT_FREE_FOR_S
        self._judge(now_s)
        others_are_long = any(lease._machine != waiter.machine for lease in self._long)
        if others_are_long and not self._is_slow(waiter.machine, now_s):
            self._others_ship_until_s = now_s + KEPT_FREE_FOR_S
        coming = [(lease, each) for lease, each in self._incoming.items() if not each.is_broken_off]
        incoming = [
            Incoming(
                lease._machine,
                each.since_s,
                each.received_bytes(),
                lease.view.nbytes,
                is_long=lease in self._long,
                is_in_turn=self._long.get(lease, False),
            )
            for lease, each in coming
        ]
        index = to_break_off(
            incoming,
            self._long_held() if waiter.is_long else self._held,
            waiter.machine,
            now_s,
            self._longest_s,
            for_long=waiter.is_long,
            too_much_is_long=self._too_much_is_long(),
        )
        if index is not None:
            chosen = coming[index][1]
            chosen.is_broken_off = True
            chosen.limit.reschedule(now_s)

    # -- long bodies --------------------------------------------------------------------------------------------

    def _is_slow(self, machine: str, now_s: float) -> bool:
        """Whether a large body of this machine would be long."""
        return self._long_bodies.is_long(machine, self.capacity_bytes // _KEPT_FREE, now_s)

    def _long_held(self) -> Counter[str]:
        return Counter(lease._machine for lease in self._long)

    def _is_crowded_out(self, waiter: _Waiter) -> bool:
        return not waiter.is_long and self._too_much_is_long()

    def _too_much_is_long(self) -> bool:
        """Whether long bodies, but for those that go anyway, have more than they may while others ship."""
        going = {lease for lease, each in self._incoming.items() if each.is_broken_off}
        lengths = [lease._length for lease in self._long if lease not in going]
        return len(lengths) > 1 and (sum(lengths) > self.capacity_bytes // 2 or len(lengths) > self._most_leases // 2)

    def _judge(self, now_s: float) -> None:
        """Bodies that turn out to be long while they come; what else their machines wait for is long as well, then."""
        for lease, each in self._incoming.items():
            received_bytes, age_s = each.received_bytes(), now_s - each.since_s
            if lease in self._long or not is_long(received_bytes, lease.view.nbytes, age_s):
                continue
            self._long[lease] = False
            self._long_bodies.measure(lease._machine, received_bytes, age_s, now_s)
            for waiter in self._waiting:
                if waiter.machine == lease._machine and self._long_bodies.is_long(waiter.machine, waiter.length, now_s):
                    waiter.is_long = True
                    self._long_bodies.ask(waiter.machine, now_s)

    def _rooms_for_long(self, length: int, now_s: float) -> int:
        """How many more long bodies of this length may begin now."""
        part = 2 if now_s < self._others_ship_until_s else 1
        in_turn = [lease for lease, began_long in self._long.items() if began_long]
        left_bytes = self.capacity_bytes // part - sum(lease._length for lease in in_turn)
        rooms = min(left_bytes // _rounded(length), self._most_leases // part - len(in_turn))
        return max(rooms, 0 if in_turn else 1)

    def _is_its_turn(self, waiter: _Waiter, now_s: float) -> bool:
        """Short bodies have no turns but the queue's."""
        if not waiter.is_long:
            return True
        before = self._long_bodies.before(waiter.machine, self._long_held(), now_s)
        return before < self._rooms_for_long(waiter.length, now_s)

    def _note_asked(self, waiter: _Waiter, now_s: float) -> None:
        """:raises Overloaded: a long body, and too many others have their turn before it."""
        if not waiter.is_long:
            if now_s < self._others_ship_until_s and not self._is_slow(waiter.machine, now_s):
                self._others_ship_until_s = now_s + KEPT_FREE_FOR_S
            return
        self._judge(now_s)
        self._long_bodies.ask(waiter.machine, now_s)
        before = self._long_bodies.before(waiter.machine, self._long_held(), now_s)
        if before >= self._rooms_for_long(waiter.length, now_s) + _NEXT_IN_TURN:
            self._note_refused(waiter.machine)
            raise Overloaded(
                "cannot accept more of this machine now: it comes slowly, and others that do have their turn before it",
                retry_after_s=2.0,
                hint="smaller batches (the agent's shipping.batch_bytes) come quicker; or a larger intake.buffer_bytes",
            )

    def _end_reception(self, lease: Lease, reception: _Reception) -> None:
        now_s = asyncio.get_running_loop().time()
        age_s, received_bytes = now_s - reception.since_s, reception.received_bytes()
        was_long = lease in self._long or is_long(received_bytes, lease.view.nbytes, age_s)
        self._long_bodies.measure(lease._machine, received_bytes, age_s, now_s)
        if was_long and not reception.is_broken_off:
            self._long_bodies.end_turn(lease._machine, now_s)

    def _note_refused(self, machine: str, *, at_most_held: int = 0) -> None:
        if self._held[machine] > at_most_held:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s - self._pressed_at_s > _PRESSED_APART_S:
            self._pressed_since_s = now_s
        self._pressed_at_s = now_s

    # -- the queue ----------------------------------------------------------------------------------------------

    def _send_somebody_away(self, newcomer: str) -> None:
        """:raises Overloaded: if that is the newcomer."""
        refusal = Overloaded("cannot accept more: every buffer is in use and others wait", retry_after_s=1.0)
        index = to_send_away([each.machine for each in self._waiting], newcomer) if self._waiting else None
        if index is None:
            self._note_refused(newcomer)
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
            now_s = self._waiting[0].future.get_loop().time()
            self._judge(now_s)
            ready = [each for each in self._waiting if self._is_its_turn(each, now_s)]
            if not ready:
                return
            waiter = ready[next_in_turn([each.machine for each in ready], self._held)]
            found = self._take(waiter.length, waiter.machine) if self._may_have(waiter) else None
            if found is None:
                return
            if waiter.is_long:
                self._long[found] = True
            self._waiting.remove(waiter)
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
    is_long: bool
    future: asyncio.Future[Lease]


def _rounded(length: int) -> int:
    return -(-max(length, 1) // _GRAIN_BYTES) * _GRAIN_BYTES
