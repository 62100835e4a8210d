"""Five thousand connections that only stand there: each service goes on serving an honest client, with bounded memory and descriptors.

Called by pytest. Some have shaken hands and wait, some have begun a request's head, most have not said a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from replication.identifiers import MachineId
from replication.service.connections import DEFAULT_MAX_CONNECTIONS
from replication.service.https import RunningServer
from replication.tls_identity import Role
from tests.harness.blob_requests import SignedRequests
from tests.harness.blob_site import blob_site
from tests.harness.config_site import running_lab
from tests.harness.epochs import new_uuid
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.mutations import MIB, bounded_memory
from tests.harness.process_site import ShippedDisk, running_site

CONNECTIONS = 5000
HANDSHAKES = 100
DESCRIPTORS = CONNECTIONS + DEFAULT_MAX_CONNECTIONS + 1000
MOST_BYTES = 256 * MIB
RANDOM = Random(31)


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} file descriptors, the hard limit is {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.asynccontextmanager
async def crowd(server: RunningServer, tls: ssl.SSLContext) -> AsyncIterator[None]:
    """``CONNECTIONS`` idle connections, made while the block runs on the same loop; all are closed at its end."""
    loop, silent = asyncio.get_running_loop(), list[socket.socket]()
    speaking: list[asyncio.StreamWriter] = []
    try:
        for number in range(CONNECTIONS - HANDSHAKES):
            client = socket.socket()
            client.setblocking(False)
            silent.append(client)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            if number % 3 == 0:
                client.send(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
        for number in range(HANDSHAKES):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls)
            speaking.append(writer)
            if number % 2 == 0:
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        while server.listener.open_connections < server.listener._limit:
            await asyncio.sleep(0.01)
        yield
    finally:
        for client in silent:
            client.close()
        for writer in speaking:
            writer.transport.abort()


def descriptors_in_use() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_process_server_serves_an_agent_among_five_thousand_idle_connections(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
        site.config.grants[disk.key] = disk.grant
        agent = site.agent(disk.machine)
        await disk.ship_epoch(agent, 1, 2)
        before = descriptors_in_use()
        with bounded_memory(MOST_BYTES):
            async with crowd(
                site.running.server, site.agent_identity(disk.machine).client_context(Role.PROCESS_SERVER)
            ):
                assert site.running.server.listener.open_connections <= DEFAULT_MAX_CONNECTIONS
                assert descriptors_in_use() <= before + CONNECTIONS + DEFAULT_MAX_CONNECTIONS + 50
                await disk.ship_epoch(site.agent(disk.machine), 2, 4)
                await site.until_decided(disk.epoch_key(2))
        await disk.ship_epoch(agent, 3, 2)


async def test_the_configuration_server_serves_everybody_among_five_thousand_idle_connections(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        with bounded_memory(MOST_BYTES):
            async with crowd(lab.running.server, lab.tls()):
                assert lab.running.server.listener.open_connections <= DEFAULT_MAX_CONNECTIONS
                assert (await lab.administer("GET", "/api/v1/site")).status == 200
                await lab.enrol(Role.AGENT, "web-2")
                reply = await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-2"])
                assert reply.status in (200, 204)


async def test_the_blob_service_serves_a_client_among_five_thousand_idle_connections(tmp_path: Path) -> None:
    async with blob_site(tmp_path) as site:
        await site.store.create_container("lab")
        with bounded_memory(MOST_BYTES):
            async with crowd(site.server, ssl.create_default_context(cafile=str(site.ca_file))):
                assert site.server.listener.open_connections <= DEFAULT_MAX_CONNECTIONS
                async with SignedRequests(site) as requests:
                    assert (await requests.put_blob("honest", b"x" * MIB)).status == 201
                    assert (await requests.send("GET", "/lab/honest")).body == b"x" * MIB
