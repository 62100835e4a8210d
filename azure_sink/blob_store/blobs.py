"""Mutations that are the same for every type of blob: delete, metadata, headers, lease, snapshot, copy.

Called by ``BlobStore``; they run in the committer's thread, so a condition and its change are one. Each raises ``StorageFault`` and then
has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from azure_sink.blob_store import blob_rows, page_table
from azure_sink.blob_store.schema import LIVE
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import (
    MAX_LINEAGE,
    BlobRecord,
    ContentHeaders,
    CopyRecord,
    etag_text,
    snapshot_id,
)
from azure_sink.core import lease as leases
from azure_sink.core.conditions import NO_CONDITIONS, Conditions, check_source, check_write
from azure_sink.core.lease import Lease
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import BlobType
from replication.blob_client.codes import StorageCode

SnapshotsToo = Literal["include", "only"] | None


@dataclass(frozen=True, slots=True)
class Guard:
    """What a caller shows to be let through: conditional headers and a lease id."""

    conditions: Conditions = NO_CONDITIONS
    lease_id: str | None = None


NO_GUARD = Guard()


@dataclass(frozen=True, slots=True)
class Address:
    """A blob, or one of its snapshots."""

    container: str
    name: str
    snapshot: str | None = None


def checked_for_write(
    transaction: Transaction, address: Address, guard: Guard, blob_type: BlobType | None = None
) -> BlobRecord:
    """The live blob, if conditions and lease let it be written and it is of ``blob_type``."""
    record = blob_rows.require_blob(transaction.connection, address.container, address.name)
    if blob_type is not None and record.blob_type is not blob_type:
        raise StorageFault(StorageCode.INVALID_BLOB_TYPE)
    check_write(guard.conditions, record.present)
    leases.check_use(record.lease, transaction.now, guard.lease_id, writes=True)
    return record


def checked_for_replacement(transaction: Transaction, address: Address, guard: Guard) -> tuple[int, BlobRecord | None]:
    """(number of the container, the live blob or None), if conditions and lease let it be replaced or created."""
    container = blob_rows.find_container(transaction.connection, address.container).number
    old = blob_rows.find_blob(transaction.connection, container, address.name)
    check_write(guard.conditions, old.present if old else None, creates=True)
    leases.check_use(old.lease if old else None, transaction.now, guard.lease_id, writes=True)
    return container, old


def set_metadata(transaction: Transaction, address: Address, metadata: Mapping[str, str], guard: Guard) -> BlobRecord:
    record = checked_for_write(transaction, address, guard)
    return blob_rows.update(transaction, blob_rows.touched(transaction, replace(record, metadata=dict(metadata))))


def set_headers(transaction: Transaction, address: Address, headers: ContentHeaders, guard: Guard) -> BlobRecord:
    record = checked_for_write(transaction, address, guard)
    return blob_rows.update(transaction, blob_rows.touched(transaction, replace(record, headers=headers)))


def delete(transaction: Transaction, address: Address, snapshots: SnapshotsToo, guard: Guard) -> None:
    """Delete the live blob (``include``: with its snapshots), only its snapshots, or the one that ``address`` names."""
    connection = transaction.connection
    record = blob_rows.require_blob(connection, address.container, address.name, address.snapshot)
    check_write(guard.conditions, record.present)
    if address.snapshot is not None:
        if snapshots is not None:
            raise StorageFault(
                StorageCode.INVALID_QUERY_PARAMETER_VALUE, "snapshot together with x-ms-delete-snapshots"
            )
        _discard(transaction, record)
        return
    leases.check_use(record.lease, transaction.now, guard.lease_id, writes=True)
    taken = blob_rows.snapshots_of(connection, record.container, record.name)
    if taken and snapshots is None:
        raise StorageFault(StorageCode.SNAPSHOTS_PRESENT)
    for snapshot in taken:
        _discard(transaction, snapshot)
    if snapshots != "only":
        blob_rows.drop_uncommitted(transaction, record.container, record.name)
        _discard(transaction, record)


def _discard(transaction: Transaction, record: BlobRecord) -> None:
    blob_rows.delete(transaction, record)
    blob_rows.dismiss_content(transaction, record)


def snapshot(
    transaction: Transaction, address: Address, metadata: Mapping[str, str] | None, guard: Guard
) -> BlobRecord:
    """Take a snapshot; returns its record. Costs the same whatever the blob's size."""
    record = blob_rows.require_blob(transaction.connection, address.container, address.name)
    check_write(guard.conditions, record.present)
    leases.check_use(record.lease, transaction.now, guard.lease_id, writes=False)
    tick = transaction.next_tick()
    taken = replace(record, snapshot=snapshot_id(tick), lease=None)
    if metadata is not None:
        taken = replace(taken, metadata=dict(metadata), etag=etag_text(tick), modified_at=transaction.seconds)
    taken = blob_rows.insert(transaction, taken)
    if record.blob_type is BlobType.PAGE:
        _hold(transaction, record, "snapshot", taken.number)
        page_table.next_version(transaction, record)
    else:
        blob_rows.add_reference(transaction, record.content)
    return taken


