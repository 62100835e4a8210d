"""The one router: (resource, method, restype, comp) → operation. Its names appear in metrics.

Called by ``app.py``. What Azure has and this service has not is a 501, what nobody has a 400 or 405.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from azure_sink.blob_service import blob, block_blob, container, copy, lease, page_blob, service, snapshot
from azure_sink.blob_service.operation import Handler
from azure_sink.blob_service.request_parser import BlobRequest, Resource
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode


@dataclass(frozen=True, slots=True)
class Route:
    """``operation`` is the name of Azure's documentation without blanks."""

    operation: str
    handler: Handler


_SERVICE, _CONTAINER, _BLOB = Resource.SERVICE, Resource.CONTAINER, Resource.BLOB

_ROUTES: Final[dict[tuple[Resource, str, str, str], Route]] = {
    (_SERVICE, "GET", "", "list"): Route("ListContainers", service.list_containers),
    (_SERVICE, "GET", "service", "properties"): Route("GetBlobServiceProperties", service.get_properties),
    (_CONTAINER, "PUT", "container", ""): Route("CreateContainer", container.create),
    (_CONTAINER, "DELETE", "container", ""): Route("DeleteContainer", container.delete),
    (_CONTAINER, "GET", "container", ""): Route("GetContainerProperties", container.get_properties),
    (_CONTAINER, "HEAD", "container", ""): Route("GetContainerProperties", container.get_properties),
    (_CONTAINER, "GET", "container", "metadata"): Route("GetContainerMetadata", container.get_properties),
    (_CONTAINER, "HEAD", "container", "metadata"): Route("GetContainerMetadata", container.get_properties),
    (_CONTAINER, "PUT", "container", "metadata"): Route("SetContainerMetadata", container.set_metadata),
    (_CONTAINER, "GET", "container", "list"): Route("ListBlobs", container.list_blobs),
    (_BLOB, "GET", "", ""): Route("GetBlob", blob.get),
    (_BLOB, "HEAD", "", ""): Route("GetBlobProperties", blob.get_properties),
    (_BLOB, "DELETE", "", ""): Route("DeleteBlob", blob.delete),
    (_BLOB, "GET", "", "metadata"): Route("GetBlobMetadata", blob.get_metadata),
    (_BLOB, "HEAD", "", "metadata"): Route("GetBlobMetadata", blob.get_metadata),
    (_BLOB, "PUT", "", "metadata"): Route("SetBlobMetadata", blob.set_metadata),
    (_BLOB, "PUT", "", "properties"): Route("SetBlobProperties", blob.set_properties),
    (_BLOB, "PUT", "", "block"): Route("PutBlock", block_blob.put_block),
    (_BLOB, "PUT", "", "blocklist"): Route("PutBlockList", block_blob.put_block_list),
    (_BLOB, "GET", "", "blocklist"): Route("GetBlockList", block_blob.get_block_list),
    (_BLOB, "PUT", "", "page"): Route("PutPage", page_blob.put_page),
    (_BLOB, "GET", "", "pagelist"): Route("GetPageRanges", page_blob.get_page_ranges),
    (_BLOB, "PUT", "", "lease"): Route("LeaseBlob", lease.lease_blob),
    (_BLOB, "PUT", "", "snapshot"): Route("SnapshotBlob", snapshot.snapshot_blob),
    (_BLOB, "PUT", "", "copy"): Route("AbortCopyBlob", copy.abort_copy),
}
_PUT_BLOCK_BLOB: Final = Route("PutBlob", block_blob.put)
_PUT_PAGE_BLOB: Final = Route("PutBlob", page_blob.create)
_COPY_BLOB: Final = Route("CopyBlob", copy.copy_blob)

_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})


def route(request: BlobRequest) -> Route:
    """:raises StorageFault: NotImplemented, UnsupportedHttpVerb, InvalidHeaderValue."""
    restype, comp = request.query.get("restype", ""), request.query.get("comp", "")
    resource = request.target.resource
    if (resource, request.method, restype, comp) == (_BLOB, "PUT", "", ""):
        return _route_of_put(request)
    found = _ROUTES.get((resource, request.method, restype, comp))
    if found is not None:
        return found
    if request.method not in _METHODS:
        raise StorageFault(StorageCode.UNSUPPORTED_HTTP_VERB)
    raise StorageFault(StorageCode.NOT_IMPLEMENTED, f"{request.method} restype={restype} comp={comp}".rstrip())


def _route_of_put(request: BlobRequest) -> Route:
    """A plain PUT of a blob: which operation it is depends on headers."""
    if request.text("x-ms-copy-source") is not None:
        if request.text("x-ms-blob-type") is not None:
            raise StorageFault(StorageCode.NOT_IMPLEMENTED, "Put Blob From URL")
        return _COPY_BLOB
    match request.required("x-ms-blob-type"):
        case "BlockBlob":
            return _PUT_BLOCK_BLOB
        case "PageBlob":
            return _PUT_PAGE_BLOB
        case "AppendBlob":
            raise StorageFault(StorageCode.NOT_IMPLEMENTED, "append blobs")
        case _:
            raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "x-ms-blob-type")
