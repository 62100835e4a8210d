"""File systems in memory that lose what was not synced, one for each simulated machine.

Used by the simulation. What is *written* is seen at once; a power cut keeps of every unsynced sector, length and directory entry an
arbitrary one of its two states. Each change is an action of the process that makes it (``Process.act``): a place to die, before it or in
the middle of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Final

ROOT: Final = "/simulated-"
SECTOR_BYTES: Final = 512


class MappedFile(bytearray):
    """A file's written bytes; handed out as its memory mapping, too."""

    def close(self) -> None:
        """A mapping that is closed leaves the file."""


class Inode:
    """A file or directory; ``durable`` and ``durable_bytes`` (content and length) or ``durable_entries`` are what a power cut leaves."""

    def __init__(self, number: int, *, is_directory: bool) -> None:
        self.number = number
        self.is_directory = is_directory
        self.made_as = ""
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

    def flip(self, bit: int) -> None:
        """As a failing disk does: what was durable is another now."""
        at, mask = bit // 8, 1 << bit % 8
        self.buffer[at] ^= mask
        if at < len(self.durable):
            self.durable = self.durable[:at] + bytes([self.durable[at] ^ mask]) + self.durable[at + 1 :]

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

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def _parts(path: str) -> tuple[str, ...]:
        return tuple(part for part in path[len(ROOT) :].split("/")[1:] if part)

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
            inode.made_as = name
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
                end = (
                    (offset + self._random.randrange(len(content))) // SECTOR_BYTES * SECTOR_BYTES
                )  # a sector is whole
                inode.write(offset, content[: max(0, end - offset)])
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
        self.act("sync directory" if inode.is_directory else f"sync {inode.made_as}")
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
            survivor.buffer, survivor.size_bytes, survivor.made_as = MappedFile(content), size_bytes, inode.made_as
            survivor.sync()
            return survivor
        for name in sorted(inode.entries.keys() | inode.durable_entries.keys()):
            written, durable = inode.entries.get(name), inode.durable_entries.get(name)
            kept = written if written is durable or self._random.random() < 0.5 else durable
            if kept is not None:
                survivor.entries[name] = self._survived(kept)
        survivor.sync()
        return survivor

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Inside, the product's code may open what is here without an effect: what it makes durable meanwhile is a copy."""
        root, act, is_full, failing_syncs = self._root, self.act, self.is_full, self.failing_syncs
        self._root, self.act, self.is_full, self.failing_syncs = _copied(root), lambda _what: None, False, 0
        try:
            yield
        finally:
            self._root, self.act, self.is_full, self.failing_syncs = root, act, is_full, failing_syncs

    def copy(self) -> Inode:
        """The whole tree as it is now, as a snapshot of the machine would have it."""
        return _copied(self._root)

    def revert(self, copy: Inode) -> None:
        self._root = _copied(copy)


def _copied(inode: Inode) -> Inode:
    made = Inode(inode.number, is_directory=inode.is_directory)
    made.buffer, made.size_bytes, made.made_as = MappedFile(inode.buffer), inode.size_bytes, inode.made_as
    made.entries = {name: _copied(each) for name, each in inode.entries.items()}
    made.sync()
    return made
