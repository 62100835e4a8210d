"""Page blobs: create, Put Page (update and clear), Get Page Ranges (with comparison to a snapshot).

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.request_parser import BlobRequest
from azure_sink.blob_service.responses import (
    answer,
    element,
    md5_text,
    sequence_header,
    state_headers,
    xml_answer,
)
from azure_sink.blob_store.block_blobs import NewBlob
from azure_sink.blob_store.store import PageMapPage
from azure_sink.blob_store.values import MAX_PUT_PAGES_BYTES
from azure_sink.core.page_map import changes, merged_ranges
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import PAGE_BYTES
from replication.blob_client.codes import StorageCode

MAX_RANGES: Final = 10_000
_FIRST_VERSION_WITH_MARKERS: Final = "2020-10-02"
_ENCRYPTED: Final = {"x-ms-request-server-encrypted": "false"}


async def create(operation: Operation) -> web.StreamResponse:
    request = operation.request
    size = request.required_number("x-ms-blob-content-length")
    if request.body_length(0):
        raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "Content-Length")
    new = NewBlob(request.metadata(), request.content_headers(standard_too=True))
    number = request.number("x-ms-blob-sequence-number") or 0
    record = await operation.store.create_page_blob(request.live_address, new, size, number, request.guard)
    return answer(201, {**state_headers(record), **_ENCRYPTED})


def _page_range(request: BlobRequest) -> tuple[int, int]:
    """(start, end), whole pages."""
    wanted = request.byte_range()
    if wanted is None:
        raise StorageFault(StorageCode.MISSING_REQUIRED_HEADER, "x-ms-range")
    if wanted.last is None or wanted.first % PAGE_BYTES or (wanted.last + 1) % PAGE_BYTES:
        raise StorageFault(StorageCode.INVALID_PAGE_RANGE)
    return wanted.first, wanted.last + 1


async def put_page(operation: Operation) -> web.StreamResponse:
    request, store = operation.request, operation.store
    address, guard, numbers = request.live_address, request.guard, request.sequence_conditions()
    start, end = _page_range(request)
    if request.text("x-ms-copy-source") is not None:
        raise StorageFault(StorageCode.NOT_IMPLEMENTED, "Put Page From URL")
    match request.required("x-ms-page-write").lower():
        case "clear":
            if request.body_length(0):
                raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "Content-Length")
            record = await store.clear_pages(address, start, end, guard, numbers)
            return answer(201, {**state_headers(record), **sequence_header(record)})
        case "update":
            pass
        case _:
            raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "x-ms-page-write")
    if end - start > MAX_PUT_PAGES_BYTES:
        raise StorageFault(StorageCode.REQUEST_BODY_TOO_LARGE, f"At most {MAX_PUT_PAGES_BYTES} bytes.")
    if request.body_length(MAX_PUT_PAGES_BYTES) != end - start:
        raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "Content-Length")
    async with operation.body(MAX_PUT_PAGES_BYTES) as body:
        record = await store.put_pages(address, start, body.writer, guard, numbers)
    content_md5 = {} if body.md5 is None else {"Content-MD5": md5_text(body.md5)}
    return answer(201, {**state_headers(record), **sequence_header(record), **content_md5, **_ENCRYPTED})


async def get_page_ranges(operation: Operation) -> web.StreamResponse:
    """Ranges that hold data, or with ``prevsnapshot`` those that differ. Long lists come in pages, from version 2020-10-02 on."""
    request = operation.request
    wanted = request.byte_range()
    if "prevsnapshoturl" in request.query or request.text("x-ms-previous-snapshot-url") is not None:
        raise StorageFault(StorageCode.NOT_IMPLEMENTED, "x-ms-previous-snapshot-url")
    previous = request.snapshot("prevsnapshot")
    start = 0 if wanted is None else wanted.first - wanted.first % PAGE_BYTES
    end = None if wanted is None or wanted.last is None else -(-(wanted.last + 1) // PAGE_BYTES) * PAGE_BYTES
    limit = request.max_results(MAX_RANGES)
    page = await operation.store.page_map(
        request.address,
        max(start, _marker(request)),
        end,
        previous_snapshot=previous,
        limit=limit,
        guard=request.guard,
    )
    if wanted is not None and page.record.length <= wanted.first:
        raise StorageFault(StorageCode.INVALID_RANGE)
    stop = page.record.length if end is None else min(end, page.record.length)
    if page.reached < stop and request.version < _FIRST_VERSION_WITH_MARKERS:
        raise StorageFault(
            StorageCode.OUT_OF_RANGE_INPUT,
            f"Too many ranges: ask for parts, or with x-ms-version {_FIRST_VERSION_WITH_MARKERS}.",
        )
    parts = ["<PageList>", *_range_elements(page, compares=previous is not None)]
    if page.reached < stop:
        parts.append(element("NextMarker", str(page.reached)))
    parts.append("</PageList>")
    headers = {**state_headers(page.record), "x-ms-blob-content-length": str(page.record.length)}
    return xml_answer("".join(parts), headers)


def _marker(request: BlobRequest) -> int:
    text = request.query.get("marker", "") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise StorageFault(StorageCode.OUT_OF_RANGE_QUERY_PARAMETER_VALUE, "marker")
    return int(text)


def _range_elements(page: PageMapPage, *, compares: bool) -> list[str]:
    if not compares:
        return [_range_element("PageRange", start, end) for start, end in merged_ranges(page.now)]
    return [
        _range_element("ClearRange" if change.cleared else "PageRange", change.start, change.end)
        for change in changes(page.now, page.before)
    ]


def _range_element(name: str, start: int, end: int) -> str:
    return f"<{name}>{element('Start', str(start))}{element('End', str(end - 1))}</{name}>"
