"""The mount table's format: escapes, optional fields, sources that are devices, swap areas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobility_agent.block_device.mount_table import read_mounts, read_swaps

MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw,errors=remount-ro
40 27 8:17 / /srv/with\\040space\\134backslash rw - xfs /dev/nothing\\011here ro,attr2
41 27 0:44 /@home /home rw,noatime - btrfs /dev/null rw,subvol=/@home
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(MOUNTINFO)
    (tmp_path / "swaps").write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/swap\\040file  file\t1048572\t0\t-2\n"
    )
    return tmp_path


def test_mounts_are_read_in_their_order(proc: Path) -> None:
    mounts = read_mounts(proc)
    assert [mount.mount_point for mount in mounts] == ["/proc", "/", "/srv/with space\\backslash", "/home"]
    assert [mount.fs_type for mount in mounts] == ["proc", "ext4", "xfs", "btrfs"]
    assert mounts[1].device == (254, 0)
    assert mounts[1].source == "/dev/root"
    assert mounts[2].source == "/dev/nothing\there"


def test_a_read_only_superblock_is_told(proc: Path) -> None:
    assert [mount.is_read_only for mount in read_mounts(proc)] == [False, False, True, False]


def test_a_source_that_is_no_block_device_has_no_number(proc: Path) -> None:
    assert all(mount.source_device is None for mount in read_mounts(proc))


def test_swap_areas_are_read(proc: Path) -> None:
    assert read_swaps(proc) == [("/swap file", None)]


def test_this_machine_s_own_root_is_found() -> None:
    device = os.stat("/").st_dev
    roots = [mount for mount in read_mounts() if mount.mount_point == "/"]
    assert roots[-1].device == (os.major(device), os.minor(device)) or roots[-1].fs_type in ("btrfs", "overlay")
    assert isinstance(read_swaps(), list)
