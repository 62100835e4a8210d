"""The agent as a client of hostile servers: whatever a process server or configuration server answers, an error of the tree comes out.

Called by pytest. The servers hold good certificates: they were taken over, or are broken.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from mobility_agent.config_server_client import ConfigServerClient
from mobility_agent.shipping.process_server_client import ProcessServerClient
from replication.control_plane import AgentDesired, GenerationRequest
from replication.data_plane import Hello
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable, Retryable
from replication.identifiers import DiskId, EpochId, MachineId
from replication.sealed_segment import MAX_SEGMENT_BYTES
from replication.service.https import ListenAddress, RunningServer, start_server
from replication.tls_identity import Role
from tests.harness.epochs import new_uuid
from tests.harness.mutations import INTEGERS, MIB, bounded_memory, replaced_values
from tests.harness.process_site import ShippedDisk
from tests.harness.scripted_peers import DISK, observation
from tests.harness.tls import LabAuthority

RANDOM = Random(51)
HOSTILE: list[Any] = [*INTEGERS, None, True, "", "x" * 5000, "\0", [], {}]
HELLO = {
    "server": "s", "software_version": "1", "protocol_min": 1, "protocol_max": 1, "max_batch_data_bytes": 2**23,
    "max_batches_in_flight": 4,
}  # fmt: skip
GRANT = {
    "disk": DISK, "item": DISK, "generation": 1, "size_bytes": 2**30, "granularity_bytes": 65536, "base": None,
    "manifest_key": "0" * 64, "digest_key": "0" * 64, "writer_public_key": "none",
}  # fmt: skip
REQUEST = GenerationRequest(request=DISK, reason="r", size_bytes=2**30, granularity_bytes=65536)


class HostileServer:
    """Answers every request but a hello with ``status`` and ``body``, or as ``answer`` does."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"", dict[str, str]()
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._say
        self.asked: list[str] = []
        self.server: RunningServer
        self.agent: ProcessServerClient
        self.control: ConfigServerClient

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        await request.read()
        if request.path == "/v1/hello" and "hello" not in self.headers:
            return web.Response(body=json.dumps(HELLO).encode())
        return await self.answer(request)

    async def _say(self, _request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in self.headers.items() if name != "hello"}
        return web.Response(status=self.status, body=self.body, headers=headers)


@pytest.fixture
async def hostile(tmp_path: Path) -> AsyncIterator[HostileServer]:
    authority, made = LabAuthority(), HostileServer()
    server_identity = authority.issue(Role.PROCESS_SERVER, new_uuid(RANDOM), tmp_path / "server")
    tls = authority.issue(Role.AGENT, new_uuid(RANDOM), tmp_path / "agent").client_context(Role.PROCESS_SERVER)
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{rest:.*}", made.handle)
    made.server = await start_server(
        app, ListenAddress("127.0.0.1", 0), server_identity.server_context(require_client=True)
    )
    url = f"https://127.0.0.1:{made.server.port}"
    made.agent = ProcessServerClient(url, tls, connections=2, timeout_s=1.0)
    made.control = ConfigServerClient(url, tls)
    yield made
    await made.agent.close()
    await made.control.close()
    await made.server.close()


def calls(hostile: HostileServer) -> dict[str, Callable[[], Awaitable[object]]]:
    disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
    return {
        "batch": lambda: hostile.agent.put_batch(disk.frame(1, 0, size=4096)),
        "manifest": lambda: hostile.agent.put_manifest(disk.epoch_key(1), b"m"),
        "stored manifest": lambda: hostile.agent.stored_manifest(disk.epoch_key(1)),
        "receipt": lambda: hostile.agent.receipt(disk.key, EpochId(0), 0.0),
        "desired": lambda: hostile.control.desired(0, 0.0),
        "generation": lambda: hostile.control.new_generation(DiskId(DISK), REQUEST),
        "observation": lambda: hostile.control.post_observation(observation("web-1")),
    }


async def outcome(call: Callable[[], Awaitable[object]]) -> object:
    """What the call returned or the error of the tree that it raised; any other error fails the test."""
    try:
        async with asyncio.timeout(30):
            return await call()
    except BlockferryError as error:
        refusal = error
    assert len(str(refusal)) < 3000
    return refusal


