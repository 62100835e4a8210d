"""Block blobs: Put Blob, Put Block, Put Block List, Get Block List.

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from aiohttp import web

from azure_sink.blob_service.operation import MAX_BLOCK_BYTES, MAX_BLOCK_LIST_BYTES, Operation
from azure_sink.blob_service.responses import answer, element, md5_text, state_headers, xml_answer
from azure_sink.blob_store.block_blobs import BlockChoice, NewBlob
from azure_sink.blob_store.values import BlockEntry
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode
from replication.blob_client.foreign_text import parse_xml

MAX_BLOCK_ID_BYTES: Final = 64
_ENCRYPTED: Final = {"x-ms-request-server-encrypted": "false"}


async def put(operation: Operation) -> web.StreamResponse:
    """Put Blob, BlockBlob. A given x-ms-blob-content-md5 is checked and stored; else the computed one is stored."""
    request, limits = operation.request, operation.limits
    address, guard, metadata = request.live_address, request.guard, request.metadata()
    headers = request.content_headers(standard_too=True)
    request.md5("x-ms-blob-content-md5")
    with_md5 = limits.compute_md5 or headers.md5 is not None
    async with operation.body(limits.max_put_blob_bytes, with_md5=with_md5) as body:
        if headers.md5 is not None and headers.md5 != body.md5:
            raise StorageFault(StorageCode.MD5_MISMATCH)
        new = NewBlob(metadata, headers.with_md5(body.md5))
        record = await operation.store.put_block_blob(address, new, body.writer, guard)
    content_md5 = {} if body.md5 is None else {"Content-MD5": md5_text(body.md5)}
    return answer(201, {**state_headers(record), **content_md5, **_ENCRYPTED})


def _checked_block_id(text: str | None) -> str:
    if text is None:
        raise StorageFault(StorageCode.MISSING_REQUIRED_QUERY_PARAMETER, "blockid")
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise StorageFault(StorageCode.INVALID_BLOCK_ID) from None
    if not 1 <= len(decoded) <= MAX_BLOCK_ID_BYTES:
        raise StorageFault(StorageCode.INVALID_BLOCK_ID, "It has 1 to 64 bytes before encoding.")
    return text


async def put_block(operation: Operation) -> web.StreamResponse:
    request = operation.request
    address, lease_id = request.live_address, request.lease_id
    block_id = _checked_block_id(request.query.get("blockid"))
    if request.text("x-ms-copy-source") is not None:
        raise StorageFault(StorageCode.NOT_IMPLEMENTED, "Put Block From URL")
    async with operation.body(MAX_BLOCK_BYTES) as body:
        await operation.store.put_block(address, block_id, body.writer, lease_id)
    content_md5 = {} if body.md5 is None else {"Content-MD5": md5_text(body.md5)}
    return answer(201, {**content_md5, **_ENCRYPTED})


async def put_block_list(operation: Operation) -> web.StreamResponse:
    """The content's MD5 is stored as given, not checked (as documented)."""
    request = operation.request
    address, guard = request.live_address, request.guard
    new = NewBlob(request.metadata(), request.content_headers(standard_too=False))
    choices = _parse_block_list(await operation.document(MAX_BLOCK_LIST_BYTES))
    record = await operation.store.put_block_list(address, new, choices, guard)
    return answer(201, {**state_headers(record), **_ENCRYPTED})


def _parse_block_list(document: bytes) -> list[BlockChoice]:
    try:
        root = parse_xml(document)
    except ValueError:
        raise StorageFault(StorageCode.INVALID_XML_DOCUMENT) from None
    if root.tag != "BlockList":
        raise StorageFault(StorageCode.INVALID_XML_DOCUMENT)
    choices = []
    for entry in root:
        block_id = _checked_block_id((entry.text or "").strip())
        match entry.tag:
            case "Committed":
                choices.append(BlockChoice(block_id, "committed"))
            case "Uncommitted":
                choices.append(BlockChoice(block_id, "uncommitted"))
            case "Latest":
                choices.append(BlockChoice(block_id, "latest"))
            case _:
                raise StorageFault(StorageCode.INVALID_XML_NODE_VALUE, "BlockList")
    return choices


async def get_block_list(operation: Operation) -> web.StreamResponse:
    request = operation.request
    which = request.query.get("blocklisttype", "committed").lower()
    if which not in ("committed", "uncommitted", "all"):
        raise StorageFault(StorageCode.INVALID_QUERY_PARAMETER_VALUE, "blocklisttype")
    lists = await operation.store.get_block_lists(request.address, request.guard)
    parts = ["<BlockList>"]
    if which in ("committed", "all"):
        parts += _block_elements("CommittedBlocks", lists.committed)
    if which in ("uncommitted", "all"):
        parts += _block_elements("UncommittedBlocks", lists.uncommitted)
    parts.append("</BlockList>")
    headers = {"x-ms-blob-content-length": str(0 if lists.record is None else lists.record.length)}
    if lists.record is not None:
        headers |= state_headers(lists.record)
    return xml_answer("".join(parts), headers)


def _block_elements(name: str, blocks: list[BlockEntry]) -> list[str]:
    entries = [
        f"<Block>{element('Name', block.block_id)}{element('Size', str(block.length))}</Block>" for block in blocks
    ]
    return [f"<{name}>", *entries, f"</{name}>"]
