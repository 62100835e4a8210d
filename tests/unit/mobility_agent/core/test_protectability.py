"""What can be protected, and what the operator is told where it cannot."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from mobility_agent.core.protectability import DiskFacts, DiskKind, judge_protectability, remedy_of_unreadable

DISK = DiskFacts("/dev/sda", DiskKind.DISK, 2**30)


@pytest.mark.parametrize("kind", [DiskKind.DISK, DiskKind.LOOP, DiskKind.FILE, DiskKind.MULTIPATH])
def test_whole_disks_are_protectable(kind: DiskKind) -> None:
    judged = judge_protectability(replace(DISK, kind=kind, signatures=("ext",)))
    assert judged.is_protectable
    assert (judged.why_not, judged.remedy, judged.note) == ("", "", "")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (DiskKind.PARTITION, "partition"),
        (DiskKind.VOLUME, "LVM"),
        (DiskKind.ENCRYPTED, "encrypted"),
        (DiskKind.RAID, "RAID"),
        (DiskKind.MAPPED, "mapped"),
    ],
)
def test_parts_and_compositions_point_to_the_disks_beneath(kind: DiskKind, word: str) -> None:
    judged = judge_protectability(replace(DISK, kind=kind, disks_beneath=("/dev/sda", "/dev/sdb")))
    assert not judged.is_protectable
    assert word in judged.why_not
    assert "whole block device" in judged.why_not
    assert "/dev/sda, /dev/sdb" in judged.remedy


@pytest.mark.parametrize("kind", [DiskKind.MEMORY, DiskKind.REMOVABLE_MEDIUM])
def test_what_does_not_last_is_left_out(kind: DiskKind) -> None:
    assert judge_protectability(replace(DISK, kind=kind)).remedy == "leave it out"


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (replace(DISK, is_zoned=True), "zoned"),
        (replace(DISK, size_bytes=65 * 2**40), "64 TiB"),
        (replace(DISK, size_bytes=2**30 + 100), "multiple of 512"),
        (replace(DISK, signatures=("swap",)), "swap"),
        (
            replace(DISK, unreadable="cannot open /dev/sda: Permission denied", unreadable_remedy="run this as root"),
            "Permission denied",
        ),
    ],
)
def test_other_reasons_have_a_remedy(facts: DiskFacts, word: str) -> None:
    judged = judge_protectability(facts)
    assert word in judged.why_not
    assert judged.remedy


def test_members_of_something_are_protectable_with_a_note() -> None:
    judged = judge_protectability(replace(DISK, signatures=("LVM2_member",)))
    assert judged.is_protectable
    assert "all disks of the group" in judged.note


def test_every_kind_is_judged() -> None:
    for kind in DiskKind:
        judge_protectability(replace(DISK, kind=kind))


@pytest.mark.parametrize(
    ("code", "is_root", "said", "unsaid"),
    [
        (errno.EPERM, True, "even root may not", "medium"),
        (errno.EACCES, False, "run this as root", "medium"),
        (errno.EIO, True, "medium errors", "root"),
        (errno.ENOMEDIUM, True, "insert the medium", "root"),
        (errno.EINVAL, True, "kernel's log", "root"),
        (None, False, "kernel's log", "root"),
    ],
)
def test_the_remedy_of_an_unreadable_disk_fits_the_error_and_who_asks(
    code: int | None, is_root: bool, said: str, unsaid: str
) -> None:
    remedy = remedy_of_unreadable(code, is_root=is_root)
    assert said in remedy
    assert unsaid not in remedy
