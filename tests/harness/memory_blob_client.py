"""An in-memory ``BlobClient`` for tests: a verified fake (it passes the same contract suite as the HTTP client).

Called by tests of the process server, the configuration server and the replica writer. One ``MemoryBlobClient`` is one
account; hand the same object to several users. The clock is injected: leases end when ``now()`` says so, never by sleeping.
Every operation is atomic: nothing awaits between a check and its mutation.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from replication.blob_client.api import (
    MAX_PUT_PAGES_BYTES,
    PAGE_BYTES,
    BlobClient,
    BlobContent,
    BlobItem,
    BlobProperties,
    BlobStamp,
    BlobType,
    Body,
    LeaseState,
    PageRange,
)
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import failure_from_answer
from replication.errors import PeerProtocolError

_CHUNK_PAGES: Final = 128
_CHUNK_BYTES: Final = _CHUNK_PAGES * PAGE_BYTES
_ZERO_CHUNK: Final = bytes(_CHUNK_BYTES)
_NEVER: Final = datetime.fromtimestamp(0, UTC)

_STATUS: Final = {
    StorageCode.BLOB_NOT_FOUND: 404,
    StorageCode.CONTAINER_NOT_FOUND: 404,
    StorageCode.BLOB_ALREADY_EXISTS: 409,
    StorageCode.SNAPSHOTS_PRESENT: 409,
    StorageCode.INVALID_BLOB_TYPE: 409,
    StorageCode.LEASE_ALREADY_PRESENT: 409,
    StorageCode.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION: 409,
    StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION: 409,
    StorageCode.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED: 409,
    StorageCode.CONDITION_NOT_MET: 412,
    StorageCode.SEQUENCE_NUMBER_CONDITION_NOT_MET: 412,
    StorageCode.LEASE_ID_MISSING: 412,
    StorageCode.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION: 412,
    StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION: 412,
    StorageCode.LEASE_LOST: 412,
    StorageCode.PREVIOUS_SNAPSHOT_NOT_FOUND: 409,
    StorageCode.REQUEST_BODY_TOO_LARGE: 413,
    StorageCode.INVALID_PAGE_RANGE: 416,
    StorageCode.INVALID_RANGE: 416,
    StorageCode.INVALID_HEADER_VALUE: 400,
    StorageCode.OUT_OF_RANGE_INPUT: 400,
}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """128 pages; bit n of ``written`` says that page n holds data."""

    content: bytes = _ZERO_CHUNK
    written: int = 0


@dataclass(slots=True)
class _Lease:
    lease_id: str
    duration_s: int | None
    until: datetime | None
    broken: bool = False


@dataclass(slots=True)
class _Blob:
    blob_type: BlobType
    size_bytes: int
    metadata: dict[str, str]
    content: bytes = b""
    chunks: dict[int, _Chunk] = field(default_factory=dict)
    sequence_number: int = 0
    etag: str = ""
    last_modified: datetime = _NEVER
    lease: _Lease | None = None

    def frozen_copy(self) -> _Blob:
        return replace(self, metadata=dict(self.metadata), chunks=dict(self.chunks), lease=None)


def _failure(code: StorageCode, what: str) -> Exception:
    return failure_from_answer(_STATUS[code], code, what)


def _joined(body: Body) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    return b"".join(body)


def _system_clock() -> datetime:
    return datetime.now(UTC)


class MemoryBlobClient:
    """``BlobClient`` over dictionaries. ``now`` must return aware UTC times."""

    def __init__(self, now: Callable[[], datetime] = _system_clock) -> None:
        self._now = now
        self._containers: dict[str, dict[str, _Blob]] = {}
        self._snapshots: dict[tuple[str, str], dict[str, _Blob]] = {}
        self._serial = 0

    # -- looking up -------------------------------------------------------------------------------------------

    def _container(self, container: str) -> dict[str, _Blob]:
        if container not in self._containers:
            raise _failure(StorageCode.CONTAINER_NOT_FOUND, f"use container {container}")
        return self._containers[container]

    def _blob(self, container: str, name: str, snapshot: str | None = None) -> _Blob:
        blobs = self._container(container)
        found = blobs.get(name) if snapshot is None else self._snapshots.get((container, name), {}).get(snapshot)
        if found is None:
            raise _failure(StorageCode.BLOB_NOT_FOUND, f"find blob {container}/{name}")
        return found

    def _page_blob(self, container: str, name: str, snapshot: str | None = None) -> _Blob:
        blob = self._blob(container, name, snapshot)
        if blob.blob_type is not BlobType.PAGE:
            raise _failure(StorageCode.INVALID_BLOB_TYPE, f"use {container}/{name} as a page blob")
        return blob

    # -- conditions -------------------------------------------------------------------------------------------

    def _lease_state(self, blob: _Blob) -> LeaseState:
        lease = blob.lease
        if lease is None:
            return LeaseState.AVAILABLE
        ended = lease.until is not None and lease.until <= self._now()
        if lease.broken:
            return LeaseState.BROKEN if ended else LeaseState.BREAKING
        return LeaseState.EXPIRED if ended else LeaseState.LEASED

    def _check_write(self, blob: _Blob, lease_id: str | None, if_match: str | None, what: str) -> None:
        held = self._lease_state(blob) in (LeaseState.LEASED, LeaseState.BREAKING)
        if if_match is not None and if_match != blob.etag:
            raise _failure(StorageCode.CONDITION_NOT_MET, what)
        if held and lease_id is None:
            raise _failure(StorageCode.LEASE_ID_MISSING, what)
        if lease_id is None:
            return
        if blob.lease is None:
            raise _failure(StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION, what)
        if blob.lease.lease_id != lease_id:
            raise _failure(StorageCode.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION, what)
        if not held:
            raise _failure(StorageCode.LEASE_LOST, what)

    def _touch(self, blob: _Blob) -> BlobStamp:
        self._serial += 1
        blob.etag = f'"0x{self._serial:016X}"'
        blob.last_modified = self._now().replace(microsecond=0)
        if blob.lease is not None and self._lease_state(blob) in (LeaseState.EXPIRED, LeaseState.BROKEN):
            blob.lease = None
        return self._stamp(blob)

    @staticmethod
    def _stamp(blob: _Blob) -> BlobStamp:
        return BlobStamp(
            blob.etag, blob.last_modified, blob.sequence_number if blob.blob_type is BlobType.PAGE else None
        )

    def _properties(self, blob: _Blob, *, transferred: int = 0, metadata: bool = True) -> BlobProperties:
        return BlobProperties(
            etag=blob.etag,
            last_modified=blob.last_modified,
            length_bytes=blob.size_bytes,
            blob_type=blob.blob_type,
            metadata=dict(blob.metadata) if metadata else {},
            sequence_number=blob.sequence_number if blob.blob_type is BlobType.PAGE else None,
            lease_state=self._lease_state(blob),
            transferred_bytes=transferred,
        )

    # -- whole blobs ------------------------------------------------------------------------------------------

    async def create_container(self, container: str) -> None:
        self._containers.setdefault(container, {})

    def _replace(
        self,
        container: str,
        name: str,
        blob: _Blob,
        *,
        if_none_match_any: bool,
        if_match: str | None = None,
        lease_id: str | None = None,
    ) -> BlobStamp:
        what = f"put blob {container}/{name}"
        blobs = self._container(container)
        old = blobs.get(name)
        if old is None:
            if if_match is not None:
                raise _failure(StorageCode.CONDITION_NOT_MET, what)
            if lease_id is not None:
                raise _failure(StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION, what)
        else:
            if if_none_match_any:
                raise _failure(StorageCode.BLOB_ALREADY_EXISTS, what)
            self._check_write(old, lease_id, if_match, what)
            blob.lease = old.lease
        blobs[name] = blob
        return self._touch(blob)

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
        content = _joined(body)
        blob = _Blob(BlobType.BLOCK, len(content), dict(metadata or {}), content)
        return self._replace(
            container, name, blob, if_none_match_any=if_none_match_any, if_match=if_match, lease_id=lease_id
        )

    @staticmethod
    def _read(blob: _Blob, offset: int, length: int) -> bytes:
        if blob.blob_type is BlobType.BLOCK:
            return blob.content[offset : offset + length]
        pieces: list[bytes] = []
        while length > 0:
            index, inner = divmod(offset, _CHUNK_BYTES)
            piece = blob.chunks.get(index, _Chunk()).content[inner : inner + length]
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

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
        content = self._read(blob, 0, blob.size_bytes)
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
            raise _failure(StorageCode.CONDITION_NOT_MET, what)
        wanted = len(buffer) if length is None else length
        if wanted > len(buffer):
            raise ValueError("the buffer is smaller than the length asked for")
        if wanted == 0 or (offset == 0 and blob.size_bytes == 0):
            return self._properties(blob)
        if offset >= blob.size_bytes:
            raise _failure(StorageCode.INVALID_RANGE, what)
        content = self._read(blob, offset, min(wanted, blob.size_bytes - offset))
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
                raise _failure(StorageCode.CONDITION_NOT_MET, what)
            del snapshots[snapshot]
            return
        self._check_write(blob, lease_id, if_match, what)
        if snapshots and not with_snapshots:
            raise _failure(StorageCode.SNAPSHOTS_PRESENT, what)
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

    # -- page blobs -------------------------------------------------------------------------------------------

    async def create_page_blob(
        self,
        container: str,
        name: str,
        size_bytes: int,
        *,
        metadata: Mapping[str, str] | None = None,
        sequence_number: int = 0,
        if_none_match_any: bool = True,
    ) -> BlobStamp:
        if size_bytes % PAGE_BYTES or size_bytes < 0:
            raise _failure(StorageCode.INVALID_HEADER_VALUE, f"create page blob {container}/{name}")
        blob = _Blob(BlobType.PAGE, size_bytes, dict(metadata or {}), sequence_number=sequence_number)
        return self._replace(container, name, blob, if_none_match_any=if_none_match_any)

    def _checked_for_pages(
        self,
        where: tuple[str, str],
        offset: int,
        length: int,
        lease_id: str | None,
        if_match: str | None,
        if_eq: int | None,
        if_le: int | None,
    ) -> _Blob:
        what = f"write pages of {where[0]}/{where[1]} at {offset}"
        if offset % PAGE_BYTES or length % PAGE_BYTES or length <= 0 or offset < 0:
            raise _failure(StorageCode.INVALID_PAGE_RANGE, what)
        blob = self._page_blob(*where)
        self._check_write(blob, lease_id, if_match, what)
        if (if_eq is not None and blob.sequence_number != if_eq) or (
            if_le is not None and blob.sequence_number > if_le
        ):
            raise _failure(StorageCode.SEQUENCE_NUMBER_CONDITION_NOT_MET, what)
        if offset + length > blob.size_bytes:
            raise _failure(StorageCode.INVALID_PAGE_RANGE, what)
        return blob

    @staticmethod
    def _store(blob: _Blob, offset: int, length: int, content: bytes | None) -> None:
        position = offset
        while position < offset + length:
            index, inner = divmod(position, _CHUNK_BYTES)
            size = min(_CHUNK_BYTES - inner, offset + length - position)
            old = blob.chunks.get(index, _Chunk())
            done = position - offset
            piece = bytes(size) if content is None else content[done : done + size]
            mask = ((1 << (size // PAGE_BYTES)) - 1) << (inner // PAGE_BYTES)
            written = old.written & ~mask if content is None else old.written | mask
            if written:
                blob.chunks[index] = _Chunk(old.content[:inner] + piece + old.content[inner + size :], written)
            else:
                blob.chunks.pop(index, None)
            position += size

    async def put_pages(
        self,
        container: str,
        name: str,
        offset_bytes: int,
        body: Body,
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
        if_sequence_number_eq: int | None = None,
        if_sequence_number_le: int | None = None,
    ) -> BlobStamp:
        content = _joined(body)
        if len(content) > MAX_PUT_PAGES_BYTES:
            raise _failure(StorageCode.REQUEST_BODY_TOO_LARGE, f"write pages of {container}/{name}")
        blob = self._checked_for_pages(
            (container, name),
            offset_bytes,
            len(content),
            lease_id,
            if_match,
            if_sequence_number_eq,
            if_sequence_number_le,
        )
        self._store(blob, offset_bytes, len(content), content)
        return self._touch(blob)

    async def clear_pages(
        self,
        container: str,
        name: str,
        offset_bytes: int,
        length_bytes: int,
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
        if_sequence_number_eq: int | None = None,
        if_sequence_number_le: int | None = None,
    ) -> BlobStamp:
        blob = self._checked_for_pages(
            (container, name),
            offset_bytes,
            length_bytes,
            lease_id,
            if_match,
            if_sequence_number_eq,
            if_sequence_number_le,
        )
        self._store(blob, offset_bytes, length_bytes, None)
        return self._touch(blob)

    async def get_page_ranges(
        self, container: str, name: str, *, snapshot: str | None = None, previous_snapshot: str | None = None
    ) -> AsyncIterator[PageRange]:
        blob = self._page_blob(container, name, snapshot)
        before: _Blob | None = None
        if previous_snapshot is not None:
            before = self._snapshots.get((container, name), {}).get(previous_snapshot)
            if before is None:
                raise _failure(StorageCode.PREVIOUS_SNAPSHOT_NOT_FOUND, f"compare snapshots of {container}/{name}")
        start: int | None = None
        end = 0
        for index in sorted(blob.chunks):
            chunk = blob.chunks[index]
            for page in range(_CHUNK_PAGES):
                if not chunk.written >> page & 1 or (before is not None and _same_page(before, blob, index, page)):
                    continue
                position = index * _CHUNK_BYTES + page * PAGE_BYTES
                if start is not None and position != end:
                    yield PageRange(start, end - start)
                    start = None
                start = position if start is None else start
                end = position + PAGE_BYTES
        if start is not None:
            yield PageRange(start, end - start)

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
        moment = self._now()
        latest = max(taken, default="")
        while (identifier := _snapshot_id(moment)) <= latest:
            moment += timedelta(microseconds=1)
        copy = blob.frozen_copy()
        if metadata is not None:
            copy.metadata = dict(metadata)
        taken[identifier] = copy
        return identifier

    async def resize_page_blob(
        self, container: str, name: str, size_bytes: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        what = f"resize page blob {container}/{name}"
        if size_bytes % PAGE_BYTES or size_bytes < 0:
            raise _failure(StorageCode.INVALID_HEADER_VALUE, what)
        blob = self._page_blob(container, name)
        self._check_write(blob, lease_id, if_match, what)
        if size_bytes < blob.size_bytes:
            for index in [index for index in blob.chunks if index * _CHUNK_BYTES >= size_bytes]:
                del blob.chunks[index]
            tail = size_bytes % _CHUNK_BYTES
            if tail:
                self._store(blob, size_bytes, _CHUNK_BYTES - tail, None)
        blob.size_bytes = size_bytes
        return self._touch(blob)

    async def set_sequence_number(
        self, container: str, name: str, number: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        blob = self._page_blob(container, name)
        self._check_write(blob, lease_id, if_match, f"set the sequence number of {container}/{name}")
        blob.sequence_number = number
        return self._touch(blob)

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire_lease(
        self, container: str, name: str, duration_s: int | None, proposed_id: str | None = None
    ) -> str:
        what = f"lease blob {container}/{name}"
        if duration_s is not None and not 15 <= duration_s <= 60:
            raise _failure(StorageCode.INVALID_HEADER_VALUE, what)
        blob = self._blob(container, name)
        held = self._lease_state(blob) in (LeaseState.LEASED, LeaseState.BREAKING)
        if held and blob.lease is not None and (blob.lease.broken or blob.lease.lease_id != proposed_id):
            raise _failure(StorageCode.LEASE_ALREADY_PRESENT, what)
        lease_id = proposed_id or str(uuid.uuid4())
        blob.lease = _Lease(lease_id, duration_s, self._lease_end(duration_s))
        return lease_id

    def _lease_end(self, duration_s: int | None) -> datetime | None:
        return None if duration_s is None else self._now() + timedelta(seconds=duration_s)

    def _held_by(self, blob: _Blob, lease_id: str, what: str) -> _Lease:
        if blob.lease is None or blob.lease.lease_id != lease_id:
            raise _failure(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION, what)
        return blob.lease

    async def renew_lease(self, container: str, name: str, lease_id: str) -> None:
        what = f"renew the lease of {container}/{name}"
        lease = self._held_by(self._blob(container, name), lease_id, what)
        if lease.broken:
            raise _failure(StorageCode.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED, what)
        lease.until = self._lease_end(lease.duration_s)

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        blob = self._blob(container, name)
        self._held_by(blob, lease_id, f"release the lease of {container}/{name}")
        blob.lease = None

    async def break_lease(self, container: str, name: str, *, break_period_s: int | None = None) -> int:
        blob = self._blob(container, name)
        lease = blob.lease
        if lease is None:
            raise _failure(StorageCode.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION, f"break the lease of {container}/{name}")
        now = self._now()
        left = 0.0 if lease.until is None else max(0.0, (lease.until - now).total_seconds())
        wait = left if break_period_s is None else float(break_period_s)
        if lease.until is not None:
            wait = min(wait, left)
        lease.broken = True
        lease.until = now + timedelta(seconds=wait)
        return int(wait)

    # -- copies -----------------------------------------------------------------------------------------------

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


def _snapshot_id(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def _same_page(before: _Blob, now: _Blob, index: int, page: int) -> bool:
    old, new = before.chunks.get(index), now.chunks.get(index)
    if old is None or new is None or not old.written >> page & 1:
        return False
    if old is new:
        return True
    inside = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    return old.content[inside] == new.content[inside]


if TYPE_CHECKING:
    _conforms: BlobClient = MemoryBlobClient()
