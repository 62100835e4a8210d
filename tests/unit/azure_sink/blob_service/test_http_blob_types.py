"""The Blob service on the wire: block lists, pages, page ranges, leases, copies, deletion."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.harness.blob_requests import SignedRequests, b64
from tests.harness.blob_site import ACCOUNT, BlobSite, blob_site
from tests.harness.blob_store_tools import SettableClock

LEASE = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
PAGE_BYTES = 512


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[BlobSite]:
    async with blob_site(tmp_path, clock=SettableClock()) as opened:
        await opened.store.create_container("lab")
        yield opened


@pytest.fixture
async def blobs(site: BlobSite) -> AsyncIterator[SignedRequests]:
    async with SignedRequests(site) as requests:
        yield requests


def pages(first: int, last: int, write: str = "update") -> dict[str, str]:
    return {"x-ms-page-write": write, "x-ms-range": f"bytes={first * PAGE_BYTES}-{(last + 1) * PAGE_BYTES - 1}"}


# -- block blobs ------------------------------------------------------------------------------------------------------


async def test_blocks_are_put_listed_and_committed(blobs: SignedRequests) -> None:
    first, second = b64(b"block-1"), b64(b"block-2")
    assert (await blobs.put_block("blob", first, b"one")).status == 201
    assert (await blobs.put_block("blob", second, b"two")).status == 201
    lists = (await blobs.send("GET", "/lab/blob?comp=blocklist&blocklisttype=all")).xml
    assert [name.text for name in lists.iterfind("UncommittedBlocks/Block/Name")] == [first, second]
    assert lists.find("CommittedBlocks") is not None
    body = f"<BlockList><Latest>{second}</Latest><Uncommitted>{first}</Uncommitted></BlockList>".encode()
    headers = {"x-ms-blob-content-type": "text/plain", "x-ms-meta-k": "v"}
    assert (await blobs.send("PUT", "/lab/blob?comp=blocklist", headers, body)).status == 201
    got = await blobs.send("GET", "/lab/blob")
    assert (got.body, got.headers["Content-Type"], got.headers["x-ms-meta-k"]) == (b"twoone", "text/plain", "v")
    lists_after = await blobs.send("GET", "/lab/blob?comp=blocklist")
    assert [size.text for size in lists_after.xml.iterfind("CommittedBlocks/Block/Size")] == ["3", "3"]
    assert lists_after.headers["x-ms-blob-content-length"] == "6"


async def test_what_no_content_type_is_named_for_is_an_octet_stream(blobs: SignedRequests) -> None:
    await blobs.put_block("list", b64(b"1"), b"one")
    body = f"<BlockList><Latest>{b64(b'1')}</Latest></BlockList>".encode()
    assert (await blobs.send("PUT", "/lab/list?comp=blocklist", {"Content-Type": "text/xml"}, body)).status == 201
    assert (await blobs.send("PUT", "/lab/blob", {"x-ms-blob-type": "BlockBlob"}, b"one")).status == 201
    await blobs.create_page_blob("disk", PAGE_BYTES)
    for name in ("list", "blob", "disk"):
        found = await blobs.send("HEAD", f"/lab/{name}")
        assert found.headers["Content-Type"] == "application/octet-stream", f"{name}: a list's own type is no blob's"
    assert (await blobs.send("PUT", "/lab/list?comp=properties", {"x-ms-blob-content-type": "a/b"})).status == 200
    assert (await blobs.send("HEAD", "/lab/list")).headers["Content-Type"] == "a/b"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<BlockList><Latest>AAAA</Latest></BlockList>", "InvalidBlockList"),
        (b"<BlockList><Latest>not base64!</Latest></BlockList>", "InvalidBlockId"),
        (b"<BlockList><Odd>AAAA</Odd></BlockList>", "InvalidXmlNodeValue"),
        (b"<BlockList><Latest>", "InvalidXmlDocument"),
        (b"<Other/>", "InvalidXmlDocument"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]><BlockList>&a;</BlockList>', "InvalidXmlDocument"),
    ],
)
async def test_block_lists_that_cannot_be_used_are_refused(blobs: SignedRequests, body: bytes, code: str) -> None:
    answer = await blobs.send("PUT", "/lab/blob?comp=blocklist", {}, body)
    assert (answer.status, answer.code) == (400, code)


async def test_block_ids_have_rules(blobs: SignedRequests) -> None:
    assert (await blobs.put_block("blob", "???", b"x")).code == "InvalidBlockId"
    assert (await blobs.put_block("blob", b64(b"x" * 65), b"x")).code == "InvalidBlockId"
    assert (await blobs.send("PUT", "/lab/blob?comp=block", {}, b"x")).code == "MissingRequiredQueryParameter"
    assert (await blobs.put_block("blob", b64(b"1"), b"")).code == "InvalidHeaderValue"


# -- page blobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "length", "status", "code"),
    [
        (pages(0, 0), 512, 201, None),
        (pages(0, 1), 512, 400, "InvalidHeaderValue"),
        ({**pages(0, 0), "x-ms-range": "bytes=0-510"}, 511, 416, "InvalidPageRange"),
        ({**pages(0, 0), "x-ms-range": "bytes=100-611"}, 512, 416, "InvalidPageRange"),
        ({"x-ms-page-write": "update"}, 512, 400, "MissingRequiredHeader"),
        ({**pages(0, 0), "x-ms-page-write": "scribble"}, 512, 400, "InvalidHeaderValue"),
        (pages(8, 8), 512, 416, "InvalidPageRange"),
        (pages(0, 0, "clear"), 512, 413, "RequestBodyTooLarge"),
        (pages(0, 7, "clear"), 0, 201, None),
        (pages(0, 8192), 8193 * 512, 413, "RequestBodyTooLarge"),
        ({**pages(0, 0), "x-ms-if-sequence-number-lt": "5"}, 512, 412, "SequenceNumberConditionNotMet"),
        ({**pages(0, 0), "x-ms-if-sequence-number-le": "5"}, 512, 201, None),
    ],
)
async def test_put_page(
    blobs: SignedRequests, headers: dict[str, str], length: int, status: int, code: str | None
) -> None:
    await blobs.create_page_blob("disk", 8 * PAGE_BYTES, {"x-ms-blob-sequence-number": "5"})
    answer = await blobs.send("PUT", "/lab/disk?comp=page", headers, b"p" * length)
    assert (answer.status, answer.code) == (status, code)
    if status == 201:
        assert answer.headers["x-ms-blob-sequence-number"] == "5"


async def test_a_page_blob_is_created_with_a_size_of_whole_pages(blobs: SignedRequests) -> None:
    assert (await blobs.create_page_blob("disk", 100)).code == "InvalidHeaderValue"
    assert (await blobs.create_page_blob("disk", 2**43 + 512)).code == "InvalidHeaderValue"
    assert (await blobs.send("PUT", "/lab/disk", {"x-ms-blob-type": "PageBlob"})).code == "MissingRequiredHeader"


async def test_page_ranges_come_in_pages_and_are_compared_with_a_snapshot(blobs: SignedRequests) -> None:
    await blobs.create_page_blob("disk", 64 * PAGE_BYTES)
    for page in (0, 2, 4, 6):
        await blobs.send("PUT", "/lab/disk?comp=page", pages(page, page), b"p" * PAGE_BYTES)
    taken = (await blobs.send("PUT", "/lab/disk?comp=snapshot")).headers["x-ms-snapshot"]
    await blobs.send("PUT", "/lab/disk?comp=page", pages(2, 2, "clear"))
    await blobs.send("PUT", "/lab/disk?comp=page", pages(9, 9), b"n" * PAGE_BYTES)

    found: list[tuple[str, int]] = []
    marker, requests = "", 0
    while True:
        answer = await blobs.send("GET", f"/lab/disk?comp=pagelist&maxresults=2&marker={marker}")
        found += _ranges(answer.xml)
        requests += 1
        marker = answer.xml.findtext("NextMarker") or ""
        if not marker:
            break
    assert found == [("PageRange", 0), ("PageRange", 4), ("PageRange", 6), ("PageRange", 9)]
    assert requests > 1
    assert answer.headers["x-ms-blob-content-length"] == str(64 * PAGE_BYTES)
    changed = await blobs.send("GET", f"/lab/disk?comp=pagelist&prevsnapshot={taken}")
    assert _ranges(changed.xml) == [("ClearRange", 2), ("PageRange", 9)]
    part = await blobs.send("GET", "/lab/disk?comp=pagelist", {"Range": f"bytes={3 * PAGE_BYTES}-{5 * PAGE_BYTES - 1}"})
    assert _ranges(part.xml) == [("PageRange", 4)]
    old = await blobs.send("GET", "/lab/disk?comp=pagelist&maxresults=1", {"x-ms-version": "2019-12-12"})
    assert old.code == "OutOfRangeInput"
    absent = await blobs.send("GET", "/lab/disk?comp=pagelist&prevsnapshot=2020-01-01T00:00:00.0000000Z")
    assert (absent.status, absent.code) == (409, "PreviousSnapshotNotFound")


def _ranges(document: ET.Element) -> list[tuple[str, int]]:
    return [
        (element.tag, int(element.findtext("Start") or -1) // PAGE_BYTES)
        for element in document
        if element.tag.endswith("Range")
    ]


async def test_size_and_sequence_number_are_set_one_by_one(blobs: SignedRequests) -> None:
    await blobs.create_page_blob("disk", PAGE_BYTES)
    where = "/lab/disk?comp=properties"
    assert (await blobs.send("PUT", where, {"x-ms-blob-content-length": "1024"})).status == 200
    counted = await blobs.send("PUT", where, {"x-ms-sequence-number-action": "increment"})
    assert counted.headers["x-ms-blob-sequence-number"] == "1"
    both = {"x-ms-blob-content-length": "512", "x-ms-sequence-number-action": "increment"}
    assert (await blobs.send("PUT", where, both)).code == "InvalidHeaderValue"
    odd = {"x-ms-sequence-number-action": "double", "x-ms-blob-sequence-number": "1"}
    assert (await blobs.send("PUT", where, odd)).code == "InvalidHeaderValue"
    head = (await blobs.send("HEAD", "/lab/disk")).headers
    assert (head["Content-Length"], head["x-ms-blob-sequence-number"]) == ("1024", "1")


async def test_a_snapshot_cannot_be_changed(blobs: SignedRequests) -> None:
    await blobs.create_page_blob("disk", PAGE_BYTES)
    taken = (await blobs.send("PUT", "/lab/disk?comp=snapshot")).headers["x-ms-snapshot"]
    where = f"/lab/disk?snapshot={taken}"
    assert (await blobs.send("PUT", f"{where}&comp=page", pages(0, 0), b"p" * 512)).code == "InvalidQueryParameterValue"
    assert (await blobs.send("PUT", f"{where}&comp=metadata")).code == "InvalidQueryParameterValue"
    assert (await blobs.send("HEAD", where)).status == 200
    assert "x-ms-lease-state" not in (await blobs.send("HEAD", where)).headers


# -- leases, copies, deletion -----------------------------------------------------------------------------------------


async def test_a_lease_is_shown_changed_and_broken(blobs: SignedRequests) -> None:
    await blobs.put_blob("blob", b"")
    acquire = {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "30", "x-ms-proposed-lease-id": LEASE}
    acquired = await blobs.send("PUT", "/lab/blob?comp=lease", acquire)
    assert (acquired.status, acquired.headers["x-ms-lease-id"]) == (201, LEASE)
    head = (await blobs.send("HEAD", "/lab/blob")).headers
    assert [head[f"x-ms-lease-{word}"] for word in ("status", "state", "duration")] == ["locked", "leased", "fixed"]
    change = {"x-ms-lease-action": "change", "x-ms-lease-id": LEASE, "x-ms-proposed-lease-id": OTHER}
    assert (await blobs.send("PUT", "/lab/blob?comp=lease", change)).headers["x-ms-lease-id"] == OTHER
    assert (await blobs.send("PUT", "/lab/blob?comp=metadata", {"x-ms-lease-id": LEASE})).status == 412
    assert (await blobs.send("PUT", "/lab/blob?comp=metadata", {"x-ms-lease-id": OTHER})).status == 200
    broken = await blobs.send("PUT", "/lab/blob?comp=lease", {"x-ms-lease-action": "break"})
    assert (broken.status, broken.headers["x-ms-lease-time"]) == (202, "30")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ms-lease-action": "borrow"},
        {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "soon"},
        {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "10"},
        {"x-ms-lease-action": "renew", "x-ms-lease-id": "mine"},
        {"x-ms-lease-action": "break", "x-ms-lease-break-period": "61"},
    ],
)
async def test_lease_requests_that_cannot_be_used_are_refused(blobs: SignedRequests, headers: dict[str, str]) -> None:
    await blobs.put_blob("blob", b"")
    answer = await blobs.send("PUT", "/lab/blob?comp=lease", headers)
    assert (answer.status, answer.code) == (400, "InvalidHeaderValue")


async def test_a_copy_says_that_it_has_succeeded(site: BlobSite, blobs: SignedRequests) -> None:
    await blobs.put_blob("source blob", b"content", {"x-ms-meta-k": "v"})
    source = f"{site.url}/lab/source%20blob"
    copied = await blobs.send("PUT", "/lab/copy", {"x-ms-copy-source": source})
    assert (copied.status, copied.headers["x-ms-copy-status"]) == (202, "success")
    got = await blobs.send("GET", "/lab/copy")
    assert (got.body, got.headers["x-ms-meta-k"]) == (b"content", "v")
    assert (got.headers["x-ms-copy-id"], got.headers["x-ms-copy-source"]) == (copied.headers["x-ms-copy-id"], source)
    assert got.headers["x-ms-copy-progress"] == "7/7"
    abort = await blobs.send("PUT", f"/lab/copy?comp=copy&copyid={copied.headers['x-ms-copy-id']}")
    assert (abort.status, abort.code) == (409, "NoPendingCopyOperation")


async def test_what_other_clients_call_from_url_is_not_taken_for_a_copy(site: BlobSite, blobs: SignedRequests) -> None:
    await blobs.put_blob("blob", b"x")
    source = {"x-ms-copy-source": f"{site.url}/lab/blob"}
    answer = await blobs.send("PUT", "/lab/copy", {**source, "x-ms-blob-type": "BlockBlob"})
    assert (answer.status, answer.code) == (501, "NotImplemented")
    await blobs.create_page_blob("disk", PAGE_BYTES)
    for path in ("/lab/blob?comp=block&blockid=AAAA", "/lab/disk?comp=page"):
        answer = await blobs.send("PUT", path, {**source, **pages(0, 0)})
        assert (answer.status, answer.code) == (501, "NotImplemented")


async def test_an_md5_that_is_only_kept_may_be_anything(blobs: SignedRequests) -> None:
    await blobs.create_page_blob("disk", PAGE_BYTES, {"x-ms-blob-content-md5": b64(b"odd")})
    assert (await blobs.send("HEAD", "/lab/disk")).headers["Content-MD5"] == b64(b"odd")
    assert (await blobs.put_blob("blob", b"x", {"x-ms-blob-content-md5": b64(b"odd")})).code == "InvalidMd5"


async def test_only_blobs_of_this_account_are_copied(site: BlobSite, blobs: SignedRequests) -> None:
    for source in ("https://elsewhere.example/lab/blob", f"{site.url}/lab", "lab/blob", f"ftp://x/{ACCOUNT}/lab/blob"):
        answer = await blobs.send("PUT", "/lab/copy", {"x-ms-copy-source": source})
        assert (answer.status, answer.code) == (404, "CannotVerifyCopySource")
    conditional = {"x-ms-copy-source": f"{site.url}/lab/blob", "x-ms-source-if-match": '"0x1"'}
    await blobs.put_blob("blob", b"")
    assert (await blobs.send("PUT", "/lab/copy", conditional)).code == "SourceConditionNotMet"


async def test_deletion_says_what_becomes_of_snapshots(blobs: SignedRequests) -> None:
    await blobs.put_blob("blob", b"x")
    taken = (await blobs.send("PUT", "/lab/blob?comp=snapshot")).headers["x-ms-snapshot"]
    assert (await blobs.send("DELETE", "/lab/blob")).code == "SnapshotsPresent"
    both = await blobs.send("DELETE", f"/lab/blob?snapshot={taken}", {"x-ms-delete-snapshots": "only"})
    assert both.code == "InvalidQueryParameterValue"
    assert (await blobs.send("DELETE", "/lab/blob", {"x-ms-delete-snapshots": "all"})).code == "InvalidHeaderValue"
    assert (await blobs.send("DELETE", "/lab/blob", {"x-ms-delete-snapshots": "only"})).status == 202
    assert (await blobs.send("HEAD", f"/lab/blob?snapshot={taken}")).status == 404
    assert (await blobs.send("DELETE", "/lab/blob")).status == 202
