"""The Blob service as a client sees it on the wire: status, error codes, headers, XML. Over real TLS, in this process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest

from azure_sink.blob_service.operation import ServiceLimits
from tests.harness.blob_requests import SignedRequests, b64, is_request_id
from tests.harness.blob_site import ACCOUNT, BlobSite, blob_site
from tests.harness.blob_store_tools import SettableClock

LIMIT = 300_000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[BlobSite]:
    limits = ServiceLimits(max_put_blob_bytes=LIMIT)
    async with blob_site(tmp_path, clock=SettableClock(), limits=limits) as opened:
        await opened.store.create_container("lab")
        yield opened


@pytest.fixture
async def blobs(site: BlobSite) -> AsyncIterator[SignedRequests]:
    async with SignedRequests(site) as requests:
        yield requests


# -- every answer -----------------------------------------------------------------------------------------------------


async def test_every_answer_names_request_version_and_server(blobs: SignedRequests) -> None:
    for path in ("/lab?restype=container", "/absent?restype=container"):
        answer = await blobs.send("GET", path, {"x-ms-client-request-id": "mine", "x-ms-version": "2024-08-04"})
        assert is_request_id(answer.headers["x-ms-request-id"])
        assert answer.headers["x-ms-version"] == "2024-08-04"
        assert answer.headers["x-ms-client-request-id"] == "mine"
        assert "Blockferry" in answer.headers["Server"]
        assert "Date" in answer.headers


async def test_an_error_says_its_code_in_header_and_body(blobs: SignedRequests) -> None:
    answer = await blobs.send("GET", "/lab/absent")
    assert (answer.status, answer.code) == (404, "BlobNotFound")
    assert answer.headers["Content-Type"].startswith("application/xml")
    head = await blobs.send("HEAD", "/lab/absent")
    assert (head.status, head.headers["x-ms-error-code"], head.body) == (404, "BlobNotFound", b"")


@pytest.mark.parametrize("version", ["2019-02-02", "2026-10-06", "2099-01-01"])
async def test_any_version_from_2019_on_is_served(blobs: SignedRequests, version: str) -> None:
    assert (await blobs.send("GET", "/?comp=list", {"x-ms-version": version})).status == 200


@pytest.mark.parametrize("version", ["2018-11-09", "tomorrow", ""])
async def test_older_or_odd_versions_are_refused(blobs: SignedRequests, version: str) -> None:
    assert (await blobs.send("GET", "/?comp=list", {"x-ms-version": version})).code == "InvalidHeaderValue"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/lab?restype=container&comp=acl", 501, "NotImplemented"),
        ("PUT", "/lab/blob?comp=appendblock", 501, "NotImplemented"),
        ("PATCH", "/lab/blob", 405, "UnsupportedHttpVerb"),
        ("PUT", "/UPPER?restype=container", 400, "InvalidResourceName"),
        ("PUT", "/a--b?restype=container", 400, "InvalidResourceName"),
        ("GET", "/lab/%ff", 400, "InvalidUri"),
        ("GET", "/lab/b%00", 400, "InvalidResourceName"),
        ("GET", f"/lab/{'n' * 1025}", 400, "InvalidResourceName"),
        ("GET", "/lab/blob?versionid=1", 400, "UnsupportedQueryParameter"),
        ("GET", "/lab/blob?snapshot=yesterday", 400, "InvalidQueryParameterValue"),
        ("GET", "/lab?restype=container&comp=list&maxresults=0", 400, "OutOfRangeQueryParameterValue"),
        ("GET", "/lab?restype=container&comp=list&marker=zz", 400, "OutOfRangeQueryParameterValue"),
        ("GET", "/lab?restype=container&comp=list&include=everything", 400, "InvalidQueryParameterValue"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    blobs: SignedRequests, method: str, path: str, status: int, code: str
) -> None:
    answer = await blobs.send(method, path)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize("header", ["x-ms-encryption-key", "x-ms-content-crc64", "x-ms-tags"])
async def test_headers_whose_promise_cannot_be_kept_are_refused(blobs: SignedRequests, header: str) -> None:
    answer = await blobs.put_blob("blob", b"x", {header: "AAAA"})
    assert (answer.status, answer.code) == (400, "UnsupportedHeader")


# -- who may call -----------------------------------------------------------------------------------------------------


async def test_only_fresh_requests_signed_with_the_accounts_key_are_served(site: BlobSite) -> None:
    async with SignedRequests(site) as right, SignedRequests(site, key=b"another key of thirty-two bytes!") as wrong:
        unsigned = await right.send("GET", "/?comp=list", signed=False)
        assert (unsigned.status, unsigned.code) == (401, "NoAuthenticationInformation")
        assert "WWW-Authenticate" in unsigned.headers
        forged = await wrong.send("GET", "/?comp=list")
        assert (forged.status, forged.code) == (403, "AuthenticationFailed")
        for seconds in (-16 * 60, 16 * 60):
            stale = await right.send("GET", "/?comp=list", date=_date(seconds))
            assert (stale.status, stale.code) == (403, "AuthenticationFailed")
        assert (await right.send("GET", "/?comp=list", date=_date(14 * 60))).status == 200
        odd = await right.send("GET", "/?comp=list", {"Authorization": "Bearer x"}, signed=False)
        assert (odd.status, odd.code) == (400, "InvalidAuthenticationInfo")


def _date(seconds: int) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


async def test_another_account_is_not_here(site: BlobSite) -> None:
    async with SignedRequests(site, account="anotheraccount") as other:
        assert (await other.send("GET", "/?comp=list")).code == "ResourceNotFound"


async def test_host_style_addresses_name_the_account_in_the_host(site: BlobSite) -> None:
    async with SignedRequests(site, host=f"{ACCOUNT}.blob.example") as hosted, SignedRequests(site) as pathed:
        assert (await hosted.put_blob("dir/blob", b"content")).status == 201
        assert (await pathed.send("GET", "/lab/dir/blob")).body == b"content"
        listing = await hosted.send("GET", "/lab?restype=container&comp=list")
        assert listing.xml.get("ServiceEndpoint") == f"https://{ACCOUNT}.blob.example/"


# -- bodies -----------------------------------------------------------------------------------------------------------


async def test_put_blob_stores_and_answers_the_md5(blobs: SignedRequests) -> None:
    content = b"content" * 10_000
    md5 = b64(hashlib.md5(content).digest())
    for given in ({}, {"Content-MD5": md5}, {"x-ms-blob-content-md5": md5}):
        put = await blobs.put_blob("blob", content, given)
        assert (put.status, put.headers["Content-MD5"]) == (201, md5)
        assert (await blobs.send("GET", "/lab/blob")).headers["Content-MD5"] == md5
        part = await blobs.send("GET", "/lab/blob", {"Range": "bytes=0-6", "x-ms-range-get-content-md5": "true"})
        assert part.headers["Content-MD5"] == b64(hashlib.md5(b"content").digest())
        assert part.headers["x-ms-blob-content-md5"] == md5


@pytest.mark.parametrize("header", ["Content-MD5", "x-ms-blob-content-md5"])
async def test_a_wrong_md5_stores_nothing(blobs: SignedRequests, header: str) -> None:
    wrong = await blobs.put_blob("blob", b"content", {header: b64(bytes(16))})
    assert (wrong.status, wrong.code) == (400, "Md5Mismatch")
    odd = await blobs.put_blob("blob", b"content", {header: "no base64"})
    assert (odd.status, odd.code) == (400, "InvalidMd5")
    assert (await blobs.send("HEAD", "/lab/blob")).status == 404


async def test_the_md5_of_pages_and_blocks_is_checked_and_not_stored(blobs: SignedRequests) -> None:
    await blobs.create_page_blob("disk", 1024)
    pages = {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}
    wrong = await blobs.send("PUT", "/lab/disk?comp=page", {**pages, "Content-MD5": b64(bytes(16))}, b"p" * 512)
    assert wrong.code == "Md5Mismatch"
    right = b64(hashlib.md5(b"p" * 512).digest())
    put = await blobs.send("PUT", "/lab/disk?comp=page", {**pages, "Content-MD5": right}, b"p" * 512)
    assert (put.status, put.headers["Content-MD5"]) == (201, right)
    assert "Content-MD5" not in (await blobs.send("HEAD", "/lab/disk")).headers


async def test_a_body_over_the_limit_is_refused(blobs: SignedRequests) -> None:
    answer = await blobs.put_blob("blob", bytes(LIMIT + 1))
    assert (answer.status, answer.code) == (413, "RequestBodyTooLarge")
    assert (await blobs.put_blob("blob", bytes(LIMIT))).status == 201


async def test_a_put_needs_its_type(blobs: SignedRequests) -> None:
    assert (await blobs.send("PUT", "/lab/blob", {}, b"x")).code == "MissingRequiredHeader"
    assert (await blobs.send("PUT", "/lab/blob", {"x-ms-blob-type": "Odd"}, b"x")).code == "InvalidHeaderValue"
    assert (await blobs.send("PUT", "/lab/blob", {"x-ms-blob-type": "AppendBlob"})).code == "NotImplemented"


async def test_ranges(blobs: SignedRequests) -> None:
    content = bytes(range(256)) * 1000
    await blobs.put_blob("blob", content)
    for header, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=100-", 100, 255_999),
        ("bytes=255990-999999", 255_990, 255_999),
    ):
        answer = await blobs.send("GET", "/lab/blob", {"x-ms-range": header, "Range": "bytes=7-8"})
        assert answer.status == 206
        assert answer.body == content[first : last + 1]
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/256000"
    beyond = await blobs.send("GET", "/lab/blob", {"Range": "bytes=256000-"})
    assert (beyond.status, beyond.code) == (416, "InvalidRange")
    for odd in ("bytes=5-2", "lines=1-2", "bytes=-5"):
        assert (await blobs.send("GET", "/lab/blob", {"Range": odd})).code == "InvalidHeaderValue"


# -- headers, metadata, conditions ------------------------------------------------------------------------------------


async def test_headers_for_readers_are_kept_and_replaced_whole(blobs: SignedRequests) -> None:
    given = {
        "Content-Type": "text/plain",
        "x-ms-blob-content-language": "fr",
        "x-ms-blob-cache-control": "no-store",
        "x-ms-blob-content-disposition": "inline",
    }
    await blobs.put_blob("blob", b"x", given)
    head = (await blobs.send("HEAD", "/lab/blob")).headers
    assert [head[name] for name in ("Content-Type", "Content-Language", "Cache-Control", "Content-Disposition")] == [
        "text/plain",
        "fr",
        "no-store",
        "inline",
    ]
    await blobs.send("PUT", "/lab/blob?comp=properties", {"x-ms-blob-content-type": "a/b"})
    head = (await blobs.send("HEAD", "/lab/blob")).headers
    assert head["Content-Type"] == "a/b"
    assert "Content-Language" not in head
    assert "Content-MD5" not in head


async def test_metadata_has_rules(blobs: SignedRequests) -> None:
    assert (await blobs.put_blob("blob", b"", {"x-ms-meta-Name_1": "value"})).status == 201
    head = await blobs.send("HEAD", "/lab/blob")
    assert head.headers["x-ms-meta-Name_1"] == "value"
    for name, code in (("x-ms-meta-", "EmptyMetadataKey"), ("x-ms-meta-a.b", "InvalidMetadata")):
        assert (await blobs.put_blob("blob", b"", {name: "v"})).code == code
    large = {f"x-ms-meta-k{number}": "v" * 2000 for number in range(5)}
    assert (await blobs.put_blob("blob", b"", large)).code == "MetadataTooLarge"


async def test_conditions_guard_reads_and_writes(blobs: SignedRequests) -> None:
    etag = (await blobs.put_blob("blob", b"x")).headers["ETag"]
    modified = (await blobs.send("HEAD", "/lab/blob")).headers["Last-Modified"]
    for condition, read, write in (
        ({"If-None-Match": etag}, 304, 412),
        ({"If-Match": '"0x1"'}, 412, 412),
        ({"If-Modified-Since": modified}, 304, 412),
        ({"If-Unmodified-Since": "Mon, 01 Jan 2024 00:00:00 GMT"}, 412, 412),
        ({"If-Match": etag, "If-Unmodified-Since": modified}, 200, 200),
    ):
        got = await blobs.send("GET", "/lab/blob", condition)
        assert (got.status, got.headers.get("x-ms-error-code")) == (read, None if read == 200 else "ConditionNotMet")
        assert (await blobs.send("PUT", "/lab/blob?comp=metadata", condition)).status == write
    several = await blobs.send("GET", "/lab/blob", {"If-Match": '"0x1", "0x2"'})
    assert several.code == "MultipleConditionHeadersNotSupported"


# -- containers, listings ---------------------------------------------------------------------------------------------


async def test_containers_are_created_described_listed_and_deleted(blobs: SignedRequests) -> None:
    created = await blobs.send("PUT", "/other?restype=container", {"x-ms-meta-a": "1"})
    assert created.status == 201
    assert (await blobs.send("PUT", "/other?restype=container")).code == "ContainerAlreadyExists"
    got = await blobs.send("GET", "/other?restype=container")
    assert (got.headers["ETag"], got.headers["x-ms-meta-a"]) == (created.headers["ETag"], "1")
    changed = await blobs.send("PUT", "/other?restype=container&comp=metadata", {"x-ms-meta-b": "2"})
    assert changed.headers["ETag"] != created.headers["ETag"]
    listing = (await blobs.send("GET", "/?comp=list&include=metadata&maxresults=1")).xml
    assert [name.text for name in listing.iterfind("Containers/Container/Name")] == ["lab"]
    rest = (await blobs.send("GET", f"/?comp=list&include=metadata&marker={listing.findtext('NextMarker')}")).xml
    assert rest.findtext("Containers/Container/Name") == "other"
    assert rest.findtext("Containers/Container/Metadata/b") == "2"
    assert (await blobs.send("DELETE", "/other?restype=container")).status == 202
    assert (await blobs.send("HEAD", "/other?restype=container")).status == 404


async def test_listings_fold_names_at_a_delimiter_in_order(blobs: SignedRequests) -> None:
    for name in ("a/1", "a/2", "b", "c/1", "\x01odd"):
        await blobs.put_blob(name, b"")
    listing = (await blobs.send("GET", "/lab?restype=container&comp=list&delimiter=/")).xml
    entries = [(entry.tag, entry.findtext("Name")) for entry in listing.find("Blobs") or ()]
    assert entries == [("Blob", "%01odd"), ("BlobPrefix", "a/"), ("Blob", "b"), ("BlobPrefix", "c/")]
    assert listing.find("Blobs/Blob/Name").get("Encoded") == "true"  # type: ignore[union-attr]  # it is there
    mixed = await blobs.send("GET", "/lab?restype=container&comp=list&delimiter=/&include=snapshots")
    assert mixed.code == "InvalidQueryParameterValue"


async def test_service_properties_say_that_everything_is_off(blobs: SignedRequests) -> None:
    answer = await blobs.send("GET", "/?restype=service&comp=properties")
    assert answer.xml.findtext("Logging/Write") == "false"
    assert (await blobs.send("PUT", "/?restype=service&comp=properties")).status == 501
