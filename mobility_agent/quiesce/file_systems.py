"""Which file systems have to be frozen so that disks stand still, and in which order. Reads /proc and /sys only.

Called by the agent's point epochs before they freeze.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.mount_table import MountEntry, read_mounts
from mobility_agent.block_device.usage import mounts_on
from mobility_agent.quiesce.interface import Mount


def file_systems_on(disks: Sequence[Path]) -> list[Mount]:
    """Every writable file system on ``disks``, their partitions, and the volumes and arrays on them, each once.

    Last mounted first: a file system that lies in a file of another one (a loop device) was mounted after it, and freezing
    it writes to the outer one, which must not be frozen yet. A plain file as disk has none.

    Only mounts that this mount namespace sees are found; what another one alone has mounted shows as writes during the
    freeze, and the point is then refused.
    """
    tree = DeviceTree.read()
    mounts = read_mounts()
    chosen: dict[tuple[int, int], list[MountEntry]] = {}
    for disk in disks:
        name = Path(os.path.realpath(disk)).name
        for mount in mounts_on(tree, name, mounts):
            if not mount.is_read_only:
                chosen.setdefault(mount.device, []).append(mount)
    order = list(dict.fromkeys(mount.device for mount in mounts if mount.device in chosen))
    return [_as_mount(_reachable(chosen[device])) for device in reversed(order)]


def write_back(mounts: Sequence[Mount]) -> None:
    """Write the file systems' dirty data back now, so that freezing them later takes little time. Blocks; failures show again then."""
    for mount in mounts:
        with contextlib.suppress(OSError):
            descriptor = os.open(mount.mount_point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                ctypes.CDLL(None).syncfs(descriptor)
            finally:
                os.close(descriptor)


def _reachable(candidates: list[MountEntry]) -> MountEntry:
    """A mount point that still shows its file system: another one may be mounted over it."""
    for candidate in candidates:
        with contextlib.suppress(OSError):
            found = os.stat(candidate.mount_point).st_dev
            if (os.major(found), os.minor(found)) == candidate.device:
                return candidate
    return candidates[0]  # btrfs: each subvolume has a number of its own


def _as_mount(entry: MountEntry) -> Mount:
    return Mount(entry.mount_point, entry.fs_type, entry.source, entry.device, is_read_only=entry.is_read_only)
