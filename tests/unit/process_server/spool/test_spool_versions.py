"""A spool of version 1, whose records begin at multiples of 8, is read after an upgrade; what is written fills whole blocks."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from process_server.core.places import RecordPlace
from process_server.spool.log import SpoolLog
from process_server.spool.record import (
    FILE_HEADER_BYTES,
    FILE_HEADERS_BYTES,
    FORMAT_VERSION,
    RECORD_HEADER_BYTES,
    UNALIGNED_VERSION,
    FileName,
    RecordHeader,
    RecordKind,
    encode_file_header,
    file_version,
    payload_digest,
    record_bytes,
)
from process_server.spool.recovery import RecoveredRecord, Recovery, RecoveryReport
from replication.aligned_memory import BLOCK_BYTES, aligned_memory
from replication.identifiers import DiskId, MachineId
from tests.harness.simulated_disk import SimulatedDisk

FILE_BYTES = 64 * 1024
OLD = FileName(1, 7)
DISK = DiskId("11111111-1111-4111-8111-111111111111")
MACHINE = MachineId("22222222-2222-4222-8222-222222222222")


def draft(batch: int, number: int = 0, durable_through: int = 0, payload_bytes: int = 0) -> RecordHeader:
    return RecordHeader(
        RecordKind.SEGMENT,
        number,
        durable_through,
        payload_bytes,
        5,
        MACHINE,
        DISK,
        1,
        2,
        3,
        batch,
        bytes([batch]) * 32,
    )


def content(batch: int) -> bytes:
    return Random(batch).randbytes(1000 + batch)


def old_spool(disk: SimulatedDisk, count: int) -> list[RecordPlace]:
    """As version 1 wrote it: a header of 64 bytes, records at multiples of 8; durable, and the last record says so of the others."""
    file = disk.create(str(OLD), FILE_BYTES)
    file.write_at(0, [memoryview(encode_file_header(OLD, UNALIGNED_VERSION))])
    position, places = 64, []
    for batch in range(count):
        payload = content(batch)
        header = draft(batch, batch + 1, batch, len(payload))
        digest = payload_digest(memoryview(payload), OLD)
        file.write_at(position, [memoryview(header.encode(OLD, digest, UNALIGNED_VERSION)), memoryview(payload)])
        places.append(RecordPlace(OLD.number, position, len(payload), batch + 1))
        position += -(-(152 + len(payload)) // 8) * 8
    file.sync()
    disk.sync_directory()
    return places


def recover(disk: SimulatedDisk) -> tuple[list[RecoveredRecord], RecoveryReport]:
    recovery = Recovery(disk, repair=True)
    records = [item for item in recovery.records() if isinstance(item, RecoveredRecord)]
    return records, recovery.report


def reopened(disk: SimulatedDisk, report: RecoveryReport) -> SpoolLog:
    seeds = itertools.count(100)
    return SpoolLog(
        disk,
        file_bytes=FILE_BYTES,
        new_seed=lambda: next(seeds),
        found=report.files,
        next_number=report.last_number + 1,
    )


def test_a_file_says_its_version_and_a_damaged_header_none() -> None:
    for version, length in FILE_HEADERS_BYTES.items():
        header = encode_file_header(OLD, version)
        assert len(header) == length
        assert file_version(header.ljust(BLOCK_BYTES, b"\0"), OLD) == version
        for position in range(64):
            damaged = bytearray(header)
            damaged[position] ^= 1
            assert file_version(bytes(damaged), OLD) is None
    assert FILE_HEADERS_BYTES == {1: 64, 2: 4096}


def test_an_old_spool_is_read_and_new_records_follow_in_a_file_of_their_own() -> None:
    disk = SimulatedDisk()
    places = old_spool(disk, 9)
    records, report = recover(disk.after_power_cut())
    assert [record.place for record in records] == places
    assert not report.damages
    log = reopened(disk, report)
    for place in places:
        log.hold(place)
        buffer = bytearray(place.payload_bytes)
        assert log.read(place, memoryview(buffer)).number == place.number
        assert bytes(buffer) == content(place.number - 1)
        room = aligned_memory(record_bytes(place.payload_bytes))
        assert log.read_record(place, room).number == place.number
        assert bytes(room[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + place.payload_bytes]) == bytes(buffer)
    new = log.append(draft(50), memoryview(b"new")).place
    assert (new.number, new.file, new.offset) == (10, 2, FILE_HEADER_BYTES)
    log.sync()
    records, report = recover(disk.after_power_cut())
    assert [record.place for record in records] == [*places, new]
    assert not report.damages


@pytest.mark.parametrize("victim", range(8))
def test_damage_in_an_old_file_costs_what_it_touches_and_is_told_once(victim: int) -> None:
    disk = SimulatedDisk()
    places = old_spool(disk, 9)
    disk.damage(disk.names()[0], places[victim].offset + 20, 4)
    records, report = recover(disk)
    left = [place for place in places if place != places[victim]]
    assert [record.place for record in records] == left
    (damage,) = report.damages
    assert (damage.offset_bytes, list(damage.lost)) == (places[victim].offset, [victim + 1])
    assert damage.length_bytes == record_bytes(places[victim].payload_bytes, UNALIGNED_VERSION)
    records, report = recover(disk)
    assert [record.place for record in records] == left
    assert not report.damages, "a gap accounts for it now"


@pytest.mark.parametrize("version", [UNALIGNED_VERSION, FORMAT_VERSION])
def test_a_damaged_file_header_is_mended_as_what_it_was(version: int) -> None:
    disk = SimulatedDisk()
    if version == UNALIGNED_VERSION:
        places, name = old_spool(disk, 3), OLD
    else:
        log = SpoolLog(disk, file_bytes=FILE_BYTES, new_seed=lambda: 7)
        places, name = (
            [log.append(draft(batch), memoryview(content(batch))).place for batch in range(3)],
            FileName(1, 7),
        )
        log.sync()
    disk.damage(str(name), 10, 4)
    records, report = recover(disk)
    assert [record.place for record in records] == places
    assert [list(damage.lost) for damage in report.damages] == [[]]
    start = bytearray(BLOCK_BYTES)
    disk.open(str(name)).read_at(0, memoryview(start))
    assert file_version(bytes(start), name) == version
    records, report = recover(disk)
    assert [record.place for record in records] == places
    assert not report.damages


def test_torn_records_of_any_version_stay_torn() -> None:
    """Both versions' records end where the next one may begin: a tail is cut, whatever a power cut left of it."""
    for seed in range(100):
        disk = SimulatedDisk(random=Random(seed))
        old_spool(disk, 2)
        _, report = recover(disk)
        log = reopened(disk, report)
        log.append(draft(10), memoryview(b"kept"))
        log.sync()
        log.append(draft(11), memoryview(Random(seed).randbytes(9000)))
        after = disk.after_power_cut()
        records, _ = recover(after)
        found = [record.header.batch for record in records]
        assert found in ([0, 1, 10], [0, 1, 10, 11])
        records, report = recover(after.after_power_cut())
        assert [record.header.batch for record in records] == found
        assert not [damage for damage in report.damages if damage.acknowledged]
