"""Reading: threads with read-only connections to the catalog, and the bytes of a blob as a stream of pieces.

Called by ``BlobStore``. A ``BlobReading`` shows one state of a blob: if a live blob is changed while a long stream of it is under way, the
stream ends with ``StateChanged`` instead of mixing two states. Snapshots never change.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from azure_sink.blob_store import block_blobs, page_table
from azure_sink.blob_store.arenas import ArenaSet
from azure_sink.blob_store.blob_rows import COLUMNS, record_of
from azure_sink.blob_store.freed_space import FreedSpace
from azure_sink.blob_store.schema import open_for_reading
from azure_sink.blob_store.values import BlobRecord
from azure_sink.core.page_map import Piece
from replication.blob_client.api import BlobType
from replication.errors import Conflict
from replication.threads import finished_in

READER_THREADS: Final = 2
PIECES_AT_ONCE: Final = 2048
PIECE_BYTES: Final = 256 * 1024
_ZEROS: Final = bytes(PIECE_BYTES)

ResultT = TypeVar("ResultT")


class StateChanged(Conflict):
    """The blob was changed or deleted while it was being read; what was delivered so far belongs to the old state."""


class Readers:
    """The pool of reading connections, one a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._executor = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="blob-reader")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = open_for_reading(self._directory)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _run(self, read: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        connection = self._connection()
        connection.execute("BEGIN")
        try:
            return read(connection)
        finally:
            connection.execute("COMMIT")

    async def run(self, read: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        """Run ``read`` in a reader's thread, in one read transaction: everything it sees is one state."""
        return await asyncio.wrap_future(self.submit(read))

    def submit(self, read: Callable[[sqlite3.Connection], ResultT]) -> Future[ResultT]:
        """The same, as a future of threads."""
        return self._executor.submit(self._run, read)

    def close(self) -> None:
        self._executor.shutdown()
        for connection in self._connections:
            connection.close()


def plan(
    connection: sqlite3.Connection, record: BlobRecord, start: int, end: int, limit: int = PIECES_AT_ONCE
) -> tuple[list[Piece], int]:
    """Where the bytes of [start, end) are: (pieces, how far they are complete)."""
    if record.blob_type is BlobType.PAGE:
        return page_table.pieces(connection, record.content, record.version, start, end, limit)
    return block_blobs.pieces(connection, record.content, start, end, limit)


def is_unchanged(connection: sqlite3.Connection, record: BlobRecord) -> bool:
    """Whether the blob still is in the state that ``record`` shows (a snapshot of it in between does not matter)."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM blobs WHERE number = ?",  # noqa: S608 - a constant
        (record.number,),
    ).fetchone()
    return row is not None and record_of(row).etag == record.etag


class BlobReading:
    """One state of one blob, to be streamed."""

    def __init__(
        self, record: BlobRecord, readers: Readers, arenas: ArenaSet, freed_space: FreedSpace, executor: Executor
    ) -> None:
        self.record: Final = record
        self._readers = readers
        self._arenas = arenas
        self._freed_space = freed_space
        self._executor = executor

    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the bytes of [start, end) in order, in pieces of at most ``PIECE_BYTES``; unwritten pages as zeros.

        One piece is read ahead. Close the iterator if you leave it early.

        :raises StateChanged: the blob is no longer in the state of ``record``.
        """
        position = start
        while position < end:
            with self._freed_space.pin():
                pieces, reached = await self._readers.run(functools.partial(self._plan, start=position, end=end))
                async with contextlib.aclosing(self._deliver(pieces, position, reached)) as delivered:
                    async for piece in delivered:
                        yield piece
            position = reached

    async def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` with the bytes from ``start`` on. On raise or cancel its content is undefined, and no thread touches it.

        :raises StateChanged: the blob is no longer in the state of ``record``.
        """
        position, end = start, start + buffer.nbytes
        while position < end:
            with self._freed_space.pin():
                pieces, reached = await self._readers.run(functools.partial(self._plan, start=position, end=end))
                part = buffer[position - start : reached - start]
                await finished_in(self._executor, functools.partial(self._fill, pieces, position, part))
            position = reached

    def _fill(self, pieces: list[Piece], start: int, buffer: memoryview) -> None:
        position = 0
        for piece in pieces:
            at = piece.start - start
            _clear(buffer[position:at])
            self._arenas.read_into(piece.arena, piece.arena_offset, buffer[at : at + piece.length])
            position = at + piece.length
        _clear(buffer[position:])

    def _plan(self, connection: sqlite3.Connection, start: int, end: int) -> tuple[list[Piece], int]:
        if not is_unchanged(connection, self.record):
            raise StateChanged(f"cannot go on reading blob {self.record.name}: it has changed meanwhile")
        return plan(connection, self.record, start, end)

    async def _deliver(self, pieces: list[Piece], start: int, end: int) -> AsyncGenerator[bytes | memoryview, None]:
        loop = asyncio.get_running_loop()
        position = start
        ahead: asyncio.Future[bytes] | None = None
        try:
            for part in _parts(pieces):
                following = loop.run_in_executor(
                    self._executor, self._arenas.read, part.arena, part.arena_offset, part.length
                )
                previous, ahead = ahead, following
                if previous is not None:
                    yield await previous
                if part.start > position:
                    for zeros in _zeros(part.start - position):
                        yield zeros
                position = part.end
            if ahead is not None:
                previous, ahead = ahead, None
                yield await previous
        finally:
            if ahead is not None:
                ahead.cancel()
        for zeros in _zeros(end - position):
            yield zeros


def _parts(pieces: list[Piece]) -> list[Piece]:
    """Cut to ``PIECE_BYTES``; neighbours whose bytes are neighbours are joined first."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.arena == piece.arena
            and last.end == piece.start
            and last.arena_offset + last.length == piece.arena_offset
        ):
            joined[-1] = Piece(last.start, last.length + piece.length, last.arena, last.arena_offset)
        else:
            joined.append(piece)
    return [
        piece.part(start, start + PIECE_BYTES)
        for piece in joined
        for start in range(piece.start, piece.end, PIECE_BYTES)
    ]


def _clear(buffer: memoryview) -> None:
    for start in range(0, buffer.nbytes, PIECE_BYTES):
        part = buffer[start : start + PIECE_BYTES]
        part[:] = memoryview(_ZEROS)[: part.nbytes]


def _zeros(length: int) -> Iterator[bytes | memoryview]:
    """Zeros in pieces; a long run refers to the same memory again and again."""
    whole, rest = divmod(length, PIECE_BYTES)
    yield from itertools.repeat(_ZEROS, whole)
    if rest:
        yield memoryview(_ZEROS)[:rest]
