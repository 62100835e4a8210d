"""Snapshot Blob. It costs the same whatever the blob's size; the snapshot shares all bytes until they are overwritten.

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.responses import answer, state_headers


async def snapshot_blob(operation: Operation) -> web.StreamResponse:
    """Without x-ms-meta headers the snapshot takes over the blob's metadata."""
    request = operation.request
    metadata = request.metadata() or None
    record = await operation.store.snapshot_blob(request.live_address, metadata, request.guard)
    headers = {"x-ms-snapshot": record.snapshot or "", "x-ms-request-server-encrypted": "false"}
    return answer(201, {**state_headers(record), **headers})
