"""Names in the store: they sort by number and can be read back."""

from __future__ import annotations

import pytest

from replication import store_layout as layout
from replication.errors import PeerProtocolError
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
)

DISK = DiskId("22222222-2222-4222-8222-222222222222")
GENERATION = GenerationKey(DISK, GenerationId(12))


def test_names_sort_by_number() -> None:
    names = [layout.manifest_name(EpochKey(DISK, GenerationId(1), EpochId(number))) for number in (1, 9, 10, 2**40)]
    assert names == sorted(names)


def test_names_can_be_read_back() -> None:
    batch = BatchKey(DISK, GenerationId(12), EpochId(345), AttemptNumber(6), BatchNumber(78))
    assert layout.parse_epoch_blob_name(layout.segment_name(batch)) == batch
    assert layout.parse_epoch_blob_name(layout.manifest_name(batch.epoch_key)) == batch.epoch_key
    assert layout.parse_epoch_blob_name(layout.receipt_name(GENERATION)) is None
    assert layout.parse_generation_record_name(layout.generation_record_name(GENERATION)) == GENERATION


@pytest.mark.parametrize("name", ["", "keys/x/1", f"keys/{DISK}/1", f"{DISK}/0000000012"])
def test_other_names_are_no_generation_records(name: str) -> None:
    with pytest.raises(PeerProtocolError):
        layout.parse_generation_record_name(name)
