"""The state of an in-memory account: containers, blobs, snapshots; how they are found, and what a write is held against.

The base of ``whole_blobs``, ``page_blobs`` and ``leases``. No method here awaits: what they check and change stays atomic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from replication.blob_client.api import PAGE_BYTES, BlobProperties, BlobStamp, BlobType, Body, LeaseState
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import failure_from_answer

CHUNK_PAGES: Final = 128
CHUNK_BYTES: Final = CHUNK_PAGES * PAGE_BYTES
_ZERO_CHUNK: Final = bytes(CHUNK_BYTES)
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
class Chunk:
    """128 pages; bit n of ``written`` says that page n holds data."""

    content: bytes = _ZERO_CHUNK
    written: int = 0


@dataclass(slots=True)
class Lease:
    lease_id: str
    duration_s: int | None
    until: datetime | None
    broken: bool = False


@dataclass(slots=True)
class Blob:
    blob_type: BlobType
    size_bytes: int
    metadata: dict[str, str]
    content: bytes = b""
    chunks: dict[int, Chunk] = field(default_factory=dict)
    sequence_number: int = 0
    etag: str = ""
    last_modified: datetime = _NEVER
    lease: Lease | None = None

    def frozen_copy(self) -> Blob:
        return replace(self, metadata=dict(self.metadata), chunks=dict(self.chunks), lease=None)


@dataclass(frozen=True, slots=True)
class StoredState:
    """What an account holds at one time."""

    containers: dict[str, dict[str, Blob]]
    snapshots: dict[tuple[str, str], dict[str, Blob]]


def failure(code: StorageCode, what: str) -> Exception:
    return failure_from_answer(_STATUS[code], code, what)


def joined(body: Body) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    return b"".join(body)


def _system_clock() -> datetime:
    return datetime.now(UTC)


class MemoryAccount:
    """Dictionaries and the clock that leases follow. ``now`` must return aware UTC times."""

    def __init__(self, now: Callable[[], datetime] = _system_clock) -> None:
        self._now = now
        self._containers: dict[str, dict[str, Blob]] = {}
        self._snapshots: dict[tuple[str, str], dict[str, Blob]] = {}
        self._serial = 0

    def copied(self) -> StoredState:
        """Everything that is stored now, for ``put_back``."""
        containers = {
            container: {name: blob.frozen_copy() for name, blob in blobs.items()}
            for container, blobs in self._containers.items()
        }
        return StoredState(containers, {key: dict(blobs) for key, blobs in self._snapshots.items()})

    def put_back(self, state: StoredState) -> None:
        """An older copy takes the place of what is stored. Leases have ended; ETags and snapshot ids are never given out twice."""
        self._containers = {
            container: {name: blob.frozen_copy() for name, blob in blobs.items()}
            for container, blobs in state.containers.items()
        }
        self._snapshots = {key: dict(blobs) for key, blobs in state.snapshots.items()}

    # -- looking up -------------------------------------------------------------------------------------------

    def _container(self, container: str) -> dict[str, Blob]:
        if container not in self._containers:
            raise failure(StorageCode.CONTAINER_NOT_FOUND, f"use container {container}")
        return self._containers[container]

    def _blob(self, container: str, name: str, snapshot: str | None = None) -> Blob:
        blobs = self._container(container)
        found = blobs.get(name) if snapshot is None else self._snapshots.get((container, name), {}).get(snapshot)
        if found is None:
            raise failure(StorageCode.BLOB_NOT_FOUND, f"find blob {container}/{name}")
        return found

    def _page_blob(self, container: str, name: str, snapshot: str | None = None) -> Blob:
        blob = self._blob(container, name, snapshot)
        if blob.blob_type is not BlobType.PAGE:
            raise failure(StorageCode.INVALID_BLOB_TYPE, f"use {container}/{name} as a page blob")
        return blob

    # -- conditions -------------------------------------------------------------------------------------------

    def _lease_state(self, blob: Blob) -> LeaseState:
        lease = blob.lease
        if lease is None:
            return LeaseState.AVAILABLE
        ended = lease.until is not None and lease.until <= self._now()
        if lease.broken:
            return LeaseState.BROKEN if ended else LeaseState.BREAKING
        return LeaseState.EXPIRED if ended else LeaseState.LEASED

    def _check_write(self, blob: Blob, lease_id: str | None, if_match: str | None, what: str) -> None:
        held = self._lease_state(blob) in (LeaseState.LEASED, LeaseState.BREAKING)
        if if_match is not None and if_match != blob.etag:
            raise failure(StorageCode.CONDITION_NOT_MET, what)
        if held and lease_id is None:
            raise failure(StorageCode.LEASE_ID_MISSING, what)
        if lease_id is None:
            return
        if blob.lease is None:
            raise failure(StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION, what)
        if blob.lease.lease_id != lease_id:
            raise failure(StorageCode.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION, what)
        if not held:
            raise failure(StorageCode.LEASE_LOST, what)

    def _touch(self, blob: Blob) -> BlobStamp:
        self._serial += 1
        blob.etag = f'"0x{self._serial:016X}"'
        blob.last_modified = self._now().replace(microsecond=0)
        if blob.lease is not None and self._lease_state(blob) in (LeaseState.EXPIRED, LeaseState.BROKEN):
            blob.lease = None
        return self._stamp(blob)

    @staticmethod
    def _stamp(blob: Blob) -> BlobStamp:
        return BlobStamp(
            blob.etag, blob.last_modified, blob.sequence_number if blob.blob_type is BlobType.PAGE else None
        )

    def _properties(self, blob: Blob, *, transferred: int = 0, metadata: bool = True) -> BlobProperties:
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

    def _replace(
        self,
        container: str,
        name: str,
        blob: Blob,
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
                raise failure(StorageCode.CONDITION_NOT_MET, what)
            if lease_id is not None:
                raise failure(StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION, what)
        else:
            if if_none_match_any:
                raise failure(StorageCode.BLOB_ALREADY_EXISTS, what)
            self._check_write(old, lease_id, if_match, what)
            blob.lease = old.lease
        blobs[name] = blob
        return self._touch(blob)
