"""Lease Blob: acquire, renew, change, release, break.

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

import math
import uuid

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.request_parser import BlobRequest
from azure_sink.blob_service.responses import answer, state_headers
from azure_sink.blob_store.blobs import AcquireLease, BreakLease, ChangeLease, LeaseAction, ReleaseLease, RenewLease
from azure_sink.blob_store.values import BlobRecord
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode


async def lease_blob(operation: Operation) -> web.StreamResponse:
    request = operation.request
    action = _action(request)
    record = await operation.store.change_lease(request.live_address, action, request.conditions())
    headers = state_headers(record)
    match action:
        case AcquireLease():
            return answer(201, {**headers, "x-ms-lease-id": action.proposed_id})
        case RenewLease():
            return answer(200, {**headers, "x-ms-lease-id": action.lease_id})
        case ChangeLease():
            return answer(200, {**headers, "x-ms-lease-id": action.proposed_id})
        case ReleaseLease():
            return answer(200, headers)
        case BreakLease():
            return answer(202, {**headers, "x-ms-lease-time": str(_seconds_left(record, operation.store.now()))})


def _seconds_left(record: BlobRecord, now: float) -> int:
    if record.lease is None or record.lease.breaks_at is None:
        return 0
    return max(0, math.ceil(record.lease.breaks_at - now))


def _action(request: BlobRequest) -> LeaseAction:
    match request.required("x-ms-lease-action").lower():
        case "acquire":
            return AcquireLease(_duration(request), request.identifier("x-ms-proposed-lease-id") or str(uuid.uuid4()))
        case "renew":
            return RenewLease(_required_id(request, "x-ms-lease-id"))
        case "change":
            return ChangeLease(_required_id(request, "x-ms-lease-id"), _required_id(request, "x-ms-proposed-lease-id"))
        case "release":
            return ReleaseLease(_required_id(request, "x-ms-lease-id"))
        case "break":
            return BreakLease(request.number("x-ms-lease-break-period"))
        case _:
            raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "x-ms-lease-action")


def _duration(request: BlobRequest) -> int | None:
    """Seconds; None: for ever (-1)."""
    if request.required("x-ms-lease-duration") == "-1":
        return None
    return request.number("x-ms-lease-duration")


def _required_id(request: BlobRequest, name: str) -> str:
    request.required(name)
    return request.identifier(name) or ""
