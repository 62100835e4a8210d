"""The calls of ``os`` that lead to the simulated machines' file systems; everything else goes to the operating system.

Used by the simulation. ``redirected`` gives paths under ``/simulated-MACHINE/`` and their descriptors to the machine's ``VirtualFiles``, so
that the product's own file code runs unchanged. One thread, one simulation at a time.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, Final, Self

from tests.simulation.virtual_files import ROOT, Inode, OpenFile, VirtualFiles

_FIRST_DESCRIPTOR: Final = 1_000_000
_BLOCK_BYTES: Final = 4096


class _Entry:
    def __init__(self, name: str, inode: Inode) -> None:
        self.name = name
        self._inode = inode

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._inode.is_directory

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.is_directory


class _Listing(list[_Entry]):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class _WrittenFile(io.BytesIO):
    def __init__(self, opened: OpenFile) -> None:
        super().__init__()
        self._opened = opened

    def close(self) -> None:
        if not self.closed:
            try:
                self._opened.files.write(self._opened.inode, 0, self.getvalue())
            finally:
                super().close()


class Redirection:
    """Holds the machines' trees and the open descriptors; ``calls`` are the functions of ``os`` that it replaces."""

    def __init__(self) -> None:
        self.machines: dict[str, VirtualFiles] = {}
        self._open: dict[int, OpenFile] = {}
        self._next = _FIRST_DESCRIPTOR
        self._real = {name: getattr(os, name) for name in _REPLACED}
        self._real_open = io.open
        self._real_map = mmap.mmap

    def _files(self, path: Any) -> tuple[VirtualFiles, str] | None:
        if isinstance(path, int):
            return None
        text = os.fspath(path)
        if not isinstance(text, str) or not text.startswith(ROOT):
            return None
        return self.machines[text[len(ROOT) :].partition("/")[0]], text

    # by path

    def open(self, path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        found = self._files(path)
        if found is None:
            descriptor: int = self._real["open"](path, flags, mode, **named)
            return descriptor
        self._next += 1
        self._open[self._next] = found[0].open(found[1], flags)
        return self._next

    def stat(self, path: Any, **named: Any) -> os.stat_result:
        if isinstance(path, int) and path in self._open:
            return _status(self._open[path].inode)
        found = self._files(path)
        if found is None:
            result: os.stat_result = self._real["stat"](path, **named)
            return result
        return _status(found[0].find(found[1]))

    def mkdir(self, path: Any, mode: int = 0o777, **named: Any) -> None:
        found = self._files(path)
        if found is None:
            self._real["mkdir"](path, mode, **named)
        else:
            found[0].mkdir(found[1])

    def replace(self, source: Any, target: Any, **named: Any) -> None:
        found = self._files(source)
        if found is None:
            self._real["replace"](source, target, **named)
        else:
            found[0].rename(found[1], os.fspath(target))

    def unlink(self, path: Any, **named: Any) -> None:
        found = self._files(path)
        if found is None:
            self._real["unlink"](path, **named)
        else:
            found[0].unlink(found[1])

    def listdir(self, path: Any = ".") -> list[str]:
        found = self._files(path)
        if found is None:
            names: list[str] = self._real["listdir"](path)
            return names
        return sorted(found[0].find(found[1]).entries)

    def scandir(self, path: Any = ".") -> Any:
        found = self._files(path)
        if found is None:
            return self._real["scandir"](path)
        return _Listing(_Entry(name, inode) for name, inode in sorted(found[0].find(found[1]).entries.items()))

    def statvfs(self, path: Any) -> Any:
        if self._files(path) is None:
            return self._real["statvfs"](path)
        return os.statvfs_result((_BLOCK_BYTES, _BLOCK_BYTES, 2**30, 2**29, 2**29, 0, 0, 0, 0, 255))

    def io_open(self, path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        found = self._files(path)
        if found is None:
            return self._real_open(path, mode, *arguments, **named)
        if mode == "rb":
            inode = found[0].find(found[1])
            return io.BytesIO(inode.read(0, inode.size_bytes))
        if mode == "wb":
            return _WrittenFile(found[0].open(found[1], os.O_CREAT | os.O_TRUNC))
        raise NotImplementedError(f"open {path} as {mode}")

    # by descriptor

    def close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None) is None:
            self._real["close"](descriptor)

    def write(self, descriptor: int, content: Any) -> int:
        opened = self._open.get(descriptor)
        if opened is None:
            count: int = self._real["write"](descriptor, content)
            return count
        written = opened.files.write(opened.inode, opened.position, bytes(content))
        opened.position += written
        return written

    def pwrite(self, descriptor: int, content: Any, offset: int) -> int:
        opened = self._open.get(descriptor)
        if opened is None:
            count: int = self._real["pwrite"](descriptor, content, offset)
            return count
        return opened.files.write(opened.inode, offset, bytes(content))

    def pwritev(self, descriptor: int, views: Sequence[Any], offset: int, *flags: int) -> int:
        opened = self._open.get(descriptor)
        if opened is None:
            count: int = self._real["pwritev"](descriptor, views, offset, *flags)
            return count
        return opened.files.write(opened.inode, offset, b"".join(views))

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        opened = self._open.get(descriptor)
        if opened is None:
            content: bytes = self._real["pread"](descriptor, length, offset)
            return content
        return opened.inode.read(offset, length)

    def preadv(self, descriptor: int, views: Sequence[Any], offset: int, *flags: int) -> int:
        opened = self._open.get(descriptor)
        if opened is None:
            count: int = self._real["preadv"](descriptor, views, offset, *flags)
            return count
        done = 0
        for view in views:
            piece = opened.inode.read(offset + done, len(view))
            view[: len(piece)] = piece
            done += len(piece)
            if len(piece) < len(view):
                break
        return done

    def fsync(self, descriptor: int) -> None:
        opened = self._open.get(descriptor)
        if opened is None:
            self._real["fsync"](descriptor)
        else:
            opened.files.sync(opened.inode)

    def fdatasync(self, descriptor: int) -> None:
        opened = self._open.get(descriptor)
        if opened is None:
            self._real["fdatasync"](descriptor)
        else:
            opened.files.sync(opened.inode)

    def ftruncate(self, descriptor: int, size_bytes: int) -> None:
        opened = self._open.get(descriptor)
        if opened is None:
            self._real["ftruncate"](descriptor, size_bytes)
        else:
            opened.files.truncate(opened.inode, size_bytes)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        opened = self._open.get(descriptor)
        if opened is None:
            self._real["posix_fallocate"](descriptor, offset, length)
        else:
            opened.files.allocate(opened.inode, offset + length)

    def posix_fadvise(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        if descriptor not in self._open:
            self._real["posix_fadvise"](descriptor, offset, length, advice)

    def fstat(self, descriptor: int) -> os.stat_result:
        opened = self._open.get(descriptor)
        if opened is None:
            result: os.stat_result = self._real["fstat"](descriptor)
            return result
        return _status(opened.inode)

    def fchmod(self, descriptor: int, mode: int) -> None:
        if descriptor not in self._open:
            self._real["fchmod"](descriptor, mode)

    def map(self, descriptor: int, length: int, *arguments: Any, **named: Any) -> Any:
        opened = self._open.get(descriptor)
        if opened is None:
            return self._real_map(descriptor, length, *arguments, **named)
        inode = opened.inode
        if len(inode.buffer) < length:
            inode.buffer.extend(bytes(length - len(inode.buffer)))
        return inode.buffer


_REPLACED: Final = (
    *("open", "stat", "mkdir", "replace", "unlink", "listdir", "scandir", "statvfs"),
    *("close", "write", "pwrite", "pwritev", "pread", "preadv", "fsync", "fdatasync", "ftruncate"),
    *("posix_fallocate", "posix_fadvise", "fstat", "fchmod"),
)


def _status(inode: Inode) -> os.stat_result:
    kind = stat.S_IFDIR if inode.is_directory else stat.S_IFREG
    return os.stat_result((kind | 0o700, inode.number, 1, 1, 0, 0, inode.size_bytes, 0, 0, 0))


@contextlib.contextmanager
def redirected() -> Iterator[Redirection]:
    """While inside, calls that concern simulated paths and descriptors are answered by the redirection."""
    redirection = Redirection()
    try:
        for name in _REPLACED:
            setattr(os, name, getattr(redirection, name))
        os.remove = redirection.unlink
        os.rename = redirection.replace  # type: ignore[assignment]
        io.open = redirection.io_open  # type: ignore[assignment]
        mmap.mmap = redirection.map  # type: ignore[assignment,misc]
        yield redirection
    finally:
        for name, real in redirection._real.items():
            setattr(os, name, real)
        os.remove, os.rename = _REMOVE, _RENAME
        io.open = redirection._real_open
        mmap.mmap = redirection._real_map  # type: ignore[misc]


_REMOVE = os.remove
_RENAME = os.rename
