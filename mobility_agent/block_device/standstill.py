"""Whether a claimed disk stands still: what can be proved without a change tracker, and why it cannot be.

Used by ``claim``. A *block device* has the kernel's own accounts: what is written through any of its nodes is counted when it ends, and
is in flight before. What lies dirty in page caches is no write yet, so they are written back first, the partitions' (each has its own)
too. The accounts are believed only if they count a read of ours: some drivers keep none.
A *plain file* has no accounts, and its times say little (coarse; memory that is mapped may be stored to long after they were
set). But the kernel grants a read lease only while nobody has the file open or mapped for writing, and takes it away
before anybody can: as long as the lease is there, nothing was written.

Not seen by either: commands sent past the block layer (SG_IO), another host's writes to a shared disk, and a loop device's file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from mobility_agent.block_device.kernel_counters import KernelCounters
from replication.errors import NotFound, Unsupported

_PROBE_BYTES: Final = 4096
_COUNTED_WITHIN_S: Final = 1.0
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Standstill:
    """``written``: something was written, or is about to be. ``unknown``: it cannot be told. ``reason`` is empty only if quiet."""

    state: Literal["quiet", "written", "unknown"]
    reason: str = ""


QUIET: Final = Standstill("quiet")


class Watch(Protocol):
    """Over one claimed disk; its calls block."""

    def begin(self) -> Standstill:
        """From here on ``look`` tells of writes. What was written before is on the disk on return. Not quiet: it can tell nothing.

        :raises OSError: if the disk is gone.
        """
        ...

    def look(self) -> Standstill:
        """Whether anything was written between ``begin`` and this call. :raises OSError: if the disk is gone."""
        ...

    def close(self) -> None:
        """Idempotent; the claim's own descriptor is left to the claim."""
        ...


class DeviceWatch:
    """Of a block device. ``nodes``: its own and its partitions'."""

    def __init__(self, descriptor: int, nodes: Sequence[Path]) -> None:
        """``descriptor``: open for reading; it stays the caller's."""
        self._descriptor = descriptor
        self._nodes = list(nodes)
        self._path = nodes[0]
        self._counters: KernelCounters | None = None
        self._before: tuple[int, tuple[int, int]] | None = None

    def begin(self) -> Standstill:
        write_back(self._nodes)
        try:
            if self._counters is None:
                self._counters = KernelCounters(os.fstat(self._descriptor).st_rdev)
        except (NotFound, Unsupported) as error:
            return Standstill("unknown", error.message)
        if not self._counters.statistics_on():
            return Standstill("unknown", f"{self._path} keeps no I/O statistics ({self._counters.queue}/iostats is 0)")
        self._before = self._account(self._counters)
        if not self._counts_reads(self._counters):
            return Standstill("unknown", f"the driver of {self._path} does not account for what it transfers")
        return QUIET

    def look(self) -> Standstill:
        counters = self._counters
        if counters is None or self._before is None:
            return Standstill("unknown", "it was not watched")
        write_back(self._nodes)
        if not counters.statistics_on():
            return Standstill("unknown", f"the I/O statistics of {self._path} were switched off")
        # In this order: a write that has landed is in flight until after it is accounted for.
        if counters.writes_in_flight():
            return Standstill("written", "a write is in flight")
        if self._account(counters) != self._before:
            return Standstill("written", "the kernel has accounted for writes")
        return QUIET

    @staticmethod
    def _account(counters: KernelCounters) -> tuple[int, tuple[int, int]]:
        return counters.incarnation(), counters.accounted_sectors()

    def _counts_reads(self, counters: KernelCounters) -> bool:
        before = counters.read_sectors()
        with _past_the_cache(self._path) as descriptor, mmap.mmap(-1, _PROBE_BYTES) as buffer:
            os.preadv(descriptor, [buffer], 0)
        deadline_s = time.monotonic() + _COUNTED_WITHIN_S
        while counters.read_sectors() == before:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def close(self) -> None:
        if self._counters is not None:
            self._counters.close()
            self._counters = None


class FileWatch:
    """Of a plain file, by a read lease on the claim's descriptor (which must be open for reading only)."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._leased = False

    def begin(self) -> Standstill:
        os.fsync(self._descriptor)
        try:
            # The signal that tells of a break would end the process, were it not one that is ignored by default.
            fcntl.fcntl(self._descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return Standstill("written", f"{self._path} is open for writing, or mapped")
            return Standstill("unknown", f"the kernel grants no lease on {self._path}: {error.strerror}")
        self._leased = True
        os.fsync(self._descriptor)  # the last writer may have come between the first and the lease
        return QUIET

    def look(self) -> Standstill:
        if not self._leased:
            return Standstill("unknown", "it was not watched")
        if fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            return Standstill("written", f"{self._path} was opened for writing")
        return QUIET

    def close(self) -> None:
        """The lease ends with the descriptor."""
        self._leased = False


def watch(descriptor: int, nodes: Sequence[Path]) -> DeviceWatch | FileWatch:
    """The watch of what ``descriptor`` has open; ``nodes`` as for ``DeviceWatch``."""
    if stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return DeviceWatch(descriptor, nodes)
    return FileWatch(descriptor, nodes[0])


def write_back(nodes: Sequence[Path]) -> None:
    """Everything that was written through ``nodes`` is on the disk on return. A partition that is gone by now has nothing to write."""
    for node in nodes:
        try:
            descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if node is not nodes[0] and error.errno in (errno.ENOENT, errno.ENXIO):
                continue
            raise
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _past_the_cache(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
