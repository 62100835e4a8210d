"""The buffer arena: bounded, contiguous, served in turn, shared by machine; nothing is lost whatever becomes of who waits."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from process_server.buffer_arena import BufferArena, Lease
from replication.errors import InvalidInput, Overloaded
from tests.harness.process_time import in_virtual_time, now_s

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


# -- by machine -----------------------------------------------------------------------------------------------


class Bodies:
    """Bodies that come as slowly as they like; ``ended`` tells how each did."""

    def __init__(self, arena: BufferArena, length: int = PAGE) -> None:
        self._arena = arena
        self._length = length
        self.ended: list[str] = []
        self.running: dict[str, asyncio.Task[None]] = {}
        self.whole: dict[str, asyncio.Event] = {}

    async def begin(self, name: str, received_bytes: int = 0, wait_s: float = 2.0) -> None:
        """``name`` begins with its machine's letter."""
        self.whole[name] = asyncio.Event()
        self.running[name] = asyncio.create_task(self._receive(name, received_bytes, wait_s))
        await asyncio.sleep(0)

    async def _receive(self, name: str, received_bytes: int, wait_s: float) -> None:
        try:
            with await self._arena.lease(self._length, wait_s, name[0]) as lease:
                async with lease.receiving(lambda: received_bytes):
                    await self.whole[name].wait()
        except Overloaded as error:
            self.ended.append(f"{name} {'broken off' if 'rest of a body' in error.message else 'refused'}")
        else:
            self.ended.append(f"{name} whole")

    async def end(self) -> None:
        for event in self.whole.values():
            event.set()
        await asyncio.gather(*self.running.values())


@in_virtual_time
async def test_a_machine_alone_may_have_the_whole_arena_for_as_long_as_it_takes() -> None:
    arena = BufferArena(4 * PAGE)
    bodies = Bodies(arena)
    for name in ("a1", "a2", "a3", "a4", "a5"):
        await bodies.begin(name)
    await asyncio.sleep(500)
    assert bodies.ended == ["a5 refused"]
    assert arena.leased_bytes == 4 * PAGE
    await bodies.end()
    assert arena.leased_bytes == 0


@in_virtual_time
async def test_another_machine_gets_room_within_its_wait_and_the_first_keeps_what_is_fair() -> None:
    arena = BufferArena(4 * PAGE)
    bodies = Bodies(arena)
    for number, name in enumerate(("a1", "a2", "a3", "a4")):
        await bodies.begin(name, received_bytes=PAGE - 1 - number)
    for name in ("b1", "b2", "b3"):
        await bodies.begin(name, received_bytes=PAGE - 1)
        await asyncio.sleep(2.5)
    assert bodies.ended == ["a4 broken off", "a3 broken off", "b3 refused"]
    await bodies.end()
    assert sorted(bodies.ended[3:]) == ["a1 whole", "a2 whole", "b1 whole", "b2 whole"]
    assert arena.leased_bytes == 0


@in_virtual_time
async def test_what_was_broken_off_does_not_take_the_room_of_who_it_was_broken_off_for() -> None:
    arena = BufferArena(4 * PAGE)
    bodies = Bodies(arena)
    for name in ("a1", "a2", "a3", "a4"):
        await bodies.begin(name, received_bytes=PAGE - 1)
    await bodies.begin("b1")
    await asyncio.sleep(2)
    assert bodies.ended == ["a1 broken off"]
    bodies.whole["b1"].set()
    await asyncio.sleep(1)
    await bodies.begin("a5", received_bytes=PAGE - 1)
    await asyncio.sleep(1)
    began_s = now_s()
    await bodies.begin("b2")
    bodies.whole["b2"].set()
    await bodies.running["b2"]
    assert now_s() == began_s, "its room was kept free"
    await asyncio.sleep(2)
    assert bodies.ended == ["a1 broken off", "b1 whole", "b2 whole", "a5 refused"]
    await asyncio.sleep(60)
    await bodies.begin("a6")
    assert arena.leased_bytes == 4 * PAGE, "nobody else has wanted any for a minute"
    await bodies.end()


@in_virtual_time
async def test_bodies_that_cannot_be_whole_in_time_go_even_if_each_is_its_machines_only_one() -> None:
    told: list[None] = []
    arena = BufferArena(2 * PAGE, longest_s=600, on_broken_off=lambda: told.append(None))
    bodies = Bodies(arena)
    await bodies.begin("a1", received_bytes=1)
    await bodies.begin("b1", received_bytes=PAGE // 2)
    await asyncio.sleep(100)
    await bodies.begin("c1", received_bytes=PAGE - 1)
    await asyncio.sleep(1.5)
    assert bodies.ended == ["a1 broken off"]
    await bodies.begin("d1")
    await asyncio.sleep(3)
    assert bodies.ended == ["a1 broken off", "d1 refused"], "b1 is slow, and will be whole"
    assert len(told) == 1
    await bodies.end()
    assert arena.leased_bytes == 0


@in_virtual_time
async def test_one_machines_requests_do_not_fill_the_queue_for_others() -> None:
    arena = BufferArena(PAGE, most_waiting=2)
    bodies = Bodies(arena)
    for name in ("a1", "a2", "a3"):
        await bodies.begin(name, received_bytes=PAGE - 1)
    await bodies.begin("b1")
    await asyncio.sleep(0.01)
    assert bodies.ended == ["a3 refused"]
    for name in ("a1", "a2", "b1"):
        bodies.whole[name].set()
    await bodies.running["b1"]
    assert bodies.ended == ["a3 refused", "a1 whole", "a2 whole", "b1 whole"]
    await bodies.end()


@in_virtual_time
async def test_a_body_that_is_whole_at_the_moment_it_would_go_stays() -> None:
    arena = BufferArena(2 * PAGE)
    lease = await arena.lease(PAGE, 1.0, "a")
    other = await arena.lease(PAGE, 1.0, "a")
    whole = asyncio.Event()

    async def receive() -> None:
        async with lease.receiving(lambda: 0):
            await whole.wait()

    receiving = asyncio.create_task(receive())
    waiter = asyncio.create_task(arena.lease(PAGE, 2.0, "b"))
    await asyncio.sleep(0.5)
    asyncio.get_running_loop().call_later(0.5, whole.set)
    await asyncio.sleep(1)
    await receiving
    other.close()
    (await waiter).close()
    lease.close()
    assert arena.leased_bytes == 0
