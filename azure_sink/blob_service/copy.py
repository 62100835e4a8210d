"""Copy Blob within the account: it shares bytes with its source, so it has succeeded when it answers, whatever the size.

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

import uuid

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.responses import answer, state_headers
from azure_sink.blob_store.blobs import CopyRequest
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode


async def copy_blob(operation: Operation) -> web.StreamResponse:
    """Without x-ms-meta headers the copy takes over the source's metadata."""
    request = operation.request
    copy = CopyRequest(
        source=request.copy_source(),
        source_text=request.required("x-ms-copy-source"),
        copy_id=str(uuid.uuid4()),
        metadata=request.metadata() or None,
        source_conditions=request.conditions("x-ms-source-"),
    )
    record = await operation.store.copy_blob(request.live_address, copy, request.guard)
    return answer(202, {**state_headers(record), "x-ms-copy-id": copy.copy_id, "x-ms-copy-status": "success"})


async def abort_copy(operation: Operation) -> web.StreamResponse:
    """No copy is ever pending here."""
    raise StorageFault(StorageCode.NO_PENDING_COPY_OPERATION, operation.request.query.get("copyid", ""))
