"""The sweep: what is stale goes, what may still be needed stays. Called by pytest."""

from __future__ import annotations

from random import Random

from replication.store_documents import DeleteDisks, GenerationBase
from replication.store_layout import REPLICATION_CONTAINER, answer_name, manifest_name, segment_name
from tests.harness.epochs import Write, build_epoch, new_uuid, put_epoch, put_segment
from tests.harness.writer_site import WriterSite


async def epoch_blobs(site: WriterSite, prefix: str) -> list[str]:
    return [name for name in await site.names(REPLICATION_CONTAINER, prefix) if not name.endswith("/receipt")]


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
    disk = site.disk()
    disk.generation = 1
    disk.data_key = bytes(32)
    await put_epoch(site.account, disk.build([[Write(0, b"1" * 512)]]))
    writer = site.start()
    await writer.settle()
    assert await writer.sweep.run() == 0
    site.time.advance(3700)
    assert await writer.sweep.run() == 2


async def test_old_answers_are_collected_once_their_request_is_gone() -> None:
    site = await WriterSite.make()
    writer = site.start()
    done = DeleteDisks(request=new_uuid(site.random), names=["x"])
    await site.asked(writer, done)
    site.time.advance(3600)
    assert await writer.sweep.run() == 0
    asked = DeleteDisks(request=new_uuid(site.random), names=["y"])
    await site.ask(asked)
    await site.account.put_blob(REPLICATION_CONTAINER, answer_name(asked.request), b"in progress")
    site.time.advance(24 * 3600)
    assert await writer.sweep.run() == 1
    assert await site.names(REPLICATION_CONTAINER, "answers/") == [answer_name(asked.request)]


async def test_foreign_blobs_are_left_alone() -> None:
    site = await WriterSite.make()
    await site.account.put_blob(REPLICATION_CONTAINER, "notes.txt", b"hello")
    site.time.advance(10**7)
    assert await site.start().sweep.run() == 0
