"""Fixed VHDs: layout, footer, and what qemu says of them. Called by pytest."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest

from azure_sink.vhd import FOOTER_BYTES, FixedVhd, encode_footer, parse_footer
from replication.errors import InvalidInput, PeerProtocolError

DISK = "6f1d3f0e-0f43-4d3c-9b57-6a1d3a1f2b3c"
MIB = 2**20


@pytest.mark.parametrize(
    ("size_bytes", "blob_bytes"),
    [(1, MIB + 512), (MIB, MIB + 512), (MIB + 512, 2 * MIB + 512), (2 * 1024 * MIB, 2 * 1024 * MIB + 512)],
)
def test_blob_is_whole_mebibytes_and_a_footer(size_bytes: int, blob_bytes: int) -> None:
    assert FixedVhd(size_bytes).blob_bytes == blob_bytes


def test_footer_says_the_padded_size_and_stays_the_same() -> None:
    vhd = FixedVhd(3 * MIB + 512)
    footer = vhd.footer(DISK)
    assert len(footer) == FOOTER_BYTES
    assert parse_footer(footer) == 4 * MIB
    assert vhd.footer(DISK) == footer


def test_writable_end_is_the_source_in_whole_sectors() -> None:
    assert FixedVhd(1000).writable_bytes == 1024
    assert FixedVhd(1024).writable_bytes == 1024


@pytest.mark.parametrize("position", [0, 15, 40, 60, 65, 80, 511])
def test_damaged_footer_is_refused(position: int) -> None:
    footer = bytearray(FixedVhd(MIB).footer(DISK))
    footer[position] ^= 1
    with pytest.raises(PeerProtocolError):
        parse_footer(bytes(footer))


def test_footer_of_another_length_is_refused() -> None:
    with pytest.raises(PeerProtocolError):
        parse_footer(b"conectix")


@pytest.mark.parametrize("size_bytes", [0, -1, 2**60])
def test_impossible_sizes_are_refused(size_bytes: int) -> None:
    with pytest.raises(InvalidInput):
        FixedVhd(size_bytes)


@pytest.mark.requires("qemu-img")
@pytest.mark.parametrize("size_bytes", [MIB, 7 * MIB + 512, 5 * 1024 * MIB, 2040 * 1024 * MIB])
def test_qemu_takes_the_exact_size(size_bytes: int, tmp_path: Path) -> None:
    vhd = FixedVhd(size_bytes)
    path = tmp_path / "disk.vhd"
    with path.open("wb") as image:
        image.truncate(vhd.data_bytes)
        image.seek(vhd.data_bytes)
        image.write(encode_footer(vhd.data_bytes, uuid.UUID(DISK)))
    described = subprocess.run(
        ["qemu-img", "info", "-f", "vpc", "--output=json", str(path)], check=True, capture_output=True
    )
    assert json.loads(described.stdout)["virtual-size"] == vhd.data_bytes


@pytest.mark.requires("qemu-img")
def test_qemu_finds_the_same_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 2
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(content)
    image.write_bytes(content + FixedVhd(len(content)).footer(DISK))
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "vpc", str(raw), str(image)], check=False, capture_output=True
    )
    assert compared.returncode == 0, compared.stdout
