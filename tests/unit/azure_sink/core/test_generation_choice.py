"""Which generation a replica follows and opens (R8). Called by pytest."""

from __future__ import annotations

from dataclasses import replace

from azure_sink.core.generation_choice import (
    AwaitGeneration,
    FollowGeneration,
    KnownGeneration,
    OpenGeneration,
    RefuseGeneration,
    choose_generation,
    passed_over,
)
from azure_sink.core.replica_state import Opening, Phase, Position, ReplicaState, created
from replication.identifiers import ItemId

ITEM = ItemId("00000000-0000-4000-8000-000000000001")
FIRST = KnownGeneration(1, None, 4096)
AT_1_5 = ReplicaState(Phase.SETTLED, ITEM, 4096, Position(1, 5))
CLOSED_1_5 = replace(AT_1_5, phase=Phase.CLOSED)


def follows(generation: int, epoch: int, number: int = 2) -> KnownGeneration:
    return KnownGeneration(number, Position(generation, epoch), 4096)


def test_without_records_there_is_nothing_to_do() -> None:
    assert choose_generation(None, []) == AwaitGeneration()
    assert choose_generation(CLOSED_1_5, [FIRST]) == AwaitGeneration()


def test_first_generation_needs_no_base() -> None:
    assert choose_generation(None, [FIRST]) == OpenGeneration(1)
    assert choose_generation(created(ITEM, 4096), [FIRST]) == OpenGeneration(1)


def test_generation_with_a_base_is_refused_where_there_is_no_replica() -> None:
    choice = choose_generation(None, [follows(1, 5)])
    assert isinstance(choice, RefuseGeneration)
    assert choice.generation == 2


def test_open_generation_is_followed_until_it_is_closed() -> None:
    assert choose_generation(AT_1_5, [FIRST, follows(1, 5)]) == FollowGeneration(1)
    assert choose_generation(CLOSED_1_5, [FIRST, follows(1, 5)]) == OpenGeneration(2)


def test_generation_that_continues_elsewhere_is_refused() -> None:
    for record in (follows(1, 4), follows(1, 6), KnownGeneration(2, None, 4096)):
        choice = choose_generation(CLOSED_1_5, [FIRST, record])
        assert isinstance(choice, RefuseGeneration), record
        assert "1/5" in choice.reason


def test_generation_that_continues_another_history_is_refused() -> None:
    closed = replace(CLOSED_1_5, manifest_hash="ab" * 32)
    base = follows(1, 5)
    assert choose_generation(closed, [replace(base, base_hash="ab" * 32)]) == OpenGeneration(2)
    assert choose_generation(closed, [base]) == OpenGeneration(2), "a record from before manifests were named"
    choice = choose_generation(closed, [replace(base, base_hash="cd" * 32)])
    assert isinstance(choice, RefuseGeneration)
    assert "another history" in choice.reason


def test_one_that_continues_is_found_among_others() -> None:
    records = [FIRST, follows(1, 4), follows(1, 5, number=3), KnownGeneration(4, None, 4096)]
    assert choose_generation(CLOSED_1_5, records) == OpenGeneration(3)


def test_opening_that_was_begun_is_finished() -> None:
    opening = replace(CLOSED_1_5, phase=Phase.OPENING, opening=Opening(2, 8192, ITEM))
    assert choose_generation(opening, []) == OpenGeneration(2)


def test_generation_after_one_that_is_not_closed_is_waited_for_in_vain() -> None:
    refused = passed_over(AT_1_5, [1, 2])
    assert refused is not None
    assert (refused.generation, "1/5" in refused.reason) == (2, True)
    assert passed_over(AT_1_5, [1]) is None
    assert passed_over(CLOSED_1_5, [1, 2]) is None, "it is chosen or refused by its base"


def test_numbers_that_begun_anew_below_the_replica_are_waited_for_in_vain() -> None:
    at_5 = replace(AT_1_5, applied=Position(5, 9))
    for state in (at_5, replace(at_5, phase=Phase.CLOSED)):
        refused = passed_over(state, [1])
        assert refused is not None
        assert refused.generation == 1
        assert passed_over(state, [3, 5]) is None
    assert passed_over(at_5, []) is None
    assert passed_over(created(ITEM, 4096), [1]) is None
