"""Short ways to work with a ``BlobStore`` in tests: whole bodies in, whole contents out, and where its arenas hold data.

Called by the unit and property tests of the blob store. Starts nothing by itself.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from azure_sink.blob_store.blobs import NO_GUARD, Address, Guard
from azure_sink.blob_store.block_blobs import NewBlob
from azure_sink.blob_store.schema import CATALOG_NAME
from azure_sink.blob_store.store import BlobStore
from azure_sink.blob_store.values import BlobRecord, ContentHeaders
from azure_sink.core.conditions import NO_SEQUENCE_CONDITIONS, SequenceConditions

BLOCK = 4096


class SettableClock:
    """A clock that only a test moves; seconds since the epoch."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def plain(metadata: dict[str, str] | None = None) -> NewBlob:
    return NewBlob(metadata or {}, ContentHeaders())


async def put_blob(store: BlobStore, address: Address, content: bytes, guard: Guard = NO_GUARD) -> BlobRecord:
    async with store.receive(len(content)) as body:
        await body.write(content)
        return await store.put_block_blob(address, plain(), body, guard)


async def put_block(store: BlobStore, address: Address, block_id: str, content: bytes) -> None:
    async with store.receive(len(content)) as body:
        await body.write(content)
        await store.put_block(address, block_id, body)


async def put_pages(
    store: BlobStore,
    address: Address,
    start: int,
    content: bytes,
    guard: Guard = NO_GUARD,
    numbers: SequenceConditions = NO_SEQUENCE_CONDITIONS,
) -> BlobRecord:
    async with store.receive(len(content)) as body:
        await body.write(content)
        return await store.put_pages(address, start, body, guard, numbers)


async def read(store: BlobStore, address: Address, start: int = 0, end: int | None = None) -> bytes:
    reading = await store.read_blob(address)
    stream = reading.stream(start, reading.record.length if end is None else end)
    return b"".join([bytes(piece) async for piece in stream])


def data_blocks(path: Path) -> Iterator[int]:
    """Numbers of the 4 KiB blocks of a file that occupy space."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        position = 0
        while position < size:
            try:
                begin = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data after this
                return
            position = os.lseek(descriptor, begin, os.SEEK_HOLE)
            yield from range(begin // BLOCK, -(-position // BLOCK))
    finally:
        os.close(descriptor)


def unreferenced_blocks(directory: Path) -> set[tuple[int, int]]:
    """(arena, block) of all blocks that occupy space and that no row refers to. Call it on a quiet store."""
    connection = sqlite3.connect(directory / CATALOG_NAME)
    used = set()
    for table in ("pages", "chunks"):
        for arena, offset, length in connection.execute(f"SELECT arena, arena_offset, length FROM {table}"):  # noqa: S608
            used |= {(arena, block) for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))}
    connection.close()
    occupied = {(int(path.name), block) for path in (directory / "arenas").iterdir() for block in data_blocks(path)}
    return occupied - used
