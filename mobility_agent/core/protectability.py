"""Whether a disk can be protected, and if not, why not and what to do instead. Pure decisions.

Called by the listing of disks. What is replicated is a whole block device: so parts of one, and things made of several, are
protected through the disks beneath them.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

from replication.extents import BLOCK_BYTES, MAX_DISK_BYTES


class DiskKind(enum.StrEnum):
    DISK = "disk"
    LOOP = "loop"
    FILE = "file"
    PARTITION = "partition"
    VOLUME = "lvm-volume"
    ENCRYPTED = "encrypted-volume"
    MULTIPATH = "multipath"
    MAPPED = "mapped-device"
    RAID = "raid-array"
    MEMORY = "memory"
    REMOVABLE_MEDIUM = "removable-medium"


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """``signatures`` of what fills the disk (itself, or its only partition); ``disks_beneath`` as paths."""

    path: str
    kind: DiskKind
    size_bytes: int
    signatures: tuple[str, ...] = ()
    disks_beneath: tuple[str, ...] = ()
    is_zoned: bool = False
    unreadable: str = ""
    unreadable_remedy: str = ""


@dataclass(frozen=True, slots=True)
class Protectability:
    """``why_not`` and ``remedy`` are sentences for the operator, both empty if the disk can be protected.

    ``note`` says what else belongs to a disk that can be protected.
    """

    why_not: str = ""
    remedy: str = ""
    note: str = ""

    @property
    def is_protectable(self) -> bool:
        return not self.why_not


def judge_protectability(facts: DiskFacts) -> Protectability:
    what_is_replicated = "what is replicated is the whole block device"
    beneath = ", ".join(facts.disks_beneath)
    match facts.kind:
        case DiskKind.PARTITION:
            return Protectability(
                f"it is a partition; {what_is_replicated}", f"protect the whole disk {beneath} instead"
            )
        case DiskKind.VOLUME:
            return Protectability(f"it is an LVM volume; {what_is_replicated}", _protect_all(facts.disks_beneath))
        case DiskKind.ENCRYPTED:
            return Protectability(
                f"it is an opened encrypted volume; {what_is_replicated}",
                f"{_protect_all(facts.disks_beneath)}; the replica stays encrypted with the same key",
            )
        case DiskKind.RAID:
            return Protectability(f"it is a RAID array; {what_is_replicated}", _protect_all(facts.disks_beneath))
        case DiskKind.MAPPED:
            return Protectability(f"it is a mapped device; {what_is_replicated}", _protect_all(facts.disks_beneath))
        case DiskKind.MEMORY:
            return Protectability("it lives in memory and is gone after a restart", "leave it out")
        case DiskKind.REMOVABLE_MEDIUM:
            return Protectability("it is a removable medium", "leave it out")
        case DiskKind.DISK | DiskKind.LOOP | DiskKind.FILE | DiskKind.MULTIPATH:
            return _judge_whole_disk(facts)


def remedy_of_unreadable(code: int | None, *, is_root: bool) -> str:
    """What to do about a disk whose reading failed with errno ``code``; None if it was not the operating system's word."""
    if code in (errno.EPERM, errno.EACCES):
        if is_root:
            return (
                "even root may not: allow the device in the container or unit that this runs in (device control group, DeviceAllow=), "
                "or in the security module (SELinux, AppArmor)"
            )
        return "run this as root, or as a member of the group disk"
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
        return "attach the device or insert the medium, or leave it out"
    if code == errno.EBUSY:
        return "stop the program that holds it exclusively"
    if code in (errno.EIO, errno.EILSEQ, errno.ENODATA, errno.ETIMEDOUT):
        return "look for medium errors in the kernel's log"
    return "look for what the kernel's log says of the device, or leave it out"


def _judge_whole_disk(facts: DiskFacts) -> Protectability:
    if facts.unreadable:
        return Protectability(facts.unreadable, facts.unreadable_remedy)
    if facts.is_zoned:
        return Protectability("it is a zoned device", "copy its data to a conventional disk")
    if facts.size_bytes > MAX_DISK_BYTES:
        return Protectability(f"it is larger than {MAX_DISK_BYTES // 2**40} TiB", "split its data over smaller disks")
    if facts.size_bytes % BLOCK_BYTES or facts.size_bytes == 0:
        return Protectability(
            f"its size is not a multiple of {BLOCK_BYTES} bytes", f"extend the file to a multiple of {BLOCK_BYTES}"
        )
    if facts.signatures == ("swap",):
        return Protectability("it holds only swap space", "leave it out; make swap space on the target")
    notes = {
        "linux_raid_member": "it is a member of a RAID array: protect all members together",
        "LVM2_member": "it is part of an LVM volume group: protect all disks of the group together",
        "zfs_member": "it is part of a ZFS pool: protect all disks of the pool together; ZFS cannot be frozen",
        "bcache": "it is part of a bcache set: protect all its devices together",
    }
    return Protectability(note="; ".join(notes[name] for name in facts.signatures if name in notes))


def _protect_all(disks: tuple[str, ...]) -> str:
    if not disks:
        return "protect the disks beneath it instead"
    if len(disks) == 1:
        return f"protect the disk beneath it instead: {disks[0]}"
    return f"protect the disks beneath it instead, together: {', '.join(disks)}"
