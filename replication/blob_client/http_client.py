"""``BlobClient`` over HTTPS: Azure Blob Storage, or ``azure-sink blob``.

Called by the daemons' composition roots: ``async with HttpBlobClient(settings) as client``. Each method is one request (listings:
one a page; a copy: until it has succeeded) that may stand still for ``settings.timeout_s``; nothing is retried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from replication.blob_client import answers
from replication.blob_client.api import (
    MAX_PUT_PAGES_BYTES,
    BlobClient,
    BlobContent,
    BlobItem,
    BlobProperties,
    BlobStamp,
    Body,
    PageRange,
)
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import BlobConflict, BlobInputRefused, BlobServiceFailed
from replication.blob_client.pace import Pace
from replication.blob_client.settings import BlobEndpointSettings
from replication.blob_client.transport import BlobTransport, Call, body_length, read_document, read_into
from replication.errors import PeerProtocolError, PeerUnavailable

LISTING_PAGE_ENTRIES: Final = 2000
PAGE_RANGES_PAGE_ENTRIES: Final = 10_000
COPY_TIMEOUT_S: Final = 3600.0
_COPY_POLL_S: Final = 1.0


def _headers(
    *,
    metadata: Mapping[str, str] | None = None,
    lease_id: str | None = None,
    if_match: str | None = None,
    if_none_match_any: bool = False,
    if_sequence_number_eq: int | None = None,
    if_sequence_number_le: int | None = None,
) -> dict[str, str]:
    headers = {answers.METADATA_PREFIX + name: value for name, value in (metadata or {}).items()}
    if lease_id is not None:
        headers["x-ms-lease-id"] = lease_id
    if if_match is not None:
        headers["If-Match"] = if_match
    if if_none_match_any:
        headers["If-None-Match"] = "*"
    if if_sequence_number_eq is not None:
        headers["x-ms-if-sequence-number-eq"] = str(if_sequence_number_eq)
    if if_sequence_number_le is not None:
        headers["x-ms-if-sequence-number-le"] = str(if_sequence_number_le)
    return headers


class HttpBlobClient:
    """One storage account over HTTPS; safe for concurrent use within one event loop."""

    def __init__(self, settings: BlobEndpointSettings, pace: Pace | None = None) -> None:
        """Read key and CA file (``SettingsError``); no connection is made before the first call. ``pace`` holds back what is sent."""
        self._transport = BlobTransport(settings, pace)

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._transport.close()

    async def _write(
        self,
        what: str,
        container: str,
        name: str,
        headers: Mapping[str, str],
        *,
        status: int,
        query: Mapping[str, str] | None = None,
        body: Body = b"",
    ) -> BlobStamp:
        call = Call(f"{what} {container}/{name}", "PUT", container, name, query or {}, headers, body)
        async with self._transport.send(call, expect=(status,)) as response:
            return answers.stamp(response.headers)

    # -- containers and whole blobs ---------------------------------------------------------------------------

    async def create_container(self, container: str) -> None:
        call = Call(f"create container {container}", "PUT", container, None, {"restype": "container"}, {})
        try:
            async with self._transport.send(call, expect=(201,)):
                pass
        except BlobConflict as conflict:
            if conflict.storage_code != StorageCode.CONTAINER_ALREADY_EXISTS:
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
        headers = _headers(metadata=metadata, lease_id=lease_id, if_match=if_match, if_none_match_any=if_none_match_any)
        headers["x-ms-blob-type"] = "BlockBlob"
        return await self._write("put blob", container, name, headers, status=201, body=body)

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
        headers = {} if if_none_match is None else {"If-None-Match": if_none_match}
        call = Call(what, "GET", container, name, _snapshot_query(snapshot), headers)
        async with self._transport.send(call, expect=(200, 304)) as response:
            if response.status == 304:
                return None
            length = answers.integer(response.headers.get("Content-Length", ""))
            if length > max_bytes:
                raise PeerProtocolError(f"cannot {what}: it is larger than {max_bytes} bytes")
            content = bytearray(length)
            read = await read_into(response, memoryview(content), what)
            properties = answers.properties(response.headers, length_bytes=length, transferred_bytes=read)
            return BlobContent(bytes(content), properties)

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
        if wanted == 0:
            return await self.head_blob(container, name, snapshot=snapshot)
        headers = {"x-ms-range": f"bytes={offset}-{offset + wanted - 1}", **_headers(if_match=if_match)}
        call = Call(what, "GET", container, name, _snapshot_query(snapshot), headers)
        try:
            async with self._transport.send(call, expect=(206,)) as response:
                first, whole = answers.content_range(response.headers)
                if first != offset:
                    raise PeerProtocolError(f"cannot {what}: the answer starts at {first}, not at {offset}")
                with memoryview(buffer) as view:
                    read = await read_into(response, view[:wanted], what)
                if read != min(wanted, whole - offset):
                    raise PeerProtocolError(f"cannot {what}: the answer is shorter than it says")
                return answers.properties(response.headers, length_bytes=whole, transferred_bytes=read)
        except BlobInputRefused as refused:
            if offset == 0 and refused.storage_code == StorageCode.INVALID_RANGE:  # an empty blob has no first byte
                return await self.head_blob(container, name, snapshot=snapshot)
            raise

    async def head_blob(self, container: str, name: str, *, snapshot: str | None = None) -> BlobProperties:
        what = f"read the properties of blob {container}/{name}"
        call = Call(what, "HEAD", container, name, _snapshot_query(snapshot), {})
        async with self._transport.send(call, expect=(200,)) as response:
            length = answers.integer(response.headers.get("Content-Length", ""))
            return answers.properties(response.headers, length_bytes=length)

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
        headers = _headers(lease_id=lease_id, if_match=if_match)
        if with_snapshots and snapshot is None:
            headers["x-ms-delete-snapshots"] = "include"
        what = f"delete blob {container}/{name}"
        call = Call(what, "DELETE", container, name, _snapshot_query(snapshot), headers)
        async with self._transport.send(call, expect=(202,)):
            pass

    async def list_blobs(
        self, container: str, prefix: str, *, include_snapshots: bool = False, include_metadata: bool = False
    ) -> AsyncIterator[BlobItem]:
        query = {
            "restype": "container",
            "comp": "list",
            "prefix": prefix,
            "maxresults": str(LISTING_PAGE_ENTRIES),
        }
        include = [word for word, on in (("snapshots", include_snapshots), ("metadata", include_metadata)) if on]
        if include:
            query["include"] = ",".join(include)
        what = f"list container {container}"
        marker = ""
        while True:
            page_query = {**query, "marker": marker} if marker else query
            call = Call(what, "GET", container, None, page_query, {})
            async with self._transport.send(call, expect=(200,)) as response:
                listing = answers.blob_listing(await read_document(response, what))
            for item in listing.items:
                yield item
            if not listing.next_marker:
                return
            if listing.next_marker == marker:
                raise PeerProtocolError(f"cannot {what}: the same marker came twice")
            marker = listing.next_marker

    async def set_metadata(
        self,
        container: str,
        name: str,
        metadata: Mapping[str, str],
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
    ) -> BlobStamp:
        headers = _headers(metadata=metadata, lease_id=lease_id, if_match=if_match)
        return await self._write(
            "set the metadata of blob", container, name, headers, status=200, query={"comp": "metadata"}
        )

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
        headers = _headers(metadata=metadata, if_none_match_any=if_none_match_any)
        headers["x-ms-blob-type"] = "PageBlob"
        headers["x-ms-blob-content-length"] = str(size_bytes)
        headers["x-ms-blob-sequence-number"] = str(sequence_number)
        return await self._write("create page blob", container, name, headers, status=201)

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
        length = body_length(body)
        if not 0 < length <= MAX_PUT_PAGES_BYTES:
            raise BlobInputRefused(
                f"cannot write pages of {container}/{name}: {length} bytes",
                hint=f"1 to {MAX_PUT_PAGES_BYTES} bytes a call",
            )
        headers = _headers(
            lease_id=lease_id,
            if_match=if_match,
            if_sequence_number_eq=if_sequence_number_eq,
            if_sequence_number_le=if_sequence_number_le,
        )
        headers["x-ms-page-write"] = "update"
        headers["x-ms-range"] = f"bytes={offset_bytes}-{offset_bytes + length - 1}"
        return await self._write(
            f"write pages at {offset_bytes} of", container, name, headers, status=201, query={"comp": "page"}, body=body
        )

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
        headers = _headers(
            lease_id=lease_id,
            if_match=if_match,
            if_sequence_number_eq=if_sequence_number_eq,
            if_sequence_number_le=if_sequence_number_le,
        )
        headers["x-ms-page-write"] = "clear"
        headers["x-ms-range"] = f"bytes={offset_bytes}-{offset_bytes + length_bytes - 1}"
        return await self._write(
            f"clear pages at {offset_bytes} of", container, name, headers, status=201, query={"comp": "page"}
        )

    async def get_page_ranges(
        self, container: str, name: str, *, snapshot: str | None = None, previous_snapshot: str | None = None
    ) -> AsyncIterator[PageRange]:
        what = f"read the page ranges of {container}/{name}"
        query = {"comp": "pagelist", "maxresults": str(PAGE_RANGES_PAGE_ENTRIES), **_snapshot_query(snapshot)}
        if previous_snapshot is not None:
            query["prevsnapshot"] = previous_snapshot
        pending: PageRange | None = None
        marker = ""
        while True:
            call = Call(what, "GET", container, name, {**query, "marker": marker} if marker else query, {})
            async with self._transport.send(call, expect=(200,)) as response:
                listing = answers.page_listing(await read_document(response, what))
            for found in listing.ranges:
                if pending is not None and pending.offset_bytes + pending.length_bytes == found.offset_bytes:
                    pending = PageRange(pending.offset_bytes, pending.length_bytes + found.length_bytes)
                    continue
                if pending is not None:
                    yield pending
                pending = found
            if not listing.next_marker:
                break
            if listing.next_marker == marker:
                raise PeerProtocolError(f"cannot {what}: the same marker came twice")
            marker = listing.next_marker
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
        what = f"snapshot blob {container}/{name}"
        headers = _headers(metadata=metadata, lease_id=lease_id, if_match=if_match)
        call = Call(what, "PUT", container, name, {"comp": "snapshot"}, headers)
        async with self._transport.send(call, expect=(201,)) as response:
            snapshot = response.headers.get("x-ms-snapshot")
            if not snapshot:
                raise PeerProtocolError(f"cannot {what}: the answer names no snapshot")
            return snapshot

    async def resize_page_blob(
        self, container: str, name: str, size_bytes: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        headers = _headers(lease_id=lease_id, if_match=if_match)
        headers["x-ms-blob-content-length"] = str(size_bytes)
        return await self._write("resize page blob", container, name, headers, status=200, query={"comp": "properties"})

    async def set_sequence_number(
        self, container: str, name: str, number: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        headers = _headers(lease_id=lease_id, if_match=if_match)
        headers["x-ms-sequence-number-action"] = "update"
        headers["x-ms-blob-sequence-number"] = str(number)
        return await self._write(
            "set the sequence number of", container, name, headers, status=200, query={"comp": "properties"}
        )

    # -- leases -----------------------------------------------------------------------------------------------

    async def _lease(
        self, action: str, container: str, name: str, headers: Mapping[str, str], status: int
    ) -> Mapping[str, str]:
        what = f"{action} the lease of {container}/{name}"
        call = Call(what, "PUT", container, name, {"comp": "lease"}, {"x-ms-lease-action": action, **headers})
        async with self._transport.send(call, expect=(status,)) as response:
            return response.headers

    async def acquire_lease(
        self, container: str, name: str, duration_s: int | None, proposed_id: str | None = None
    ) -> str:
        headers = {"x-ms-lease-duration": "-1" if duration_s is None else str(duration_s)}
        if proposed_id is not None:
            headers["x-ms-proposed-lease-id"] = proposed_id
        answer = await self._lease("acquire", container, name, headers, 201)
        lease_id = answer.get("x-ms-lease-id")
        if not lease_id:
            raise PeerProtocolError(f"cannot acquire the lease of {container}/{name}: the answer names no lease")
        return lease_id

    async def renew_lease(self, container: str, name: str, lease_id: str) -> None:
        await self._lease("renew", container, name, {"x-ms-lease-id": lease_id}, 200)

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        await self._lease("release", container, name, {"x-ms-lease-id": lease_id}, 200)

    async def break_lease(self, container: str, name: str, *, break_period_s: int | None = None) -> int:
        headers = {} if break_period_s is None else {"x-ms-lease-break-period": str(break_period_s)}
        answer = await self._lease("break", container, name, headers, 202)
        return answers.integer(answer.get("x-ms-lease-time", ""))

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
        what = f"copy a snapshot to {container}/{name}"
        headers = _headers(metadata=metadata, if_none_match_any=if_none_match_any)
        headers["x-ms-copy-source"] = self._transport.address_of(
            source_container, source_name, _snapshot_query(snapshot)
        )
        call = Call(what, "PUT", container, name, {}, headers)
        async with self._transport.send(call, expect=(202,)) as response:
            answer = response.headers
        deadline = time.monotonic() + COPY_TIMEOUT_S
        while (status := answer.get("x-ms-copy-status")) == "pending":
            if time.monotonic() > deadline:
                raise PeerUnavailable(f"cannot {what}: it is still pending after {COPY_TIMEOUT_S:g} s")
            await asyncio.sleep(_COPY_POLL_S)
            head = Call(what, "HEAD", container, name, {}, {})
            async with self._transport.send(head, expect=(200,)) as response:
                answer = response.headers
        if status != "success":
            raise BlobServiceFailed(f"cannot {what}: the copy ended as {status}")
        return answers.stamp(answer)


def _snapshot_query(snapshot: str | None) -> dict[str, str]:
    return {} if snapshot is None else {"snapshot": snapshot}


if TYPE_CHECKING:

    def _conforms(client: HttpBlobClient) -> BlobClient:
        return client
