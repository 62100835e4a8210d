"""The inventory that the agent reports: facts of the machine, its disks, and which change trackers work here.

Called by ``daemon`` (reported at start and then every few minutes) and ``cli`` (``mobility-agent disks``). Blocks: run in a thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mobility_agent.block_device.identity import DiskIdentity, Likeness, compare, disk_id, place, strongest
from mobility_agent.block_device.listing import DiskDescription, describe_disk, list_disks
from mobility_agent.block_device.machine_facts import MachineFacts
from mobility_agent.core.protectability import DiskKind, Protectability
from mobility_agent.tracker_choice import tracker_availability, trackers_for
from replication import __version__
from replication.control_plane import InventoryDisk, InventoryMount, MachineInventory, TrackerAvailability
from replication.errors import BlockferryError, Conflict, NotFound, Refused
from replication.identifiers import DiskId

REPLICABLE_KINDS: Final = frozenset({DiskKind.DISK, DiskKind.LOOP, DiskKind.FILE, DiskKind.MULTIPATH})
_ADOPT_HINT: Final = (
    "detach it if it is a copy; if it is the disk itself, moved or changed, run `mobility-agent adopt-disk DISK PATH`"
)
_TWIN_HINT: Final = (
    "detach the copy, or give it identifiers of its own (`sgdisk --disk-guid=R`); protect multipath devices whole"
)


@dataclass(frozen=True, slots=True)
class UnusableFile:
    """A configured plain file that cannot be offered as a disk, and why."""

    path: Path
    reason: str


def find_disks(
    facts: MachineFacts, files: Sequence[Path], known: Mapping[DiskId, DiskIdentity] | None = None
) -> tuple[list[DiskDescription], list[UnusableFile]]:
    """Block devices of this machine and the configured plain files. Those that are ``known`` have the id that they are known by; what
    cannot be told from another disk, or from a known one, is not protectable and has an id of its own.
    """
    found = list_disks(facts.machine_id)
    unusable = []
    for path in files:
        try:
            found.append(describe_disk(path, facts.machine_id))
        except (BlockferryError, OSError) as error:
            unusable.append(UnusableFile(path, str(error)))
    return _with_known_ids(found, facts, {} if known is None else known), unusable


def _with_known_ids(
    found: list[DiskDescription], facts: MachineFacts, known: Mapping[DiskId, DiskIdentity]
) -> list[DiskDescription]:
    recognized = {}
    for disk, identity in known.items():
        same = _same(identity, found)
        if len(same) == 1:
            recognized[same[0].path] = disk
    others = [each for each in found if each.path not in recognized]
    return [
        replace(each, disk=recognized[each.path])
        if each.path in recognized
        else _unknown(each, others, facts.machine_id, known)
        for each in found
    ]


def _unknown(
    disk: DiskDescription,
    others: list[DiskDescription],
    machine_id: uuid.UUID,
    known: Mapping[DiskId, DiskIdentity],
) -> DiskDescription:
    kind, value = strongest(disk.identifiers)
    if disk.disk in known:
        # A copy of a known disk must not get its id, whether or not the known one is there.
        disk = replace(disk, disk=disk_id(machine_id, kind, f"{value}@{disk.identifiers.get('path', '')}"))
    if disk.kind not in REPLICABLE_KINDS or not disk.protectability.is_protectable:
        return disk
    for other, identity in known.items():
        seen = compare(identity, _identity(disk))
        if seen.likeness is not Likeness.OTHER:
            why = (
                f"it cannot be told from the protected disk {other}: {seen.reason or 'both have the same identifiers'}"
            )
            return replace(disk, protectability=Protectability(why, _ADOPT_HINT))
    twins = [str(each.path) for each in others if each.path != disk.path and _is_twin(each, kind, value)]
    if twins:
        why = f"it cannot be told from {', '.join(twins)}: the same {kind} ({value})"
        return replace(disk, protectability=Protectability(why, _TWIN_HINT))
    return disk


def _is_twin(disk: DiskDescription, kind: str, value: str) -> bool:
    return disk.kind in REPLICABLE_KINDS and strongest(disk.identifiers) == (kind, value)


def _identity(disk: DiskDescription) -> DiskIdentity:
    return DiskIdentity(disk.identifiers, disk.size_bytes)


def _same(known: DiskIdentity, found: Iterable[DiskDescription]) -> list[DiskDescription]:
    """The disks that are the known one; of several with its name (paths to one disk, say) the one at its place, if it is the only one."""
    same = [
        each
        for each in found
        if each.kind in REPLICABLE_KINDS and compare(known, _identity(each)).likeness is Likeness.SAME
    ]
    at_home = place(known.identifiers.get("path", ""))
    at_its_place = [each for each in same if place(each.identifiers.get("path", "")) == at_home]
    return at_its_place if len(same) > 1 and len(at_its_place) == 1 else same


def locate_disk(
    disk: DiskId, facts: MachineFacts, files: Sequence[Path], known: Mapping[DiskId, DiskIdentity] | None = None
) -> DiskDescription:
    """Where a disk is now.

    :param known: what is remembered of protected disks; one that is not among them is found by the id that it would be given.
    :raises NotFound: if no device or configured file of this machine is it.
    :raises Refused: if one resembles it, and something speaks against it (R11).
    :raises Conflict: if it cannot be told from another.
    """
    known = {} if known is None else known
    disks, _ = find_disks(facts, files, known)
    identity = known.get(disk)
    if identity is not None:
        return _recognized(disk, identity, disks)
    for description in disks:
        if description.disk == disk:
            return description
    raise _not_found(disk)


def _recognized(disk: DiskId, identity: DiskIdentity, disks: list[DiskDescription]) -> DiskDescription:
    same = _same(identity, disks)
    if len(same) == 1:
        return same[0]
    if same:
        paths = ", ".join(str(each.path) for each in same)
        raise Conflict(
            f"cannot tell which of {paths} is the disk: all have its identifiers", disk=disk, hint=_TWIN_HINT
        )
    for description in disks:
        if description.kind in REPLICABLE_KINDS:
            seen = compare(identity, _identity(description))
            if seen.likeness is Likeness.DOUBTFUL:
                raise Refused(
                    f"cannot take {description.path} for the disk: {seen.reason}", disk=disk, hint=_ADOPT_HINT
                )
    raise _not_found(disk)


def _not_found(disk: DiskId) -> NotFound:
    return NotFound(
        "cannot find the disk on this machine",
        disk=disk,
        hint="attach it again, or stop its replication; plain files are listed under disk_files in the agent's configuration",
    )


def take_inventory(
    facts: MachineFacts, files: Sequence[Path], known: Mapping[DiskId, DiskIdentity] | None = None
) -> MachineInventory:
    """What the configuration server is told of this machine."""
    disks, _ = find_disks(facts, files, known)
    trackers = tracker_availability()
    return MachineInventory(
        hostname=facts.hostname,
        machine_fingerprint=facts.fingerprint,
        platform=facts.platform,
        operating_system=facts.operating_system,
        kernel=facts.kernel,
        architecture=facts.architecture,
        cpu_count=facts.cpu_count,
        memory_bytes=facts.memory_bytes,
        boot_type=facts.boot_type,
        addresses=facts.addresses,
        agent_version=__version__,
        clock_unix_ns=time.time_ns(),
        disks=[_inventory_disk(description, trackers) for description in disks],
        trackers=trackers,
    )


def _inventory_disk(description: DiskDescription, available: list[TrackerAvailability]) -> InventoryDisk:
    working = {tracker.kind for tracker in available if tracker.available}
    judged = description.protectability
    return InventoryDisk(
        disk=description.disk,
        path=str(description.path),
        size_bytes=description.size_bytes,
        logical_block_bytes=description.logical_block_bytes,
        kind=description.kind.value,
        model=description.model,
        serial=description.serial,
        rotational=description.is_rotational,
        content=[*description.contents, *(f"swap {path}" for path in description.swaps)],
        mounts=[
            InventoryMount(source=mount.source, mount_point=mount.mount_point, file_system=mount.fs_type)
            for mount in description.mounts
        ],
        identifiers=description.identifiers,
        trackers=[kind for kind in trackers_for(description.path) if kind in working],
        not_protectable=judged.why_not or None,
        remedy=judged.remedy or None,
    )
