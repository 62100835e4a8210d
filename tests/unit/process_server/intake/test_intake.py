"""Batches and manifests on their way in: room and buffers are given back whatever happens, every wait ends, nothing is taken twice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from process_server.core.backlog import SegmentState
from process_server.core.compression import SMALLER, USUAL
from process_server.core.epoch_chain import NOTHING_APPLIED, ReceiptFacts
from process_server.intake.back_pressure import LONGEST_WAIT_S
from process_server.intake.manifest_intake import MANIFESTS_AT_ONCE, SLOT_WAIT_S, STORE_LOOKUP_S
from process_server.spool.kept_segments import KeptSegments
from process_server.spool.record import RecordKind
from replication.batch_frame import DataExtent, encode_batch
from replication.data_plane import ManifestSuperseded, SegmentsMissing
from replication.epoch_manifest import manifest_hash
from replication.errors import (
    BlockferryError,
    IntegrityError,
    InvalidInput,
    KeyConflict,
    NotFound,
    Overloaded,
    PeerUnavailable,
    Refused,
    Retryable,
)
from replication.extents import Extent
from replication.identifiers import EpochId, MachineId
from replication.sealed_segment import SegmentOpener
from replication.store_layout import (
    MANIFEST_HASH_METADATA,
    REPLICATION_CONTAINER,
    SEGMENT_DIGEST_METADATA,
    SEGMENT_TAG_METADATA,
    manifest_name,
    segment_name,
)
from tests.harness.epochs import new_uuid
from tests.harness.intake_rig import MIB, RANDOM, Content, running
from tests.harness.process_time import in_virtual_time, now_s

# -- batches --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_batch_is_acknowledged_once_and_known_ever_after() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        first, again = await rig.put(frame), await rig.put(frame)
        assert (first.created, again.created) == (True, False)
        assert first.acknowledgement == again.acknowledgement
        assert rig.state(frame.key) is SegmentState.WAITING
        assert rig.waiting == rig.begun == [rig.disk.key]


@in_virtual_time
async def test_other_content_under_the_same_key_is_never_taken() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        other = encode_batch(frame.key, [DataExtent(Extent(0, 512), memoryview(bytes([1]) * 512))])
        await rig.put(frame)
        for _ in range(2):
            with pytest.raises(KeyConflict):
                await rig.put(other)


@in_virtual_time
async def test_whatever_goes_wrong_with_a_body_room_and_buffer_are_given_back() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        content = b"".join((frame.head, *frame.data))
        for error in (PeerUnavailable("cannot wait any longer"), InvalidInput("cannot")):
            with pytest.raises(type(error)):
                await rig.put(frame, error=error)
            assert rig.holds_nothing
        damaged = bytearray(content)
        damaged[-1] ^= 1
        with pytest.raises(IntegrityError):
            await rig.batches.put(frame.key, rig.disk.machine, Content(bytes(damaged)).as_body())
        with pytest.raises(Refused):
            await rig.batches.put(frame.key, MachineId(new_uuid(RANDOM)), Content(content).as_body())
        with pytest.raises(InvalidInput):
            await rig.batches.put(frame.key, rig.disk.machine, Content(b"short").as_body())
        assert rig.holds_nothing
        assert (await rig.put(frame)).created


@in_virtual_time
async def test_a_failed_disk_and_a_full_one_accept_nothing() -> None:
    async with running() as rig:
        await rig.put(rig.disk.frame(1, 0))
        rig.files.failing_syncs = 1
        with pytest.raises(Retryable):
            await rig.put(rig.disk.frame(1, 1))
        assert rig.state(rig.disk.frame(1, 1).key) is None
        rig.files.capacity_bytes = 0
        with pytest.raises(Overloaded, match="file system is full"):
            await rig.put(rig.disk.frame(1, 2))
        assert rig.holds_nothing
        rig.files.capacity_bytes = 2**40
        assert (await rig.put(rig.disk.frame(1, 1))).created


@in_virtual_time
async def test_segments_of_every_level_open_to_the_same_frame() -> None:
    async with running() as rig:
        text = b"".join(b"line %d of a log that compresses\n" % number for number in range(30_000))[:MIB]
        data_key = bytes.fromhex(rig.config.grants[rig.disk.key].data_key)
        sizes = set()
        for batch, rig.level in enumerate((-1, USUAL, SMALLER)):
            frame = encode_batch(rig.disk.batch_key(1, batch), [DataExtent(Extent(0, MIB), memoryview(text))])
            await rig.put(frame)
            entry = rig.backlog.find(frame.key)
            assert entry is not None
            segment = bytearray(entry.segment_bytes)
            await rig.spool.read(entry.place, memoryview(segment))
            opened = SegmentOpener().open(memoryview(segment), data_key, expected=frame.key, expected_tag=entry.tag)
            assert bytes(opened) == b"".join((frame.head, *frame.data))
            sizes.add(entry.segment_bytes)
        assert len(sizes) == 3, "each was compressed in another way"


@in_virtual_time
async def test_what_was_sealed_stays_in_memory_as_it_is_in_the_spool() -> None:
    async with running() as rig:
        frames = [rig.disk.frame(1, batch) for batch in range(3)]
        for frame in frames:
            await rig.put(frame)
        for frame in frames:
            entry = rig.backlog.find(frame.key)
            assert entry is not None
            kept = rig.spool.kept.take(entry.place)
            assert kept is not None
            spooled = bytearray(entry.segment_bytes)
            await rig.spool.read(entry.place, memoryview(spooled))
            assert bytes(kept.content) == bytes(spooled)
            kept.lease.close()
        assert rig.spool.kept.kept_bytes == 0


@in_virtual_time
async def test_with_no_memory_left_a_batch_is_sealed_all_the_same() -> None:
    async with running() as rig:
        rig.spool.kept = KeptSegments(4096)
        frame = rig.disk.frame(1, 0)
        assert (await rig.put(frame)).created
        entry = rig.backlog.find(frame.key)
        assert entry is not None
        assert rig.spool.kept.take(entry.place) is None
        await rig.spool.read(entry.place, memoryview(bytearray(entry.segment_bytes)))


@in_virtual_time
async def test_nothing_stays_in_memory_of_what_failed_or_can_never_count() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        rig.files.failing_syncs = 1
        with pytest.raises(Retryable):
            await rig.put(frame)
        assert rig.spool.kept.kept_bytes == 0, "its sync failed"
        rig.files.failing_writes = 1
        with pytest.raises(Retryable):
            await rig.put(frame)
        assert rig.spool.kept.kept_bytes == 0, "its write failed"
        content = bytearray(b"".join((frame.head, *frame.data)))
        content[-1] ^= 1
        with pytest.raises(IntegrityError):
            await rig.batches.put(frame.key, rig.disk.machine, Content(bytes(content)).as_body())
        assert rig.spool.kept.kept_bytes == 0, "it is not what it says"
        await rig.put(frame)
        assert rig.spool.kept.kept_bytes > 0
        entry = rig.backlog.find(frame.key)
        assert entry is not None
        rig.spool.release(entry.place, RecordKind.DISCARDED)
        assert rig.spool.kept.kept_bytes == 0, "its epoch was given up"


@in_virtual_time
async def test_without_a_buffer_a_batch_waits_two_seconds_and_no_longer() -> None:
    async with running(arena_bytes=MIB) as rig:
        arrives = asyncio.Event()
        holding = asyncio.create_task(rig.put(rig.disk.frame(1, 0, size=900 * 1024), arrives=arrives))
        await asyncio.sleep(1)
        with pytest.raises(Overloaded):
            await rig.put(rig.disk.frame(1, 1, size=900 * 1024))
        assert now_s() == 3
        arrives.set()
        assert (await holding).created


@in_virtual_time
async def test_a_request_that_is_broken_off_after_its_body_came_is_finished_all_the_same() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        rig.store.answers.clear()  # the store is asked whether it has the attempt
        request = asyncio.create_task(rig.put(frame))
        await asyncio.sleep(1)
        request.cancel()
        await asyncio.sleep(0)
        assert not request.done()
        rig.store.answers.set()
        await asyncio.wait([request])
        assert rig.state(frame.key) is SegmentState.WAITING
        assert not (await rig.put(frame)).created


@in_virtual_time
async def test_a_store_that_does_not_answer_holds_up_new_batches_for_five_seconds_once() -> None:
    async with running() as rig:
        rig.store.answers.clear()
        assert (await rig.put(rig.disk.frame(1, 0))).created
        assert now_s() == 5
        assert (await rig.put(rig.disk.frame(1, 1))).created
        assert (await rig.put(rig.disk.frame(2, 0))).created
        assert now_s() == 5


@in_virtual_time
async def test_a_batch_of_an_epoch_that_is_over_is_asked_of_the_store_and_never_waits() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        rig.decide(1)
        rig.store.answers.clear()
        with pytest.raises(PeerUnavailable, match="no answer"):
            await rig.put(frame)
        rig.store.answers.set()
        assert (await rig.put(frame)).created, "durable, acknowledged, and of no use"
        assert rig.state(frame.key) is None
        assert rig.backlog.waiting_bytes == 0


@in_virtual_time
async def test_batches_of_a_spool_that_is_nearly_full_wait_and_repeated_ones_do_not() -> None:
    async with running(limit_bytes=64 * MIB) as rig:
        first, second, third = (rig.disk.frame(1, number) for number in range(3))
        await rig.put(first)
        rig.pressure.file_system_available_bytes = 12 * MIB  # as much as batches are never given
        began_s = now_s()
        await rig.put(second)
        assert now_s() == began_s, "one pays, and the next one waits"
        assert not (await rig.put(first)).created
        assert now_s() == began_s
        await rig.put(third)
        assert 0 < now_s() - began_s <= LONGEST_WAIT_S
        rig.pressure.file_system_available_bytes = 64 * MIB
        assert rig.spool.budget.reserved_bytes == 0
        assert (await rig.put(rig.disk.frame(1, 3))).created


@in_virtual_time
async def test_what_was_known_when_it_began_and_is_not_any_more_needs_room_like_any_other() -> None:
    async with running(limit_bytes=64 * MIB) as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        arrives = asyncio.Event()
        request = asyncio.create_task(rig.put(frame, arrives=arrives))
        await asyncio.sleep(1)
        rig.decide(1)
        with contextlib.ExitStack() as full:
            with contextlib.suppress(Overloaded):
                while True:
                    full.enter_context(rig.spool.reserve_batch(1))
            arrives.set()
            with pytest.raises(Overloaded, match="the spool is full"):
                await request


# -- manifests ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_manifest_is_pending_once_its_segments_are_spooled() -> None:
    async with running() as rig:
        frames = [rig.disk.frame(1, batch) for batch in range(3)]
        for frame in frames:
            await rig.put(frame)
        encoded = rig.disk.manifest(1, frames)
        assert await rig.put_manifest(1, encoded)
        assert not await rig.put_manifest(1, encoded)
        (pending,) = rig.backlog.pending_manifests()
        assert pending.missing == {0, 1, 2}
        assert rig.pending == [rig.disk.key]


@in_virtual_time
async def test_a_manifest_that_names_what_nobody_has_or_comes_too_late_is_refused() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        named = rig.disk.acknowledged[frame.key]
        rig.disk.acknowledged[frame.key] = named.model_copy(update={"tag": "00" * 16})
        with pytest.raises(SegmentsMissing, match="1 of its 1 segments"):
            await rig.put_manifest(1, rig.disk.manifest(1, [frame]))
        rig.disk.acknowledged[frame.key] = named
        rig.decide(1, b"x" * 32)
        with pytest.raises(ManifestSuperseded):
            await rig.put_manifest(1, rig.disk.manifest(1, [frame]))
        assert not list(rig.backlog.pending_manifests())


@in_virtual_time
async def test_a_manifest_that_the_store_has_is_a_repetition_though_the_chain_has_forgotten_it() -> None:
    async with running() as rig:
        encoded = rig.disk.manifest(3, [], previous_hash=b"p" * 32)
        await rig.store.create_container(REPLICATION_CONTAINER)
        metadata = {MANIFEST_HASH_METADATA: manifest_hash(encoded).hex()}
        name = manifest_name(rig.disk.epoch_key(3))
        await rig.store.put_blob(REPLICATION_CONTAINER, name, encoded, metadata=metadata)
        chain = rig.backlog.generation(rig.disk.key, rig.disk.machine).chain
        chain.learn(ReceiptFacts(EpochId(40), b"h" * 32, closed=False))
        assert not await rig.put_manifest(3, encoded)
        assert await rig.manifests.stored(rig.disk.epoch_key(3), rig.disk.machine) == encoded
        with pytest.raises(NotFound):
            await rig.manifests.stored(rig.disk.epoch_key(4), rig.disk.machine)


@in_virtual_time
async def test_a_store_that_does_not_answer_ends_a_manifests_wait_and_the_turns_come_back() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        named = rig.disk.acknowledged[frame.key]
        rig.disk.acknowledged[frame.key] = named.model_copy(update={"tag": "00" * 16})
        unknown = rig.disk.manifest(1, [frame])
        rig.store.answers.clear()
        begun_s = now_s()
        asked = [asyncio.create_task(rig.put_manifest(1, unknown)) for _ in range(MANIFESTS_AT_ONCE)]
        await asyncio.sleep(1)
        other = rig.new_disk()
        with pytest.raises(Overloaded, match="manifests wait"):
            await rig.put_manifest(1, other.manifest(1, []), disk=other)
        assert now_s() == begun_s + 1 + SLOT_WAIT_S
        with pytest.raises(PeerUnavailable, match="no answer"):
            await asked[0]
        assert now_s() == begun_s + STORE_LOOKUP_S
        rig.store.answers.set()
        for task in asked[1:]:
            with pytest.raises(SegmentsMissing):
                await task
        assert await rig.put_manifest(1, other.manifest(1, []), disk=other)


@in_virtual_time
async def test_slow_bodies_of_manifests_hold_up_no_others() -> None:
    async with running() as rig:
        arrives = asyncio.Event()
        slow = []
        for _ in range(2 * MANIFESTS_AT_ONCE):
            disk = rig.new_disk()
            slow.append(asyncio.create_task(rig.put_manifest(1, disk.manifest(1, []), disk=disk, arrives=arrives)))
        await asyncio.sleep(30)
        begun_s = now_s()
        assert await rig.put_manifest(1, rig.disk.manifest(1, []))
        assert now_s() == begun_s
        arrives.set()
        assert all(await asyncio.gather(*slow))


@in_virtual_time
async def test_what_is_no_manifest_is_refused_and_a_failed_disk_accepts_none() -> None:
    async with running() as rig:
        encoded = rig.disk.manifest(1, [])
        for broken in (b"x", encoded[:-1], b"XXXX" + encoded[4:]):
            with pytest.raises(BlockferryError, match="cannot"):
                await rig.put_manifest(1, broken)
        rig.files.failing_syncs = 2  # the new file's, and the one that its first record's group needs
        with pytest.raises(Retryable):
            await rig.put_manifest(1, encoded)
        with pytest.raises(Retryable):
            await rig.put_manifest(1, encoded)
        assert not list(rig.backlog.pending_manifests())
        assert await rig.put_manifest(1, encoded)


@in_virtual_time
async def test_a_manifest_that_the_store_has_lost_is_asked_for_again_when_its_agent_puts_it_again() -> None:
    """The store was put back to a state from before the manifest; this process server gave up its own copy long ago."""
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        encoded = rig.disk.manifest(1, [frame])
        rig.decide(1, manifest_hash(encoded))
        with pytest.raises(SegmentsMissing, match="1 of its 1 segments"):
            await rig.put_manifest(1, encoded)
        assert rig.stepped_back == [NOTHING_APPLIED]
        again = rig.disk.frame(1, 0, attempt=2)
        assert (await rig.put(again)).created
        assert await rig.put_manifest(1, rig.disk.manifest(1, [again], attempt=2))
        (pending,) = rig.backlog.pending_manifests()
        assert pending.attempt == 2


@in_virtual_time
async def test_an_omitted_manifest_whose_segments_are_stored_is_accepted_again() -> None:
    """It was deleted from the store, its segments were not: the very same manifest goes there once more."""
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        entry = rig.backlog.find(frame.key)
        assert entry is not None
        kept = rig.spool.kept.take(entry.place)
        assert kept is not None
        segment = bytes(kept.content)
        kept.lease.close()
        await rig.store.create_container(REPLICATION_CONTAINER)
        await rig.store.put_blob(
            REPLICATION_CONTAINER,
            segment_name(frame.key),
            segment,
            metadata={SEGMENT_DIGEST_METADATA: entry.digest.hex(), SEGMENT_TAG_METADATA: entry.tag.hex()},
        )
        encoded = rig.disk.manifest(1, [frame])
        rig.decide(1, manifest_hash(encoded))
        assert await rig.put_manifest(1, encoded)
        assert rig.stepped_back == [NOTHING_APPLIED]
        (pending,) = rig.backlog.pending_manifests()
        assert pending.manifest_hash == manifest_hash(encoded)


@in_virtual_time
async def test_a_decided_manifest_that_is_put_again_is_fine_while_the_store_has_it_or_has_applied_it() -> None:
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        encoded = rig.disk.manifest(1, [frame])
        digest = manifest_hash(encoded)
        rig.decide(1, digest)
        await rig.store.create_container(REPLICATION_CONTAINER)
        name = manifest_name(rig.disk.epoch_key(1))
        await rig.store.put_blob(REPLICATION_CONTAINER, name, encoded, metadata={MANIFEST_HASH_METADATA: digest.hex()})
        assert not await rig.put_manifest(1, encoded)
        assert rig.receipts_read == 0
        await rig.store.delete_blob(REPLICATION_CONTAINER, name)
        rig.receipt = ReceiptFacts(EpochId(1), digest, closed=False)
        assert not await rig.put_manifest(1, encoded)
        assert rig.receipts_read == 1
        assert not await rig.put_manifest(1, encoded)
        assert rig.receipts_read == 1, "what is applied is not asked about"
        assert not rig.stepped_back


@in_virtual_time
async def test_segments_that_are_doubted_while_their_manifest_is_written_are_asked_of_the_store_and_not_given_up() -> (
    None
):
    async with running() as rig:
        frame = rig.disk.frame(1, 0)
        await rig.put(frame)
        rig.backlog.finish(frame.key, rig.backlog.take(frame.key).place, SegmentState.STORED)
        written = rig.spool.append_in_thread

        async def append_in_thread(*args: Any) -> Any:
            rig.backlog.doubt_stored(rig.disk.key)
            return await written(*args)

        rig.spool.append_in_thread = append_in_thread  # type: ignore[assignment,method-assign]
        assert await rig.put_manifest(1, rig.disk.manifest(1, [frame]))
        (pending,) = rig.backlog.pending_manifests()
        assert pending.unverified
        assert not pending.lost
