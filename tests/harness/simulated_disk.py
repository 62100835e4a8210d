"""A disk that loses what was not synced: ``SpoolFiles`` in memory, with power cuts, torn writes, failing syncs and a size.

Called by tests of the process server's spool. What is *written* is seen by reads at once; a power cut (``after_power_cut``) keeps of
every unsynced sector, length and directory entry an arbitrary one of its states since the last sync. ``cut_power_after`` raises
``PowerCut`` at the n-th operation from now, before or in the middle of it: a failpoint between any two durable steps.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from process_server.spool.files import FileSystemSpace, SpoolFile, SpoolFiles

SECTOR_BYTES: Final = 512
BLOCK_BYTES: Final = 4096


class PowerCut(Exception):
    """The machine is gone; only ``after_power_cut`` is of use now."""


@dataclass(slots=True)
class _Inode:
    content: bytearray
    durable: bytearray
    dirty: set[int] = field(default_factory=set)
    """Sectors whose written and durable content may differ."""
    unreadable: set[int] = field(default_factory=set)
    """Blocks that the disk cannot read back."""


@dataclass(slots=True)
class SimulatedDisk:
    """``SpoolFiles``; ``capacity_bytes`` counts files' lengths."""

    capacity_bytes: int = 2**40
    failing_syncs: int = 0
    """So many of the next syncs fail with EIO; what they should have written is lost or not, and later syncs do not write it."""
    failing_writes: int = 0
    failing_removals: int = 0
    random: Random = field(default_factory=lambda: Random(0))
    _written: dict[str, _Inode] = field(default_factory=dict)
    _durable: dict[str, _Inode] = field(default_factory=dict)
    _fuse: int | None = None
    syncs: int = 0

    # -- SpoolFiles -------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(self._written)

    def create(self, name: str, size_bytes: int) -> SpoolFile:
        self._burn()
        if name in self._written:
            raise FileExistsError(errno.EEXIST, "exists", name)
        if self.used_bytes + size_bytes > self.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode = _Inode(bytearray(size_bytes), bytearray())
        self._written[name] = inode
        return _SimulatedFile(self, inode)

    def open(self, name: str) -> SpoolFile:
        if name not in self._written:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return _SimulatedFile(self, self._written[name])

    def remove(self, name: str) -> None:
        self._burn()
        if self.failing_removals:
            self.failing_removals -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if name not in self._written:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        del self._written[name]

    def sync_directory(self) -> None:
        self._burn()
        self._durable = dict(self._written)

    def space(self) -> FileSystemSpace:
        return FileSystemSpace(self.capacity_bytes, self.capacity_bytes - self.used_bytes)

    # -- faults -----------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        return sum(len(inode.content) for inode in self._written.values())

    def cut_power_after(self, operations: int | None) -> None:
        self._fuse = operations

    def _burn(self) -> None:
        if self._fuse is not None:
            self._fuse -= 1
            if self._fuse < 0:
                raise PowerCut

    def after_power_cut(self) -> SimulatedDisk:
        """The disk as the machine finds it when it is back."""
        survivor = SimulatedDisk(self.capacity_bytes, random=self.random)
        for name in sorted(self._written.keys() | self._durable.keys()):
            if name in self._written and name in self._durable:
                inode = self._written[name]
            elif self.random.random() < 0.5:
                inode = self._written.get(name) or self._durable[name]
            else:
                continue
            content = self._survived(inode)
            survivor._written[name] = survivor._durable[name] = _Inode(content, bytearray(content))
        return survivor

    def _survived(self, inode: _Inode) -> bytearray:
        lengths = (len(inode.content), len(inode.durable))
        content = bytearray(self.random.choice(lengths))
        content[:] = inode.durable[: len(content)].ljust(len(content), b"\0")
        for sector in sorted(inode.dirty):
            start = sector * SECTOR_BYTES
            if start < len(content) and self.random.random() < 0.5:
                piece = inode.content[start : start + SECTOR_BYTES]
                content[start : start + len(piece)] = piece[: len(content) - start]
        return content

    def make_unreadable(self, name: str, offset: int, length: int = 1) -> None:
        """Blocks that give EIO when they are read, or written in part; writing them whole heals them."""
        self._written[name].unreadable.update(range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1))

    def damage(self, name: str, offset: int, length: int = 1) -> None:
        """Flip all bits of a range, durably: what a failing disk does in silence."""
        for inode in {id(i): i for i in (self._written[name], self._durable[name])}.values():
            for content in (inode.content, inode.durable):
                for at in range(offset, min(offset + length, len(content))):
                    content[at] ^= 0xFF


class _SimulatedFile:
    def __init__(self, disk: SimulatedDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write_at(self, offset: int, views: Sequence[memoryview]) -> None:
        content = b"".join(views)
        try:
            self._fail_if_asked(offset, offset + len(content))
        except (PowerCut, OSError):
            self._put(offset, content[: self._disk.random.randint(0, len(content))])
            raise
        self._put(offset, content)

    def _fail_if_asked(self, start: int, end: int) -> None:
        disk = self._disk
        disk._burn()
        if disk.failing_writes:
            disk.failing_writes -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        whole = set(range(-(-start // BLOCK_BYTES), end // BLOCK_BYTES))
        if self._inode.unreadable & set(range(first, last + 1)) - whole:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._inode.unreadable -= whole
        grown = end - len(self._inode.content)
        if grown > 0 and disk.used_bytes + grown > disk.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _put(self, offset: int, content: bytes) -> None:
        inode = self._inode
        if offset + len(content) > len(inode.content):
            inode.content.extend(bytes(offset + len(content) - len(inode.content)))
        inode.content[offset : offset + len(content)] = content
        if content:
            inode.dirty.update(range(offset // SECTOR_BYTES, (offset + len(content) - 1) // SECTOR_BYTES + 1))

    def read_at(self, offset: int, buffer: memoryview) -> int:
        blocks = range(offset // BLOCK_BYTES, (offset + buffer.nbytes - 1) // BLOCK_BYTES + 1)
        if not self._inode.unreadable.isdisjoint(blocks):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        piece = self._inode.content[offset : offset + buffer.nbytes]
        buffer[: len(piece)] = piece
        return len(piece)

    def sync(self) -> None:
        disk, inode = self._disk, self._inode
        disk.syncs += 1
        disk._burn()
        if disk.failing_syncs:
            disk.failing_syncs -= 1
            inode.durable = disk._survived(inode)
            inode.dirty.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        length = len(inode.content)
        inode.durable = bytearray(inode.durable[:length].ljust(length, b"\0"))
        for sector in inode.dirty:
            inside = slice(sector * SECTOR_BYTES, min(length, (sector + 1) * SECTOR_BYTES))
            inode.durable[inside] = inode.content[inside]
        inode.dirty.clear()

    def forget_cache(self) -> None:
        inode = self._inode
        for sector in set(range(-(-len(inode.content) // SECTOR_BYTES))) - inode.dirty:
            inside = slice(sector * SECTOR_BYTES, min(len(inode.content), (sector + 1) * SECTOR_BYTES))
            inode.content[inside] = inode.durable[inside].ljust(inside.stop - inside.start, b"\0")

    def truncate(self, size_bytes: int) -> None:
        self._disk._burn()
        content = self._inode.content
        if size_bytes < len(content):
            del content[size_bytes:]
        elif size_bytes > len(content):
            self._put(len(content), bytes(size_bytes - len(content)))

    def size_bytes(self) -> int:
        return len(self._inode.content)

    def close(self) -> None:
        pass


if TYPE_CHECKING:
    _conforms: SpoolFiles = SimulatedDisk()
