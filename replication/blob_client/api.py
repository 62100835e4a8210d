"""The contract of a Blob client: values that go in and come out, and the Protocol ``BlobClient``. No I/O here.

Called by the process server (segments, manifests), the configuration server (requests, receipts) and the replica writer
(page blobs, snapshots, leases). Implementations: ``http_client.HttpBlobClient``; ``tests.harness.memory_blob_client``.
Every implementation passes ``tests/contract/test_blob_client_contract.py``.

Names and semantics are those of Azure Blob REST (https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api).
No call retries by itself. A call that raised ``Retryable`` may have happened all the same: make it again only if it is
idempotent or conditional. Cancelling a call leaves it undecided in the same way.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple, Protocol

PAGE_BYTES: Final = 512
"""Unit of a page blob: offsets and lengths are multiples of it."""

MAX_PUT_PAGES_BYTES: Final = 4 * 2**20
"""Most that one ``put_pages`` may carry (Put Page, "update")."""

Body = bytes | bytearray | memoryview | Sequence[memoryview]
"""Bytes to send. A sequence of views is sent in order as one body; nothing is copied or joined. The caller leaves the
memory unchanged until the call returns."""


class BlobType(enum.StrEnum):
    BLOCK = "BlockBlob"
    PAGE = "PageBlob"
    APPEND = "AppendBlob"


class LeaseState(enum.StrEnum):
    AVAILABLE = "available"
    LEASED = "leased"
    EXPIRED = "expired"
    BREAKING = "breaking"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class BlobStamp:
    """What a write answers: the blob's new identity. ``etag`` is opaque and keeps its quotes; ``last_modified`` is UTC, whole seconds."""

    etag: str
    last_modified: datetime
    sequence_number: int | None = None
    """Page blobs only, and only where the service says it."""


@dataclass(frozen=True, slots=True)
class BlobProperties:
    """What a read answers. ``metadata`` names come back as the service sends them; write them lower-case."""

    etag: str
    last_modified: datetime
    length_bytes: int
    """Of the whole blob, also when a part was read."""
    blob_type: BlobType
    metadata: Mapping[str, str] = field(default_factory=dict)
    sequence_number: int | None = None
    lease_state: LeaseState = LeaseState.AVAILABLE
    transferred_bytes: int = 0
    """Bytes that this read delivered; 0 for ``head_blob`` and listings."""


@dataclass(frozen=True, slots=True)
class BlobContent:
    content: bytes
    properties: BlobProperties


@dataclass(frozen=True, slots=True)
class BlobItem:
    """One entry of a listing. ``snapshot`` is None for the live blob."""

    name: str
    snapshot: str | None
    properties: BlobProperties


class PageRange(NamedTuple):
    """A run of pages that hold data."""

    offset_bytes: int
    length_bytes: int


