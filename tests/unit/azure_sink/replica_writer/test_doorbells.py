"""Doorbells: a writer in the store's process begins as soon as there is work, whatever its intervals."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

from azure_sink.blob_store.store import BlobStore, StoreOptions
from azure_sink.local_blob_client import LocalBlobClient
from azure_sink.replica_writer.doorbells import RECORDS, REQUESTS, Doorbells
from replication.clock import Clock
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, EpochKey, GenerationId
from replication.store_documents import CloseGeneration
from replication.store_layout import manifest_name, request_name, segment_name
from tests.harness.epochs import new_uuid
from tests.harness.writer_site import HandClock, WriterSite

DISK = DiskId("22222222-2222-4222-8222-222222222222")
OTHER = DiskId("33333333-3333-4333-8333-333333333333")
FOR_EVER_S = 3600.0


def epoch(disk: DiskId, number: int = 1) -> EpochKey:
    return EpochKey(disk, GenerationId(1), EpochId(number))


async def rings(bells: Doorbells, which: str) -> bool:
    waiting = asyncio.create_task(bells.wait(which, FOR_EVER_S))
    for _ in range(3):
        await asyncio.sleep(0)
    if not waiting.done():
        waiting.cancel()
    return waiting.done() and not waiting.cancelled()


async def test_only_what_is_waited_for_rings_and_once() -> None:
    bells = Doorbells()
    bells.install(DISK)
    segment = segment_name(BatchKey(DISK, GenerationId(1), EpochId(1), AttemptNumber(1), BatchNumber(1)))
    for container, name in (
        ("replication", segment),
        ("replication", manifest_name(epoch(OTHER))),
        ("replicas", manifest_name(epoch(DISK))),
    ):
        bells.note_put(container, name)
    for which in (DISK, RECORDS, REQUESTS):
        assert not await rings(bells, which)
    bells.note_put("replication", manifest_name(epoch(DISK)))
    bells.note_put("replication", f"keys/{DISK}/0000000001")
    bells.note_put("replication", request_name(OTHER))
    for which in (DISK, RECORDS, REQUESTS):
        assert await rings(bells, which), "also if it rang before anybody waited"
        assert not await rings(bells, which)


async def test_wait_ends_by_itself_also_for_a_disk_without_a_bell() -> None:
    for which in (RECORDS, DISK):
        await asyncio.wait_for(Doorbells().wait(which, 0.001), 20)


async def test_writer_on_the_store_of_its_process_works_without_waiting_for_its_intervals(tmp_path: Path) -> None:
    bells = Doorbells()
    store = BlobStore.open(tmp_path, StoreOptions(on_put=bells.note_put))
    try:
        site = await WriterSite.on(LocalBlobClient(store), HandClock())
        site.settings = replace(site.settings, poll_busy_s=FOR_EVER_S, poll_idle_s=FOR_EVER_S)
        task = asyncio.create_task(site.start(clock=Clock(), doorbells=bells).run())
        try:
            async with asyncio.timeout(60):
                await _work(site)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    finally:
        await asyncio.to_thread(store.close)


async def _work(site: WriterSite) -> None:
    """Two disks, the second one later; three epochs each; a request."""
    for disk in (site.disk(), site.disk()):
        await disk.open_generation()
        for number in range(1, 4):
            await disk.put(disk.random_batches(2, 2))
            while (receipt := await site.receipt(disk)) is None or receipt.epoch != number:
                await asyncio.sleep(0.005)
        assert await site.bytes_of(disk) == disk.model
    close = CloseGeneration(request=new_uuid(site.random), disk=disk.disk, generation=1)
    await site.ask(close)
    while (answer := await site.answer(close)) is None or answer.final_epoch != 3:
        await asyncio.sleep(0.005)
