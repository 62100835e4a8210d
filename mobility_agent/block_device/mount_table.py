"""The mount table of a process' mount namespace (this one's, if not told otherwise), and the swap areas. Reads /proc only.

Called by the listing of disks, by claims and by the freeze. Format: proc(5), /proc/pid/mountinfo.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo. ``device`` is (major, minor) of the superblock: anonymous (major 0) for btrfs, say.

    ``source_device`` is the block device that the source names, if it names one.
    """

    mount_point: str
    fs_type: str
    source: str
    device: tuple[int, int]
    source_device: tuple[int, int] | None
    is_read_only: bool


def read_mounts(proc: Path = _PROC, process: str = "self") -> list[MountEntry]:
    """In the order of mounting, as ``process`` sees them.

    Sources are looked up in this process' own view; those of another namespace only below /dev, since any other path means something else
    here, and may even hang.
    """
    entries = []
    is_own = process == "self"
    for line in (proc / process / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        separator = fields.index("-", 6)
        major, minor = fields[2].split(":")
        source = _unescape(fields[separator + 2])
        super_options = fields[separator + 3].split(",")
        entries.append(
            MountEntry(
                mount_point=_unescape(fields[4]),
                fs_type=fields[separator + 1],
                source=source,
                device=(int(major), int(minor)),
                source_device=block_device_number(source) if is_own or source.startswith("/dev/") else None,
                is_read_only="ro" in super_options,
            )
        )
    return entries


def read_swaps(proc: Path = _PROC) -> list[tuple[str, tuple[int, int] | None]]:
    """(path, block device number or None for a swap file) of each swap area in use."""
    lines = (proc / "swaps").read_text().splitlines()[1:]
    paths = [_unescape(line.split()[0]) for line in lines if line.strip()]
    return [(path, block_device_number(path)) for path in paths]


def block_device_number(path: str) -> tuple[int, int] | None:
    """(major, minor) if ``path`` is a block device, else None."""
    if not path.startswith("/"):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISBLK(found.st_mode):
        return None
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
