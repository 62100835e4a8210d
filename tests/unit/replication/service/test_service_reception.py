"""Large bodies straight into the caller's memory: byte for byte, whatever comes with them, and the connection goes on afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from replication.service.https import RunningServer
from replication.service.reception import DirectBody
from replication.tls_identity import Role
from tests.harness.raw_client import RawClient, serving_app
from tests.harness.tls import LabAuthority

BODY = random.Random(0).randbytes(700_001)
LONG_S = 20.0
GET = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"

Take = Callable[[DirectBody, int], Awaitable[str]]


def put(body: bytes, length: int | None = None) -> bytes:
    return b"PUT /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (length or len(body)) + body


@contextlib.asynccontextmanager
async def serving(take: Take, tls: ssl.SSLContext | None = None) -> AsyncIterator[RunningServer]:
    async def receive(request: web.Request) -> web.Response:
        assert request.content_length is not None
        with DirectBody(request, request.content_length) as body:
            return web.Response(text=await take(body, request.content_length))

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="next")

    app = web.Application()
    app.router.add_put("/body", receive)
    app.router.add_get("/next", answer)
    async with serving_app(app, tls) as server:
        yield server


def in_pieces(piece_bytes: int, *, slowly: bool = False) -> Take:
    """Takes the body in buffers of this size and says whether it is ``BODY``."""

    async def take(body: DirectBody, length: int) -> str:
        taken = bytearray()
        while len(taken) < length:
            buffer = bytearray(min(piece_bytes, length - len(taken)))
            await body.fill(memoryview(buffer), LONG_S)
            assert body.filled_bytes == len(buffer)
            taken += buffer
            for _ in range(5 if slowly else 0):  # the loop turns: what arrives now has nowhere to go
                await asyncio.sleep(0)
        return "whole" if taken == BODY else "damaged"

    return take


Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]


@pytest.fixture(params=["plain", "tls"])
def contexts(request: pytest.FixtureRequest, tmp_path: Path) -> Contexts:
    """The server's and the client's."""
    if request.param == "plain":
        return None, None
    identity = LabAuthority().issue(Role.CONFIG_SERVER, "11111111-1111-4111-8111-111111111111", tmp_path)
    return identity.server_context(require_client=True), identity.client_context(Role.CONFIG_SERVER)


@pytest.mark.parametrize("piece_bytes", [len(BODY), 262_144, 65_536, 10_007])
@pytest.mark.parametrize("slowly", [False, True])
async def test_a_body_arrives_whole_and_the_connection_goes_on(
    contexts: Contexts, piece_bytes: int, slowly: bool
) -> None:
    async with serving(in_pieces(piece_bytes, slowly=slowly), contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        for _ in range(2):
            client.writer.write(put(BODY))
            assert await client.answer() == b"whole"
        client.writer.write(put(BODY) + GET + put(BODY))  # all at once
        assert [await client.answer() for _ in range(3)] == [b"whole", b"next", b"whole"]


async def test_a_body_whose_head_comes_alone_and_which_then_trickles_arrives_whole(contexts: Contexts) -> None:
    async with serving(in_pieces(300_000), contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        client.writer.write(put(b"", len(BODY)))
        for at in range(0, len(BODY), 50_000):
            await client.writer.drain()
            await asyncio.sleep(0)
            client.writer.write(BODY[at : at + 50_000])
        assert await client.answer() == b"whole"


async def test_a_handler_that_leaves_early_lets_the_rest_go_by_and_the_connection_goes_on(contexts: Contexts) -> None:
    async def leave(body: DirectBody, _length: int) -> str:
        await body.fill(memoryview(bytearray(300_000)), LONG_S)
        return "enough"

    async with serving(leave, contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        client.writer.write(put(BODY) + GET)
        assert [await client.answer(), await client.answer()] == [b"enough", b"next"]


async def test_a_body_that_stands_still_is_given_up(contexts: Contexts) -> None:
    came = len(BODY) // 2

    async def wait(body: DirectBody, length: int) -> str:
        try:
            await body.fill(memoryview(bytearray(length)), 0.1)
        except TimeoutError:
            return f"{body.filled_bytes} came"
        return "whole"

    async with serving(wait, contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        client.writer.write(put(BODY[:came], len(BODY)))
        assert await client.answer() == b"%d came" % came
        client.writer.write(BODY[came:] + GET)  # too late, and harmless
        assert await client.answer() == b"next"


async def test_a_connection_that_ends_after_its_body_was_given_up_is_nobody_s_unexpected_error(
    contexts: Contexts,
) -> None:
    unexpected: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unexpected.append(context))

    async def wait(body: DirectBody, length: int) -> str:
        with contextlib.suppress(TimeoutError):
            await body.fill(memoryview(bytearray(length)), 0.1)
        return "given up"

    async with serving(wait, contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        client.writer.write(put(BODY[:300_000], len(BODY)))
        assert await client.answer() == b"given up"
        client.writer.transport.abort()
    gc.collect()
    assert unexpected == []


async def test_a_connection_that_is_lost_in_the_middle_of_a_body_is_an_error_of_the_connection(
    contexts: Contexts,
) -> None:
    begun, outcome = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def receive(body: DirectBody, length: int) -> str:
        begun.set()
        try:
            await body.fill(memoryview(bytearray(length)), LONG_S)
        except (ConnectionError, web.RequestPayloadError) as error:
            outcome.set_result(error)
            raise
        return "whole"

    async with serving(receive, contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        client.writer.write(put(BODY[:300_000], len(BODY)))
        await begun.wait()
        client.writer.transport.abort()
        async with asyncio.timeout(LONG_S):
            assert isinstance(await outcome, Exception)


async def test_nothing_is_written_to_a_buffer_after_its_caller_was_cancelled(contexts: Contexts) -> None:
    buffer, cancelled = bytearray(len(BODY)), asyncio.Event()

    async def receive(body: DirectBody, _length: int) -> str:
        filling = asyncio.create_task(body.fill(memoryview(buffer), LONG_S))
        while not body.filled_bytes:
            await asyncio.sleep(0)
        filling.cancel()
        await asyncio.wait([filling])
        buffer[:] = bytes(len(buffer))
        cancelled.set()
        return "cancelled"

    async with serving(receive, contexts[0]) as server:
        client = await RawClient.of(server, contexts[1])
        client.writer.write(put(BODY[:300_000], len(BODY)))
        await cancelled.wait()
        client.writer.write(BODY[300_000:] + GET)
        assert [await client.answer(), await client.answer()] == [b"cancelled", b"next"]
        assert not any(buffer)
