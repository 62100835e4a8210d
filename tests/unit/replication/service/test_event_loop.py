"""The daemons' event loop closes each descriptor once, also when the peer is gone at the moment of the connect."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from replication.service.event_loop import new_event_loop


def reset_connection() -> socket.socket:
    """A connected socket whose peer has reset the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
    ours.setblocking(False)
    return ours


async def connect(sock: socket.socket, tls: ssl.SSLContext | None) -> None:
    """To the end of the connection, however it ends."""
    lost = asyncio.get_running_loop().create_future()

    class Ends(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            if not lost.done():
                lost.set_result(exc)

    try:
        await asyncio.get_running_loop().create_connection(
            Ends, sock=sock, ssl=tls, server_hostname="peer" if tls else None
        )
    except OSError:
        return
    await asyncio.wait_for(lost, 20)


def in_loop(act: Callable[[], object]) -> None:
    async def run() -> None:
        result = act()
        if asyncio.iscoroutine(result):
            await result

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("tls", [None, ssl.create_default_context()], ids=["plain", "tls"])
def test_a_peer_that_is_gone_at_the_connect_costs_no_other_file(tmp_path: Path, tls: ssl.SSLContext | None) -> None:
    sock = reset_connection()
    number = sock.fileno()
    in_loop(lambda: connect(sock, tls))
    assert sock.fileno() == -1, "libuv is the only owner"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)  # and has closed it
    journal = os.open(tmp_path / "journal", os.O_CREAT | os.O_WRONLY)
    try:
        if journal != number:
            os.dup2(journal, number)
        sock.close()  # as the collector does at any later time
        assert os.write(number, b"entry") == len(b"entry"), "the descriptor was closed under its owner"
    finally:
        os.close(number)
        if journal != number:
            os.close(journal)


def test_a_socket_that_was_not_taken_over_stays_its_owners() -> None:
    sock = reset_connection()
    number = sock.fileno()

    async def refused() -> None:
        with pytest.raises(ValueError, match="server_hostname"):
            await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=sock, server_hostname="peer")

    in_loop(refused)
    assert sock.fileno() == number
    sock.close()


def test_an_accepted_socket_is_let_go_of_too() -> None:
    async def accept() -> None:
        closed = asyncio.get_running_loop().create_future()

        class Answers(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transport = cast("asyncio.Transport", transport)
                transport.write(b"welcome")
                transport.close()

            def connection_lost(self, exc: Exception | None) -> None:
                closed.set_result(exc)

        ours, theirs = socket.socketpair(socket.AF_UNIX)
        ours.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(Answers, ours)
        assert ours.fileno() == -1
        assert await asyncio.wait_for(closed, 20) is None
        with theirs:
            assert theirs.recv(100) == b"welcome"
            assert theirs.recv(100) == b""

    in_loop(accept)


def test_connections_work() -> None:
    async def talk() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            sock = socket.create_connection(address)
            for options in ({"sock": sock}, {"host": address[0], "port": address[1]}):
                reader, writer = await asyncio.open_connection(**options)
                assert sock.fileno() == -1, "handed over, so no longer the object's"
                writer.write(b"ping")
                assert await asyncio.wait_for(reader.readexactly(4), 20) == b"ping"
                writer.close()
                await writer.wait_closed()

    in_loop(talk)
