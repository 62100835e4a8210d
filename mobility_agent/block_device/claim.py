"""Exclusive claims: proof that a disk is not in use, and that it cannot be mounted, while the claim is held.

Called by the cutover of an offline disk (mode a of R10), which ships the final epoch and proves identity under the claim.
A block device is opened O_EXCL: the kernel refuses while it, or a partition of it, is mounted, swap, or part of a volume or
array, and refuses all these while we hold it. It does not keep a process from opening the device and writing to it: so
processes that have it open for writing are refused by name when the claim is made, and ``watch`` and ``look`` tell of the rest.
A plain file is locked (flock), which binds only who asks, and must not be behind a loop device.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.standstill import DeviceWatch, FileWatch, Standstill, watch, write_back
from mobility_agent.block_device.usage import OpenBy, loop_devices_over, open_by, uses_of_device
from replication.errors import Conflict, NotFound, Refused


class Claim:
    """Held until ``close``, or until the process ends. On return from the constructor all earlier writes are on the disk."""

    def __init__(self, path: Path) -> None:
        """Claim the disk at ``path``.

        :raises Conflict: if it is in use; the message names the mounts, swap, volumes or processes.
        :raises NotFound: if there is no such disk.
        :raises Refused: without permission.
        """
        self.path = path
        self._descriptor = -1
        self._watch: DeviceWatch | FileWatch | None = None
        try:
            self._descriptor = self._open()
            _refuse_writers(path)
            write_back(_nodes(path))
            self._watch = watch(self._descriptor, _nodes(path))
            seen = self._watch.begin()
            if seen.state == "written":
                raise Conflict(f"cannot claim {path}: {seen.reason}", hint="stop what writes to the disk")  # noqa: TRY301
        except FileNotFoundError:
            raise NotFound(f"cannot claim {path}: there is no such disk") from None
        except PermissionError as error:
            raise Refused(f"cannot claim {path}: {error.strerror}", hint="run the agent as root") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        if not stat.S_ISBLK(os.stat(self.path).st_mode):
            return _lock_file(self.path)
        try:
            return os.open(self.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            uses = uses_of_device(DeviceTree.read(), Path(os.path.realpath(self.path)).name)
            raise Conflict(
                f"cannot claim {self.path}: {'; '.join(uses) or 'another program holds it exclusively'}",
                hint="unmount its file systems, switch off its swap, deactivate its volumes; then try again",
            ) from error

    def watch(self) -> Standstill:
        """Begin to watch for writes; quiet if ``look`` will tell. What was written before is on the disk on return.

        :raises OSError: if the disk is gone.
        """
        return self._watching().begin()

    def look(self) -> Standstill:
        """Whether anything was written since ``watch``, page caches included. :raises OSError: if the disk is gone."""
        return self._watching().look()

    def _watching(self) -> DeviceWatch | FileWatch:
        if self._watch is None:
            raise Refused(f"cannot watch {self.path}: it is not claimed")
        return self._watch

    def close(self) -> None:
        """Idempotent."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock_file(path: Path) -> int:
    loops = loop_devices_over(path)
    if loops:
        raise Conflict(f"cannot claim {path}: it is behind {', '.join(loops)}", hint=f"claim {loops[0]} instead")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(
            f"cannot claim {path}: another process has locked it", hint="stop the program that uses the file"
        ) from None
    return descriptor


def _nodes(path: Path) -> list[Path]:
    """The disk and its partitions."""
    if not stat.S_ISBLK(os.stat(path).st_mode):
        return [path]
    partitions = DeviceTree.read().partitions(Path(os.path.realpath(path)).name)
    return [path, *(Path("/dev") / partition.name for partition in partitions)]


def _refuse_writers(path: Path) -> None:
    writers: list[OpenBy] = [process for part in _nodes(path) for process in open_by(part) if process.writes]
    if writers:
        names = ", ".join(f"{process.command} (process {process.process_id})" for process in writers)
        raise Conflict(f"cannot claim {path}: open for writing by {names}", hint="stop what writes to the disk")
