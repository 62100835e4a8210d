"""The Blob service takes a replaced certificate without a restart; what is open goes on; what does not belong together changes nothing."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from azure_sink.certificate_files import CHECK, CertificateFiles, server_tls
from replication.service.health import HealthBoard, HealthState
from replication.service.https import ListenAddress, start_server
from replication.tls_identity import Role, TlsIdentity
from tests.harness.tls import LabAuthority

SINK = "6f0c3b4e-5a67-4c8a-9d5e-0d4f5a6b7c8d"


async def whose_connection(request: web.Request) -> web.Response:
    assert request.transport is not None
    return web.Response(text=str(request.transport.get_extra_info("peername")[1]))


async def test_new_connections_use_the_replaced_certificate_and_open_ones_go_on(tmp_path: Path) -> None:
    authority, board = LabAuthority(), HealthBoard()
    identity = authority.issue(Role.SINK, SINK, tmp_path)
    app = web.Application()
    app.router.add_get("/", whose_connection)
    tls = server_tls(identity.certificate_path, identity.key_path)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), tls)
    files = CertificateFiles(identity.certificate_path, identity.key_path, board, server.use_tls)
    client = ssl.create_default_context(cadata=authority.certificate_pem.decode())

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", server.port))

    async def connection(session: aiohttp.ClientSession) -> str:
        async with session.get(f"https://127.0.0.1:{server.port}/") as response:
            return await response.text()

    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client)) as session:
            before, port = await shown(), await connection(session)
            assert before == identity.certificate_path.read_text()
            authority.issue(Role.SINK, SINK, tmp_path)
            files.look()
            assert await connection(session) == port, "it is the same connection"
            assert await shown() == identity.certificate_path.read_text() != before
        assert [(check.name, check.state) for check in board.checks] == [(CHECK, HealthState.OK)]
    finally:
        await server.close()


def test_files_that_do_not_belong_together_change_nothing_until_they_do(tmp_path: Path) -> None:
    authority, board = LabAuthority(), HealthBoard()
    identity = authority.issue(Role.SINK, SINK, tmp_path / "sink")
    used: list[ssl.SSLContext] = []
    files = CertificateFiles(identity.certificate_path, identity.key_path, board, used.append)
    other = authority.issue(Role.SINK, SINK, tmp_path / "other")
    identity.certificate_path.write_bytes(other.certificate_path.read_bytes())
    files.look()
    assert used == []
    assert "the one before is used on" in board.checks[0].reason
    identity.key_path.write_bytes(other.key_path.read_bytes())
    files.look()
    assert len(used) == 1
    assert board.worst is HealthState.OK


@pytest.mark.parametrize(("days", "state"), [(0.0, HealthState.OK), (6.0, HealthState.DEGRADED)])
def test_a_certificate_that_ends_soon_is_told(tmp_path: Path, days: float, state: HealthState) -> None:
    identity: TlsIdentity = LabAuthority().issue(Role.SINK, SINK, tmp_path)  # seven days left
    board = HealthBoard()
    now_ns = time.time_ns() + int(days * 86400e9)
    CertificateFiles(identity.certificate_path, identity.key_path, board, lambda _tls: None, lambda: now_ns).look()
    assert board.worst is state
