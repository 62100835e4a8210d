"""Which disk this is, whatever it is called today: identifiers, the ``DiskId`` made of them, whether we know it. Pure.

Called by the listing and the inventory. A ``DiskId`` is a UUIDv5 in the namespace of the machine's id: stable across reboots and
renamed devices, different on a clone of the machine (rule R11: another machine id). It is made once: a disk that is protected keeps its
id, and is recognized by everything that is remembered of it (``compare``). For the strongest identifier of a disk without a serial
number is its partition table, and that is content: a copy has it too, and must neither take the id over nor take it away.
"""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from replication.identifiers import DiskId

STRENGTH: Final = ("file", "backing-file", "wwid", "serial", "volume", "partition-table", "path")
"""Strongest first. ``file``: real path of a plain file. ``backing-file``: of a loop device. ``volume``: device-mapper's or
MD's own id. ``partition-table``: GPT's GUID or the DOS signature. ``path``: the bus address, of disks that have nothing else
(VMware without disk.EnableUUID)."""
NAMING: Final = STRENGTH[: STRENGTH.index("partition-table")]
"""What names the disk itself, not what is on it nor where it is. No id is made of ``whole-disk``, which ``compare`` explains."""
_PROBE_ORDER: Final = (
    (re.compile(r"/block/[^/]+$"), ""),
    (re.compile(r"/host\d+/"), "/host/"),
    (re.compile(r"/target\d+:"), "/target:"),
    (re.compile(r"/\d+:(\d+:\d+:\d+)(?=/|$)"), r"/\1"),
    (re.compile(r"/virtio\d+(?=/|$)"), "/virtio"),
    (re.compile(r"/nvme\d+"), "/nvme"),
)
_WITHOUT_BUS: Final = "/devices/virtual/"


def strongest(identifiers: Mapping[str, str]) -> tuple[str, str]:
    """(kind, value) of the strongest identifier; ("path", "") if there is none at all."""
    return next(((kind, identifiers[kind]) for kind in STRENGTH if identifiers.get(kind)), ("path", ""))


def disk_id(machine_id: uuid.UUID, kind: str, value: str) -> DiskId:
    return DiskId(str(uuid.uuid5(machine_id, f"disk/{kind}/{value}")))


def disk_ids(machine_id: uuid.UUID, disks: Iterable[Mapping[str, str]]) -> list[DiskId]:
    """Ids of several disks of one machine. Disks that share their strongest identifier (copies of one image, say) are told
    apart by their path as well, all of them: so none of them takes the other's id when one is removed."""
    identifiers = list(disks)
    chosen = [strongest(each) for each in identifiers]
    return [
        disk_id(machine_id, kind, value if chosen.count((kind, value)) == 1 else f"{value}@{each.get('path', '')}")
        for each, (kind, value) in zip(identifiers, chosen, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """All that identified a disk when it was last seen."""

    identifiers: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0


class Likeness(enum.Enum):
    SAME = enum.auto()
    DOUBTFUL = enum.auto()
    """It has something of the disk, and something speaks against it: a copy, or a disk that was moved or changed."""
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class Comparison:
    """``reason``: a phrase for the operator; empty unless DOUBTFUL."""

    likeness: Likeness
    reason: str = ""


_SAME: Final = Comparison(Likeness.SAME)
_OTHER: Final = Comparison(Likeness.OTHER)


def place(path: str) -> str:
    """The bus address in a device's path in sysfs, without what depends on the order in which devices are found."""
    if _WITHOUT_BUS in path:
        return path
    for pattern, constant in _PROBE_ORDER:
        path = pattern.sub(constant, path)
    return path


def compare(known: DiskIdentity, found: DiskIdentity) -> Comparison:
    """Whether ``found`` is the ``known`` disk. The strongest name that both have decides; without one, table and place must agree.

    A disk without a table has the identifier of the file system or member that fills it in place of one (``whole-disk``). A disk that has
    neither is told by place and size alone, and a copy at the very place of a disk without a name by nothing: whatever could be read is
    content, of which a copy has the same, and which the disk itself may have changed while it was not tracked. That harms no replica:
    the kernel's disk sequence number ends the tracking of a disk that was taken away, so everything of what stands there is compared.
    """
    old, new = known.identifiers, found.identifiers
    tables = (old.get("partition-table", ""), new.get("partition-table", ""))
    same_table = tables[0] != "" and tables[0] == tables[1]
    for kind in NAMING:
        if old.get(kind) and new.get(kind):
            if old[kind] == new[kind]:
                return _SAME
            return (
                Comparison(Likeness.DOUBTFUL, f"its {kind} is {new[kind]}, not {old[kind]}") if same_table else _OTHER
            )
    names = [kind for kind in NAMING if old.get(kind)]
    if names:
        reason = f"it has the same partition table, but no {names[0]} to know it by ({old[names[0]]})"
        return Comparison(Likeness.DOUBTFUL, reason) if same_table else _OTHER
    if not any(tables):
        tables = (old.get("whole-disk", ""), new.get("whole-disk", ""))
        same_table = tables[0] != "" and tables[0] == tables[1]
    what = "partition table" if any(each.get("partition-table") for each in (old, new)) else "file system"
    same_place = bool(old.get("path")) and place(old["path"]) == place(new.get("path", ""))
    if same_place and (same_table or (not (tables[0] and tables[1]) and known.size_bytes == found.size_bytes)):
        return _SAME
    if same_place and tables[0] and tables[1]:
        return Comparison(Likeness.DOUBTFUL, f"it is at the same place, but its {what} is {tables[1]}, not {tables[0]}")
    if same_table:
        return Comparison(Likeness.DOUBTFUL, f"it has the same {what} at another place: a copy, or the disk was moved")
    return _OTHER


def merged(known: DiskIdentity | None, found: DiskIdentity) -> DiskIdentity:
    """What to remember: what could not be read this time is not forgotten."""
    if known is None:
        return found
    return DiskIdentity({**known.identifiers, **found.identifiers}, found.size_bytes)
