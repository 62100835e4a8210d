"""The disks of a server as ``lsblk -P`` lists them: which there are, what is on them, and whether they could be protected. Pure.

Called by ``probe_output.py``. Every version of lsblk since 2012 prints pairs (``NAME="sda" TYPE="disk" …``), JSON only later ones;
a device that stands on several (LVM, RAID) has a line for each of them. Where there is no lsblk, /sys has told the disks' sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from replication.control_plane import InventoryMount
from replication.errors import PeerProtocolError
from replication.extents import BLOCK_BYTES, MAX_DISK_BYTES
from replication.remote_access import MAX_DISKS, DiscoveredDisk

MAX_MESSAGE: Final = 80
_HINT: Final = "log in with ssh and see what the login shell prints, and whether sh, sed and head work there"
_PAIR: Final = re.compile(r'\s*([A-Z][A-Z_:%-]{0,19})="([^"]{0,1000})"')
_ESCAPE: Final = re.compile(r"\\x([0-9a-fA-F]{2})")
_EFI_SYSTEM: Final = frozenset({"c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"})
_LEFT_OUT: Final = re.compile(r"(loop|ram|zram|sr|fd|md|dm-)[0-9]")
_MAX_DEPTH: Final = 32
_NOTES: Final = {"ext2": "ext", "ext3": "ext", "ext4": "ext"}
"""The agent reads superblocks and does not tell these apart; the two lists of a server shall look alike."""


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """Of /sys/block/NAME. ``makes_requests``: its driver is one of those that the eBPF tracker sees."""

    iostats: bool | None
    zoned: bool
    makes_requests: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Device:
    """A line of lsblk; ``parents`` by kernel name."""

    name: str
    kernel_name: str
    parents: frozenset[str]
    kind: str
    size_bytes: int
    file_system: str
    mount_point: str
    rotational: bool
    block_bytes: int
    model: str
    serial: str
    partition_table: str
    partition_type: str


def parse_number(text: str, what: str, most: int) -> int:
    """:raises PeerProtocolError: unless it is a decimal number from 0 to ``most``."""
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) > most:
        raise malformed(f"{what} is {text[:MAX_MESSAGE]!r}, no number up to {most}")
    return int(text)


def malformed(what: str) -> PeerProtocolError:
    return PeerProtocolError(f"cannot use what the server's probe printed: {what}", hint=_HINT)


def disks_of(lines: Sequence[str], queues: Mapping[str, QueueFacts]) -> list[DiscoveredDisk]:
    """Whole disks, in the order of the listing.

    :raises PeerProtocolError: for a line that lsblk does not print, or more than ``MAX_DISKS`` disks.
    """
    devices = _devices(lines)
    children = _children(devices.values())
    paths = {
        each.kernel_name: each for each in devices.values() if each.kind == "mpath" and each.name
    }  # multipath maps are disks; the paths beneath them are not
    beneath = {parent for each in paths.values() for parent in each.parents}
    found = [
        _disk(each, children, queues.get(each.kernel_name))
        for each in devices.values()
        if each.kind == "mpath"
        or (
            each.kind == "disk"
            and each.kernel_name not in beneath
            and each.size_bytes > 0
            and not _LEFT_OUT.match(each.kernel_name)
        )
    ]
    if not devices:
        found = [
            DiscoveredDisk(
                path=f"/dev/{name}",
                size_bytes=queue.size_bytes,
                iostats=queue.iostats,
                makes_requests=queue.makes_requests,
            )
            for name, queue in queues.items()
            if queue.size_bytes and not _LEFT_OUT.match(name)
        ]
    if len(found) > MAX_DISKS:
        raise malformed(f"more than {MAX_DISKS} disks")
    return found


def _devices(lines: Iterable[str]) -> dict[str, _Device]:
    found: dict[str, _Device] = {}
    for line in lines:
        device = _device(line)
        known = found.get(device.kernel_name)
        if known is None:
            found[device.kernel_name] = device
        else:
            found[device.kernel_name] = _with_parents(known, device.parents)
    return found


def _with_parents(device: _Device, more: frozenset[str]) -> _Device:
    values = {name: getattr(device, name) for name in device.__slots__}
    return _Device(**{**values, "parents": device.parents | more})


def _device(line: str) -> _Device:
    values: dict[str, str] = {}
    at = 0
    while match := _PAIR.match(line, at):
        values[match[1].replace("_", "-")] = _unescaped(match[2])
        at = match.end()
    if line[at:].strip() or not values.get("KNAME") or "/" in values["KNAME"]:
        raise malformed(f"block is {line[:MAX_MESSAGE]!r}")
    parent = values.get("PKNAME", "")
    return _Device(
        name=values.get("NAME", ""),
        kernel_name=values["KNAME"],
        parents=frozenset({parent} if parent else ()),
        kind=values.get("TYPE", ""),
        size_bytes=parse_number(values.get("SIZE", "") or "0", "a disk's size", 2**56),
        file_system=values.get("FSTYPE", ""),
        mount_point=values.get("MOUNTPOINT", ""),
        rotational=values.get("ROTA") == "1",
        block_bytes=parse_number(values.get("LOG-SEC", "") or str(BLOCK_BYTES), "a disk's block size", 2**20),
        model=values.get("MODEL", "").strip(),
        serial=values.get("SERIAL", "").strip(),
        partition_table=values.get("PTTYPE", ""),
        partition_type=values.get("PARTTYPE", "").lower(),
    )


def _unescaped(text: str) -> str:
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    return "".join(sign if sign.isprintable() else " " for sign in plain)


def _children(devices: Iterable[_Device]) -> dict[str, list[_Device]]:
    found: dict[str, list[_Device]] = {}
    for device in devices:
        for parent in device.parents:
            found.setdefault(parent, []).append(device)
    return found


def _standing_on(device: _Device, children: Mapping[str, list[_Device]]) -> list[_Device]:
    """Everything above a device, itself first; a listing that goes in circles ends as well."""
    found, names, depth = [device], {device.kernel_name}, 0
    layer = [device]
    while layer and depth < _MAX_DEPTH:
        layer = [
            child for each in layer for child in children.get(each.kernel_name, []) if child.kernel_name not in names
        ]
        layer = list({child.kernel_name: child for child in layer}.values())
        names |= {child.kernel_name for child in layer}
        found += layer
        depth += 1
    return found


def _disk(device: _Device, children: Mapping[str, list[_Device]], queue: QueueFacts | None) -> DiscoveredDisk:
    above = _standing_on(device, children)
    why_not, remedy = _judge(device, above, queue)
    multipath = device.kind == "mpath"
    return DiscoveredDisk(
        path=f"/dev/mapper/{device.name}" if multipath else f"/dev/{device.kernel_name}",
        size_bytes=device.size_bytes,
        logical_block_bytes=device.block_bytes,
        kind="multipath" if multipath else "disk",
        model=device.model,
        serial=device.serial,
        rotational=device.rotational,
        iostats=None if queue is None else queue.iostats,
        makes_requests=queue is None or queue.makes_requests,
        content=_content(device, above)[:MAX_DISKS],
        mounts=[
            InventoryMount(source=_path(each), mount_point=each.mount_point, file_system=each.file_system or "unknown")
            for each in above
            if each.mount_point.startswith("/")
        ][:MAX_DISKS],
        not_protectable=why_not,
        remedy=remedy,
    )


def _path(device: _Device) -> str:
    return f"/dev/{device.kernel_name}" if device.kind in ("disk", "part") else f"/dev/mapper/{device.name}"


def _content(device: _Device, above: Sequence[_Device]) -> list[str]:
    table = device.partition_table or next(
        (each.partition_table for each in above[1:] if each.kind == "part" and each.partition_table), ""
    )
    found = [f"{table} partition table"] if table else []
    if any(_is_efi_system(each) for each in above):
        found.append("EFI system partition")
    for each in above:
        if each.file_system:
            name = _NOTES.get(each.file_system, each.file_system)
            found.append(name if each is device else f"{name} on {each.name or each.kernel_name}")
    return found


def _is_efi_system(device: _Device) -> bool:
    """By its type, or, where an old lsblk does not tell it, by where it is mounted."""
    return device.partition_type in _EFI_SYSTEM or (device.file_system == "vfat" and device.mount_point == "/boot/efi")


def _judge(device: _Device, above: Sequence[_Device], queue: QueueFacts | None) -> tuple[str, str] | tuple[None, None]:
    """Why a disk cannot be protected and what to do, as the agent would judge (``mobility_agent/core/protectability.py``)."""
    if queue is not None and queue.zoned:
        return "it is a zoned device", "copy its data to a conventional disk"
    if device.size_bytes > MAX_DISK_BYTES:
        return f"it is larger than {MAX_DISK_BYTES // 2**40} TiB", "split its data over smaller disks"
    if device.size_bytes % BLOCK_BYTES:
        return f"its size is not a multiple of {BLOCK_BYTES} bytes", "leave it out"
    leaves = [each.file_system for each in above if each.file_system]
    if leaves == ["swap"] and len(above) <= 2:
        return "it holds only swap space", "leave it out; make swap space on the target"
    return None, None
