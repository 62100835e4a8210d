"""The buffer arena: bounded, contiguous, served in order; nothing is lost whatever becomes of who waits."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from process_server.buffer_arena import BufferArena, Lease
from replication.errors import InvalidInput, Overloaded

PAGE = 4096
LONG_S = 30.0


async def waiting(arena: BufferArena, length: int, wait_s: float = LONG_S) -> asyncio.Task[Lease]:
    """A task that waits for its lease, and has begun to."""
    task = asyncio.create_task(arena.lease(length, wait_s))
    await asyncio.sleep(0)
    return task


def taken(arena: BufferArena, length: int) -> Lease:
    found = arena.try_lease(length)
    assert found is not None
    return found


def test_leases_do_not_overlap_and_all_memory_comes_back() -> None:
    arena, random = BufferArena(64 * PAGE, most_leases=1000), Random(5)
    held: dict[int, tuple[Lease, int]] = {}
    for serial in range(1, 2000):
        length = random.randrange(1, 9 * PAGE)
        found = arena.try_lease(length)
        if found is not None and random.random() < 0.6:
            mark = serial % 251 + 1
            found.view[:] = bytes([mark]) * length
            held[serial] = (found, mark)
        elif found is not None:
            found.close()
        if held and random.random() < 0.5:
            lease, mark = held.pop(random.choice(sorted(held)))
            assert bytes(lease.view) == bytes([mark]) * len(lease.view), "somebody else wrote into it"
            lease.close()
    for lease, mark in held.values():
        assert bytes(lease.view) == bytes([mark]) * len(lease.view)
        lease.close()
    assert arena.leased_bytes == 0
    assert len(taken(arena, 64 * PAGE).view) == 64 * PAGE, "the free pieces are joined again"


def test_what_is_larger_than_the_arena_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="cannot hold"):
        BufferArena(PAGE).try_lease(PAGE + 1)


def test_what_a_lease_does_not_need_is_others_at_once_and_the_rest_is_kept() -> None:
    arena = BufferArena(4 * PAGE)
    lease = taken(arena, 4 * PAGE)
    lease.view[:] = b"a" * (4 * PAGE)
    lease.shrink(PAGE + 1)
    assert (len(lease.view), arena.leased_bytes) == (PAGE + 1, 2 * PAGE)
    other = taken(arena, 2 * PAGE)
    other.view[:] = b"b" * (2 * PAGE)
    assert bytes(lease.view) == b"a" * (PAGE + 1)
    assert arena.try_lease(1) is None
    lease.close()
    other.close()
    assert arena.leased_bytes == 0
    assert len(taken(arena, 4 * PAGE).view) == 4 * PAGE, "the free pieces are joined again"


async def test_whoever_waits_gets_what_a_lease_gives_back_of_itself() -> None:
    arena = BufferArena(4 * PAGE)
    held = taken(arena, 4 * PAGE)
    waiter = await waiting(arena, 2 * PAGE)
    held.shrink(2 * PAGE)
    assert len((await waiter).view) == 2 * PAGE


def test_a_lease_that_is_over_gives_nothing_back_when_it_shrinks() -> None:
    arena = BufferArena(4 * PAGE)
    lease = taken(arena, 4 * PAGE)
    lease.close()
    lease.shrink(PAGE)
    assert arena.leased_bytes == 0
    assert len(taken(arena, 4 * PAGE).view) == 4 * PAGE


def test_closing_twice_gives_back_once() -> None:
    arena = BufferArena(2 * PAGE)
    first, second = taken(arena, PAGE), taken(arena, PAGE)
    first.close()
    first.close()
    assert arena.leased_bytes == PAGE
    second.close()
    assert arena.leased_bytes == 0


def test_however_small_only_so_many_leases_are_out() -> None:
    arena = BufferArena(64 * PAGE, most_leases=2)
    first = taken(arena, 1)
    taken(arena, 1)
    assert arena.try_lease(1) is None
    first.close()
    taken(arena, 1)


async def test_waiters_are_served_in_order_even_if_a_later_one_would_fit() -> None:
    arena = BufferArena(4 * PAGE)
    first, second = taken(arena, 2 * PAGE), taken(arena, PAGE)
    large = await waiting(arena, 4 * PAGE)
    small = await waiting(arena, PAGE)
    assert arena.try_lease(PAGE) is None, "nobody goes before those that wait"
    first.close()
    await asyncio.sleep(0)
    assert not large.done()
    assert not small.done()
    second.close()
    got = await large
    assert not small.done()
    got.close()
    (await small).close()
    assert arena.leased_bytes == 0


async def test_who_waited_too_long_is_told_to_come_again() -> None:
    arena = BufferArena(PAGE)
    taken(arena, PAGE)
    with pytest.raises(Overloaded) as caught:
        await arena.lease(PAGE, 0.0)
    assert caught.value.retry_after_s == 1.0


async def test_a_full_queue_turns_away_at_once() -> None:
    arena = BufferArena(PAGE, most_waiting=1)
    held = taken(arena, PAGE)
    queued = await waiting(arena, PAGE)
    with pytest.raises(Overloaded, match="others wait"):
        await arena.lease(PAGE, LONG_S)
    held.close()
    (await queued).close()


async def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    arena = BufferArena(2 * PAGE)
    held = taken(arena, PAGE)
    large, small = await waiting(arena, 2 * PAGE), await waiting(arena, PAGE)
    large.cancel()
    (await small).close()
    held.close()
    assert arena.leased_bytes == 0
    assert large.cancelled() or large.cancelling()


async def test_a_waiter_that_is_cancelled_while_it_is_served_gives_the_piece_back() -> None:
    arena = BufferArena(PAGE)
    held = taken(arena, PAGE)
    waiter = await waiting(arena, PAGE)
    held.close()  # the waiter's future is done, the waiter has not run yet
    assert arena.leased_bytes == PAGE
    waiter.cancel()
    await asyncio.wait([waiter])
    assert arena.leased_bytes == 0
