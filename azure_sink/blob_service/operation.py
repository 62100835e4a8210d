"""What a handler is given: the parsed request, the store, the limits; and how it takes in the body.

Made by ``app.py`` for each request; used by every module of handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from azure_sink.blob_service.request_parser import BlobRequest
from azure_sink.blob_store.body_writer import BATCH_BYTES, BodyWriter, md5
from azure_sink.blob_store.store import BlobStore
from azure_sink.blob_store.values import MIB
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode
from replication.errors import InvalidInput, SettingsError
from replication.service.reception import DirectBody

DEFAULT_MAX_PUT_BLOB_BYTES: Final = 256 * MIB
MAX_BLOCK_BYTES: Final = 100 * MIB
MAX_BLOCK_LIST_BYTES: Final = 8 * MIB
DEFAULT_STALL_TIMEOUT_S: Final = 60.0
DIRECT_FROM_BYTES: Final = BATCH_BYTES
"""Bodies from this length on do not pass through aiohttp."""


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """``stall_timeout_s``: how long a connection may neither send nor take a byte of a body before it is cut.

    ``compute_md5``: give each Put Blob the MD5 of its content even where the client sent none, as Azure does.
    """

    max_put_blob_bytes: int = DEFAULT_MAX_PUT_BLOB_BYTES
    stall_timeout_s: float = DEFAULT_STALL_TIMEOUT_S
    compute_md5: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_put_blob_bytes <= 5000 * MIB:
            raise SettingsError("cannot use max_put_blob_bytes", hint="1 byte to 5000 MiB")
        if self.stall_timeout_s <= 0:
            raise SettingsError("cannot use a stall_timeout_s that is not positive")


@dataclass(frozen=True, slots=True)
class Operation:
    """One request being served. ``received`` and ``sent`` count bytes of bodies for the metrics."""

    request: BlobRequest
    store: BlobStore
    limits: ServiceLimits
    http: web.Request
    received: Callable[[int], None]
    sent: Callable[[int], None]

    @contextlib.asynccontextmanager
    async def body(self, most: int, *, with_md5: bool = False) -> AsyncIterator[ReceivedBody]:
        """Take the request's body into the store, at most ``most`` bytes; Content-MD5 is verified if it is there.

        Inside the context all has been received and written; a mutation makes it durable by taking it over.

        :raises StorageFault: no length, too large, Md5Mismatch, OperationTimedOut.
        """
        length = self.request.body_length(most)
        claimed = self.request.md5("Content-MD5")
        digest = md5() if with_md5 or claimed is not None else None
        in_large_pieces = length >= DIRECT_FROM_BYTES
        async with self.store.receive(length, digest, direct=in_large_pieces) as writer:
            if in_large_pieces:
                await self._receive_directly(writer, length)
            else:
                async for piece in self._pieces():
                    await writer.write(piece)
                await writer.finish()
            if claimed is not None and writer.digest != claimed:
                raise StorageFault(StorageCode.MD5_MISMATCH)
            yield ReceivedBody(writer, length, writer.digest)

    async def _receive_directly(self, writer: BodyWriter, length: int) -> None:
        """On return all is written. Two buffers take turns: one fills while the other is written."""
        with DirectBody(self.http, length) as body, self.store.body_buffers.pair() as pair:
            size = pair[0].nbytes
            for turn, position in enumerate(range(0, length, size)):
                piece = pair[turn % 2][: length - position]
                try:
                    await body.fill(piece, self.limits.stall_timeout_s)
                except TimeoutError:
                    raise StorageFault(StorageCode.OPERATION_TIMED_OUT, "The body stalled.") from None
                self.received(piece.nbytes)
                await writer.write(piece)
            await writer.finish()

    async def document(self, most: int) -> bytes:
        """Take a small body (XML) into memory; Content-MD5 is verified if it is there."""
        length = self.request.body_length(most)
        content = bytearray()
        async for piece in self._pieces():
            content += piece
            if len(content) > length:
                raise InvalidInput("cannot use the body: it is longer than its declared length")
        claimed = self.request.md5("Content-MD5")
        if claimed is not None:
            digest = md5()
            digest.update(content)
            if digest.digest() != claimed:
                raise StorageFault(StorageCode.MD5_MISMATCH)
        return bytes(content)

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self.limits.stall_timeout_s):
                    piece = await self.http.content.readany()
            except TimeoutError:
                raise StorageFault(StorageCode.OPERATION_TIMED_OUT, "The body stalled.") from None
            if not piece:
                return
            self.received(len(piece))
            yield piece


@dataclass(frozen=True, slots=True)
class ReceivedBody:
    writer: BodyWriter
    length: int
    md5: bytes | None


Handler = Callable[[Operation], Awaitable[web.StreamResponse]]
