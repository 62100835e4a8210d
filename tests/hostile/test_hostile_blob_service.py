"""The Blob service among hostile clients, before and after authentication: clear errors, no internal ones, the store unharmed.

Called by pytest.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from azure_sink.blob_service.operation import ServiceLimits
from replication.blob_client.http_client import HttpBlobClient
from replication.service.connections import ConnectionSettings
from tests.harness.blob_requests import SignedRequests, b64
from tests.harness.blob_site import BlobSite, blob_site
from tests.harness.internal_errors import no_internal_error
from tests.harness.mutations import INTEGERS, MIB, bounded_memory

__all__ = ["no_internal_error"]

HOSTILE = [*map(str, INTEGERS), "", "x" * 4000, "\u0661", "bytes=0-9223372036854775807", "bytes=9223372036854775295-9999999999999999999",
           "Tue, 14 Nov 2023 22:13:20 +99999999999999", "https://[::1", "*", ",", '"']  # fmt: skip
HEADERS = [
    "x-ms-range", "Range", "x-ms-lease-id", "x-ms-lease-action", "x-ms-lease-duration", "x-ms-proposed-lease-id", "x-ms-lease-break-period",
    "x-ms-blob-sequence-number", "x-ms-sequence-number-action", "x-ms-if-sequence-number-le", "x-ms-blob-content-length",
    "x-ms-blob-type", "x-ms-meta-a", "x-ms-copy-source", "x-ms-blob-content-md5", "Content-MD5", "If-Match", "If-None-Match",
    "If-Modified-Since", "x-ms-page-write", "x-ms-version", "x-ms-blob-content-type", "x-ms-delete-snapshots", "x-ms-client-request-id",
]  # fmt: skip
OPERATIONS = [
    ("GET", "/lab/page"), ("GET", "/lab/page?comp=pagelist"), ("PUT", "/lab/page?comp=page"), ("PUT", "/lab/page?comp=lease"),
    ("PUT", "/lab/page?comp=properties"), ("PUT", "/lab/new"), ("PUT", "/lab/page?comp=metadata"), ("DELETE", "/lab/none"),
    ("PUT", "/lab/page?comp=snapshot"), ("GET", "/lab?restype=container&comp=list"),
]  # fmt: skip


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[BlobSite]:
    limits = ServiceLimits(stall_timeout_s=0.3)
    async with blob_site(tmp_path, limits=limits, connections=ConnectionSettings(idle_timeout_s=0.5)) as opened:
        await opened.store.create_container("lab")
        yield opened


async def check_site(site: BlobSite) -> None:
    async with SignedRequests(site) as requests:
        assert (await requests.put_blob("after", b"honest")).status == 201
        assert (await requests.send("GET", "/lab/after")).body == b"honest"


async def raw(site: BlobSite, content: bytes) -> bytes:
    """What comes back for bytes that are no request of the client's."""
    tls = ssl.create_default_context(cafile=str(site.ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=tls)
    try:
        writer.write(content)
        async with asyncio.timeout(20):
            return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def test_hostile_headers_on_every_kind_of_operation(site: BlobSite) -> None:
    async with SignedRequests(site) as requests:
        assert (await requests.create_page_blob("page", 65536)).status == 201
        for method, path in OPERATIONS:
            base = {"x-ms-blob-type": "BlockBlob"} if path == "/lab/new" else {}
            base |= {"x-ms-page-write": "clear", "x-ms-range": "bytes=0-511"} if path.endswith("=page") else {}
            base |= {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "15"} if path.endswith("lease") else {}
            for header in HEADERS:
                for value in HOSTILE[:: 1 if header in ("x-ms-range", "Range", "x-ms-blob-content-length") else 4]:
                    answer = await requests.send(method, path, base | {header: value})
                    assert answer.status < 500 or answer.code == "NotImplemented", (
                        method,
                        path,
                        header,
                        value,
                        answer.body,
                    )
                    if answer.status >= 400 and answer.body:
                        assert answer.code
    await check_site(site)


async def test_hostile_queries(site: BlobSite) -> None:
    async with SignedRequests(site) as requests:
        assert (await requests.create_page_blob("page", 65536)).status == 201
        for value in (
            "%ff",
            "%00",
            "9" * 18,
            "9" * 19,
            "9" * 30,
            "-1",
            "%EF%BF%BF",
            "%F0%9F%92%A9",
            "a" * 2000,
            "%0d%0a",
        ):
            for path in (f"/lab?restype=container&comp=list&prefix={value}", f"/lab?restype=container&comp=list&marker={value}",
                         f"/lab?restype=container&comp=list&maxresults={value}", f"/lab/page?comp=pagelist&marker={value}",
                         f"/lab/page?snapshot={value}", f"/lab/{value}", f"/{value}/blob", f"/lab/b?comp=block&blockid={value}",
                         f"/?comp=list&prefix={value}&marker={value}", f"/lab/page?comp={value}"):  # fmt: skip
                answer = await requests.send("PUT" if "comp=block&" in path else "GET", path, body=b"")
                assert answer.status < 500 or answer.code == "NotImplemented", (path, answer.body)
    await check_site(site)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /labaccount/%ff/blob HTTP/1.1\r\nHost: x\r\n",
        b"GET /labaccount/lab/\xff HTTP/1.1\r\nHost: x\r\n",
        b"GET /labaccount/lab/b HTTP/1.1\r\nHost: x\r\nx-ms-date: \xff\r\nAuthorization: SharedKey labaccount:AA==\r\n",
        (
            b"GET /labaccount/lab/b HTTP/1.1\r\nHost: x\r\nAuthorization: SharedKey labaccount:AA==\r\n"
            b"x-ms-date: Fri, 31 Dec 9999 23:59:59 -2359\r\n"
        ),
        (
            b"GET /labaccount/lab/b HTTP/1.1\r\nHost: x\r\nAuthorization: SharedKey labaccount:\xff\r\n"
            b"x-ms-date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
        ),
        b"GET /labaccount/lab/b HTTP/1.1\r\nHost: \xff\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n",
        b"GET https://[::1 HTTP/1.1\r\nHost: x\r\n",
        b"PUT /labaccount/lab/b HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n",
        b"PUT /labaccount/lab/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n",
        b"\0\0\0\0",
    ],
    ids=range(13),
)
async def test_what_nobody_signed_is_refused_and_no_internal_error(site: BlobSite, head: bytes) -> None:
    answer = await raw(site, head + b"Connection: close\r\n\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:200]
    await check_site(site)


async def test_a_body_is_stored_as_it_was_sent_whatever_encoding_it_claims(site: BlobSite) -> None:
    """Content-Encoding belongs to the blob's readers; nothing is unpacked here, so no bomb goes off."""
    bomb = gzip.compress(bytes(64 * MIB))
    async with SignedRequests(site) as requests:
        with bounded_memory(24 * MIB):
            answer = await requests.put_blob("bomb", bomb, {"Content-Encoding": "gzip"})
        assert answer.status == 201, answer.body
        read = await requests.send("HEAD", "/lab/bomb")
        assert (read.headers["Content-Length"], read.headers["Content-Encoding"]) == (str(len(bomb)), "gzip")
    async with HttpBlobClient(site.endpoint()) as client:
        stored = await client.get_blob("lab", "bomb", max_bytes=MIB)
    assert stored is not None
    assert stored.content == bomb
    await check_site(site)


async def test_a_wrong_checksum_and_a_wrong_length_store_nothing(site: BlobSite) -> None:
    async with SignedRequests(site) as requests:
        assert (await requests.put_blob("b", b"abc", {"Content-MD5": b64(bytes(16))})).code == "Md5Mismatch"
        assert (await requests.send("GET", "/lab/b")).status == 404
    await check_site(site)


async def test_heads_that_dawdle_and_bodies_that_stand_still_end(site: BlobSite) -> None:
    slow_head = asyncio.create_task(raw(site, b"GET /labaccount/lab/b HTTP/1.1\r\nX-Slow: "))
    silent = asyncio.create_task(raw(site, b""))
    unsigned_body = asyncio.create_task(
        raw(site, b"PUT /labaccount/lab/b HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    )
    await check_site(site)
    assert await slow_head == b""
    assert await silent == b""
    assert b" 401 " in (await unsigned_body)[:20], "refused before its body"
    await check_site(site)
