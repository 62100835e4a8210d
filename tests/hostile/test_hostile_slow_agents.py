"""One agent whose bodies come a byte at a time, with the default settings: it has all buffers only while nobody else wants one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

from process_server.config import DEFAULT_BATCHES_IN_FLIGHT
from replication.batch_frame import BatchFrame
from replication.data_plane import batch_path
from replication.identifiers import MachineId
from replication.tls_identity import Role
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabSite, ShippedDisk, running_site

LARGE_BYTES = 8 * 2**20


@contextlib.asynccontextmanager
async def begun(site: LabSite, disk: ShippedDisk, frame: BatchFrame) -> AsyncIterator[asyncio.StreamReader]:
    """A request of which the head and a little of the body have been sent, and no more comes."""
    tls = site.agent_identity(disk.machine).client_context(Role.PROCESS_SERVER)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.running.server.port, ssl=tls)
    head = f"PUT {batch_path(frame.key)} HTTP/1.1\r\nHost: x\r\nContent-Length: {frame.frame_bytes}\r\n\r\n"
    writer.write(head.encode() + frame.head)
    try:
        await writer.drain()
        yield reader
    finally:
        writer.transport.abort()


async def test_one_agents_slow_bodies_do_not_shut_out_another(tmp_path: Path) -> None:
    chance = Random(3)
    async with running_site(tmp_path) as site, contextlib.AsyncExitStack() as stack:
        slow, other = (ShippedDisk(chance, MachineId(new_uuid(chance))) for _ in range(2))
        for disk in (slow, other):
            site.config.grants[disk.key] = disk.grant
        agent = site.agent(other.machine)
        other.acknowledged[other.batch_key(1, 0)] = await agent.put_batch(other.frame(1, 0))
        answers = [
            await stack.enter_async_context(begun(site, slow, slow.frame(1, number, size=LARGE_BYTES)))
            for number in range(DEFAULT_BATCHES_IN_FLIGHT)
        ]
        async with asyncio.timeout(30):
            for number in range(1, 4):
                await agent.put_batch(other.frame(1, number, size=LARGE_BYTES))
            told = [asyncio.create_task(reader.readline()) for reader in answers]
            done, waiting = await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().split()[1] for task in done] == [b"503"], "it may send that one again"
        assert len(waiting) == DEFAULT_BATCHES_IN_FLIGHT - 1, "the others' buffers were not needed"
        for task in waiting:
            task.cancel()
