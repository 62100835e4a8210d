"""Who may do what at the process server, and hostile or broken requests: clear errors, nothing accepted, service up afterwards."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest

from replication.batch_frame import MAX_FRAME_BYTES, DataExtent, encode_batch
from replication.data_plane import Hello, batch_path, generation_path, hello_path, manifest_path
from replication.epoch_manifest import MAX_MANIFEST_BYTES, manifest_hash
from replication.errors import IntegrityError, InvalidInput, NotFound, PeerProtocolError, Refused, Retryable
from replication.extents import Extent
from replication.identifiers import GenerationId, GenerationKey, MachineId
from replication.problem_details import error_from_problem
from replication.tls_identity import Role, TlsIdentity
from tests.harness.epochs import make_generation_record, new_uuid, put_generation_record
from tests.harness.process_site import DISK_BYTES, LabAgent, LabSite, LabWriter, ShippedDisk, running_site
from tests.harness.tls import LabAuthority

RANDOM = Random(22)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LabSite]:
    async with running_site(tmp_path) as running:
        yield running
        disk = new_disk(running)
        await disk.ship_epoch(running.agent(disk.machine), 1, 1)
        await running.until_decided(disk.epoch_key(1))


def new_disk(site: LabSite) -> ShippedDisk:
    disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
    site.config.grants[disk.key] = disk.grant
    return disk


def content_of(disk: ShippedDisk, epoch: int = 1, batch: int = 0) -> bytes:
    frame = disk.frame(epoch, batch)
    return b"".join((frame.head, *frame.data))


# -- identity -------------------------------------------------------------------------------------------------


async def test_hello_says_what_the_server_takes(site: LabSite) -> None:
    disk = new_disk(site)
    status, body = await site.agent(disk.machine).request("GET", hello_path())
    hello = Hello.decode(body)
    assert status == 200
    assert hello.protocol_min <= 1 <= hello.protocol_max
    assert hello.max_batches_in_flight == 4


async def test_without_a_certificate_there_is_no_connection(site: LabSite, tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(cadata=site.authority.certificate_pem.decode())
    with pytest.raises(aiohttp.ClientError):
        await site.connect(tls).request("GET", hello_path())


@pytest.mark.parametrize("how", ["expired", "another authority"])
async def test_an_unacceptable_certificate_is_refused_in_the_handshake(site: LabSite, tmp_path: Path, how: str) -> None:
    authority = LabAuthority() if how == "another authority" else site.authority
    identity = authority.issue(Role.AGENT, new_uuid(RANDOM), tmp_path / "stranger", expired=how == "expired")
    TlsIdentity(identity.directory).authorities_path.write_bytes(site.authority.certificate_pem)
    with pytest.raises(aiohttp.ClientError):
        await site.connect(identity.client_context(Role.PROCESS_SERVER)).request("GET", hello_path())


@pytest.mark.parametrize("role", [Role.PROCESS_SERVER, Role.SINK, Role.CONFIG_SERVER])
async def test_only_agents_are_served(site: LabSite, tmp_path: Path, role: Role) -> None:
    identity = site.authority.issue(role, new_uuid(RANDOM), tmp_path / role)
    status, body = await site.connect(identity.client_context(Role.PROCESS_SERVER)).request("GET", hello_path())
    assert status == 403
    assert isinstance(error_from_problem(status, body, "it"), Refused)


async def test_a_revoked_certificate_is_refused_on_its_open_connection(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    await agent.put_batch(disk.frame(1, 0))
    serial = format(site.agent_identity(disk.machine).certificate().serial_number, "x")
    site.config.desired = site.config.desired.model_copy(update={"revoked_serials": [serial]})

    async def is_refused() -> bool:
        return (await agent.request("GET", hello_path()))[0] == 403

    async with asyncio.timeout(10):
        while not await is_refused():
            await asyncio.sleep(0.01)
    with pytest.raises(Refused, match="revoked"):
        await agent.put_batch(disk.frame(1, 1))


# -- ownership ------------------------------------------------------------------------------------------------


async def test_another_machines_disk_is_refused_in_every_way(site: LabSite) -> None:
    disk, thief = new_disk(site), site.agent(MachineId(new_uuid(RANDOM)))
    owner = site.agent(disk.machine)
    frames = await disk.ship(owner, 1, 1)
    with pytest.raises(Refused, match="belongs to another machine"):
        await thief.put_batch(disk.frame(1, 1))
    with pytest.raises(Refused):
        await thief.put_manifest(disk.epoch_key(1), disk.manifest(1, frames))
    with pytest.raises(Refused):
        await thief.stored_manifest(disk.epoch_key(1))
    with pytest.raises(Refused):
        await thief.receipt(disk.key)


async def test_a_generation_that_was_never_granted_is_not_found(site: LabSite) -> None:
    disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
    agent = site.agent(disk.machine)
    for _ in range(5):
        with pytest.raises(NotFound):
            await agent.put_batch(disk.frame(1, 0))
    assert site.config.asked.count(disk.key) == 1, "the refusal is kept for a while"


async def test_many_first_batches_ask_for_the_key_once(site: LabSite) -> None:
    disk = new_disk(site)
    agents = [site.agent(disk.machine) for _ in range(4)]
    await asyncio.gather(*(agent.put_batch(disk.frame(1, batch)) for batch, agent in enumerate(agents)))
    assert site.config.asked.count(disk.key) == 1


async def test_without_the_configuration_server_known_generations_go_on(site: LabSite) -> None:
    disk, unknown = new_disk(site), new_disk(site)
    agent = site.agent(disk.machine)
    await disk.ship(agent, 1, 1)
    site.config.down = True
    await disk.ship_epoch(agent, 1, 3)
    await site.until_decided(disk.epoch_key(1))
    with pytest.raises(Retryable):
        await site.agent(unknown.machine).put_batch(unknown.frame(1, 0))
    site.config.down = False


async def test_without_the_configuration_server_receipts_reach_agents_by_the_record_in_the_store(site: LabSite) -> None:
    disk, writer = new_disk(site), LabWriter(site.store)
    content = await writer.apply(disk, 3, b"h" * 32)
    record = make_generation_record(
        disk.disk,
        1,
        item=new_uuid(RANDOM),  # type: ignore[arg-type]  # any identifier
        machine=disk.machine,
        size_bytes=DISK_BYTES,
        base=None,
        writer=writer.identity.public,
        data_key=disk.data_key,
    )
    await put_generation_record(site.store, record)
    site.config.down = True
    assert await site.agent(disk.machine).receipt(disk.key, after_epoch=1, wait_s=10) == content
    with pytest.raises(Refused):
        await site.agent(MachineId(new_uuid(RANDOM))).receipt(disk.key)
    site.config.down = False


async def test_a_batch_beyond_the_end_of_the_disk_is_refused(site: LabSite) -> None:
    disk = new_disk(site)
    key = disk.batch_key(1, 0)
    frame = encode_batch(key, [DataExtent(Extent(DISK_BYTES - 512, 1024), memoryview(bytes(1024)))])
    with pytest.raises(InvalidInput, match="the disk has"):
        await site.agent(disk.machine).put_batch(frame)


# -- broken and hostile bodies --------------------------------------------------------------------------------


async def refusal(agent: LabAgent, path: str, body: bytes, headers: dict[str, str] | None = None) -> Exception:
    status, answer = await agent.request("PUT", path, body, headers)
    assert 400 <= status < 500, (status, answer)
    assert json.loads(answer)["detail"].startswith("cannot ")
    return error_from_problem(status, answer, "it")


async def test_a_batch_with_a_flipped_bit_anywhere_is_refused(site: LabSite) -> None:
    disk = new_disk(site)
    agent, content = site.agent(disk.machine), content_of(disk)
    for position in (0, 5, 9, 30, 60, 78, 90, 100, 120, 130, 140, 5000, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 4
        error = await refusal(agent, batch_path(disk.batch_key(1, 0)), bytes(damaged))
        assert isinstance(error, PeerProtocolError)
    assert site.metric("batches_total", outcome="accepted") == 0


async def test_a_damaged_extent_is_an_integrity_error(site: LabSite) -> None:
    disk = new_disk(site)
    damaged = bytearray(content_of(disk))
    damaged[-1] ^= 1
    error = await refusal(site.agent(disk.machine), batch_path(disk.batch_key(1, 0)), bytes(damaged))
    assert isinstance(error, IntegrityError)


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 1000, b"BFB1" + bytes(2000)])
async def test_what_is_no_batch_is_refused(site: LabSite, body: bytes) -> None:
    disk = new_disk(site)
    error = await refusal(site.agent(disk.machine), batch_path(disk.batch_key(1, 0)), body)
    assert isinstance(error, PeerProtocolError | InvalidInput)


async def test_a_batch_under_another_key_is_refused(site: LabSite) -> None:
    disk = new_disk(site)
    error = await refusal(site.agent(disk.machine), batch_path(disk.batch_key(1, 1)), content_of(disk, 1, 0))
    assert "under the key" in str(error)


async def test_an_oversized_batch_is_refused_by_its_announced_length(site: LabSite) -> None:
    disk = new_disk(site)
    error = await refusal(site.agent(disk.machine), batch_path(disk.batch_key(1, 0)), bytes(MAX_FRAME_BYTES + 1))
    assert isinstance(error, InvalidInput)
    error = await refusal(site.agent(disk.machine), manifest_path(disk.epoch_key(1)), bytes(MAX_MANIFEST_BYTES + 1))
    assert isinstance(error, InvalidInput)


async def test_encoded_and_unmeasured_bodies_are_refused(site: LabSite) -> None:
    disk = new_disk(site)
    agent, path = site.agent(disk.machine), batch_path(disk.batch_key(1, 0))
    assert "unknown length" in str(await refusal(agent, path, content_of(disk), {"Content-Encoding": "deflate"}))

    async def chunks() -> AsyncIterator[bytes]:
        yield content_of(disk)

    async with agent._session.put(agent.url + path, data=chunks()) as response:
        assert response.status == 400


async def test_a_truncated_body_accepts_nothing_and_holds_no_buffer(site: LabSite) -> None:
    disk = new_disk(site)
    content = content_of(disk)
    tls = site.agent_identity(disk.machine).client_context(Role.PROCESS_SERVER)
    for sent in (0, 100, len(content) - 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.running.server.port, ssl=tls)
        head = f"PUT {batch_path(disk.batch_key(1, 0))} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content[:sent])
        await writer.drain()
        writer.close()
        assert await reader.read() == b""
    assert site.metric("batches_total", outcome="accepted") == 0
    await disk.ship(site.agent(disk.machine), 1, 8, size=4 * 2**20)


async def test_broken_manifests_are_refused(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    encoded = disk.manifest(1, await disk.ship(agent, 1, 2))
    path = manifest_path(disk.epoch_key(1))
    for broken in (b"", b"x" * 300, encoded[:-1], encoded + b"x", b"XXXX" + encoded[4:]):
        error = await refusal(agent, path, broken)
        assert isinstance(error, PeerProtocolError | InvalidInput)
    error = await refusal(agent, manifest_path(disk.epoch_key(2)), encoded)
    assert "cannot accept the manifest" in str(error)
    assert await agent.put_manifest(disk.epoch_key(1), encoded) == 201
    await site.until_decided(disk.epoch_key(1))
    assert manifest_hash(await agent.stored_manifest(disk.epoch_key(1))) == manifest_hash(encoded)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/disks/not-a-disk/generations/1/receipt",
        f"/v1/disks/{new_uuid(RANDOM)}/generations/0/receipt",
        f"/v1/disks/{new_uuid(RANDOM)}/generations/99999999999/receipt",
        f"/v1/disks/{new_uuid(RANDOM)}/generations/1/receipt?wait_s=soon",
        f"/v1/disks/{new_uuid(RANDOM)}/generations/1/receipt?after_epoch=-7",
        f"/v1/disks/{new_uuid(RANDOM)}/generations/1/epochs/0/manifest",
        f"/v1/disks/{new_uuid(RANDOM)}/generations/1/epochs/x/manifest",
    ],
)
async def test_nonsense_in_a_path_is_invalid_input(site: LabSite, path: str) -> None:
    status, body = await site.agent(MachineId(new_uuid(RANDOM))).request("GET", path)
    assert status == 400
    assert isinstance(error_from_problem(status, body, "it"), InvalidInput)


async def test_an_unknown_path_is_a_problem_document_too(site: LabSite) -> None:
    agent = site.agent(MachineId(new_uuid(RANDOM)))
    status, body = await agent.request("GET", "/v2/hello")
    assert (status, json.loads(body)["status"]) == (404, 404)
    status, _ = await agent.request(
        "DELETE", generation_path(GenerationKey(new_disk(site).disk, GenerationId(1))) + "/receipt"
    )
    assert status == 405


async def test_keys_never_appear_in_metrics_or_logs(site: LabSite, caplog: pytest.LogCaptureFixture) -> None:
    disk = new_disk(site)
    with caplog.at_level("DEBUG"):
        await disk.ship_epoch(site.agent(disk.machine), 1, 2)
        await site.until_decided(disk.epoch_key(1))
    assert disk.data_key.hex() not in site.metrics_text()
    assert disk.data_key.hex() not in caplog.text
