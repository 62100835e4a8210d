"""Opening, closing and changing generations (R8), with growth and shrinking (R13). Called by pytest."""

from __future__ import annotations

import asyncio

import pytest

from azure_sink.core.replica_metadata import decode_state
from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.vhd import FixedVhd, parse_footer
from replication.epoch_manifest import NO_MANIFEST
from replication.service.health import HealthState
from replication.store_documents import NEVER_OPENED, CloseGeneration, GenerationBase
from replication.store_layout import REPLICAS_CONTAINER, REPLICATION_CONTAINER
from tests.harness.epochs import DiskHistory, Write, new_uuid, put_epoch
from tests.harness.writer_site import MIB, WriterSite


def close(site: WriterSite, disk: DiskHistory, generation: int | None = None) -> CloseGeneration:
    number = disk.generation if generation is None else generation
    return CloseGeneration(request=new_uuid(site.random), disk=disk.disk, generation=number)


async def test_closing_applies_what_is_complete_and_answers_the_final_epoch() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    for _ in range(3):
        await disk.put(disk.random_batches(1, 2))
    complete = bytes(disk.model)
    disk.build(disk.random_batches(1, 1))  # epoch 4 never arrives
    await put_epoch(site.account, disk.build(disk.random_batches(1, 1)))  # epoch 5 has a gap before it
    answer = await site.asked(site.start(), close(site, disk))
    assert (answer.state, answer.final_epoch, answer.problem) == ("succeeded", 3, None)
    assert await site.bytes_of(disk) == complete
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.closed) == (3, True)


def base_at(disk: DiskHistory, generation: int, epoch: int) -> GenerationBase:
    manifest_hash = disk.built[generation, epoch].hash if epoch else NO_MANIFEST
    return GenerationBase(generation=generation, epoch=epoch, manifest_hash=manifest_hash.hex())


async def test_closing_names_the_manifest_that_the_next_generation_continues() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    writer = site.start()
    await disk.put(disk.random_batches(1, 2))
    await disk.put(disk.random_batches(1, 2))
    assert (await site.asked(writer, close(site, disk))).base == base_at(disk, 1, 2)
    await disk.open_generation(base_at(disk, 1, 2))
    await writer.settle()
    assert (await site.asked(writer, close(site, disk, 1))).base == base_at(disk, 1, 2), "its successor is open"
    assert (await site.asked(writer, close(site, disk, 2))).base == base_at(disk, 2, 0)


async def test_generation_that_continues_another_epoch_of_the_same_number_is_refused() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    await site.asked(writer, close(site, disk))
    await disk.open_generation(GenerationBase(generation=1, epoch=1, manifest_hash="ab" * 32))
    assert await writer.settle() == {disk.disk: Outcome.TROUBLED}
    assert await problem_of(site, disk, 2) == "generation-refused"


async def test_closed_generation_takes_no_later_epoch() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    await site.asked(writer, close(site, disk))
    closed = bytes(disk.model)
    await disk.put(disk.random_batches(2, 2))
    await writer.settle()
    await site.start().settle()
    assert await site.bytes_of(disk) == closed
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.closed) == (1, True)


async def test_generation_without_an_epoch_closes_at_none() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    answer = await site.asked(site.start(), close(site, disk))
    assert (answer.state, answer.final_epoch) == ("succeeded", 0)


async def test_closing_again_answers_the_same() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    assert (await site.asked(writer, close(site, disk))).final_epoch == 1
    assert (await site.asked(writer, close(site, disk))).final_epoch == 1
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await disk.put(disk.random_batches(1, 2))
    await writer.settle()
    assert (await site.asked(writer, close(site, disk, 1))).final_epoch == 1, "its successor is open"
    assert (await site.asked(writer, close(site, disk, 2))).final_epoch == 1


async def test_next_generation_continues_where_the_closed_one_ended() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(2, 3))
    writer = site.start()
    await site.asked(writer, close(site, disk))
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await disk.put(disk.random_batches(2, 3))
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model
    receipt = await site.receipt(disk, 2)
    assert receipt is not None
    assert (receipt.generation, receipt.epoch) == (2, 1)


