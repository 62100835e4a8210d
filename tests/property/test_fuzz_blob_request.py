"""Fuzzing of the Blob service's request parser, authentication and block lists, and of the client's reader of answers."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from azure_sink.blob_service.authentication import authenticate
from azure_sink.blob_service.block_blob import _parse_block_list
from azure_sink.blob_service.request_parser import BlobRequest, parse
from azure_sink.blob_service.router import route
from replication.blob_client import answers
from replication.shared_key import authorization
from tests.harness.mutations import MIB, MODULE_BYTES, bounded_memory, budget, fuzzed, mutations_of

ACCOUNT: Final = "labaccount"
KEY: Final = b"k" * 32
NOW: Final = 1_700_000_000.0
UUID: Final = "aaaaaaaa-0000-4000-8000-000000000001"
DATE: Final = "Tue, 14 Nov 2023 22:13:20 GMT"
SNAPSHOT: Final = "2023-11-14T22:13:20.0000000Z"

TARGETS: Final = [
    "/labaccount",
    "/labaccount?comp=list&prefix=a&maxresults=5&include=metadata",
    "/labaccount/disks?restype=container&comp=list&delimiter=%2F&marker=x",
    f"/labaccount/disks/a/b%20c?snapshot={SNAPSHOT}",
    "/labaccount/disks/blob?comp=block&blockid=QUFB",
    f"/labaccount/disks/blob?comp=pagelist&prevsnapshot={SNAPSHOT}",
]
HEADERS: Final = {
    "x-ms-version": "2021-12-02",
    "x-ms-date": DATE,
    "x-ms-range": "bytes=0-511",
    "x-ms-lease-id": UUID,
    "x-ms-blob-sequence-number": "7",
    "x-ms-if-sequence-number-le": "7",
    "x-ms-blob-type": "PageBlob",
    "x-ms-meta-name": "value",
    "x-ms-copy-source": f"https://127.0.0.1/labaccount/disks/blob?snapshot={SNAPSHOT}",
    "x-ms-delete-snapshots": "include",
    "x-ms-blob-content-md5": base64.b64encode(bytes(16)).decode(),
    "Content-MD5": base64.b64encode(bytes(16)).decode(),
    "Content-Length": "512",
    "If-Match": '"0x1"',
    "If-Modified-Since": DATE,
    "If-Unmodified-Since": DATE,
}
HOSTILE_TEXT: Final = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            "\udcff",
            "%ff",
            "%00",
            "%",
            "9" * 19,
            str(2**63 - 1),
            "-1",
            "\u0665",
            "https://[::1",
            "https://[/labaccount/disks/blob",
            f"bytes={2**63 - 1}-{10**19 - 1}",
            "Tue, 14 Nov 99999 22:13:20 GMT",
            "Tue, 14 Nov 2023 22:13:20 +99999999999999",
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "01 Jan 1970",
            "x" * 5000,
        ]
    ),
)
READERS: Final[list[Callable[[BlobRequest], object]]] = [
    lambda request: request.address,
    lambda request: request.live_address,
    lambda request: request.guard,
    lambda request: request.conditions("x-ms-source-"),
    lambda request: request.sequence_conditions(),
    lambda request: request.metadata(),
    lambda request: request.content_headers(standard_too=True),
    lambda request: request.md5("Content-MD5"),
    lambda request: request.number("x-ms-blob-sequence-number"),
    lambda request: request.required_number("x-ms-blob-content-length"),
    lambda request: request.body_length(2**22),
    lambda request: request.byte_range(),
    lambda request: request.snapshot("prevsnapshot"),
    lambda request: request.max_results(),
    lambda request: request.includes(("metadata",)),
    lambda request: request.delete_snapshots(),
    lambda request: request.copy_source(),
    route,
]


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded() -> Iterator[None]:
    with bounded_memory(MODULE_BYTES):
        yield


@st.composite
def texts_like(draw: st.DrawFn, valid: str) -> str:
    if draw(st.booleans()):
        return draw(HOSTILE_TEXT)
    changed = draw(mutations_of(st.just(valid.encode())))
    return changed.decode(errors="surrogateescape")


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, CIMultiDict[str]]:
    target = draw(st.sampled_from(TARGETS))
    if draw(st.booleans()):
        target = draw(texts_like(target))
    headers = CIMultiDict(HEADERS)
    for name in draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=6, unique=True)):
        if draw(st.booleans()):
            headers[name] = draw(texts_like(HEADERS[name]))
        else:
            del headers[name]
    if draw(st.booleans()):
        headers["x-ms-meta-" + draw(st.text(max_size=5))] = draw(HOSTILE_TEXT)
    return draw(st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST", "\u0130"])), target, headers


def check(method: str, target: str, headers: CIMultiDict[str]) -> None:
    request = fuzzed(lambda: parse(method, target, "127.0.0.1:10000", headers, ACCOUNT))
    if request is None:
        return
    for read in READERS:
        found = fuzzed(lambda read=read: read(request))  # type: ignore[misc]  # bound now
        assert "\udcff" not in repr(found), "what cannot be stored is refused"
    fuzzed(
        lambda: authenticate(account=ACCOUNT, keys=[KEY], method=method, raw_target=target, headers=headers, now=NOW)
    )


@given(requests())
@budget(300)
def test_any_request_is_parsed_or_refused(request: tuple[str, str, CIMultiDict[str]]) -> None:
    check(*request)


@given(
    requests(), st.one_of(st.text(max_size=60), st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()))
)
@budget(200)
def test_no_credentials_but_the_right_ones_are_accepted(
    request: tuple[str, str, CIMultiDict[str]], credentials: str
) -> None:
    method, target, headers = request
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{credentials}"
    headers["x-ms-date"] = DATE
    if fuzzed(lambda: parse(method, target, "127.0.0.1", headers, ACCOUNT)) is None:
        return
    right = authorization(ACCOUNT, KEY, method, target, headers)
    accepted: list[bool] = []

    def authenticated() -> None:
        authenticate(account=ACCOUNT, keys=[KEY], method=method, raw_target=target, headers=headers, now=NOW)
        accepted.append(True)

    fuzzed(authenticated)
    assert not accepted or headers["Authorization"] == right
    headers["Authorization"] = right
    fuzzed(authenticated)
    assert accepted


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/labaccount/%ff/blob", {}),
        ("/labaccount/disks/%ff", {}),
        ("/labaccount/disks/\udcff", {}),
        ("/labaccount/disks/blob", {"x-ms-blob-content-type": "\udcff"}),
        ("/labaccount/disks/blob", {"If-Match": "\udcff"}),
        ("/labaccount/disks/blob", {"x-ms-copy-source": "https://[::1"}),
        ("/labaccount/disks/blob", {"If-Modified-Since": "Tue, 14 Nov 2023 22:13:20 +99999999999999"}),
        (
            "/labaccount/disks/blob",
            {"x-ms-date": "Fri, 31 Dec 9999 23:59:59 -2359", "Authorization": "SharedKey labaccount:AA=="},
        ),
        ("/labaccount/disks/blob", {"x-ms-range": f"bytes=0-{10**19 - 1}"}),
    ],
)
def test_requests_that_once_were_internal_errors_are_refused(target: str, headers: dict[str, str]) -> None:
    check("PUT", target, CIMultiDict({**HEADERS, **headers}))


# -- documents ------------------------------------------------------------------------------------------------

BLOCK_LIST: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><BlockList><Latest>QUFB</Latest><Committed>QUFC</Committed></BlockList>'
)
LISTING: Final = (
    b"<EnumerationResults><Blobs><Blob><Name>a</Name><Snapshot>s</Snapshot><Properties>"
    b"<Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT</Last-Modified><Etag>0x1</Etag><Content-Length>5</Content-Length>"
    b"<BlobType>BlockBlob</BlobType><LeaseState>available</LeaseState></Properties><Metadata><k>v</k></Metadata>"
    b"</Blob></Blobs><NextMarker /></EnumerationResults>"
)
PAGES: Final = b"<PageList><PageRange><Start>0</Start><End>511</End></PageRange></PageList>"
LAUGHS: Final = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]>"
)


@given(st.one_of(mutations_of(st.sampled_from([BLOCK_LIST, LISTING, PAGES])), st.binary(max_size=100)))
@budget(250)
def test_any_document_is_parsed_or_refused(document: bytes) -> None:
    for read in (_parse_block_list, answers.blob_listing, answers.page_listing):
        fuzzed(lambda read=read: read(document))  # type: ignore[misc]  # bound now


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("root", ["BlockList", "EnumerationResults", "PageList"])
def test_entities_that_grow_are_refused_in_every_encoding(encoding: str, root: str) -> None:
    document = f"{LAUGHS}<{root}><Latest>&j;</Latest></{root}>".encode(encoding)
    for read in (_parse_block_list, answers.blob_listing, answers.page_listing):
        with bounded_memory(16 * MIB):
            assert fuzzed(lambda read=read: read(document)) is None  # type: ignore[misc]  # bound now


@pytest.mark.parametrize("encoding", ["utf-7", "utf-32", "no-such-thing", "cp037", "idna", "zlib"])
def test_odd_encodings_are_refused(encoding: str) -> None:
    document = (
        b'<?xml version="1.0" encoding="' + encoding.encode() + b'"?><BlockList><Latest>QUFB</Latest></BlockList>'
    )
    assert fuzzed(lambda: _parse_block_list(document)) is None


def test_elements_in_elements_are_refused_at_any_depth() -> None:
    document = b"<BlockList>" + b"<Latest>" * 200_000 + b"</Latest>" * 200_000 + b"</BlockList>"
    with bounded_memory(128 * MIB):
        assert fuzzed(lambda: _parse_block_list(document)) is None


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "ETag",
                "Last-Modified",
                "x-ms-blob-type",
                "x-ms-blob-sequence-number",
                "x-ms-lease-state",
                "Content-Range",
            ]
        ),
        st.one_of(HOSTILE_TEXT, st.sampled_from([DATE, "BlockBlob", "available", "bytes 0-1/2", "bytes -/", "7"])),
    )
)
@budget(200)
def test_any_headers_of_an_answer_are_read_or_refused(headers: dict[str, str]) -> None:
    fuzzed(lambda: answers.stamp(headers))
    fuzzed(lambda: answers.properties(headers, length_bytes=5))
    fuzzed(lambda: answers.content_range(headers))
