"""Segments and manifests that are swapped, omitted, replayed or damaged, and records that lie: refused, stated, replica unharmed.

Called by pytest. Each case leaves a good replica at epoch 1 and a bad second epoch; the good one of the other disk must still be applied.
An epoch that does not fit the slots is written before all of it is verified: what is true of a replica that it tore has a test of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from azure_sink.core.replica_metadata import decode_state
from azure_sink.core.replica_state import Phase
from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.replica_writer.manifest_gap import LOOK_EVERY_S
from azure_sink.replica_writer.segment_reader import DEFAULT_SLOTS
from replication.blob_client.api import BlobClient
from replication.epoch_manifest import EpochFlag, EpochManifest, encode_manifest, manifest_hash
from replication.errors import IntegrityError
from replication.identifiers import BatchKey, EpochId, EpochKey, GenerationId
from replication.segment_keys import manifest_key
from replication.store_documents import GenerationRecord
from replication.store_layout import (
    MANIFEST_HASH_METADATA,
    REPLICAS_CONTAINER,
    REPLICATION_CONTAINER,
    generation_record_name,
    manifest_name,
    segment_name,
)
from tests.harness.epochs import BuiltEpoch, DiskHistory, Write, build_epoch, put_epoch, put_manifest, put_segment
from tests.harness.writer_site import MIB, WriterSite

BATCHES = [[Write(0, b"a" * 4096)], [Write(8192, b"b" * 4096)], [Write(16384, b"c" * 4096)]]


async def replace_blob(site: WriterSite, name: str, content: bytes) -> None:
    await site.account.put_blob(REPLICATION_CONTAINER, name, content)


async def content_of(site: WriterSite, name: str) -> bytes:
    return await site.blob_bytes(REPLICATION_CONTAINER, name)


def names_of(built: BuiltEpoch) -> list[str]:
    return [segment_name(segment.key) for segment in built.segments]


async def flip_segment_bits(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    name = names_of(built)[1]
    content = bytearray(await content_of(site, name))
    content[200] ^= 4
    await replace_blob(site, name, bytes(content))


async def flip_tag_bits(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    name = names_of(built)[0]
    content = bytearray(await content_of(site, name))
    content[-1] ^= 1
    await replace_blob(site, name, bytes(content))


async def swap_segments(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    first, second = names_of(built)[:2]
    one, other = await content_of(site, first), await content_of(site, second)
    await replace_blob(site, first, other)
    await replace_blob(site, second, one)


async def omit_segment(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await site.account.delete_blob(REPLICATION_CONTAINER, names_of(built)[2])


async def truncate_segment(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    name = names_of(built)[0]
    await replace_blob(site, name, (await content_of(site, name))[:-20])


async def lengthen_segment(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    name = names_of(built)[0]
    await replace_blob(site, name, await content_of(site, name) + bytes(20))


async def empty_segment(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await replace_blob(site, names_of(built)[0], b"")


async def replay_segment_of_the_epoch_before(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await replace_blob(site, names_of(built)[0], bytes(disk.built[1, 1].segments[0].content))


async def put_segment_sealed_anew(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    """Valid under the data key and of the same key, but not the one that the manifest names."""
    other = build_epoch(built.manifest.key, [[Write(0, b"evil" * 1024)]], data_key=disk.data_key)
    await replace_blob(site, names_of(built)[0], bytes(other.segments[0].content))


async def flip_manifest_bits(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    content = bytearray(built.encoded_manifest)
    content[90] ^= 1
    await replace_blob(site, manifest_name(built.manifest.key), bytes(content))


async def replay_manifest_of_the_epoch_before(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await replace_blob(site, manifest_name(built.manifest.key), disk.built[1, 1].encoded_manifest)


async def forge_manifest_with_another_key(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await replace_blob(site, manifest_name(built.manifest.key), encode_manifest(built.manifest, bytes(32)))


async def break_the_chain(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    manifest = EpochManifest(
        key=built.manifest.key,
        attempt=built.manifest.attempt,
        flags=EpochFlag(0),
        cut_time_ns=0,
        previous_hash=manifest_hash(b"another history"),
        segments=built.manifest.segments,
        logical_bytes=0,
    )
    encoded = encode_manifest(manifest, manifest_key(disk.data_key, built.manifest.key.generation_key))
    await replace_blob(site, manifest_name(built.manifest.key), encoded)


async def put_manifest_of_another_disk(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    other = EpochKey(site.disk().disk, GenerationId(1), EpochId(2))
    stolen = build_epoch(other, BATCHES, data_key=disk.data_key, previous_hash=disk.built[1, 1].hash)
    await replace_blob(site, manifest_name(built.manifest.key), stolen.encoded_manifest)


async def put_manifest_of_another_generation(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    other = EpochKey(disk.disk, GenerationId(2), EpochId(2))
    stolen = build_epoch(other, BATCHES, data_key=disk.data_key, previous_hash=disk.built[1, 1].hash)
    await replace_blob(site, manifest_name(built.manifest.key), stolen.encoded_manifest)


async def put_garbage_as_manifest(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await replace_blob(site, manifest_name(built.manifest.key), b"not a manifest")


async def put_empty_manifest(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    await replace_blob(site, manifest_name(built.manifest.key), b"")


async def write_beyond_the_disk(site: WriterSite, disk: DiskHistory, built: BuiltEpoch) -> None:
    key = built.manifest.key
    for name in [*names_of(built), manifest_name(key)]:
        await site.account.delete_blob(REPLICATION_CONTAINER, name)
    beyond = build_epoch(
        key, [[Write(disk.size_bytes, b"z" * 512)]], data_key=disk.data_key, previous_hash=disk.built[1, 1].hash
    )
    await put_epoch(site.account, beyond)


Attack = Callable[[WriterSite, DiskHistory, BuiltEpoch], Awaitable[None]]
ATTACKS: dict[Attack, str] = {
    flip_segment_bits: "integrity",
    flip_tag_bits: "integrity",
    swap_segments: "protocol",
    omit_segment: "segment-missing",
    truncate_segment: "integrity",
    lengthen_segment: "integrity",
    empty_segment: "integrity",
    replay_segment_of_the_epoch_before: "integrity",  # of another length; of the same length: see swap_segments
    put_segment_sealed_anew: "integrity",
    flip_manifest_bits: "integrity",
    replay_manifest_of_the_epoch_before: "protocol",
    forge_manifest_with_another_key: "integrity",
    break_the_chain: "integrity",
    put_manifest_of_another_disk: "integrity",
    put_manifest_of_another_generation: "integrity",
    put_garbage_as_manifest: "protocol",
    put_empty_manifest: "protocol",
    write_beyond_the_disk: "protocol",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("slots", [1, 3])
async def test_bad_epoch_is_refused_and_stated(attack: Attack, slots: int) -> None:
    site = await WriterSite.make(segment_slots=slots)
    disk, other = site.disk(MIB + 512), site.disk()
    for each in (disk, other):
        await each.open_generation()
        await each.put(each.random_batches(3, 2))
    good = bytes(disk.model)
    built = await disk.put(BATCHES)
    await attack(site, disk, built)
    await other.put(other.random_batches(2, 2))
    writer = site.start()
    outcomes = await writer.settle()
    assert outcomes == {disk.disk: Outcome.TROUBLED, other.disk: Outcome.IDLE}
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.manifest_hash) == (1, disk.built[1, 1].hash.hex())
    assert receipt.problem is not None
    assert receipt.problem.code in {ATTACKS[attack], "segment-missing"}
    if slots == 3 or ATTACKS[attack] == "segment-missing":
        assert await site.bytes_of(disk) == good, (
            "an epoch that fits the slots is verified whole before its first write"
        )
    assert await site.bytes_of(other) == other.model
    # The blobs are put right: the disk goes on, and its receipt says so.
    for name in names_of(built):
        await replace_blob(site, name, bytes(next(s for s in built.segments if segment_name(s.key) == name).content))
    await site.account.put_blob(
        REPLICATION_CONTAINER,
        manifest_name(built.manifest.key),
        built.encoded_manifest,
        metadata={MANIFEST_HASH_METADATA: built.hash.hex()},
    )
    assert (await writer.settle())[disk.disk] is Outcome.IDLE
    assert await site.bytes_of(disk) == disk.model
    after = await site.receipt(disk)
    assert after is not None
    assert (after.epoch, after.problem) == (2, None)


async def test_a_large_epoch_with_a_damaged_segment_is_torn_its_points_are_not() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    cut = disk.cut()
    await disk.put(disk.random_batches(1, 2), cut=cut)
    writer = site.start()
    assert await writer.settle() == {disk.disk: Outcome.IDLE}
    good = bytes(disk.model)
    count = DEFAULT_SLOTS + 2
    built = await disk.put([[Write(place * 8192, bytes([65 + place]) * 4096)] for place in range(count)])
    name = names_of(built)[0]
    right = await content_of(site, name)
    await replace_blob(site, name, right[:-1] + bytes([right[-1] ^ 1]))
    assert await writer.settle() == {disk.disk: Outcome.TROUBLED}
    torn = await site.bytes_of(disk)
    assert torn[:8192] == good[:8192], "no byte of the damaged segment is written"
    assert torn != good, "of the others there is: this is what the documentation owns up to"
    for at in range(0, disk.size_bytes, 4096):
        assert torn[at : at + 4096] in (good[at : at + 4096], disk.model[at : at + 4096])
    properties = await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)
    assert decode_state(properties.metadata).phase is Phase.APPLYING
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.problem is not None
    assert (receipt.epoch, receipt.manifest_hash, receipt.problem.code) == (1, disk.built[1, 1].hash.hex(), "integrity")
    assert await site.point_bytes(disk.item, cut.cut, disk.disk) == good
    # Another process finds it so, too; then the segment is put right.
    writer = site.start()
    assert await writer.settle() == {disk.disk: Outcome.TROUBLED}
    await replace_blob(site, name, right)
    assert await writer.settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model
    assert await site.point_bytes(disk.item, cut.cut, disk.disk) == good


async def test_an_epoch_that_fits_the_slots_is_never_torn() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    good = bytes(disk.model)
    built = await disk.put([[Write(place * 8192, b"x" * 4096)] for place in range(DEFAULT_SLOTS)])
    name = names_of(built)[0]
    right = await content_of(site, name)
    await replace_blob(site, name, right[:-1] + bytes([right[-1] ^ 1]))
    assert await site.start().settle() == {disk.disk: Outcome.TROUBLED}
    assert await site.bytes_of(disk) == good


@pytest.mark.parametrize("omitted", [1, 2])
async def test_an_omitted_manifest_is_told_while_a_later_one_is_there(omitted: int) -> None:
    """It is found at the next look, and when it is put again the disk goes on."""
    site = await WriterSite.make()
    disk, other = site.disk(), site.disk()
    for each in (disk, other):
        await each.open_generation()
        await each.put(each.random_batches(1, 2))
    writer = site.start()
    assert set((await writer.settle()).values()) == {Outcome.IDLE}
    good = bytes(disk.model)
    built = [await disk.put(BATCHES) for _ in range(omitted + 1)]
    for epoch in built[:omitted]:
        await site.account.delete_blob(REPLICATION_CONTAINER, manifest_name(epoch.manifest.key))
    site.time.advance(LOOK_EVERY_S)
    await other.put(other.random_batches(1, 2))
    for again in (False, True):  # it stays so, also for a writer that begins now
        writer = site.start() if again else writer
        assert await writer.settle() == {disk.disk: Outcome.TROUBLED, other.disk: Outcome.IDLE}
        assert await writer.settle() == {disk.disk: Outcome.TROUBLED, other.disk: Outcome.IDLE}
        receipt = await site.receipt(disk)
        assert receipt is not None
        assert receipt.problem is not None
        assert (receipt.epoch, receipt.problem.code) == (1, "manifest-missing")
        assert f"while that of epoch {2 + omitted} is there" in receipt.problem.message
        assert "migratectl resync" in (receipt.problem.hint or "")
    assert await site.bytes_of(disk) == good
    assert await site.bytes_of(other) == other.model
    for epoch in built[:omitted]:
        await put_manifest(site.account, epoch)
    assert (await writer.settle())[disk.disk] is Outcome.IDLE
    assert await site.bytes_of(disk) == disk.model
    after = await site.receipt(disk)
    assert after is not None
    assert (after.epoch, after.problem) == (2 + omitted, None)


async def test_a_manifest_that_vanishes_inside_its_epoch_is_told_although_none_is_later() -> None:
    """The replica is between two epochs: to be idle there would hide it."""
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    count = DEFAULT_SLOTS + 2
    built = await disk.put([[Write(place * 8192, bytes([65 + place]) * 4096)] for place in range(count)])
    name = names_of(built)[0]
    right = await content_of(site, name)
    await replace_blob(site, name, right[:-1] + bytes([right[-1] ^ 1]))
    writer = site.start()
    assert await writer.settle() == {disk.disk: Outcome.TROUBLED}
    await site.account.delete_blob(REPLICATION_CONTAINER, manifest_name(built.manifest.key))
    assert await writer.settle() == {disk.disk: Outcome.TROUBLED}
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.problem is not None
    assert receipt.problem.code == "manifest-missing"
    await replace_blob(site, name, right)
    await put_manifest(site.account, built)
    assert await writer.settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model


async def test_a_manifest_that_comes_while_the_later_ones_are_listed_is_not_called_missing() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    site_writer = site.start()
    await site_writer.settle()
    first, second = disk.build(BATCHES), disk.build(BATCHES)

    class Slow:
        def __getattr__(self, name: str) -> object:
            return getattr(site.account, name)

        def list_blobs(self, container: str, prefix: str, **options: object) -> object:
            return self._listed(container, prefix, options)

        async def _listed(self, container: str, prefix: str, options: dict[str, object]) -> AsyncIterator[object]:
            if container == REPLICATION_CONTAINER and prefix.startswith(disk.disk) and first_puts:
                for built in (first_puts.pop(), second):
                    await put_epoch(site.account, built)
            async for item in site.account.list_blobs(container, prefix, **options):  # type: ignore[arg-type]
                yield item

    first_puts = [first]
    slow: BlobClient = Slow()  # type: ignore[assignment]
    assert await site.start(slow).settle() == {disk.disk: Outcome.IDLE}
    assert not first_puts
    assert await site.bytes_of(disk) == disk.model
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.problem) == (2, None)


async def test_trouble_is_noticed_to_be_over_when_the_blobs_change() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    built = await disk.put(BATCHES)
    await omit_segment(site, disk, built)
    writer = site.start()
    await writer.settle()
    (follower,) = writer.followers.all
    before = await follower.fingerprint()
    assert before == await follower.fingerprint()
    await put_segment(site.account, built.segments[2])
    assert before != await follower.fingerprint()


async def test_manifest_names_what_its_attempt_wrote_and_not_a_later_attempt() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    key = disk.next_key()
    await disk.put([[Write(0, b"1" * 512)]], attempt=1)
    late = build_epoch(key, [[Write(0, b"2" * 512)]], data_key=disk.data_key, attempt=2)
    await put_segment(site.account, late.segments[0])
    await site.start().settle()
    assert await site.bytes_of(disk) == disk.model
    assert segment_name(
        BatchKey(key.disk, key.generation, key.epoch, late.manifest.attempt, late.segments[0].key.batch)
    )


@pytest.mark.parametrize("field", ["size_bytes", "item", "machine", "base"])
async def test_record_that_was_tampered_with_is_refused(field: str) -> None:
    """The record's fields are associated data of the wrapped key."""
    site = await WriterSite.make()
    disk = site.disk()
    record = await disk.open_generation()
    values: dict[str, object] = {
        "size_bytes": 2 * MIB,
        "item": site.disk().item,
        "machine": site.disk().disk,
        "base": {"generation": 1, "epoch": 0},
    }
    lying = GenerationRecord.model_validate({**record.model_dump(), field: values[field]})
    key = EpochKey(disk.disk, GenerationId(1), EpochId(1)).generation_key
    await replace_blob(site, generation_record_name(key), lying.encode())
    outcomes = await site.start().settle()
    assert outcomes == {disk.disk: Outcome.TROUBLED}
    assert await site.names(REPLICAS_CONTAINER) == []


