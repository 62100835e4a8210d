"""Epochs applied to an in-memory account: bytes against a model, layout, overlaps, cleaning, what a receipt says. Called by pytest."""

from __future__ import annotations

import pytest

from azure_sink.core.replica_metadata import decode_state
from azure_sink.core.replica_state import Phase, Position
from azure_sink.replica_writer import epoch_application
from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.vhd import FixedVhd, parse_footer
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobConflict
from replication.identifiers import EpochKey, GenerationId
from replication.store_layout import REPLICAS_CONTAINER, REPLICATION_CONTAINER, manifest_name, parse_epoch_blob_name
from tests.harness.epochs import Write, build_epoch, put_epoch, put_segment
from tests.harness.faulty_blob_client import LossyBlobClient
from tests.harness.writer_site import MIB, WriterSite


async def test_replica_equals_the_model_after_each_epoch() -> None:
    site = await WriterSite.make()
    disk = site.disk(3 * MIB + 512)
    await disk.open_generation()
    writer = site.start()
    for _ in range(10):
        await disk.put(disk.random_batches(batches=3, writes=6))
        assert await writer.settle() == {disk.disk: Outcome.IDLE}
        assert await site.bytes_of(disk) == disk.model


async def test_higher_batch_wins_where_batches_overlap() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    low, middle, high = b"\1" * 8192, b"\2" * 4096, b"\3" * 4096
    await disk.put([[Write(0, low)], [Write(2048, middle)], [Write(4096, high)]])
    await site.start().settle()
    assert (await site.bytes_of(disk))[:8192] == b"\1" * 2048 + b"\2" * 2048 + high


