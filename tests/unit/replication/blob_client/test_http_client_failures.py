"""The HTTPS client against endpoints that misbehave: each failure becomes the class that says what the caller can do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from replication.blob_client.failures import (
    BlobConflict,
    BlobNotFound,
    BlobOverloaded,
    BlobRefused,
    BlobServiceFailed,
    BlobUnsupported,
)
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable, Refused
from replication.service.https import ListenAddress, start_server
from tests.harness.blob_site import ACCOUNT, server_tls, write_server_certificate

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
STATE = {"ETag": '"0x1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}


@contextlib.asynccontextmanager
async def endpoint(
    directory: Path, handler: Handler, *, trusted: bool = True, timeout_s: float = 1.0
) -> AsyncIterator[HttpBlobClient]:
    """A client of a TLS server whose only handler is ``handler``; it gives up when nothing moves for ``timeout_s``."""
    ca_file, certificate, key = write_server_certificate(directory)
    key_file = directory / "account.key"
    key_file.write_text("a2V5IG9mIHRoZSBsYWJvcmF0b3J5")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), server_tls(certificate, key))
    if not trusted:
        ca_file, _, _ = write_server_certificate(directory / "another")
    settings = BlobEndpointSettings(
        f"https://127.0.0.1:{server.port}/{ACCOUNT}", ACCOUNT, key_file, ca_file, timeout_s=timeout_s
    )
    try:
        async with HttpBlobClient(settings) as client:
            yield client
    finally:
        await server.close()


def answers(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Handler:
    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, body=body)

    return handle


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "BlobNotFound", BlobNotFound),
        (409, "LeaseAlreadyPresent", BlobConflict),
        (412, "ConditionNotMet", BlobConflict),
        (403, "AuthenticationFailed", BlobRefused),
        (401, "NoAuthenticationInformation", BlobRefused),
        (501, "NotImplemented", BlobUnsupported),
        (503, "ServerBusy", BlobOverloaded),
        (500, "InternalError", BlobServiceFailed),
        (502, "", BlobServiceFailed),
        (302, "", PeerProtocolError),
        (204, "", PeerProtocolError),
    ],
)
async def test_a_status_becomes_its_class(tmp_path: Path, status: int, code: str, kind: type[BlockferryError]) -> None:
    headers = {"x-ms-error-code": code, "Retry-After": "7"}
    async with endpoint(tmp_path, answers(status, headers)) as client:
        with pytest.raises(kind) as caught:
            await client.put_blob("lab", "blob", b"content")
    assert getattr(caught.value, "storage_code", code) == code
    if kind is BlobOverloaded:
        assert getattr(caught.value, "retry_after_s", None) == 7.0


SLOW_BODY = bytes(32 * 2**20)


async def test_a_body_that_moves_may_take_longer_than_a_standstill(tmp_path: Path) -> None:
    received = 0

    async def slow(request: web.Request) -> web.StreamResponse:
        nonlocal received
        for _ in range(8):
            received += len(await request.content.readexactly(len(SLOW_BODY) // 8))
            await asyncio.sleep(1.0)
        while piece := await request.content.readany():
            received += len(piece)
        return web.Response(status=201, headers={"ETag": '"1"', "Last-Modified": "Mon, 23 Nov 2026 08:00:00 GMT"})

    # Far longer than a pause, since a busy machine lengthens pauses; shorter than all of them together.
    async with endpoint(tmp_path, slow, timeout_s=6.0) as client:
        await client.put_blob("lab", "blob", SLOW_BODY)
    assert received == len(SLOW_BODY)


async def test_a_body_that_stands_still_is_given_up(tmp_path: Path) -> None:
    async def stuck(request: web.Request) -> web.StreamResponse:
        await request.content.readexactly(65536)
        await asyncio.Event().wait()
        raise AssertionError

    async with endpoint(tmp_path, stuck) as client:
        with pytest.raises(PeerUnavailable, match="nothing moved for 1 s"):
            await client.put_blob("lab", "blob", SLOW_BODY)


async def test_an_answer_that_stands_still_is_given_up(tmp_path: Path) -> None:
    async def stuck(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000", "ETag": '"1"'})
        await response.prepare(request)
        await response.write(b"x" * 10)
        await asyncio.Event().wait()
        raise AssertionError

    async with endpoint(tmp_path, stuck) as client:
        with pytest.raises(PeerUnavailable, match="nothing moved for 1 s"):
            await client.get_blob("lab", "blob", max_bytes=1000)


async def test_an_endpoint_that_does_not_answer_is_unavailable_after_the_deadline(tmp_path: Path) -> None:
    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with endpoint(tmp_path, silent) as client:
        with pytest.raises(PeerUnavailable):
            await client.head_blob("lab", "blob")


async def test_an_answer_that_stops_half_way_is_unavailable(tmp_path: Path) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=STATE)
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with endpoint(tmp_path, cut) as client:
        with pytest.raises(PeerUnavailable):
            await client.get_blob("lab", "blob", max_bytes=1000)


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    async with endpoint(tmp_path, answers(200)) as client:
        pass
    async with client:
        with pytest.raises(PeerUnavailable):
            await client.head_blob("lab", "blob")


async def test_an_endpoint_with_a_foreign_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    async with endpoint(tmp_path, answers(200), trusted=False) as client:
        with pytest.raises(Refused) as caught:
            await client.head_blob("lab", "blob")
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({**STATE, "Content-Range": "bytes 0-9/10"}, bytes(11)),
        ({**STATE, "Content-Range": "bytes 5-9/10"}, bytes(5)),
        ({**STATE, "Content-Range": "bytes 0-9/10"}, bytes(9)),
        ({**STATE, "Content-Range": "lines 0-9/10"}, bytes(10)),
        (STATE, bytes(10)),
        ({**STATE, "Content-Range": "bytes 0-9/10", "Last-Modified": "yesterday"}, bytes(10)),
        ({**STATE, "Content-Range": "bytes 0-9/10", "x-ms-blob-type": "Odd"}, bytes(10)),
        ({**STATE, "Content-Range": "bytes 0-9/10", "x-ms-lease-state": "odd"}, bytes(10)),
        ({**STATE, "Content-Range": "bytes 0-9/10", "x-ms-blob-sequence-number": "-1"}, bytes(10)),
    ],
)
async def test_an_answer_that_contradicts_itself_breaks_the_protocol(
    tmp_path: Path, headers: dict[str, str], body: bytes
) -> None:
    async with endpoint(tmp_path, answers(206, headers, body)) as client:
        with pytest.raises(PeerProtocolError):
            await client.get_blob_into("lab", "blob", bytearray(10))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<EnumerationResults>",
        b"<Other/>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><EnumerationResults/>',
        b"<EnumerationResults><Blobs><Blob><Name>x</Name></Blob></Blobs></EnumerationResults>",
        b"<EnumerationResults><Blobs/><NextMarker>again</NextMarker></EnumerationResults>",
    ],
)
async def test_a_listing_that_cannot_be_read_breaks_the_protocol(tmp_path: Path, document: bytes) -> None:
    async with endpoint(tmp_path, answers(200, body=document)) as client:
        with pytest.raises(PeerProtocolError):
            _ = [item async for item in client.list_blobs("lab", "")]


async def test_a_page_range_that_ends_before_it_starts_breaks_the_protocol(tmp_path: Path) -> None:
    document = b"<PageList><PageRange><Start>512</Start><End>0</End></PageRange></PageList>"
    async with endpoint(tmp_path, answers(200, body=document)) as client:
        with pytest.raises(PeerProtocolError):
            _ = [found async for found in client.get_page_ranges("lab", "blob")]


async def test_a_copy_that_is_pending_is_waited_for_and_a_failed_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.blob_client.http_client._COPY_POLL_S", 0.0)
    statuses = iter(["pending", "pending", "success", "pending", "failed"])

    async def copying(request: web.Request) -> web.StreamResponse:
        headers = {**STATE, "x-ms-copy-status": next(statuses)}
        return web.Response(status=202 if request.method == "PUT" else 200, headers=headers)

    async with endpoint(tmp_path, copying) as client:
        assert (await client.copy_from_snapshot("lab", "a", "s", "lab", "b")).etag == STATE["ETag"]
        with pytest.raises(BlobServiceFailed):
            await client.copy_from_snapshot("lab", "a", "s", "lab", "b")


async def test_a_cancelled_call_leaves_the_connection_usable(tmp_path: Path) -> None:
    hold = asyncio.Event()

    async def first_waits(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("slow"):
            await hold.wait()
        return web.Response(headers={**STATE, "Content-Length": "3"}, body=b"abc")

    async with endpoint(tmp_path, first_waits) as client:
        slow = asyncio.create_task(client.get_blob("lab", "slow", max_bytes=9))
        found = await client.get_blob("lab", "quick", max_bytes=9)
        assert found is not None
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        found = await client.get_blob("lab", "quick", max_bytes=9)
        assert found is not None
        assert found.content == b"abc"
        hold.set()