async def test_record_for_another_writer_is_stated_and_other_disks_go_on() -> None:
    site = await WriterSite.make()
    theirs = await WriterSite.make(1)
    disk, other = site.disk(), site.disk()
    disk.writer = theirs.identity.public
    await disk.open_generation()
    await other.open_generation()
    await other.put(other.random_batches(1, 2))
    writer = site.start()
    outcomes = await writer.settle()
    assert outcomes == {disk.disk: Outcome.TROUBLED, other.disk: Outcome.IDLE}
    trouble = next(each.trouble for each in writer.followers.all if each.disk == disk.disk)
    assert isinstance(trouble, IntegrityError)
    assert "show-writer-key" in str(trouble)
    assert await site.bytes_of(other) == other.model


async def test_foreign_names_under_keys_are_passed_over() -> None:
    site = await WriterSite.make()
    await replace_blob(site, "keys/readme", b"hello")
    await replace_blob(site, "keys/x/1", b"hello")
    assert await site.start().settle() == {}


async def test_manifest_that_arrives_for_a_void_epoch_is_never_applied() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    key = disk.next_key()
    await disk.put_void()
    await site.start().settle()
    late = build_epoch(key, [[Write(0, b"9" * 512)]], data_key=disk.data_key, attempt=9)
    await put_segment(site.account, late.segments[0])
    await site.account.delete_blob(REPLICATION_CONTAINER, manifest_name(key))
    await put_manifest(site.account, late)
    await site.start().settle()
    assert await site.bytes_of(disk) == bytes(disk.size_bytes)


@pytest.mark.parametrize("wrapped", ["", "no base64", "\x80", "AAAA"])
async def test_record_whose_key_is_none_is_refused_and_other_disks_go_on(wrapped: str) -> None:
    site = await WriterSite.make()
    disk, other = site.disk(), site.disk()
    record = await disk.open_generation()
    await other.open_generation()
    await other.put(other.random_batches(1, 2))
    lying = record.model_copy(update={"key_for_writer": wrapped})
    key = EpochKey(disk.disk, GenerationId(1), EpochId(1)).generation_key
    await replace_blob(site, generation_record_name(key), lying.encode())
    outcomes = await site.start().settle()
    assert outcomes == {disk.disk: Outcome.TROUBLED, other.disk: Outcome.IDLE}
    assert await site.bytes_of(other) == other.model