class BlobClient(Protocol):
    """One storage account. All methods may raise ``PeerUnavailable`` (deadline, connection), ``BlobOverloaded``,
    ``BlobServiceFailed``, ``BlobRefused`` and ``PeerProtocolError``; what else they raise is said with each.
    """

    async def create_container(self, container: str) -> None:
        """Make the container; success if it is there already."""

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
        """Store a block blob whole, in one request; durable on return.

        :raises BlobConflict: ``BlobAlreadyExists`` if ``if_none_match_any`` and it exists; ``ConditionNotMet`` for ``if_match``.
        """

    async def get_blob(
        self,
        container: str,
        name: str,
        *,
        max_bytes: int,
        snapshot: str | None = None,
        if_none_match: str | None = None,
    ) -> BlobContent | None:
        """Read a whole small blob; None if its etag still is ``if_none_match``.

        :raises BlobNotFound: no such blob.
        :raises PeerProtocolError: it is larger than ``max_bytes`` (nothing was allocated for it).
        """

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
        """Read bytes from ``offset`` into the start of ``buffer``: ``length`` or as many as the buffer holds, fewer at the blob's end.

        ``transferred_bytes`` says how many. On raise or cancel the buffer's content is undefined.

        :raises BlobInputRefused: ``InvalidRange`` if ``offset`` is at or after the end of a blob.
        """

    async def head_blob(self, container: str, name: str, *, snapshot: str | None = None) -> BlobProperties:
        """:raises BlobNotFound: no such blob or snapshot."""

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
        """Delete the live blob (``with_snapshots``: and all of its snapshots), or the one ``snapshot``.

        :raises BlobNotFound: it is not there.
        :raises BlobConflict: ``SnapshotsPresent``, ``ConditionNotMet``, or a lease.
        """

    def list_blobs(
        self, container: str, prefix: str, *, include_snapshots: bool = False, include_metadata: bool = False
    ) -> AsyncIterator[BlobItem]:
        """Yield the blobs whose names start with ``prefix``, by name, a blob's snapshots before itself.

        Pages are fetched as the iteration goes on; what changes meanwhile may or may not be seen.

        :raises BlobNotFound: no such container.
        """

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
        """Make an empty page blob of ``size_bytes`` (a multiple of 512).

        :raises BlobConflict: ``BlobAlreadyExists`` if it exists, unless ``if_none_match_any`` is false: then it is replaced.
        """

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
        """Write up to 4 MiB of pages; durable on return.

        :raises BlobConflict: ``SequenceNumberConditionNotMet``, ``ConditionNotMet``, or a lease.
        :raises BlobInputRefused: ``InvalidPageRange`` outside the blob or unaligned; too large.
        """

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
        """Make a range of any size read as zeros and cost nothing; raises as ``put_pages`` does."""

    def get_page_ranges(
        self, container: str, name: str, *, snapshot: str | None = None, previous_snapshot: str | None = None
    ) -> AsyncIterator[PageRange]:
        """Yield the ranges that hold data, ascending and not adjacent.

        With ``previous_snapshot``: those written since that snapshot (cleared ones are left out).
        """

    async def snapshot_blob(
        self,
        container: str,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> str:
        """Take a snapshot and return its id; without ``metadata`` it takes over the blob's.

        :raises BlobConflict: ``ConditionNotMet`` or a lease.
        """

    async def resize_page_blob(
        self, container: str, name: str, size_bytes: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        """Set the size; pages after a smaller end are gone."""

    async def set_sequence_number(
        self, container: str, name: str, number: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        """Set the page blob's sequence number to exactly ``number``."""

    async def set_metadata(
        self,
        container: str,
        name: str,
        metadata: Mapping[str, str],
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> BlobStamp:
        """Replace all metadata."""

    async def acquire_lease(
        self, container: str, name: str, duration_s: int | None, proposed_id: str | None = None
    ) -> str:
        """Acquire an exclusive write lease for 15 to 60 seconds, or for ever (None); returns its id.

        With a ``proposed_id`` (a UUID) the call is idempotent: whoever holds that id gets it again.

        :raises BlobConflict: ``LeaseAlreadyPresent`` if another id holds it.
        """

    async def renew_lease(self, container: str, name: str, lease_id: str) -> None:
        """Start the lease's term anew.

        :raises BlobConflict: the lease is not (any more) the caller's.
        """

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        """Give the lease back; the next acquire succeeds at once."""

    async def break_lease(self, container: str, name: str, *, break_period_s: int | None = None) -> int:
        """End another's lease after at most ``break_period_s`` (None: what is left of its term); returns the seconds left.

        :raises BlobConflict: ``LeaseNotPresentWithLeaseOperation``.
        """

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
        """Make ``container/name`` a copy of a snapshot in the same account; returns when the copy has succeeded.

        :raises BlobNotFound: no such source.
        :raises BlobConflict: ``BlobAlreadyExists`` if the destination exists and ``if_none_match_any``.
        """
