"""Leases on blobs: what each action does in each state, and which lease id an operation must show. Pure; time is an argument.

Called by the blob store inside the transaction that changes the blob, so that the rule and the change are one.
Source: Azure Storage REST, "Lease Blob", tables "outcomes of lease operations" and "outcomes of use attempts".

The state is never stored: it follows from the lease's times. Invariant: at one instant at most one lease id may write.

    no lease ──acquire──▶ leased ──time──▶ expired ──acquire/renew──▶ leased
                            │  ╲─release─▶ no lease
                            ╰──break──▶ breaking ──time──▶ broken ──acquire──▶ leased
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import LeaseState
from replication.blob_client.codes import StorageCode

MIN_DURATION_S: Final = 15
MAX_DURATION_S: Final = 60
MAX_BREAK_PERIOD_S: Final = 60


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was acquired and not released. ``duration_s`` None: for ever. Times are seconds of the service's clock."""

    lease_id: str
    duration_s: int | None
    expires_at: float | None
    breaks_at: float | None = None


def state_of(lease: Lease | None, now: float) -> LeaseState:
    if lease is None:
        return LeaseState.AVAILABLE
    if lease.breaks_at is not None:
        return LeaseState.BREAKING if now < lease.breaks_at else LeaseState.BROKEN
    if lease.expires_at is not None and now >= lease.expires_at:
        return LeaseState.EXPIRED
    return LeaseState.LEASED


def is_held(lease: Lease | None, now: float) -> bool:
    """Whether writes need the lease's id."""
    return state_of(lease, now) in (LeaseState.LEASED, LeaseState.BREAKING)


def _begun(lease_id: str, duration_s: int | None, now: float) -> Lease:
    return Lease(lease_id, duration_s, None if duration_s is None else now + duration_s)


def acquire(lease: Lease | None, now: float, duration_s: int | None, proposed_id: str) -> Lease:
    """:raises StorageFault: another holds it, or it is breaking; or the duration is out of range."""
    if duration_s is not None and not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise StorageFault(
            StorageCode.INVALID_HEADER_VALUE, f"a lease lasts {MIN_DURATION_S} to {MAX_DURATION_S} seconds, or -1"
        )
    state = state_of(lease, now)
    if lease is not None and state is LeaseState.BREAKING:
        raise StorageFault(
            StorageCode.LEASE_IS_BREAKING_AND_CANNOT_BE_ACQUIRED
            if lease.lease_id == proposed_id
            else StorageCode.LEASE_ALREADY_PRESENT
        )
    if lease is not None and state is LeaseState.LEASED and lease.lease_id != proposed_id:
        raise StorageFault(StorageCode.LEASE_ALREADY_PRESENT)
    return _begun(proposed_id, duration_s, now)


def renew(lease: Lease | None, now: float, lease_id: str) -> Lease:
    """An expired lease can be renewed while the blob was neither written nor leased since.

    :raises StorageFault: it is another's, or was broken.
    """
    if lease is None or lease.lease_id != lease_id:
        raise StorageFault(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION)
    if lease.breaks_at is not None:
        raise StorageFault(StorageCode.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED)
    return _begun(lease_id, lease.duration_s, now)


def change(lease: Lease | None, now: float, lease_id: str, proposed_id: str) -> Lease:
    """:raises StorageFault: the lease is not held, is breaking, or is neither ``lease_id`` nor already ``proposed_id``."""
    state = state_of(lease, now)
    if lease is None or state in (LeaseState.BROKEN, LeaseState.EXPIRED):
        raise StorageFault(StorageCode.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION)
    if lease.lease_id not in (lease_id, proposed_id):
        raise StorageFault(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION)
    if state is LeaseState.BREAKING:
        raise StorageFault(StorageCode.LEASE_IS_BREAKING_AND_CANNOT_BE_CHANGED)
    return replace(lease, lease_id=proposed_id)


def release(lease: Lease | None, lease_id: str) -> None:
    """The lease is gone on return.

    :raises StorageFault: it is another's.
    """
    if lease is None or lease.lease_id != lease_id:
        raise StorageFault(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION)


def break_off(lease: Lease | None, now: float, break_period_s: int | None) -> Lease:
    """End the lease after ``break_period_s``, at most what is left of it; ``breaks_at`` of the result is when.

    Without a period: a lease for ever ends now, another with its term. A second break can only shorten.

    :raises StorageFault: there is no lease; or the period is out of range.
    """
    if break_period_s is not None and not 0 <= break_period_s <= MAX_BREAK_PERIOD_S:
        raise StorageFault(StorageCode.INVALID_HEADER_VALUE, f"a break period is 0 to {MAX_BREAK_PERIOD_S} seconds")
    if lease is None:
        raise StorageFault(StorageCode.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION)
    if not is_held(lease, now):
        return replace(lease, breaks_at=now)
    ends = [moment for moment in (lease.breaks_at, lease.expires_at) if moment is not None]
    if break_period_s is not None:
        ends.append(now + break_period_s)
    return replace(lease, breaks_at=min(ends, default=now))


def check_use(lease: Lease | None, now: float, lease_id: str | None, *, writes: bool) -> None:
    """Whether an operation that shows ``lease_id`` (or none) may read or write the blob.

    :raises StorageFault: LeaseIdMissing, LeaseIdMismatchWithBlobOperation, LeaseLost or LeaseNotPresentWithBlobOperation.
    """
    held = is_held(lease, now)
    if lease_id is None:
        if held and writes:
            raise StorageFault(StorageCode.LEASE_ID_MISSING)
        return
    if lease is None:
        raise StorageFault(StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION)
    if lease.lease_id != lease_id:
        raise StorageFault(StorageCode.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION)
    if not held:
        raise StorageFault(StorageCode.LEASE_LOST)


def after_write(lease: Lease | None, now: float) -> Lease | None:
    """What is left of the lease once the blob was written: an ended one can no longer be renewed."""
    return lease if is_held(lease, now) else None
