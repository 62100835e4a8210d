"""Signatures: what is on a disk, told from its ends. Real file systems are made with the tools that are there."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from mobility_agent.block_device.content import HEAD_BYTES, TAIL_BYTES, Content, recognize

SIZE = 320 * 2**20
FORCED = {"xfs": ["-f"], "btrfs": ["-f"], "swap": ["-f"]}


def content_of(path: Path) -> Content:
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(-TAIL_BYTES, 2)
        return recognize(head, stream.read(TAIL_BYTES), 512)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["mkfs.ext4", "-q"], "ext"),
        (["mkfs.xfs", "-q"], "xfs"),
        (["mkfs.btrfs", "-q"], "btrfs"),
        (["mkswap"], "swap"),
        (["mkfs.vfat"], "vfat"),
    ],
)
def test_file_systems_are_recognized(tmp_path: Path, command: list[str], expected: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs the program {command[0]}")
    path = tmp_path / "disk.img"
    with path.open("wb") as stream:
        stream.truncate(SIZE)
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    content = content_of(path)
    assert content.signatures == (expected,)
    assert content.partition_table == ""
    assert content_of(path).whole_disk_id == content.whole_disk_id
    subprocess.run([*command, *FORCED.get(expected, ()), str(path)], check=True, capture_output=True)
    if expected == "vfat":
        assert content.whole_disk_id == ""
    else:
        assert content.whole_disk_id.startswith(f"{expected}:")
        assert content_of(path).whole_disk_id != content.whole_disk_id, "made anew, it is another one"


def test_a_physical_volume_is_known_by_its_identifier_if_it_has_a_sound_one() -> None:
    label = b"LABELONE" + bytes(12) + struct.pack("<I", 32) + b"LVM2 001"
    for identifier, expected in ((b"0aZ" * 10 + b"xy", f"LVM2_member:{'0aZ' * 10}xy"), (b"\xff" * 32, ""), (b"", "")):
        head = bytes(512) + label + identifier
        found = recognize(head, b"", 512)
        assert (found.signatures, found.whole_disk_id) == (("LVM2_member",), expected)
    assert recognize(bytes(512) + label[:22], b"", 512).whole_disk_id == ""


def test_an_empty_disk_has_nothing() -> None:
    assert recognize(bytes(HEAD_BYTES), bytes(TAIL_BYTES), 512).is_empty
    assert recognize(b"", b"", 512).is_empty


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_a_gpt_is_recognized_with_its_id_and_efi_partition(block_bytes: int) -> None:
    identifier = uuid.uuid4()
    head = bytearray(HEAD_BYTES)
    head[510:512] = b"\x55\xaa"
    head[446 + 4] = 0xEE
    head[block_bytes : block_bytes + 8] = b"EFI PART"
    head[block_bytes + 56 : block_bytes + 72] = identifier.bytes_le
    entries = 2 * block_bytes
    head[entries + 128 : entries + 144] = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
    content = recognize(bytes(head), bytes(TAIL_BYTES), block_bytes)
    assert (content.partition_table, content.partition_table_id) == ("gpt", str(identifier))
    assert content.has_efi_system
    assert not content.is_empty


def test_a_dos_table_needs_sane_entries() -> None:
    head = bytearray(HEAD_BYTES)
    head[510:512] = b"\x55\xaa"
    head[440:444] = bytes.fromhex("78563412")
    assert recognize(bytes(head), b"", 512).partition_table == ""
    head[446:462] = bytes([0x80, 0, 0, 0, 0x83, *bytes(11)])
    content = recognize(bytes(head), b"", 512)
    assert (content.partition_table, content.partition_table_id) == ("dos", "12345678")
    head[446] = 0x41
    assert recognize(bytes(head), b"", 512).partition_table == ""


@pytest.mark.parametrize(
    ("at", "magic", "name"),
    [
        (512, b"LABELONE", "LVM2_member"),
        (0, b"LUKS\xba\xbe", "crypto_LUKS"),
        (4096, struct.pack("<I", 0xA92B4EFC), "linux_raid_member"),
        (132 * 1024, struct.pack("<Q", 0x00BAB10C), "zfs_member"),
    ],
)
def test_members_of_something_are_recognized(at: int, magic: bytes, name: str) -> None:
    head = bytearray(HEAD_BYTES)
    head[at : at + len(magic)] = magic
    assert recognize(bytes(head), bytes(TAIL_BYTES), 512).signatures == (name,)


@pytest.mark.parametrize("distance", [8192, 12288, 65536, 131072])
def test_a_raid_superblock_at_the_end_is_recognized(distance: int) -> None:
    tail = bytearray(TAIL_BYTES)
    tail[len(tail) - distance : len(tail) - distance + 4] = struct.pack("<I", 0xA92B4EFC)
    assert recognize(bytes(HEAD_BYTES), bytes(tail), 512).signatures == ("linux_raid_member",)
