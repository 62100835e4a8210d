"""What stands on what: partitions, volumes, arrays, btrfs over several devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobility_agent.block_device.device_tree import DeviceTree
from tests.harness.fake_sysfs import FakeSysfs

GIB = 2**30


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    sysfs = FakeSysfs(tmp_path)
    sysfs.add("sda", 10 * GIB)
    sysfs.add("sda1", GIB, partition_of="sda")
    sysfs.add("sda2", 9 * GIB, partition_of="sda")
    sysfs.add("sdb", 10 * GIB)
    sysfs.add("sdc", 10 * GIB)
    sysfs.add("md0", 9 * GIB)
    sysfs.add("dm-0", 5 * GIB, dm__name="vg-root")
    sysfs.stack("md0", "sda2", "sdb")
    sysfs.stack("dm-0", "md0")
    devices = tmp_path / "fs/btrfs/0f0e-1/devices"
    devices.mkdir(parents=True)
    for member in ("sdc", "dm-0"):
        (devices / member).symlink_to(tmp_path)
    return DeviceTree.read(tmp_path)


def names(nodes: object) -> set[str]:
    assert isinstance(nodes, list)
    return {node.name for node in nodes}


def test_all_that_stands_on_a_disk_is_found_however_far_up(tree: DeviceTree) -> None:
    assert names(tree.standing_on("sda")) == {"sda", "sda1", "sda2", "md0", "dm-0"}
    assert names(tree.standing_on("sdb")) == {"sdb", "md0", "dm-0"}
    assert names(tree.standing_on("sda1")) == {"sda1"}
    assert names(tree.standing_on("nothing")) == set()


def test_the_disks_beneath_are_whole_disks(tree: DeviceTree) -> None:
    assert names(tree.disks_beneath("dm-0")) == {"sda", "sdb"}
    assert names(tree.disks_beneath("sda1")) == {"sda"}
    assert names(tree.disks_beneath("sdc")) == {"sdc"}
    assert names(tree.disks_beneath("nothing")) == set()


def test_a_btrfs_lies_on_all_its_members(tree: DeviceTree) -> None:
    assert tree.sharing_btrfs({"sdc"}) == {"sdc", "dm-0"}
    assert tree.sharing_btrfs({"sda1"}) == {"sda1"}


def test_attributes_and_numbers_are_told(tree: DeviceTree) -> None:
    assert tree.nodes["dm-0"].attribute("dm/name") == "vg-root"
    assert tree.nodes["dm-0"].attribute("nothing") == ""
    found = tree.by_number(tree.nodes["sda2"].number)
    assert found is not None
    assert found.name == "sda2"
    assert tree.by_number((1, 1)) is None


def test_the_machine_s_own_devices_can_be_read() -> None:
    tree = DeviceTree.read()
    assert all(node.number[0] > 0 for node in tree.nodes.values())
