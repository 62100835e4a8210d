"""The uplink over real TLS: answers become values or errors of the one tree, lengths and times are bounded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from mobility_agent.shipping import process_server_client
from mobility_agent.shipping.process_server_client import ProcessServerClient
from replication.batch_frame import PROTOCOL_VERSION, BatchFrame, ZeroExtent, encode_batch
from replication.data_plane import Hello, ManifestSuperseded, SegmentsMissing
from replication.errors import (
    BlockferryError,
    KeyConflict,
    NotFound,
    Overloaded,
    PeerProtocolError,
    PeerUnavailable,
    Refused,
    Unsupported,
)
from replication.extents import Extent
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
)
from replication.service.problem import problem_response
from replication.tls_identity import Role
from tests.harness.tls import LabAuthority

DISK = DiskId("22222222-2222-4222-8222-222222222222")
GENERATION = GenerationKey(DISK, GenerationId(1))
EPOCH = EpochKey(DISK, GenerationId(1), EpochId(2))
HELLO = Hello(
    server="ps",
    software_version="1",
    protocol_min=PROTOCOL_VERSION,
    protocol_max=PROTOCOL_VERSION,
    max_batch_data_bytes=2**20,
    max_batches_in_flight=4,
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Peer:
    """A process server that says what a test lets it say. ``client`` talks to it over mutual TLS."""

    def __init__(self) -> None:
        self.hello = HELLO
        self.hellos = 0
        self.requests: list[str] = []
        self.answer: Answer = self._accept
        self.client: ProcessServerClient

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/hello":
            self.hellos += 1
            return web.Response(body=self.hello.encode())
        self.requests.append(f"{request.method} {request.path_qs}")
        return await self.answer(request)

    @staticmethod
    async def _accept(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response({"tag": "0" * 32, "segment_bytes": 7}, status=201)

    def says(self, status: int, body: bytes = b"") -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            await request.read()
            return web.Response(status=status, body=body)

        self.answer = answer

    def fails(self, error: BlockferryError) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            await request.read()
            return problem_response(error)

        self.answer = answer


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    authority = LabAuthority()
    server_tls = authority.issue(Role.PROCESS_SERVER, str(uuid.uuid4()), tmp_path / "server").server_context(
        require_client=True
    )
    client_tls = authority.issue(Role.AGENT, str(uuid.uuid4()), tmp_path / "client").client_context(Role.PROCESS_SERVER)
    made = Peer()
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{rest:.*}", made.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls).start()
    port = runner.addresses[0][1]
    made.client = ProcessServerClient(f"https://127.0.0.1:{port}/", client_tls, connections=2, timeout_s=0.5)
    yield made
    await made.client.close()
    await runner.cleanup()


def batch(length_bytes: int = 4096) -> BatchFrame:
    key = BatchKey(DISK, GenerationId(1), EpochId(2), AttemptNumber(3), BatchNumber(4))
    return encode_batch(key, (ZeroExtent(Extent(0, length_bytes)),))


async def test_a_batch_is_acknowledged_and_the_peer_is_greeted_once(peer: Peer) -> None:
    for _ in range(2):
        acknowledged = await peer.client.put_batch(batch())
        assert acknowledged.segment_bytes == 7
    assert peer.hellos == 1
    assert peer.requests[0] == f"PUT /v1/disks/{DISK}/generations/1/epochs/2/attempts/3/batches/4"


@pytest.mark.parametrize(
    "error",
    [
        KeyConflict("cannot accept: other content"),
        SegmentsMissing("cannot accept: missing"),
        ManifestSuperseded("cannot accept: decided"),
        Refused("cannot accept: not yours"),
        Overloaded("cannot accept: full", retry_after_s=3.0),
        PeerUnavailable("cannot reach the store"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_problem_becomes_the_same_error_here(peer: Peer, error: BlockferryError) -> None:
    peer.fails(error)
    with pytest.raises(type(error)) as raised:
        await peer.client.put_manifest(EPOCH, b"manifest")
    if isinstance(raised.value, Overloaded):
        assert raised.value.retry_after_s == 3.0


async def test_no_manifest_in_the_store_is_none_and_any_other_failure_is_not(peer: Peer) -> None:
    peer.fails(NotFound("cannot find it"))
    assert await peer.client.stored_manifest(EPOCH) is None
    peer.fails(PeerUnavailable("cannot reach the store"))
    with pytest.raises(PeerUnavailable):
        await peer.client.stored_manifest(EPOCH)
    peer.says(200, b"manifest")
    assert await peer.client.stored_manifest(EPOCH) == b"manifest"


async def test_no_receipt_within_the_wait_is_none(peer: Peer) -> None:
    peer.says(204)
    assert await peer.client.receipt(GENERATION, EpochId(5), 0.0) is None
    assert "after_epoch=5" in peer.requests[0]
    peer.says(200, b"receipt")
    assert await peer.client.receipt(GENERATION, EpochId(5), 0.0) == b"receipt"


async def test_an_answer_that_is_too_long_is_not_read_on(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_server_client, "_MAX_ANSWER_BYTES", 1000)
    peer.says(200, bytes(2**21))
    with pytest.raises(PeerProtocolError, match="too long"):
        await peer.client.receipt(GENERATION, EpochId(0), 0.0)


async def test_an_answer_that_makes_no_sense_is_a_protocol_error(peer: Peer) -> None:
    peer.says(201, b"thank you")
    with pytest.raises(PeerProtocolError):
        await peer.client.put_batch(batch())


async def test_a_peer_of_another_protocol_is_refused(peer: Peer) -> None:
    newer = PROTOCOL_VERSION + 1
    peer.hello = HELLO.model_copy(update={"protocol_min": newer, "protocol_max": newer})
    with pytest.raises(PeerProtocolError, match="speaks protocol"):
        await peer.client.put_batch(batch())
    assert peer.requests == []


async def test_a_batch_that_the_peer_cannot_take_is_not_sent(peer: Peer) -> None:
    peer.hello = HELLO.model_copy(update={"max_batch_data_bytes": -1})
    with pytest.raises(Unsupported) as raised:
        await peer.client.put_batch(batch())
    assert raised.value.hint is not None
    assert "batch_bytes" in raised.value.hint
    assert peer.requests == []


async def test_a_peer_that_stands_still_is_unavailable(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_server_client, "_CONNECT_TIMEOUT_S", 0.1)
    waiting = asyncio.Event()

    async def answer(_: web.Request) -> web.StreamResponse:
        await waiting.wait()
        return web.Response()

    peer.answer = answer
    with pytest.raises(PeerUnavailable, match="no progress"):
        await peer.client.put_manifest(EPOCH, b"manifest")
    waiting.set()


async def test_a_connection_that_breaks_or_is_refused_is_unavailable(peer: Peer) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    peer.answer = answer
    with pytest.raises(PeerUnavailable):
        await peer.client.put_manifest(EPOCH, b"manifest")


async def test_nothing_is_sent_in_the_clear() -> None:
    client = ProcessServerClient("http://127.0.0.1:1", None, connections=1, timeout_s=1)  # type: ignore[arg-type]  # not used
    with pytest.raises(Refused, match="not an https address"):
        await client.hello()
    await client.close()


async def test_an_authority_that_is_not_ours_is_not_talked_to(peer: Peer, tmp_path: Path) -> None:
    stranger = LabAuthority("another")
    tls = stranger.issue(Role.AGENT, str(uuid.uuid4()), tmp_path / "stranger").client_context(Role.PROCESS_SERVER)
    client = ProcessServerClient(peer.client.url, tls, connections=1, timeout_s=5)
    with pytest.raises(PeerUnavailable):
        await client.hello()
    await client.close()
    assert peer.hellos == 0
