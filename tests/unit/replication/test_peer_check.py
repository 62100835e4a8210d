"""A TLS client's look at its peer's role and identifier, without aiohttp: under asyncio and over a plain socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
import uuid
from pathlib import Path

import pytest

from replication.tls_identity import ExpectedPeer, Role, TlsIdentity
from tests.harness.impostor import listening_impostor
from tests.harness.tls import LabAuthority


@pytest.fixture
def authority() -> LabAuthority:
    return LabAuthority()


@pytest.fixture
def client(authority: LabAuthority, tmp_path: Path) -> TlsIdentity:
    return authority.issue(Role.AGENT, str(uuid.uuid4()), tmp_path / "client")


async def greet(port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"hello")
    await reader.read()
    writer.close()


def greet_over_a_plain_socket(port: int, context: ssl.SSLContext) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(b"hello")


async def test_a_peer_of_the_wrong_role_gets_neither_a_handshake_nor_a_byte(
    authority: LabAuthority, client: TlsIdentity, tmp_path: Path
) -> None:
    identity = authority.issue(Role.PROCESS_SERVER, str(uuid.uuid4()), tmp_path / "server")
    wrong, right = client.client_context(Role.CONFIG_SERVER), client.client_context(Role.PROCESS_SERVER)
    async with listening_impostor(identity) as peer:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"cannot take .* for a config-server"):
            await greet(peer.port, wrong)
        await peer.conversations_ended()
        assert (peer.handshakes, bytes(peer.heard)) == (0, b"")
        await greet(peer.port, right)
        assert (peer.handshakes, bytes(peer.heard)) == (1, b"hello")


async def test_a_plain_socket_sends_no_byte_of_a_request_to_a_peer_of_the_wrong_role(
    authority: LabAuthority, client: TlsIdentity, tmp_path: Path
) -> None:
    identity = authority.issue(Role.PROCESS_SERVER, str(uuid.uuid4()), tmp_path / "server")
    async with listening_impostor(identity) as peer:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"cannot take .* for a config-server"):
            await asyncio.to_thread(greet_over_a_plain_socket, peer.port, client.client_context(Role.CONFIG_SERVER))
        await peer.conversations_ended()
        assert bytes(peer.heard) == b""
        await asyncio.to_thread(greet_over_a_plain_socket, peer.port, client.client_context(Role.PROCESS_SERVER))
        await peer.conversations_ended()
        assert bytes(peer.heard) == b"hello"


async def test_the_identifier_that_is_expected_counts_for_connections_made_afterwards(
    authority: LabAuthority, client: TlsIdentity, tmp_path: Path
) -> None:
    name = str(uuid.uuid4())
    identity = authority.issue(Role.PROCESS_SERVER, name, tmp_path / "server")
    expected = ExpectedPeer(Role.PROCESS_SERVER, str(uuid.uuid4()))
    context = client.client_context(expected)
    async with listening_impostor(identity) as peer:
        with pytest.raises(ssl.SSLCertVerificationError, match=f"for the process-server {expected.identifier}"):
            await greet(peer.port, context)
        await peer.conversations_ended()
        assert (peer.handshakes, bytes(peer.heard)) == (0, b"")
        expected.identifier = name
        await greet(peer.port, context)
        assert (peer.handshakes, bytes(peer.heard)) == (1, b"hello")


async def test_the_host_name_is_checked_as_before(authority: LabAuthority, client: TlsIdentity, tmp_path: Path) -> None:
    identity = authority.issue(Role.SINK, str(uuid.uuid4()), tmp_path / "server", addresses=["elsewhere.example"])
    async with listening_impostor(identity) as peer:
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
            await greet(peer.port, client.client_context(Role.SINK))
        await peer.conversations_ended()
        assert (peer.handshakes, bytes(peer.heard)) == (0, b"")
