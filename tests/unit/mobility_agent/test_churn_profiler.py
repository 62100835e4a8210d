"""Churn measured without replicating: windows of several lengths, and trackers that are let go of whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobility_agent.churn_profiler import ChurnProfiler
from mobility_agent.core.churn_windows import ChurnWindows
from replication.churn_profile import ProfiledDisk, ProfileObservation, ProfileOrder
from replication.dirty_bitmap import DirtyBitmap, Geometry
from replication.errors import Unsupported
from replication.identifiers import DiskId
from tests.harness.fake_tracker import FakeDisk, FakeTracker
from tests.harness.process_time import in_virtual_time, virtual_clock

GRANULE = 65536
GEOMETRY = Geometry(100 * GRANULE, GRANULE)
ONE, TWO = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


@given(intervals=st.lists(st.frozensets(st.integers(0, 99), max_size=20), max_size=40))
def test_a_window_counts_what_is_dirtied_in_it_once(intervals: list[frozenset[int]]) -> None:
    windows = ChurnWindows(GEOMETRY, (1, 3, 7))
    for changed in intervals:
        bitmap = DirtyBitmap(100)
        for granule in changed:
            bitmap.mark(granule, 1)
        windows.add(bitmap)
    for multiple in (1, 3, 7):
        full = [intervals[at : at + multiple] for at in range(0, len(intervals) - multiple + 1, multiple)]
        sizes = [len(frozenset[int]().union(*window)) * GRANULE for window in full]
        found = next((each for each in windows.seen() if each.multiple == multiple), None)
        if not sizes:
            assert found is None
            continue
        assert found is not None
        assert (found.windows, found.most_bytes) == (len(sizes), max(sizes))
        assert found.mean_bytes == pytest.approx(sum(sizes) / len(sizes))


class Rig:
    """A profiler over fake disks; ``attached`` are the trackers that it has not let go of."""

    def __init__(self, *disks: str) -> None:
        self.disks = {disk: FakeDisk(GEOMETRY) for disk in disks}
        self.attached: dict[str, FakeTracker] = {}
        self.discarded = 0
        self.profiler = ChurnProfiler(self.attach, virtual_clock())

    def attach(self, disk: DiskId) -> FakeTracker:
        if disk not in self.disks:
            raise Unsupported("cannot track this disk with eBPF")
        rig = self

        class Tracker(FakeTracker):
            def close(self) -> None:
                rig.attached.pop(disk, None)

            def discard(self) -> None:
                rig.discarded += 1

        self.attached[disk] = Tracker(self.disks[disk])
        return self.attached[disk]

    def seen(self) -> ProfileObservation:
        found = self.profiler.observe()
        assert found is not None
        return found

    def of(self, disk: str) -> ProfiledDisk:
        return next(each for each in self.seen().disks if each.disk == disk)


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    task = asyncio.create_task(rig.profiler.run())
    try:
        yield rig
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def order(*disks: str, duration_s: float = 60.0) -> ProfileOrder:
    return ProfileOrder(request=str(uuid.uuid4()), disks=list(disks), duration_s=duration_s)


def write(disk: FakeDisk, granule: int) -> None:
    disk.write(granule * GRANULE, b"x" * 512)


async def settle() -> None:
    """The thread's work takes no virtual time, but turns of the loop."""
    await asyncio.sleep(0.5)


@in_virtual_time
async def test_rewrites_count_once_a_window_and_what_was_before_does_not_count() -> None:
    async with running(Rig(ONE)) as rig:
        write(rig.disks[ONE], 90)
        assert rig.profiler.observe() is None
        rig.profiler.follow(order(ONE), ())
        await settle()
        for second in range(6):
            write(rig.disks[ONE], 7)  # always the same one
            write(rig.disks[ONE], second)
            await asyncio.sleep(10)
        await settle()
        windows = {window.interval_s: window for window in rig.of(ONE).windows}
        assert (windows[10.0].windows, windows[10.0].mean_bytes) == (6, 2 * GRANULE)
        assert (windows[60.0].windows, windows[60.0].most_bytes) == (1, 7 * GRANULE)
        assert rig.seen().done
        assert rig.of(ONE).state == "done"
        assert rig.attached == {}
        await asyncio.sleep(100)  # it is not begun again
        assert windows[10.0].windows == rig.of(ONE).windows[0].windows


@in_virtual_time
async def test_a_disk_that_comes_under_protection_is_let_go_of_and_the_others_go_on() -> None:
    async with running(Rig(ONE, TWO)) as rig:
        asked = order(ONE, TWO)
        rig.profiler.follow(asked, ())
        await asyncio.sleep(15)
        rig.profiler.follow(asked, [ONE])
        await asyncio.sleep(10)
        assert (rig.of(ONE).state, rig.of(TWO).state) == ("replicated", "watching")
        assert list(rig.attached) == [TWO]
        assert rig.of(ONE).watched_s <= 21
        await asyncio.sleep(60)
        assert rig.seen().done
        assert rig.discarded == 0


@in_virtual_time
async def test_a_disk_that_cannot_be_tracked_or_is_replaced_fails_with_the_reason() -> None:
    async with running(Rig(ONE)) as rig:
        rig.profiler.follow(order(ONE, TWO), ())
        await asyncio.sleep(1)
        assert rig.of(TWO).state == "failed"
        assert "eBPF" in (rig.of(TWO).problem or "")
        assert rig.of(ONE).state == "watching"


@in_virtual_time
async def test_withdrawn_replaced_or_stopped_it_lets_go_of_every_tracker() -> None:
    async with running(Rig(ONE, TWO)) as rig:
        rig.profiler.follow(order(ONE), ())
        await settle()
        assert list(rig.attached) == [ONE]
        rig.profiler.follow(order(TWO), ())
        await settle()
        assert list(rig.attached) == [TWO]
        rig.profiler.follow(None, ())
        await settle()
        assert rig.attached == {}
        assert rig.profiler.observe() is None
        rig.profiler.follow(order(ONE, TWO), ())
        await settle()
        assert len(rig.attached) == 2
    assert rig.attached == {}


@in_virtual_time
async def test_intervals_in_which_marks_were_lost_are_counted_as_doubted() -> None:
    async with running(Rig(ONE)) as rig:
        rig.profiler.follow(order(ONE), ())
        await settle()
        rig.disks[ONE].lost_marks = "an overflow"
        await asyncio.sleep(20)
        assert rig.of(ONE).doubted_windows == 1