async def test_hostile_values_in_every_answer_are_refused_or_sound(hostile: HostileServer) -> None:
    desired = AgentDesired(revision=1, item=None).model_dump() | {
        "item": {"item": DISK, "disks": [DISK], "goal": "replicate", "timing": {}, "process_server": None}
    }
    answers = {"batch": {"tag": "0" * 32, "segment_bytes": 5}, "desired": desired, "generation": GRANT}
    for name, usual in answers.items():
        call = calls(hostile)[name]
        for document in replaced_values(usual, HOSTILE):
            hostile.body = json.dumps(document).encode()
            found = await outcome(call)
            assert not isinstance(found, BlockferryError) or isinstance(found, PeerProtocolError), (document, found)


@pytest.mark.parametrize("segment_bytes", [0, -1, MAX_SEGMENT_BYTES + 1, 2**63])
async def test_an_acknowledgement_that_no_manifest_could_state_is_refused(
    hostile: HostileServer, segment_bytes: int
) -> None:
    hostile.body = json.dumps({"tag": "0" * 32, "segment_bytes": segment_bytes}).encode()
    assert isinstance(await outcome(calls(hostile)["batch"]), PeerProtocolError)


async def test_hostile_values_in_the_greeting_are_refused_or_sound(hostile: HostileServer) -> None:
    hostile.headers["hello"] = "hostile"
    for document in replaced_values(HELLO, HOSTILE):
        hostile.body = json.dumps(document).encode()
        found = await outcome(hostile.agent.hello)
        assert isinstance(found, PeerProtocolError | Hello), found


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"\xff", b"[" * 100_000, b"x" * MIB, b'{"type": 1, "detail": []}'], ids=range(7)
)
@pytest.mark.parametrize("status", [200, 201, 204, 302, 404, 409, 418, 500, 503, 599])
async def test_any_body_with_any_status_is_a_result_or_an_error_of_the_tree(
    hostile: HostileServer, status: int, body: bytes
) -> None:
    hostile.status, hostile.body = status, b"" if status == 204 else body
    hostile.headers = {"Location": "https://127.0.0.1:1/elsewhere"} if status == 302 else {"Retry-After": "1e999"}
    for name, call in calls(hostile).items():
        found = await outcome(call)
        assert status < 300 or isinstance(found, BlockferryError) or (name, status) == ("stored manifest", 404)
        if isinstance(found, Retryable) and found.retry_after_s is not None:
            assert found.retry_after_s <= 3600
    assert "/elsewhere" not in hostile.asked


async def test_answers_without_end_are_not_read_on_and_bombs_do_not_go_off(hostile: HostileServer) -> None:
    bomb = gzip.compress(bytes(256 * MIB))

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(MIB))

    async def packed(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    for answer in (endless, packed):
        hostile.answer = answer
        for name, call in calls(hostile).items():
            with bounded_memory(48 * MIB):
                found = await outcome(call)
            assert isinstance(found, PeerProtocolError | PeerUnavailable) or (name, answer) in (
                ("manifest", packed), ("stored manifest", packed), ("receipt", packed),
            ), (name, found)  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0\0\0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MIB,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
    ],
    ids=range(10),
)
async def test_garbage_instead_of_http_is_an_unavailable_peer(tmp_path: Path, said: bytes) -> None:
    authority = LabAuthority()
    identity = authority.issue(Role.PROCESS_SERVER, new_uuid(RANDOM), tmp_path / "server")
    tls = authority.issue(Role.AGENT, new_uuid(RANDOM), tmp_path / "agent").client_context(Role.PROCESS_SERVER)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(100)
            writer.write(said)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0, ssl=identity.server_context(require_client=True))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    agent, control = ProcessServerClient(url, tls, connections=1, timeout_s=1.0), ConfigServerClient(url, tls)
    try:
        with bounded_memory(32 * MIB):
            for call in (agent.hello, lambda: control.desired(0, 0.0)):
                found = await outcome(call)
                assert isinstance(found, PeerUnavailable | PeerProtocolError), found
    finally:
        await agent.close()
        await control.close()
        server.close()


async def test_an_answer_that_dawdles_is_given_up(hostile: HostileServer) -> None:
    ended = asyncio.Event()

    async def dawdle(_request: web.Request) -> web.StreamResponse:
        await ended.wait()
        return web.Response()

    hostile.answer = dawdle
    found = await outcome(calls(hostile)["batch"])
    ended.set()
    assert isinstance(found, PeerUnavailable)
    assert "no progress" in str(found)
