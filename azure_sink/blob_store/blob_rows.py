"""Rows of containers, blobs and contents as values, and back. SQL only, no rules.

Called by every module of mutations and by the readers; ``connection`` may be the writing or a reading one.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import Any, Final

from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import (
    LIVE_SNAPSHOT,
    BlobRecord,
    ContainerRecord,
    ContentHeaders,
    CopyRecord,
    etag_text,
)
from azure_sink.core import lease as leases
from azure_sink.core.lease import Lease
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import BlobType
from replication.blob_client.codes import StorageCode

COLUMNS: Final = (
    "number, container, name, snapshot, blob_type, content, version, length, etag, created_at, modified_at, metadata, "
    "content_type, content_encoding, content_language, content_disposition, cache_control, md5, sequence_number, "
    "lease_id, lease_duration_s, lease_expires_at, lease_breaks_at, "
    "copy_id, copy_source, copy_total_bytes, copy_completed_at"
)
_WITHOUT_NUMBER: Final = COLUMNS.removeprefix("number, ")
_PLACEHOLDERS: Final = ", ".join("?" for _ in _WITHOUT_NUMBER.split(", "))
_ASSIGNMENTS: Final = ", ".join(f"{name} = ?" for name in _WITHOUT_NUMBER.split(", "))


def record_of(row: tuple[Any, ...]) -> BlobRecord:
    """From a row of ``COLUMNS``."""
    lease = None if row[19] is None else Lease(row[19], row[20], row[21], row[22])
    copy = None if row[23] is None else CopyRecord(row[23], row[24], row[25], row[26])
    return BlobRecord(
        number=row[0],
        container=row[1],
        name=row[2],
        snapshot=None if row[3] == LIVE_SNAPSHOT else row[3],
        blob_type=BlobType(row[4]),
        content=row[5],
        version=row[6],
        length=row[7],
        etag=etag_text(row[8]),
        created_at=row[9],
        modified_at=row[10],
        metadata=json.loads(row[11]),
        headers=ContentHeaders(row[12], row[13], row[14], row[15], row[16], row[17]),
        sequence_number=row[18],
        lease=lease,
        copy=copy,
    )


def _values(record: BlobRecord) -> tuple[Any, ...]:
    headers, lease, copy = record.headers, record.lease, record.copy
    return (
        record.container,
        record.name,
        LIVE_SNAPSHOT if record.snapshot is None else record.snapshot,
        record.blob_type.value,
        record.content,
        record.version,
        record.length,
        int(record.etag, 16),
        record.created_at,
        record.modified_at,
        json.dumps(dict(record.metadata)),
        headers.content_type,
        headers.content_encoding,
        headers.content_language,
        headers.content_disposition,
        headers.cache_control,
        headers.md5,
        record.sequence_number,
        *((lease.lease_id, lease.duration_s, lease.expires_at, lease.breaks_at) if lease else (None,) * 4),
        *((copy.copy_id, copy.source, copy.total_bytes, copy.completed_at) if copy else (None,) * 4),
    )


def find_container(connection: sqlite3.Connection, name: str) -> ContainerRecord:
    """:raises StorageFault: ContainerNotFound."""
    row = connection.execute(
        "SELECT number, name, etag, modified_at, metadata FROM containers WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        raise StorageFault(StorageCode.CONTAINER_NOT_FOUND)
    return container_of(row)


def container_of(row: tuple[Any, ...]) -> ContainerRecord:
    return ContainerRecord(row[0], row[1], etag_text(row[2]), row[3], json.loads(row[4]))


def find_blob(
    connection: sqlite3.Connection, container: int, name: str, snapshot: str | None = None
) -> BlobRecord | None:
    row = connection.execute(
        f"SELECT {COLUMNS} FROM blobs WHERE container = ? AND name = ? AND snapshot = ?",  # noqa: S608 - a constant
        (container, name, LIVE_SNAPSHOT if snapshot is None else snapshot),
    ).fetchone()
    return None if row is None else record_of(row)


def require_blob(connection: sqlite3.Connection, container: str, name: str, snapshot: str | None = None) -> BlobRecord:
    """:raises StorageFault: ContainerNotFound or BlobNotFound."""
    found = find_blob(connection, find_container(connection, container).number, name, snapshot)
    if found is None:
        raise StorageFault(StorageCode.BLOB_NOT_FOUND)
    return found


def snapshots_of(connection: sqlite3.Connection, container: int, name: str) -> list[BlobRecord]:
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM blobs WHERE container = ? AND name = ? AND snapshot < ? ORDER BY snapshot",  # noqa: S608
        (container, name, LIVE_SNAPSHOT),
    )
    return [record_of(row) for row in rows]


def insert(transaction: Transaction, record: BlobRecord) -> BlobRecord:
    """Add the row; its number is in the result."""
    cursor = transaction.connection.execute(
        f"INSERT INTO blobs ({_WITHOUT_NUMBER}) VALUES ({_PLACEHOLDERS})",  # noqa: S608 - constants
        _values(record),
    )
    assert cursor.lastrowid is not None  # noqa: S101 - an INSERT has one
    return replace(record, number=cursor.lastrowid)


def update(transaction: Transaction, record: BlobRecord) -> BlobRecord:
    transaction.connection.execute(
        f"UPDATE blobs SET {_ASSIGNMENTS} WHERE number = ?",  # noqa: S608 - constants
        (*_values(record), record.number),
    )
    return record


def delete(transaction: Transaction, record: BlobRecord) -> None:
    transaction.connection.execute("DELETE FROM blobs WHERE number = ?", (record.number,))


def touched(transaction: Transaction, record: BlobRecord) -> BlobRecord:
    """The record with a new ETag and time, and without a lease that had ended."""
    return replace(
        record,
        etag=etag_text(transaction.next_tick()),
        modified_at=transaction.seconds,
        lease=leases.after_write(record.lease, transaction.now),
    )


def new_content(
    transaction: Transaction,
    *,
    has_head: bool,
    references: int = 0,
    parent: tuple[int, int] | None = None,
    lineage: int = 0,
) -> int:
    """Add a content; returns its number. ``parent`` is (content, version)."""
    cursor = transaction.connection.execute(
        "INSERT INTO contents (has_head, references_, parent, parent_version, lineage) VALUES (?, ?, ?, ?, ?)",
        (int(has_head), references, *(parent or (None, None)), lineage),
    )
    assert cursor.lastrowid is not None  # noqa: S101 - an INSERT has one
    return cursor.lastrowid


def add_reference(transaction: Transaction, content: int) -> None:
    """One more blob or snapshot shows this block content."""
    transaction.connection.execute("UPDATE contents SET references_ = references_ + 1 WHERE number = ?", (content,))


def dismiss_content(transaction: Transaction, record: BlobRecord) -> None:
    """``record`` no longer shows its content: what only it saw will be reclaimed."""
    connection = transaction.connection
    if record.blob_type is BlobType.PAGE:
        if record.snapshot is None:
            connection.execute("UPDATE contents SET has_head = 0 WHERE number = ?", (record.content,))
        else:
            connection.execute(
                "DELETE FROM holders WHERE content = ? AND version = ? AND kind = 'snapshot' AND number = ?",
                (record.content, record.version, record.number),
            )
        transaction.ask_for_reclaim("version", record.content, record.version)
        return
    connection.execute("UPDATE contents SET references_ = references_ - 1 WHERE number = ?", (record.content,))
    left = connection.execute("SELECT references_ FROM contents WHERE number = ?", (record.content,)).fetchone()
    if left[0] == 0:
        transaction.ask_for_reclaim("parts", record.content)


def put_live(transaction: Transaction, container: int, old: BlobRecord | None, new: BlobRecord) -> BlobRecord:
    """Make ``new`` the live blob, in place of ``old``; its lease stays with the name. Snapshots of ``old`` stay."""
    stamped = touched(transaction, replace(new, container=container, lease=old.lease if old else None))
    drop_uncommitted(transaction, container, new.name)
    if old is None:
        return insert(transaction, stamped)
    dismiss_content(transaction, old)
    return update(transaction, replace(stamped, number=old.number))


def drop_uncommitted(transaction: Transaction, container: int, name: str) -> None:
    """Discard the uncommitted blocks of a name."""
    rows = transaction.connection.execute(
        "SELECT chunk FROM uncommitted WHERE container = ? AND name = ?", (container, name)
    ).fetchall()
    if rows:
        transaction.connection.execute("DELETE FROM uncommitted WHERE container = ? AND name = ?", (container, name))
        release_chunks(transaction, [row[0] for row in rows])


def release_chunks(transaction: Transaction, chunks: list[int]) -> None:
    """One reference less for each; the bytes of those without any are freed."""
    connection = transaction.connection
    for chunk in chunks:
        row = connection.execute(
            "UPDATE chunks SET references_ = references_ - 1 WHERE number = ? RETURNING references_, arena, arena_offset, length",
            (chunk,),
        ).fetchall()[0]
        if row[0] == 0:
            connection.execute("DELETE FROM chunks WHERE number = ?", (chunk,))
            transaction.free(row[1], row[2], row[3])
