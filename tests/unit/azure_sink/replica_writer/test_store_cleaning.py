"""The sweep: what is stale goes, what may still be needed stays. Called by pytest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.replica_writer.replica_writer import ReplicaWriter
from replication.blob_client.api import BlobItem
from replication.blob_client.failures import BlobServiceFailed
from replication.errors import PeerUnavailable
from replication.identifiers import GenerationId, GenerationKey
from replication.store_documents import DeleteDisks, GenerationBase
from replication.store_layout import (
    KEYS_PREFIX,
    REPLICATION_CONTAINER,
    answer_name,
    generation_record_name,
    manifest_name,
    segment_name,
)
from tests.harness.epochs import DiskHistory, Write, build_epoch, new_uuid, put_epoch, put_segment
from tests.harness.faulty_blob_client import LossyBlobClient
from tests.harness.writer_site import MIB, WriterSite

HOUR_S = 3700.0
"""And a little."""


async def epoch_blobs(site: WriterSite, prefix: str) -> list[str]:
    return [name for name in await site.names(REPLICATION_CONTAINER, prefix) if not name.endswith("/receipt")]


async def orphaned(site: WriterSite) -> DiskHistory:
    """A disk with the two blobs of an epoch, and no record."""
    disk = site.disk()
    disk.generation = 1
    disk.data_key = bytes(32)
    await put_epoch(site.account, disk.build([[Write(0, b"1" * 512)]]))
    return disk


async def swept_later(site: WriterSite, writer: ReplicaWriter, after_s: float = HOUR_S) -> int:
    """The store has been used all the time; what sweeps delete by then."""
    site.time.advance(after_s)
    await site.account.put_blob(REPLICATION_CONTAINER, "notes.txt", b"used")
    return await writer.sweep.run() + await writer.sweep.run()


async def test_attempts_that_lost_and_late_segments_are_collected() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    key = disk.next_key()
    await disk.put([[Write(0, b"1" * 512)]], attempt=2)
    writer = site.start()
    await writer.settle()
    lost = build_epoch(key, [[Write(0, b"0" * 512)]], data_key=disk.data_key, attempt=1)
    await put_segment(site.account, lost.segments[0])
    await put_epoch(site.account, disk.build([[Write(512, b"2" * 512)]]))
    waiting = disk.build([[Write(1024, b"3" * 512)]])
    upcoming = disk.build([[Write(1024, b"4" * 512)]])
    await put_epoch(site.account, upcoming)  # epoch 4 before epoch 3
    await writer.settle()
    assert await writer.sweep.run() == 1
    assert await epoch_blobs(site, f"{disk.disk}/") == [
        manifest_name(disk.built[1, 2].manifest.key),
        segment_name(upcoming.segments[0].key),
        manifest_name(upcoming.manifest.key),
    ]
    await put_epoch(site.account, waiting)
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model


async def test_older_and_closed_generations_are_collected_but_for_receipts() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put([[Write(0, b"1" * 512)]])
    writer = site.start()
    (follower,) = (await writer.settle(), writer.followers.all)[1]
    async with follower.lock:
        await follower.close_generation(1, _nothing)
    late = disk.build([[Write(0, b"late" * 128)]])
    await put_epoch(site.account, late)
    assert await writer.sweep.run() == 3
    assert await epoch_blobs(site, f"{disk.disk}/") == []
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await put_segment(site.account, late.segments[0])
    await disk.put([[Write(0, b"5" * 512)]])
    await writer.settle()
    assert await writer.sweep.run() == 1
    assert (await site.receipt(disk, 1)) is not None


async def _nothing() -> None:
    return


async def test_nothing_is_collected_of_a_disk_that_another_writer_holds() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put([[Write(0, b"1" * 512)]])
    holder = site.start()
    await holder.settle()
    key = disk.built[1, 1].manifest.key
    stray = build_epoch(key, [[Write(0, b"0" * 512)]], data_key=disk.data_key, attempt=7)
    await put_segment(site.account, stray.segments[0])
    other = site.start(lease_id=new_uuid(Random(5)))
    await other.settle()
    assert await other.sweep.run() == 0
    assert await holder.sweep.run() == 1


async def test_blobs_of_an_unknown_disk_are_collected_only_after_an_hour() -> None:
    site = await WriterSite.make()
    await orphaned(site)
    writer = site.start()
    await writer.settle()
    assert await swept_later(site, writer, 3500) == 0
    assert await swept_later(site, writer, 200) == 2


async def test_orphans_stay_until_all_records_were_read() -> None:
    site = await WriterSite.make()
    await orphaned(site)
    writer = site.start()
    assert await swept_later(site, writer) == 0
    await writer.settle()
    assert await writer.sweep.run() == 2


async def test_orphans_stay_after_a_look_at_the_records_that_failed() -> None:
    site = await WriterSite.make()
    await orphaned(site)

    class Unlisted(LossyBlobClient):
        failing = False

        async def list_blobs(self, container: str, prefix: str, **options: Any) -> AsyncIterator[BlobItem]:
            async for item in site.account.list_blobs(container, prefix, **options):
                yield item
            if self.failing and prefix == KEYS_PREFIX:
                raise PeerUnavailable("cannot reach the store")

    client = Unlisted(site.account, Random(0), 0.0)
    writer = site.start(client.as_client())
    await writer.settle()
    client.failing = True
    with pytest.raises(PeerUnavailable):
        await writer.settle()
    assert await swept_later(site, writer) == 0
    client.failing = False
    await writer.settle()
    assert await writer.sweep.run() == 2


async def test_a_record_that_was_put_after_the_last_look_keeps_its_disk() -> None:
    site = await WriterSite.make()
    writer = site.start()
    await writer.settle()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(2, 2))
    assert await swept_later(site, writer) == 0
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model


async def test_a_name_under_keys_that_is_no_records_keeps_its_disk() -> None:
    site = await WriterSite.make()
    disk = await orphaned(site)
    await site.account.put_blob(REPLICATION_CONTAINER, f"{KEYS_PREFIX}{disk.disk}/1", b"of a later version?")
    writer = site.start()
    await writer.settle()
    assert await swept_later(site, writer) == 0


async def test_the_hour_is_the_stores_and_not_the_writers() -> None:
    site = await WriterSite.make()
    await orphaned(site)
    theirs = site.time.clock
    writer = site.start(clock=replace(theirs, unix_ns=lambda: theirs.unix_ns() + int(HOUR_S * 1e9)))
    await writer.settle()
    assert await swept_later(site, writer, 0) == 0
    behind = site.start(clock=replace(theirs, unix_ns=lambda: theirs.unix_ns() - int(HOUR_S * 1e9)))
    await behind.settle()
    assert await swept_later(site, behind) == 2


@pytest.mark.parametrize("how", ["too large", "garbage", "not served"])
async def test_a_record_that_cannot_be_read_stops_no_other_disk_and_keeps_its_own_blobs(how: str) -> None:
    """A writer that was started anew had found no disk then, and swept them all."""
    site = await WriterSite.make()
    bad, good = site.disk(), site.disk()
    record = await bad.open_generation()
    for disk in (bad, good):
        if disk is good:
            await good.open_generation()
        await disk.put(disk.random_batches(2, 2))
    name = generation_record_name(GenerationKey(bad.disk, GenerationId(1)))
    if how != "not served":
        await site.account.put_blob(REPLICATION_CONTAINER, name, bytes(MIB + 1) if how == "too large" else b"{")

    class Unreadable(LossyBlobClient):
        failing = how == "not served"

        async def get_blob(self, container: str, wanted: str, **options: Any) -> Any:
            if self.failing and wanted == name:
                raise BlobServiceFailed(f"cannot read blob {container}/{wanted}: InternalError (HTTP status 500)")
            return await site.account.get_blob(container, wanted, **options)

    client = Unreadable(site.account, Random(0), 0.0)
    writer = site.start(client.as_client())
    outcomes = await writer.settle()
    assert outcomes == {bad.disk: Outcome.TROUBLED, good.disk: Outcome.IDLE}
    assert await site.bytes_of(good) == good.model
    (trouble,) = [each.trouble for each in writer.followers.all if each.disk == bad.disk]
    assert trouble is not None
    before = await epoch_blobs(site, f"{bad.disk}/")
    assert before
    assert await swept_later(site, writer) == 0
    assert await epoch_blobs(site, f"{bad.disk}/") == before
    client.failing = False
    if how != "not served":
        await site.account.put_blob(REPLICATION_CONTAINER, name, record.encode())
    assert (await writer.settle())[bad.disk] is Outcome.IDLE
    assert await site.bytes_of(bad) == bad.model


async def test_old_answers_are_collected_once_their_request_is_gone() -> None:
    site = await WriterSite.make()
    writer = site.start()
    done = DeleteDisks(request=new_uuid(site.random), names=["x"])
    await site.asked(writer, done)
    assert await swept_later(site, writer, 3600) == 0
    asked = DeleteDisks(request=new_uuid(site.random), names=["y"])
    await site.ask(asked)
    await site.account.put_blob(REPLICATION_CONTAINER, answer_name(asked.request), b"in progress")
    assert await swept_later(site, writer, 24 * 3600) == 1
    assert await site.names(REPLICATION_CONTAINER, "answers/") == [answer_name(asked.request)]


async def test_foreign_blobs_are_left_alone() -> None:
    site = await WriterSite.make()
    await site.account.put_blob(REPLICATION_CONTAINER, "notes.txt", b"hello")
    site.time.advance(10**7)
    assert await site.start().sweep.run() == 0
