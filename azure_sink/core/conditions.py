"""Conditional headers: whether a blob's present state lets an operation happen. Pure.

Called by the blob store inside the transaction that changes the blob. Source: Azure Storage REST, "Specifying conditional headers
for Blob service operations". Several conditions must all hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from azure_sink.core.storage_fault import NotModified, StorageFault
from replication.blob_client.codes import StorageCode

ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Conditions:
    """ETags without quotes, or ``*``; times in whole seconds since the epoch."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: int | None = None
    if_unmodified_since: int | None = None

    @property
    def is_empty(self) -> bool:
        return self == NO_CONDITIONS


NO_CONDITIONS: Final = Conditions()


@dataclass(frozen=True, slots=True)
class SequenceConditions:
    """``x-ms-if-sequence-number-*``."""

    at_most: int | None = None
    less_than: int | None = None
    equal: int | None = None


NO_SEQUENCE_CONDITIONS: Final = SequenceConditions()


@dataclass(frozen=True, slots=True)
class Present:
    """What the conditions are held against."""

    etag: str
    modified_at: int


def _precondition_fails(conditions: Conditions, present: Present) -> bool:
    return (conditions.if_match not in (None, ANY, present.etag)) or (
        conditions.if_unmodified_since is not None and present.modified_at > conditions.if_unmodified_since
    )


def _is_unchanged(conditions: Conditions, present: Present) -> bool:
    return (conditions.if_none_match is not None and conditions.if_none_match in (ANY, present.etag)) or (
        conditions.if_modified_since is not None and present.modified_at <= conditions.if_modified_since
    )


def check_write(conditions: Conditions, present: Present | None, *, creates: bool = False) -> None:
    """Before a change. ``present`` None: the blob does not exist (the operation creates it).

    :raises StorageFault: ConditionNotMet; or BlobAlreadyExists for ``If-None-Match: *`` where ``creates``.
    """
    if present is None:
        if conditions.if_match is not None:
            raise StorageFault(StorageCode.CONDITION_NOT_MET)
        return
    if creates and conditions.if_none_match == ANY:
        raise StorageFault(StorageCode.BLOB_ALREADY_EXISTS)
    if _precondition_fails(conditions, present) or _is_unchanged(conditions, present):
        raise StorageFault(StorageCode.CONDITION_NOT_MET)


def check_read(conditions: Conditions, present: Present) -> None:
    """Before a read.

    :raises StorageFault: ConditionNotMet (412).
    :raises NotModified: the caller's copy is current (304).
    """
    if _precondition_fails(conditions, present):
        raise StorageFault(StorageCode.CONDITION_NOT_MET)
    if _is_unchanged(conditions, present):
        raise NotModified


def check_source(conditions: Conditions, present: Present) -> None:
    """Before a copy, on its source.

    :raises StorageFault: SourceConditionNotMet.
    """
    if _precondition_fails(conditions, present) or _is_unchanged(conditions, present):
        raise StorageFault(StorageCode.SOURCE_CONDITION_NOT_MET)


def check_sequence_number(conditions: SequenceConditions, number: int) -> None:
    """:raises StorageFault: SequenceNumberConditionNotMet."""
    if (
        (conditions.at_most is not None and number > conditions.at_most)
        or (conditions.less_than is not None and number >= conditions.less_than)
        or (conditions.equal is not None and number != conditions.equal)
    ):
        raise StorageFault(StorageCode.SEQUENCE_NUMBER_CONDITION_NOT_MET)