def _hold(transaction: Transaction, record: BlobRecord, kind: str, number: int) -> None:
    transaction.connection.execute(
        "INSERT INTO holders (content, version, kind, number) VALUES (?, ?, ?, ?)",
        (record.content, record.version, kind, number),
    )


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """``source_text`` is kept as x-ms-copy-source; ``metadata`` None: the source's."""

    source: Address
    source_text: str
    copy_id: str
    metadata: Mapping[str, str] | None = None
    source_conditions: Conditions = NO_CONDITIONS


def copy(transaction: Transaction, address: Address, request: CopyRequest, guard: Guard) -> BlobRecord:
    """Make ``address`` a copy of a blob or snapshot of this store. Bytes are shared: it costs the same whatever the size."""
    connection = transaction.connection
    source = blob_rows.require_blob(connection, request.source.container, request.source.name, request.source.snapshot)
    check_source(request.source_conditions, source.present)
    container, old = checked_for_replacement(transaction, address, guard)
    content, version = source.content, source.version
    if source.blob_type is BlobType.PAGE:
        content, version = _child_of(transaction, source), 1
        if old is not None and source.number == old.number:
            old = blob_rows.find_blob(connection, container, address.name)
    else:
        blob_rows.add_reference(transaction, content)
    new = replace(
        source,
        name=address.name,
        snapshot=None,
        content=content,
        version=version,
        created_at=transaction.seconds,
        metadata=dict(source.metadata if request.metadata is None else request.metadata),
        copy=CopyRecord(request.copy_id, request.source_text, source.length, transaction.seconds),
    )
    return blob_rows.put_live(transaction, container, old, new)


def _child_of(transaction: Transaction, source: BlobRecord) -> int:
    """A content that shows the source's version through one inherited range."""
    row = transaction.connection.execute("SELECT lineage FROM contents WHERE number = ?", (source.content,)).fetchone()
    lineage = row[0] + 1
    if lineage > MAX_LINEAGE:
        raise StorageFault(
            StorageCode.INVALID_OPERATION, f"more than {MAX_LINEAGE} copies of copies; copy from an earlier one"
        )
    child = blob_rows.new_content(transaction, has_head=True, parent=(source.content, source.version), lineage=lineage)
    _hold(transaction, source, "child", child)
    if source.snapshot is None:
        page_table.next_version(transaction, source)
    if source.length:
        transaction.connection.execute(
            "INSERT INTO inherited (content, start, born, died, length) VALUES (?, 0, 1, ?, ?)",
            (child, LIVE, source.length),
        )
    return child


# -- leases -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AcquireLease:
    duration_s: int | None
    proposed_id: str


@dataclass(frozen=True, slots=True)
class RenewLease:
    lease_id: str


@dataclass(frozen=True, slots=True)
class ChangeLease:
    lease_id: str
    proposed_id: str


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    lease_id: str


@dataclass(frozen=True, slots=True)
class BreakLease:
    break_period_s: int | None


LeaseAction = AcquireLease | RenewLease | ChangeLease | ReleaseLease | BreakLease


def change_lease(transaction: Transaction, address: Address, action: LeaseAction, conditions: Conditions) -> BlobRecord:
    """Do ``action`` on the blob's lease. Neither ETag nor time of the blob change."""
    record = blob_rows.require_blob(transaction.connection, address.container, address.name)
    check_write(conditions, record.present)
    return blob_rows.update(transaction, replace(record, lease=_after(record.lease, transaction.now, action)))


def _after(lease: Lease | None, now: float, action: LeaseAction) -> Lease | None:
    match action:
        case AcquireLease():
            return leases.acquire(lease, now, action.duration_s, action.proposed_id)
        case RenewLease():
            return leases.renew(lease, now, action.lease_id)
        case ChangeLease():
            return leases.change(lease, now, action.lease_id, action.proposed_id)
        case ReleaseLease():
            leases.release(lease, action.lease_id)
            return None
        case BreakLease():
            return leases.break_off(lease, now, action.break_period_s)
