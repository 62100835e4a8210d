"""The blob store on a full file system: bodies are refused, nothing acknowledged is lost, and it goes on once there is room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from azure_sink.blob_store.arenas import StoreFull
from azure_sink.blob_store.blobs import Address
from azure_sink.blob_store.store import BlobStore, StoreOptions
from replication.errors import Retryable
from tests.harness.blob_store_tools import plain, put_blob, put_pages, read
from tests.harness.loop_disk import loop_disk, mounted, run

MIB = 2**20
DISK = Address("lab", "disk")

pytestmark = pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    with loop_disk(tmp_path / "disk.img", 48 * MIB) as disk:
        run("mkfs.ext4", "-q", "-m", "0", disk.device)
        with mounted(disk.device, tmp_path / "mounted") as mount_point:
            yield mount_point


@pytest.mark.parametrize("reserve_bytes", [0, 8 * MIB])
async def test_a_full_store_refuses_bodies_and_recovers_when_something_is_deleted(
    small_file_system: Path, reserve_bytes: int
) -> None:
    store = BlobStore.open(small_file_system / "state", StoreOptions(arena_bytes=4 * MIB, reserve_bytes=reserve_bytes))
    try:
        await store.create_container("lab")
        await store.create_page_blob(DISK, plain(), 2**30)
        stored = []
        with pytest.raises(Retryable):  # noqa: PT012 - it is full after an unknown number of puts
            for number in range(200):
                content = bytes([number + 1]) * MIB
                await put_blob(store, Address("lab", f"blob-{number}"), content)
                stored.append(content)
        assert len(stored) > 10
        for number, content in enumerate(stored):
            assert await read(store, Address("lab", f"blob-{number}")) == content
        for number in range(5):
            await store.delete_blob(Address("lab", f"blob-{number}"))
        assert store.wait_until_quiet(30.0)
        await put_pages(store, DISK, 0, b"p" * MIB)
        assert await read(store, DISK, 0, MIB) == b"p" * MIB
        assert store.failure is None
    finally:
        store.close()


async def test_a_file_system_filled_by_others_stops_changes_until_there_is_room(small_file_system: Path) -> None:
    store = BlobStore.open(small_file_system / "state", StoreOptions(arena_bytes=4 * MIB, reserve_bytes=0))
    try:
        await store.create_container("lab")
        await put_blob(store, Address("lab", "kept"), b"kept" * 1000)
        ballast = small_file_system / "ballast"
        fill(ballast)
        refusals = 0
        for number in range(3000):  # until the space that the log has already is used up
            try:
                await store.create_container(f"name-{number}")
            except StoreFull:
                refusals += 1
                break
        assert refusals == 1
        assert await read(store, Address("lab", "kept")) == b"kept" * 1000
        with pytest.raises(StoreFull):
            await put_blob(store, Address("lab", "body"), b"x" * MIB)
        assert not store.has_room()
        ballast.unlink()
        await put_blob(store, Address("lab", "body"), b"x" * MIB)
        await store.create_container("afterwards")
        assert store.failure is None
    finally:
        store.close()


def fill(path: Path) -> None:
    """Take all that is left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    os.write(descriptor, bytes(size))
            except OSError:
                continue
    finally:
        os.close(descriptor)
