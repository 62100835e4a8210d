"""Listening: addresses as operators write them, ports that are taken, and servers that end what they began."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from aiohttp import web

from replication.errors import SettingsError
from replication.service.https import ListenAddress, start_server


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9443", "127.0.0.1", 9443),
        ("0.0.0.0:443", "0.0.0.0", 443),  # noqa: S104 - parsed, not bound
        ("[::1]:443", "::1", 443),
        ("[::]:0", "::", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
    ],
)
def test_address_and_port_are_parsed(text: str, host: str, port: int) -> None:
    assert ListenAddress.parse(text) == ListenAddress(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":443",
        "443",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:https",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:²",
        "127.0.0.1:٤٤٣",
        "127.0.0.1:" + "9" * 5000,
        "localhost:443",
        "example.org:443",
        "256.0.0.1:443",
        "[::1:443",
        "::1:443",
        "[127.0.0.1]:443",
        " 127.0.0.1:443",
        "127.0.0.1:443\n",
        "http://127.0.0.1:443",
    ],
)
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(SettingsError, match="cannot listen on") as caught:
        ListenAddress.parse(text)
    assert caught.value.hint


async def _answer(_request: web.Request) -> web.Response:
    return web.Response(text="here")


def _app() -> web.Application:
    app = web.Application()
    app.router.add_get("/", _answer)
    return app


async def test_server_accepts_once_started_and_refuses_once_closed() -> None:
    server = await start_server(_app(), ListenAddress("127.0.0.1", 0), tls=None)
    assert server.port > 0
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.port}/"
        async with session.get(url) as response:
            assert await response.text() == "here"
        await server.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url)


async def test_port_of_another_server_is_refused_with_a_hint() -> None:
    """A leftover daemon must be noticed, never share the port in silence."""
    first = await start_server(_app(), ListenAddress("127.0.0.1", 0), tls=None)
    try:
        with pytest.raises(
            SettingsError, match=f"cannot listen on 127.0.0.1:{first.port}: Address already in use"
        ) as caught:
            await start_server(_app(), ListenAddress("127.0.0.1", first.port), tls=None)
        assert caught.value.hint == "another process listens there: choose another port or stop it"
    finally:
        await first.close()


async def test_port_that_is_shared_by_another_is_refused() -> None:
    with socket.socket() as leftover:
        leftover.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        leftover.bind(("127.0.0.1", 0))
        leftover.listen()
        with pytest.raises(SettingsError, match="Address already in use"):
            await start_server(_app(), ListenAddress("127.0.0.1", leftover.getsockname()[1]), tls=None)


async def test_address_of_another_machine_is_refused_with_a_hint() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1:0") as caught:
        await start_server(_app(), ListenAddress("192.0.2.1", 0), tls=None)
    assert caught.value.hint == "this machine does not have that address"


async def test_closing_lets_a_running_request_end() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        begun.set()
        await go_on.wait()
        return web.Response(text="whole")

    app = web.Application()
    app.router.add_get("/", slow)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), tls=None)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:

        async def ask() -> str:
            async with session.get(f"http://127.0.0.1:{server.port}/") as response:
                return await response.text()

        asked = tasks.create_task(ask())
        await begun.wait()
        closing = tasks.create_task(server.close())
        go_on.set()
        assert await asked == "whole"
        await closing
