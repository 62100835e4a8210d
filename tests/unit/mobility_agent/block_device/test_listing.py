"""The listing: kinds, identifiers, contents and reasons of the disks of a made-up machine. Files stand for the devices."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

import pytest

from mobility_agent.block_device.listing import DiskDescription, describe_disk, list_disks
from mobility_agent.core.protectability import DiskKind
from replication.errors import InvalidInput, NotFound
from tests.harness.fake_sysfs import FakeSysfs

MACHINE = uuid.UUID("3d1219c7-c4c5-404a-aa1f-6d2a48adfda4")
MIB = 2**20
LVM = (512, b"LABELONE")
SWAP = (4086, b"SWAPSPACE2")
XFS = (0, b"XFSB")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, DiskDescription]:
    sysfs = FakeSysfs(tmp_path / "sys")
    dev = tmp_path / "dev"
    dev.mkdir()

    def device(name: str, *signatures: tuple[int, bytes]) -> None:
        content = bytearray(MIB)
        for at, magic in signatures:
            content[at : at + len(magic)] = magic
        (dev / name).write_bytes(content)

    sysfs.add(
        "sda", MIB, device__vendor="ATA", device__model="QEMU HARDDISK", device__wwid="t10.W1", queue__rotational="1"
    )
    device("sda")
    sysfs.add("sda1", MIB, partition_of="sda")
    device("sda1", XFS)
    sysfs.add("sda2", MIB, partition_of="sda")
    device("sda2", LVM)
    sysfs.add("vdb", MIB, serial="S2", device__vendor="0x1af4")
    device("vdb", SWAP)
    sysfs.add("sdd", MIB, queue__logical_block_size="4096")
    sysfs.add("dm-0", MIB, dm__name="vg-root", dm__uuid="LVM-abc")
    device("dm-0", XFS)
    sysfs.stack("dm-0", "sda2")
    sysfs.add("dm-1", MIB, dm__uuid="CRYPT-LUKS2-x")
    device("dm-1")
    sysfs.add("dm-2", MIB, dm__uuid="mpath-y")
    device("dm-2")
    sysfs.add("md0", MIB, md__uuid="m0")
    device("md0")
    sysfs.add("loop0", MIB, loop__backing_file="/srv/disk.img", loop__offset="0")
    device("loop0")
    sysfs.add("loop1", 0)
    sysfs.add("zram0", MIB)
    device("zram0")
    sysfs.add("sr0", MIB, device__type="5")
    sysfs.add("nvme0c0n1", MIB, hidden="1")
    return {description.path.name: description for description in list_disks(MACHINE, tmp_path / "sys", dev)}


def test_unused_and_hidden_devices_are_left_out(machine: dict[str, DiskDescription]) -> None:
    assert set(machine) == {
        *("sda", "sda1", "sda2", "vdb", "sdd", "dm-0", "dm-1", "dm-2", "md0", "loop0", "zram0", "sr0"),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sda", DiskKind.DISK),
        ("sda1", DiskKind.PARTITION),
        ("dm-0", DiskKind.VOLUME),
        ("dm-1", DiskKind.ENCRYPTED),
        ("dm-2", DiskKind.MULTIPATH),
        ("md0", DiskKind.RAID),
        ("loop0", DiskKind.LOOP),
        ("zram0", DiskKind.MEMORY),
        ("sr0", DiskKind.REMOVABLE_MEDIUM),
    ],
)
def test_kinds_are_told(machine: dict[str, DiskDescription], name: str, kind: DiskKind) -> None:
    assert machine[name].kind is kind


def test_a_disk_is_described(machine: dict[str, DiskDescription]) -> None:
    disk = machine["sda"]
    assert disk.size_bytes == MIB
    assert disk.model == "ATA QEMU HARDDISK"
    assert disk.is_rotational
    assert disk.identifiers["wwid"] == "t10.W1"
    assert disk.contents == ["xfs on sda1", "LVM2_member on sda2"]
    assert disk.protectability.is_protectable
    assert machine["vdb"].serial == "S2"
    assert machine["vdb"].model == ""


def test_reasons_name_the_disks_beneath(machine: dict[str, DiskDescription]) -> None:
    assert machine["dm-0"].protectability.remedy.endswith("dev/sda")
    assert "sda" in machine["sda1"].protectability.remedy
    assert "swap" in machine["vdb"].protectability.why_not


def test_an_unreadable_disk_is_listed_with_the_reason(machine: dict[str, DiskDescription]) -> None:
    assert machine["sdd"].logical_block_bytes == 4096
    assert "cannot open" in machine["sdd"].protectability.why_not


def test_every_disk_has_an_id_of_its_own(machine: dict[str, DiskDescription]) -> None:
    assert len({description.disk for description in machine.values()}) == len(machine)


def test_a_plain_file_is_described_by_its_real_path(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    content = bytearray(MIB)
    content[:4] = b"XFSB"
    path.write_bytes(content)
    link = tmp_path / "link.img"
    link.symlink_to(path)
    description = describe_disk(link, MACHINE)
    assert description.path == path
    assert description.kind is DiskKind.FILE
    assert description.contents == ["xfs"]
    assert description.protectability.is_protectable
    assert description.disk == describe_disk(path, MACHINE).disk
    os.truncate(path, MIB + 100)
    assert not describe_disk(path, MACHINE).protectability.is_protectable


def test_no_disk_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        describe_disk(tmp_path / "nothing", MACHINE)
    with pytest.raises(NotFound):
        describe_disk(Path("/dev/null"), MACHINE)
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidInput, match="empty"):
        describe_disk(tmp_path / "empty", MACHINE)


@pytest.mark.parametrize(("code", "remedy"), [(errno.EPERM, "even root may not"), (errno.EIO, "medium errors")])
def test_a_disk_that_cannot_be_opened_or_read_has_a_remedy_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    sysfs, dev = FakeSysfs(tmp_path / "sys"), tmp_path / "dev"
    dev.mkdir()
    sysfs.add("sda", MIB)
    (dev / "sda").write_bytes(bytes(MIB))

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "open" if code == errno.EPERM else "preadv", refuse)
    (disk,) = list_disks(MACHINE, sysfs.root, dev)
    monkeypatch.undo()
    assert remedy in disk.protectability.remedy
    assert os.strerror(code) in disk.protectability.why_not