@pytest.mark.parametrize("group", [1, 2, 3, 64])
@pytest.mark.parametrize("slots", [1, 3])
async def test_large_epoch_flows_through_few_slots(group: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", group)
    site = await WriterSite.make(group, segment_slots=slots)
    disk = site.disk(2 * MIB)
    await disk.open_generation()
    await disk.put(disk.random_batches(batches=11, writes=5))
    slow = LossyBlobClient(site.account, site.random, fault_probability=0.0)
    await site.start(slow.as_client()).settle()
    assert await site.bytes_of(disk) == disk.model


async def test_a_write_of_a_lower_group_that_arrives_late_does_not_land_on_a_higher_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store had done it, its answer was lost, it was sent again: the copy arrives when the next group is written already."""
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", 1)
    site = await WriterSite.make(segment_slots=1)
    disk = site.disk()
    await disk.open_generation()
    await disk.put([[Write(0, b"\1" * 8192)], [Write(4096, b"\2" * 4096)]])
    first: list[tuple[int, bytes, dict[str, object]]] = []
    refused: list[str] = []

    class Late:
        def __getattr__(self, name: str) -> object:
            return getattr(site.account, name)

        async def put_pages(
            self, container: str, name: str, offset_bytes: int, body: object, **fence: object
        ) -> object:
            content = body if isinstance(body, bytes) else b"".join(body)  # type: ignore[arg-type]
            stamp = await site.account.put_pages(container, name, offset_bytes, content, **fence)  # type: ignore[arg-type]
            if content == b"\1" * 8192:
                first.append((offset_bytes, content, fence))
            elif content == b"\2" * 4096:
                (offset, late, its_fence) = first[0]
                try:
                    await site.account.put_pages(container, name, offset, late, **its_fence)  # type: ignore[arg-type]
                except BlobConflict as error:
                    refused.append(error.storage_code)
            return stamp

    late: BlobClient = Late()  # type: ignore[assignment]
    assert await site.start(late).settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model
    assert refused == ["SequenceNumberConditionNotMet"]


async def test_replica_is_a_fixed_vhd_of_the_source() -> None:
    site = await WriterSite.make()
    disk = site.disk(2 * MIB + 512)
    await disk.open_generation()
    await site.start().settle()
    blob = await site.blob_bytes(REPLICAS_CONTAINER, disk.disk)
    vhd = FixedVhd(disk.size_bytes)
    assert len(blob) == vhd.blob_bytes
    assert parse_footer(blob[-512:]) == vhd.data_bytes
    assert blob[:-512] == bytes(vhd.data_bytes)


async def test_receipt_states_what_is_applied() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    writer = site.start()
    await writer.settle()
    nothing = await site.receipt(disk)
    assert nothing is not None
    assert (nothing.generation, nothing.epoch, nothing.manifest_hash) == (1, 0, "0" * 64)
    built = await disk.put(disk.random_batches(1, 2))
    await writer.settle()
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.manifest_hash) == (1, built.hash.hex())
    assert receipt.cut_time_ns == built.manifest.cut_time_ns


async def test_void_epoch_advances_without_content() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    first = await disk.put(disk.random_batches(1, 2))
    # An attempt of epoch 2 has left a segment, then the epoch was abandoned.
    abandoned = build_epoch(disk.next_key(), [[Write(0, b"x" * 512)]], data_key=disk.data_key)
    await put_segment(site.account, abandoned.segments[0])
    void = await disk.put_void(attempt=2)
    await site.start().settle()
    assert await site.bytes_of(disk) == disk.model
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.manifest_hash) == (2, void.hash.hex())
    assert receipt.cut_time_ns == first.manifest.cut_time_ns


async def test_epoch_without_segments_is_applied() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put([])
    await disk.put([[]])
    await site.start().settle()
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.epoch == 2


async def test_epochs_wait_for_the_one_before() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    first = disk.build(disk.random_batches(1, 2))
    second = disk.build(disk.random_batches(1, 2))
    await put_epoch(site.account, second)
    writer = site.start()
    await writer.settle()
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.epoch == 0
    await put_epoch(site.account, first)
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model


async def test_segments_and_older_manifests_are_gone_once_the_receipt_is_there() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    for _ in range(3):
        await disk.put(disk.random_batches(4, 2))
    await site.start().settle()
    newest = manifest_name(EpochKey(disk.disk, GenerationId(1), disk.built[1, 3].manifest.key.epoch))
    assert await site.names(REPLICATION_CONTAINER, f"{disk.disk}/") == [newest, f"{disk.disk}/0000000001/receipt"]


async def test_nothing_is_collected_before_the_receipt_says_that_its_epoch_is_applied() -> None:
    """Deleted before, an agent or a process server that asks would find neither the segments nor the receipt that explains it."""
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    deleted: list[tuple[int, int]] = []

    class Watching:
        def __getattr__(self, name: str) -> object:
            return getattr(site.account, name)

        async def delete_blob(self, container: str, name: str, **kwargs: object) -> None:
            key, receipt = parse_epoch_blob_name(name), await site.receipt(disk)
            if key is not None:
                deleted.append((key.epoch, -1 if receipt is None else receipt.epoch))
            await site.account.delete_blob(container, name, **kwargs)  # type: ignore[arg-type]

    watching: BlobClient = Watching()  # type: ignore[assignment]
    writer = site.start(watching)
    for _ in range(3):
        await disk.put(disk.random_batches(4, 2))
        await writer.settle()
    assert {epoch for epoch, _ in deleted} == {1, 2, 3}
    assert all(receipted >= epoch for epoch, receipted in deleted)


async def test_metadata_says_applying_while_an_epoch_is_written() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await site.start().settle()
    seen: list[tuple[Phase, Position, int | None]] = []

    class Watching:
        def __getattr__(self, name: str) -> object:
            return getattr(site.account, name)

        async def put_pages(self, *args: object, **kwargs: object) -> object:
            state = decode_state((await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).metadata)
            seen.append((state.phase, state.applied, state.applying_epoch))
            assert kwargs["lease_id"]
            assert kwargs["if_sequence_number_eq"]
            return await site.account.put_pages(*args, **kwargs)  # type: ignore[arg-type]

    watching: BlobClient = Watching()  # type: ignore[assignment]
    await disk.put([[Write(0, b"a" * 512)]])
    await site.start(watching).settle()
    assert seen == [(Phase.APPLYING, Position(1, 0), 1)]
    after = decode_state((await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).metadata)
    assert (after.phase, after.applied) == (Phase.SETTLED, Position(1, 1))


async def test_adjacent_extents_share_a_call() -> None:
    site = await WriterSite.make()
    disk = site.disk(16 * MIB)
    await disk.open_generation()
    await site.start().settle()
    calls: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            if name in {"put_pages", "clear_pages"}:
                calls.append(name)
            return getattr(site.account, name)

    counting: BlobClient = Counting()  # type: ignore[assignment]
    data = [Write(number * 4096, bytes([number]) * 4096) for number in range(1, 100)]
    zeros = [Write(MIB + number * 4096, zero_bytes=4096) for number in range(100)]
    await disk.put([[*data, *zeros, Write(4 * MIB, b"z" * 6 * MIB)]])
    await site.start(counting).settle()
    assert await site.bytes_of(disk) == disk.model
    assert sorted(calls) == ["clear_pages", "put_pages", "put_pages", "put_pages"]


async def test_sequence_number_rises_with_each_epoch_and_take_over() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    numbers = []
    writer = site.start()
    for _ in range(2):
        await disk.put(disk.random_batches(1, 1))
        await writer.settle()
        numbers.append((await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).sequence_number)
    await site.start().settle()
    numbers.append((await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).sequence_number)
    assert numbers == sorted(set(numbers), key=lambda number: number or 0)


async def test_many_disks_are_followed_at_once() -> None:
    site = await WriterSite.make()
    disks = [site.disk(64 * 1024) for _ in range(12)]
    for disk in disks:
        await disk.open_generation()
        await disk.put(disk.random_batches(2, 3, 8192))
    await site.start().settle()
    for disk in disks:
        assert await site.bytes_of(disk) == disk.model


async def test_size_that_is_no_multiple_of_a_sector_is_written_to_its_last_sector() -> None:
    site = await WriterSite.make()
    disk = site.disk(4096 + 100)
    await disk.open_generation()
    disk.model.extend(bytes(412))  # the last sector reaches beyond the source's end
    await disk.put([[Write(4096, b"z" * 512)]])
    assert set((await site.start().settle()).values()) == {Outcome.IDLE}
    assert (await site.blob_bytes(REPLICAS_CONTAINER, disk.disk))[4096:4608] == b"z" * 512
