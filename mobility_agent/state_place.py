"""Whether a directory lies on a disk: on it, its partitions, or the volumes and arrays above. Reads /proc and /sys only.

Called by ``daemon`` for the agent's state directory: on the disk that holds it, the agent's own writes must not trigger epochs (R10).
What cannot be seen from here (another mount namespace's view, a file system in a file) counts as not lying on it.
"""

from __future__ import annotations

import os
from pathlib import Path

from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.mount_table import MountEntry, read_mounts
from mobility_agent.block_device.usage import mounts_on


def lies_on(directory: Path, disk: Path) -> bool:
    """Whether the file system that holds ``directory`` lies on the block device ``disk``; False for a plain file as disk."""
    mounts = read_mounts()
    holding = _mount_of(directory, mounts)
    name = Path(os.path.realpath(disk)).name
    return holding is not None and holding in mounts_on(DeviceTree.read(), name, mounts)


def _mount_of(directory: Path, mounts: list[MountEntry]) -> MountEntry | None:
    """The mount that ``directory`` is in: the deepest mount point above it; of several there, the last one mounted."""
    place = os.path.realpath(directory)
    found: MountEntry | None = None
    for mount in mounts:
        inside = place == mount.mount_point or place.startswith(mount.mount_point.rstrip("/") + "/")
        if inside and (found is None or len(mount.mount_point) >= len(found.mount_point)):
            found = mount
    return found
