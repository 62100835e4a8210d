"""What may be collected of the ``replication`` container. Called by pytest."""

from __future__ import annotations

import pytest

from azure_sink.core.garbage import is_collectable
from azure_sink.core.replica_state import Position
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, EpochKey, GenerationId

DISK = DiskId("00000000-0000-4000-8000-00000000000a")


def segment(generation: int, epoch: int) -> BatchKey:
    return BatchKey(DISK, GenerationId(generation), EpochId(epoch), AttemptNumber(3), BatchNumber(0))


def manifest(generation: int, epoch: int) -> EpochKey:
    return EpochKey(DISK, GenerationId(generation), EpochId(epoch))


@pytest.mark.parametrize(
    ("key", "closed", "collectable"),
    [
        (segment(2, 4), False, True),
        (segment(2, 5), False, True),
        (segment(2, 6), False, False),
        (manifest(2, 4), False, True),
        (manifest(2, 5), False, False),
        (manifest(2, 6), False, False),
        (segment(1, 99), False, True),
        (manifest(1, 99), False, True),
        (segment(3, 1), False, False),
        (manifest(3, 1), True, False),
        (segment(2, 6), True, True),
        (manifest(2, 5), True, True),
        (manifest(2, 6), True, True),
    ],
    ids=str,
)
def test_only_what_a_receipt_made_superfluous_is_collected(
    key: BatchKey | EpochKey, closed: bool, collectable: bool
) -> None:
    assert is_collectable(key, Position(2, 5), closed=closed) is collectable
