"""What the store already holds of a generation: stored segments with digest and tag, decided manifests, the generation's record.

Called by the intake (repeated batches, manifests whose segments are not spooled here, ownership while the configuration server is down) and
the uploader (after a conditional put was refused). Reads only; raises as ``BlobClient`` does.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from replication.blob_client.api import BlobClient, BlobProperties
from replication.documents import MAX_DOCUMENT_BYTES
from replication.epoch_manifest import MANIFEST_HASH_BYTES, MAX_MANIFEST_BYTES, manifest_hash
from replication.errors import NotFound, PeerProtocolError
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, EpochKey, GenerationKey
from replication.sealed_segment import TAG_BYTES
from replication.store_documents import GenerationRecord
from replication.store_layout import (
    MANIFEST_HASH_METADATA,
    REPLICATION_CONTAINER,
    SEGMENT_DIGEST_METADATA,
    SEGMENT_TAG_METADATA,
    generation_record_name,
    manifest_name,
    parse_epoch_blob_name,
    segment_name,
)

_DIGEST_BYTES: Final = 16
_READ_BACK_BYTES: Final = 1024 * 1024


class StoredSegment(NamedTuple):
    """A segment as it lies in the store."""

    digest: bytes
    tag: bytes
    segment_bytes: int


class StoreInquiry:
    """Questions to one store."""

    def __init__(self, client: BlobClient) -> None:
        self._client = client

    async def segment(self, key: BatchKey) -> StoredSegment | None:
        """The stored segment of a batch, or None."""
        try:
            properties = await self._client.head_blob(REPLICATION_CONTAINER, segment_name(key))
        except NotFound:
            return None
        return await self._described(segment_name(key), properties)

    async def damaged(self, key: BatchKey, content: memoryview) -> str | None:
        """None if the stored segment of a batch reads back as ``content``, else the ETag of what is there instead.

        :raises NotFound: there is none (any more).
        """
        name = segment_name(key)
        properties = await self._client.head_blob(REPLICATION_CONTAINER, name)
        if properties.length_bytes != content.nbytes:
            return properties.etag
        piece = bytearray(min(_READ_BACK_BYTES, content.nbytes))
        for offset in range(0, content.nbytes, _READ_BACK_BYTES):
            expected = content[offset : offset + _READ_BACK_BYTES]
            read = await self._client.get_blob_into(
                REPLICATION_CONTAINER, name, piece, offset=offset, length=expected.nbytes, if_match=properties.etag
            )
            if read.transferred_bytes != expected.nbytes or memoryview(piece)[: expected.nbytes] != expected:
                return properties.etag
        return None

    async def attempt(self, key: EpochKey, attempt: AttemptNumber) -> dict[BatchNumber, StoredSegment]:
        """Every stored segment of one attempt of an epoch: one listing, however many there are."""
        prefix = segment_name(BatchKey(key.disk, key.generation, key.epoch, attempt, BatchNumber(0)))
        prefix = prefix[: prefix.rindex("/") + 1]
        found: dict[BatchNumber, StoredSegment] = {}
        try:
            async for item in self._client.list_blobs(REPLICATION_CONTAINER, prefix, include_metadata=True):
                name = parse_epoch_blob_name(item.name)
                if isinstance(name, BatchKey):
                    found[name.batch] = await self._described(item.name, item.properties)
        except NotFound:
            return {}
        return found

    async def _described(self, name: str, properties: BlobProperties) -> StoredSegment:
        """Digest and tag from the blob's metadata; a tag that is not there is read from the segment's end."""
        digest = _bytes_of(properties.metadata.get(SEGMENT_DIGEST_METADATA, ""), _DIGEST_BYTES)
        tag = _bytes_of(properties.metadata.get(SEGMENT_TAG_METADATA, ""), TAG_BYTES)
        if digest is None or properties.length_bytes < TAG_BYTES:
            raise PeerProtocolError(f"cannot use blob {name}: it is no segment")
        if tag is None:
            end = bytearray(TAG_BYTES)
            await self._client.get_blob_into(
                REPLICATION_CONTAINER, name, end, offset=properties.length_bytes - TAG_BYTES, length=TAG_BYTES
            )
            tag = bytes(end)
        return StoredSegment(digest, tag, properties.length_bytes)

    async def manifest_hash(self, key: EpochKey) -> bytes | None:
        """The hash of the manifest that decided an epoch, or None if none has."""
        try:
            properties = await self._client.head_blob(REPLICATION_CONTAINER, manifest_name(key))
        except NotFound:
            return None
        stated = _bytes_of(properties.metadata.get(MANIFEST_HASH_METADATA, ""), MANIFEST_HASH_BYTES)
        if stated is not None:
            return stated
        content = await self.manifest(key)
        return None if content is None else manifest_hash(content)

    async def manifest(self, key: EpochKey) -> bytes | None:
        """The manifest that decided an epoch, as it lies in the store, or None."""
        try:
            blob = await self._client.get_blob(REPLICATION_CONTAINER, manifest_name(key), max_bytes=MAX_MANIFEST_BYTES)
        except NotFound:
            return None
        return None if blob is None else blob.content

    async def generation_record(self, key: GenerationKey) -> GenerationRecord | None:
        """What the configuration server put into the store when it granted the generation, or None."""
        try:
            blob = await self._client.get_blob(
                REPLICATION_CONTAINER, generation_record_name(key), max_bytes=MAX_DOCUMENT_BYTES
            )
        except NotFound:
            return None
        return None if blob is None else GenerationRecord.decode(blob.content)


def _bytes_of(text: str, length: int) -> bytes | None:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if len(value) == length else None
