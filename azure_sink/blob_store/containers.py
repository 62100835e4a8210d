"""Mutations and reads of containers. Called by ``BlobStore``; mutations run in the committer's thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from azure_sink.blob_store.blob_rows import container_of, find_container
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import ContainerRecord, etag_text
from azure_sink.core.conditions import Conditions, check_write
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode


def create(transaction: Transaction, name: str, metadata: Mapping[str, str]) -> ContainerRecord:
    """:raises StorageFault: ContainerAlreadyExists."""
    tick = transaction.next_tick()
    try:
        cursor = transaction.connection.execute(
            "INSERT INTO containers (name, etag, modified_at, metadata) VALUES (?, ?, ?, ?)",
            (name, tick, transaction.seconds, json.dumps(dict(metadata))),
        )
    except sqlite3.IntegrityError:
        raise StorageFault(StorageCode.CONTAINER_ALREADY_EXISTS) from None
    return ContainerRecord(cursor.lastrowid or 0, name, etag_text(tick), transaction.seconds, dict(metadata))


def delete(transaction: Transaction, name: str, conditions: Conditions) -> None:
    """The name is free at once; what was in it is reclaimed in steps.

    :raises StorageFault: ContainerNotFound, ConditionNotMet.
    """
    container = find_container(transaction.connection, name)
    check_write(conditions, container.present)
    transaction.connection.execute("UPDATE containers SET name = NULL WHERE number = ?", (container.number,))
    transaction.ask_for_reclaim("container", container.number)


def set_metadata(
    transaction: Transaction, name: str, metadata: Mapping[str, str], conditions: Conditions
) -> ContainerRecord:
    """:raises StorageFault: ContainerNotFound, ConditionNotMet."""
    container = find_container(transaction.connection, name)
    check_write(conditions, container.present)
    tick = transaction.next_tick()
    transaction.connection.execute(
        "UPDATE containers SET etag = ?, modified_at = ?, metadata = ? WHERE number = ?",
        (tick, transaction.seconds, json.dumps(dict(metadata)), container.number),
    )
    return replace(container, etag=etag_text(tick), modified_at=transaction.seconds, metadata=dict(metadata))


def list_page(
    connection: sqlite3.Connection, prefix: str, marker: str, limit: int
) -> tuple[list[ContainerRecord], str]:
    """Containers by name from ``marker`` on: (at most ``limit`` of them, the next marker or "")."""
    rows = connection.execute(
        "SELECT number, name, etag, modified_at, metadata FROM containers "
        "WHERE name >= ? AND substr(name, 1, length(?)) = ? ORDER BY name LIMIT ?",
        (max(prefix, marker), prefix, prefix, limit + 1),
    ).fetchall()
    found = [container_of(row) for row in rows]
    return found[:limit], found[limit].name if len(found) > limit else ""
