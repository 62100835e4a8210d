"""Receiving a body: pieces as they arrive from the network go to an arena, with one write in flight while the next pieces gather.

Called by the HTTP handlers through ``BlobStore.receive``. Memory is bounded: at most two batches of ``BATCH_BYTES`` a body (or what
``body_buffers`` keeps), and ``MAX_BODIES`` bodies at once. What is written here is not durable and nobody can see it until a mutation
takes it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Final, Protocol

from azure_sink.blob_store.arenas import ArenaSet
from azure_sink.blob_store.values import StoredRange
from replication.errors import InvalidInput

BATCH_BYTES: Final = 256 * 1024
MAX_BODIES: Final = 64

Piece = bytes | bytearray | memoryview


class Digest(Protocol):
    """What of ``hashlib`` is used."""

    def update(self, data: Piece, /) -> None: ...
    def digest(self) -> bytes: ...


def md5() -> Digest:
    """MD5 as a checksum of the transfer, which is all that Content-MD5 is."""
    return hashlib.md5(usedforsecurity=False)


class BodyWriter:
    """One body of a length that is known beforehand. The caller leaves pieces unchanged until ``finish`` returns; one of ``BATCH_BYTES``
    or more only until the next ``write`` does: it is written by then.
    """

    def __init__(
        self, arenas: ArenaSet, executor: Executor, length: int, digest: Digest | None, *, direct: bool = False
    ) -> None:
        """:param direct: every piece will lie aligned and, but for the last one, be whole blocks (``aligned_memory.lies_aligned``)."""
        self._arenas = arenas
        self._executor = executor
        self._length = length
        self._digest = digest
        self._direct = direct
        self._place: StoredRange | None = None
        self._batch: list[Piece] = []
        self._batch_bytes = 0
        self._taken_bytes = 0
        self._write: Future[StoredRange] | None = None
        self._is_handed_over = False

    async def write(self, piece: Piece) -> None:
        """Take the next piece; waits for the device when it is more than one batch behind.

        :raises StoreFull: no room for the body.
        :raises InvalidInput: the body is longer than said.
        """
        self._taken_bytes += len(piece)
        if self._taken_bytes > self._length:
            raise InvalidInput("cannot store the body: it is longer than its declared length")
        self._batch.append(piece)
        self._batch_bytes += len(piece)
        if self._batch_bytes >= BATCH_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._settle_write()
        batch, self._batch = self._batch, []
        position, self._batch_bytes = self._taken_bytes - self._batch_bytes, 0
        self._write = self._executor.submit(self._write_batch, batch, position)

    async def _settle_write(self) -> None:
        if self._write is not None:
            self._place = await asyncio.wrap_future(self._write)

    def _write_batch(self, batch: Sequence[Piece], position: int) -> StoredRange:
        place = self._place
        if place is None:
            place = self._arenas.allocate(self._length, direct=self._direct)
            self._place = place
        if self._digest is not None:
            for piece in batch:
                self._digest.update(piece)
        self._arenas.write(place, position, batch)
        return place

    async def finish(self) -> StoredRange | None:
        """All is written (not durable); None for an empty body.

        :raises InvalidInput: the body is shorter than said.
        """
        if self._taken_bytes != self._length:
            raise InvalidInput("cannot store the body: it is shorter than its declared length")
        if self._batch:
            await self._flush()
        await self._settle_write()
        return self._place

    @property
    def digest(self) -> bytes | None:
        """Of the whole body, after ``finish``."""
        return None if self._digest is None else self._digest.digest()

    def hand_over(self) -> tuple[StoredRange, ...]:
        """From here on the committer owns the range."""
        self._is_handed_over = True
        return () if self._place is None else (self._place,)

    def discard(self) -> None:
        """Give the range back unless it was handed over; a write that is still under way ends first. Never blocks."""
        if self._is_handed_over:
            return
        self._is_handed_over = True
        if self._write is None:
            return
        if not self._write.done():
            self._write.add_done_callback(lambda _done: self._give_back())  # in the thread that writes
            return
        with contextlib.suppress(RuntimeError):  # shut down: the next start finds the range
            self._executor.submit(self._give_back)

    def _give_back(self) -> None:
        if self._place is not None:
            self._arenas.abandon(self._place)
