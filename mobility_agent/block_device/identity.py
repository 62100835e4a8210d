"""Which disk this is, whatever it is called today: identifiers, and the ``DiskId`` made from the strongest. Pure.

Called by the listing. A ``DiskId`` is a UUIDv5 in the namespace of the machine's id: stable across reboots and renamed
devices, different on a clone (rule R11: another machine id). It changes when the strongest identifier changes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Final

from replication.identifiers import DiskId

STRENGTH: Final = ("file", "backing-file", "wwid", "serial", "volume", "partition-table", "path")
"""Strongest first. ``file``: real path of a plain file. ``backing-file``: of a loop device. ``volume``: device-mapper's or
MD's own id. ``partition-table``: GPT's GUID or the DOS signature. ``path``: the bus address, of disks that have nothing else
(VMware without disk.EnableUUID)."""


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
