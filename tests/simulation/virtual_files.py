"""File systems in memory that lose what was not synced, one for each simulated machine, and the calls of ``os`` that lead to them.

Used by the simulation. What is *written* is seen at once; a power cut keeps of every unsynced sector, length and directory entry an
arbitrary one of its two states. Each change is an action of the process that makes it (``Process.act``): a place to die, before it or in
the middle of it. The product's own code runs unchanged above: ``redirected`` gives paths under ``/simulated-MACHINE/`` and their
descriptors to the machine's ``VirtualFiles``, and everything else to the operating system.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final, Self

ROOT: Final = "/simulated-"
SECTOR_BYTES: Final = 512
_FIRST_DESCRIPTOR: Final = 1_000_000
_BLOCK_BYTES: Final = 4096


class MappedFile(bytearray):
    """A file's written bytes; handed out as its memory mapping, too."""

    def close(self) -> None:
        """A mapping that is closed leaves the file."""


class Inode:
    """A file or directory; ``durable`` and ``durable_bytes`` (content and length) or ``durable_entries`` are what a power cut leaves."""

    def __init__(self, number: int, *, is_directory: bool) -> None:
        self.number = number
        self.is_directory = is_directory
        self.buffer = MappedFile()
        self.size_bytes = 0
        self.durable = b""
        self.durable_bytes = 0
        self.entries: dict[str, Inode] = {}
        self.durable_entries: dict[str, Inode] = {}

    def sync(self) -> None:
        if self.is_directory:
            self.durable_entries = dict(self.entries)
        else:
            self.durable, self.durable_bytes = bytes(self.buffer), self.size_bytes

    def write(self, offset: int, content: bytes) -> None:
        end = offset + len(content)
        if end > len(self.buffer):
            self.buffer.extend(bytes(end - len(self.buffer)))
        self.buffer[offset:end] = content
        self.size_bytes = max(self.size_bytes, end)

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size_bytes - offset))
        return bytes(self.buffer[offset : offset + length]).ljust(length, b"\0")

    def truncate(self, size_bytes: int) -> None:
        if size_bytes < len(self.buffer):
            # Not shortened: it may be mapped. What is beyond the length reads as zeros when the file grows again.
            self.buffer[size_bytes:] = bytes(len(self.buffer) - size_bytes)
        self.size_bytes = size_bytes

    def survivor(self, random: Random) -> tuple[bytes, int]:
        """Content and length after a power cut."""
        if self.size_bytes == self.durable_bytes and bytes(self.buffer) == self.durable:
            return self.durable, self.durable_bytes
        size_bytes = random.choice((self.size_bytes, self.durable_bytes))
        longest = max(len(self.buffer), len(self.durable))
        written, durable = bytes(self.buffer).ljust(longest, b"\0"), self.durable.ljust(longest, b"\0")
        pieces = []
        for at in range(0, longest, SECTOR_BYTES):
            new, old = written[at : at + SECTOR_BYTES], durable[at : at + SECTOR_BYTES]
            pieces.append(new if new == old or random.random() < 0.5 else old)
        return b"".join(pieces)[:size_bytes], size_bytes


class OpenFile:
    """What a descriptor stands for."""

    def __init__(self, files: VirtualFiles, inode: Inode) -> None:
        self.files = files
        self.inode = inode
        self.position = 0


