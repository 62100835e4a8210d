"""A TLS server that notes what it gets to hear: how many handshakes its clients completed, and every byte of their requests.

Called by tests of whom a client trusts. It drives TLS itself, so that a handshake counts only once the client's last message of it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from replication.tls_identity import TlsIdentity

_CHUNK_BYTES = 65536


@dataclass
class Impostor:
    """Answers each request of one read with ``answer`` and closes."""

    identity: TlsIdentity
    answer: bytes = b""
    port: int = 0
    handshakes: int = 0
    heard: bytearray = field(default_factory=bytearray)
    conversations: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def conversations_ended(self) -> None:
        """Until every client that ever connected has gone: nothing more will be heard of them."""
        async with asyncio.timeout(20):
            while self.conversations:
                await asyncio.wait(set(self.conversations))

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.conversations.add(task)
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await self._converse(reader, writer)
        finally:
            writer.close()
            self.conversations.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.identity.server_context(require_client=False).wrap_bio(incoming, outgoing, server_side=True)
        shaken, requested = False, False
        while not requested and (received := await reader.read(_CHUNK_BYTES)):
            incoming.write(received)
            with contextlib.suppress(ssl.SSLWantReadError):
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                    self.handshakes += 1
                while chunk := tls.read(_CHUNK_BYTES):
                    self.heard += chunk
                    requested = True
            if requested:
                tls.write(self.answer)
            writer.write(outgoing.read())
            await writer.drain()


@contextlib.asynccontextmanager
async def listening_impostor(identity: TlsIdentity, answer: bytes = b"") -> AsyncIterator[Impostor]:
    impostor = Impostor(identity, answer)
    server = await asyncio.start_server(impostor.talk, "127.0.0.1", 0)
    impostor.port = server.sockets[0].getsockname()[1]
    try:
        yield impostor
    finally:
        server.close()
        await impostor.conversations_ended()
