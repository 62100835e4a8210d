"""The spool's file operations, all of them, behind one narrow interface: what a simulated disk replaces in tests.

Called by ``log`` and ``recovery`` only. *Written* is what ``write_at`` leaves, *durable* what ``sync`` leaves: between the two a
crash may keep any part of it. A created file is durable only after ``sync_directory``. All calls block; all may raise ``OSError``.

Whole blocks that lie aligned in memory go past the page cache (O_DIRECT) into files made here and out of files opened here, unless the
file system or the device refuses that (EINVAL): then everything goes through the page cache as before. What is read through it is not
read ahead: it must not hold a block that is still to be written directly, or the kernel could report a failed write-back where none was.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from replication.aligned_memory import BLOCK_BYTES, lies_aligned
from replication.durable_file import sync_directory


class FileSystemSpace(NamedTuple):
    """Of the file system that the spool lies on; ``available_bytes`` is what this process may use."""

    total_bytes: int
    available_bytes: int


class SpoolFile(Protocol):
    """One open file. Reads and writes at different offsets may run in several threads at once."""

    def write_at(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write all of ``views`` one after another from ``offset``. On raise any part may be written."""

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns how many bytes there were before the file's end."""

    def sync(self) -> None:
        """Make what is written durable (data and what is needed to read it)."""

    def forget_cache(self) -> None:
        """Let later reads come from the disk: after a sync that failed, memory may hold what the disk does not."""

    def truncate(self, size_bytes: int) -> None:
        """Set the file's length."""

    def size_bytes(self) -> int:
        """The file's length."""

    def close(self) -> None:
        """Give the descriptor back."""


class SpoolFiles(Protocol):
    """The spool's directory."""

    def names(self) -> list[str]:
        """Names of the files in it, sorted."""

    def create(self, name: str, size_bytes: int) -> SpoolFile:
        """Make a new file with ``size_bytes`` of zeros allocated, so that writing inside finds room."""

    def open(self, name: str) -> SpoolFile:
        """Open an existing file for reading and, where that is allowed, writing."""

    def remove(self, name: str) -> None:
        """Remove a file; a crash may bring it back."""

    def sync_directory(self) -> None:
        """Make creations and removals durable."""

    def space(self) -> FileSystemSpace:
        """Size and free space of the file system."""


class _OpenFile:
    """A file descriptor, and a second one past the page cache where that is possible: for writes if it was made, else for reads."""

    def __init__(self, descriptor: int, direct: int | None, *, made: bool, is_writable: bool = True) -> None:
        self._descriptor = descriptor
        self._direct = direct
        self._is_refused = False
        """The descriptor stays open all the same: other threads may be using it, and its number must not become another file's."""
        self._made = made
        self._is_writable = is_writable

    @property
    def writes_directly(self) -> bool:
        """Until a direct write was refused."""
        return self._made and self._direct is not None and not self._is_refused

    def _require_writable(self) -> None:
        if not self._is_writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def write_at(self, offset: int, views: Sequence[memoryview]) -> None:
        self._require_writable()
        pending = [view for view in views if view.nbytes]
        if self.writes_directly and self._direct is not None and _is_aligned(offset, pending):
            try:
                _write_all(self._direct, pending, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_refused = True
        _write_all(self._descriptor, pending, offset)

    def read_at(self, offset: int, buffer: memoryview) -> int:
        filled = 0
        if not self._made and self._direct is not None and not self._is_refused and _is_aligned(offset, [buffer]):
            try:
                filled = os.preadv(self._direct, [buffer], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_refused = True
        while filled < buffer.nbytes:
            count = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            if not count:
                break
            filled += count
        return filled

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def forget_cache(self) -> None:
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, size_bytes: int) -> None:
        self._require_writable()
        os.ftruncate(self._descriptor, size_bytes)

    def size_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
        os.close(self._descriptor)


def _is_aligned(offset: int, views: Sequence[memoryview]) -> bool:
    return not offset % BLOCK_BYTES and all(map(lies_aligned, views))


def _write_all(descriptor: int, views: Sequence[memoryview], offset: int) -> None:
    pending = list(views)
    while pending:
        written = os.pwritev(descriptor, pending, offset)
        offset += written
        while pending and written >= pending[0].nbytes:
            written -= pending.pop(0).nbytes
        if pending and written:
            pending[0] = pending[0][written:]


def _opened_directly(path: Path, flags: int) -> int | None:
    # A larger page of the cache could hold a record that is read and one that is written directly.
    if mmap.PAGESIZE > BLOCK_BYTES:
        return None
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def _opened(path: Path, flags: int, *, is_writable: bool) -> _OpenFile:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        direct = _opened_directly(path, os.O_RDONLY)
    except BaseException:
        os.close(descriptor)
        raise
    return _OpenFile(descriptor, direct, made=False, is_writable=is_writable)


class DirectoryFiles:
    """``SpoolFiles`` in a directory that exists."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._directory) if entry.is_file(follow_symlinks=False))

    def create(self, name: str, size_bytes: int) -> SpoolFile:
        path = self._directory / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
            return _OpenFile(descriptor, _opened_directly(path, os.O_RDWR), made=True)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def open(self, name: str) -> SpoolFile:
        path = self._directory / name
        try:
            return _opened(path, os.O_RDWR, is_writable=True)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # A file system that an error has made read-only still gives back what was acknowledged; a write will say what is wrong.
            return _opened(path, os.O_RDONLY, is_writable=False)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink()

    def sync_directory(self) -> None:
        sync_directory(self._directory)

    def space(self) -> FileSystemSpace:
        found = os.statvfs(self._directory)
        return FileSystemSpace(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
