"""The process server among hostile agents: whatever an enrolled or unknown agent sends, nothing false is accepted and others are served.

Called by pytest. Case by case in tests/e2e/test_process_server_peers.py; here documents are broken in bulk, replayed, sent slowly.
"""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import xxhash

from process_server.config import IntakeSettings
from replication.batch_frame import HEADER_BYTES
from replication.data_plane import ManifestSuperseded, batch_path, hello_path, manifest_path
from replication.errors import KeyConflict, PeerProtocolError, Permanent, Refused
from replication.identifiers import MachineId
from replication.problem_details import error_from_problem
from replication.service.connections import ConnectionSettings
from replication.tls_identity import PeerName, Role
from tests.harness.epochs import new_uuid
from tests.harness.internal_errors import no_internal_error
from tests.harness.mutations import MIB, bounded_memory, mutated
from tests.harness.process_site import LabSite, ShippedDisk, lab_settings, running_site

__all__ = ["no_internal_error"]

RANDOM = Random(41)
EXAMPLES = 200


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LabSite]:
    settings = replace(
        lab_settings(tmp_path / "state"),
        intake=IntakeSettings(body_timeout_s=0.3),
        connections=ConnectionSettings(idle_timeout_s=0.5, handshake_timeout_s=0.5),
    )
    async with running_site(tmp_path, settings=settings) as running:
        yield running
        disk = new_disk(running)
        await disk.ship_epoch(running.agent(disk.machine), 1, 2)
        await running.until_decided(disk.epoch_key(1))


def new_disk(site: LabSite) -> ShippedDisk:
    disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
    site.config.grants[disk.key] = disk.grant
    return disk


def content_of(disk: ShippedDisk, epoch: int = 1, batch: int = 0) -> bytes:
    frame = disk.frame(epoch, batch, size=4096)
    return b"".join((frame.head, *frame.data))


def with_digest(content: bytes) -> bytes:
    if len(content) < HEADER_BYTES:
        return content
    (count,) = struct.unpack_from("<I", content, 44)
    table = content[HEADER_BYTES : HEADER_BYTES + 32 * min(count, len(content))]
    return content[:64] + xxhash.xxh3_128_digest(content[:64] + table) + content[HEADER_BYTES:]


# -- broken in bulk, replayed ---------------------------------------------------------------------------------


async def test_hundreds_of_damaged_batches_leave_nothing_in_the_spool(site: LabSite) -> None:
    disk = new_disk(site)
    agent, content = site.agent(disk.machine), content_of(disk)
    accepted = set[bytes]()
    for number in range(EXAMPLES):
        damaged = mutated(RANDOM, content)
        hostile = with_digest(damaged) if number % 2 else damaged
        status, answer = await agent.request("PUT", batch_path(disk.batch_key(1, number)), hostile)
        if status == 201:  # the key was another one's, or the change made a sound batch of it
            accepted.add(hostile)
        else:
            assert status == 400, answer
            assert isinstance(error_from_problem(status, answer, "it"), PeerProtocolError | Permanent)
    assert not accepted, "every one of them states batch 0"


async def test_a_digest_that_was_made_to_match_buys_nothing(site: LabSite) -> None:
    disk = new_disk(site)
    agent, content, path = site.agent(disk.machine), content_of(disk), batch_path(disk.batch_key(1, 0))
    outcomes = set[int]()
    for _ in range(EXAMPLES):
        status, answer = await agent.request("PUT", path, with_digest(mutated(RANDOM, content)))
        outcomes.add(status)
        assert status in (200, 201, 400, 409), answer
    assert 400 in outcomes
    assert site.metric("batches_total", outcome="accepted") <= 1, "one key, one content (R4)"


