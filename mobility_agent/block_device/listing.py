"""The disks of this machine: what they are, what is on them, and whether they can be protected. Reads /sys, /proc, /dev.

Called by ``mobility-agent disks``, the inventory and the pre-check. Needs no lsblk, blkid or udev. Without the privilege to
read a device its content stays unknown; everything else is told.
"""

from __future__ import annotations

import os
import stat
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mobility_agent.block_device.content import HEAD_BYTES, TAIL_BYTES, Content, recognize
from mobility_agent.block_device.device_tree import DeviceNode, DeviceTree
from mobility_agent.block_device.identity import disk_ids
from mobility_agent.block_device.mount_table import MountEntry, read_mounts, read_swaps
from mobility_agent.block_device.reader import DiskReader
from mobility_agent.block_device.usage import mounts_on
from mobility_agent.core.protectability import (
    DiskFacts,
    DiskKind,
    Protectability,
    judge_protectability,
    remedy_of_unreadable,
)
from replication.errors import BlockferryError, InvalidInput, NotFound
from replication.extents import BLOCK_BYTES, Extent
from replication.identifiers import DiskId

_SYSFS: Final = Path("/sys")
_DEV: Final = Path("/dev")
_SECTOR_BYTES: Final = 512
_SCSI_CDROM: Final = "5"


@dataclass(frozen=True, slots=True)
class DiskDescription:
    """One disk, partition or volume as the operator is shown it.

    ``contents`` are phrases such as "gpt partition table", "ext", "LVM2_member on vda2"; ``swaps`` paths in use.
    """

    disk: DiskId
    path: Path
    kind: DiskKind
    size_bytes: int
    logical_block_bytes: int
    is_rotational: bool
    is_read_only: bool
    model: str
    serial: str
    identifiers: dict[str, str]
    contents: list[str]
    mounts: list[MountEntry]
    swaps: list[str] = field(default_factory=list)
    protectability: Protectability = field(default_factory=Protectability)


@dataclass(frozen=True, slots=True)
class _Look:
    """What reading the ends of a device showed; ``unreadable`` says why nothing, ``remedy`` what to do."""

    content: Content = field(default_factory=Content)
    unreadable: str = ""
    remedy: str = ""


_UNSEEN: Final = _Look()


def list_disks(machine_id: uuid.UUID, sysfs: Path = _SYSFS, dev: Path = _DEV) -> list[DiskDescription]:
    """Every block device that has a size, partitions and volumes included; hidden and unused ones left out."""
    tree = DeviceTree.read(sysfs)
    mounts, swaps = read_mounts(), read_swaps()
    nodes = [node for node in tree.nodes.values() if _size(node) > 0 and node.attribute("hidden") != "1"]
    looks = {node.name: _look_at(dev / node.name, node) for node in nodes}
    described = [_describe(tree, node, looks, mounts, swaps, dev) for node in nodes]
    ids = disk_ids(machine_id, [each.identifiers for each in described])
    return [replace(each, disk=disk) for each, disk in zip(described, ids, strict=True)]


