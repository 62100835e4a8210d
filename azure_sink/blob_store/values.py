"""What goes into the blob store and comes out: names, headers, records. Pure values, shared by all of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from azure_sink.core.conditions import Present
from azure_sink.core.lease import Lease
from replication.blob_client.api import BlobType

LIVE_SNAPSHOT: Final = "~"
"""Stands in the snapshot column for the live blob: sorts after every snapshot id, as listings want it."""

MIB: Final = 2**20
MAX_PUT_PAGES_BYTES: Final = 4 * MIB
MAX_PAGE_BLOB_BYTES: Final = 8 * 2**40
"""Azure's own limit of a page blob."""
MAX_COMMITTED_BLOCKS: Final = 50_000
MAX_SEQUENCE_NUMBER: Final = 2**63 - 1
MAX_LINEAGE: Final = 64
"""How many copies of copies may share bytes in one chain."""

_TICKS_PER_SECOND: Final = 10_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def etag_text(ticks: int) -> str:
    """An ETag without quotes."""
    return f"0x{ticks:X}"


def ticks_of(seconds: float) -> int:
    """100 ns ticks since the epoch: the unit of ETags and snapshot ids."""
    return int(seconds * _TICKS_PER_SECOND)


def snapshot_id(ticks: int) -> str:
    """``2026-01-31T12:34:56.1234567Z``."""
    whole, fraction = divmod(ticks, _TICKS_PER_SECOND)
    moment = datetime.fromtimestamp(whole, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:07d}Z"


@dataclass(frozen=True, slots=True)
class ContentHeaders:
    """What is stored with a blob for its readers. ``md5`` is what the client claims, except where the service computed it."""

    content_type: str = "application/octet-stream"
    content_encoding: str = ""
    content_language: str = ""
    content_disposition: str = ""
    cache_control: str = ""
    md5: bytes | None = None

    def with_md5(self, md5: bytes | None) -> ContentHeaders:
        return replace(self, md5=md5)


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """How a blob came to be by Copy Blob."""

    copy_id: str
    source: str
    total_bytes: int
    completed_at: int


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    number: int
    name: str
    etag: str
    modified_at: int
    metadata: Mapping[str, str]

    @property
    def present(self) -> Present:
        return Present(self.etag, self.modified_at)


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """One blob or snapshot. ``snapshot`` is None for the live blob; times are whole seconds since the epoch."""

    number: int
    container: int
    name: str
    snapshot: str | None
    blob_type: BlobType
    content: int
    version: int
    """Page blobs: which version of the content this is; for the live blob it moves on with each snapshot."""
    length: int
    etag: str
    created_at: int
    modified_at: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: ContentHeaders = field(default_factory=ContentHeaders)
    sequence_number: int = 0
    lease: Lease | None = None
    copy: CopyRecord | None = None

    @property
    def present(self) -> Present:
        return Present(self.etag, self.modified_at)


@dataclass(frozen=True, slots=True)
class StoredRange:
    """A range of an arena that a body was written to; ``length`` is the body's. It begins at a multiple of 4 KiB."""

    arena: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block of a block list."""

    block_id: str
    length: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of a listing. ``next_marker`` is empty at the end."""

    blobs: list[BlobRecord]
    prefixes: list[str]
    next_marker: str
