"""The inventory that the agent reports: facts of the machine, its disks, and which change trackers work here.

Called by ``daemon`` (reported at start and then every few minutes) and ``cli`` (``mobility-agent disks``). Blocks: run in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobility_agent.block_device.listing import DiskDescription, describe_disk, list_disks
from mobility_agent.block_device.machine_facts import MachineFacts
from mobility_agent.tracker_choice import tracker_availability, trackers_for
from replication import __version__
from replication.control_plane import InventoryDisk, InventoryMount, MachineInventory, TrackerAvailability
from replication.errors import BlockferryError, NotFound
from replication.identifiers import DiskId


@dataclass(frozen=True, slots=True)
class UnusableFile:
    """A configured plain file that cannot be offered as a disk, and why."""

    path: Path
    reason: str


def find_disks(facts: MachineFacts, files: Sequence[Path]) -> tuple[list[DiskDescription], list[UnusableFile]]:
    """Block devices of this machine and the configured plain files."""
    found = list_disks(facts.machine_id)
    unusable = []
    for path in files:
        try:
            found.append(describe_disk(path, facts.machine_id))
        except (BlockferryError, OSError) as error:
            unusable.append(UnusableFile(path, str(error)))
    return found, unusable


def locate_disk(disk: DiskId, facts: MachineFacts, files: Sequence[Path]) -> DiskDescription:
    """Where a disk is now.

    :raises NotFound: if no device or configured file of this machine is it.
    """
    disks, _ = find_disks(facts, files)
    for description in disks:
        if description.disk == disk:
            return description
    raise NotFound(
        "cannot find the disk on this machine",
        disk=disk,
        hint="attach it again, or stop its replication; plain files are listed under disk_files in the agent's configuration",
    )


def take_inventory(facts: MachineFacts, files: Sequence[Path]) -> MachineInventory:
    """What the configuration server is told of this machine."""
    disks, _ = find_disks(facts, files)
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
