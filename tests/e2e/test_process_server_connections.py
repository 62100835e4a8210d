"""Connections of agents, byte by byte: leave to send a body comes with its buffer, and what is left unread never becomes a request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
from aiohttp import web

from mobility_agent.shipping.process_server_client import ProcessServerClient
from process_server.config import IntakeSettings
from replication.batch_frame import MAX_BATCH_DATA_BYTES
from replication.data_plane import BatchAcknowledgement, Hello, batch_path, hello_path, manifest_path
from replication.errors import Overloaded
from replication.identifiers import MachineId
from replication.service.https import ListenAddress, start_server
from replication.service.problem import problem_response
from replication.tls_identity import Role
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabSite, ShippedDisk, lab_settings, running_site
from tests.harness.tls import LabAuthority

RANDOM = Random(23)
STILL_S = 0.2
"""How long a body may stand still at ``impatient``."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LabSite]:
    async with running_site(tmp_path) as running:
        yield running


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[LabSite]:
    settings = replace(lab_settings(tmp_path / "impatient"), intake=IntakeSettings(body_timeout_s=STILL_S))
    async with running_site(tmp_path, settings=settings) as running:
        yield running


def new_disk(site: LabSite) -> ShippedDisk:
    disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
    site.config.grants[disk.key] = disk.grant
    return disk


@dataclass
class Line:
    """One TLS connection, spoken to in bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def put(self, path: str, length: int, body: bytes = b"", *, expect: str | None = None) -> None:
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        head += "" if expect is None else f"Expect: {expect}\r\n"
        await self.send(head.encode() + b"\r\n" + body)

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def answer(self) -> tuple[int, str]:
        """Status and headers of the next answer, interim ones included; its body is read and dropped."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split()[1])
            length = next((int(line[15:]) for line in head.splitlines() if line.startswith("content-length:")), 0)
            await self.reader.readexactly(length)
        return status, head


@contextlib.asynccontextmanager
async def line_to(site: LabSite, machine: MachineId) -> AsyncIterator[Line]:
    tls = site.agent_identity(machine).client_context(Role.PROCESS_SERVER)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.running.server.port, ssl=tls)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


def content_of(disk: ShippedDisk, batch: int = 0) -> bytes:
    frame = disk.frame(1, batch)
    return b"".join((frame.head, *frame.data))


async def test_a_body_is_asked_for_once_there_is_a_buffer_and_the_connection_goes_on(site: LabSite) -> None:
    disk = new_disk(site)
    async with line_to(site, disk.machine) as line:
        for batch in range(2):
            content = content_of(disk, batch)
            await line.put(batch_path(disk.batch_key(1, batch)), len(content), expect="100-Continue")
            assert (await line.answer())[0] == 100
            await line.send(content)
            status, head = await line.answer()
            assert status == 201
            assert "connection: close" not in head


async def test_a_refused_body_is_never_asked_for_and_the_connection_is_closed(site: LabSite) -> None:
    disk, foreign = new_disk(site), new_disk(site)
    paths = {
        batch_path(foreign.batch_key(1, 0)): 403,
        batch_path(disk.batch_key(1, 0)): 400,
        manifest_path(foreign.epoch_key(1)): 403,
    }
    for path, expected in paths.items():
        async with line_to(site, disk.machine) as line:
            await line.put(path, 9 * 2**20 if expected == 400 else 200, expect="100-continue")
            status, head = await line.answer()
            assert status == expected
            assert "connection: close" in head


async def test_without_a_buffer_no_leave_is_given(site: LabSite) -> None:
    disk = new_disk(site)
    content = content_of(disk)
    async with contextlib.AsyncExitStack() as lines:
        for batch in range(16):  # every buffer waits for a body
            holder = await lines.enter_async_context(line_to(site, disk.machine))
            await holder.put(batch_path(disk.batch_key(1, batch)), len(content), expect="100-continue")
            assert (await holder.answer())[0] == 100
        late = await lines.enter_async_context(line_to(site, disk.machine))
        await late.put(batch_path(disk.batch_key(1, 16)), len(content), expect="100-continue")
        status, head = await late.answer()
        assert status == 503
        assert "retry-after: 1" in head
        assert "connection: close" in head
    await disk.ship(site.agent(disk.machine), 1, 4)


async def test_a_request_in_the_place_of_a_refused_body_is_not_answered(site: LabSite) -> None:
    disk, foreign = new_disk(site), new_disk(site)
    smuggled = f"GET {hello_path()} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with line_to(site, disk.machine) as line:
        await line.put(batch_path(foreign.batch_key(1, 0)), len(smuggled) + 100, expect="100-continue")
        assert (await line.answer())[0] == 403
        await line.send(smuggled + bytes(100) + smuggled)
        async with asyncio.timeout(20):
            assert await line.reader.read() == b""


