"""What is the same for every type of blob: get, properties, delete, metadata, headers.

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.responses import answer, blob_headers, md5_text, sequence_header, state_headers
from azure_sink.blob_store.body_writer import md5
from azure_sink.blob_store.readers import BlobReading, StateChanged
from azure_sink.blob_store.values import MIB, BlobRecord
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode

MAX_RANGE_MD5_BYTES: Final = 4 * MIB
_ONE_PIECE_BYTES: Final = 64 * 1024
_SMALL_READ_ATTEMPTS: Final = 8


async def get(operation: Operation) -> web.StreamResponse:
    """Get Blob: whole, or one range (206).

    A small body is read whole before the first header goes out, and anew if the blob was overwritten meanwhile: a receipt that is
    replaced all the time can be read at any time.
    """
    for _ in range(_SMALL_READ_ATTEMPTS - 1):
        try:
            return await _get(operation)
        except _OverwrittenMeanwhile:
            continue
    return await _get(operation)


class _OverwrittenMeanwhile(StateChanged):
    """Nothing was sent yet."""


async def _get(operation: Operation) -> web.StreamResponse:
    request = operation.request
    reading = await operation.store.read_blob(request.address, request.guard)
    record = reading.record
    wanted = request.byte_range()
    headers = blob_headers(record, operation.store.now())
    start, end = (0, record.length) if wanted is None else wanted.within(record.length)
    stored_md5 = None if record.headers.md5 is None else md5_text(record.headers.md5)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{record.length}"
        if stored_md5 is not None:
            headers["x-ms-blob-content-md5"] = stored_md5
        if request.flag("x-ms-range-get-content-md5"):
            headers["Content-MD5"] = await _range_md5(reading, start, end)
    elif stored_md5 is not None:
        headers["Content-MD5"] = stored_md5
    status = 200 if wanted is None else 206
    if end - start <= _ONE_PIECE_BYTES:
        try:
            content = b"".join([bytes(piece) async for piece in reading.stream(start, end)])
        except StateChanged as error:
            raise _OverwrittenMeanwhile(error.message) from error
        operation.sent(len(content))
        return web.Response(status=status, headers=headers, body=content)
    return await _stream(operation, reading, start, end, web.StreamResponse(status=status, headers=headers))


async def _range_md5(reading: BlobReading, start: int, end: int) -> str:
    if end - start > MAX_RANGE_MD5_BYTES:
        raise StorageFault(StorageCode.OUT_OF_RANGE_INPUT, "x-ms-range-get-content-md5 goes with at most 4 MiB.")
    digest = md5()
    async for piece in reading.stream(start, end):
        digest.update(piece)
    return md5_text(digest.digest())


async def _stream(
    operation: Operation, reading: BlobReading, start: int, end: int, response: web.StreamResponse
) -> web.StreamResponse:
    """Send the bytes. What fails after the headers are gone cuts the connection: the client sees that bytes are missing."""
    response.content_length = end - start
    await response.prepare(operation.http)
    async with contextlib.aclosing(reading.stream(start, end)) as pieces:
        async for piece in pieces:
            async with asyncio.timeout(operation.limits.stall_timeout_s):
                await response.write(piece)
            operation.sent(len(piece))
    return response


async def get_properties(operation: Operation) -> web.StreamResponse:
    request = operation.request
    record = await operation.store.get_blob(request.address, request.guard)
    headers = blob_headers(record, operation.store.now())
    if record.headers.md5 is not None:
        headers["Content-MD5"] = md5_text(record.headers.md5)
    response = web.StreamResponse(status=200, headers=headers)
    response.content_length = record.length
    await response.prepare(operation.http)
    return response


async def get_metadata(operation: Operation) -> web.StreamResponse:
    request = operation.request
    record = await operation.store.get_blob(request.address, request.guard)
    metadata = {f"x-ms-meta-{name}": value for name, value in record.metadata.items()}
    return answer(200, {**state_headers(record), **metadata})


async def set_metadata(operation: Operation) -> web.StreamResponse:
    request = operation.request
    record = await operation.store.set_metadata(request.live_address, request.metadata(), request.guard)
    return answer(200, {**state_headers(record), "x-ms-request-server-encrypted": "false"})


async def delete(operation: Operation) -> web.StreamResponse:
    request = operation.request
    await operation.store.delete_blob(request.address, request.delete_snapshots(), request.guard)
    return answer(202, {"x-ms-delete-type-permanent": "true"})


async def set_properties(operation: Operation) -> web.StreamResponse:
    """Set Blob Properties: the size, or the sequence number, or the headers for readers; one of the three a request."""
    request, store = operation.request, operation.store
    address, guard = request.live_address, request.guard
    size, action = request.number("x-ms-blob-content-length"), request.text("x-ms-sequence-number-action")
    record: BlobRecord
    if size is not None and action is not None:
        raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "Size and sequence number are set one by one.")
    if size is not None:
        record = await store.resize_page_blob(address, size, guard)
    elif action is not None:
        number = request.number("x-ms-blob-sequence-number")
        match action:
            case "max" | "update" | "increment":
                record = await store.change_sequence_number(address, action, number, guard)
            case _:
                raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "x-ms-sequence-number-action")
    else:
        record = await store.set_headers(address, request.content_headers(standard_too=False, content_type=""), guard)
    return answer(200, {**state_headers(record), **sequence_header(record)})
