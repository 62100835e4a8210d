"""The spool's file operations, all of them, behind one narrow interface: what a simulated disk replaces in tests.

Called by ``log`` and ``recovery`` only. *Written* is what ``write_at`` leaves, *durable* what ``sync`` leaves: between the two a
crash may keep any part of it. A created file is durable only after ``sync_directory``. All calls block; all may raise ``OSError``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

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
    """A file descriptor."""

    def __init__(self, descriptor: int, *, is_writable: bool = True) -> None:
        self._descriptor = descriptor
        self._is_writable = is_writable

    def _require_writable(self) -> None:
        if not self._is_writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def write_at(self, offset: int, views: Sequence[memoryview]) -> None:
        self._require_writable()
        pending = [view for view in views if view.nbytes]
        while pending:
            written = os.pwritev(self._descriptor, pending, offset)
            offset += written
            while pending and written >= pending[0].nbytes:
                written -= pending.pop(0).nbytes
            if pending and written:
                pending[0] = pending[0][written:]

    def read_at(self, offset: int, buffer: memoryview) -> int:
        filled = 0
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
        os.close(self._descriptor)


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
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return _OpenFile(descriptor)

    def open(self, name: str) -> SpoolFile:
        path = self._directory / name
        try:
            return _OpenFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # A file system that an error has made read-only still gives back what was acknowledged; a write will say what is wrong.
            return _OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), is_writable=False)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink()

    def sync_directory(self) -> None:
        sync_directory(self._directory)

    def space(self) -> FileSystemSpace:
        found = os.statvfs(self._directory)
        return FileSystemSpace(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
