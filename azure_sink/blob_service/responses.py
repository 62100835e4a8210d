"""Answers: the headers that show a container's or blob's state, and their XML. Pure; called by every module of handlers.

Headers that every answer has (request id, version, date) are added by ``app.py``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final
from urllib.parse import quote

from aiohttp import web

from azure_sink.blob_service.error_table import xml_text
from azure_sink.blob_store.values import BlobRecord, ContainerRecord
from azure_sink.core import lease as leases
from replication.blob_client.api import BlobType, LeaseState

XML_DECLARATION: Final = '<?xml version="1.0" encoding="utf-8"?>'


def http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def quoted(etag: str) -> str:
    return f'"{etag}"'


def md5_text(md5: bytes) -> str:
    return base64.b64encode(md5).decode("ascii")


def answer(status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status, headers=headers)


def xml_answer(body: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=200, body=(XML_DECLARATION + body).encode(), headers=headers, content_type="application/xml"
    )


def state_headers(record: BlobRecord | ContainerRecord) -> dict[str, str]:
    """What every write answers."""
    return {"ETag": quoted(record.etag), "Last-Modified": http_date(record.modified_at)}


def sequence_header(record: BlobRecord) -> dict[str, str]:
    if record.blob_type is not BlobType.PAGE:
        return {}
    return {"x-ms-blob-sequence-number": str(record.sequence_number)}


def metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    return {f"x-ms-meta-{name}": value for name, value in metadata.items()}


def lease_words(record: BlobRecord, now: float) -> dict[str, str]:
    """status, state and, while leased, duration."""
    state = leases.state_of(record.lease, now)
    words = {"status": "locked" if leases.is_held(record.lease, now) else "unlocked", "state": state.value}
    if state is LeaseState.LEASED and record.lease is not None:
        words["duration"] = "infinite" if record.lease.duration_s is None else "fixed"
    return words


def blob_headers(record: BlobRecord, now: float) -> dict[str, str]:
    """What Get Blob and Get Blob Properties say of a blob, without length and MD5."""
    headers = {
        **state_headers(record),
        **sequence_header(record),
        **metadata_headers(record.metadata),
        "Accept-Ranges": "bytes",
        "Content-Type": record.headers.content_type,
        "x-ms-blob-type": record.blob_type.value,
        "x-ms-creation-time": http_date(record.created_at),
        "x-ms-server-encrypted": "false",
    }
    if record.snapshot is None:
        headers |= {f"x-ms-lease-{name}": value for name, value in lease_words(record, now).items()}
    for name, value in (
        ("Content-Encoding", record.headers.content_encoding),
        ("Content-Language", record.headers.content_language),
        ("Content-Disposition", record.headers.content_disposition),
        ("Cache-Control", record.headers.cache_control),
    ):
        if value:
            headers[name] = value
    if record.copy is not None:
        headers |= {
            "x-ms-copy-id": record.copy.copy_id,
            "x-ms-copy-source": record.copy.source,
            "x-ms-copy-status": "success",
            "x-ms-copy-progress": f"{record.copy.total_bytes}/{record.copy.total_bytes}",
            "x-ms-copy-completion-time": http_date(record.copy.completed_at),
        }
    return headers


def element(name: str, value: str) -> str:
    return f"<{name}>{xml_text(value)}</{name}>"


def name_element(name: str) -> str:
    """A blob's name; one that XML cannot hold is percent-encoded and marked so."""
    if all(character.isprintable() or character == " " for character in name):
        return element("Name", name)
    return f'<Name Encoded="true">{quote(name)}</Name>'


def metadata_element(metadata: Mapping[str, str]) -> str:
    return "<Metadata>" + "".join(element(name, value) for name, value in metadata.items()) + "</Metadata>"
