"""The kernel's own accounts of a block device, from sysfs: sectors written and discarded, writes in flight, incarnation.

Called by the trackers (reconciliation, ``wrote_since_flip``) and by ``standstill``. Holds the files open and reads them at offset 0 (sysfs
renders anew each time), so that nothing is opened while file systems are frozen; a read of a device that is gone fails
with ENODEV. Needs no privilege except to switch the statistics on. Format: Documentation/block/stat.rst.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from replication.errors import NotFound, Unsupported

_SYSFS: Final = Path("/sys")
_READ_SECTORS, _WRITE_SECTORS, _DISCARD_SECTORS = 2, 6, 13
_WRITES_IN_FLIGHT: Final = 1
_READ_BYTES: Final = 512
_SECTOR_BYTES: Final = 512
_NO_SEQUENCE: Final = 1 << 63


class KernelCounters:
    """One block device (a whole disk or a partition), by its number."""

    def __init__(self, device_number: int, sysfs: Path = _SYSFS) -> None:
        """``device_number`` as ``os.stat_result.st_rdev``.

        :raises NotFound: if there is no such device.
        :raises Unsupported: if the kernel keeps no discard statistics (before 4.18).
        """
        name = f"{os.major(device_number)}:{os.minor(device_number)}"
        self.directory = (sysfs / "dev/block" / name).resolve()
        if not self.directory.is_dir():
            raise NotFound(f"cannot find the block device {name} in {sysfs}")
        whole_disk = self.directory.parent if (self.directory / "partition").exists() else self.directory
        self.queue = whole_disk / "queue"
        self._open: dict[str, int] = {}
        try:
            for file in ("stat", "inflight", "size"):
                self._open[file] = os.open(self.directory / file, os.O_RDONLY | os.O_CLOEXEC)
            self._open["iostats"] = os.open(self.queue / "iostats", os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):  # since 5.15
                self._open["diskseq"] = os.open(whole_disk / "diskseq", os.O_RDONLY | os.O_CLOEXEC)
            if len(self._read("stat").split()) <= _DISCARD_SECTORS:
                raise Unsupported("cannot account for discards: this kernel's statistics lack them")  # noqa: TRY301
        except BaseException:
            self.close()
            raise

    def _read(self, file: str) -> bytes:
        return os.pread(self._open[file], _READ_BYTES, 0)

    def accounted_sectors(self) -> tuple[int, int]:
        """Sectors of 512 bytes (written, discarded) by requests that ended, since the device appeared."""
        fields = self._read("stat").split()
        return int(fields[_WRITE_SECTORS]), int(fields[_DISCARD_SECTORS])

    def read_sectors(self) -> int:
        """Sectors read by requests that ended, since the device appeared."""
        return int(self._read("stat").split()[_READ_SECTORS])

    def writes_in_flight(self) -> int:
        """Writes and discards that the driver has started and that have not ended."""
        return int(self._read("inflight").split()[_WRITES_IN_FLIGHT])

    def statistics_on(self) -> bool:
        return self._read("iostats").strip() == b"1"

    def switch_statistics(self, *, on: bool) -> None:
        """:raises OSError: without the privilege."""
        (self.queue / "iostats").write_text("1" if on else "0")

    def size_bytes(self) -> int:
        return int(self._read("size")) * _SECTOR_BYTES

    def incarnation(self) -> int:
        """A number that changes when the device number is given to another disk, or a loop device to another file.

        The kernel's disk sequence number; before 5.15 the inode number of its sysfs directory, told apart by bit 63.
        """
        if "diskseq" in self._open:
            return int(self._read("diskseq"))
        return self.directory.stat().st_ino & (_NO_SEQUENCE - 1) | _NO_SEQUENCE

    def close(self) -> None:
        """Idempotent."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