async def test_hundreds_of_damaged_manifests_decide_nothing(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    encoded = disk.manifest(1, await disk.ship(agent, 1, 3, size=4096))
    unauthenticated = 0
    for _ in range(EXAMPLES):
        damaged = mutated(RANDOM, encoded[:-32])
        status, answer = await agent.request("PUT", manifest_path(disk.epoch_key(1)), damaged + encoded[-32:])
        unauthenticated += status == 201  # well formed: only its MAC is wrong, and the key to check it is not here
        assert status in (200, 201, 400, 409), answer
    assert unauthenticated <= 1


async def test_what_is_replayed_changes_nothing(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    first = await disk.ship_epoch(agent, 1, 2)
    second = await disk.ship_epoch(agent, 2, 2)
    await site.until_decided(disk.epoch_key(1), disk.epoch_key(2))
    stored = site.stored
    for epoch in (1, 2):
        for batch in range(2):
            assert await agent.put_batch(disk.frame(epoch, batch)) == disk.acknowledged[disk.batch_key(epoch, batch)]
    assert await agent.put_manifest(disk.epoch_key(1), first) == 200
    with pytest.raises(PeerProtocolError):
        await agent.put_manifest(disk.epoch_key(3), second)
    other = disk.manifest(1, [], previous_hash=bytes(32), attempt=9)
    with pytest.raises(ManifestSuperseded):
        await agent.put_manifest(disk.epoch_key(1), other)
    assert site.stored == stored


async def test_a_second_incarnation_under_one_certificate_never_replaces_what_was_accepted(site: LabSite) -> None:
    """A clone with the machine's key ships other content under the same keys."""
    disk = new_disk(site)
    clone = ShippedDisk(Random(7), disk.machine, disk=disk.disk, data_key=disk.data_key)
    await disk.ship_epoch(site.agent(disk.machine), 1, 2)
    with pytest.raises(KeyConflict):
        await site.agent(disk.machine).put_batch(clone.frame(1, 0))
    frames = await clone.ship(site.agent(disk.machine), 1, 1, attempt=2)
    await site.until_decided(disk.epoch_key(1))
    with pytest.raises(ManifestSuperseded):
        await site.agent(disk.machine).put_manifest(clone.epoch_key(1), clone.manifest(1, frames, attempt=2))


# -- certificates ---------------------------------------------------------------------------------------------


async def test_a_certificate_with_two_names_or_a_foreign_one_is_nobody(site: LabSite, tmp_path: Path) -> None:
    agent, other = (PeerName(Role.AGENT, new_uuid(RANDOM)).urn for _ in range(2))
    for number, urns in enumerate(
        ([], [agent, other], ["urn:blockferry:agent:x"], ["urn:other:agent:" + new_uuid(RANDOM)])
    ):
        identity = site.authority.issue_with_names(urns, tmp_path / f"odd-{number}")
        status, body = await site.connect(identity.client_context(Role.PROCESS_SERVER)).request("GET", hello_path())
        assert isinstance(error_from_problem(status, body, "it"), Refused)


# -- time and size --------------------------------------------------------------------------------------------


async def line(site: LabSite, machine: MachineId, content: bytes) -> bytes:
    """What comes back until the server ends the connection."""
    tls = site.agent_identity(machine).client_context(Role.PROCESS_SERVER)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.running.server.port, ssl=tls)
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


async def test_slow_heads_and_slow_bodies_end_and_an_honest_agent_is_served_meanwhile(site: LabSite) -> None:
    hostile, honest = new_disk(site), new_disk(site)
    content = content_of(hostile)
    head = f"PUT {batch_path(hostile.batch_key(1, 0))} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    async with asyncio.TaskGroup() as tasks:
        heads = [tasks.create_task(line(site, hostile.machine, head.encode())) for _ in range(20)]
        bodies = [
            tasks.create_task(line(site, hostile.machine, head.encode() + b"\r\n" + content[:100])) for _ in range(8)
        ]
        silent = [tasks.create_task(line(site, hostile.machine, b"")) for _ in range(20)]
        await honest.ship_epoch(site.agent(honest.machine), 1, 4)
    assert {task.result() for task in [*heads, *silent]} == {b""}
    assert {task.result().split()[1] for task in bodies} == {b"502"}
    assert site.metric("batches_total", outcome="accepted") == 4


async def test_a_compressed_body_is_refused_without_being_unpacked(site: LabSite) -> None:
    disk = new_disk(site)
    bomb = gzip.compress(bytes(128 * MIB))
    agent = site.agent(disk.machine)
    with bounded_memory(32 * MIB):
        for path in (batch_path(disk.batch_key(1, 0)), manifest_path(disk.epoch_key(1))):
            status, body = await agent.request("PUT", path, bomb, {"Content-Encoding": "gzip"})
            assert (status, "unknown length" in body.decode()) == (400, True)
            status, body = await agent.request("PUT", path, bomb)
            assert status == 400


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100 + b"\r\n\r\n",
        b"GET /v1/hello HTTP/9.9\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\n\r\n" + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PUT /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"PUT /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/disks/%ff%00/generations/%d9%a1/receipt HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=range(11),
)
async def test_garbage_instead_of_http_is_refused(site: LabSite, garbage: bytes) -> None:
    answer = await line(site, MachineId(new_uuid(RANDOM)), garbage)
    assert answer == b"" or int(answer.split()[1]) in (200, 400, 404, 405), answer[:200]
