"""Mutations of page blobs: create, write, clear, resize, sequence number. Called by ``BlobStore``; run in the committer's thread."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from azure_sink.blob_store import blob_rows, page_table
from azure_sink.blob_store.blobs import Address, Guard, checked_for_replacement, checked_for_write
from azure_sink.blob_store.block_blobs import NewBlob
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import MAX_PAGE_BLOB_BYTES, MAX_SEQUENCE_NUMBER, BlobRecord, StoredRange
from azure_sink.core.conditions import SequenceConditions, check_sequence_number
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import PAGE_BYTES, BlobType
from replication.blob_client.codes import StorageCode

SequenceAction = Literal["max", "update", "increment"]

_SIZE_RULE: Final = f"a page blob's size is a multiple of {PAGE_BYTES} up to {MAX_PAGE_BLOB_BYTES}"


def _check_size(size: int) -> None:
    if size < 0 or size % PAGE_BYTES or size > MAX_PAGE_BLOB_BYTES:
        raise StorageFault(StorageCode.INVALID_HEADER_VALUE, _SIZE_RULE)


def _check_sequence_number(number: int) -> None:
    if not 0 <= number <= MAX_SEQUENCE_NUMBER:
        raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "x-ms-blob-sequence-number is 0 to 2^63 - 1")


def create(
    transaction: Transaction, address: Address, new: NewBlob, size: int, sequence_number: int, guard: Guard
) -> BlobRecord:
    """Put an empty page blob of ``size`` bytes."""
    _check_size(size)
    _check_sequence_number(sequence_number)
    container, old = checked_for_replacement(transaction, address, guard)
    record = BlobRecord(
        number=0,
        container=container,
        name=address.name,
        snapshot=None,
        blob_type=BlobType.PAGE,
        content=blob_rows.new_content(transaction, has_head=True),
        version=1,
        length=size,
        etag="0x0",
        created_at=transaction.seconds,
        modified_at=transaction.seconds,
        metadata=new.metadata,
        headers=new.headers,
        sequence_number=sequence_number,
    )
    return blob_rows.put_live(transaction, container, old, record)


def _checked(
    transaction: Transaction, address: Address, start: int, end: int, guard: Guard, numbers: SequenceConditions
) -> BlobRecord:
    if start < 0 or start % PAGE_BYTES or end % PAGE_BYTES or end <= start:
        raise StorageFault(StorageCode.INVALID_PAGE_RANGE)
    record = checked_for_write(transaction, address, guard, BlobType.PAGE)
    check_sequence_number(numbers, record.sequence_number)
    if end > record.length:
        raise StorageFault(StorageCode.INVALID_PAGE_RANGE)
    return record


def write(
    transaction: Transaction,
    address: Address,
    start: int,
    body: StoredRange,
    guard: Guard,
    numbers: SequenceConditions,
) -> BlobRecord:
    """Put Page, update."""
    record = _checked(transaction, address, start, start + body.length, guard, numbers)
    record = page_table.write(transaction, record, start, body)
    return blob_rows.update(transaction, blob_rows.touched(transaction, record))


def clear(
    transaction: Transaction, address: Address, start: int, end: int, guard: Guard, numbers: SequenceConditions
) -> BlobRecord:
    """Put Page, clear; of any length."""
    record = _checked(transaction, address, start, end, guard, numbers)
    record = page_table.clear(transaction, record, start, end)
    return blob_rows.update(transaction, blob_rows.touched(transaction, record))


def resize(transaction: Transaction, address: Address, size: int, guard: Guard) -> BlobRecord:
    """Pages after a smaller end are gone: growing again shows zeros."""
    _check_size(size)
    record = checked_for_write(transaction, address, guard, BlobType.PAGE)
    if size < record.length:
        record = page_table.clear(transaction, record, size, record.length)
    return blob_rows.update(transaction, blob_rows.touched(transaction, replace(record, length=size)))


def change_sequence_number(
    transaction: Transaction, address: Address, action: SequenceAction, number: int | None, guard: Guard
) -> BlobRecord:
    """``update`` sets it, ``max`` raises it to at least ``number``, ``increment`` adds one."""
    if (number is None) != (action == "increment"):
        raise StorageFault(
            StorageCode.INVALID_HEADER_VALUE, "x-ms-blob-sequence-number goes with the actions max and update only"
        )
    record = checked_for_write(transaction, address, guard, BlobType.PAGE)
    wanted = record.sequence_number + 1 if number is None else number
    if action == "max":
        wanted = max(wanted, record.sequence_number)
    if number is None and wanted > MAX_SEQUENCE_NUMBER:
        raise StorageFault(StorageCode.SEQUENCE_NUMBER_INCREMENT_TOO_LARGE)
    _check_sequence_number(wanted)
    return blob_rows.update(transaction, blob_rows.touched(transaction, replace(record, sequence_number=wanted)))