async def test_an_unread_body_of_a_client_that_asks_nothing_is_read_away(site: LabSite) -> None:
    disk, foreign = new_disk(site), new_disk(site)
    content = content_of(disk)
    async with line_to(site, disk.machine) as line:
        await line.put(batch_path(foreign.batch_key(1, 0)), len(content), content)
        assert (await line.answer())[0] == 403
        await line.put(batch_path(disk.batch_key(1, 0)), len(content), content)
        assert (await line.answer())[0] == 201


async def test_any_other_expectation_is_refused(site: LabSite) -> None:
    disk = new_disk(site)
    async with line_to(site, disk.machine) as line:
        await line.put(batch_path(disk.batch_key(1, 0)), 1000, expect="200-ok")
        assert (await line.answer())[0] == 417


async def test_a_body_that_stands_still_gives_its_buffer_back(impatient: LabSite) -> None:
    disk = new_disk(impatient)
    async with line_to(impatient, disk.machine) as line:
        content = content_of(disk)
        await line.put(batch_path(disk.batch_key(1, 0)), len(content), content[:5000])
        assert (await line.answer())[0] == 502
    await disk.ship(impatient.agent(disk.machine), 1, 8)


async def test_a_slow_body_is_slow_and_not_broken(impatient: LabSite) -> None:
    disk = new_disk(impatient)
    async with line_to(impatient, disk.machine) as line:
        content = content_of(disk)
        await line.put(batch_path(disk.batch_key(1, 0)), len(content))
        begun_s, step = asyncio.get_running_loop().time(), len(content) // 8 + 1
        for at in range(0, len(content), step):
            await line.send(content[at : at + step])
            await asyncio.sleep(STILL_S / 4)  # the pace of the line
        assert (await line.answer())[0] == 201
        assert asyncio.get_running_loop().time() - begun_s > STILL_S


async def test_an_agent_that_was_put_off_sends_no_body_in_vain(site: LabSite) -> None:
    disk = new_disk(site)
    content = content_of(disk)
    client = ProcessServerClient(
        site.url, site.agent_identity(disk.machine).client_context(Role.PROCESS_SERVER), connections=2, timeout_s=20
    )
    try:
        async with contextlib.AsyncExitStack() as lines:
            for batch in range(1, 17):  # every buffer waits for a body
                holder = await lines.enter_async_context(line_to(site, disk.machine))
                await holder.put(batch_path(disk.batch_key(1, batch)), len(content), expect="100-continue")
                assert (await holder.answer())[0] == 100
            for _ in range(2):  # the second one is asked for leave, and does not get it
                with pytest.raises(Overloaded):
                    await client.put_batch(disk.frame(1, 0))
        for batch in range(4):
            await client.put_batch(disk.frame(1, batch))
    finally:
        await client.close()
    assert site.metric("batches_total", outcome="accepted") == 4


async def test_the_agent_asks_for_leave_only_after_it_was_put_off(tmp_path: Path) -> None:
    authority, disk, asked = LabAuthority(), ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM))), list[str | None]()
    server_identity = authority.issue(Role.PROCESS_SERVER, new_uuid(RANDOM), tmp_path / "server")
    agent_identity = authority.issue(Role.AGENT, disk.machine, tmp_path / "agent")
    acknowledgement = BatchAcknowledgement(tag="0" * 32, segment_bytes=1)
    answers = [201, 503, 503, 201, 201]

    async def hello(_request: web.Request) -> web.Response:
        document = Hello(
            server="s", software_version="1", protocol_min=1, protocol_max=1,
            max_batch_data_bytes=MAX_BATCH_DATA_BYTES, max_batches_in_flight=4,
        )  # fmt: skip
        return web.Response(body=document.encode())

    async def put(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Expect"))
        status = answers[len(asked) - 1]
        if status == 503:
            return problem_response(Overloaded("cannot accept more"))
        await request.read()
        return web.Response(status=status, body=acknowledgement.encode())

    app = web.Application()
    app.router.add_get(hello_path(), hello)
    app.router.add_put("/v1/{rest:.*}", put)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), server_identity.server_context(require_client=True))
    url = f"https://127.0.0.1:{server.port}"
    client = ProcessServerClient(url, agent_identity.client_context(Role.PROCESS_SERVER), connections=1, timeout_s=20)
    try:
        for status in answers:
            with contextlib.suppress(Overloaded) if status == 503 else contextlib.nullcontext():
                await client.put_batch(disk.frame(1, 0))
    finally:
        await client.close()
        await server.close()
    assert asked == [None, None, "100-continue", "100-continue", None]
