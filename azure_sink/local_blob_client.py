"""``BlobClient`` over the ``BlobStore`` of this process: what the replica writer of ``azure-sink all`` uses, without HTTPS in between.

Called by ``daemon.py``. Bytes go from the caller's memory to the arenas and back, neither encrypted nor copied on the way; conditions,
leases and durability are the store's own, as over HTTPS. A refusal becomes the error that the Blob service's answer would have become.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from azure_sink.blob_service.error_table import answer_for
from azure_sink.blob_store.blobs import (
    AcquireLease,
    Address,
    BreakLease,
    CopyRequest,
    Guard,
    ReleaseLease,
    RenewLease,
)
from azure_sink.blob_store.block_blobs import NewBlob
from azure_sink.blob_store.body_writer import BodyWriter
from azure_sink.blob_store.listing import ListQuery
from azure_sink.blob_store.readers import BlobReading, StateChanged
from azure_sink.blob_store.store import BlobStore
from azure_sink.blob_store.values import BlobRecord, ContentHeaders
from azure_sink.core import lease as leases
from azure_sink.core.conditions import ANY, Conditions, SequenceConditions
from azure_sink.core.page_map import changes, merged_ranges
from azure_sink.core.storage_fault import NotModified, StorageFault
from replication.aligned_memory import lies_aligned
from replication.blob_client.api import (
    MAX_PUT_PAGES_BYTES,
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
from replication.errors import BlockferryError, PeerProtocolError

LISTING_PAGE_ENTRIES: Final = 2000
PAGE_RANGES_PAGE_ENTRIES: Final = 10_000
_READ_ATTEMPTS: Final = 8
"""A blob that is replaced while it is read is read anew, as over HTTPS."""


@contextlib.contextmanager
def _answered(what: str) -> Iterator[None]:
    """Whatever the store refuses or fails with, as the service would have answered it."""
    try:
        yield
    except (BlockferryError, sqlite3.Error, OSError) as error:
        answer = answer_for(error)
        raise failure_from_answer(answer.status, answer.code.value, what, answer.retry_after_s) from error


def _views(body: Body) -> Sequence[memoryview]:
    parts = [memoryview(body)] if isinstance(body, bytes | bytearray | memoryview) else body
    return [part.cast("B") for part in parts if part.nbytes]


def _guard(lease_id: str | None, if_match: str | None = None, *, if_none_match_any: bool = False) -> Guard:
    etag = None if if_match is None else if_match.strip('"')
    return Guard(Conditions(if_match=etag, if_none_match=ANY if if_none_match_any else None), lease_id)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _stamp(record: BlobRecord) -> BlobStamp:
    number = record.sequence_number if record.blob_type is BlobType.PAGE else None
    return BlobStamp(f'"{record.etag}"', _moment(record.modified_at), number)


class LocalBlobClient:
    """The account that ``store`` serves. Used on the event loop of the store; nothing is retried."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def _properties(self, record: BlobRecord, transferred_bytes: int = 0) -> BlobProperties:
        live = record.snapshot is None
        return BlobProperties(
            etag=f'"{record.etag}"',
            last_modified=_moment(record.modified_at),
            length_bytes=record.length,
            blob_type=record.blob_type,
            metadata={name.lower(): value for name, value in record.metadata.items()},
            sequence_number=record.sequence_number if record.blob_type is BlobType.PAGE else None,
            lease_state=leases.state_of(record.lease, self._store.now()) if live else LeaseState.AVAILABLE,
            transferred_bytes=transferred_bytes,
        )

    @contextlib.asynccontextmanager
    async def _received(self, body: Body) -> AsyncIterator[BodyWriter]:
        views = _views(body)
        length = sum(view.nbytes for view in views)
        async with self._store.receive(length, direct=all(map(lies_aligned, views))) as writer:
            for view in views:
                await writer.write(view)
            yield writer

    # -- containers and whole blobs ---------------------------------------------------------------------------

    async def create_container(self, container: str) -> None:
        with _answered(f"create container {container}"):
            try:
                await self._store.create_container(container)
            except StorageFault as fault:
                if fault.storage_code is not StorageCode.CONTAINER_ALREADY_EXISTS:
                    raise

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
        new = NewBlob(dict(metadata or {}), ContentHeaders())
        guard = _guard(lease_id, if_match, if_none_match_any=if_none_match_any)
        with _answered(f"put blob {container}/{name}"):
            async with self._received(body) as received:
                return _stamp(await self._store.put_block_blob(Address(container, name), new, received, guard))

    async def get_blob(
        self,
        container: str,
        name: str,
        *,
        max_bytes: int,
        snapshot: str | None = None,
        if_none_match: str | None = None,
    ) -> BlobContent | None:
        what = f"read blob {container}/{name}"
        conditions = Conditions(if_none_match=None if if_none_match is None else if_none_match.strip('"'))
        with _answered(what):
            for _ in range(_READ_ATTEMPTS):
                try:
                    reading = await self._store.read_blob(Address(container, name, snapshot), Guard(conditions))
                except NotModified:
                    return None
                if reading.record.length > max_bytes:
                    break
                content = bytearray(reading.record.length)
                if await _filled(reading, memoryview(content), 0):
                    return BlobContent(bytes(content), self._properties(reading.record, len(content)))
            else:
                raise StateChanged(f"cannot {what}: it is replaced all the time")
        raise PeerProtocolError(f"cannot {what}: it is larger than {max_bytes} bytes")

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
        wanted = len(buffer) if length is None else length
        if wanted > len(buffer):
            raise ValueError("the buffer is smaller than the length asked for")
        with _answered(what), memoryview(buffer) as view:
            for _ in range(_READ_ATTEMPTS):
                reading = await self._store.read_blob(Address(container, name, snapshot), _guard(None, if_match))
                record = reading.record
                if wanted and offset >= record.length and (offset or record.length):
                    raise StorageFault(StorageCode.INVALID_RANGE)
                count = min(wanted, record.length - offset) if wanted else 0
                if await _filled(reading, view[:count], offset):
                    return self._properties(record, count)
            raise StateChanged(f"cannot {what}: it is replaced all the time")

    async def head_blob(self, container: str, name: str, *, snapshot: str | None = None) -> BlobProperties:
        with _answered(f"read the properties of blob {container}/{name}"):
            return self._properties(await self._store.get_blob(Address(container, name, snapshot)))

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
        with _answered(f"delete blob {container}/{name}"):
            await self._store.delete_blob(
                Address(container, name, snapshot),
                "include" if with_snapshots and snapshot is None else None,
                _guard(lease_id, if_match),
            )

    async def list_blobs(
        self, container: str, prefix: str, *, include_snapshots: bool = False, include_metadata: bool = False
    ) -> AsyncIterator[BlobItem]:
        marker = ""
        while True:
            query = ListQuery(prefix, "", marker, LISTING_PAGE_ENTRIES, include_snapshots)
            with _answered(f"list container {container}"):
                found = await self._store.list_blobs(container, query)
            for record in found.blobs:
                shown = self._properties(record)
                if not include_metadata:
                    shown = _without_metadata(shown)
                yield BlobItem(record.name, record.snapshot, shown)
            marker = found.next_marker
            if not marker:
                return

    async def set_metadata(
        self,
        container: str,
        name: str,
        metadata: Mapping[str, str],
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> BlobStamp:
        with _answered(f"set the metadata of blob {container}/{name}"):
            guard = _guard(lease_id, if_match)
            return _stamp(await self._store.set_metadata(Address(container, name), metadata, guard))

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
        new = NewBlob(dict(metadata or {}), ContentHeaders())
        guard = _guard(None, if_none_match_any=if_none_match_any)
        with _answered(f"create page blob {container}/{name}"):
            return _stamp(
                await self._store.create_page_blob(Address(container, name), new, size_bytes, sequence_number, guard)
            )

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
        with _answered(f"write pages at {offset_bytes} of {container}/{name}"):
            length = sum(view.nbytes for view in _views(body))
            if length > MAX_PUT_PAGES_BYTES:
                raise StorageFault(StorageCode.REQUEST_BODY_TOO_LARGE, f"At most {MAX_PUT_PAGES_BYTES} bytes.")
            numbers = SequenceConditions(at_most=if_sequence_number_le, equal=if_sequence_number_eq)
            address, guard = Address(container, name), _guard(lease_id, if_match)
            async with self._received(body) as received:
                return _stamp(await self._store.put_pages(address, offset_bytes, received, guard, numbers))

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
        numbers = SequenceConditions(at_most=if_sequence_number_le, equal=if_sequence_number_eq)
        end = offset_bytes + length_bytes
        with _answered(f"clear pages at {offset_bytes} of {container}/{name}"):
            return _stamp(
                await self._store.clear_pages(
                    Address(container, name), offset_bytes, end, _guard(lease_id, if_match), numbers
                )
            )

    async def get_page_ranges(
        self, container: str, name: str, *, snapshot: str | None = None, previous_snapshot: str | None = None
    ) -> AsyncIterator[PageRange]:
        position = 0
        pending: PageRange | None = None
        while True:
            with _answered(f"read the page ranges of {container}/{name}"):
                page = await self._store.page_map(
                    Address(container, name, snapshot),
                    position,
                    None,
                    previous_snapshot=previous_snapshot,
                    limit=PAGE_RANGES_PAGE_ENTRIES,
                )
            found = (
                merged_ranges(page.now)
                if previous_snapshot is None
                else ((change.start, change.end) for change in changes(page.now, page.before) if not change.cleared)
            )
            for start, end in found:
                if pending is not None and pending.offset_bytes + pending.length_bytes == start:
                    pending = PageRange(pending.offset_bytes, end - pending.offset_bytes)
                    continue
                if pending is not None:
                    yield pending
                pending = PageRange(start, end - start)
            position = page.reached
            if position >= page.record.length:
                break
        if pending is not None:
            yield pending

    async def snapshot_blob(
        self,
        container: str,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> str:
        with _answered(f"snapshot blob {container}/{name}"):
            # As over HTTPS, where no header and no metadata look the same.
            given = metadata or None
            record = await self._store.snapshot_blob(Address(container, name), given, _guard(lease_id, if_match))
        if record.snapshot is None:
            raise RuntimeError("a snapshot was taken and has no id")
        return record.snapshot

    async def resize_page_blob(
        self, container: str, name: str, size_bytes: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        with _answered(f"resize page blob {container}/{name}"):
            guard = _guard(lease_id, if_match)
            return _stamp(await self._store.resize_page_blob(Address(container, name), size_bytes, guard))

    async def set_sequence_number(
        self, container: str, name: str, number: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        with _answered(f"set the sequence number of {container}/{name}"):
            guard = _guard(lease_id, if_match)
            return _stamp(await self._store.change_sequence_number(Address(container, name), "update", number, guard))

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire_lease(
        self, container: str, name: str, duration_s: int | None, proposed_id: str | None = None
    ) -> str:
        lease_id = proposed_id or str(uuid.uuid4())
        with _answered(f"acquire the lease of {container}/{name}"):
            await self._store.change_lease(Address(container, name), AcquireLease(duration_s, lease_id))
        return lease_id

    async def renew_lease(self, container: str, name: str, lease_id: str) -> None:
        with _answered(f"renew the lease of {container}/{name}"):
            await self._store.change_lease(Address(container, name), RenewLease(lease_id))

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        with _answered(f"release the lease of {container}/{name}"):
            await self._store.change_lease(Address(container, name), ReleaseLease(lease_id))

    async def break_lease(self, container: str, name: str, *, break_period_s: int | None = None) -> int:
        with _answered(f"break the lease of {container}/{name}"):
            record = await self._store.change_lease(Address(container, name), BreakLease(break_period_s))
        if record.lease is None or record.lease.breaks_at is None:
            return 0
        return max(0, math.ceil(record.lease.breaks_at - self._store.now()))

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
        copy = CopyRequest(
            source=Address(source_container, source_name, snapshot),
            source_text=f"/{source_container}/{source_name}?snapshot={snapshot}",
            copy_id=str(uuid.uuid4()),
            metadata=metadata or None,
        )
        with _answered(f"copy a snapshot to {container}/{name}"):
            guard = _guard(None, if_none_match_any=if_none_match_any)
            return _stamp(await self._store.copy_blob(Address(container, name), copy, guard))


async def _filled(reading: BlobReading, view: memoryview, offset: int) -> bool:
    """Read ``view.nbytes`` bytes from ``offset``; False if the blob was changed meanwhile."""
    try:
        await reading.read_into(view, offset)
    except StateChanged:
        return False
    return True


def _without_metadata(properties: BlobProperties) -> BlobProperties:
    return BlobProperties(
        properties.etag,
        properties.last_modified,
        properties.length_bytes,
        properties.blob_type,
        sequence_number=properties.sequence_number,
        lease_state=properties.lease_state,
    )


if TYPE_CHECKING:

    def _conforms(client: LocalBlobClient) -> BlobClient:
        return client
