"""The spool's log over disks that fail in part: damage costs what it touches, and what is void never counts beside what is not."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from random import Random

import pytest

from process_server.core.places import RecordPlace
from process_server.spool.files import DirectoryFiles, SpoolFiles
from process_server.spool.log import SpoolLog, Written
from process_server.spool.record import FileName, RecordHeader, RecordKind
from process_server.spool.recovery import RecoveredMarks, RecoveredRecord, Recovery, RecoveryReport
from replication.errors import IntegrityError, Retryable
from replication.identifiers import DiskId, MachineId
from tests.harness.simulated_disk import SimulatedDisk

FILE_BYTES = 64 * 1024
DISK = DiskId("11111111-1111-4111-8111-111111111111")
MACHINE = MachineId("22222222-2222-4222-8222-222222222222")


def make_log(files: SpoolFiles, file_bytes: int = FILE_BYTES) -> SpoolLog:
    seeds = itertools.count(1)
    return SpoolLog(files, file_bytes=file_bytes, new_seed=lambda: next(seeds))


def draft(batch: int) -> RecordHeader:
    return RecordHeader(
        RecordKind.SEGMENT, 0, 0, 0, accepted_unix_ns=5, machine=MACHINE, disk=DISK, generation=1, epoch=2, attempt=3,
        batch=batch, content_id=bytes([batch]) * 32,
    )  # fmt: skip


def append(log: SpoolLog, batch: int, payload: bytes) -> Written:
    return log.append(draft(batch), memoryview(payload))


def read(log: SpoolLog, place: RecordPlace) -> bytes:
    buffer = bytearray(place.payload_bytes)
    log.read(place, memoryview(buffer))
    return bytes(buffer)


def recover(
    files: SpoolFiles, *, repair: bool = True
) -> tuple[list[RecoveredRecord], list[RecoveredMarks], RecoveryReport]:
    recovery = Recovery(files, repair=repair)
    found = list(recovery.records())
    records = [item for item in found if isinstance(item, RecoveredRecord)]
    return records, [item for item in found if isinstance(item, RecoveredMarks)], recovery.report


def test_a_block_that_cannot_be_read_costs_only_the_records_in_it() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    places = [append(log, batch, Random(batch).randbytes(8000)).place for batch in range(5)]
    log.sync()
    append(log, 5, b"x")  # states that the others are durable
    log.sync()
    log.close()
    (name,) = disk.names()
    disk.make_unreadable(name, places[2].offset)
    records, _, report = recover(disk)
    found = {record.header.batch for record in records}
    assert found == {0, 1, 3, 4, 5}
    (damage,) = report.damages
    assert damage.acknowledged
    assert list(damage.lost) == [places[2].number]
    again, _, _ = recover(disk)
    assert {record.header.batch for record in again} == found, "the next start finds the same"


def test_a_spool_of_which_nothing_can_be_read_still_starts() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    append(log, 0, bytes(5000))
    log.sync()
    log.close()
    (name,) = disk.names()
    disk.make_unreadable(name, 0, disk.used_bytes)
    records, _, report = recover(disk)
    assert not records
    assert report.files


def test_an_unreadable_payload_is_noticed_when_it_is_read_back() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    place = append(log, 0, bytes(20_000)).place
    log.sync()
    disk.make_unreadable(disk.names()[0], place.offset + 12_000)
    with pytest.raises(IntegrityError, match="cannot read record"):
        read(log, place)


def test_files_that_could_not_be_made_nor_removed_never_share_a_number() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    disk.failing_syncs = disk.failing_removals = 1
    with pytest.raises(Retryable):
        append(log, 0, b"first")
    place = append(log, 0, b"second").place
    log.sync()
    log.close()
    numbers = [FileName.parse(name) for name in disk.names()]
    assert len({name.number for name in numbers if name is not None}) == len(numbers) == 2
    records, _, report = recover(disk)
    assert [record.place for record in records] == [place]
    assert not report.damages


def test_a_failed_creation_that_was_cleaned_up_leaves_no_gap_in_the_numbers() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    disk.failing_writes = 1
    with pytest.raises(Retryable):
        append(log, 0, b"first")
    assert append(log, 0, b"second").place.file == 1


def test_what_a_read_only_file_system_holds_can_be_read_and_a_write_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(DirectoryFiles(tmp_path))
    place = append(log, 0, b"acknowledged").place
    log.sync()
    opened = os.open

    def read_only(path: Path, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", read_only)
        assert read(log, place) == b"acknowledged"
        file = DirectoryFiles(tmp_path).open(next(tmp_path.glob("*.spool")).name)
        with pytest.raises(OSError, match="Read-only"):
            file.write_at(0, [memoryview(b"x")])
        with pytest.raises(OSError, match="Read-only"):
            file.truncate(0)
        file.close()
        with pytest.raises(Retryable, match="Read-only"):
            append(log, 1, bytes(FILE_BYTES))
    log.close()


def test_void_records_never_come_back_beside_those_that_bear_their_numbers() -> None:
    for seed in range(200):
        disk = SimulatedDisk(random=Random(seed))
        log = make_log(disk)
        append(log, 0, b"kept")
        log.sync()
        for batch in (1, 2, 3):
            append(log, batch, b"void")
        disk.failing_syncs = 1
        with pytest.raises(Retryable):
            log.sync()
        append(log, 9, b"later")
        log.sync()
        records, _, report = recover(disk.after_power_cut())
        assert [record.header.batch for record in records] == [0, 9]
        assert not [damage for damage in report.damages if damage.acknowledged]


def test_what_recovery_found_torn_does_not_count_after_the_next_power_cut_either() -> None:
    """Its header may have survived, and new records state that all before them is durable: only what recovery fills in tells of it."""
    torn = 0
    for seed in range(200):
        disk = SimulatedDisk(random=Random(seed))
        log = make_log(disk)
        append(log, 0, b"kept")
        log.sync()
        append(log, 1, Random(seed).randbytes(3000))
        disk = disk.after_power_cut()
        records, _, report = recover(disk)
        found = [record.header.batch for record in records]
        torn += 1 not in found
        log = SpoolLog(
            disk,
            file_bytes=FILE_BYTES,
            new_seed=lambda: 2,
            found=report.files,
            next_number=report.last_number + 1,
        )
        for batch in (2, 3):
            append(log, batch, b"later")
            log.sync()
        disk = disk.after_power_cut()
        records, _, _ = recover(disk)
        assert [record.header.batch for record in records] == [*found, 2, 3]
    assert torn


def test_while_void_records_cannot_be_cut_off_nothing_is_accepted() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    append(log, 0, b"kept")
    log.sync()
    append(log, 1, b"void")
    disk.failing_syncs = 3
    with pytest.raises(Retryable):
        log.sync()
    for _ in range(2):
        with pytest.raises(Retryable):
            append(log, 2, b"refused")
    assert append(log, 3, b"later").place.number == 2
    log.sync()
    records, _, _ = recover(disk)
    assert [record.header.batch for record in records] == [0, 3]
