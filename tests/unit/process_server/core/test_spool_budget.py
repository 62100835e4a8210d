"""Admission to the spool: the limit is never exceeded, manifests find room where batches do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from process_server.core.spool_budget import (
    DEFAULT_INDEX_LIMIT_BYTES,
    DEFAULT_LIMIT_BYTES,
    MAX_FILE_BYTES,
    MIN_LIMIT_BYTES,
    SpoolBudget,
    SpoolUse,
    spool_file_bytes,
    spool_limit_bytes,
)
from replication.errors import InvalidInput, Overloaded

MIB = 2**20
EMPTY = SpoolUse(0, 0)


def test_the_limit_is_the_configured_size_or_four_fifths_of_the_file_system() -> None:
    assert spool_limit_bytes(DEFAULT_LIMIT_BYTES, 10**15) == 300 * 10**9
    assert spool_limit_bytes(DEFAULT_LIMIT_BYTES, 100 * 10**9) == 80 * 10**9


def test_files_are_small_against_the_limit() -> None:
    assert spool_file_bytes(DEFAULT_LIMIT_BYTES) == MAX_FILE_BYTES
    assert spool_file_bytes(MIN_LIMIT_BYTES) == MIN_LIMIT_BYTES // 16


def test_a_limit_that_is_too_small_to_work_with_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot keep a spool within"):
        SpoolBudget(MIN_LIMIT_BYTES - 1)


@given(
    limit=st.integers(MIN_LIMIT_BYTES, 2**30),
    used=st.integers(0, 2**30),
    requests=st.lists(st.tuples(st.booleans(), st.integers(1, 9 * MIB)), max_size=200),
)
def test_what_is_used_and_reserved_never_exceeds_the_limit(
    limit: int, used: int, requests: list[tuple[bool, int]]
) -> None:
    budget = SpoolBudget(limit)
    for is_batch, size in requests:
        reserve = budget.reserve_batch if is_batch else budget.reserve_manifest
        before = budget.reserved_bytes
        try:
            reserve(SpoolUse(used, 0), size)
        except Overloaded:
            assert budget.reserved_bytes == before, "nothing was accepted"
        else:
            assert used + budget.reserved_bytes + budget.file_bytes <= limit


def test_when_batches_are_refused_manifests_still_find_room() -> None:
    budget = SpoolBudget(256 * MIB)
    full = SpoolUse(256 * MIB - budget.headroom_bytes - budget.file_bytes, 0)
    with pytest.raises(Overloaded, match="the spool is full") as caught:
        budget.reserve_batch(full, 1)
    assert caught.value.retry_after_s
    budget.reserve_manifest(full, MIB)


def test_a_closed_reservation_is_room_again_and_closing_twice_changes_nothing() -> None:
    budget = SpoolBudget(MIN_LIMIT_BYTES)
    with budget.reserve_batch(EMPTY, 10) as reservation:
        budget.reserve_batch(EMPTY, 5)
        assert budget.reserved_bytes == 15
    reservation.close()
    assert budget.reserved_bytes == 5


def test_an_index_that_is_full_refuses_batches_before_manifests() -> None:
    budget = SpoolBudget(2**30)
    nearly = SpoolUse(0, int(DEFAULT_INDEX_LIMIT_BYTES * 0.96))
    with pytest.raises(Overloaded, match="too many segments"):
        budget.reserve_batch(nearly, 1)
    budget.reserve_manifest(nearly, 1)
    with pytest.raises(Overloaded):
        budget.reserve_manifest(SpoolUse(0, DEFAULT_INDEX_LIMIT_BYTES), 1)


def test_the_free_fraction_is_bounded_by_what_the_file_system_has_left() -> None:
    budget = SpoolBudget(100 * MIB)
    assert budget.free_fraction(EMPTY, 2**40) == 1.0
    assert budget.free_fraction(SpoolUse(25 * MIB, 0), 2**40) == 0.75
    assert budget.free_fraction(SpoolUse(25 * MIB, 0), 10 * MIB) == 0.1
    assert budget.free_fraction(SpoolUse(200 * MIB, 0), 2**40) == 0.0
