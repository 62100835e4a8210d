"""What is on a disk or partition, told by the signatures at its beginning and end. Pure: bytes in, names out.

Called by the listing, for the operator's eyes and for the decision whether a disk can be protected. A short list on purpose:
what a Linux server boots from and stores on. Names are those of blkid where it has one.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 256 * 1024
TAIL_BYTES: Final = 128 * 1024

_SIGNATURES: Final = (
    (0x438, b"\x53\xef", "ext"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"LUKS\xba\xbe", "crypto_LUKS"),
    (0x52, b"FAT32   ", "vfat"),
    (0x36, b"FAT1", "vfat"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (32769, b"CD001", "iso9660"),
    (4096, b"\xfc\x4e\x2b\xa9", "linux_raid_member"),
    (0, b"\xfc\x4e\x2b\xa9", "linux_raid_member"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"),
    (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
    (0, b"hsqs", "squashfs"),
)
_LVM_SECTORS: Final = 4
_UUIDS_AT: Final = {"ext": 0x468, "xfs": 32, "btrfs": 0x1010B, "swap": 1036}
"""Where a file system says which one it is; of btrfs its member's own, for all members share that of the file system."""
_MD_END_MAGIC: Final = b"\xfc\x4e\x2b\xa9"
_ZFS_UBERBLOCK: Final = struct.pack("<Q", 0x00BAB10C)
_MBR_MAGIC_AT: Final = 510
_MBR_ENTRY_AT: Final = 446
_MBR_PROTECTIVE: Final = 0xEE
_EFI_SYSTEM: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le


@dataclass(frozen=True, slots=True)
class Content:
    """``signatures`` of file systems and members; ``partition_table`` is "gpt", "dos" or empty, with its identifier.

    ``whole_disk_id``: of the file system or member that fills a disk without a partition table, where it has one that is known here.
    """

    signatures: tuple[str, ...] = ()
    partition_table: str = ""
    partition_table_id: str = ""
    has_efi_system: bool = False
    whole_disk_id: str = ""

    @property
    def is_empty(self) -> bool:
        return not self.signatures and not self.partition_table


def recognize(head: bytes, tail: bytes, logical_block_bytes: int) -> Content:
    """``head``: the first ``HEAD_BYTES`` (or all of a smaller disk); ``tail``: the last ``TAIL_BYTES``."""
    found = [name for at, magic, name in _SIGNATURES if head[at : at + len(magic)] == magic]
    if any(head[at : at + 8] == b"LABELONE" for at in range(0, _LVM_SECTORS * 512, 512)):
        found.append("LVM2_member")
    if _has_old_raid_superblock(tail):
        found.append("linux_raid_member")
    if any(head[at : at + 8] == _ZFS_UBERBLOCK for at in range(128 * 1024, len(head), 1024)):
        found.append("zfs_member")
    signatures = tuple(dict.fromkeys(found))
    gpt = head[logical_block_bytes : logical_block_bytes + 92]
    if gpt[:8] == b"EFI PART":
        identifier = str(uuid.UUID(bytes_le=bytes(gpt[56:72])))
        entries = head[2 * logical_block_bytes : 2 * logical_block_bytes + 128 * 128]
        types = {entries[at : at + 16] for at in range(0, len(entries), 128)}
        return Content(signatures, "gpt", identifier, _EFI_SYSTEM in types)
    if _has_dos_partitions(head) and not {"vfat", "ntfs", "exfat"} & set(signatures):
        return Content(signatures, "dos", head[440:444][::-1].hex(), has_efi_system=False)
    return Content(signatures, whole_disk_id=_whole_disk_id(head, signatures))


def _whole_disk_id(head: bytes, signatures: tuple[str, ...]) -> str:
    for name in signatures:
        if name == "LVM2_member":
            label = next(at for at in range(0, _LVM_SECTORS * 512, 512) if head[at : at + 8] == b"LABELONE")
            header = label + int.from_bytes(head[label + 20 : label + 24], "little")
            identifier = head[header : header + 32]
            return f"{name}:{identifier.decode('ascii')}" if identifier.isalnum() else ""
        if name in _UUIDS_AT and any(raw := head[_UUIDS_AT[name] : _UUIDS_AT[name] + 16]):
            return f"{name}:{raw.hex()}"
    return ""


def _has_dos_partitions(head: bytes) -> bool:
    """A boot sector of a FAT file system ends with the same magic; a table also has sane entries."""
    if head[_MBR_MAGIC_AT : _MBR_MAGIC_AT + 2] != b"\x55\xaa":
        return False
    entries = [head[at : at + 16] for at in range(_MBR_ENTRY_AT, _MBR_MAGIC_AT, 16)]
    used = [entry for entry in entries if len(entry) == 16 and entry[4] not in (0, _MBR_PROTECTIVE)]
    return bool(used) and all(entry[0] in (0, 0x80) for entry in used)


def _has_old_raid_superblock(tail: bytes) -> bool:
    """MD 1.0 lies 8 KiB from the end at least, on a 4 KiB border; MD 0.90 in the last whole 64 KiB but one."""
    return any(
        tail[len(tail) - distance : len(tail) - distance + 4] == _MD_END_MAGIC
        for distance in (*range(8 * 1024, 16 * 1024 + 1, 4096), *range(64 * 1024, min(len(tail), 128 * 1024) + 1, 4096))
        if distance <= len(tail)
    )
