"""Recovery of the spool at start: scans every file, cuts torn tails off, reports damage, hands over each surviving record once.

Called by ``Spool.recover`` and the CLI's ``spool-status``. Only headers are read, but for records behind the durable watermark: a record's
header says up to which number everything was durable when it was written, so at most the last group's payloads need to be verified.
What is behind the watermark may be torn, and may also have been acknowledged: it is kept if it is intact, wherever it lies.

Damage in the middle (a header that does not parse, a block that cannot be read) is skipped to the next intact header of the file and
reported once; the numbers in between are lost. A number that occurs twice was void the first time: the later file counts. Repair writes
a *gap* record over all that does not count, so that no later recovery takes it for anything else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from process_server.core.places import RecordPlace
from process_server.spool.files import SpoolFile, SpoolFiles
from process_server.spool.log import FileOnDisk
from process_server.spool.record import (
    FILE_HEADER_BYTES,
    FILE_HEADERS_BYTES,
    LEAST_ALIGNMENT_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    UNALIGNED_VERSION,
    FileName,
    RecordHeader,
    RecordKind,
    StoredHeader,
    decode_marks,
    decode_record_header,
    encode_file_header,
    file_version,
    payload_digest,
)
from replication.failpoint import reached

_CHUNK_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 4096


class RecoveredRecord(NamedTuple):
    """An intact record and where it lies."""

    header: RecordHeader
    place: RecordPlace


class RecoveredMarks(NamedTuple):
    """Records that need not be kept: ``kind`` says why."""

    kind: RecordKind
    numbers: list[int]


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a file that holds no intact record though records follow, and the numbers that were lost with it."""

    file: str
    offset_bytes: int
    length_bytes: int
    lost: range
    acknowledged: bool
    """True if the lost records were durable once; False if they were written by an unfinished group and may never have been."""


@dataclass(slots=True)
class RecoveryReport:
    """What a scan found; complete when its iterator is exhausted."""

    files: list[FileOnDisk] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    last_number: int = 0
    durable_through: int = 0
    torn_bytes: int = 0
    records: int = 0


class _Gap(NamedTuple):
    """What does not count; ``reported`` is False for a record that was void and came again."""

    name: FileName
    offset: int
    length: int
    lost: range
    reported: bool = True


class _Behind(NamedTuple):
    """Of the file before: its name, its end, its last number if it is known, and whether nothing in it could be read."""

    name: FileName
    end: int
    last: int | None
    unreadable: bool


class _Scanned(NamedTuple):
    stored: StoredHeader
    place: RecordPlace
    name: FileName


