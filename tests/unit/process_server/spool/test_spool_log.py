"""The spool's log over a simulated disk: what is durable survives, what fails is void, files go when nothing in them is needed."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from random import Random

import pytest

from process_server.core.places import RecordPlace
from process_server.spool.files import DirectoryFiles, SpoolFiles
from process_server.spool.log import SpoolLog, Written
from process_server.spool.record import (
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    UNALIGNED_VERSION,
    FileName,
    RecordHeader,
    RecordKind,
    decode_record_header,
    encode_file_header,
    encode_marks,
    payload_digest,
    record_bytes,
)
from process_server.spool.recovery import RecoveredMarks, RecoveredRecord, Recovery, RecoveryReport
from replication.aligned_memory import BLOCK_BYTES
from replication.errors import IntegrityError, NotFound, Overloaded, Retryable
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


# -- format ---------------------------------------------------------------------------------------------------


def test_a_record_header_reads_back_as_it_was_written() -> None:
    name = FileName(7, 0xABCDEF)
    header = RecordHeader(RecordKind.MANIFEST, 9, 8, 100, 123, MACHINE, DISK, 1, 2, 3, 4, bytes(range(32)))
    encoded = header.encode(name, b"d" * 16)
    assert len(encoded) == RECORD_HEADER_BYTES
    stored = decode_record_header(memoryview(encoded), name)
    assert stored is not None
    assert stored.header == header
    assert stored.payload_digest == b"d" * 16


def test_a_record_of_another_file_is_no_record() -> None:
    encoded = memoryview(draft(0).encode(FileName(7, 1), b"d" * 16))
    assert decode_record_header(encoded, FileName(8, 1)) is None
    assert decode_record_header(encoded, FileName(7, 2)) is None
    assert decode_record_header(encoded[:-1], FileName(7, 1)) is None


def test_every_bit_of_a_record_header_is_covered_by_its_checksum() -> None:
    name = FileName(1, 99)
    encoded = draft(3).encode(name, b"d" * 16)
    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 1
        assert decode_record_header(memoryview(damaged), name) is None


def test_file_names_sort_by_age_and_foreign_names_are_left_alone() -> None:
    assert sorted([str(FileName(300, 1)), str(FileName(2, 9))]) == [str(FileName(2, 9)), str(FileName(300, 1))]
    assert FileName.parse(str(FileName(300, 1))) == FileName(300, 1)
    assert FileName.parse("lock") is None


def test_records_fill_whole_blocks_and_those_of_old_files_multiples_of_eight() -> None:
    assert all(record_bytes(length) % BLOCK_BYTES == 0 for length in (0, 1, BLOCK_BYTES - 152, BLOCK_BYTES, 10**6))
    assert record_bytes(BLOCK_BYTES - RECORD_HEADER_BYTES) == BLOCK_BYTES
    assert FILE_HEADER_BYTES % BLOCK_BYTES == 0
    assert all(record_bytes(length, UNALIGNED_VERSION) % 8 == 0 for length in range(64))


# -- appending ------------------------------------------------------------------------------------------------


def test_what_was_appended_reads_back(tmp_path: Path) -> None:
    log = make_log(DirectoryFiles(tmp_path))
    places = [append(log, batch, bytes([batch]) * (1000 + batch)).place for batch in range(5)]
    log.sync()
    assert [read(log, place) for place in places] == [bytes([batch]) * (1000 + batch) for batch in range(5)]
    log.close()


def test_a_record_larger_than_a_file_gets_a_file_of_its_own() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    first = append(log, 0, b"a" * 100)
    large = append(log, 1, b"b" * (2 * FILE_BYTES))
    assert large.place.file == first.place.file + 1
    assert read(log, large.place) == b"b" * (2 * FILE_BYTES)


def test_a_full_file_gives_back_what_it_does_not_use() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    append(log, 0, b"a" * 40_000)
    append(log, 1, b"b" * 40_000)
    used = 2 * (FILE_HEADER_BYTES + record_bytes(40_000))
    assert log.used_bytes == used
    assert disk.used_bytes == FILE_HEADER_BYTES + record_bytes(40_000) + FILE_BYTES
    log.close()
    assert disk.used_bytes == used


def test_a_full_file_system_means_patience_and_the_log_goes_on_when_space_is_back() -> None:
    disk = SimulatedDisk(capacity_bytes=FILE_BYTES + 10)
    log = make_log(disk)
    kept = append(log, 0, b"a" * 50_000)
    log.sync()
    with pytest.raises(Overloaded) as caught:
        append(log, 1, b"b" * 50_000)
    assert caught.value.retry_after_s
    assert read(log, kept.place) == b"a" * 50_000
    disk.capacity_bytes = 10 * FILE_BYTES
    later = append(log, 1, b"b" * 50_000)
    log.sync()
    assert later.place.number == kept.place.number + 1
    assert read(log, later.place) == b"b" * 50_000


def test_what_lets_the_spool_drain_makes_do_with_a_small_file() -> None:
    disk = SimulatedDisk(capacity_bytes=FILE_BYTES + FILE_HEADER_BYTES + record_bytes(6_000))
    log = make_log(disk)
    append(log, 0, b"a" * 60_000)
    with pytest.raises(Overloaded):
        append(log, 1, b"b" * 6_000)
    urgent = log.append(RecordHeader(RecordKind.MANIFEST, 0, 0, 0), memoryview(b"m" * 6_000), urgent=True)
    log.sync()
    assert read(log, urgent.place) == b"m" * 6_000


def test_a_failed_write_leaves_the_log_as_it_was() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    first = append(log, 0, b"a" * 1000)
    disk.failing_writes = 1
    with pytest.raises(Retryable) as caught:
        append(log, 1, b"b" * 1000)
    assert not isinstance(caught.value, Overloaded)
    second = append(log, 2, b"c" * 1000)
    log.sync()
    assert second.place.number == first.place.number + 1
    assert second.place.offset == first.place.offset + record_bytes(1000)
    records, _, report = recover(disk.after_power_cut())
    assert [record.header.batch for record in records] == [0, 2]
    assert not report.damages


def test_a_failed_sync_voids_what_was_not_durable_and_the_numbers_are_given_again() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    durable = append(log, 0, b"a" * 1000)
    assert log.sync().through == durable.place.number
    void = append(log, 1, b"b" * 1000)
    disk.failing_syncs = 1
    with pytest.raises(Retryable):
        log.sync()
    again = append(log, 1, b"c" * 1000)
    synced = log.sync()
    assert again.place.number == void.place.number
    assert again.place.file > void.place.file
    assert (void.incarnation, again.incarnation) == (0, synced.incarnation)
    assert synced.incarnation == 1
    records, _, report = recover(disk.after_power_cut())
    assert [record.place for record in records] == [durable.place, again.place]
    assert not report.damages


def test_a_record_written_while_a_sync_fails_is_void_too() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    append(log, 0, b"a" * 1000)
    disk.failing_syncs = 1
    with pytest.raises(Retryable):
        log.sync()
    assert log.sync().incarnation == 1
    assert log.sync().through == 0


def test_one_sync_covers_records_in_several_files() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    for batch in range(4):
        append(log, batch, bytes([batch]) * 40_000)
    log.sync()
    records, _, _ = recover(disk.after_power_cut())
    assert [record.header.batch for record in records] == [0, 1, 2, 3]


# -- reading and removing -------------------------------------------------------------------------------------


def test_a_damaged_payload_is_never_handed_out() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    place = append(log, 0, b"a" * 1000).place
    log.sync()
    disk.damage(disk.names()[0], place.offset + RECORD_HEADER_BYTES + 500)
    with pytest.raises(IntegrityError, match="damaged"):
        read(log, place)


def test_a_place_is_read_only_as_the_record_it_names() -> None:
    log = make_log(SimulatedDisk())
    place = append(log, 0, b"a" * 1000).place
    with pytest.raises(IntegrityError):
        read(log, place._replace(number=place.number + 1))


def test_files_can_be_removed_once_nothing_in_them_is_needed() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    places = [append(log, batch, b"a" * 40_000).place for batch in range(3)]
    log.sync()
    assert log.removable() == []
    log.release(places[1])
    assert log.removable() == [places[1].file]
    log.remove(places[1].file)
    with pytest.raises(NotFound):
        read(log, places[1])
    assert log.used_bytes == 2 * (FILE_HEADER_BYTES + record_bytes(40_000))
    log.release(places[2])
    assert log.removable() == [], "the file that is appended to stays"
    with pytest.raises(ValueError, match="appended"):
        log.remove(places[2].file)


def test_real_files_report_a_full_file_system_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = DirectoryFiles(tmp_path)

    def no_room(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)
    log = make_log(files)
    with pytest.raises(Overloaded):
        append(log, 0, b"a")
    assert files.names() == [], "no half-made file is left"


# -- recovery -------------------------------------------------------------------------------------------------


def filled(disk: SimulatedDisk, count: int, size: int = 5000) -> list[RecordPlace]:
    log = make_log(disk)
    places = [append(log, batch, Random(batch).randbytes(size)).place for batch in range(count)]
    log.sync()
    log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(b""))
    log.sync()
    log.close()
    return places


def test_recovery_hands_over_every_durable_record_in_order() -> None:
    disk = SimulatedDisk()
    places = filled(disk, 30)
    records, _, report = recover(disk.after_power_cut())
    assert [record.place for record in records] == places
    assert [record.header.batch for record in records] == list(range(30))
    assert report.last_number == places[-1].number + 1
    assert not report.damages


def test_a_torn_tail_is_cut_off() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    kept = append(log, 0, b"a" * 5000)
    log.sync()
    append(log, 1, b"b" * 20_000)
    torn = disk.after_power_cut()
    records, _, report = recover(torn)
    assert [record.place for record in records][:1] == [kept.place]
    assert torn.used_bytes == report.files[0].end_bytes
    assert not any(damage.acknowledged for damage in report.damages)


def test_a_tail_that_was_written_and_not_torn_counts_from_now_on() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    append(log, 0, b"a" * 5000)
    before = disk.syncs
    records, _, _ = recover(disk)
    assert [record.header.batch for record in records] == [0]
    assert disk.syncs > before, "it is made durable before it is told of"
    records, _, _ = recover(disk.after_power_cut())
    assert [record.header.batch for record in records] == [0]


@pytest.mark.parametrize("victim", range(8))
def test_damage_to_a_header_is_reported_and_what_follows_is_recovered(victim: int) -> None:
    disk = SimulatedDisk()
    places = filled(disk, 9, 3000)
    disk.damage(disk.names()[0], places[victim].offset + 20, 4)
    records, _, report = recover(disk)
    assert [record.place for record in records] == [place for place in places if place != places[victim]]
    (damage,) = report.damages
    assert damage.offset_bytes == places[victim].offset
    assert damage.length_bytes == record_bytes(3000)
    assert damage.acknowledged
    assert list(damage.lost) == [places[victim].number]


def test_damage_at_the_end_of_a_file_shows_in_the_numbers_of_the_next() -> None:
    disk = SimulatedDisk()
    places = filled(disk, 30)
    last = [place for place in places if place.file == places[0].file][-1]
    disk.damage(disk.names()[0], last.offset, 8)
    records, _, report = recover(disk)
    assert [record.place for record in records] == [place for place in places if place != last]
    assert [list(damage.lost) for damage in report.damages] == [[last.number]]
    assert report.damages[0].acknowledged


def test_a_damaged_file_header_costs_no_record() -> None:
    disk = SimulatedDisk()
    places = filled(disk, 3)
    disk.damage(disk.names()[0], 10, 4)
    records, _, report = recover(disk)
    assert [record.place for record in records] == places
    assert [list(damage.lost) for damage in report.damages] == [[]]


def test_a_record_inside_a_payload_is_not_taken_for_one() -> None:
    disk = SimulatedDisk()
    name = FileName(1, 1)
    inner = draft(77).encode(FileName(1, 2), payload_digest(memoryview(b""), FileName(1, 2)))
    payload = b"x" * (8 - RECORD_HEADER_BYTES % 8) + inner * 10
    log = make_log(disk)
    place = append(log, 0, payload).place
    append(log, 1, b"y" * 100)
    log.sync()
    assert disk.names() == [str(name)]
    disk.damage(str(name), place.offset, 8)
    records, _, _ = recover(disk)
    assert [record.header.batch for record in records] == [1]


def test_marks_come_after_what_they_mark() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    place = append(log, 0, b"a" * 100).place
    marks = encode_marks([place.number])
    log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(marks))
    log.sync()
    records, found, _ = recover(disk.after_power_cut())
    assert [record.place for record in records] == [place]
    assert found == [RecoveredMarks(RecordKind.UPLOADED, [place.number])]


def test_a_file_with_nothing_in_it_is_forgotten_by_its_header_alone() -> None:
    disk = SimulatedDisk()
    file = disk.create(str(FileName(4, 4)), FILE_BYTES)
    file.write_at(0, [memoryview(encode_file_header(FileName(4, 4)))])
    records, _, report = recover(disk)
    assert not records
    assert not report.damages
    assert [entry.end_bytes for entry in report.files] == [FILE_HEADER_BYTES]


def test_a_scan_without_repair_changes_nothing() -> None:
    disk = SimulatedDisk()
    log = make_log(disk)
    append(log, 0, b"a" * 100)
    before = (disk.used_bytes, disk.syncs)
    records, _, _ = recover(disk, repair=False)
    assert len(records) == 1
    assert (disk.used_bytes, disk.syncs) == before
