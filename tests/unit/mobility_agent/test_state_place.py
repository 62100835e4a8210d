"""Whether the agent's state lies on a disk: by the deepest mount point above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobility_agent import state_place
from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.mount_table import MountEntry
from mobility_agent.state_place import lies_on
from tests.harness.fake_sysfs import FakeSysfs


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root on sda1, ``var`` on sdb; the root directory of this view."""
    sysfs, root = FakeSysfs(tmp_path / "sys"), tmp_path / "root"
    sysfs.add("sda", 2**30)
    sysfs.add("sda1", 2**29, partition_of="sda")
    sysfs.add("sdb", 2**30)
    (root / "var/lib").mkdir(parents=True)
    (root / "variable").mkdir()

    def entry(point: Path, device: str) -> MountEntry:
        return MountEntry(str(point), "ext4", f"/dev/{device}", sysfs.numbers[device], None, is_read_only=False)

    mounts = [entry(root, "sda1"), entry(root / "var", "sdb")]
    tree = DeviceTree.read(sysfs.root)
    monkeypatch.setattr(state_place, "read_mounts", lambda: mounts)
    monkeypatch.setattr(DeviceTree, "read", lambda: tree)
    return root


@pytest.mark.parametrize(
    ("directory", "disk"), [("var/lib", "sdb"), ("var", "sdb"), ("variable", "sda"), ("not/made/yet", "sda")]
)
def test_the_deepest_mount_decides(machine: Path, directory: str, disk: str) -> None:
    for other in ("sda", "sdb"):
        assert lies_on(machine / directory, Path("/dev") / other) == (other == disk)


def test_a_symbolic_link_is_followed(machine: Path) -> None:
    (machine / "state").symlink_to(machine / "var/lib")
    assert lies_on(machine / "state", Path("/dev/sdb"))


def test_a_plain_file_as_a_disk_holds_nothing(machine: Path, tmp_path: Path) -> None:
    assert not lies_on(machine, tmp_path / "disk.img")
