"""Conditional headers against a blob's present state."""

from __future__ import annotations

import pytest

from azure_sink.core.conditions import (
    Conditions,
    Present,
    SequenceConditions,
    check_read,
    check_sequence_number,
    check_source,
    check_write,
)
from azure_sink.core.storage_fault import NotModified, StorageFault
from replication.blob_client.codes import StorageCode as Code

PRESENT = Present("0x5", 1000)


def write_code(conditions: Conditions, present: Present | None = PRESENT, *, creates: bool = False) -> Code | None:
    try:
        check_write(conditions, present, creates=creates)
    except StorageFault as fault:
        return fault.storage_code
    return None


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (Conditions(), None),
        (Conditions(if_match="0x5"), None),
        (Conditions(if_match="*"), None),
        (Conditions(if_match="0x6"), Code.CONDITION_NOT_MET),
        (Conditions(if_none_match="0x6"), None),
        (Conditions(if_none_match="0x5"), Code.CONDITION_NOT_MET),
        (Conditions(if_modified_since=999), None),
        (Conditions(if_modified_since=1000), Code.CONDITION_NOT_MET),
        (Conditions(if_unmodified_since=1000), None),
        (Conditions(if_unmodified_since=999), Code.CONDITION_NOT_MET),
        (Conditions(if_match="0x5", if_unmodified_since=999), Code.CONDITION_NOT_MET),
    ],
)
def test_a_write_happens_only_if_every_condition_holds(conditions: Conditions, code: Code | None) -> None:
    assert write_code(conditions) == code
    assert write_code(conditions, creates=True) == code


def test_what_does_not_exist_matches_no_etag() -> None:
    assert write_code(Conditions(if_match="0x5"), None, creates=True) is Code.CONDITION_NOT_MET
    assert write_code(Conditions(if_match="*"), None, creates=True) is Code.CONDITION_NOT_MET
    assert write_code(Conditions(if_none_match="*"), None, creates=True) is None


def test_creating_only_if_absent_says_that_the_blob_exists() -> None:
    assert write_code(Conditions(if_none_match="*"), creates=True) is Code.BLOB_ALREADY_EXISTS
    assert write_code(Conditions(if_none_match="*")) is Code.CONDITION_NOT_MET


def test_a_read_of_what_the_caller_has_is_not_modified() -> None:
    for conditions in (Conditions(if_none_match="0x5"), Conditions(if_modified_since=1000)):
        with pytest.raises(NotModified):
            check_read(conditions, PRESENT)
    check_read(Conditions(if_none_match="0x4", if_modified_since=999), PRESENT)


def test_a_failed_precondition_of_a_read_is_no_304() -> None:
    with pytest.raises(StorageFault) as caught:
        check_read(Conditions(if_match="0x6", if_none_match="0x5"), PRESENT)
    assert not isinstance(caught.value, NotModified)


def test_a_copys_source_has_a_code_of_its_own() -> None:
    check_source(Conditions(if_match="0x5"), PRESENT)
    with pytest.raises(StorageFault) as caught:
        check_source(Conditions(if_match="0x6"), PRESENT)
    assert caught.value.storage_code is Code.SOURCE_CONDITION_NOT_MET


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        (SequenceConditions(), True),
        (SequenceConditions(at_most=7), True),
        (SequenceConditions(at_most=6), False),
        (SequenceConditions(less_than=8), True),
        (SequenceConditions(less_than=7), False),
        (SequenceConditions(equal=7), True),
        (SequenceConditions(equal=8), False),
        (SequenceConditions(at_most=7, equal=0), False),
    ],
)
def test_sequence_number_conditions(conditions: SequenceConditions, holds: bool) -> None:
    if holds:
        check_sequence_number(conditions, 7)
        return
    with pytest.raises(StorageFault) as caught:
        check_sequence_number(conditions, 7)
    assert caught.value.storage_code is Code.SEQUENCE_NUMBER_CONDITION_NOT_MET
