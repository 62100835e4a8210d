"""Who uses a disk: mounts that other mount namespaces keep, processes that have it open; from a /proc and a /sys made for the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobility_agent.block_device import usage
from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.mount_table import read_mounts
from mobility_agent.block_device.usage import mounts_elsewhere, mounts_on, open_by
from tests.harness.fake_sysfs import FakeSysfs

GIB = 2**30


class FakeProc:
    """Processes, each in a mount namespace with its own mounts: (device, mount point)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.add("self", "own", {})

    def add(self, process: str, namespace: str, mounts: dict[str, str], command: str = "program") -> Path:
        directory = self.root / process
        (directory / "ns").mkdir(parents=True)
        (directory / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (directory / "comm").write_text(command + "\n")
        lines = [f"20 1 {device} / {point} rw - ext4 /dev/none rw\n" for point, device in mounts.items()]
        (directory / "mountinfo").write_text("".join(lines))
        return directory


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    made = FakeSysfs(tmp_path / "sys")
    made.add("sda", 10 * GIB)
    made.add("sda1", 9 * GIB, partition_of="sda")
    made.add("sdb", 10 * GIB)
    return made


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def _device(sysfs: FakeSysfs, name: str) -> str:
    major, minor = sysfs.numbers[name]
    return f"{major}:{minor}"


def test_a_mount_in_another_namespace_is_named_with_its_oldest_process(sysfs: FakeSysfs, proc: FakeProc) -> None:
    tree, device = DeviceTree.read(sysfs.root), _device(sysfs, "sda1")
    proc.add("900", "container", {"/data": device}, "child")
    proc.add("80", "container", {"/data": device}, "runtime")
    proc.add("70", "own", {"/data": device}, "sees what we see")
    found = list(mounts_elsewhere(tree, "sda", proc.root))
    assert [(each.process_id, each.command, each.mount.mount_point) for each in found] == [(80, "runtime", "/data")]
    assert not list(mounts_elsewhere(tree, "sdb", proc.root))


def test_a_process_that_ends_meanwhile_or_is_hidden_is_passed_over(sysfs: FakeSysfs, proc: FakeProc) -> None:
    device = _device(sysfs, "sda")
    (proc.add("5", "gone", {}) / "mountinfo").unlink()
    (proc.add("6", "hidden", {"/x": device}) / "ns/mnt").unlink()
    proc.add("7", "there", {"/y": device})
    (proc.root / "meminfo").write_text("no process")
    found = list(mounts_elsewhere(DeviceTree.read(sysfs.root), "sda", proc.root))
    assert [each.process_id for each in found] == [7]


def test_no_more_than_so_many_namespaces_are_looked_at(
    sysfs: FakeSysfs, proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_NAMESPACES", 3)
    for number in range(1, 7):
        proc.add(str(number), f"namespace {number}", {"/data": _device(sysfs, "sda")})
    found = list(mounts_elsewhere(DeviceTree.read(sysfs.root), "sda", proc.root))
    assert [each.process_id for each in found] == [1, 2, 3]


def test_a_source_of_another_namespace_is_not_looked_up_outside_of_dev(
    sysfs: FakeSysfs, proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mobility_agent.block_device.mount_table.block_device_number", asked.append)
    directory = proc.add("9", "foreign", {})
    (directory / "mountinfo").write_text("1 0 0:5 / /a rw - fuse /srv/hangs rw\n2 0 0:6 / /b rw - btrfs /dev/sdz rw\n")
    assert not list(mounts_elsewhere(DeviceTree.read(sysfs.root), "sda", proc.root))
    assert asked == ["/dev/sdz"]


def test_mounts_on_a_disk_are_those_of_all_that_stands_on_it(sysfs: FakeSysfs, proc: FakeProc) -> None:
    tree = DeviceTree.read(sysfs.root)
    proc.add("4", "any", {"/one": _device(sysfs, "sda1"), "/other": _device(sysfs, "sdb")})
    mounts = read_mounts(proc.root, "4")
    assert [mount.mount_point for mount in mounts_on(tree, "sda", mounts)] == ["/one"]


def test_processes_that_have_a_file_open_are_named_and_whether_they_may_write(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")
    proc = tmp_path / "proc"
    for process, flags in (("11", "0100002"), ("12", "0100000"), (str(os.getpid()), "0100002")):
        (proc / process / "fd").mkdir(parents=True)
        (proc / process / "fdinfo").mkdir()
        (proc / process / "fd/3").symlink_to(disk)
        (proc / process / "fdinfo/3").write_text(f"pos:\t0\nflags:\t{flags}\n")
        (proc / process / "comm").write_text("editor\n")
    (proc / "13").mkdir()
    assert [(each.process_id, each.command, each.writes) for each in open_by(disk, proc)] == [
        (11, "editor", True),
        (12, "editor", False),
    ]
