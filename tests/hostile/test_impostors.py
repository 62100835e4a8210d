"""Every client of this product against a peer with a good certificate of the site's own authority, the right host name, the wrong role.

Called by pytest, on uvloop as in the daemons (``tests/unit/replication/test_peer_check.py``: on asyncio, and without aiohttp). Proven by
what the impostor got: no completed handshake, not one byte of a request. The same client then speaks to the peer that it wants.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from config_server.migratectl.connection import ConfigServer as OperatorsConnection
from config_server.migratectl.connection import Connection
from config_server.operator_plane import SiteStatus
from mobility_agent import config_server_client as of_agent
from mobility_agent.shipping.process_server_client import ProcessServerClient
from process_server.control import config_server_client as of_process_server
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.enrolment import enrol
from replication.errors import BlockferryError
from replication.tls_identity import ExpectedPeer, Role, TlsIdentity, fingerprint
from tests.harness.epochs import new_uuid
from tests.harness.impostor import Impostor, listening_impostor
from tests.harness.scripted_peers import heartbeat
from tests.harness.tls import LabAuthority

RANDOM = Random(77)
ASSIGNED = new_uuid(RANDOM)
PASSPHRASE = "ABCDEFGH-22222-33333-44444-55555-66666"
TOKEN = "blockferry-0-1"


@dataclass
class Place:
    """Where a client has its files."""

    authority: LabAuthority
    directory: Path

    def identity(self, role: Role, identifier: str | None = None) -> TlsIdentity:
        name = identifier or new_uuid(RANDOM)
        return self.authority.issue(role, name, self.directory / f"{role}-{name}")

    @property
    def authority_file(self) -> Path:
        path = self.directory / "authority.pem"
        path.write_bytes(self.authority.certificate_pem)
        return path

    def secret(self, text: str) -> Path:
        path = self.directory / "secret"
        path.write_text(text)
        return path


async def agent_to_config_server(place: Place, url: str) -> None:
    client = of_agent.ConfigServerClient(url, place.identity(Role.AGENT).client_context(Role.CONFIG_SERVER))
    try:
        await client.desired(0, 0.0)
    finally:
        await client.close()


async def process_server_to_config_server(place: Place, url: str) -> None:
    tls = place.identity(Role.PROCESS_SERVER).client_context(Role.CONFIG_SERVER)
    async with of_process_server.ConfigServerClient(url, tls) as client:
        await client.heartbeat(heartbeat())


async def agent_to_process_server(place: Place, url: str) -> None:
    expected = ExpectedPeer(Role.PROCESS_SERVER, ASSIGNED)
    client = ProcessServerClient(
        url, place.identity(Role.AGENT).client_context(expected), connections=1, timeout_s=10.0
    )
    try:
        await client.hello()
    finally:
        await client.close()


async def operator_to_config_server(place: Place, url: str) -> None:
    async with OperatorsConnection(Connection((url,), TOKEN, place.authority_file)) as connection:
        await connection.get("/site", SiteStatus)


async def daemon_to_store(place: Place, url: str) -> None:
    key_file = place.secret(base64.b64encode(bytes(32)).decode())
    settings = BlobEndpointSettings(f"{url}/account", "account", key_file, ca_file=place.authority_file)
    async with HttpBlobClient(settings) as store:
        await store.get_blob("replication", "name", max_bytes=1)


Client = Callable[[Place, str], Awaitable[None]]
CLIENTS: dict[Client, Role] = {
    agent_to_config_server: Role.CONFIG_SERVER,
    process_server_to_config_server: Role.CONFIG_SERVER,
    agent_to_process_server: Role.PROCESS_SERVER,
    operator_to_config_server: Role.CONFIG_SERVER,
    daemon_to_store: Role.SINK,
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(LabAuthority(), tmp_path)


async def asked(client: Client, place: Place, identity: TlsIdentity) -> tuple[Impostor, BlockferryError]:
    """What ``client`` came to know, and told, of a peer with ``identity``, which hangs up after the first request."""
    async with listening_impostor(identity) as peer:
        with pytest.raises(BlockferryError) as raised:
            await client(place, peer.url)
        await peer.conversations_ended()
    return peer, raised.value


def heard_nothing(impostor: Impostor, client: Client) -> bool:
    """A daemon's handshake must not come to its end. An operator's may, before he hangs up: without a certificate it tells nothing."""
    return not impostor.heard and (impostor.handshakes == 0 or client is operator_to_config_server)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
async def test_a_peer_of_another_role_hears_nothing(place: Place, client: Client) -> None:
    for role in set(Role) - {CLIENTS[client]}:
        impostor, error = await asked(client, place, place.identity(role, ASSIGNED))
        assert heard_nothing(impostor, client), role
        assert f"cannot take urn:blockferry:{role}:{ASSIGNED} for " in error.message
    right, _ = await asked(client, place, place.identity(CLIENTS[client], ASSIGNED))
    assert right.handshakes >= 1
    assert b" HTTP/1.1\r\n" in right.heard, "it would have been heard"


async def test_another_process_server_at_the_assigned_one_s_address_hears_nothing(place: Place) -> None:
    impostor, error = await asked(agent_to_process_server, place, place.identity(Role.PROCESS_SERVER))
    assert (impostor.handshakes, bytes(impostor.heard)) == (0, b"")
    assert ASSIGNED in error.message, "whom the agent wanted is said"


async def test_a_site_s_certificate_without_one_clear_name_is_no_peer_s(place: Place) -> None:
    urns = [f"urn:blockferry:{role}:{ASSIGNED}" for role in (Role.CONFIG_SERVER, Role.PROCESS_SERVER, Role.SINK)]
    for number, names in enumerate(([], urns, ["urn:blockferry:config-server:nonsense"])):
        identity = place.authority.issue_with_names(names, place.directory / f"unclear-{number}")
        for client in CLIENTS:
            if names or client is not daemon_to_store:  # a store without a name of this product is another authority's
                impostor, _ = await asked(client, place, identity)
                assert heard_nothing(impostor, client)


async def test_a_store_of_another_authority_needs_no_name_of_this_product(place: Place) -> None:
    identity = place.authority.issue_with_names(["https://store.example"], place.directory / "cloud")
    store, _ = await asked(daemon_to_store, place, identity)
    assert b"GET /account/replication/name HTTP/1.1" in store.heard


@pytest.mark.parametrize("role", [Role.PROCESS_SERVER, Role.SINK, Role.CONFIG_SERVER])
async def test_a_passphrase_goes_to_a_configuration_server_only(place: Place, role: Role) -> None:
    """Whatever it is, it can hand out the site's authority, which is public, and so gets past the comparison of fingerprints."""
    pem = place.authority.certificate_pem
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(pem), pem)
    async with listening_impostor(place.identity(role), answer) as peer:
        with pytest.raises(BlockferryError) as raised:
            await enrol(
                peer.url,
                fingerprint(place.authority.certificate),
                PASSPHRASE,
                Role.AGENT,
                "web-1",
                "fingerprint-of-web-1",
                place.directory / "identity",
            )
        await peer.conversations_ended()
    assert peer.heard.startswith(b"GET /api/v1/authorities")
    if role is Role.CONFIG_SERVER:
        assert PASSPHRASE.encode() in peer.heard
    else:
        assert peer.handshakes == 1, "the one that fetched the authorities"
        assert (b"POST" in peer.heard, PASSPHRASE.encode() in peer.heard) == (False, False)
        assert f"cannot take urn:blockferry:{role}" in raised.value.message
