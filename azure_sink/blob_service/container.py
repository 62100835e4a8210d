"""Containers: create, delete, properties, metadata, List Blobs. There are no leases, policies or public access on containers.

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import quoteattr

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.responses import (
    answer,
    element,
    http_date,
    lease_words,
    md5_text,
    metadata_element,
    metadata_headers,
    name_element,
    state_headers,
    xml_answer,
)
from azure_sink.blob_service.service import endpoint_of
from azure_sink.blob_store.listing import ListQuery
from azure_sink.blob_store.values import BlobRecord
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import BlobType
from replication.blob_client.codes import StorageCode

_INCLUDES: Final = (
    "snapshots",
    "metadata",
    "uncommittedblobs",
    "copy",
    "deleted",
    "tags",
    "versions",
    "deletedwithversions",
)
"""What may be asked for. Of deleted blobs, tags and versions there are none; uncommitted blobs are left out."""
_NOT_INCLUDED: Final = frozenset({"uncommittedblobs"})


async def create(operation: Operation) -> web.StreamResponse:
    request = operation.request
    if request.text("x-ms-blob-public-access") is not None:
        raise StorageFault(StorageCode.UNSUPPORTED_HEADER, "x-ms-blob-public-access")
    record = await operation.store.create_container(request.target.container, request.metadata())
    return answer(201, state_headers(record))


async def delete(operation: Operation) -> web.StreamResponse:
    request = operation.request
    await operation.store.delete_container(request.target.container, request.conditions())
    return answer(202)


async def get_properties(operation: Operation) -> web.StreamResponse:
    record = await operation.store.get_container(operation.request.target.container)
    headers = {
        **state_headers(record),
        **metadata_headers(record.metadata),
        "x-ms-lease-status": "unlocked",
        "x-ms-lease-state": "available",
        "x-ms-has-immutability-policy": "false",
        "x-ms-has-legal-hold": "false",
    }
    return answer(200, headers)


async def set_metadata(operation: Operation) -> web.StreamResponse:
    request = operation.request
    record = await operation.store.set_container_metadata(
        request.target.container, request.metadata(), request.conditions()
    )
    return answer(200, state_headers(record))


async def list_blobs(operation: Operation) -> web.StreamResponse:
    request = operation.request
    includes = request.includes(_INCLUDES)
    if includes & _NOT_INCLUDED:
        raise StorageFault(StorageCode.NOT_IMPLEMENTED, "include=uncommittedblobs")
    query = ListQuery(
        prefix=request.query.get("prefix", ""),
        delimiter=request.query.get("delimiter", ""),
        marker=_marker(request.query.get("marker", "")),
        limit=request.max_results(),
        include_snapshots="snapshots" in includes,
    )
    if query.delimiter and query.include_snapshots:
        raise StorageFault(StorageCode.INVALID_QUERY_PARAMETER_VALUE, "delimiter together with include=snapshots")
    found = await operation.store.list_blobs(request.target.container, query)
    now = operation.store.now()
    entries = [(record.name, _blob_element(record, includes, now)) for record in found.blobs]
    entries += [(prefix, f"<BlobPrefix>{name_element(prefix)}</BlobPrefix>") for prefix in found.prefixes]
    if found.prefixes:
        entries.sort(key=lambda entry: entry[0])
    opening = (
        f"<EnumerationResults ServiceEndpoint={quoteattr(endpoint_of(operation))} "
        f"ContainerName={quoteattr(request.target.container)}>"
    )
    parts = [opening]
    parts += [
        element(name, value)
        for name, value in (
            ("Prefix", query.prefix),
            ("Marker", request.query.get("marker", "")),
            ("MaxResults", request.query.get("maxresults", "")),
            ("Delimiter", query.delimiter),
        )
        if value
    ]
    parts += ["<Blobs>", *(entry[1] for entry in entries), "</Blobs>"]
    parts += [element("NextMarker", _shown_marker(found.next_marker)), "</EnumerationResults>"]
    return xml_answer("".join(parts))


def _marker(shown: str) -> str:
    """Markers are hexadecimal outside, so that every name survives XML and queries."""
    try:
        return bytes.fromhex(shown).decode()
    except ValueError:
        raise StorageFault(StorageCode.OUT_OF_RANGE_QUERY_PARAMETER_VALUE, "marker") from None


def _shown_marker(marker: str) -> str:
    return marker.encode().hex()


def _blob_element(record: BlobRecord, includes: frozenset[str], now: float) -> str:
    headers = record.headers
    parts = ["<Blob>", name_element(record.name)]
    if record.snapshot is not None:
        parts.append(element("Snapshot", record.snapshot))
    parts += [
        "<Properties>",
        element("Creation-Time", http_date(record.created_at)),
        element("Last-Modified", http_date(record.modified_at)),
        element("Etag", record.etag),
        element("Content-Length", str(record.length)),
        element("Content-Type", headers.content_type),
        element("Content-Encoding", headers.content_encoding),
        element("Content-Language", headers.content_language),
        element("Content-MD5", "" if headers.md5 is None else md5_text(headers.md5)),
        element("Cache-Control", headers.cache_control),
        element("Content-Disposition", headers.content_disposition),
    ]
    if record.blob_type is BlobType.PAGE:
        parts.append(element("x-ms-blob-sequence-number", str(record.sequence_number)))
    parts.append(element("BlobType", record.blob_type.value))
    if record.snapshot is None:
        parts += [element(f"Lease{name.capitalize()}", value) for name, value in lease_words(record, now).items()]
    if "copy" in includes and record.copy is not None:
        parts += [
            element("CopyId", record.copy.copy_id),
            element("CopySource", record.copy.source),
            element("CopyStatus", "success"),
            element("CopyProgress", f"{record.copy.total_bytes}/{record.copy.total_bytes}"),
            element("CopyCompletionTime", http_date(record.copy.completed_at)),
        ]
    parts.append("<ServerEncrypted>false</ServerEncrypted></Properties>")
    if "metadata" in includes:
        parts.append(metadata_element(record.metadata))
    parts.append("</Blob>")
    return "".join(parts)
