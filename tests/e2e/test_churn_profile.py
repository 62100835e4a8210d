"""Churn of a real disk, measured by the kernel's tracker without replication: nothing is pinned, a replication beside it not disturbed."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind
from mobility_agent.churn_profiler import ChurnProfiler
from replication.churn_profile import ProfileOrder
from replication.clock import Clock
from tests.harness.loop_disk import loop_disk, pin_root

GRANULE = 65536


def write(device: Path, granules: list[int]) -> None:
    descriptor = os.open(device, os.O_WRONLY)
    try:
        for granule in granules:
            os.pwrite(descriptor, b"x" * 4096, granule * GRANULE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.heavy("a site, and a disk whose churn is measured")
@pytest.mark.requires("root", "loop", "ebpf")
async def test_a_real_disk_is_measured_and_its_replication_tracks_on_undisturbed(tmp_path: Path) -> None:
    disk = str(uuid.uuid4())
    with loop_disk(tmp_path / "disk.img", 256 * GRANULE) as loop, pin_root() as pins:
        profiler = ChurnProfiler(lambda _disk: EbpfTracker.attach(loop.device), Clock())
        running = asyncio.create_task(profiler.run())
        order = ProfileOrder(request=str(uuid.uuid4()), disks=[disk], duration_s=3600, interval_s=0.2)
        profiler.follow(order, ())

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(60):
                while not condition():
                    await asyncio.sleep(0.02)

        def windows() -> int:
            seen = profiler.observe()
            return seen.disks[0].windows[0].windows if seen is not None and seen.disks[0].windows else 0

        await until(lambda: windows() >= 1)
        replication = EbpfTracker.attach(loop.device, pin_directory=pins / disk)
        try:
            replication.begin_harvest()
            replication.commit_harvest()
            await asyncio.to_thread(write, loop.device, [3, 4, 5, 200])
            before = windows()
            await until(lambda: windows() >= before + 2)
            profiler.follow(order, [disk])
            await until(lambda: (seen := profiler.observe()) is not None and seen.disks[0].state == "replicated")
            seen = profiler.observe()
            assert seen is not None
            shortest = seen.disks[0].windows[0]
            assert GRANULE <= shortest.most_bytes <= 4 * GRANULE
            assert shortest.mean_bytes * shortest.windows >= 4 * GRANULE
            assert [path.name for path in pins.iterdir()] == [disk]
            await asyncio.to_thread(write, loop.device, [9])
            harvest = replication.begin_harvest()
            assert harvest.doubt.kind is not DoubtKind.RESYNC
            assert {3, 4, 5, 9, 200} <= {granule for granule in range(256) if granule in harvest.bitmap}
        finally:
            replication.discard()
            running.cancel()
            await asyncio.wait([running])
