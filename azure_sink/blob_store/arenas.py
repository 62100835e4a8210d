"""Arenas: append-only files that hold the bytes of all bodies. Space is taken at the end, given back by punching holes.

Called by body writers (``allocate``, ``write``), the committer (``make_durable``), readers (``read``) and the freed-space queue
(``punch``, ``remove``). Called from several threads; disk calls block, so never from the event loop.

- An allocation begins at a multiple of 4 KiB and fills whole 4 KiB blocks: two bodies never share a block.
- Offsets are never used twice and an arena is never appended to after a restart, so what is free once stays free.
- Bodies that lie aligned in memory can be written past the page cache (O_DIRECT), which costs a twentieth of the processor time, and read
  back into aligned memory past it. They go to arenas of their own, whose reads are not read ahead: the page cache never holds a block that
  is still to be written directly.
- After a failed write-back nothing that was not yet durable in that arena is trusted any more: it is *poisoned*, and what waits for
  it fails (the kernel reports such an error once and forgets it).
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from azure_sink.blob_store.values import StoredRange
from replication.aligned_memory import aligned_memory, lies_aligned
from replication.durable_file import make_directory_durably, sync_directory
from replication.errors import Overloaded, Permanent, Retryable
from replication.failpoint import reached

BLOCK_BYTES: Final = 4096
DEFAULT_ARENA_BYTES: Final = 2**30
DEFAULT_RESERVE_BYTES: Final = 256 * 2**20
FULL_RETRY_AFTER_S: Final = 10.0

_MAX_OPEN_ARENAS: Final = 128
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_logger = logging.getLogger(__name__)


class StoreFull(Overloaded):
    """The file system has no room for a body; nothing was stored. Reading and deleting go on."""


def blocks_of(length: int) -> int:
    """``length`` rounded up to whole blocks, in bytes."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Give the blocks of a range back to the file system; False if it cannot punch holes. The file keeps its size."""
    result = _LIBC.fallocate(
        descriptor,
        _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE,
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EOPNOTSUPP:
        return False
    raise OSError(code, os.strerror(code))


MOST_PIECES: Final = 1024
"""IOV_MAX of Linux: more at a time are refused."""


class _OpenArena:
    """A descriptor that is closed once nobody uses it any more."""

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", -1)
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(slots=True)
class _ArenaState:
    """``pending``: allocations that are neither committed nor given back yet. ``direct``: made for direct writes by this process."""

    direct: bool = False
    pending: int = 0
    poisoned: bool = False


@dataclass(slots=True)
class ArenaFigures:
    """For metrics: number of files, bytes they occupy on disk, bytes punched since the start."""

    files: int
    allocated_bytes: int
    punched_bytes: int


@dataclass(slots=True)
class _Current:
    number: int
    size: int
    filled: int = 0


class ArenaSet:
    """All arenas under one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        arena_bytes: int = DEFAULT_ARENA_BYTES,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
    ) -> None:
        """Find the arenas that are there. ``reserve_bytes`` of the file system stay free for the catalog."""
        make_directory_durably(directory)
        self._directory = directory
        self._arena_bytes = arena_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._handles: collections.OrderedDict[tuple[int, bool], _OpenArena] = collections.OrderedDict()
        self._states: dict[int, _ArenaState] = {}
        for path in directory.iterdir():
            if not path.name.isdigit():
                raise Permanent(
                    f"cannot use {path}: it is no arena", hint="the directory belongs to the blob store alone"
                )
            self._states[int(path.name)] = _ArenaState()
        self.found: Final = tuple(sorted(self._states))
        self._next_number = max(self._states, default=0) + 1
        self._current: dict[bool, _Current] = {}
        """By whether it is for direct writes."""
        self._candidates: set[int] = set()
        self._punched_bytes = 0
        self._unwritten_bytes = 0
        self.can_punch = True
        self.writes_directly = True
        """Until the file system or the device refuses it."""

    def path(self, number: int) -> Path:
        return self._directory / f"{number:08d}"

    # -- writing ----------------------------------------------------------------------------------------------

    def allocate(self, length: int, *, direct: bool = False) -> StoredRange:
        """Take room for a body of ``length`` bytes (at least 1). It stays pending until ``settle`` or ``abandon``.

        :param direct: every piece of it will lie aligned and, but for the end of the last one, be whole blocks.
        :raises StoreFull: the file system is full up to the reserve.
        """
        room = blocks_of(length)
        with self._lock:
            self._check_space(room)
            direct = direct and self.writes_directly
            current = self._current.get(direct)
            if current is None or current.filled + room > current.size or self._states[current.number].poisoned:
                current = self._start_arena(max(self._arena_bytes, room), direct=direct)
            taken = StoredRange(current.number, current.filled, length)
            current.filled += room
            self._states[current.number].pending += 1
            self._unwritten_bytes += room
            return taken

    def has_room(self, room: int = BLOCK_BYTES) -> bool:
        """Whether ``room`` bytes could be taken without touching the reserve."""
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize - self._unwritten_bytes - room >= self._reserve_bytes

    def _check_space(self, room: int) -> None:
        if not self.has_room(room):
            raise StoreFull(
                "cannot store the body: the file system of the blob store is full",
                retry_after_s=FULL_RETRY_AFTER_S,
                hint=f"free some space below {self._directory}",
            )

    def _start_arena(self, size: int, *, direct: bool) -> _Current:
        number = self._next_number
        try:
            handle = _OpenArena(self.path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._next_number += 1
            reached("sink.store.arena-made")
            sync_directory(self._directory)
        except OSError as error:
            raise _write_failure(error) from error
        self._states[number] = _ArenaState(direct)
        if direct:
            os.posix_fadvise(handle.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._remember((number, False), handle)
        if direct in self._current:
            self._candidates.add(self._current[direct].number)
        self._current[direct] = _Current(number, size)
        return self._current[direct]

    def write(self, place: StoredRange, position: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write ``pieces`` at ``position`` of an allocation. Written, not durable.

        :raises StoreFull: no space left on the device.
        :raises Retryable: the device failed.
        """
        views = [memoryview(piece) for piece in pieces]
        offset = place.offset + position
        try:
            if self.writes_directly and self._states[place.arena].direct:
                try:
                    _write_all(self._handle(place.arena, direct=True), _whole_blocks(views), offset)
                    return
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self.writes_directly = False
            _write_all(self._handle(place.arena), views, offset)
        except OSError as error:
            raise _write_failure(error) from error

    def make_durable(self, numbers: set[int]) -> set[int]:
        """fdatasync; returns the arenas whose bytes cannot be trusted (poisoned now or before)."""
        bad = set()
        for number in numbers:
            state = self._states[number]
            if not state.poisoned:
                try:
                    os.fdatasync(self._handle(number).descriptor)
                except OSError:
                    state.poisoned = True
            if state.poisoned:
                bad.add(number)
        return bad

    def settle(self, place: StoredRange) -> None:
        """The allocation is committed: the catalog refers to it now, or its bytes were freed in the same commit."""
        with self._lock:
            self._states[place.arena].pending -= 1
            self._candidates.add(place.arena)
            self._unwritten_bytes -= blocks_of(place.length)

    def abandon(self, place: StoredRange) -> None:
        """The allocation will never be committed, and nothing writes to it any more: give its room back. Never raises ``OSError``."""
        try:
            self.punch(place.arena, place.offset, blocks_of(place.length))
        except OSError as error:  # whoever abandons has others to answer, and the next start finds the range
            _logger.warning("cannot give a body's room back", extra={"fields": {"error": str(error)}})
        self.settle(place)

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes.

        :raises Permanent: the arena is shorter than the catalog says, or missing: the store is damaged.
        """
        try:
            content = os.pread(self._handle(number).descriptor, length, offset)
        except FileNotFoundError:
            content = b""
        if len(content) != length:
            raise Permanent(f"cannot read arena {number}: it ends before byte {offset + length}")
        return content

    def read_into(self, number: int, offset: int, buffer: memoryview) -> None:
        """As many bytes as ``buffer`` has.

        :raises Permanent: as ``read``.
        """
        if self._read_directly(number, offset, buffer):
            return
        filled = 0
        with contextlib.suppress(FileNotFoundError):
            descriptor = self._handle(number).descriptor
            while filled < buffer.nbytes and (count := os.preadv(descriptor, [buffer[filled:]], offset + filled)):
                filled += count
        if filled != buffer.nbytes:
            raise Permanent(f"cannot read arena {number}: it ends before byte {offset + buffer.nbytes}")

    def _read_directly(self, number: int, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` past the page cache, if that can be done; if not, nothing is said about its content."""
        whole = buffer.nbytes - buffer.nbytes % BLOCK_BYTES
        state = self._states.get(number)
        if state is None or not (state.direct and self.writes_directly and whole) or offset % BLOCK_BYTES:
            return False
        if not lies_aligned(buffer[:whole]):
            return False
        end = aligned_memory(BLOCK_BYTES)
        try:
            count = os.preadv(self._handle(number, direct=True).descriptor, [buffer[:whole], end], offset)
        except OSError:  # whatever it is, reading through the page cache meets it again, or does not
            return False
        if count < buffer.nbytes:
            return False
        buffer[whole:] = end[: buffer.nbytes - whole]
        return True

    # -- giving back ------------------------------------------------------------------------------------------

    def punch(self, number: int, offset: int, length: int) -> None:
        """Return the blocks of a range (whole blocks). Failing is harmless: the next start finds the range again."""
        if length <= 0 or not self.can_punch:
            return
        try:
            self.can_punch = punch_hole(self._handle(number).descriptor, offset, length)
        except FileNotFoundError:
            return
        with self._lock:
            self._punched_bytes += length

    def take_candidates(self) -> set[int]:
        """Arenas in which something changed since the last call, so that they may be idle now."""
        with self._lock:
            taken, self._candidates = self._candidates, set()
            return taken

    def put_candidates_back(self, taken: set[int]) -> None:
        """What was taken was not looked at after all."""
        with self._lock:
            self._candidates |= taken

    def is_idle(self, number: int) -> bool:
        """Whether nothing will ever be written to the arena again and no allocation in it is undecided."""
        with self._lock:
            state = self._states.get(number)
            is_current = any(current.number == number for current in self._current.values())
            return state is not None and state.pending == 0 and not is_current

    def remove(self, number: int) -> None:
        """Unlink an idle arena that the catalog does not refer to."""
        with self._lock:
            self._handles.pop((number, False), None)
            self._handles.pop((number, True), None)
            self._states.pop(number, None)
        self.path(number).unlink(missing_ok=True)

    # -- the rest ---------------------------------------------------------------------------------------------

    def _handle(self, number: int, *, direct: bool = False) -> _OpenArena:
        key = (number, direct)
        with self._lock:
            handle = self._handles.get(key)
            if handle is None:
                handle = _OpenArena(self.path(number), os.O_RDWR | (os.O_DIRECT if direct else 0))
                state = self._states.get(number)
                if state is not None and state.direct:
                    os.posix_fadvise(handle.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._remember(key, handle)
            return handle

    def _remember(self, key: tuple[int, bool], handle: _OpenArena) -> None:
        self._handles[key] = handle
        self._handles.move_to_end(key)
        while len(self._handles) > _MAX_OPEN_ARENAS:
            self._handles.popitem(last=False)

    def numbers(self) -> list[int]:
        with self._lock:
            return sorted(self._states)

    def size(self, number: int) -> int:
        return self.path(number).stat().st_size

    def figures(self) -> ArenaFigures:
        allocated = 0
        numbers = self.numbers()
        for number in numbers:
            try:
                allocated += self.path(number).stat().st_blocks * 512
            except FileNotFoundError:  # removed meanwhile
                continue
        return ArenaFigures(len(numbers), allocated, self._punched_bytes)

    def close(self) -> None:
        """Close all descriptors that nobody uses."""
        with self._lock:
            self._handles.clear()
            self._current.clear()


def _whole_blocks(views: Sequence[memoryview]) -> list[memoryview]:
    """``views`` with zeros behind the last one, up to the end of its block."""
    *before, last = views
    inside = last.nbytes % BLOCK_BYTES
    if not inside:
        return list(views)
    end = aligned_memory(BLOCK_BYTES)
    end[:inside] = last[last.nbytes - inside :]
    end[inside:] = bytes(BLOCK_BYTES - inside)
    whole = last[: last.nbytes - inside]
    return [*before, whole, end] if whole.nbytes else [*before, end]


def _write_all(handle: _OpenArena, views: Sequence[memoryview], offset: int) -> None:
    pending = list(views)
    while pending:
        written = os.pwritev(handle.descriptor, pending[:MOST_PIECES], offset)
        offset += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if written:
            pending[0] = pending[0][written:]


def _write_failure(error: OSError) -> Retryable:
    if error.errno in _NO_SPACE:
        return StoreFull(
            "cannot store the body: no space is left on the blob store's file system", retry_after_s=FULL_RETRY_AFTER_S
        )
    return Retryable(f"cannot store the body: {error.strerror}")
