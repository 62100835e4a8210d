"""The backlog after a start: what waits, what is marked, what two records claim, what is damaged."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from process_server.core.backlog import Backlog, SegmentState
from process_server.core.spool_budget import SpoolBudget
from process_server.rebuild import damage_of, rebuild_backlog
from process_server.spool.log import FileOnDisk, SpoolLog, Written
from process_server.spool.record import FileName, RecordHeader, RecordKind, encode_marks
from process_server.spool.recovery import RecoveryReport
from process_server.spool.spool import Spool
from replication.data_plane import BatchAcknowledgement
from replication.epoch_manifest import manifest_hash
from replication.errors import BlockferryError
from replication.identifiers import MachineId
from tests.harness.epochs import new_uuid
from tests.harness.process_site import ShippedDisk
from tests.harness.simulated_disk import SimulatedDisk

RANDOM = Random(41)
FILE_BYTES = 64 * 1024


class Life:
    """A disk on which a log has been written; ``start`` is the next process."""

    def __init__(self) -> None:
        self.files = SimulatedDisk()
        seeds = itertools.count(1)
        self.log = SpoolLog(self.files, file_bytes=FILE_BYTES, new_seed=lambda: next(seeds))
        self.disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))

    def _draft(self, kind: RecordKind, epoch: int, attempt: int, batch: int, content_id: bytes) -> RecordHeader:
        return RecordHeader(kind, 0, 0, 0, 5, self.disk.machine, self.disk.disk, 1, epoch, attempt, batch, content_id)

    def segment(self, epoch: int, batch: int, *, attempt: int = 1, tag: bytes = b"t" * 16, size: int = 500) -> Written:
        frame = self.disk.frame(epoch, batch, attempt, 512)
        self.disk.acknowledged[frame.key] = BatchAcknowledgement(tag=tag.hex(), segment_bytes=size)
        draft = self._draft(RecordKind.SEGMENT, epoch, attempt, batch, frame.digest + tag)
        written = self.log.append(draft, memoryview(RANDOM.randbytes(size)))
        self.log.sync()
        return written

    def manifest(self, epoch: int, batches: int, *, attempt: int = 1) -> Written:
        frames = [self.disk.frame(epoch, batch, attempt, 512) for batch in range(batches)]
        encoded = self.disk.manifest(epoch, frames, attempt=attempt)
        draft = self._draft(RecordKind.MANIFEST, epoch, attempt, 0, manifest_hash(encoded))
        written = self.log.append(draft, memoryview(encoded))
        self.log.sync()
        return written

    def mark(self, kind: RecordKind, *records: Written) -> None:
        marks = encode_marks([record.place.number for record in records])
        self.log.append(RecordHeader(kind, 0, 0, 0), memoryview(marks))
        self.log.sync()

    def start(self) -> tuple[Backlog, Spool, RecoveryReport]:
        backlog = Backlog()
        spool = Spool(self.files, SpoolBudget(2**26), index_bytes=lambda: backlog.index_bytes)
        return backlog, spool, rebuild_backlog(spool, backlog)

    def state(self, backlog: Backlog, epoch: int, batch: int, attempt: int = 1) -> SegmentState | None:
        entry = backlog.find(self.disk.batch_key(epoch, batch, attempt))
        return None if entry is None else entry.state


def test_an_empty_spool_makes_an_empty_backlog() -> None:
    backlog, spool, report = Life().start()
    assert not backlog.generations
    assert spool.file_count == 0
    assert damage_of(report) is None


def test_segments_come_back_as_waiting_stored_or_not_at_all() -> None:
    life = Life()
    waiting, stored, discarded = (life.segment(1, batch) for batch in range(3))
    life.mark(RecordKind.UPLOADED, stored)
    life.mark(RecordKind.DISCARDED, discarded)
    backlog, _, _ = life.start()
    assert [life.state(backlog, 1, batch) for batch in range(3)] == [SegmentState.WAITING, SegmentState.STORED, None]
    assert list(backlog.places()) == [waiting.place]
    assert backlog.waiting_bytes == 500
    assert backlog.generations[life.disk.key].machine == life.disk.machine


def test_a_manifest_waits_for_exactly_what_is_not_stored() -> None:
    life = Life()
    segments = [life.segment(1, batch) for batch in range(3)]
    life.manifest(1, 3)
    life.mark(RecordKind.UPLOADED, segments[1])
    backlog, _, _ = life.start()
    (pending,) = backlog.pending_manifests()
    assert pending.missing == {0, 2}
    assert not pending.unverified
    assert pending.previous_hash == bytes(32)


def test_a_manifest_whose_segments_files_are_gone_asks_the_store() -> None:
    life = Life()
    for batch in range(2):
        life.disk.acknowledged[life.disk.frame(1, batch, 1, 512).key] = BatchAcknowledgement(
            tag="00" * 16, segment_bytes=9
        )
    life.manifest(1, 2)
    backlog, _, _ = life.start()
    (pending,) = backlog.pending_manifests()
    assert pending.unverified


def test_a_stored_manifest_decides_its_epoch_and_what_is_left_of_it_is_given_up() -> None:
    life = Life()
    life.segment(1, 0)
    life.segment(1, 0, attempt=2)
    manifest = life.manifest(1, 1, attempt=2)
    later = life.segment(2, 0)
    life.mark(RecordKind.UPLOADED, manifest)
    backlog, _, _ = life.start()
    chain = backlog.generations[life.disk.key].chain
    assert chain.decided_through == 1
    assert list(backlog.places()) == [later.place]
    assert not list(backlog.pending_manifests())


def test_a_discarded_manifest_decides_nothing() -> None:
    life = Life()
    life.segment(1, 0)
    life.mark(RecordKind.DISCARDED, life.manifest(1, 1))
    backlog, _, _ = life.start()
    assert not list(backlog.pending_manifests())
    assert life.state(backlog, 1, 0) is SegmentState.WAITING


def test_the_newer_attempts_manifest_counts_whichever_lies_behind_the_other() -> None:
    for order in ((1, 2), (2, 1)):
        life = Life()
        for attempt in order:
            life.segment(1, 0, attempt=attempt)
            life.manifest(1, 1, attempt=attempt)
        backlog, _, _ = life.start()
        (pending,) = backlog.pending_manifests()
        assert pending.attempt == 2


def test_of_two_records_of_a_batch_the_later_one_counts_though_it_bears_a_lower_number() -> None:
    life = Life()
    life.segment(1, 9)
    life.log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(b""))
    first = life.segment(1, 0, tag=b"a" * 16)
    life.log.close()
    # A log that gave the numbers again though the void record before could not be cut off:
    (name,) = map(FileName.parse, life.files.names())
    assert name is not None
    life.log = SpoolLog(
        life.files,
        file_bytes=FILE_BYTES,
        new_seed=lambda: 100,
        found=[FileOnDisk(name, life.files.used_bytes)],
        next_number=first.place.number - 1,
    )
    second = life.segment(1, 0, tag=b"b" * 16)
    assert second.place.number < first.place.number
    assert second.place.file > first.place.file
    backlog, _, _ = life.start()
    entry = backlog.find(life.disk.batch_key(1, 0))
    assert entry is not None
    assert (entry.tag, entry.place) == (b"b" * 16, second.place)


def test_a_damaged_manifest_is_given_up_and_its_segments_stay() -> None:
    life = Life()
    life.segment(1, 0)
    manifest = life.manifest(1, 1)
    life.segment(2, 0)
    life.files.damage(life.files.names()[0], manifest.place.offset + 300)
    backlog, _, report = life.start()
    assert not list(backlog.pending_manifests())
    assert life.state(backlog, 1, 0) is SegmentState.WAITING
    assert not report.damages, "its header is intact: it was noticed by reading it"


def test_lost_acknowledged_records_are_told_to_the_operator() -> None:
    life = Life()
    lost = life.segment(1, 0)
    life.segment(1, 1)
    life.segment(1, 2)
    life.files.damage(life.files.names()[0], lost.place.offset)
    backlog, _, report = life.start()
    assert [life.state(backlog, 1, batch) for batch in range(3)] == [None, SegmentState.WAITING, SegmentState.WAITING]
    error = damage_of(report)
    assert error is not None
    assert "cannot read 1 acknowledged records" in str(error)


def test_a_disk_that_cannot_be_repaired_is_an_error_of_the_tree() -> None:
    life = Life()
    life.segment(1, 0)
    life.segment(1, 1)
    life.files.failing_syncs = 1
    with pytest.raises(BlockferryError, match="cannot recover the spool"):
        life.start()


def test_what_is_rebuilt_twice_is_the_same() -> None:
    life = Life()
    segments = [life.segment(epoch, batch) for epoch in (1, 2) for batch in range(3)]
    life.mark(RecordKind.UPLOADED, *segments[:2])
    life.manifest(1, 3)
    first, _, _ = life.start()
    second, _, _ = life.start()
    assert set(first.places()) == set(second.places())
    assert first.waiting_bytes == second.waiting_bytes
    assert first.index_bytes == second.index_bytes
