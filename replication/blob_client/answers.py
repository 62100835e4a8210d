"""What a Blob endpoint answers, read strictly: header values and the XML of listings → values. Pure; no I/O.

Called by ``http_client.py``. Anything malformed becomes ``PeerProtocolError``. Formats: Azure Storage REST, "Get Blob Properties",
"List Blobs", "Get Page Ranges".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from replication.blob_client.api import BlobItem, BlobProperties, BlobStamp, BlobType, LeaseState, PageRange
from replication.blob_client.foreign_text import parse_date, parse_xml
from replication.errors import PeerProtocolError

METADATA_PREFIX: Final = "x-ms-meta-"


def _required(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if value is None:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: header {name} is missing")
    return value


def _moment(text: str) -> datetime:
    try:
        return parse_date(text)
    except ValueError:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: {text[:64]!r} is no date") from None


def integer(text: str) -> int:
    """A decimal number from the peer; at most 19 digits."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: {text[:64]!r} is no number")
    return int(text)


def _blob_type(text: str) -> BlobType:
    try:
        return BlobType(text)
    except ValueError:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: blob type {text[:64]!r}") from None


def _lease_state(text: str) -> LeaseState:
    try:
        return LeaseState(text)
    except ValueError:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: lease state {text[:64]!r}") from None


def stamp(headers: Mapping[str, str]) -> BlobStamp:
    number = headers.get("x-ms-blob-sequence-number")
    return BlobStamp(
        etag=_required(headers, "ETag"),
        last_modified=_moment(_required(headers, "Last-Modified")),
        sequence_number=None if number is None else integer(number),
    )


def properties(headers: Mapping[str, str], *, length_bytes: int, transferred_bytes: int = 0) -> BlobProperties:
    number = headers.get("x-ms-blob-sequence-number")
    return BlobProperties(
        etag=_required(headers, "ETag"),
        last_modified=_moment(_required(headers, "Last-Modified")),
        length_bytes=length_bytes,
        blob_type=_blob_type(_required(headers, "x-ms-blob-type")),
        metadata={
            name[len(METADATA_PREFIX) :].lower(): value
            for name, value in headers.items()
            if name.lower().startswith(METADATA_PREFIX)
        },
        sequence_number=None if number is None else integer(number),
        lease_state=_lease_state(headers.get("x-ms-lease-state", "available")),
        transferred_bytes=transferred_bytes,
    )


def content_range(headers: Mapping[str, str]) -> tuple[int, int]:
    """(first byte, whole length) of ``Content-Range: bytes a-b/c``."""
    text = _required(headers, "Content-Range")
    unit, _, rest = text.partition(" ")
    span, slash, whole = rest.partition("/")
    first, dash, _last = span.partition("-")
    if unit != "bytes" or not slash or not dash:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: Content-Range {text[:64]!r}")
    return integer(first), integer(whole)


def _parse(document: bytes, root_tag: str) -> ET.Element:
    try:
        root = parse_xml(document)
    except ValueError as error:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: {error}") from error
    if root.tag != root_tag:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: {root.tag[:64]!r} instead of {root_tag}")
    return root


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise PeerProtocolError(f"cannot use the blob endpoint's answer: element {path} is missing")
    return text


@dataclass(frozen=True, slots=True)
class BlobListing:
    items: list[BlobItem]
    next_marker: str


def blob_listing(document: bytes) -> BlobListing:
    """Parse the answer of List Blobs."""
    root = _parse(document, "EnumerationResults")
    items = [_blob_item(blob) for blob in root.iterfind("Blobs/Blob")]
    return BlobListing(items, root.findtext("NextMarker") or "")


def _blob_item(blob: ET.Element) -> BlobItem:
    name_element = blob.find("Name")
    if name_element is None:
        raise PeerProtocolError("cannot use the blob endpoint's answer: element Name is missing")
    name = name_element.text or ""
    if name_element.get("Encoded") == "true":
        name = unquote(name)
    number = blob.findtext("Properties/x-ms-blob-sequence-number")
    etag = _text(blob, "Properties/Etag")
    return BlobItem(
        name=name,
        snapshot=blob.findtext("Snapshot"),
        properties=BlobProperties(
            etag=etag if etag.startswith('"') else f'"{etag}"',
            last_modified=_moment(_text(blob, "Properties/Last-Modified")),
            length_bytes=integer(_text(blob, "Properties/Content-Length")),
            blob_type=_blob_type(_text(blob, "Properties/BlobType")),
            metadata={entry.tag.lower(): entry.text or "" for entry in blob.iterfind("Metadata/*")},
            sequence_number=None if number is None else integer(number),
            lease_state=_lease_state(blob.findtext("Properties/LeaseState") or "available"),
        ),
    )


@dataclass(frozen=True, slots=True)
class PageListing:
    ranges: list[PageRange]
    next_marker: str


def page_listing(document: bytes) -> PageListing:
    """Parse the answer of Get Page Ranges; cleared ranges of a comparison are left out."""
    root = _parse(document, "PageList")
    ranges = []
    for element in root.iterfind("PageRange"):
        start, end = integer(_text(element, "Start")), integer(_text(element, "End"))
        if end < start:
            raise PeerProtocolError("cannot use the blob endpoint's answer: a page range ends before it starts")
        ranges.append(PageRange(start, end + 1 - start))
    return PageListing(ranges, root.findtext("NextMarker") or "")
