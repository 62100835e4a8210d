"""The lease rules, state by state, after the tables of "Lease Blob"."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from azure_sink.core.lease import Lease, acquire, after_write, break_off, change, check_use, release, renew, state_of
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import LeaseState
from replication.blob_client.codes import StorageCode as Code

A, B = "a" * 36, "b" * 36
NOW = 1000.0
LEASED = Lease(A, 30, NOW + 30)
FOREVER = Lease(A, None, None)
EXPIRED = Lease(A, 30, NOW)
BREAKING = Lease(A, 30, NOW + 30, NOW + 10)
BROKEN = Lease(A, 30, NOW + 30, NOW)
ALL = (None, LEASED, FOREVER, EXPIRED, BREAKING, BROKEN)


def code_of(action: Callable[[], object]) -> Code | None:
    try:
        action()
    except StorageFault as fault:
        return fault.storage_code
    return None


def test_the_state_follows_from_the_times() -> None:
    assert [state_of(lease, NOW) for lease in ALL] == [
        LeaseState.AVAILABLE,
        LeaseState.LEASED,
        LeaseState.LEASED,
        LeaseState.EXPIRED,
        LeaseState.BREAKING,
        LeaseState.BROKEN,
    ]


@pytest.mark.parametrize(
    ("lease", "own", "foreign"),
    [
        (None, None, None),
        (LEASED, None, Code.LEASE_ALREADY_PRESENT),
        (FOREVER, None, Code.LEASE_ALREADY_PRESENT),
        (EXPIRED, None, None),
        (BREAKING, Code.LEASE_IS_BREAKING_AND_CANNOT_BE_ACQUIRED, Code.LEASE_ALREADY_PRESENT),
        (BROKEN, None, None),
    ],
)
def test_acquire(lease: Lease | None, own: Code | None, foreign: Code | None) -> None:
    assert code_of(lambda: acquire(lease, NOW, 30, A)) == own
    assert code_of(lambda: acquire(lease, NOW, 30, B)) == foreign


def test_acquire_begins_a_new_term() -> None:
    assert acquire(LEASED, NOW, 60, A) == Lease(A, 60, NOW + 60)
    assert acquire(None, NOW, None, B) == Lease(B, None, None)


@pytest.mark.parametrize("duration_s", [0, 14, 61])
def test_a_term_has_15_to_60_seconds(duration_s: int) -> None:
    assert code_of(lambda: acquire(None, NOW, duration_s, A)) == Code.INVALID_HEADER_VALUE


@pytest.mark.parametrize(
    ("lease", "own"),
    [
        (None, Code.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION),
        (LEASED, None),
        (EXPIRED, None),
        (BREAKING, Code.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED),
        (BROKEN, Code.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED),
    ],
)
def test_renew(lease: Lease | None, own: Code | None) -> None:
    assert code_of(lambda: renew(lease, NOW, A)) == own
    assert code_of(lambda: renew(lease, NOW, B)) == Code.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION


@pytest.mark.parametrize(
    ("lease", "own", "already_changed", "foreign"),
    [
        (None, Code.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION, None, None),
        (LEASED, None, None, Code.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION),
        (EXPIRED, Code.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION, None, None),
        (BROKEN, Code.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION, None, None),
    ],
)
def test_change(lease: Lease | None, own: Code | None, already_changed: Code | None, foreign: Code | None) -> None:
    assert code_of(lambda: change(lease, NOW, A, B)) == own
    if own is None:
        assert code_of(lambda: change(lease, NOW, B, A)) == already_changed
        assert code_of(lambda: change(lease, NOW, B, "c" * 36)) == foreign


def test_a_breaking_lease_cannot_be_changed() -> None:
    assert code_of(lambda: change(BREAKING, NOW, A, B)) == Code.LEASE_IS_BREAKING_AND_CANNOT_BE_CHANGED


@pytest.mark.parametrize("lease", ALL[1:])
def test_release_needs_only_the_right_id(lease: Lease) -> None:
    release(lease, A)
    assert code_of(lambda: release(lease, B)) == Code.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION


@pytest.mark.parametrize(
    ("lease", "period_s", "breaks_at"),
    [
        (LEASED, None, NOW + 30),
        (LEASED, 10, NOW + 10),
        (LEASED, 60, NOW + 30),
        (FOREVER, None, NOW),
        (FOREVER, 20, NOW + 20),
        (BREAKING, 60, NOW + 10),
        (BREAKING, 5, NOW + 5),
        (BREAKING, None, NOW + 10),
        (EXPIRED, 60, NOW),
        (BROKEN, 60, NOW),
    ],
)
def test_break_ends_the_lease_and_only_shortens(lease: Lease, period_s: int | None, breaks_at: float) -> None:
    assert break_off(lease, NOW, period_s).breaks_at == breaks_at


def test_break_refuses_what_is_not_there_or_out_of_range() -> None:
    assert code_of(lambda: break_off(None, NOW, 0)) == Code.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION
    assert code_of(lambda: break_off(LEASED, NOW, 61)) == Code.INVALID_HEADER_VALUE


@pytest.mark.parametrize(
    ("lease", "without", "own", "foreign"),
    [
        (None, None, Code.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION, Code.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION),
        (LEASED, Code.LEASE_ID_MISSING, None, Code.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION),
        (BREAKING, Code.LEASE_ID_MISSING, None, Code.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION),
        (BROKEN, None, Code.LEASE_LOST, Code.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION),
        (EXPIRED, None, Code.LEASE_LOST, Code.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION),
    ],
)
def test_writes_need_the_id_of_a_held_lease(
    lease: Lease | None, without: Code | None, own: Code | None, foreign: Code | None
) -> None:
    assert code_of(lambda: check_use(lease, NOW, None, writes=True)) == without
    assert code_of(lambda: check_use(lease, NOW, A, writes=True)) == own
    assert code_of(lambda: check_use(lease, NOW, B, writes=True)) == foreign
    assert code_of(lambda: check_use(lease, NOW, None, writes=False)) is None


def test_a_write_forgets_a_lease_that_had_ended() -> None:
    assert [after_write(lease, NOW) for lease in ALL] == [None, LEASED, FOREVER, None, BREAKING, None]
