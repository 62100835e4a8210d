"""The inventory: configured files beside the devices, why something is not protectable, and where a disk is now."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mobility_agent import inventory
from mobility_agent.block_device.listing import DiskDescription
from mobility_agent.block_device.machine_facts import MachineFacts, read_machine_facts
from mobility_agent.block_device.mount_table import MountEntry
from mobility_agent.core.protectability import DiskKind, Protectability
from mobility_agent.inventory import find_disks, locate_disk, take_inventory
from replication.control_plane import TrackerAvailability
from replication.errors import NotFound
from replication.identifiers import DiskId

DEVICE = DiskId("22222222-2222-4222-8222-222222222222")


@pytest.fixture
def facts(tmp_path: Path) -> MachineFacts:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    return read_machine_facts(tmp_path)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> DiskDescription:
    device = DiskDescription(
        disk=DEVICE,
        path=Path("/dev/sdx"),
        kind=DiskKind.DISK,
        size_bytes=2**30,
        logical_block_bytes=512,
        is_rotational=True,
        is_read_only=False,
        model="MODEL",
        serial="SERIAL",
        identifiers={"wwid": "w"},
        contents=["ext"],
        mounts=[MountEntry("/srv", "ext4", "/dev/sdx", (8, 1), None, is_read_only=False)],
        swaps=["/dev/sdx2"],
        protectability=Protectability(why_not="it is read-only", remedy="make it writable"),
    )
    monkeypatch.setattr(inventory, "list_disks", lambda _: [device])
    return device


def test_plain_files_are_offered_beside_the_devices_and_unusable_ones_are_named(
    facts: MachineFacts, tmp_path: Path
) -> None:
    good, missing = tmp_path / "disk.img", tmp_path / "missing.img"
    good.write_bytes(bytes(4096))
    disks, unusable = find_disks(facts, [good, missing])
    assert [disk.path for disk in disks] == [Path("/dev/sdx"), good]
    assert [each.path for each in unusable] == [missing]
    assert "cannot find" in unusable[0].reason


def test_a_disk_is_located_by_its_identity(facts: MachineFacts, tmp_path: Path) -> None:
    good = tmp_path / "disk.img"
    good.write_bytes(bytes(4096))
    disks, _ = find_disks(facts, [good])
    assert locate_disk(DEVICE, facts, [good]).path == Path("/dev/sdx")
    assert locate_disk(disks[1].disk, facts, [good]).path == good
    with pytest.raises(NotFound) as raised:
        locate_disk(DiskId(str(uuid.uuid4())), facts, [good])
    assert raised.value.hint is not None
    assert "disk_files" in raised.value.hint


def test_the_inventory_tells_what_is_on_a_disk_and_why_it_cannot_be_protected(
    facts: MachineFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = [
        TrackerAvailability(kind="ebpf", available=False, reason="too old"),
        TrackerAvailability(kind="scan", available=True),
    ]
    monkeypatch.setattr(inventory, "tracker_availability", lambda: available)
    monkeypatch.setattr(inventory, "trackers_for", lambda _: ["ebpf", "scan"])
    told = take_inventory(facts, [])
    (disk,) = told.disks
    assert disk.content == ["ext", "swap /dev/sdx2"]
    assert (disk.not_protectable, disk.remedy) == ("it is read-only", "make it writable")
    assert [(mount.mount_point, mount.file_system) for mount in disk.mounts] == [("/srv", "ext4")]
    assert disk.trackers == ["scan"], "what does not work on this machine is not offered"
    assert told.trackers == available
    assert told.machine_fingerprint == facts.fingerprint
