"""Clients that stall or go away: their connection ends, their bytes are given back, others are served on."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest

from azure_sink.blob_service.operation import ServiceLimits
from replication.shared_key import authorization
from tests.harness.blob_requests import VERSION, SignedRequests
from tests.harness.blob_site import ACCOUNT, KEY, BlobSite, blob_site
from tests.harness.blob_store_tools import unreferenced_blocks

LENGTH = 2_000_000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[BlobSite]:
    async with blob_site(tmp_path, limits=ServiceLimits(stall_timeout_s=0.2)) as opened:
        await opened.store.create_container("lab")
        yield opened


async def begin_put(site: BlobSite, sent: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the head and ``sent`` bytes of a body of ``LENGTH``."""
    context = ssl.create_default_context(cafile=str(site.ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=context)
    target = f"/{ACCOUNT}/lab/blob"
    headers = {
        "x-ms-version": VERSION,
        "x-ms-date": formatdate(usegmt=True),
        "x-ms-blob-type": "BlockBlob",
        "Content-Length": str(LENGTH),
    }
    headers["Authorization"] = authorization(ACCOUNT, KEY, "PUT", target, headers)
    head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    writer.write(head.encode() + b"\r\n" + b"x" * sent)
    await writer.drain()
    return reader, writer


async def no_trace(site: BlobSite, directory: Path) -> None:
    async with SignedRequests(site) as requests:
        assert (await requests.send("HEAD", "/lab/blob")).status == 404
        assert (await requests.put_blob("after", b"x")).status == 201
    assert await asyncio.to_thread(site.store.wait_until_quiet, 30.0)
    assert unreferenced_blocks(directory / "state") == set()


async def test_a_body_that_stalls_is_given_up(site: BlobSite, tmp_path: Path) -> None:
    reader, writer = await begin_put(site, 1_000_000)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"OperationTimedOut" in answer
    writer.close()
    await no_trace(site, tmp_path)


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_client_that_goes_away_leaves_nothing_and_is_no_error_of_the_service(
    site: BlobSite, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_reset: bool
) -> None:
    _reader, writer = await begin_put(site, 1_500_000)
    if is_reset:  # as by a process that was killed with answers unread
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    while "cut" not in _statuses(site):
        await asyncio.sleep(0.01)
    await no_trace(site, tmp_path)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_reader_that_takes_nothing_is_cut(site: BlobSite) -> None:
    async with SignedRequests(site) as requests:
        assert (await requests.put_blob("large", bytes(64 * 2**20))).status == 201
    context = ssl.create_default_context(cafile=str(site.ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=context, limit=1024)
    target = f"/{ACCOUNT}/lab/large"
    headers = {"x-ms-version": VERSION, "x-ms-date": formatdate(usegmt=True)}
    headers["Authorization"] = authorization(ACCOUNT, KEY, "GET", target, headers)
    head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    writer.write(head.encode() + b"\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    # Nothing is read until the service has given up; what then comes ends before the blob does.
    while "cut" not in _statuses(site):
        await asyncio.sleep(0.05)
    received = 0
    try:
        while piece := await reader.read(2**20):
            received += len(piece)
    except (ConnectionError, ssl.SSLError):
        pass
    assert received < 64 * 2**20
    writer.transport.abort()


def _statuses(site: BlobSite) -> set[str]:
    return {
        sample.labels["status"]
        for metric in site.registry.collect()
        for sample in metric.samples
        if sample.name == "blockferry_blob_requests_total"
    }
