"""The replica writer against the Blob service of this product, over TLS: the same story as in memory, with the same end.

Called by pytest. What the property tests prove on the fake holds only as far as the fake is like the service; here the service itself
answers, and it is killed and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from azure_sink.replica_writer import epoch_application
from azure_sink.replica_writer.disk_follower import Outcome
from replication.blob_client.api import BlobClient
from replication.blob_client.http_client import HttpBlobClient
from tests.harness.blob_site import blob_site
from tests.harness.epochs import Write
from tests.harness.faulty_blob_client import DyingBlobClient, Effect, ProcessDied
from tests.harness.writer_site import MIB, HandClock, WriterSite
from tests.harness.writer_story import Story, catch_up


@contextlib.asynccontextmanager
async def https_site(directory: Path, seed: int = 0, **settings: int) -> AsyncIterator[WriterSite]:
    time = HandClock()
    await asyncio.to_thread(directory.mkdir)
    async with (
        blob_site(directory, clock=lambda: time.now().timestamp()) as served,
        HttpBlobClient(served.endpoint()) as client,
    ):
        yield await WriterSite.on(client, time, seed, **settings)


async def test_story_ends_well_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", 2)
    async with https_site(tmp_path / "blob", segment_slots=2) as site:
        story = Story.begin(site)
        async for waited_for in story.tell():
            await catch_up(story, None, waited_for)
        await story.check_end()


@pytest.mark.parametrize("effect", list(Effect))
async def test_death_at_some_calls_changes_nothing_over_https(
    effect: Effect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", 2)
    for at in range(17, 220, 97):
        async with https_site(tmp_path / str(at), seed=1, segment_slots=2) as site:
            story = Story.begin(site)
            current: BlobClient | None = DyingBlobClient(site.account, at, effect).as_client()
            async for waited_for in story.tell():
                try:
                    await catch_up(story, current, waited_for)
                except ProcessDied:
                    current = None
                    await catch_up(story, current, waited_for)
            await story.check_end()


async def test_large_writes_and_clears_reach_the_replica(tmp_path: Path) -> None:
    async with https_site(tmp_path / "blob") as site:
        disk = site.disk(40 * MIB)
        await disk.open_generation()
        await disk.put([[Write(0, site.random.randbytes(8 * MIB))], [Write(8 * MIB, site.random.randbytes(5 * MIB))]])
        cut = disk.cut()
        await disk.put(
            [
                [Write(4 * MIB - 512, zero_bytes=6 * MIB)],
                [Write(20 * MIB, site.random.randbytes(8 * MIB))],
                [Write(28 * MIB, zero_bytes=12 * MIB)],
                [Write(39 * MIB, site.random.randbytes(MIB))],
            ],
            cut=cut,
        )
        await disk.put([[Write(number * 512, site.random.randbytes(512)) for number in range(3000)]])
        writer = site.start()
        assert await writer.settle() == {disk.disk: Outcome.IDLE}
        await writer.close()
        assert await site.bytes_of(disk) == disk.model
        assert await site.point_bytes(disk.item, cut.cut, disk.disk) == disk.cuts[cut.cut]