async def test_next_generation_waits_until_the_old_one_is_closed() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 1))
    first = bytes(disk.model)
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await disk.put(disk.random_batches(1, 1))
    writer = site.start()
    await writer.settle()
    assert await site.bytes_of(disk) == first
    assert await problem_of(site, disk, 2) == "generation-refused"
    await site.asked(writer, close(site, disk, 1))
    assert await site.bytes_of(disk) == disk.model
    assert await problem_of(site, disk, 2) is None


async def problem_of(site: WriterSite, disk: DiskHistory, generation: int) -> str | None:
    receipt = await site.receipt(disk, generation)
    assert receipt is not None
    return None if receipt.problem is None else receipt.problem.code


async def refused_disk(site: WriterSite, *, closed: bool) -> DiskHistory:
    """A replica at 1/2, and the record of generation 2, which continues 1/1."""
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    await writer.settle()
    if closed:
        await site.asked(writer, close(site, disk))
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    return disk


@pytest.mark.parametrize("closed", [True, False])
async def test_refused_generation_is_told_everywhere_and_logged_once(
    closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = await WriterSite.make()
    disk = await refused_disk(site, closed=closed)
    writer = site.start()
    tasks = asyncio.create_task(writer.run())
    try:
        async with asyncio.timeout(20):
            while site.health.worst is not HealthState.DEGRADED:
                await asyncio.sleep(0)
            for _ in range(2000):
                await asyncio.sleep(0)
    finally:
        tasks.cancel()
        await asyncio.gather(tasks, return_exceptions=True)
    labels = {"disk": disk.disk, "code": "generation-refused"}
    assert site.registry.get_sample_value("blockferry_writer_disk_problem", labels) == 1
    assert await problem_of(site, disk, 2) == "generation-refused"
    said = [record.message for record in caplog.records if "cannot open generation 2" in record.message]
    assert len(said) == 1
    assert "migratectl resync" in said[0]
    assert await problem_of(site, disk, 1) is None


@pytest.mark.parametrize("closed", [True, False])
async def test_refused_generation_can_be_closed_and_the_next_one_goes_on_from_the_replica(closed: bool) -> None:
    site = await WriterSite.make()
    disk = await refused_disk(site, closed=closed)
    await disk.put(disk.random_batches(1, 2))
    before = bytes(disk.after[1, 2])
    writer = site.start()
    for _ in range(2):
        answer = await site.asked(writer, close(site, disk, 2))
        assert (answer.state, answer.base) == ("succeeded", base_at(disk, 1, 2))
        assert answer.problem is not None
        assert answer.problem.code == NEVER_OPENED
    assert await site.bytes_of(disk) == before
    await disk.open_generation(GenerationBase(generation=1, epoch=2))
    disk.model = bytearray(before)
    await disk.put(disk.random_batches(1, 2))
    assert await writer.settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model
    assert await problem_of(site, disk, 3) is None


async def test_generation_that_continues_a_replica_that_is_gone_can_be_closed() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation(GenerationBase(generation=1, epoch=7))
    answer = await site.asked(site.start(), close(site, disk))
    assert (answer.state, answer.base) == ("succeeded", None)
    assert answer.problem is not None
    assert answer.problem.code == NEVER_OPENED


@pytest.mark.parametrize("base", [GenerationBase(generation=1, epoch=0), GenerationBase(generation=1, epoch=2), None])
async def test_generation_that_continues_elsewhere_is_refused_and_stated(base: GenerationBase | None) -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    await site.asked(writer, close(site, disk))
    before = bytes(disk.model)
    await disk.open_generation(base)
    await disk.put(disk.random_batches(1, 2))
    assert await writer.settle() == {disk.disk: Outcome.TROUBLED}
    assert await site.bytes_of(disk) == before
    refused = await site.receipt(disk, 2)
    assert refused is not None
    assert refused.epoch == 0
    assert refused.problem is not None
    assert refused.problem.code == "generation-refused"
    closed = await site.receipt(disk, 1)
    assert closed is not None
    assert (closed.closed, closed.problem) == (True, None)


async def test_generation_with_a_base_is_refused_where_there_is_no_replica() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation(GenerationBase(generation=1, epoch=7))
    assert await site.start().settle() == {disk.disk: Outcome.TROUBLED}
    assert await site.names(REPLICAS_CONTAINER) == []
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.problem is not None


@pytest.mark.parametrize(("before", "after"), [(MIB, 3 * MIB + 512), (MIB + 512, MIB + 4096), (3 * MIB, MIB + 512)])
async def test_change_of_size_keeps_what_both_sizes_have_and_zeroes_the_rest(before: int, after: int) -> None:
    site = await WriterSite.make()
    disk = site.disk(before)
    await disk.open_generation()
    await disk.put([[Write(0, site.random.randbytes(before))]])
    writer = site.start()
    await site.asked(writer, close(site, disk))
    disk.size_bytes = after
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await writer.settle()
    blob = await site.blob_bytes(REPLICAS_CONTAINER, disk.disk)
    vhd = FixedVhd(after)
    assert blob[:after] == disk.model
    assert len(blob) == vhd.blob_bytes
    assert blob[after : vhd.data_bytes] == bytes(vhd.data_bytes - after)
    assert parse_footer(blob[-512:]) == vhd.data_bytes
    await disk.put([[Write(after - 512, b"e" * 512)]])
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model


async def test_generation_that_cannot_go_on_is_closed_where_it_is() -> None:
    """A small epoch is verified whole before its first write: nothing is torn."""
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    good = bytes(disk.model)
    built = await disk.put(disk.random_batches(2, 2))
    await site.account.delete_blob(
        REPLICATION_CONTAINER, (await site.names(REPLICATION_CONTAINER, _segments(disk, 2)))[0]
    )
    answer = await site.asked(site.start(), close(site, disk))
    assert (answer.state, answer.final_epoch, answer.problem) == ("succeeded", 1, None)
    assert await site.bytes_of(disk) == good
    assert built.manifest.key.epoch == 2


async def test_closing_says_when_an_epoch_is_torn() -> None:
    site = await WriterSite.make(segment_slots=1)
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    await disk.put([[Write(0, b"a" * 512)], [Write(4096, b"b" * 512)]])
    damaged = (await site.names(REPLICATION_CONTAINER, _segments(disk, 2)))[0]
    content = bytearray(await site.blob_bytes(REPLICATION_CONTAINER, damaged))
    content[150] ^= 1
    await site.account.put_blob(REPLICATION_CONTAINER, damaged, bytes(content))
    writer = site.start()
    answer = await site.asked(writer, close(site, disk))
    assert (answer.state, answer.final_epoch) == ("succeeded", 1)
    assert answer.problem is not None
    assert answer.problem.code == "torn-epoch"
    torn_hash = disk.built[1, 2].hash.hex()
    assert answer.base == base_at(disk, 1, 1).model_copy(update={"torn_manifest_hash": torn_hash})
    # The next generation sends all of the torn epoch again (R1); then the replica is exact.
    disk.model[0:512], disk.model[4096:4608] = b"c" * 512, b"d" * 512
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await disk.put([[Write(0, b"c" * 512), Write(4096, b"d" * 512)]])
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model


def _segments(disk: DiskHistory, epoch: int) -> str:
    return f"{disk.disk}/{disk.generation:010}/{epoch:020}/0"


async def test_closing_an_unknown_generation_fails() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    writer = site.start()
    answer = await site.asked(writer, CloseGeneration(request=new_uuid(site.random), disk=disk.disk, generation=1))
    assert (answer.state, answer.problem is not None) == ("failed", True)
    await disk.open_generation()
    later = await site.asked(writer, close(site, disk, 7))
    assert later.state == "failed"
    assert later.problem is not None
    assert later.problem.code == "not-found"


async def test_request_finds_a_generation_that_was_recorded_just_now() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    writer = site.start()
    await writer.settle()
    await disk.open_generation()
    request = close(site, disk)
    await site.ask(request)
    await writer.desk.handle(request.request)
    answer = await site.answer(request)
    assert answer is not None
    assert (answer.state, answer.final_epoch) == ("succeeded", 0)


async def test_old_generations_blobs_are_of_no_effect() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    await site.asked(writer, close(site, disk))
    late = disk.build(disk.random_batches(1, 2))
    disk.model = bytearray(disk.after[1, 1])
    await disk.open_generation(GenerationBase(generation=1, epoch=1))
    await put_epoch(site.account, late)
    await disk.put(disk.random_batches(1, 2))
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model
    state = decode_state((await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).metadata)
    assert (state.applied.generation, state.applied.epoch) == (2, 1)
