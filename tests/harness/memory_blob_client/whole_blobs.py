"""Operations on containers, on blobs of either kind as a whole, on snapshots and copies. A part of ``MemoryBlobClient``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from replication.blob_client.api import BlobContent, BlobItem, BlobProperties, BlobStamp, BlobType, Body
from replication.blob_client.codes import StorageCode
from replication.errors import PeerProtocolError
from tests.harness.memory_blob_client.account import CHUNK_BYTES, Blob, Chunk, MemoryAccount, failure, joined


class WholeBlobs(MemoryAccount):
    """What needs no pages and no leases of its own."""

    async def create_container(self, container: str) -> None:
        self._containers.setdefault(container, {})

    async def put_blob(
        self,
        container: str,
        name: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match_any: bool = False,
        if_match: str | None = None,
        lease_id: str | None = None,
    ) -> BlobStamp:
        content = joined(body)
        blob = Blob(BlobType.BLOCK, len(content), dict(metadata or {}), content)
        return self._replace(
            container, name, blob, if_none_match_any=if_none_match_any, if_match=if_match, lease_id=lease_id
        )

    async def get_blob(
        self,
        container: str,
        name: str,
        *,
        max_bytes: int,
        snapshot: str | None = None,
        if_none_match: str | None = None,
    ) -> BlobContent | None:
        blob = self._blob(container, name, snapshot)
        if if_none_match is not None and if_none_match == blob.etag:
            return None
        if blob.size_bytes > max_bytes:
            raise PeerProtocolError(f"cannot read blob {container}/{name}: it is larger than {max_bytes} bytes")
        content = _read(blob, 0, blob.size_bytes)
        return BlobContent(content, self._properties(blob, transferred=len(content)))

    async def get_blob_into(
        self,
        container: str,
        name: str,
        buffer: bytearray | memoryview,
        *,
        offset: int = 0,
        length: int | None = None,
        snapshot: str | None = None,
        if_match: str | None = None,
    ) -> BlobProperties:
        what = f"read blob {container}/{name}"
        blob = self._blob(container, name, snapshot)
        if if_match is not None and if_match != blob.etag:
            raise failure(StorageCode.CONDITION_NOT_MET, what)
        wanted = len(buffer) if length is None else length
        if wanted > len(buffer):
            raise ValueError("the buffer is smaller than the length asked for")
        if wanted == 0 or (offset == 0 and blob.size_bytes == 0):
            return self._properties(blob)
        if offset >= blob.size_bytes:
            raise failure(StorageCode.INVALID_RANGE, what)
        content = _read(blob, offset, min(wanted, blob.size_bytes - offset))
        memoryview(buffer)[: len(content)] = content
        return self._properties(blob, transferred=len(content))

    async def head_blob(self, container: str, name: str, *, snapshot: str | None = None) -> BlobProperties:
        return self._properties(self._blob(container, name, snapshot))

    async def delete_blob(
        self,
        container: str,
        name: str,
        *,
        snapshot: str | None = None,
        with_snapshots: bool = False,
        if_match: str | None = None,
        lease_id: str | None = None,
    ) -> None:
        what = f"delete blob {container}/{name}"
        blob = self._blob(container, name, snapshot)
        snapshots = self._snapshots.get((container, name), {})
        if snapshot is not None:
            if if_match is not None and if_match != blob.etag:
                raise failure(StorageCode.CONDITION_NOT_MET, what)
            del snapshots[snapshot]
            return
        self._check_write(blob, lease_id, if_match, what)
        if snapshots and not with_snapshots:
            raise failure(StorageCode.SNAPSHOTS_PRESENT, what)
        self._snapshots.pop((container, name), None)
        del self._containers[container][name]

    async def list_blobs(
        self, container: str, prefix: str, *, include_snapshots: bool = False, include_metadata: bool = False
    ) -> AsyncIterator[BlobItem]:
        for name in sorted(self._container(container)):
            if not name.startswith(prefix):
                continue
            if include_snapshots:
                for moment, blob in sorted(self._snapshots.get((container, name), {}).items()):
                    yield BlobItem(name, moment, self._properties(blob, metadata=include_metadata))
            live = self._containers[container].get(name)
            if live is not None:
                yield BlobItem(name, None, self._properties(live, metadata=include_metadata))

    async def set_metadata(
        self,
        container: str,
        name: str,
        metadata: Mapping[str, str],
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> BlobStamp:
        blob = self._blob(container, name)
        self._check_write(blob, lease_id, if_match, f"set metadata of {container}/{name}")
        blob.metadata = dict(metadata)
        return self._touch(blob)

    async def snapshot_blob(
        self,
        container: str,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> str:
        blob = self._blob(container, name)
        if lease_id is not None or if_match is not None:
            what = f"snapshot {container}/{name}"
            self._check_write(blob, lease_id or (blob.lease.lease_id if blob.lease else None), if_match, what)
        taken = self._snapshots.setdefault((container, name), {})
        identifier = _snapshot_id(self._now())
        latest = max(taken, default="")
        if identifier <= latest:  # the clock may have been set back: they are in order all the same
            identifier = _snapshot_id(_moment_of(latest) + timedelta(microseconds=1))
        copy = blob.frozen_copy()
        if metadata is not None:
            copy.metadata = dict(metadata)
        taken[identifier] = copy
        return identifier

    async def copy_from_snapshot(
        self,
        source_container: str,
        source_name: str,
        snapshot: str,
        container: str,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match_any: bool = True,
    ) -> BlobStamp:
        self._container(container)
        copy = self._blob(source_container, source_name, snapshot).frozen_copy()
        if metadata is not None:
            copy.metadata = dict(metadata)
        return self._replace(container, name, copy, if_none_match_any=if_none_match_any)


_SNAPSHOT_ID: Final = "%Y-%m-%dT%H:%M:%S.%f0Z"


def _snapshot_id(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_SNAPSHOT_ID)


def _moment_of(snapshot: str) -> datetime:
    return datetime.strptime(snapshot, _SNAPSHOT_ID).replace(tzinfo=UTC)


def _read(blob: Blob, offset: int, length: int) -> bytes:
    if blob.blob_type is BlobType.BLOCK:
        return blob.content[offset : offset + length]
    pieces: list[bytes] = []
    while length > 0:
        index, inner = divmod(offset, CHUNK_BYTES)
        piece = blob.chunks.get(index, Chunk()).content[inner : inner + length]
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)
