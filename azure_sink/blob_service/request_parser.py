"""The one request parser: a request's address, query and headers as typed, checked values. What cannot be used is refused here.

Called by ``app.py`` (``parse``) and by every handler (the methods of ``BlobRequest``). No I/O and no state. Source: Azure Storage REST,
"Naming and referencing containers, blobs, and metadata", "Specifying conditional headers", "Specifying the range header".
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from azure_sink.blob_store.blobs import Address, Guard
from azure_sink.blob_store.values import ContentHeaders
from azure_sink.core.conditions import Conditions, SequenceConditions
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode
from replication.blob_client.foreign_text import parse_date

OLDEST_VERSION: Final = "2019-02-02"
MAX_METADATA_BYTES: Final = 8 * 1024
MAX_BLOB_NAME_CHARACTERS: Final = 1024
MAX_LIST_RESULTS: Final = 5000
MD5_BYTES: Final = 16
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

_METADATA_PREFIX: Final = "x-ms-meta-"
_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_CONTAINER_NAME: Final = re.compile(r"(?=.{3,63}$)[a-z0-9](?:-?[a-z0-9])*|\$root|\$web|\$logs")
_METADATA_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RANGE: Final = re.compile(r"bytes=(\d{1,19})-(\d{1,19})?")
_BEYOND_ANY_BLOB: Final = 2**62
_NUMBER: Final = re.compile(r"\d{1,19}")
_SNAPSHOT: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{7}Z")
_REFUSED_HEADERS: Final = (
    "x-ms-encryption-key",
    "x-ms-encryption-scope",
    "x-ms-content-crc64",
    "x-ms-structured-body",
    "x-ms-tags",
    "x-ms-if-tags",
    "x-ms-immutability-policy-until-date",
    "x-ms-legal-hold",
    "x-ms-upn",
)


class Resource(enum.Enum):
    SERVICE = "service"
    CONTAINER = "container"
    BLOB = "blob"


@dataclass(frozen=True, slots=True)
class Target:
    """What an address names: account, perhaps a container, perhaps a blob."""

    account: str
    container: str = ""
    blob: str = ""

    @property
    def resource(self) -> Resource:
        return Resource.BLOB if self.blob else Resource.CONTAINER if self.container else Resource.SERVICE


@dataclass(frozen=True, slots=True)
class ByteRange:
    """First and last byte, as the header says; ``last`` None: to the end."""

    first: int
    last: int | None

    def within(self, length: int) -> tuple[int, int]:
        """(start, end) inside a blob of ``length`` bytes.

        :raises StorageFault: InvalidRange, it begins at or after the end.
        """
        if self.first >= length:
            raise StorageFault(StorageCode.INVALID_RANGE)
        return self.first, length if self.last is None else min(self.last + 1, length)


def _fault(code: StorageCode, detail: str) -> StorageFault:
    return StorageFault(code, detail)


def parse_target(raw_path: str, host: str, account: str) -> Target:
    """Read a path as sent: host-style if the host's first label is the account, else path-style.

    :raises StorageFault: InvalidUri, InvalidResourceName; ResourceNotFound for another account.
    """
    segments = raw_path.removeprefix("/").split("/")
    if host.partition(":")[0].partition(".")[0] != account:
        found = unquote(segments.pop(0))
        if found != account:
            raise _fault(StorageCode.RESOURCE_NOT_FOUND, "The account is another.")
    try:
        container = unquote(segments[0], errors="strict") if segments else ""
        blob = unquote("/".join(segments[1:]), errors="strict")
    except UnicodeDecodeError:
        raise _fault(StorageCode.INVALID_URI, "The path is not UTF-8.") from None
    if container and not _CONTAINER_NAME.fullmatch(container):
        raise _fault(
            StorageCode.INVALID_RESOURCE_NAME, "A container's name has 3 to 63 lower-case letters, digits and hyphens."
        )
    if len(blob) > MAX_BLOB_NAME_CHARACTERS or "\0" in blob:
        raise _fault(StorageCode.INVALID_RESOURCE_NAME, "A blob's name has 1 to 1,024 characters.")
    return Target(account, container, blob)


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """One request. ``headers`` looks names up in any case; ``query`` has lower-case names and decoded values."""

    method: str
    target: Target
    query: Mapping[str, str]
    headers: Mapping[str, str]
    version: str
    host: str

    # -- what is addressed ------------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """The blob, with ``snapshot`` from the query."""
        return Address(self.target.container, self.target.blob, self.snapshot("snapshot"))

    @property
    def live_address(self) -> Address:
        """The blob, for operations that change it: a snapshot cannot be named.

        :raises StorageFault: the query names a snapshot.
        """
        if "snapshot" in self.query:
            raise _fault(StorageCode.INVALID_QUERY_PARAMETER_VALUE, "A snapshot cannot be changed.")
        return Address(self.target.container, self.target.blob)

    def snapshot(self, name: str) -> str | None:
        value = self.query.get(name)
        if value is not None and not _SNAPSHOT.fullmatch(value):
            raise _fault(StorageCode.INVALID_QUERY_PARAMETER_VALUE, name)
        return value

    # -- headers ----------------------------------------------------------------------------------------------

    def text(self, name: str) -> str | None:
        return self.headers.get(name)

    def required(self, name: str) -> str:
        value = self.headers.get(name)
        if value is None:
            raise _fault(StorageCode.MISSING_REQUIRED_HEADER, name)
        return value

    def number(self, name: str) -> int | None:
        """A decimal header below 2^63."""
        value = self.headers.get(name)
        if value is None:
            return None
        if not _NUMBER.fullmatch(value) or int(value) >= 2**63:
            raise _fault(StorageCode.INVALID_HEADER_VALUE, name)
        return int(value)

    def required_number(self, name: str) -> int:
        self.required(name)
        value = self.number(name)
        return 0 if value is None else value

    def flag(self, name: str) -> bool:
        return self.headers.get(name, "").lower() == "true"

    def identifier(self, name: str) -> str | None:
        """A UUID, such as a lease id, in its usual form."""
        value = self.headers.get(name)
        if value is None:
            return None
        try:
            return str(uuid.UUID(value))
        except ValueError:
            raise _fault(StorageCode.INVALID_HEADER_VALUE, name) from None

    def md5(self, name: str) -> bytes | None:
        """A digest that will be verified: 16 bytes."""
        digest = self._base64(name)
        if digest is not None and len(digest) != MD5_BYTES:
            raise _fault(StorageCode.INVALID_MD5, name)
        return digest

    def _base64(self, name: str) -> bytes | None:
        value = self.headers.get(name)
        if value is None:
            return None
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise _fault(StorageCode.INVALID_MD5, name) from None

    def body_length(self, most: int) -> int:
        """Content-Length, which every request with a body needs; at most ``most``."""
        value = self.headers.get("Content-Length")
        if value is None:
            raise StorageFault(StorageCode.MISSING_CONTENT_LENGTH_HEADER)
        if not _NUMBER.fullmatch(value):
            raise _fault(StorageCode.INVALID_HEADER_VALUE, "Content-Length")
        if int(value) > most:
            raise _fault(StorageCode.REQUEST_BODY_TOO_LARGE, f"At most {most} bytes.")
        return int(value)

    def byte_range(self) -> ByteRange | None:
        """``x-ms-range``, or else ``Range``."""
        value = self.headers.get("x-ms-range", self.headers.get("Range"))
        if value is None:
            return None
        found = _RANGE.fullmatch(value.strip())
        first, last = (0, 0) if found is None else (int(found[1]), None if found[2] is None else int(found[2]))
        if found is None or max(first, last or 0) >= _BEYOND_ANY_BLOB or (last is not None and last < first):
            raise _fault(StorageCode.INVALID_HEADER_VALUE, "A range is bytes=FIRST-LAST or bytes=FIRST-.")
        return ByteRange(first, last)

    def metadata(self) -> dict[str, str]:
        """``x-ms-meta-*``; names keep their case."""
        found: dict[str, str] = {}
        size = 0
        for header, value in self.headers.items():
            if not header.lower().startswith(_METADATA_PREFIX):
                continue
            name = header[len(_METADATA_PREFIX) :]
            if not name:
                raise StorageFault(StorageCode.EMPTY_METADATA_KEY)
            if not _METADATA_NAME.fullmatch(name) or not value.isprintable():
                raise _fault(StorageCode.INVALID_METADATA, header)
            found[name] = value.strip()
            size += len(name) + len(value.encode(errors="surrogateescape"))
        if size > MAX_METADATA_BYTES:
            raise StorageFault(StorageCode.METADATA_TOO_LARGE)
        return found

    def content_headers(self, *, standard_too: bool, content_type: str = DEFAULT_CONTENT_TYPE) -> ContentHeaders:
        """``x-ms-blob-*`` for the blob's readers; ``standard_too``: else the plain ones of the request (Put Blob; of Put Block List they
        are the list's own). ``content_type``: where none is named; Set Blob Properties clears what it does not name.
        """

        def of(name: str) -> str:
            fallback = self.headers.get(name, "") if standard_too else ""
            return self.headers.get(f"x-ms-blob-{name.lower()}", fallback)

        return ContentHeaders(
            content_type=of("Content-Type") or content_type,
            content_encoding=of("Content-Encoding"),
            content_language=of("Content-Language"),
            content_disposition=self.headers.get("x-ms-blob-content-disposition", ""),
            cache_control=of("Cache-Control"),
            md5=self._base64("x-ms-blob-content-md5"),  # kept as it is given; Put Blob verifies it
        )

    # -- conditions -------------------------------------------------------------------------------------------

    @property
    def lease_id(self) -> str | None:
        return self.identifier("x-ms-lease-id")

    @property
    def guard(self) -> Guard:
        return Guard(self.conditions(), self.lease_id)

    def conditions(self, prefix: str = "") -> Conditions:
        """The conditional headers; with ``x-ms-source-`` those on a copy's source."""
        return Conditions(
            if_match=self._etag(f"{prefix}If-Match"),
            if_none_match=self._etag(f"{prefix}If-None-Match"),
            if_modified_since=self._moment(f"{prefix}If-Modified-Since"),
            if_unmodified_since=self._moment(f"{prefix}If-Unmodified-Since"),
        )

    def _etag(self, name: str) -> str | None:
        value = self.headers.get(name)
        if value is None:
            return None
        if "," in value:
            raise StorageFault(StorageCode.MULTIPLE_CONDITION_HEADERS_NOT_SUPPORTED)
        return value.strip().removeprefix("W/").strip('"')

    def _moment(self, name: str) -> int | None:
        value = self.headers.get(name)
        if value is None:
            return None
        try:
            return int(parse_date(value).timestamp())
        except ValueError:
            raise _fault(StorageCode.INVALID_HEADER_VALUE, name) from None

    def sequence_conditions(self) -> SequenceConditions:
        return SequenceConditions(
            at_most=self.number("x-ms-if-sequence-number-le"),
            less_than=self.number("x-ms-if-sequence-number-lt"),
            equal=self.number("x-ms-if-sequence-number-eq"),
        )

    # -- query ------------------------------------------------------------------------------------------------

    def max_results(self, most: int = MAX_LIST_RESULTS) -> int:
        value = self.query.get("maxresults")
        if value is None:
            return most
        if not _NUMBER.fullmatch(value) or int(value) == 0:
            raise _fault(StorageCode.OUT_OF_RANGE_QUERY_PARAMETER_VALUE, "maxresults")
        return min(int(value), most)

    def includes(self, known: tuple[str, ...]) -> frozenset[str]:
        """The words of ``include``; one that is not ``known`` is refused, since its data would be missing in silence."""
        words = frozenset(word for word in self.query.get("include", "").lower().split(",") if word)
        unknown = words.difference(known)
        if unknown:
            raise _fault(StorageCode.INVALID_QUERY_PARAMETER_VALUE, f"include={','.join(sorted(unknown))}")
        return words

    def delete_snapshots(self) -> Literal["include", "only"] | None:
        match self.headers.get("x-ms-delete-snapshots"):
            case None:
                return None
            case "include":
                return "include"
            case "only":
                return "only"
            case _:
                raise _fault(StorageCode.INVALID_HEADER_VALUE, "x-ms-delete-snapshots")

    def copy_source(self) -> Address:
        """The blob or snapshot that ``x-ms-copy-source`` names, which must be in this account."""
        value = self.required("x-ms-copy-source")
        try:
            parts = urlsplit(value)
            target = parse_target(parts.path, parts.netloc, self.target.account)
        except (StorageFault, ValueError):
            parts, target = urlsplit(""), Target("")
        if parts.scheme not in ("http", "https") or target.resource is not Resource.BLOB:
            raise _fault(StorageCode.CANNOT_VERIFY_COPY_SOURCE, "Only blobs of this account can be copied.")
        snapshot = dict(parse_qsl(parts.query)).get("snapshot")
        if snapshot is not None and not _SNAPSHOT.fullmatch(snapshot):
            raise _fault(StorageCode.INVALID_HEADER_VALUE, "x-ms-copy-source")
        return Address(target.container, target.blob, snapshot)


