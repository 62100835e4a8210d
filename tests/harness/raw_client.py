"""A server that runs inside a test, and a client that writes the bytes of its requests itself.

Called by tests of the connections below the HTTP handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from replication.service.connections import ConnectionSettings
from replication.service.https import ListenAddress, RunningServer, start_server

ANSWER_S: Final = 20.0


@contextlib.asynccontextmanager
async def serving_app(
    app: web.Application, tls: ssl.SSLContext | None = None, settings: ConnectionSettings | None = None
) -> AsyncIterator[RunningServer]:
    """On a free loopback port; closed on leaving."""
    server = await start_server(app, ListenAddress("127.0.0.1", 0), tls, settings)
    try:
        yield server
    finally:
        await server.close()


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, server: RunningServer, tls: ssl.SSLContext | None = None) -> RawClient:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, ssl=tls))

    async def answer(self) -> bytes:
        """The body of the next answer."""
        async with asyncio.timeout(ANSWER_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return await self.reader.readexactly(length)

    async def get(self, request: bytes) -> bytes:
        self.writer.write(request)
        return await self.answer()

    async def ends(self) -> bool:
        """Whether the server ends the connection."""
        async with asyncio.timeout(ANSWER_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    @property
    def is_open(self) -> bool:
        return not self.reader.at_eof() and self.reader.exception() is None
