"""A page blob exported to a file: bytes, sparseness, digest, refusals. Called by pytest."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from azure_sink.export import DiskExport
from azure_sink.vhd import FixedVhd
from replication.blob_client.failures import BlobNotFound
from replication.errors import Conflict, InvalidInput, Permanent
from replication.store_layout import DISKS_CONTAINER
from tests.harness.epochs import make_containers
from tests.harness.memory_blob_client import MemoryBlobClient

DISK = "6f1d3f0e-0f43-4d3c-9b57-6a1d3a1f2b3c"
SIZE_BYTES = 9 * 2**20 + 512


async def account_with_disk(size_bytes: int = SIZE_BYTES) -> tuple[MemoryBlobClient, bytes]:
    account = MemoryBlobClient()
    await make_containers(account)
    vhd = FixedVhd(size_bytes)
    metadata = {"sizebytes": str(size_bytes)}
    await account.create_page_blob(DISKS_CONTAINER, "web01-Test", vhd.blob_bytes, metadata=metadata)
    model = bytearray(size_bytes)
    for offset, data in ((0, b"boot" * 128), (5 * 2**20, b"data" * 2**19), (size_bytes - 512, b"last" * 128)):
        model[offset : offset + len(data)] = data
        await account.put_pages(DISKS_CONTAINER, "web01-Test", offset, data)
    await account.put_pages(DISKS_CONTAINER, "web01-Test", vhd.data_bytes, vhd.footer(DISK))
    return account, bytes(model)


def ignore(done_bytes: int, total_bytes: int) -> None:
    assert 0 <= done_bytes <= total_bytes


async def test_raw_image_is_the_source_and_sparse(tmp_path: Path) -> None:
    account, model = await account_with_disk()
    target = tmp_path / "disk.raw"
    exported = await DiskExport(account, DISKS_CONTAINER, "web01-Test").run(
        target, raw=True, with_sha256=True, progress=ignore
    )
    assert target.read_bytes() == model
    assert exported.size_bytes == SIZE_BYTES
    assert exported.read_bytes == 2 * 2**20 + 1024
    assert exported.sha256 == hashlib.sha256(model).hexdigest()
    assert target.stat().st_blocks * 512 < SIZE_BYTES / 2


@pytest.mark.requires("qemu-img")
async def test_vhd_is_what_qemu_takes_for_the_same_disk(tmp_path: Path) -> None:
    account, model = await account_with_disk(8 * 2**20)
    raw, vhd = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(model)
    exported = await DiskExport(account, DISKS_CONTAINER, "web01-Test").run(
        vhd, raw=False, with_sha256=True, progress=ignore
    )
    assert exported.sha256 == hashlib.sha256(vhd.read_bytes()).hexdigest()
    command = ["qemu-img", "compare", "-f", "raw", "-F", "vpc", str(raw), str(vhd)]
    compared = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True)
    assert compared.returncode == 0, compared.stdout


async def test_snapshot_is_exported_as_it_was(tmp_path: Path) -> None:
    account, model = await account_with_disk()
    snapshot = await account.snapshot_blob(DISKS_CONTAINER, "web01-Test")
    await account.clear_pages(DISKS_CONTAINER, "web01-Test", 0, 512)
    target = tmp_path / "disk.raw"
    await DiskExport(account, DISKS_CONTAINER, "web01-Test", snapshot).run(
        target, raw=True, with_sha256=False, progress=ignore
    )
    assert target.read_bytes() == model


async def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    account, _ = await account_with_disk()
    target = tmp_path / "disk.raw"
    target.write_bytes(b"mine")
    with pytest.raises(Conflict, match="exists"):
        await DiskExport(account, DISKS_CONTAINER, "web01-Test").run(
            target, raw=True, with_sha256=False, progress=ignore
        )
    assert target.read_bytes() == b"mine"


async def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    account, _ = await account_with_disk()

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await DiskExport(account, DISKS_CONTAINER, "web01-Test").run(
            tmp_path / "disk.raw", raw=True, with_sha256=False, progress=interrupt
        )
    assert os.listdir(tmp_path) == []


async def test_disk_that_changes_meanwhile_is_not_exported(tmp_path: Path) -> None:
    account, _ = await account_with_disk()

    class ChangesAtTheEnd:
        def __getattr__(self, name: str) -> object:
            return getattr(account, name)

        async def head_blob(self, *args: object, **kwargs: object) -> object:
            properties = await account.head_blob(*args, **kwargs)  # type: ignore[arg-type]
            await account.clear_pages(DISKS_CONTAINER, "web01-Test", 0, 512)
            return properties

    with pytest.raises(Conflict):
        await DiskExport(ChangesAtTheEnd(), DISKS_CONTAINER, "web01-Test").run(  # type: ignore[arg-type]
            tmp_path / "disk.raw", raw=True, with_sha256=False, progress=ignore
        )
    assert os.listdir(tmp_path) == []


async def test_what_is_no_disk_is_said(tmp_path: Path) -> None:
    account, _ = await account_with_disk()
    await account.create_page_blob(DISKS_CONTAINER, "empty", 2**20 + 512)
    await account.create_page_blob(DISKS_CONTAINER, "tiny", 512)
    for name in ("empty", "tiny"):
        with pytest.raises(InvalidInput):
            await DiskExport(account, DISKS_CONTAINER, name).run(
                tmp_path / "x", raw=False, with_sha256=False, progress=ignore
            )
    with pytest.raises(BlobNotFound):
        await DiskExport(account, DISKS_CONTAINER, "nothing").run(
            tmp_path / "x", raw=False, with_sha256=False, progress=ignore
        )


async def test_raw_needs_the_size_from_the_metadata(tmp_path: Path) -> None:
    account, _ = await account_with_disk()
    await account.set_metadata(DISKS_CONTAINER, "web01-Test", {})
    with pytest.raises(InvalidInput, match="raw"):
        await DiskExport(account, DISKS_CONTAINER, "web01-Test").run(
            tmp_path / "x", raw=True, with_sha256=False, progress=ignore
        )


async def test_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    account, _ = await account_with_disk()
    with pytest.raises(Permanent, match="cannot write"):
        await DiskExport(account, DISKS_CONTAINER, "web01-Test").run(
            tmp_path / "nowhere" / "x", raw=True, with_sha256=False, progress=ignore
        )
