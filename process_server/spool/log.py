"""The spool's log: appends records to bounded files, makes them durable in groups, reads them back, removes whole files.

Called by ``Spool`` (group commit, removal) and, for appending, by the intake's sealing threads; every method blocks and may be
called in any thread. A record is *written* when ``append`` returns and *durable* when a later ``sync`` returns; only then may anybody
be told of it. Records are numbered; a number is given again only if its first record was void.

A failed sync voids every record that was not durable before it: the kernel may have dropped their pages, and a second sync would lie. The
log then cuts them off, durably, and goes on in a new file with their numbers; ``incarnation`` counts these breaks. Invariant: a record
whose number is at most ``durable_through`` and whose incarnation's sync succeeded survives a crash byte for byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from process_server.core.places import RecordPlace
from process_server.spool.files import SpoolFile, SpoolFiles
from process_server.spool.record import (
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    FileName,
    RecordHeader,
    RecordKind,
    decode_record_header,
    encode_file_header,
    payload_digest,
    record_bytes,
)
from replication.aligned_memory import BLOCK_BYTES, aligned_memory
from replication.data_plane import RETRY_AFTER_SPOOL_FULL_S
from replication.errors import BlockferryError, IntegrityError, NotFound, Overloaded, Retryable
from replication.failpoint import reached

KEPT_KINDS: Final = (RecordKind.SEGMENT, RecordKind.MANIFEST)
"""Records that keep their file until they are released; marks do not."""
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Written(NamedTuple):
    """A record that is written; ``incarnation`` tells whether a sync that failed meanwhile has voided it."""

    place: RecordPlace
    incarnation: int


class Durable(NamedTuple):
    """After a sync: every record of ``incarnation`` (and of earlier ones that still counts) up to ``through`` is durable."""

    through: int
    incarnation: int


class FileOnDisk(NamedTuple):
    """A file that recovery has found; ``end_bytes`` is behind its last record."""

    name: FileName
    end_bytes: int


@dataclass(slots=True, eq=False)
class _OpenLogFile:
    name: FileName
    file: SpoolFile
    allocated_bytes: int
    end_bytes: int
    durable_end_bytes: int


def spool_failure(error: OSError, what: str) -> BlockferryError:
    """What a failed file operation means to the caller: patience where space may come back, else a disk that fails."""
    if error.errno in _NO_SPACE:
        return Overloaded(
            f"cannot {what}: the spool's file system is full",
            retry_after_s=RETRY_AFTER_SPOOL_FULL_S,
            hint="free space on the file system of state_dir, or lower spool.limit_bytes",
        )
    return Retryable(
        f"cannot {what}: {error.strerror or error}",
        retry_after_s=RETRY_AFTER_SPOOL_FULL_S,
        hint="the disk under state_dir fails; see the kernel's log",
    )


class SpoolLog:
    """Owns the spool's files between recovery and ``close``."""

    def __init__(
        self,
        files: SpoolFiles,
        *,
        file_bytes: int,
        new_seed: Callable[[], int],
        found: Iterable[FileOnDisk] = (),
        next_number: int = 1,
    ) -> None:
        """Opens nothing yet: the first append begins a new file behind those that were ``found``."""
        self._files = files
        self._file_bytes = file_bytes
        self._new_seed = new_seed
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._ends: dict[int, int] = {}
        self._names: dict[int, FileName] = {}
        for entry in found:
            self._ends[entry.name.number] = entry.end_bytes
            self._names[entry.name.number] = entry.name
        self._used_bytes = sum(self._ends.values())
        self._live_lock = threading.Lock()
        self._live: dict[int, int] = dict.fromkeys(self._names, 0)
        self._next_file = max(self._names, default=0) + 1
        self._next_number = next_number
        self._durable_through = next_number - 1
        self._incarnation = 0
        self._current: _OpenLogFile | None = None
        self._dirty: list[_OpenLogFile] = []
        self._void_behind: list[_OpenLogFile] = []
        """Files with void records behind their durable end."""

    # -- figures ----------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """What the records of all files take. Never waits for a write."""
        return self._used_bytes

    @property
    def current_file(self) -> int | None:
        """The file that is appended to: it is never removed."""
        current = self._current
        return None if current is None else current.name.number

    @property
    def file_count(self) -> int:
        return len(self._names)

    # -- writing ----------------------------------------------------------------------------------------------

    def append(
        self, draft: RecordHeader, payload: memoryview, *, urgent: bool = False, room: memoryview | None = None
    ) -> Written:
        """Write one record; number and watermark are filled in. *Written* on return, not durable.

        :param urgent: for what lets the spool drain (manifests, marks): make do with a small file if there is no room for a whole one.
        :param room: aligned memory for the whole record, in which ``payload`` lies already, behind room for the header. Without it
            the payload is copied.
        :raises Overloaded: if the file system is full; the log is as before.
        :raises Retryable: if it fails otherwise; the log is as before.
        """
        size, end = record_bytes(payload.nbytes), RECORD_HEADER_BYTES + payload.nbytes
        if room is None:
            room = aligned_memory(size)
            room[RECORD_HEADER_BYTES:end] = payload
        room[end:size] = bytes(size - end)
        with self._lock:
            try:
                current = self._with_room_for(size, urgent=urgent)
                room[:RECORD_HEADER_BYTES] = self._header(current.name, draft, payload)
                current.file.write_at(current.end_bytes, [room[:size]])
            except OSError as error:
                raise spool_failure(error, "write to the spool") from error
            place = RecordPlace(current.name.number, current.end_bytes, payload.nbytes, self._next_number)
            current.end_bytes += size
            self._set_end(current.name.number, current.end_bytes)
            self._next_number += 1
            if draft.kind in KEPT_KINDS:
                self.hold(place)
            if current not in self._dirty:
                self._dirty.append(current)
            return Written(place, self._incarnation)

    def _header(self, name: FileName, draft: RecordHeader, payload: memoryview) -> bytes:
        header = dataclasses.replace(
            draft, number=self._next_number, durable_through=self._durable_through, payload_bytes=payload.nbytes
        )
        return header.encode(name, payload_digest(payload, name))

    def _with_room_for(self, size: int, *, urgent: bool) -> _OpenLogFile:
        current = self._current
        if current is not None and current.end_bytes + size <= current.allocated_bytes:
            return current
        needed = FILE_HEADER_BYTES + size
        self._cut_what_is_void()
        try:
            fresh = self._create(max(self._file_bytes, needed))
        except OSError as error:
            if not urgent or error.errno not in _NO_SPACE:
                raise
            fresh = self._create(needed)
        if current is not None:
            with contextlib.suppress(OSError):  # what is not given back now goes with the file
                current.file.truncate(current.end_bytes)
            if current not in self._dirty:
                current.file.close()
        self._current = fresh
        with self._live_lock:  # only now: until then it would seem removable
            self._live[fresh.name.number] = 0
        return fresh

    def _create(self, allocated_bytes: int) -> _OpenLogFile:
        """Make the next file; its entry and header are durable on return."""
        name = FileName(self._next_file, self._new_seed())
        try:
            file = self._files.create(str(name), allocated_bytes)
            try:
                header = aligned_memory(FILE_HEADER_BYTES)
                header[:] = encode_file_header(name)
                file.write_at(0, [header])
                reached("process.spool-file.created")
                file.sync()
                self._files.sync_directory()
            except OSError:
                file.close()
                raise
        except OSError:
            if not self._is_gone(name):
                self._next_file += (
                    1  # two files of one number would be taken for each other; the next recovery removes this one
                )
            raise
        self._next_file += 1
        self._names[name.number] = name
        self._set_end(name.number, FILE_HEADER_BYTES)
        return _OpenLogFile(name, file, allocated_bytes, FILE_HEADER_BYTES, FILE_HEADER_BYTES)

    def _is_gone(self, name: FileName) -> bool:
        """Remove what a failed creation has left; whether nothing is left."""
        try:
            self._files.remove(str(name))
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def sync(self) -> Durable:
        """Make everything durable that was written before the call.

        :raises Overloaded, Retryable: nothing that was not durable before counts any more; the incarnation has changed.
        """
        with self._sync_lock:
            with self._lock:
                target = self._next_number - 1
                dirty = [(file, file.end_bytes) for file in self._dirty]
            try:
                for file, _ in dirty:
                    file.file.sync()
            except OSError as error:
                with self._lock:
                    self._void()
                reached("process.void.declared")
                raise spool_failure(error, "make the spool durable") from error
            with self._lock:
                for file, end_bytes in dirty:
                    file.durable_end_bytes = end_bytes
                    if file.end_bytes == end_bytes and file in self._dirty:
                        self._dirty.remove(file)
                        if file is not self._current:
                            file.file.close()
                self._durable_through = max(self._durable_through, target)
                return Durable(self._durable_through, self._incarnation)

    def _void(self) -> None:
        """Give up what is not durable and every file it lies in; the next append begins a new one."""
        for file in self._dirty:
            self._set_end(file.name.number, file.durable_end_bytes)
            self._void_behind.append(file)
        if self._current is not None and self._current not in self._dirty:
            self._current.file.close()
        self._dirty.clear()
        self._current = None
        self._next_number = self._durable_through + 1
        self._incarnation += 1

    def _cut_what_is_void(self) -> None:
        """Durable on return: before a void record's number is given again, so that no recovery ever meets both."""
        while self._void_behind:
            file = self._void_behind[-1]
            file.file.truncate(file.durable_end_bytes)
            reached("process.void.cut")
            file.file.sync()
            reached("process.void.cut-durable")
            file.file.close()
            self._void_behind.pop()

    def _set_end(self, number: int, end_bytes: int) -> None:
        self._used_bytes += end_bytes - self._ends.get(number, 0)
        self._ends[number] = end_bytes

    # -- what is still needed ---------------------------------------------------------------------------------

    def hold(self, place: RecordPlace) -> None:
        """Count a record that keeps its file: done by ``append``; recovery does it for what it finds."""
        with self._live_lock:
            self._live[place.file] += 1

    def release(self, place: RecordPlace) -> None:
        """The record is not needed any more. Never waits for a write."""
        with self._live_lock:
            if place.file in self._live:
                self._live[place.file] -= 1

    def removable(self) -> list[int]:
        """Files that hold nothing that is needed, but for the one that is appended to."""
        with self._live_lock:
            return [number for number, live in self._live.items() if not live and number != self.current_file]

    # -- reading and removing ---------------------------------------------------------------------------------

    def read(self, place: RecordPlace, buffer: memoryview) -> RecordHeader:
        """Read a record's payload into the start of ``buffer`` and verify it.

        :raises NotFound: if its file has been removed.
        :raises IntegrityError: if it is not byte for byte what was appended.
        :raises Retryable: if the disk fails.
        """
        return self._read(place, memoryview(bytearray(RECORD_HEADER_BYTES)), buffer[: place.payload_bytes], None)

    def read_record(self, place: RecordPlace, room: memoryview) -> RecordHeader:
        """As ``read``, the whole record into the start of ``room``: ``record_bytes`` of aligned memory. The payload is where ``append`` has
        it; the page cache is passed by where that can be done.
        """
        payload = room[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + place.payload_bytes]
        whole = None if place.offset % BLOCK_BYTES else room[: record_bytes(place.payload_bytes)]
        return self._read(place, room[:RECORD_HEADER_BYTES], payload, whole)

    def _read(
        self, place: RecordPlace, header: memoryview, payload: memoryview, whole: memoryview | None
    ) -> RecordHeader:
        name = self._names.get(place.file)
        if name is None:
            raise NotFound(f"cannot read record {place.number} of the spool: its file {place.file} is gone")
        length = RECORD_HEADER_BYTES + place.payload_bytes
        try:
            file = self._files.open(str(name))
            try:
                if whole is not None:
                    filled = min(length, file.read_at(place.offset, whole))
                else:
                    filled = file.read_at(place.offset, header)
                    filled += file.read_at(place.offset + RECORD_HEADER_BYTES, payload)
            finally:
                file.close()
        except FileNotFoundError as error:
            raise NotFound(f"cannot read record {place.number} of the spool: file {name} is gone") from error
        except OSError as error:
            if error.errno == errno.EIO:
                raise IntegrityError(
                    f"cannot read record {place.number} of the spool: {error.strerror}", offset_bytes=place.offset
                ) from error
            raise spool_failure(error, "read the spool") from error
        stored = decode_record_header(header, name)
        if (
            filled != length
            or stored is None
            or (stored.header.number, stored.header.payload_bytes) != (place.number, place.payload_bytes)
            or stored.payload_digest != payload_digest(payload, name)
        ):
            raise IntegrityError(
                f"cannot read record {place.number} of the spool: file {name} is damaged", offset_bytes=place.offset
            )
        return stored.header

    def remove(self, number: int) -> None:
        """Remove a file that is not appended to. A crash may bring it back: what it holds must be durable at the store.

        :raises OSError: if it cannot be removed.
        """
        with self._lock:
            if self._current is not None and number == self._current.name.number:
                raise ValueError("the file that is appended to cannot be removed")
            name = self._names.get(number)
            if name is None:
                return
            if any(file.name.number == number for file in self._void_behind):
                self._cut_what_is_void()  # or a crash would bring the void records back with the file
            for file in [file for file in self._dirty if file.name.number == number]:
                self._dirty.remove(file)
                file.file.close()
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(str(name))
        with self._lock, self._live_lock:
            self._used_bytes -= self._ends.pop(number)
            del self._names[number], self._live[number]

    def close(self) -> None:
        """Give back what is allocated and not used, close the files. What was not synced is not durable."""
        with self._sync_lock, self._lock:
            current, self._current = self._current, None
            if current is not None:
                with contextlib.suppress(OSError):  # recovery does it at the next start
                    current.file.truncate(current.end_bytes)
            with contextlib.suppress(OSError):
                self._cut_what_is_void()
            left = [*self._dirty, *self._void_behind, *([] if current is None else [current])]
            for file in {id(f): f for f in left}.values():
                file.file.close()
            self._dirty.clear()
            self._void_behind.clear()
