"""Group commit: an append is answered only after a sync that began after it was written, and everybody is answered."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from process_server.core.spool_budget import SpoolBudget
from process_server.spool.files import FileSystemSpace, SpoolFile, SpoolFiles
from process_server.spool.kept_segments import segment_record_bytes
from process_server.spool.log import Written
from process_server.spool.record import RecordHeader, RecordKind, record_bytes
from process_server.spool.recovery import RecoveredMarks, RecoveredRecord, Recovery
from process_server.spool.spool import Spool
from replication.errors import BlockferryError, NotFound, Overloaded, Retryable
from tests.harness.process_time import in_virtual_time
from tests.harness.simulated_disk import SimulatedDisk

MIB = 2**20


class HeldFile:
    """A file whose syncs wait until they are let go; in the thread of their caller."""

    def __init__(self, inner: SpoolFile, files: HeldFiles) -> None:
        self._inner = inner
        self._files = files

    def write_at(self, offset: int, views: Sequence[memoryview]) -> None:
        self._inner.write_at(offset, views)

    def read_at(self, offset: int, buffer: memoryview) -> int:
        return self._inner.read_at(offset, buffer)

    def sync(self) -> None:
        self._files.begun.set()
        assert self._files.may_sync.wait(20)
        self._inner.sync()

    def forget_cache(self) -> None:
        self._inner.forget_cache()

    def truncate(self, size_bytes: int) -> None:
        self._inner.truncate(size_bytes)

    def size_bytes(self) -> int:
        return self._inner.size_bytes()

    def close(self) -> None:
        self._inner.close()


@dataclass
class HeldFiles:
    """A simulated disk whose syncs can be held."""

    disk: SimulatedDisk = field(default_factory=SimulatedDisk)
    may_sync: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_sync.set()

    def names(self) -> list[str]:
        return self.disk.names()

    def create(self, name: str, size_bytes: int) -> SpoolFile:
        return HeldFile(self.disk.create(name, size_bytes), self)

    def open(self, name: str) -> SpoolFile:
        return HeldFile(self.disk.open(name), self)

    def remove(self, name: str) -> None:
        self.disk.remove(name)

    def sync_directory(self) -> None:
        self.disk.sync_directory()

    def space(self) -> FileSystemSpace:
        return self.disk.space()


@dataclass
class Rig:
    spool: Spool
    disk: SimulatedDisk
    groups: list[int]
    task: asyncio.Task[None]

    def append(self, payload: bytes = b"payload") -> Written:
        return self.spool.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(payload))

    async def put(self, payload: bytes = b"payload") -> Written:
        written = self.append(payload)
        await self.spool.durable(written)
        return written


def make_spool(files: SpoolFiles, groups: list[int]) -> Spool:
    seeds = itertools.count(1)
    spool = Spool(
        files, SpoolBudget(64 * MIB), index_bytes=lambda: 0, on_group=groups.append, new_seed=lambda: next(seeds)
    )
    assert list(spool.recover()) == []
    spool.begin([])
    return spool


@contextlib.asynccontextmanager
async def running(files: SpoolFiles | None = None, disk: SimulatedDisk | None = None) -> AsyncIterator[Rig]:
    disk, groups = disk or SimulatedDisk(), list[int]()
    spool = make_spool(files or disk, groups)
    task = asyncio.create_task(spool.run())
    try:
        yield Rig(spool, disk, groups, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await spool.close()


def survivors(disk: SimulatedDisk) -> list[int]:
    """Numbers of the segments that a power cut now leaves."""
    found = Recovery(disk.after_power_cut(), repair=True).records()
    return [item.header.number for item in found if isinstance(item, RecoveredRecord)]


def problem_of(rig: Rig) -> BlockferryError | None:
    return rig.spool.problem


async def test_what_is_answered_survives_a_power_cut() -> None:
    async with running() as rig:
        numbers = [(await rig.put(bytes([n]) * 5000)).place.number for n in range(5)]
        assert survivors(rig.disk) == numbers


async def test_what_was_written_while_a_sync_was_under_way_waits_for_the_next() -> None:
    files = HeldFiles()
    async with running(files, files.disk) as rig:
        await rig.put()  # the file is there
        files.may_sync.clear()
        files.begun.clear()
        first = asyncio.create_task(rig.put())
        await asyncio.to_thread(files.begun.wait, 20)
        late = asyncio.create_task(rig.put())
        await asyncio.sleep(0)
        files.begun.clear()
        assert rig.spool.group_under_way == 2
        files.may_sync.set()
        await first
        await late
        assert rig.groups == [1, 1, 1]
        assert rig.spool.group_under_way is None


async def test_many_that_wait_are_answered_by_one_sync() -> None:
    files = HeldFiles()
    async with running(files, files.disk) as rig:
        await rig.put()
        files.may_sync.clear()
        files.begun.clear()
        first = asyncio.create_task(rig.put())
        await asyncio.to_thread(files.begun.wait, 20)
        others = [asyncio.create_task(rig.put()) for _ in range(20)]
        await asyncio.sleep(0)
        files.may_sync.set()
        await asyncio.gather(first, *others)
        assert rig.groups == [1, 1, 20]


async def test_a_failed_sync_fails_everybody_it_was_for_and_is_told_until_one_succeeds() -> None:
    async with running() as rig:
        kept = await rig.put()
        rig.disk.failing_syncs = 1
        outcomes = await asyncio.gather(*(rig.put() for _ in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, Retryable) for outcome in outcomes)
        assert len({id(outcome) for outcome in outcomes}) == 3, "one exception for each"
        assert problem_of(rig) is not None
        later = await rig.put()
        assert problem_of(rig) is None
        assert later.place.file != kept.place.file
        found = survivors(rig.disk)  # what was void may be there too: nobody was told of it
        assert found[:2] == [kept.place.number, later.place.number]


async def test_a_record_that_a_failed_sync_has_voided_is_never_answered_with_success() -> None:
    async with running() as rig:
        await rig.put()
        early = rig.append()
        rig.disk.failing_syncs = 1
        with pytest.raises(Retryable):
            await rig.put()
        with pytest.raises(Retryable, match="failed while it was written"):
            await rig.spool.durable(early)


async def test_a_full_file_system_is_patience_and_a_problem_until_there_is_room() -> None:
    async with running() as rig:
        rig.disk.capacity_bytes = 0
        with pytest.raises(Overloaded, match="file system is full"):
            rig.append()
        assert isinstance(problem_of(rig), Overloaded)
        rig.disk.capacity_bytes = 2**40
        await rig.put()
        assert problem_of(rig) is None


async def test_who_waits_when_the_server_stops_is_answered_once_the_disk_has_answered() -> None:
    files = HeldFiles()
    async with running(files, files.disk) as rig:
        await rig.put()
        files.may_sync.clear()
        files.begun.clear()
        waiting = asyncio.create_task(rig.put())
        await asyncio.to_thread(files.begun.wait, 20)
        rig.task.cancel()
        late = asyncio.create_task(rig.put())
        await asyncio.sleep(0)
        files.may_sync.set()
        async with asyncio.timeout(20):
            assert (await waiting).place.number == 2
            with pytest.raises(Retryable, match="stops"):
                await late
        with pytest.raises(Retryable, match="stops"):
            await rig.put()


@in_virtual_time
async def test_marks_are_written_within_a_second_and_files_without_needed_records_go() -> None:
    disk = SimulatedDisk()
    async with running(disk=disk) as rig:
        size = rig.spool.budget.file_bytes // 2
        places = [(await rig.put(bytes(size))).place for _ in range(4)]
        assert rig.spool.file_count == 4
        for place in places[:2]:
            rig.spool.release(place, RecordKind.UPLOADED)
        rig.spool.release(places[2], RecordKind.DISCARDED)
        await asyncio.sleep(1.1)
        marks = [item for item in Recovery(disk, repair=False).records() if isinstance(item, RecoveredMarks)]
        marked = {(item.kind, number) for item in marks for number in item.numbers}
        assert {(RecordKind.UPLOADED, 1), (RecordKind.UPLOADED, 2), (RecordKind.DISCARDED, 3)} <= marked
        await rig.put()
        with pytest.raises(NotFound):
            await rig.spool.read(places[0], memoryview(bytearray(size)))
        assert rig.spool.file_count == 1
        assert len(disk.names()) == 1
        buffer = bytearray(size)
        header = await rig.spool.read(places[3], memoryview(buffer))
        assert header.number == 4


@in_virtual_time
async def test_marks_that_could_not_be_made_durable_are_written_again() -> None:
    disk = SimulatedDisk()
    async with running(disk=disk) as rig:
        first, _ = await rig.put(), await rig.put()
        rig.spool.release(first.place, RecordKind.UPLOADED)
        disk.failing_syncs = 1
        await asyncio.sleep(1.1)
        assert problem_of(rig) is not None
        await asyncio.sleep(1.1)
        assert problem_of(rig) is None
        found = list(Recovery(disk.after_power_cut(), repair=True).records())
        assert [item.numbers for item in found if isinstance(item, RecoveredMarks)] == [[1]]


async def test_nothing_is_accepted_before_recovery_has_ended() -> None:
    spool = Spool(SimulatedDisk(), SpoolBudget(64 * MIB), index_bytes=lambda: 0)
    with pytest.raises(RuntimeError, match="before it has begun"):
        spool.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(b""))
    list(spool.recover())
    spool.begin([])
    with pytest.raises(RuntimeError, match="begun already"):
        spool.begin([])
    with pytest.raises(RuntimeError, match="begun already"):
        spool.recover()


async def test_a_disk_that_does_not_say_how_much_is_free_is_an_error_of_the_tree() -> None:
    class Mute(HeldFiles):
        def space(self) -> FileSystemSpace:
            raise OSError(5, "Input/output error")

    async with running(Mute()) as rig:
        with pytest.raises(BlockferryError, match="cannot ask for the spool's free space"):
            await rig.spool.space()


async def test_reservations_are_for_the_worst_case_of_what_is_announced() -> None:
    async with running() as rig:
        with rig.spool.reserve_batch(MIB):
            assert rig.spool.budget.reserved_bytes == segment_record_bytes(MIB) > MIB
        with rig.spool.reserve_manifest(1000):
            assert rig.spool.budget.reserved_bytes == record_bytes(1000)
        assert rig.spool.budget.reserved_bytes == 0
        for _ in range(200):
            await rig.put(bytes(MIB // 2))
            with contextlib.suppress(Overloaded):
                rig.spool.reserve_batch(MIB).close()
                continue
            break
        else:
            pytest.fail("it takes more than its limit")
        rig.spool.reserve_manifest(1000).close()
