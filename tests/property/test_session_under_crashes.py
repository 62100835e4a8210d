"""Random writes, crashes, lost spools, refusals and points: whatever happened, the replica and every point equal the disk.

A crash here is that of the agent, not of the machine: what it wrote is there. So nothing is synced, and how fast the machine's disk
syncs, the better part of the time otherwise, does not matter. Each durable step cut off: ``test_epoch_journal``, ``test_digest_table``.
"""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from pathlib import Path

import pytest

from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.quiesce.interface import Mount
from replication.epoch_manifest import EpochFlag
from replication.identifiers import CutId, DiskId, ItemId
from tests.harness.session_site import GRANULARITY_BYTES, FakeFreezer, SessionSite

ITEM = ItemId("11111111-1111-4111-8111-111111111111")
DISK = DiskId("22222222-2222-4222-8222-222222222222")
STEPS = 60


@pytest.fixture(autouse=True)
def nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


async def _write_some(site: SessionSite, rng: random.Random) -> None:
    for _ in range(rng.randrange(6)):
        granule = rng.randrange(site.granules)
        length = rng.choice([512, 1024, GRANULARITY_BYTES, 3 * GRANULARITY_BYTES])
        offset = min(granule * GRANULARITY_BYTES + rng.randrange(8) * 512, site.geometry.size_bytes - length)
        write = site.disk.issue(offset // 512 * 512, rng.choice([bytes(length), rng.randbytes(length)]))
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        write.complete()


async def _cut_point(site: SessionSite, rng: random.Random, images: dict[str, bytes]) -> None:
    cut = CutId(str(uuid.UUID(int=rng.getrandbits(128), version=4)))
    freezer = FakeFreezer(lambda: images.update({cut: bytes(site.disk.content)}))
    coordinator = PointCoordinator(
        freezer, memoryview(bytearray(16 * GRANULARITY_BYTES)), lambda _: [Mount("/m", "ext4", "/d", (7, 0))]
    )
    assert site.session is not None
    cutting = asyncio.create_task(
        coordinator.cut(ITEM, {DISK: site.session}, cut, flags=EpochFlag(0), freeze_budget_s=1.0)
    )
    for _ in range(rng.randrange(1, 30)):
        await asyncio.sleep(0.0005)
        await _write_some(site, rng)
        if cutting.done():
            break
    if not cutting.done() and rng.random() < 0.5:
        cutting.cancel()
    await asyncio.wait([cutting])


@pytest.mark.parametrize("seed", range(12))
async def test_replica_and_points_equal_the_disk_whatever_happened(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    site = SessionSite(tmp_path, DISK, short_by_bytes=rng.choice([0, 1024, 3584]))
    images: dict[str, bytes] = {}
    site.start()
    try:
        for _ in range(STEPS):
            await _write_some(site, rng)
            match rng.randrange(10):
                case 0:
                    await site.crash()
                    if rng.random() < 0.5:
                        await _write_some(site, rng)
                    if rng.random() < 0.5:
                        site.sink.lose_spool()
                    site.start()
                case 1:
                    site.sink.failures = rng.randrange(8)
                case 2:
                    site.sink.applying = not site.sink.applying
                    await site.sink.apply_ready() if site.sink.applying else None
                case 3 | 4:
                    site.sink.applying = True
                    await site.sink.apply_ready()
                    await _cut_point(site, rng, images)
                case _:
                    await asyncio.sleep(rng.random() * 0.005)
        site.sink.applying, site.sink.failures = True, 0
        await site.sink.apply_ready()
        await site.settle()
        assert site.replica_matches
        assert not site.doubts
        for cut, image in site.sink.points.items():
            assert image == images[cut]
    finally:
        await site.crash()
