"""The Blob service killed, and its power cut, again and again under parallel writes: whatever it acknowledged is there, with its bytes.

A power cut is ext4's own shutdown without flushing its journal: all that was not synced is gone. The moment of each is an
acknowledgement's number drawn from a seed (told in the summary), with all other workers' requests under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from azure_sink.blob_store.store import BlobStore
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound
from replication.blob_client.http_client import HttpBlobClient
from replication.errors import Retryable
from tests.harness.blob_process import BlobProcess
from tests.harness.blob_store_tools import unreferenced_blocks
from tests.harness.loop_disk import loop_disk, mounted, run, wait_until_free
from tests.harness.told_seeds import TellSeeds

PAGE = 512
DISK_PAGES = 256
WORKERS = 6
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), fs/ext4/ext4.h
EXT4_GOING_FLAGS_NOLOGFLUSH = 2
KILLS = int(os.environ.get("BLOCKFERRY_KILLS", "5"))

pytestmark = pytest.mark.timeout(600)


@dataclass
class Acknowledged:
    """What the service has promised one worker. ``doubt`` is the one thing it was asked when it died."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    disk: bytearray = field(default_factory=lambda: bytearray(DISK_PAGES * PAGE))
    snapshots: dict[str, bytes] = field(default_factory=dict)
    applied: int = 0
    doubt: tuple[str, int, bytes] | None = None


