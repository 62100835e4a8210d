"""The event loop of every daemon: uvloop, but for who closes a socket that was handed over to it. Called by ``runtime.py``.

A socket given to ``create_connection(sock=...)`` (which is how aiohttp connects) or ``connect_accepted_socket`` has two owners in uvloop:
libuv, which closes the descriptor, and the socket object, which is told so only where uvloop has tied it to the transport by then. Seen in
an agent whose peers were killed (uvloop 0.23.0): a socket object, collected long after, closed its number once more. By then the number can
be a journal's or a spool file's, whose owner goes on to write into whatever comes next. Here the object lets go of the descriptor as soon
as libuv has it, so that nobody else can ever close it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvloop


class Loop(uvloop.Loop):
    """uvloop's loop; a socket that was handed over has one owner, libuv."""

    async def create_connection(self, *arguments: Any, sock: socket.socket | None = None, **options: Any) -> Any:
        """As asyncio's. On return, and on every error but wrong arguments, ``sock`` is detached."""
        if sock is None:
            return await super().create_connection(*arguments, **options)
        with _handed_over(sock):
            return await super().create_connection(*arguments, sock=sock, **options)

    async def connect_accepted_socket(self, protocol_factory: Any, sock: socket.socket, **options: Any) -> Any:
        """As asyncio's. On return, and on every error but wrong arguments, ``sock`` is detached."""
        with _handed_over(sock):
            return await super().connect_accepted_socket(protocol_factory, sock, **options)


@contextlib.contextmanager
def _handed_over(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Wrong arguments are refused before libuv gets the descriptor. An SSL error may be a ValueError, too.
        if isinstance(error, OSError) or not isinstance(error, ValueError | TypeError):
            sock.detach()
        raise
    sock.detach()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For ``asyncio.Runner(loop_factory=...)``."""
    return Loop()