class VirtualFiles:
    """One machine's tree. ``act`` is called before each change and sync, with its name: it may kill the caller."""

    def __init__(self, machine: str, random: Random, act: Callable[[str], None]) -> None:
        self.machine = machine
        self.is_full = False
        self.failing_syncs = 0
        self.partial: Callable[[], bool] = lambda: False
        """Whether the write that is about to kill its process leaves a part of itself."""
        self._random = random
        self.act = act
        self._numbers = 1
        self._root = Inode(1, is_directory=True)

    # ---- looking up

    def _parts(self, path: str) -> list[str]:
        return [part for part in path[len(ROOT) :].split("/")[1:] if part]

    def find(self, path: str) -> Inode:
        inode = self._root
        for part in self._parts(path):
            if part not in inode.entries:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            inode = inode.entries[part]
        return inode

    def _place(self, path: str) -> tuple[Inode, str]:
        parts = self._parts(path)
        if not parts:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return self.find(f"{ROOT}{self.machine}/" + "/".join(parts[:-1])), parts[-1]

    def _made(self, *, is_directory: bool) -> Inode:
        self._numbers += 1
        return Inode(self._numbers, is_directory=is_directory)

    def _need_room(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # ---- the calls

    def open(self, path: str, flags: int) -> OpenFile:
        directory, name = (None, "") if not self._parts(path) else self._place(path)
        inode = self._root if directory is None else directory.entries.get(name)
        if inode is not None and flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if inode is None:
            if not flags & os.O_CREAT or directory is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.act("create")
            self._need_room()
            inode = directory.entries[name] = self._made(is_directory=False)
        elif flags & os.O_TRUNC:
            self.act("truncate")
            inode.truncate(0)
        return OpenFile(self, inode)

    def write(self, inode: Inode, offset: int, content: bytes) -> int:
        try:
            self.act("write")
            if offset + len(content) > len(inode.buffer):
                self._need_room()
        except BaseException:
            if content and self.partial():
                inode.write(offset, content[: self._random.randrange(len(content))])
            raise
        inode.write(offset, content)
        return len(content)

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        self.act("truncate")
        inode.truncate(size_bytes)

    def allocate(self, inode: Inode, size_bytes: int) -> None:
        self.act("allocate")
        self._need_room()
        inode.size_bytes = max(inode.size_bytes, size_bytes)

    def sync(self, inode: Inode) -> None:
        self.act("sync")
        if self.failing_syncs:
            self.failing_syncs -= 1
            if not inode.is_directory:
                # What should have been written is written or not, and counts as clean from now on.
                inode.durable, inode.durable_bytes = inode.survivor(self._random)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        inode.sync()

    def mkdir(self, path: str) -> None:
        directory, name = self._place(path)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.act("mkdir")
        self._need_room()
        directory.entries[name] = self._made(is_directory=True)

    def rename(self, source: str, target: str) -> None:
        inode = self.find(source)
        from_directory, from_name = self._place(source)
        to_directory, to_name = self._place(target)
        self.act("rename")
        del from_directory.entries[from_name]
        to_directory.entries[to_name] = inode

    def unlink(self, path: str) -> None:
        directory, name = self._place(path)
        if name not in directory.entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.act("unlink")
        del directory.entries[name]

    # ---- what machines suffer

    def cut_power(self) -> None:
        """What was not synced is there, or not."""
        self._root = self._survived(self._root)

    def _survived(self, inode: Inode) -> Inode:
        survivor = self._made(is_directory=inode.is_directory)
        if not inode.is_directory:
            content, size_bytes = inode.survivor(self._random)
            survivor.buffer, survivor.size_bytes = MappedFile(content), size_bytes
            survivor.sync()
            return survivor
        for name in sorted(inode.entries.keys() | inode.durable_entries.keys()):
            written, durable = inode.entries.get(name), inode.durable_entries.get(name)
            kept = written if written is durable or self._random.random() < 0.5 else durable
            if kept is not None:
                survivor.entries[name] = self._survived(kept)
        survivor.sync()
        return survivor

    def copy(self) -> Inode:
        """The whole tree as it is now, as a snapshot of the machine would have it."""
        return _copied(self._root)

    def revert(self, copy: Inode) -> None:
        self._root = _copied(copy)


def _copied(inode: Inode) -> Inode:
    made = Inode(inode.number, is_directory=inode.is_directory)
    made.buffer, made.size_bytes = MappedFile(inode.buffer), inode.size_bytes
    made.entries = {name: _copied(each) for name, each in inode.entries.items()}
    made.sync()
    return made


# ---- the operating system's calls


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
