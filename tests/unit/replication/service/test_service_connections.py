"""Connections within a bound: unidentified and idle ones make room, requests under way stay, dawdlers end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from replication.errors import SettingsError
from replication.service.connection_figures import ConnectionFigures
from replication.service.connections import (
    MIN_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    ConnectionSettings,
    note_identified,
    note_unidentified,
)
from replication.service.https import RunningServer
from replication.tls_identity import Role
from tests.harness.raw_client import RawClient, serving_app
from tests.harness.tls import LabAuthority

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_AS_SOMEBODY = b"GET / HTTP/1.1\r\nHost: x\r\nX-Who: me\r\n\r\n"
DOUBTED = b"GET / HTTP/1.1\r\nHost: x\r\nX-Who: revoked\r\n\r\n"
BODY_HEAD = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(
    settings: ConnectionSettings, tls: ssl.SSLContext | None = None, release: asyncio.Event | None = None
) -> AsyncIterator[RunningServer]:
    async def answer(request: web.Request) -> web.Response:
        who = request.headers.get("X-Who")
        if who == "me":
            note_identified(request)
        elif who == "revoked":
            note_unidentified(request)
        return web.Response(text="here")

    async def body(request: web.Request) -> web.Response:
        if "X-Who" in request.headers:
            note_identified(request)
        content = await request.text()
        if release is not None:
            await release.wait()
        return web.Response(text=content)

    async def wait(_request: web.Request) -> web.Response:
        assert release is not None
        await release.wait()
        return web.Response(text="here at last")

    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/wait", wait)
    app.router.add_post("/body", body)
    async with serving_app(app, tls, settings) as server:
        yield server


async def test_beyond_the_bound_the_longest_idle_connection_makes_room() -> None:
    async with serving(ConnectionSettings(max_connections=MIN_CONNECTIONS)) as server:
        clients = [await RawClient.of(server) for _ in range(MIN_CONNECTIONS)]
        for client in [*clients, clients[0]]:  # so that the second one has been idle longest
            assert await client.get(GET_AS_SOMEBODY) == b"here"
        late = await RawClient.of(server)
        assert await late.get(GET) == b"here"
        assert await clients[1].ends()
        assert await clients[0].get(GET) == b"here"
        assert server.listener.open_connections == MIN_CONNECTIONS
        for client in [*clients, late]:
            client.writer.close()


async def test_requests_under_way_are_never_cut_and_new_clients_wait_for_the_first_to_end() -> None:
    release = asyncio.Event()
    async with serving(ConnectionSettings(max_connections=MIN_CONNECTIONS), release=release) as server:
        clients = [await RawClient.of(server) for _ in range(MIN_CONNECTIONS)]
        asked = [asyncio.create_task(client.get(GET.replace(b"/", b"/wait", 1))) for client in clients]
        while server.listener.places.busy < MIN_CONNECTIONS:
            await asyncio.sleep(0)
        late = await RawClient.of(server)  # in the kernel's queue
        waiting = asyncio.create_task(late.get(GET))
        await asyncio.sleep(0)
        assert not waiting.done()
        release.set()
        assert set(await asyncio.gather(*asked)) == {b"here at last"}
        assert await waiting == b"here"
        for client in [*clients, late]:
            client.writer.close()


async def test_a_body_that_does_not_become_whole_of_nobody_makes_room_and_idle_identified_connections_stay() -> None:
    async with serving(ConnectionSettings(max_connections=MIN_CONNECTIONS)) as server:
        known = [await RawClient.of(server) for _ in range(MIN_CONNECTIONS // 2)]
        for client in known:
            assert await client.get(GET_AS_SOMEBODY) == b"here"
        slow = [await RawClient.of(server) for _ in range(MIN_CONNECTIONS // 2)]
        for client in slow:
            client.writer.write(BODY_HEAD + b"abc")
        late = await RawClient.of(server)
        assert await late.get(GET_AS_SOMEBODY) == b"here"
        assert await slow[0].ends()
        for client in known:
            assert await client.get(GET) == b"here"
        slow[1].writer.write(b"d")
        assert await slow[1].answer() == b"abcd"
        for client in [*known, *slow, late]:
            client.writer.close()


async def test_a_slow_body_of_somebody_and_a_whole_one_of_nobody_are_not_cut_for_a_newcomer() -> None:
    release = asyncio.Event()
    async with serving(ConnectionSettings(max_connections=MIN_CONNECTIONS), release=release) as server:
        clients = [await RawClient.of(server) for _ in range(MIN_CONNECTIONS)]
        clients[0].writer.write(BODY_HEAD.replace(b"Host", b"X-Who: me\r\nHost") + b"abc")
        for client in clients[1:]:
            client.writer.write(BODY_HEAD + b"abcd")
        while server.listener.places.busy < MIN_CONNECTIONS:
            await asyncio.sleep(0)
        late = await RawClient.of(server)
        release.set()
        assert await late.get(GET) == b"here"
        clients[0].writer.write(b"d")
        assert {await client.answer() for client in clients} == {b"abcd"}
        for client in [*clients, late]:
            client.writer.close()


async def test_who_is_not_known_any_more_makes_room_before_who_has_been_idle_longer() -> None:
    async with serving(ConnectionSettings(max_connections=MIN_CONNECTIONS)) as server:
        clients = [await RawClient.of(server) for _ in range(MIN_CONNECTIONS)]
        for client in clients:
            assert await client.get(GET_AS_SOMEBODY) == b"here"
        assert await clients[-1].get(DOUBTED) == b"here"
        late = await RawClient.of(server)
        assert await late.get(GET_AS_SOMEBODY) == b"here"
        assert await clients[-1].ends()
        for client in clients[:-1]:
            assert await client.get(GET_AS_SOMEBODY) == b"here"
        for client in [*clients, late]:
            client.writer.close()


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 4000])
async def test_a_head_that_never_becomes_whole_ends_the_connection(sent: bytes) -> None:
    async with serving(ConnectionSettings(idle_timeout_s=0.1)) as server:
        fresh, used = await RawClient.of(server), await RawClient.of(server)
        assert await used.get(GET) == b"here"
        for client in (fresh, used):
            client.writer.write(sent)
            assert await client.ends()
            client.writer.close()


async def test_bytes_that_trickle_do_not_prolong_a_head() -> None:
    async with serving(ConnectionSettings(idle_timeout_s=0.2)) as server:
        client = await RawClient.of(server)
        begun_s = asyncio.get_running_loop().time()
        while client.is_open and asyncio.get_running_loop().time() - begun_s < 20:
            client.writer.write(b"G" if client.reader.exception() is None else b"")
            await asyncio.sleep(0.02)  # the pace of the client
        assert not client.is_open
        client.writer.close()


async def test_a_handshake_that_does_not_come_ends_the_connection_and_others_are_served(tmp_path: Path) -> None:
    authority = LabAuthority()
    identity = authority.issue(Role.CONFIG_SERVER, "11111111-1111-4111-8111-111111111111", tmp_path)
    settings = ConnectionSettings(max_connections=MIN_CONNECTIONS, handshake_timeout_s=0.2)
    async with serving(settings, identity.server_context(require_client=True)) as server:
        silent, garbling = await RawClient.of(server), await RawClient.of(server)
        garbling.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await garbling.reader.read()  # an alert, perhaps
        honest = await RawClient.of(server, identity.client_context(Role.CONFIG_SERVER))
        assert await honest.get(GET) == b"here"
        assert await silent.ends()
        assert await honest.get(GET) == b"here"
        for client in (silent, garbling, honest):
            client.writer.close()


async def test_connections_without_a_handshake_make_room_too(tmp_path: Path) -> None:
    identity = LabAuthority().issue(Role.CONFIG_SERVER, "11111111-1111-4111-8111-111111111111", tmp_path)
    async with serving(
        ConnectionSettings(max_connections=MIN_CONNECTIONS), identity.server_context(require_client=True)
    ) as server:
        silent = [await RawClient.of(server) for _ in range(2 * MIN_CONNECTIONS)]
        honest = await RawClient.of(server, identity.client_context(Role.CONFIG_SERVER))
        assert await honest.get(GET) == b"here"
        assert server.listener.open_connections <= MIN_CONNECTIONS
        assert await silent[0].ends()
        for client in [*silent, honest]:
            client.writer.close()


async def test_malformed_requests_are_counted_and_leave_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    malformed = [
        b"\0\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
    ]
    async with serving(ConnectionSettings()) as server:
        for sent in malformed:
            client = await RawClient.of(server)
            client.writer.write(sent)
            async with asyncio.timeout(20):
                assert b"HTTP/1.0 400 " in await client.reader.read()
            client.writer.close()
        registry = CollectorRegistry()
        registry.register(ConnectionFigures(server.listener))
        assert registry.get_sample_value("blockferry_malformed_requests_total") == len(malformed)
        assert registry.get_sample_value("blockferry_connections_cut_for_room_total") == 0
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_closing_cuts_handshakes_and_leaves_no_socket(tmp_path: Path) -> None:
    identity = LabAuthority().issue(Role.CONFIG_SERVER, "11111111-1111-4111-8111-111111111111", tmp_path)
    async with serving(ConnectionSettings(), identity.server_context(require_client=True)) as server:
        silent = await RawClient.of(server)
        while not server.listener.open_connections:
            await asyncio.sleep(0)
    assert await silent.ends()
    silent.writer.close()
    with socket.socket() as again, pytest.raises(ConnectionRefusedError):
        again.connect(("127.0.0.1", server.port))


def test_the_bound_leaves_file_descriptors_for_everything_else() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert ConnectionSettings(5000).allowed() == 1024 - RESERVED_DESCRIPTORS
        assert ConnectionSettings(100).allowed() == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "unusable", [{"max_connections": 15}, {"idle_timeout_s": 0.0}, {"handshake_timeout_s": -1.0}], ids=str
)
def test_what_cannot_be_used_is_refused(unusable: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="cannot use"):
        ConnectionSettings(**unusable)  # type: ignore[arg-type]  # values of either type
