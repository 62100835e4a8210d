"""The process server as a process, SIGKILLed under load again and again: nothing acknowledged is lost, every epoch is decided in order."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from random import Random

import aiohttp

from replication.blob_client.http_client import HttpBlobClient
from replication.epoch_manifest import manifest_hash
from replication.errors import Retryable
from replication.identifiers import BatchKey, EpochKey, MachineId
from replication.sealed_segment import MAX_SEGMENT_BYTES, SegmentOpener
from replication.store_layout import (
    MANIFEST_HASH_METADATA,
    REPLICATION_CONTAINER,
    manifest_name,
    parse_epoch_blob_name,
    segment_name,
)
from replication.tls_identity import Role
from tests.harness.blob_site import blob_site
from tests.harness.epochs import new_uuid
from tests.harness.process_server_process import config_server_listener, killable_process_server
from tests.harness.process_site import LabAgent, LabConfigServer, ShippedDisk
from tests.harness.tls import LabAuthority

KILLS = 4
EPOCHS = 8
BATCHES = 5


async def put_manifest_persistently(agent: LabAgent, key: EpochKey, encoded: bytes) -> None:
    while True:
        try:
            await agent.put_manifest(key, encoded)
        except (Retryable, aiohttp.ClientError, OSError):
            await asyncio.sleep(0.02)
        else:
            return


async def ship_history(agent: LabAgent, disk: ShippedDisk) -> None:
    for epoch in range(1, EPOCHS + 1):
        frames = await disk.ship(agent, epoch, BATCHES, size=256 * 1024)
        encoded = disk.manifest(epoch, frames)
        await put_manifest_persistently(agent, disk.epoch_key(epoch), encoded)
        disk.previous_hash = manifest_hash(encoded)


async def check_history(client: HttpBlobClient, disk: ShippedDisk) -> None:
    opener = SegmentOpener()
    for key, acknowledged in disk.acknowledged.items():
        blob = await client.get_blob(REPLICATION_CONTAINER, segment_name(key), max_bytes=MAX_SEGMENT_BYTES)
        assert blob is not None
        tag = bytes.fromhex(acknowledged.tag)
        opened = opener.open(memoryview(blob.content), disk.data_key, expected=key, expected_tag=tag)
        frame = disk.frames[key]
        assert bytes(opened) == b"".join((frame.head, *frame.data))


async def test_sigkill_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    random = Random(23)
    authority, config = LabAuthority(), LabConfigServer()
    disks = [ShippedDisk(random, MachineId(new_uuid(random))) for _ in range(2)]
    config.grants = {disk.key: disk.grant for disk in disks}
    async with (
        blob_site(tmp_path) as store,
        config_server_listener(config, authority, tmp_path / "config-server") as listener,
        killable_process_server(tmp_path, store.endpoint(), listener, authority) as server,
        HttpBlobClient(store.endpoint()) as client,
    ):
        await server.start()
        agents = [
            LabAgent(
                server.url,
                authority.issue(Role.AGENT, disk.machine, tmp_path / disk.machine).client_context(Role.PROCESS_SERVER),
            )
            for disk in disks
        ]
        try:
            async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
                shipping = [tasks.create_task(ship_history(a, d)) for a, d in zip(agents, disks, strict=True)]
                for kill in range(KILLS):
                    goal = (kill + 1) * EPOCHS * BATCHES * len(disks) // (KILLS + 1)
                    while sum(len(disk.acknowledged) for disk in disks) < goal:
                        await asyncio.sleep(0.005)
                    await asyncio.sleep(random.random() / 50)
                    await server.kill()
                    await server.start()
                await asyncio.gather(*shipping)
            await _until_decided(client, disks)
            assert await server.stop() == 0
        finally:
            for agent in agents:
                await agent.close()
        for disk in disks:
            assert len(disk.acknowledged) == EPOCHS * BATCHES
            await check_history(client, disk)
        await _check_only_known_blobs(client, disks)
        log = server.log_path.read_text()
        assert server.starts == KILLS + 1
        assert not re.search(r"Traceback|is damaged", log), log[-3000:]


async def _until_decided(client: HttpBlobClient, disks: list[ShippedDisk]) -> None:
    async with asyncio.timeout(60):
        for disk in disks:
            while True:
                found = [
                    item
                    async for item in client.list_blobs(REPLICATION_CONTAINER, disk.disk, include_metadata=True)
                    if item.name == manifest_name(disk.epoch_key(EPOCHS))
                ]
                if found:
                    assert found[0].properties.metadata[MANIFEST_HASH_METADATA] == disk.previous_hash.hex()
                    break
                await asyncio.sleep(0.05)


async def _check_only_known_blobs(client: HttpBlobClient, disks: list[ShippedDisk]) -> None:
    """Every blob is a segment that was acknowledged, or a manifest; each epoch has one."""
    for disk in disks:
        names = [item.name async for item in client.list_blobs(REPLICATION_CONTAINER, disk.disk)]
        parsed = [parse_epoch_blob_name(name) for name in names]
        assert {key for key in parsed if isinstance(key, BatchKey)} == set(disk.acknowledged)
        assert sorted(key.epoch for key in parsed if isinstance(key, EpochKey)) == list(range(1, EPOCHS + 1))
