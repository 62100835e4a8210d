"""Reading a disk: a block device or a plain file, read-only, O_DIRECT, with buffers that the caller owns.

Called by the agent's epochs, the initial replication, the resync and verification. Touches the one file it opened.

A live block device is never read through the page cache: it returns stale data for blocks that a mounted file system
writes (measured: 3,750 of 3,854 changed blocks stale on ext4, all on xfs). A plain file is the page cache's own, so a
file system that refuses O_DIRECT is read buffered, and what was read is dropped from the cache again.

An O_DIRECT read first writes back dirty pages that the device's own cache holds for that range, so reading can itself
cause writes; under a freeze there are none left.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from replication.errors import InvalidInput, NotFound, Refused, ResyncRequired, Retryable, Unsupported
from replication.extents import BLOCK_BYTES, Extent

_BLKSSZGET: Final = 0x1268
_BLKGETSIZE64: Final = 0x80081272
_MAX_ALIGNMENT_BYTES: Final = 4096
_BOUNCE_BYTES: Final = 1024 * 1024


class DiskReader:
    """``ExtentSource`` over one open disk. Thread-safe: reads are positioned and share nothing."""

    def __init__(self, path: Path, note_read: Callable[[int], None] = lambda _bytes: None) -> None:
        """Open ``path`` for reading.

        :param note_read: told of the bytes of each read, in the thread that reads.
        :raises NotFound: if there is no such file.
        :raises Refused: without permission.
        :raises Unsupported: for what is neither block device nor plain file, or a block device without O_DIRECT.
        """
        self.path = path
        self._note_read = note_read
        self._descriptor, self.is_direct = _open(path)
        try:
            self.is_block_device = _is_block_device(path, self._descriptor, is_direct=self.is_direct)
            self.alignment_bytes = self._find_alignment()
            self.size_bytes = self.current_size_bytes()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _find_alignment(self) -> int:
        """Smallest unit that can be read: the logical block of a device; for files found by trying."""
        if self.is_block_device:
            return int(struct.unpack("i", fcntl.ioctl(self._descriptor, _BLKSSZGET, bytes(4)))[0])
        if not self.is_direct:
            return 1
        with mmap.mmap(-1, _MAX_ALIGNMENT_BYTES) as memory, memoryview(memory) as view:
            try:
                with view[:BLOCK_BYTES] as block:  # a traceback would keep it, and the mapping could not be closed
                    os.preadv(self._descriptor, [block], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return _MAX_ALIGNMENT_BYTES
        return BLOCK_BYTES

    def current_size_bytes(self) -> int:
        """The size now: other than ``size_bytes`` if the disk was resized since it was opened."""
        if not self.is_block_device:
            return os.fstat(self._descriptor).st_size
        return int(struct.unpack("Q", fcntl.ioctl(self._descriptor, _BLKGETSIZE64, bytes(8)))[0])

    def read_into(self, buffer: memoryview, extent: Extent) -> None:
        """Fill ``buffer``, exactly ``extent.length_bytes`` long, with the bytes of ``extent``.

        Page-aligned buffers (``BufferPool``) and extents aligned to ``alignment_bytes`` are read in place; others,
        such as the odd end of a plain file, through a bounce buffer.

        :raises Retryable: if the device reports an error; ``offset_bytes`` says where.
        :raises ResyncRequired: if the disk ends before the extent does: it was resized.
        """
        if len(buffer) != extent.length_bytes:
            raise InvalidInput(f"cannot read {extent.length_bytes} bytes into a buffer of {len(buffer)}")
        alignment = self.alignment_bytes
        if extent.offset_bytes % alignment or extent.length_bytes % alignment or not _is_aligned(buffer, alignment):
            self._read_bounced(buffer, extent)
        else:
            self._read_fully(buffer, extent.offset_bytes, extent.length_bytes)
        if not self.is_direct:
            os.posix_fadvise(self._descriptor, extent.offset_bytes, extent.length_bytes, os.POSIX_FADV_DONTNEED)

    def _read_fully(self, buffer: memoryview, offset: int, needed: int) -> None:
        """Read ``needed`` bytes; ``buffer`` may be longer, where alignment makes it read past the end of a file."""
        done = 0
        while done < needed:
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise Retryable(
                    f"cannot read {self.path}: {error.strerror}",
                    offset_bytes=offset + done,
                    hint="look for medium errors in the kernel's log",
                ) from error
            self._note_read(count)
            done += count
            if done < needed and (count == 0 or done % self.alignment_bytes):
                raise ResyncRequired(
                    f"cannot read {self.path}: it ends after {self.current_size_bytes()} bytes, "
                    f"it had {self.size_bytes} when it was opened",
                    offset_bytes=offset + done,
                    hint="the disk was made smaller; protect it anew",
                )

    def _read_bounced(self, buffer: memoryview, extent: Extent) -> None:
        alignment = self.alignment_bytes
        with mmap.mmap(-1, _BOUNCE_BYTES) as memory, memoryview(memory) as bounce:
            position = extent.offset_bytes
            while position < extent.end_bytes:
                start = position // alignment * alignment
                end = min(-(-extent.end_bytes // alignment) * alignment, start + _BOUNCE_BYTES)
                last = min(end, extent.end_bytes)
                with bounce[: end - start] as window:
                    self._read_fully(window, start, last - start)
                    at = position - extent.offset_bytes
                    buffer[at : at + last - position] = window[position - start : last - start]
                position = last

    def data_extents(self, within: Extent, granularity_bytes: int) -> Iterator[Extent]:
        """Yield, ascending and disjoint, the parts of ``within`` that may hold data; what lies between reads as zeros.

        Borders are rounded outward to ``granularity_bytes`` (the search goes on from the unrounded ones: rounding
        SEEK_DATA's answer down before asking SEEK_HOLE loops for ever). A block device is all data.
        """
        if self.is_block_device:
            yield within
            return
        pending: tuple[int, int] | None = None
        for start, end in self._file_data(within.offset_bytes, within.end_bytes):
            start = max(start // granularity_bytes * granularity_bytes, within.offset_bytes)
            end = min(-(-end // granularity_bytes) * granularity_bytes, within.end_bytes)
            if pending is not None and start <= pending[1]:
                pending = (pending[0], end)
                continue
            if pending is not None:
                yield Extent(pending[0], pending[1] - pending[0])
            pending = (start, end)
        if pending is not None:
            yield Extent(pending[0], pending[1] - pending[0])

    def _file_data(self, position: int, limit: int) -> Iterator[tuple[int, int]]:
        while position < limit:
            try:
                start = os.lseek(self._descriptor, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                    yield position, limit
                    return
                raise
            if start >= limit:
                return
            end = os.lseek(self._descriptor, start, os.SEEK_HOLE)
            yield start, min(end, limit)
            position = end

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> tuple[int, bool]:
    """(descriptor, whether it reads past the page cache). O_NONBLOCK: a FIFO must not hang the caller."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            return os.open(path, flags | os.O_DIRECT), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(path, flags), False
    except FileNotFoundError:
        raise NotFound(f"cannot open {path}: there is no such file") from None
    except PermissionError as error:
        raise Refused(
            f"cannot open {path}: {error.strerror}", hint="run the agent as root, or as a member of the group disk"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOMEDIUM, errno.ENODEV):
            raise NotFound(f"cannot open {path}: {error.strerror}") from error
        raise


def _is_block_device(path: Path, descriptor: int, *, is_direct: bool) -> bool:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return False
    if not stat.S_ISBLK(mode):
        raise Unsupported(f"cannot use {path} as a disk: neither a block device nor a plain file")
    if not is_direct:
        raise Unsupported(f"cannot read {path} past the page cache: the device refuses O_DIRECT")
    return True


def _is_aligned(buffer: memoryview, alignment: int) -> bool:
    if alignment == 1:
        return True
    return int(np.frombuffer(buffer, dtype=np.uint8).ctypes.data) % alignment == 0
