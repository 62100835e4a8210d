"""More clients than there are places, who never say who they are and dial again as soon as they are cut: honest ones get through in time.

Called by pytest. Each attacker sends the head of a request and one byte of its body, where the service lets him get that far without a
certificate; else he stays in the handshake. Honest clients dial anew for each request, from the attackers' own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeVar

import aiohttp
import pytest

from config_server.config import Settings
from replication.identifiers import MachineId
from replication.service.connections import ConnectionSettings
from replication.service.https import RunningServer
from replication.tls_identity import Role, TlsIdentity
from tests.harness.blob_requests import SignedRequests
from tests.harness.blob_site import blob_site
from tests.harness.config_site import Lab, running_lab
from tests.harness.epochs import new_uuid
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.process_site import ShippedDisk, lab_settings, running_site

PLACES = 32
ATTACKERS = 48
PATIENCE_S = 10.0
"""For one honest request, where bodies are waited for for 30 s. It takes 1 to 2 s: a turn in the kernel's queue and one's chance."""
ROUNDS = 2
CONNECTIONS = ConnectionSettings(max_connections=PLACES)
AnswerT = TypeVar("AnswerT")
SLOW_BODY = b"%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"


@contextlib.asynccontextmanager
async def crowd(server: RunningServer, tls: ssl.SSLContext | None, sent: bytes) -> AsyncIterator[None]:
    """``ATTACKERS`` who dial again in the moment that they are cut; in the block every place has been taken, and some wait for one."""
    cuts = 0
    is_full = asyncio.Event()

    async def attack() -> None:
        nonlocal cuts
        while True:
            writer = None
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls)
                writer.write(sent)
                await reader.read()
            if writer is not None:
                writer.transport.abort()
            cuts += 1
            if cuts >= ATTACKERS - PLACES:
                is_full.set()

    async with asyncio.TaskGroup() as tasks:
        attackers = [tasks.create_task(attack()) for _ in range(ATTACKERS)]
        try:
            async with asyncio.timeout(PATIENCE_S):
                await is_full.wait()
            yield
            assert server.listener.open_connections <= PLACES
        finally:
            for attacker in attackers:
                attacker.cancel()


def with_few_places(settings: Settings) -> Settings:
    return replace(settings, connections=CONNECTIONS)


async def as_a_client(act: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Who is cut before he has said who he is, on a machine that is too busy for his one second, dials again; in time all the same."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await act()
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.05)


async def status_anew(lab: Lab, path: str, identity: TlsIdentity | None = None) -> int:
    """On a connection of its own: by the certificate, or else by the administrator's token."""
    if identity is None:
        reply = await as_a_client(lambda: lab.administer("GET", path))
    else:
        reply = await as_a_client(lambda: lab.request("GET", path, identity=identity))
    for session in lab.sessions.values():
        await session.close()
    lab.sessions.clear()
    return reply.status


@pytest.mark.parametrize("path", ["/enrolments", "/policies"])
async def test_the_configuration_server_among_slow_bodies_of_nobody(tmp_path: Path, path: str) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), change=with_few_places, reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        kept = lab.identities["web-1"]
        tls = lab.tls()
        async with crowd(lab.running.server, tls, SLOW_BODY % f"POST /api/v1{path}".encode()):
            for _ in range(ROUNDS):
                assert await status_anew(lab, "/api/v1/site") == 200
                assert await status_anew(lab, "/api/v1/agent/desired", kept) in (200, 204)
            await as_a_client(lambda: lab.enrol(Role.AGENT, "web-2"))  # who has no certificate either
        assert await status_anew(lab, "/api/v1/site") == 200


async def test_a_connection_that_was_identified_keeps_its_place_among_them(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), change=with_few_places, reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        identity = lab.identities["web-1"]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", lab.running.port, ssl=identity.client_context(Role.CONFIG_SERVER)
        )

        async def ask() -> bytes:
            writer.write(b"GET /api/v1/agent/desired HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or b"0"))
            return head.split()[1]

        assert await ask() in (b"200", b"204")
        async with crowd(lab.running.server, lab.tls(), SLOW_BODY % b"POST /api/v1/enrolments"):
            assert await status_anew(lab, "/api/v1/site") == 200
            assert await ask() in (b"200", b"204")
        writer.transport.abort()


async def test_the_process_server_among_handshakes_of_nobody(tmp_path: Path) -> None:
    settings = replace(lab_settings(tmp_path), connections=CONNECTIONS)
    async with running_site(tmp_path, settings=settings) as site:
        random = Random(53)
        disk = ShippedDisk(random, MachineId(new_uuid(random)))
        site.config.grants[disk.key] = disk.grant
        async with (
            crowd(site.running.server, None, b"\x16\x03\x01\x02\x00\x01"),
            asyncio.timeout(2 * PATIENCE_S),
        ):
            await disk.ship_epoch(site.agent(disk.machine), 1, 4)
            await site.until_decided(disk.epoch_key(1))


async def test_the_blob_service_among_slow_bodies_of_nobody(tmp_path: Path) -> None:
    async with blob_site(tmp_path, connections=CONNECTIONS) as site:
        await site.store.create_container("lab")
        tls = ssl.create_default_context(cafile=str(site.ca_file))
        async with crowd(site.server, tls, SLOW_BODY % b"PUT /lab/blob"):
            for number in range(ROUNDS):
                async with SignedRequests(site) as requests:
                    put = functools.partial(requests.put_blob, f"honest-{number}", b"x" * 100_000)
                    assert (await as_a_client(put)).status == 201
