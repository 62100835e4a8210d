"""What the store holds, asked: stored segments, decided manifests; what is no segment is not taken for one."""

from __future__ import annotations

from random import Random

import pytest

from process_server.store_inquiry import StoredSegment, StoreInquiry
from replication.epoch_manifest import manifest_hash
from replication.errors import PeerProtocolError, PeerUnavailable
from replication.identifiers import AttemptNumber, MachineId
from replication.store_layout import (
    MANIFEST_HASH_METADATA,
    REPLICATION_CONTAINER,
    SEGMENT_DIGEST_METADATA,
    SEGMENT_TAG_METADATA,
    manifest_name,
    segment_name,
)
from tests.harness.epochs import new_uuid
from tests.harness.process_site import ShippedDisk
from tests.harness.unreliable_store import UnreliableStore

RANDOM = Random(91)
CONTENT = bytes(100) + b"t" * 16
DIGEST, TAG = b"d" * 16, b"t" * 16
DISK = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
WHOLE = {SEGMENT_DIGEST_METADATA: DIGEST.hex(), SEGMENT_TAG_METADATA: TAG.hex()}


@pytest.fixture
async def store() -> UnreliableStore:
    store = UnreliableStore()
    await store.create_container(REPLICATION_CONTAINER)
    return store


async def put_segment(
    store: UnreliableStore, batch: int, metadata: dict[str, str], *, attempt: int = 1, content: bytes = CONTENT
) -> None:
    name = segment_name(DISK.batch_key(1, batch, attempt))
    await store.put_blob(REPLICATION_CONTAINER, name, content, metadata=metadata)


async def test_a_stored_segment_is_described_by_its_metadata(store: UnreliableStore) -> None:
    await put_segment(store, 0, WHOLE)
    inquiry = StoreInquiry(store)
    assert await inquiry.segment(DISK.batch_key(1, 0)) == StoredSegment(DIGEST, TAG, 116)
    assert await inquiry.segment(DISK.batch_key(1, 1)) is None


async def test_a_tag_that_the_metadata_lacks_is_read_from_the_segments_end(store: UnreliableStore) -> None:
    for metadata in (
        {SEGMENT_DIGEST_METADATA: DIGEST.hex()},
        {SEGMENT_DIGEST_METADATA: DIGEST.hex(), SEGMENT_TAG_METADATA: "xyz"},
    ):
        await put_segment(store, 0, metadata)
        assert await StoreInquiry(store).segment(DISK.batch_key(1, 0)) == StoredSegment(DIGEST, TAG, 116)


@pytest.mark.parametrize("digest", ["", "00", "zz" * 16])
async def test_a_blob_without_a_digest_is_no_segment(store: UnreliableStore, digest: str) -> None:
    await put_segment(store, 0, WHOLE | {SEGMENT_DIGEST_METADATA: digest})
    with pytest.raises(PeerProtocolError, match="it is no segment"):
        await StoreInquiry(store).segment(DISK.batch_key(1, 0))


async def test_a_blob_shorter_than_a_tag_is_no_segment(store: UnreliableStore) -> None:
    await put_segment(store, 0, WHOLE, content=b"short")
    with pytest.raises(PeerProtocolError):
        await StoreInquiry(store).segment(DISK.batch_key(1, 0))


async def test_an_attempt_is_listed_whole_and_alone(store: UnreliableStore) -> None:
    for batch in (0, 1, 10, 11):
        await put_segment(store, batch, WHOLE)
    await put_segment(store, 5, WHOLE, attempt=2)
    await put_segment(store, 6, WHOLE, attempt=12)
    await store.put_blob(REPLICATION_CONTAINER, manifest_name(DISK.epoch_key(1)), b"manifest")
    found = await StoreInquiry(store).attempt(DISK.epoch_key(1), AttemptNumber(1))
    assert sorted(found) == [0, 1, 10, 11]
    assert set(found.values()) == {StoredSegment(DIGEST, TAG, 116)}
    assert await StoreInquiry(store).attempt(DISK.epoch_key(2), AttemptNumber(1)) == {}


async def test_a_decided_manifest_is_known_by_its_metadata_or_by_its_content(store: UnreliableStore) -> None:
    inquiry, key = StoreInquiry(store), DISK.epoch_key(1)
    assert await inquiry.manifest_hash(key) is None
    assert await inquiry.manifest(key) is None
    for metadata in ({MANIFEST_HASH_METADATA: manifest_hash(b"content").hex()}, {}, {MANIFEST_HASH_METADATA: "00"}):
        await store.put_blob(REPLICATION_CONTAINER, manifest_name(key), b"content", metadata=metadata)
        assert await inquiry.manifest_hash(key) == manifest_hash(b"content")
        assert await inquiry.manifest(key) == b"content"


async def test_without_a_container_nothing_is_there_and_without_a_store_nobody_knows() -> None:
    store = UnreliableStore()
    inquiry = StoreInquiry(store)
    assert await inquiry.attempt(DISK.epoch_key(1), AttemptNumber(1)) == {}
    assert await inquiry.segment(DISK.batch_key(1, 0)) is None
    assert await inquiry.generation_record(DISK.key) is None
    store.failing = PeerUnavailable("cannot reach it")
    with pytest.raises(PeerUnavailable):
        await inquiry.segment(DISK.batch_key(1, 0))
    with pytest.raises(PeerUnavailable):
        await inquiry.attempt(DISK.epoch_key(1), AttemptNumber(1))
    with pytest.raises(PeerUnavailable):
        await inquiry.manifest_hash(DISK.epoch_key(1))