class Bomb:
    """Counts acknowledgements and strikes at the given one."""

    def __init__(self, strike: Callable[[], None], acknowledgements: int) -> None:
        self._strike = strike
        self._left = acknowledgements

    def acknowledged(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._strike()


async def work(client: BlobClient, number: int, known: Acknowledged, chance: random.Random, bomb: Bomb) -> None:
    """Write until the connection breaks. A thing is noted as promised only after its answer."""
    disk = f"disk-{number}"
    step = 0
    while True:
        step += 1
        match chance.choice(("put", "put", "pages", "pages", "pages", "clear", "snapshot", "metadata", "delete")):
            case "put":
                name, body = f"{number}/{chance.random()}", chance.randbytes(chance.choice((10, 5_000, 300_000)))
                known.doubt = ("put", 0, name.encode())
                await client.put_blob("lab", name, body, if_none_match_any=True)
                known.blobs[name] = body
            case "pages" | "clear" as kind:
                start = chance.randrange(DISK_PAGES)
                pages = min(chance.randint(1, 40), DISK_PAGES - start)
                body = chance.randbytes(pages * PAGE) if kind == "pages" else bytes(pages * PAGE)
                known.doubt = ("pages", start * PAGE, body)
                if kind == "pages":
                    await client.put_pages("lab", disk, start * PAGE, body)
                else:
                    await client.clear_pages("lab", disk, start * PAGE, pages * PAGE)
                known.disk[start * PAGE : start * PAGE + len(body)] = body
            case "snapshot":
                known.doubt = ("snapshot", 0, b"")
                taken = await client.snapshot_blob("lab", disk)
                known.snapshots[taken] = bytes(known.disk)
            case "metadata":
                known.doubt = ("metadata", known.applied + 1, b"")
                await client.set_metadata("lab", disk, {"applied": str(known.applied + 1)})
                known.applied += 1
            case "delete" if known.blobs:
                name = chance.choice(sorted(known.blobs))
                known.doubt = ("delete", 0, name.encode())
                await client.delete_blob("lab", name)
                del known.blobs[name]
                known.deleted.add(name)
            case _:
                continue
        known.doubt = None
        bomb.acknowledged()


async def content(client: BlobClient, name: str, snapshot: str | None = None) -> bytes | None:
    try:
        found = await client.get_blob("lab", name, max_bytes=2**20, snapshot=snapshot)
    except BlobNotFound:
        return None
    assert found is not None
    return found.content


def differing_pages(found: bytes, known: Acknowledged) -> list[str]:
    """Each page of the blob that is not what was acknowledged, and what is there instead."""
    wrong = []
    for page in range(DISK_PAGES):
        at = slice(page * PAGE, (page + 1) * PAGE)
        if found[at] == known.disk[at]:
            continue
        older = any(image[at] == found[at] for image in known.snapshots.values())
        what = "zeros" if not any(found[at]) else "older" if older else "other"
        wrong.append(f"page {page}: {what}" + ("" if any(known.disk[at]) else " instead of zeros"))
    return wrong


async def check(client: BlobClient, number: int, known: Acknowledged) -> None:
    """Everything promised is there; the thing in doubt happened whole or not at all."""
    kind, offset, detail = known.doubt or ("", 0, b"")
    for name, body in list(known.blobs.items()):
        found = await content(client, name)
        if kind == "delete" and name.encode() == detail and found is None:
            del known.blobs[name]
            continue
        assert found == body
    for name in known.deleted:
        assert await content(client, name) is None
    found = await content(client, f"disk-{number}")
    assert found is not None
    if kind == "pages" and found[offset : offset + len(detail)] == detail:
        known.disk[offset : offset + len(detail)] = detail
    assert not (wrong := differing_pages(found, known)), (
        f"disk-{number}: {wrong}; in doubt: {kind} at page {offset // PAGE}, {len(detail) // PAGE} pages"
    )
    for snapshot, image in known.snapshots.items():
        assert await content(client, f"disk-{number}", snapshot) == image
    properties = await client.head_blob("lab", f"disk-{number}")
    applied = int(properties.metadata["applied"])
    assert applied == known.applied or (kind == "metadata" and applied == offset)
    known.applied = applied
    known.doubt = None


async def suffer(
    process: BlobProcess, strike: Callable[[], None], repair: Callable[[], None], tell_seeds: TellSeeds
) -> None:
    """Work, strike, repair, start again, check; ``KILLS`` times."""
    seed = random.SystemRandom().randrange(2**32)
    tell_seeds("kills of the Blob service", seed)
    chance = random.Random(seed)
    known = [Acknowledged() for _ in range(WORKERS)]
    await process.start()
    async with HttpBlobClient(process.endpoint()) as client:
        await client.create_container("lab")
        for number in range(WORKERS):
            await client.create_page_blob("lab", f"disk-{number}", DISK_PAGES * PAGE, metadata={"applied": "0"})
    for _ in range(KILLS):
        async with HttpBlobClient(process.endpoint()) as client:
            bomb = Bomb(strike, chance.randint(5, 80))
            ends = await asyncio.gather(
                *(work(client, n, known[n], random.Random(chance.random()), bomb) for n in range(WORKERS)),
                return_exceptions=True,
            )
        assert all(isinstance(end, Retryable) for end in ends), ends
        repair()
        await process.start()
        async with HttpBlobClient(process.endpoint()) as client:
            for number in range(WORKERS):
                await check(client, number, known[number])
    assert await process.stop() == 0
    store = BlobStore.open(process.state)
    try:
        assert store.wait_until_quiet(60.0)
        assert unreferenced_blocks(process.state) == set()
    finally:
        store.close()


async def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path, tell_seeds: TellSeeds) -> None:
    with BlobProcess(tmp_path) as process:
        await suffer(process, process.kill, lambda: None, tell_seeds)


@pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")
async def test_nothing_acknowledged_is_lost_by_power_cuts(tmp_path: Path, tell_seeds: TellSeeds) -> None:
    with loop_disk(tmp_path / "disk.img", 1024 * 2**20) as disk:
        run("mkfs.ext4", "-q", disk.device)
        mount_point = tmp_path / "mounted"
        with contextlib.ExitStack() as stack:
            mount = stack.enter_context(contextlib.ExitStack())
            mount.enter_context(mounted(disk.device, mount_point))
            process = stack.enter_context(BlobProcess(tmp_path, mount_point / "state"))

            def strike() -> None:
                # A machine without power acknowledges nothing. This one goes on, and in the middle of its shutdown ext4 tells some
                # who wait for a sync that all is well: they must not pass that on.
                process.stand_still()
                cut_power(mount_point)
                process.kill()

            def repair() -> None:
                mount.close()
                wait_until_free(disk.device)
                mount.enter_context(mounted(disk.device, mount_point))

            await suffer(process, strike, repair, tell_seeds)


def cut_power(mount_point: Path) -> None:
    """From here on nothing reaches the device; what was not synced before never will."""
    descriptor = os.open(mount_point, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
    finally:
        os.close(descriptor)