class Recovery:
    """One scan. Iterate ``records`` to its end; then ``report`` is complete. With ``repair`` the files are cut and synced."""

    def __init__(self, files: SpoolFiles, *, repair: bool) -> None:
        self._files = files
        self._repair = repair
        self._buffer = bytearray(MAX_PAYLOAD_BYTES)
        self._unproven: dict[int, _Scanned] = {}
        self._gaps: list[_Gap] = []
        self._missing: set[int] = set()
        self._behind: _Behind | None = None
        self.report = RecoveryReport()

    def records(self) -> Iterator[RecoveredRecord | RecoveredMarks]:
        """Yield what survives, in order of writing, marks after what they mark.

        :raises OSError: if a file cannot be read or repaired at all.
        """
        names = [name for name in map(FileName.parse, self._files.names()) if name is not None]
        for name in sorted(names):
            file = self._files.open(str(name))
            try:
                for scanned in self._scan(name, file):
                    self._missing.difference_update(scanned.stored.header.covers)
                    void = self._unproven.pop(scanned.place.number, None)
                    if void is not None:
                        self._note_gap(_gap_of(void, reported=False))
                    self._unproven[scanned.place.number] = scanned
                    durable = scanned.stored.header.durable_through
                    if durable > self.report.durable_through:
                        self.report.durable_through = durable
                        yield from self._proven()
            finally:
                file.close()
        self._explain_file_before(None, 0)
        yield from self._verified()
        self._judge_gaps()
        if self._repair:
            self._fill_gaps()

    # -- one file ---------------------------------------------------------------------------------------------

    def _scan(self, name: FileName, file: SpoolFile) -> Iterator[_Scanned]:
        size = file.size_bytes()
        start = bytearray(FILE_HEADER_BYTES)
        _read_what_can_be_read(file, 0, memoryview(start))
        version = file_version(bytes(start), name)
        begin = FILE_HEADERS_BYTES[version or self._version_without_header(file, name, size)]
        position, found = begin, 0
        end, previous = position, self._last_before(name)
        while True:
            stored = self._header_at(file, name, position, size)
            if stored is None:
                skipped_to = self._next_header(file, name, position, size)
                if skipped_to is None:
                    break
                stored = self._header_at(file, name, skipped_to, size)
                if stored is None:
                    raise AssertionError("the header just found is gone")
                next_number = stored.header.covers[0]
                first_lost = max(1, next_number - 1) if previous is None else min(previous + 1, next_number)
                self._note_gap(_Gap(name, position, skipped_to - position, range(first_lost, next_number)))
                position = skipped_to
            elif not found:
                self._explain_file_before(name, stored.header.covers[0])
            header = stored.header
            place = RecordPlace(name.number, position, header.payload_bytes, header.number)
            position += stored.record_bytes
            end, previous, found = position, header.number, found + 1
            yield _Scanned(stored, place, name)
        if version is None and found:
            self._note_gap(_Gap(name, 0, begin, range(0)))
        content = self._content_bytes(file, end, size)
        self.report.torn_bytes += content
        if self._repair and size > end:
            file.truncate(end)
            reached("process.recovery.tail-cut")
        self.report.files.append(FileOnDisk(name, end))
        self._behind = _Behind(name, end, previous, unreadable=not found and content > 0)

    def _version_without_header(self, file: SpoolFile, name: FileName, size: int) -> int:
        """What the version of a file with a damaged header was, by where its first record begins."""
        for version, length in FILE_HEADERS_BYTES.items():
            if self._header_at(file, name, length, size) is not None:
                return version
        return UNALIGNED_VERSION

    def _last_before(self, name: FileName) -> int | None:
        """The last number of the file before, if that file is there: numbers go on from one file to the next."""
        behind = self._behind
        return behind.last if behind is not None and behind.name.number + 1 == name.number else None

    def _explain_file_before(self, name: FileName | None, first: int) -> None:
        """What is missing between the file before and the ``first`` record of the next was at the end of the one before."""
        behind = self._behind
        if behind is None:
            return
        adjacent = name is not None and behind.name.number + 1 == name.number
        expected = first if behind.last is None else behind.last + 1
        if adjacent and first > expected:
            self._note_gap(_Gap(behind.name, behind.end, 0, range(expected, first)))
        elif behind.unreadable:
            self._note_gap(_Gap(behind.name, behind.end, 0, range(0)))

    def _content_bytes(self, file: SpoolFile, start: int, end: int) -> int:
        """How much between two offsets is not zero: a torn tail, as opposed to what was allocated and never written."""
        total = 0
        for position in range(start, end, _CHUNK_BYTES):
            view = memoryview(self._buffer)[: min(_CHUNK_BYTES, end - position)]
            count = _read_what_can_be_read(file, position, view)
            total += count - bytes(view[:count]).count(0)
        return total

    def _header_at(self, file: SpoolFile, name: FileName, position: int, size: int) -> StoredHeader | None:
        header = bytearray(RECORD_HEADER_BYTES)
        if position + RECORD_HEADER_BYTES > size:
            return None
        if _read_what_can_be_read(file, position, memoryview(header)) < RECORD_HEADER_BYTES:
            return None
        stored = decode_record_header(memoryview(header), name)
        if stored is None or position + RECORD_HEADER_BYTES + stored.header.payload_bytes > size:
            return None
        return stored

    def _next_header(self, file: SpoolFile, name: FileName, position: int, size: int) -> int | None:
        """The offset of the next intact header behind a place that holds none."""
        position += LEAST_ALIGNMENT_BYTES
        while position + RECORD_HEADER_BYTES <= size:
            view = memoryview(self._buffer)[: min(_CHUNK_BYTES, size - position)]
            content = bytes(view[: _read_what_can_be_read(file, position, view)])
            at = content.find(RECORD_MAGIC)
            while at >= 0:
                candidate = position + at
                if candidate % LEAST_ALIGNMENT_BYTES == 0 and self._header_at(file, name, candidate, size) is not None:
                    return candidate
                at = content.find(RECORD_MAGIC, at + 1)
            if position + len(content) >= size:
                return None
            position += len(content) - len(RECORD_MAGIC) + 1
        return None

    # -- what may be handed over ------------------------------------------------------------------------------

    def _proven(self) -> Iterator[RecoveredRecord | RecoveredMarks]:
        for number in [n for n in self._unproven if n <= self.report.durable_through]:
            yield from self._hand_over(self._unproven.pop(number))

    def _verified(self) -> Iterator[RecoveredRecord | RecoveredMarks]:
        """The last, unproven records: those that are whole count from now on; a torn one must not look whole ever after."""
        touched: dict[FileName, list[_Scanned]] = {}
        for scanned in self._unproven.values():
            touched.setdefault(scanned.name, []).append(scanned)
        whole: list[_Scanned] = []
        for name, group in touched.items():
            file = self._files.open(str(name))
            try:
                if self._repair:
                    file.sync()
                    file.forget_cache()
                    reached("process.recovery.synced")
                for scanned in group:
                    if self._is_intact(file, scanned):
                        whole.append(scanned)
                    else:
                        self.report.torn_bytes += scanned.stored.record_bytes
                        self._note_gap(_gap_of(scanned))
            finally:
                file.close()
        self._unproven.clear()
        for scanned in sorted(whole, key=lambda scanned: scanned.place.number):
            yield from self._hand_over(scanned)

    def _is_intact(self, file: SpoolFile, scanned: _Scanned) -> bool:
        header = scanned.stored.header
        if self._header_at(file, scanned.name, scanned.place.offset, file.size_bytes()) != scanned.stored:
            return False
        return header.kind is RecordKind.GAP or self._payload_is_intact(file, scanned)

    def _payload_is_intact(self, file: SpoolFile, scanned: _Scanned) -> bool:
        place = scanned.place
        payload = memoryview(self._buffer)[: place.payload_bytes]
        count = _read_what_can_be_read(file, place.offset + RECORD_HEADER_BYTES, payload)
        return count == place.payload_bytes and payload_digest(payload, scanned.name) == scanned.stored.payload_digest

    def _hand_over(self, scanned: _Scanned) -> Iterator[RecoveredRecord | RecoveredMarks]:
        header = scanned.stored.header
        self.report.last_number = max(self.report.last_number, header.number)
        if header.kind is RecordKind.GAP:
            return
        self.report.records += 1
        if header.kind in (RecordKind.SEGMENT, RecordKind.MANIFEST):
            yield RecoveredRecord(header, scanned.place)
            return
        file = self._files.open(str(scanned.name))
        try:
            intact = self._payload_is_intact(file, scanned)
        finally:
            file.close()
        if intact:  # else the marked records are uploaded once more, which changes nothing
            yield RecoveredMarks(header.kind, decode_marks(memoryview(self._buffer)[: header.payload_bytes]))

    # -- what does not count ----------------------------------------------------------------------------------

    def _note_gap(self, gap: _Gap) -> None:
        self._gaps.append(gap)
        if gap.reported:
            self._missing.update(gap.lost)

    def _judge_gaps(self) -> None:
        """Numbers that came again in a later file were void where they are missing: no loss."""
        for gap in self._gaps:
            self.report.last_number = max(self.report.last_number, *gap.lost, 0)
            missing = self._missing.intersection(gap.lost)
            if gap.reported and (missing or not gap.lost):
                acknowledged = any(number <= self.report.durable_through for number in missing)
                self.report.damages.append(Damage(str(gap.name), gap.offset, gap.length, gap.lost, acknowledged))

    def _fill_gaps(self) -> None:
        """Durable on return: before the watermark of new records covers the lost numbers."""
        by_file: dict[FileName, list[_Gap]] = {}
        for gap in self._gaps:
            by_file.setdefault(gap.name, []).append(gap)
        for name, gaps in by_file.items():
            file = self._files.open(str(name))
            try:
                for gap in gaps:
                    try:
                        self._fill(file, gap)
                    except OSError as error:
                        # A gap at a file's end needs room, one in a bad block may not be writable: unwritten, it is reported again.
                        if error.errno not in (errno.ENOSPC, errno.EIO):
                            raise
                reached("process.recovery.gap-filled")
                file.sync()
            finally:
                file.close()

    @staticmethod
    def _fill(file: SpoolFile, gap: _Gap) -> None:
        if not gap.offset:
            versions = {length: version for version, length in FILE_HEADERS_BYTES.items()}
            file.write_at(0, [memoryview(encode_file_header(gap.name, versions[gap.length]))])
        elif gap.lost:
            filler = RecordHeader(
                RecordKind.GAP,
                number=gap.lost[-1],
                durable_through=0,
                payload_bytes=max(0, gap.length - RECORD_HEADER_BYTES),
                epoch=gap.lost[0],
            )
            file.write_at(gap.offset, [memoryview(filler.encode(gap.name, bytes(16), UNALIGNED_VERSION))])


def _read_what_can_be_read(file: SpoolFile, offset: int, buffer: memoryview) -> int:
    """As ``SpoolFile.read_at``, with zeros in the place of blocks that the disk cannot read: damage costs what it touches, no more."""
    try:
        return file.read_at(offset, buffer)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    filled = 0
    while filled < buffer.nbytes:
        piece = buffer[filled : filled + _BLOCK_BYTES - (offset + filled) % _BLOCK_BYTES]
        try:
            count = file.read_at(offset + filled, piece)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            count = min(piece.nbytes, max(0, file.size_bytes() - offset - filled))
            piece[:count] = bytes(count)
        filled += count
        if count < piece.nbytes:
            break
    return filled


def _gap_of(scanned: _Scanned, *, reported: bool = True) -> _Gap:
    place = scanned.place
    numbers = range(place.number, place.number + 1)
    return _Gap(scanned.name, place.offset, scanned.stored.record_bytes, numbers, reported)
