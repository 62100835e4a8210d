"""Sessions whose identity changes: requests under way end on their connections, later ones use new ones, and nothing is left open."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from replication.service.https import ListenAddress, peer_certificate_der, start_server
from replication.tls_identity import Role, TlsIdentity, peer_certificate
from replication.tls_session import TlsSession
from tests.harness.tls import LabAuthority


@dataclass
class Peer:
    url: str
    identity: TlsIdentity
    authority: LabAuthority
    session: TlsSession
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def serial(self) -> str:
        return str(self.identity.certificate().serial_number)

    async def serial_seen(self, path: str = "/") -> str:
        async with self.session.request("GET", self.url + path) as response:
            return await response.text()

    async def renew(self) -> None:
        self.authority.issue(Role.AGENT, self.identity.name().identifier, self.identity.directory)
        await self.session.use_tls(self.identity.client_context(Role.SINK))


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    authority = LabAuthority()
    server_identity = authority.issue(Role.SINK, str(uuid.uuid4()), tmp_path / "server")
    identity = authority.issue(Role.AGENT, str(uuid.uuid4()), tmp_path / "client")
    made: list[Peer] = []

    async def tell(request: web.Request) -> web.Response:
        if request.path == "/slow":
            made[0].waiting.set()
            await made[0].go_on.wait()
        return web.Response(text=str(peer_certificate(peer_certificate_der(request) or b"").serial))

    app = web.Application()
    app.router.add_get("/{any:.*}", tell)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), server_identity.server_context(require_client=True))

    def make(tls: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=2))

    session = TlsSession(make, identity.client_context(Role.SINK))
    made.append(Peer(f"https://127.0.0.1:{server.port}", identity, authority, session))
    try:
        yield made[0]
    finally:
        await session.close()
        await server.close()


async def test_requests_after_the_change_show_the_new_certificate(peer: Peer) -> None:
    first = peer.serial
    assert await peer.serial_seen() == first
    await peer.renew()
    assert peer.serial != first
    assert await peer.serial_seen() == peer.serial


async def test_a_request_under_way_ends_on_its_connection_which_is_closed_then(peer: Peer) -> None:
    first = peer.serial
    before = peer.session._current.session
    slow = asyncio.create_task(peer.serial_seen("/slow"))
    await peer.waiting.wait()
    await peer.renew()
    assert not before.closed
    assert await peer.serial_seen() == peer.serial
    peer.go_on.set()
    assert await slow == first
    assert before.closed


async def test_idle_connections_of_before_are_closed_at_once(peer: Peer) -> None:
    await peer.serial_seen()
    before = peer.session._current.session
    await peer.renew()
    assert before.closed


async def test_after_the_end_nothing_is_opened_anew(peer: Peer) -> None:
    await peer.session.close()
    current = peer.session._current
    await peer.renew()
    assert peer.session._current is current