def describe_disk(path: Path, machine_id: uuid.UUID) -> DiskDescription:
    """The description of one disk: a block device from the listing, or a plain file.

    :raises NotFound: if there is none at ``path``.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise NotFound(f"cannot find the disk {path}") from None
    if stat.S_ISREG(found.st_mode):
        return _describe_file(path, machine_id)
    real = Path(os.path.realpath(path))
    for description in list_disks(machine_id):
        if description.path == real:
            return description
    raise NotFound(f"cannot find the disk {path}: it is no block device that has a size")


def _describe_file(path: Path, machine_id: uuid.UUID) -> DiskDescription:
    real = Path(os.path.realpath(path))
    with DiskReader(real) as reader:
        content = _recognize(reader)
        size_bytes = reader.size_bytes
    identifiers = {"file": str(real)}
    facts = DiskFacts(str(real), DiskKind.FILE, size_bytes, tuple(content.signatures))
    return DiskDescription(
        disk=disk_ids(machine_id, [identifiers])[0],
        path=real,
        kind=DiskKind.FILE,
        size_bytes=size_bytes,
        logical_block_bytes=BLOCK_BYTES,
        is_rotational=False,
        is_read_only=not os.access(real, os.W_OK),
        model="",
        serial="",
        identifiers=identifiers,
        contents=_phrases(content),
        mounts=[],
        protectability=judge_protectability(facts),
    )


def _describe(
    tree: DeviceTree,
    node: DeviceNode,
    looks: dict[str, _Look],
    mounts: list[MountEntry],
    swaps: list[tuple[str, tuple[int, int] | None]],
    dev: Path,
) -> DiskDescription:
    kind = _kind(node)
    whole = tree.nodes.get(node.parent or "", node)
    content = looks[node.name].content
    above = tree.standing_on(node.name)
    numbers = {each.number for each in above}
    swaps_here = [path for path, number in swaps if number in numbers]
    phrases = _phrases(content)
    for partition in tree.partitions(node.name):
        phrases += [f"{name} on {partition.name}" for name in looks.get(partition.name, _UNSEEN).content.signatures]
    signatures = list(content.signatures)
    if not signatures and len(tree.partitions(node.name)) == 1:
        signatures = list(looks.get(tree.partitions(node.name)[0].name, _UNSEEN).content.signatures)
    facts = DiskFacts(
        path=str(dev / node.name),
        kind=kind,
        size_bytes=_size(node),
        signatures=tuple(signatures),
        disks_beneath=tuple(str(dev / disk.name) for disk in tree.disks_beneath(node.name)),
        is_zoned=whole.attribute("queue/zoned") not in ("", "none"),
        unreadable=looks[node.name].unreadable,
        unreadable_remedy=looks[node.name].remedy,
    )
    return DiskDescription(
        disk=DiskId(""),
        path=dev / node.name,
        kind=kind,
        size_bytes=facts.size_bytes,
        logical_block_bytes=int(whole.attribute("queue/logical_block_size") or BLOCK_BYTES),
        is_rotational=whole.attribute("queue/rotational") == "1",
        is_read_only=node.attribute("ro") == "1",
        model=_model(whole),
        serial=_serial(whole),
        identifiers=_identifiers(node, content),
        contents=phrases,
        mounts=mounts_on(tree, node.name, mounts),
        swaps=swaps_here,
        protectability=judge_protectability(facts),
    )


def _size(node: DeviceNode) -> int:
    return int(node.attribute("size") or 0) * _SECTOR_BYTES


def _kind(node: DeviceNode) -> DiskKind:
    if node.parent is not None:
        return DiskKind.PARTITION
    prefixes = (("loop", DiskKind.LOOP), ("md", DiskKind.RAID), ("zram", DiskKind.MEMORY), ("ram", DiskKind.MEMORY))
    for prefix, kind in prefixes:
        if node.name.startswith(prefix) and node.name.removeprefix(prefix)[:1].isdigit():
            return kind
    if node.name.startswith("dm-"):
        mapped = node.attribute("dm/uuid").partition("-")[0]
        kinds = {"LVM": DiskKind.VOLUME, "CRYPT": DiskKind.ENCRYPTED, "mpath": DiskKind.MULTIPATH}
        return kinds.get(mapped, DiskKind.MAPPED)
    if node.attribute("device/type") == _SCSI_CDROM or node.name.startswith(("sr", "fd")):
        return DiskKind.REMOVABLE_MEDIUM
    return DiskKind.DISK


def _model(node: DeviceNode) -> str:
    """Vendor and model; of virtio devices the vendor is a bare PCI number."""
    words = [node.attribute("device/vendor"), node.attribute("device/model")]
    return " ".join(word for word in words if word and not word.startswith("0x"))


def _serial(node: DeviceNode) -> str:
    for attribute in ("serial", "device/serial"):
        if text := node.attribute(attribute):
            return text
    page = node.directory / "device/vpd_pg80"
    try:
        raw = page.read_bytes()
    except OSError:
        return ""
    return raw[4 : 4 + raw[3]].decode("ascii", errors="replace").strip(" \0") if len(raw) > 4 else ""


def _identifiers(node: DeviceNode, content: Content) -> dict[str, str]:
    backing = node.attribute("loop/backing_file")
    partition_table = f"{content.partition_table}:{content.partition_table_id}" if content.partition_table else ""
    found = {
        "backing-file": backing and f"{backing}+{node.attribute('loop/offset')}",
        "wwid": node.attribute("wwid") or node.attribute("device/wwid"),
        "serial": _serial(node),
        "volume": node.attribute("dm/uuid") or node.attribute("md/uuid"),
        "partition-table": partition_table,
        "whole-disk": content.whole_disk_id,
        "path": str(node.directory),
    }
    return {kind: value for kind, value in found.items() if value}


def _look_at(path: Path, node: DeviceNode) -> _Look:
    """A device that cannot be read (no privilege, no medium) is listed with the reason."""
    if _kind(node) is DiskKind.REMOVABLE_MEDIUM:
        return _UNSEEN
    try:
        with DiskReader(path) as reader:
            return _Look(_recognize(reader))
    except BlockferryError as error:
        cause = error.__cause__ or error.__context__
        return _unreadable(error.message, cause.errno if isinstance(cause, OSError) else None)
    except OSError as error:
        return _unreadable(f"cannot read {path}: {error.strerror}", error.errno)


def _unreadable(reason: str, code: int | None) -> _Look:
    return _Look(unreadable=reason, remedy=remedy_of_unreadable(code, is_root=os.geteuid() == 0))


def _recognize(reader: DiskReader) -> Content:
    size_bytes = reader.size_bytes // BLOCK_BYTES * BLOCK_BYTES
    if not size_bytes:
        raise InvalidInput(f"cannot use {reader.path} as a disk: it is empty")
    head = bytearray(min(HEAD_BYTES, size_bytes))
    tail = bytearray(min(TAIL_BYTES, size_bytes))
    reader.read_into(memoryview(head), Extent(0, len(head)))
    reader.read_into(memoryview(tail), Extent(size_bytes - len(tail), len(tail)))
    return recognize(bytes(head), bytes(tail), max(reader.alignment_bytes, BLOCK_BYTES))


def _phrases(content: Content) -> list[str]:
    table = f"{content.partition_table} partition table" if content.partition_table else ""
    efi = "EFI system partition" if content.has_efi_system else ""
    return [phrase for phrase in (table, efi, *content.signatures) if phrase]
