"""Who uses a disk right now: mounts, swap, volumes and arrays on it, loop devices over a file, processes with it open.

Called by claims, to name what is in the way, and by the listing. Reads /proc and /sys only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.mount_table import MountEntry, read_mounts, read_swaps

_PROC: Final = Path("/proc")
_SYSFS: Final = Path("/sys")
_ACCESS_MODE: Final = 0o3


@dataclass(frozen=True, slots=True)
class OpenBy:
    """A process that has the disk open."""

    process_id: int
    command: str
    writes: bool


def mounts_on(tree: DeviceTree, disk_name: str, mounts: list[MountEntry]) -> list[MountEntry]:
    """Mounts whose file system lies on the disk, directly or through what stands on it."""
    names = tree.sharing_btrfs({node.name for node in tree.standing_on(disk_name)})
    numbers = {tree.nodes[name].number for name in names if name in tree.nodes}
    return [mount for mount in mounts if mount.device in numbers or mount.source_device in numbers]


def uses_of_device(tree: DeviceTree, disk_name: str) -> list[str]:
    """What has to end before the disk can be claimed, one phrase each."""
    found = [f"{mount.source} is mounted on {mount.mount_point}" for mount in mounts_on(tree, disk_name, read_mounts())]
    names = {node.number: node.name for node in tree.standing_on(disk_name)}
    found += [f"{path} is in use as swap" for path, number in read_swaps() if number in names]
    for node in tree.standing_on(disk_name):
        if node.slaves:
            label = node.attribute("dm/name") or node.name
            found.append(f"{label} ({node.name}) stands on {', '.join(node.slaves)}")
    return found


def loop_devices_over(file: Path, sysfs: Path = _SYSFS) -> list[str]:
    """Loop devices whose backing file is ``file``."""
    wanted = os.path.realpath(file)
    found = []
    for backing in sorted((sysfs / "block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            if backing.read_text().strip() == wanted:
                found.append(f"/dev/{backing.parts[-3]}")
    return found


def open_by(path: Path, proc: Path = _PROC) -> Iterator[OpenBy]:
    """Other processes that have ``path`` open, as far as this user may see."""
    wanted = os.stat(path)
    for directory in proc.iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            for descriptor in (directory / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found = descriptor.stat()
                    same_device = wanted.st_rdev and found.st_rdev == wanted.st_rdev
                    if not same_device and not os.path.samestat(found, wanted):
                        continue
                    flags = (directory / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
                    command = (directory / "comm").read_text().strip()
                    yield OpenBy(int(directory.name), command, bool(int(flags, 8) & _ACCESS_MODE))
                    break