def _check_text(raw_target: str, headers: Mapping[str, str]) -> None:
    """Bytes that are not UTF-8 can be neither signed nor stored; they arrive as lone surrogates."""
    try:
        raw_target.encode()
    except UnicodeEncodeError:
        raise _fault(StorageCode.INVALID_URI, "The address is not UTF-8.") from None
    for name, value in headers.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _fault(StorageCode.INVALID_HEADER_VALUE, name) from None


def parse(method: str, raw_target: str, host: str, headers: Mapping[str, str], account: str) -> BlobRequest:
    """:raises StorageFault: an address, version or header that this service cannot use."""
    _check_text(raw_target, headers)
    raw_path, _, raw_query = raw_target.partition("?")
    target = parse_target(raw_path, host, account)
    version = headers.get("x-ms-version", OLDEST_VERSION)
    if not _VERSION.fullmatch(version) or version < OLDEST_VERSION:
        raise _fault(StorageCode.INVALID_HEADER_VALUE, f"x-ms-version is {OLDEST_VERSION} or later.")
    for name in _REFUSED_HEADERS:
        if name in headers:
            raise _fault(StorageCode.UNSUPPORTED_HEADER, name)
    query = {name.lower(): value for name, value in parse_qsl(raw_query, keep_blank_values=True)}
    if "versionid" in query:
        raise _fault(StorageCode.UNSUPPORTED_QUERY_PARAMETER, "versionid")
    return BlobRequest(method, target, query, headers, version, host)
