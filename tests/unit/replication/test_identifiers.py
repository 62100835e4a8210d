"""Identifiers are refused where they enter unless they are canonical and in range."""

from __future__ import annotations

import pytest

from replication.errors import InvalidInput
from replication.identifiers import (
    MAX_U32,
    MAX_U64,
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
    parse_uuid,
)

DISK = DiskId("0f8fad5b-d9cb-469f-a165-70867728950e")


def _key(generation: int = 1, epoch: int = 1, attempt: int = 1, batch: int = 0, *, disk: str = DISK) -> BatchKey:
    return BatchKey(DiskId(disk), GenerationId(generation), EpochId(epoch), AttemptNumber(attempt), BatchNumber(batch))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0F8FAD5B-D9CB-469F-A165-70867728950E",
        "0f8fad5bd9cb469fa16570867728950e",
        "{0f8fad5b-d9cb-469f-a165-70867728950e}",
        "0f8fad5b-d9cb-469f-a165-70867728950e\n",
        " 0f8fad5b-d9cb-469f-a165-70867728950e",
        "0f8fad5b-d9cb-469f-a165-70867728950é",
        "../../../etc/passwd",
    ],
)
def test_uuid_in_any_other_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="as disk id"):
        parse_uuid(text, "disk id")


def test_canonical_uuid_is_returned_as_it_is() -> None:
    assert parse_uuid(DISK, "disk id") == DISK


def test_message_does_not_repeat_an_endless_identifier() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_uuid("x" * 10_000, "machine id")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ((0, 1, 1, 0), "generation"),
        ((MAX_U32 + 1, 1, 1, 0), "generation"),
        ((1, 0, 1, 0), "epoch"),
        ((1, MAX_U64 + 1, 1, 0), "epoch"),
        ((1, 1, 0, 0), "attempt"),
        ((1, 1, MAX_U32 + 1, 0), "attempt"),
        ((1, 1, 1, -1), "batch"),
        ((1, 1, 1, MAX_U32 + 1), "batch"),
    ],
)
def test_number_out_of_range_is_refused(numbers: tuple[int, int, int, int], name: str) -> None:
    with pytest.raises(InvalidInput, match=f"as {name}"):
        _key(*numbers)


@pytest.mark.parametrize(
    "key",
    [
        lambda: _key(disk="nothing"),
        lambda: EpochKey(DiskId("nothing"), GenerationId(1), EpochId(1)),
        lambda: GenerationKey(DiskId("nothing"), GenerationId(1)),
        lambda: EpochKey(DISK, GenerationId(0), EpochId(1)),
        lambda: EpochKey(DISK, GenerationId(1), EpochId(0)),
        lambda: GenerationKey(DISK, GenerationId(0)),
    ],
)
def test_every_key_validates_each_of_its_parts(key: object) -> None:
    assert callable(key)
    with pytest.raises(InvalidInput):
        key()


def test_keys_at_the_ends_of_their_ranges_are_accepted() -> None:
    last = _key(MAX_U32, MAX_U64, MAX_U32, MAX_U32)
    assert str(last) == f"{DISK}/{MAX_U32}/{MAX_U64}/{MAX_U32}/{MAX_U32}"


def test_key_knows_what_it_is_part_of() -> None:
    key = _key(2, 3, 4, 5)
    assert key.epoch_key == EpochKey(DISK, GenerationId(2), EpochId(3))
    assert key.generation_key == key.epoch_key.generation_key == GenerationKey(DISK, GenerationId(2))
    assert (str(key.epoch_key), str(key.generation_key)) == (f"{DISK}/2/3", f"{DISK}/2")


def test_keys_sort_in_the_order_of_delivery() -> None:
    expected = [_key(1, 2, 1, 9), _key(1, 10, 1, 0), _key(1, 10, 1, 1), _key(1, 10, 2, 0), _key(2, 1, 1, 0)]
    shuffled = [expected[n] for n in (3, 1, 4, 0, 2)]
    assert sorted(shuffled) == expected
