"""The configuration server as a process server meets it: over mutual TLS, each call once, every failure an error of the tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from aiohttp import web

from mobility_agent.config_server_client import ConfigServerClient as AgentClient
from process_server.control.config_server_client import ConfigServerClient
from replication.config_server_urls import check_standby_urls
from replication.control_plane import DataKeyGrant
from replication.documents import MAX_DOCUMENT_BYTES
from replication.errors import (
    BlockferryError,
    NotFound,
    PeerProtocolError,
    PeerUnavailable,
    Refused,
    Retryable,
    SettingsError,
)
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.service.https import ListenAddress, start_server
from replication.service.problem import problem_response
from replication.tls_identity import Role, TlsIdentity
from tests.harness.epochs import new_uuid
from tests.harness.tls import LabAuthority

RANDOM = Random(95)
KEY = GenerationKey(DiskId(new_uuid(RANDOM)), GenerationId(3))
GRANT = DataKeyGrant(
    disk=KEY.disk, generation=KEY.generation, machine=new_uuid(RANDOM), size_bytes=4096, data_key="ab" * 32
)


@dataclass
class Peer:
    """Answers whatever it is told to."""

    url: str
    identity: TlsIdentity
    body: bytes = b""
    error: BlockferryError | None = None
    status: int = 200
    silent: bool = False
    calls: int = 0

    async def answer(self, _request: web.Request) -> web.Response:
        self.calls += 1
        if self.silent:
            await asyncio.sleep(3600)
        if self.error is not None:
            return problem_response(self.error)
        return web.Response(status=self.status, body=self.body)

    def client(self, timeout_s: float = 10.0) -> ConfigServerClient:
        return ConfigServerClient(self.url, self.identity.client_context(Role.CONFIG_SERVER), timeout_s)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    authority = LabAuthority()
    server_identity = authority.issue(Role.CONFIG_SERVER, new_uuid(RANDOM), tmp_path / "server")
    peer = Peer("", authority.issue(Role.PROCESS_SERVER, new_uuid(RANDOM), tmp_path / "client"))
    app = web.Application()
    app.router.add_get("/{path:.*}", peer.answer)
    app.router.add_post("/{path:.*}", peer.answer)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), server_identity.server_context(require_client=True))
    peer.url = f"https://127.0.0.1:{server.port}/"
    yield peer
    await server.close()


async def test_a_grant_is_what_the_configuration_server_says(peer: Peer) -> None:
    peer.body = GRANT.encode()
    async with peer.client() as client:
        assert await client.data_key(KEY) == GRANT
    assert peer.calls == 1


@pytest.mark.parametrize("error", [NotFound("cannot find it"), Refused("cannot: another's"), Retryable("cannot now")])
async def test_its_errors_arrive_as_they_are(peer: Peer, error: BlockferryError) -> None:
    peer.error = error
    async with peer.client() as client:
        with pytest.raises(type(error), match=error.message):
            await client.data_key(KEY)
    assert peer.calls == 1, "nothing is tried again behind the caller's back"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"{}"),
        (200, b"{" * 1000),
        (200, b" " * (MAX_DOCUMENT_BYTES + 1)),
        (302, b""),
        (500, b"<html>"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_an_error_of_the_tree(peer: Peer, status: int, body: bytes) -> None:
    peer.status, peer.body = status, body
    async with peer.client() as client:
        with pytest.raises(BlockferryError, match="cannot"):
            await client.data_key(KEY)


async def test_no_answer_is_noticed_in_time(peer: Peer) -> None:
    peer.silent = True
    async with peer.client(timeout_s=0.2) as client:
        with pytest.raises(PeerUnavailable, match="known generations go on"):
            await client.data_key(KEY)


async def test_nobody_there_and_a_stranger_are_unavailable(peer: Peer, tmp_path: Path) -> None:
    nobody = ConfigServerClient("https://127.0.0.1:1", peer.identity.client_context(Role.CONFIG_SERVER))
    stranger = LabAuthority().issue(Role.PROCESS_SERVER, new_uuid(RANDOM), tmp_path / "stranger")
    for client in (nobody, ConfigServerClient(peer.url, stranger.client_context(Role.CONFIG_SERVER))):
        async with client:
            with pytest.raises(PeerUnavailable):
                await client.data_key(KEY)
    assert peer.calls == 0


async def test_the_next_configuration_server_is_asked_when_one_fails(peer: Peer) -> None:
    tls, nobody = peer.identity.client_context(Role.CONFIG_SERVER), "https://127.0.0.1:1"
    peer.body = GRANT.encode()
    agent = AgentClient([nobody, peer.url], tls)
    async with ConfigServerClient([nobody, peer.url], tls) as client:
        assert await client.data_key(KEY) == GRANT
        assert client._urls.present == peer.url.rstrip("/"), "and it stays the one that is asked"
        peer.error = Retryable("cannot now: its database is away")
        with pytest.raises(Retryable, match="its database is away"):
            await client.data_key(KEY)
        assert client._urls.present == nobody, "another one may know better the next time"
    peer.error, peer.status, peer.body = None, 204, b""
    assert await agent.desired(3, 0) is None
    await agent.close()


def test_settings_name_no_server_twice() -> None:
    check_standby_urls("https://a.example", ["https://b.example", "https://a.example:444"])
    for standby in ("https://a.example:443", "http://b.example", "https://b.example"):
        with pytest.raises(SettingsError, match="standby_urls"):
            check_standby_urls("https://a.example", ["https://b.example", standby])


async def test_it_is_opened_before_it_is_used(peer: Peer) -> None:
    with pytest.raises(RuntimeError, match="before it was opened"):
        await peer.client().data_key(KEY)


async def test_a_protocol_error_is_no_reason_to_try_for_ever(peer: Peer) -> None:
    peer.body = GRANT.encode().replace(b'"size_bytes"', b'"bytes"')
    async with peer.client() as client:
        with pytest.raises(PeerProtocolError):
            await client.data_key(KEY)
