"""The backlog rebuilt from the spool: the normal way to start, after a stop as after a crash.

Called by ``daemon`` once, before anything is served; blocks. Segments come back as waiting, or as stored if they are marked; manifests as
pending, and what they wait for is counted anew. What two records claim (a void one and its repetition, an older attempt's manifest and a
newer one's) is settled as it was while running: the later record, the newer attempt.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from process_server.core.backlog import Backlog, SegmentEntry, SegmentState
from process_server.core.epoch_chain import PendingManifest
from process_server.core.places import NOWHERE, RecordPlace
from process_server.spool.log import spool_failure
from process_server.spool.record import RecordHeader, RecordKind
from process_server.spool.recovery import RecoveredMarks, RecoveredRecord, RecoveryReport
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoredSegment
from replication.epoch_manifest import decode_unverified_manifest
from replication.errors import BlockferryError, IntegrityError
from replication.identifiers import AttemptNumber, BatchKey, EpochId, EpochKey, MachineId

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """Names as recovery meets them: one string for each, however many records carry it."""

    names: dict[str, str] = field(default_factory=dict)
    segments: dict[int, BatchKey] = field(default_factory=dict)
    manifests: dict[int, tuple[EpochKey, bytes]] = field(default_factory=dict)

    def shared(self, name: str) -> str:
        return self.names.setdefault(name, name)


def rebuild_backlog(spool: Spool, backlog: Backlog) -> RecoveryReport:
    """Recover ``spool`` and fill the empty ``backlog``; the spool has begun on return.

    :raises BlockferryError: if the spool's disk fails.
    """
    known = _Known()
    try:
        for item in spool.recover():
            match item:
                case RecoveredMarks(kind, numbers):
                    _apply_marks(backlog, known, kind, numbers)
                case RecoveredRecord(header, place) if header.kind is RecordKind.SEGMENT:
                    key = _shared_key(known, header)
                    entry = SegmentEntry(
                        header.digest,
                        header.tag,
                        header.payload_bytes,
                        SegmentState.WAITING,
                        place,
                        header.accepted_unix_ns,
                    )
                    known.segments[header.number] = key
                    if _is_older(place, backlog.find(key)):
                        continue
                    backlog.add_segment(key, MachineId(known.shared(header.machine)), entry)
                case RecoveredRecord(header, place):
                    known.manifests[header.number] = (header.epoch_key, header.content_id)
                    _add_manifest(backlog, item)
    except OSError as error:
        raise spool_failure(error, "recover the spool") from error
    del known
    for generation in backlog.generations.values():
        backlog.settle(generation.key)
    report = spool.begin(backlog.places())
    for manifest in list(backlog.pending_manifests()):
        _count_segments(spool, backlog, manifest)
    _report(report)
    return report


def _is_older(place: RecordPlace, other: SegmentEntry | PendingManifest | None) -> bool:
    """Whether ``other`` was written behind ``place``, or is stored already. By place, as a void record may bear a higher number."""
    return other is not None and (other.place == NOWHERE or other.place[:2] > place[:2])


def _shared_key(known: _Known, header: RecordHeader) -> BatchKey:
    key = header.batch_key
    return BatchKey(type(key.disk)(known.shared(key.disk)), key.generation, key.epoch, key.attempt, key.batch)


def _apply_marks(backlog: Backlog, known: _Known, kind: RecordKind, numbers: list[int]) -> None:
    for number in numbers:
        key = known.segments.pop(number, None)
        if key is not None:
            if kind is RecordKind.UPLOADED:
                backlog.mark_stored(key, number)
            else:
                backlog.forget_segment(key, number)
        found = known.manifests.pop(number, None)
        if found is not None:
            epoch, manifest_hash = found
            generation = backlog.generations[epoch.generation_key]
            pending = generation.pending_manifest(epoch.epoch)
            if pending is not None and pending.place.number == number:
                backlog.drop_manifest(pending)
            if kind is RecordKind.UPLOADED:
                generation.chain.decide(epoch.epoch, manifest_hash)


def _add_manifest(backlog: Backlog, item: RecoveredRecord) -> None:
    header, place = item
    generation = backlog.generation(header.epoch_key.generation_key, header.machine)
    pending = generation.pending_manifest(EpochId(header.epoch))
    if pending is not None and (
        pending.attempt > header.attempt or (pending.attempt == header.attempt and _is_older(place, pending))
    ):
        return
    backlog.add_manifest(
        PendingManifest(
            header.epoch_key,
            AttemptNumber(header.attempt),
            header.content_id,
            previous_hash=b"",
            place=place,
            accepted_unix_ns=header.accepted_unix_ns,
            missing=set(),
        ),
        header.machine,
    )


def _count_segments(spool: Spool, backlog: Backlog, pending: PendingManifest) -> None:
    """Read a pending manifest again: which of its segments wait, and whether some are known to the store only."""
    content = bytearray(pending.place.payload_bytes)
    try:
        spool.read_blocking(pending.place, memoryview(content))
        manifest = decode_unverified_manifest(bytes(content), expected=pending.key)
    except IntegrityError as error:
        _logger.log(
            logging.ERROR,
            "a spooled manifest is damaged: its agent puts it again",
            extra={"fields": {"error": str(error)}},
        )
        backlog.drop_manifest(pending)
        spool.release(pending.place, RecordKind.DISCARDED)
        return
    entries = backlog.attempt_entries(pending.key, pending.attempt)
    for named in manifest.segments:
        entry = entries.get(named.batch)
        wanted = StoredSegment(named.batch_digest, named.tag, named.segment_bytes)
        if entry is None or StoredSegment(entry.digest, entry.tag, entry.segment_bytes) != wanted:
            pending.unverified = True
        elif entry.state is SegmentState.WAITING:
            pending.missing.add(named.batch)
    pending.previous_hash = manifest.previous_hash


def _report(report: RecoveryReport) -> None:
    for damage in report.damages:
        level = logging.ERROR if damage.acknowledged else logging.WARNING
        _logger.log(
            level,
            "a part of the spool is damaged" if damage.acknowledged else "an unfinished part of the spool is left out",
            extra={
                "fields": {
                    "file": damage.file,
                    "offset": damage.offset_bytes,
                    "bytes": damage.length_bytes,
                    "records": len(damage.lost),
                }
            },
        )
    _logger.info(
        "spool recovered",
        extra={"fields": {"files": len(report.files), "records": report.records, "torn_bytes": report.torn_bytes}},
    )


def damage_of(report: RecoveryReport) -> BlockferryError | None:
    """What the operator must be told of a recovery, if acknowledged records were lost."""
    lost = sum(len(damage.lost) for damage in report.damages if damage.acknowledged)
    if not lost:
        return None
    return IntegrityError(
        f"cannot read {lost} acknowledged records of the spool any more: the epochs they belong to are sent again",
        hint="check the disk under state_dir",
    )
