"""Mutations and reads of block blobs: whole puts, blocks, block lists. Called by ``BlobStore``.

A committed content never changes: every put makes a new one. Blocks are *chunks*, shared by reference count between the contents and the
uncommitted lists that show them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from azure_sink.blob_store import blob_rows
from azure_sink.blob_store.blobs import Address, Guard, checked_for_replacement
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import (
    MAX_COMMITTED_BLOCKS,
    BlobRecord,
    BlockEntry,
    ContentHeaders,
    StoredRange,
)
from azure_sink.core import lease as leases
from azure_sink.core.page_map import Piece
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import BlobType
from replication.blob_client.codes import StorageCode


@dataclass(frozen=True, slots=True)
class NewBlob:
    """What a put gives a blob besides its bytes."""

    metadata: dict[str, str]
    headers: ContentHeaders


@dataclass(frozen=True, slots=True)
class BlockChoice:
    """One line of a block list: which block, and in which of the two lists to look for it."""

    block_id: str
    look_in: Literal["committed", "uncommitted", "latest"]


@dataclass(frozen=True, slots=True)
class _Part:
    chunk: int
    length: int
    block_id: str


def put(transaction: Transaction, address: Address, new: NewBlob, body: StoredRange | None, guard: Guard) -> BlobRecord:
    """Put Blob: ``body`` is the whole content, None if empty."""
    container, old = checked_for_replacement(transaction, address, guard)
    parts = [] if body is None else [_Part(_new_chunk(transaction, body, references=0), body.length, "")]
    return _put_live(transaction, container, old, address, new, parts)


def _new_chunk(transaction: Transaction, body: StoredRange, *, references: int) -> int:
    cursor = transaction.connection.execute(
        "INSERT INTO chunks (arena, arena_offset, length, references_) VALUES (?, ?, ?, ?)",
        (body.arena, body.offset, body.length, references),
    )
    return cursor.lastrowid or 0


def _put_live(
    transaction: Transaction,
    container: int,
    old: BlobRecord | None,
    address: Address,
    new: NewBlob,
    parts: Sequence[_Part],
) -> BlobRecord:
    content = blob_rows.new_content(transaction, has_head=False, references=1)
    rows = []
    length = 0
    for part in parts:
        rows.append((content, length, part.chunk, part.length, part.block_id))
        length += part.length
    transaction.connection.executemany(
        "INSERT INTO parts (content, start, chunk, length, block_id) VALUES (?, ?, ?, ?, ?)", rows
    )
    transaction.connection.executemany(
        "UPDATE chunks SET references_ = references_ + 1 WHERE number = ?", [(part.chunk,) for part in parts]
    )
    record = BlobRecord(
        number=0,
        container=container,
        name=address.name,
        snapshot=None,
        blob_type=BlobType.BLOCK,
        content=content,
        version=0,
        length=length,
        etag="0x0",
        created_at=transaction.seconds,
        modified_at=transaction.seconds,
        metadata=new.metadata,
        headers=new.headers,
    )
    return blob_rows.put_live(transaction, container, old, record)


def put_block(
    transaction: Transaction, address: Address, block_id: str, body: StoredRange, lease_id: str | None
) -> None:
    """Keep ``body`` as an uncommitted block; an earlier one of the same id is replaced."""
    connection = transaction.connection
    container = blob_rows.find_container(connection, address.container).number
    live = blob_rows.find_blob(connection, container, address.name)
    if live is not None and live.blob_type is not BlobType.BLOCK:
        raise StorageFault(StorageCode.INVALID_BLOB_TYPE)
    leases.check_use(live.lease if live else None, transaction.now, lease_id, writes=True)
    key = (container, address.name)
    other = connection.execute(
        "SELECT length(block_id) FROM uncommitted WHERE container = ? AND name = ? LIMIT 1", key
    ).fetchone()
    if other is not None and other[0] != len(block_id):
        raise StorageFault(StorageCode.INVALID_BLOB_OR_BLOCK, "block ids of a blob have one length")
    replaced = connection.execute(
        "SELECT chunk FROM uncommitted WHERE container = ? AND name = ? AND block_id = ?", (*key, block_id)
    ).fetchall()
    connection.execute(
        "INSERT OR REPLACE INTO uncommitted (container, name, block_id, position, chunk, length, written_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *key,
            block_id,
            transaction.next_tick(),
            _new_chunk(transaction, body, references=1),
            body.length,
            transaction.seconds,
        ),
    )
    blob_rows.release_chunks(transaction, [chunk for (chunk,) in replaced])


def put_block_list(
    transaction: Transaction, address: Address, new: NewBlob, choices: Sequence[BlockChoice], guard: Guard
) -> BlobRecord:
    """Make the blob of the chosen blocks, in order; all other uncommitted blocks are discarded."""
    if len(choices) > MAX_COMMITTED_BLOCKS:
        raise StorageFault(StorageCode.BLOCK_LIST_TOO_LONG)
    container, old = checked_for_replacement(transaction, address, guard)
    if old is not None and old.blob_type is not BlobType.BLOCK:
        raise StorageFault(StorageCode.INVALID_BLOB_TYPE)
    committed = {} if old is None else _committed_parts(transaction.connection, old.content)
    uncommitted = {
        row[0]: _Part(row[1], row[2], row[0])
        for row in transaction.connection.execute(
            "SELECT block_id, chunk, length FROM uncommitted WHERE container = ? AND name = ?",
            (container, address.name),
        )
    }
    parts = []
    for choice in choices:
        found = None if choice.look_in == "committed" else uncommitted.get(choice.block_id)
        if found is None and choice.look_in != "uncommitted":
            found = committed.get(choice.block_id)
        if found is None:
            raise StorageFault(StorageCode.INVALID_BLOCK_LIST)
        parts.append(found)
    return _put_live(transaction, container, old, address, new, parts)


def _committed_parts(connection: sqlite3.Connection, content: int) -> dict[str, _Part]:
    rows = connection.execute(
        "SELECT block_id, chunk, length FROM parts WHERE content = ? AND block_id != '' ORDER BY start", (content,)
    )
    return {row[0]: _Part(row[1], row[2], row[0]) for row in rows}


@dataclass(frozen=True, slots=True)
class BlockLists:
    """``record`` is None while only uncommitted blocks exist."""

    record: BlobRecord | None
    committed: list[BlockEntry]
    uncommitted: list[BlockEntry]


def block_lists(connection: sqlite3.Connection, address: Address) -> BlockLists:
    """Both lists of a block blob (of a snapshot: the committed one).

    :raises StorageFault: ContainerNotFound, BlobNotFound (neither blob nor blocks), InvalidBlobType.
    """
    container = blob_rows.find_container(connection, address.container).number
    record = blob_rows.find_blob(connection, container, address.name, address.snapshot)
    if record is not None and record.blob_type is not BlobType.BLOCK:
        raise StorageFault(StorageCode.INVALID_BLOB_TYPE)
    waiting = (
        []
        if address.snapshot is not None
        else connection.execute(
            "SELECT block_id, length FROM uncommitted WHERE container = ? AND name = ? ORDER BY position",
            (container, address.name),
        ).fetchall()
    )
    if record is None and not waiting:
        raise StorageFault(StorageCode.BLOB_NOT_FOUND)
    committed = (
        []
        if record is None
        else connection.execute(
            "SELECT block_id, length FROM parts WHERE content = ? AND block_id != '' ORDER BY start",
            (record.content,),
        ).fetchall()
    )
    return BlockLists(record, [BlockEntry(*row) for row in committed], [BlockEntry(*row) for row in waiting])


def pieces(connection: sqlite3.Connection, content: int, start: int, end: int, limit: int) -> tuple[list[Piece], int]:
    """Where the bytes of [start, end) are: (pieces, how far they are complete)."""
    rows = connection.execute(
        "SELECT p.start, p.length, c.arena, c.arena_offset FROM parts p JOIN chunks c ON c.number = p.chunk "
        "WHERE p.content = ? AND p.start < ? AND p.start >= "
        "(SELECT coalesce(max(start), 0) FROM parts WHERE content = ? AND start <= ?) ORDER BY p.start LIMIT ?",
        (content, end, content, start, limit + 1),
    ).fetchall()
    reached = end
    if len(rows) > limit:
        reached = rows.pop()[0]
    return [Piece(*row).part(start, reached) for row in rows], reached


def drop_stale(transaction: Transaction, before: int, limit: int) -> bool:
    """Discard up to ``limit`` blocks that stayed uncommitted since ``before``; True if there may be more."""
    rows = transaction.connection.execute(
        "SELECT container, name, block_id, chunk FROM uncommitted WHERE written_at < ? LIMIT ?", (before, limit)
    ).fetchall()
    transaction.connection.executemany(
        "DELETE FROM uncommitted WHERE container = ? AND name = ? AND block_id = ?", [row[:3] for row in rows]
    )
    blob_rows.release_chunks(transaction, [row[3] for row in rows])
    return len(rows) == limit
