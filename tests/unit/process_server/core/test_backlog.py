"""The backlog: what waits, what is under way, what is over; nothing that waits is forgotten, nothing that is over comes back."""

from __future__ import annotations

from random import Random

import pytest

from process_server.core.backlog import Backlog, SegmentEntry, SegmentState
from process_server.core.epoch_chain import PendingManifest, ReceiptFacts
from process_server.core.places import NOWHERE, RecordPlace
from process_server.core.spool_budget import SEGMENT_INDEX_BYTES
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    GenerationId,
    GenerationKey,
    MachineId,
)

DISK = DiskId("11111111-1111-4111-8111-111111111111")
MACHINE = MachineId("22222222-2222-4222-8222-222222222222")
GENERATION = GenerationKey(DISK, GenerationId(1))


def key(epoch: int, batch: int, attempt: int = 1) -> BatchKey:
    return BatchKey(DISK, GenerationId(1), EpochId(epoch), AttemptNumber(attempt), BatchNumber(batch))


def entry(number: int, *, size: int = 1000, state: SegmentState = SegmentState.WAITING, at_ns: int = 0) -> SegmentEntry:
    place = RecordPlace(1 + number // 10, 64 * number, size, number) if number else NOWHERE
    return SegmentEntry(bytes([number % 251]) * 16, bytes([number % 239]) * 16, size, state, place, at_ns)


def manifest(epoch: int, number: int, *, attempt: int = 1, missing: set[int] | None = None) -> PendingManifest:
    batches = {BatchNumber(batch) for batch in missing or set()}
    place = RecordPlace(9, 64 * number, 300, number)
    return PendingManifest(
        key(epoch, 0).epoch_key, AttemptNumber(attempt), bytes([epoch]) * 32, bytes(32), place, 0, batches
    )


def filled(*keys: BatchKey) -> Backlog:
    """Segments that wait, accepted in this order."""
    backlog = Backlog()
    for number, each in enumerate(keys, 1):
        assert backlog.add_segment(each, MACHINE, entry(number, at_ns=number))
    return backlog


def heads(backlog: Backlog) -> list[BatchKey]:
    """Everything in the order in which it would be uploaded."""
    order = []
    while (head := backlog.generations[GENERATION].head()) is not None:
        order.append(head[1])
        backlog.finish(head[1], backlog.take(head[1]).place, SegmentState.STORED)
    return order


def test_an_entry_is_the_same_after_packing() -> None:
    for number, state in ((7, SegmentState.UPLOADING), (0, SegmentState.STORED)):
        original = entry(number, size=8 * 2**20, state=state, at_ns=2**62)
        assert SegmentEntry.unpack(original.pack()) == original


def test_the_oldest_epoch_goes_first_and_superseded_attempts_last() -> None:
    backlog = filled(key(2, 0), key(1, 0), key(1, 1), key(1, 0, attempt=2), key(3, 0))
    assert heads(backlog) == [key(1, 0, attempt=2), key(2, 0), key(3, 0), key(1, 0), key(1, 1)]


def test_what_did_not_reach_the_store_goes_before_what_came_after_it() -> None:
    backlog = filled(key(1, 0), key(1, 1))
    taken = backlog.take(key(1, 0))
    assert backlog.find(key(1, 0)) == entry(1, state=SegmentState.UPLOADING, at_ns=1)
    backlog.give_back(key(1, 0), taken.place)
    assert heads(backlog) == [key(1, 0), key(1, 1)]


def test_only_the_head_can_be_taken() -> None:
    backlog = filled(key(1, 0), key(1, 1))
    with pytest.raises(LookupError):
        backlog.take(key(1, 1))
    backlog.take(key(1, 0))
    with pytest.raises(LookupError):
        backlog.take(key(1, 0))


def test_a_stored_segment_has_no_place_and_does_not_count_as_waiting() -> None:
    backlog = filled(key(1, 0), key(1, 1))
    taken = backlog.take(key(1, 0))
    assert backlog.waiting_bytes == 2000, "on its way is not stored"
    assert backlog.finish(key(1, 0), taken.place, SegmentState.STORED)
    assert backlog.waiting_bytes == 1000
    found = backlog.find(key(1, 0))
    assert found is not None
    assert (found.state, found.place) == (SegmentState.STORED, NOWHERE)
    assert [place.number for place in backlog.places()] == [2]


def test_what_was_discarded_while_it_was_on_its_way_has_no_outcome() -> None:
    backlog = filled(key(1, 0))
    taken = backlog.take(key(1, 0))
    assert backlog.discard_generation(GENERATION) == [taken.place]
    assert not backlog.finish(key(1, 0), taken.place, SegmentState.STORED)
    backlog.give_back(key(1, 0), taken.place)
    assert (backlog.waiting_bytes, backlog.index_bytes) == (0, 0)
    assert backlog.oldest_accepted_unix_ns() is None


def test_an_outcome_of_a_record_that_was_replaced_meanwhile_is_not_the_new_ones() -> None:
    backlog = filled(key(1, 0))
    taken = backlog.take(key(1, 0))
    assert backlog.finish(key(1, 0), taken.place, SegmentState.LOST)
    assert backlog.add_segment(key(1, 0), MACHINE, entry(9))
    assert not backlog.finish(key(1, 0), taken.place, SegmentState.STORED)
    found = backlog.find(key(1, 0))
    assert found is not None
    assert found.state is SegmentState.WAITING


def test_what_replaces_a_waiting_segment_waits_once() -> None:
    backlog = filled(key(1, 0), key(1, 1))
    assert backlog.add_segment(key(1, 0), MACHINE, entry(3, size=500))
    assert backlog.waiting_bytes == 1500
    assert heads(backlog) == [key(1, 1), key(1, 0)]


def test_an_epoch_that_is_over_takes_nothing_and_gives_up_what_it_holds() -> None:
    backlog = filled(key(1, 0), key(1, 0, attempt=2), key(2, 0))
    backlog.add_manifest(manifest(1, 7), MACHINE)
    backlog.generations[GENERATION].chain.decide(EpochId(1), b"h" * 32)
    assert {place.number for place in backlog.settle(GENERATION)} == {1, 2, 7}
    assert not backlog.add_segment(key(1, 3), MACHINE, entry(8))
    assert backlog.find(key(1, 0)) is None
    assert heads(backlog) == [key(2, 0)]
    assert backlog.settle(GENERATION) == []


def test_a_closed_generation_is_over_whole() -> None:
    backlog = filled(key(1, 0), key(5, 0))
    backlog.generations[GENERATION].chain.learn(ReceiptFacts(EpochId(0), bytes(32), closed=True))
    assert len(backlog.settle(GENERATION)) == 2
    assert not backlog.add_segment(key(6, 0), MACHINE, entry(9))


def test_a_manifest_learns_what_became_of_its_segments() -> None:
    backlog = filled(key(1, 0), key(1, 1), key(1, 2, attempt=2))
    pending = manifest(1, 7, missing={0, 1})
    backlog.add_manifest(pending, MACHINE)
    for each, state in (
        (key(1, 2, attempt=2), SegmentState.STORED),
        (key(1, 0), SegmentState.STORED),
        (key(1, 1), SegmentState.DISPLACED),
    ):
        assert backlog.generations[GENERATION].head() is not None
        backlog.finish(each, backlog.take(each).place, state)
    assert (pending.missing, pending.lost) == (set(), {BatchNumber(1)})


def test_a_newer_manifest_takes_the_place_of_the_one_that_waits() -> None:
    backlog, older, newer = Backlog(), manifest(1, 7), manifest(1, 8, attempt=2)
    assert backlog.add_manifest(older, MACHINE) is None
    assert backlog.add_manifest(newer, MACHINE) is older
    assert backlog.waiting_bytes == 300
    assert not backlog.drop_manifest(older)
    assert backlog.drop_manifest(newer)
    assert backlog.waiting_bytes == 0


def test_the_manifest_of_the_lowest_epoch_is_the_next() -> None:
    backlog = Backlog()
    for epoch in (5, 3, 4):
        backlog.add_manifest(manifest(epoch, epoch), MACHINE)
    generation = backlog.generations[GENERATION]
    assert generation.next_manifest is not None
    assert generation.next_manifest.key.epoch == 3
    assert len(list(backlog.pending_manifests())) == 3


def test_the_age_of_the_backlog_is_that_of_its_oldest_part_under_way_or_not() -> None:
    backlog = filled(key(1, 0), key(1, 1))
    assert backlog.oldest_accepted_unix_ns() == 1
    taken = backlog.take(key(1, 0))
    assert backlog.oldest_accepted_unix_ns() == 1
    backlog.finish(key(1, 0), taken.place, SegmentState.STORED)
    assert backlog.oldest_accepted_unix_ns() == 2


def test_recovery_marks_and_forgets_only_the_very_record() -> None:
    backlog = filled(key(1, 0), key(1, 1), key(1, 2))
    backlog.mark_stored(key(1, 0), 99)
    backlog.forget_segment(key(1, 1), 99)
    assert backlog.waiting_bytes == 3000
    backlog.mark_stored(key(1, 0), 1)
    backlog.forget_segment(key(1, 1), 2)
    for unknown in (key(1, 9), key(7, 0)):
        backlog.mark_stored(unknown, 1)
        backlog.forget_segment(unknown, 1)
    assert backlog.waiting_bytes == 1000
    assert backlog.oldest_accepted_unix_ns() == 3
    assert heads(backlog) == [key(1, 2)]


def test_the_figures_are_exact_whatever_happens() -> None:
    random, backlog, waiting = Random(3), Backlog(), {}
    for number in range(1, 3001):
        each = key(random.randrange(1, 9), random.randrange(6), random.randrange(1, 3))
        known = backlog.find(each)
        if known is None or known.state in (SegmentState.LOST, SegmentState.DISPLACED):
            size = random.randrange(1, 5000)
            if backlog.add_segment(each, MACHINE, entry(number, size=size)):
                waiting[each] = size
        generation = backlog.generations[GENERATION]
        head = generation.head()
        if head is not None and random.random() < 0.5:
            taken = backlog.take(head[1])
            if random.random() < 0.3:
                backlog.give_back(head[1], taken.place)
            else:
                backlog.finish(head[1], taken.place, random.choice(list(SegmentState)[2:]))
                del waiting[head[1]]
        if random.random() < 0.01:
            backlog.discard_generation(GENERATION)
            backlog.generation(GENERATION, MACHINE)
            waiting.clear()
        assert backlog.waiting_bytes == sum(waiting.values())
        assert len(list(backlog.places())) == len(waiting)
    backlog.discard_generation(GENERATION)
    assert (backlog.waiting_bytes, backlog.index_bytes, list(backlog.places())) == (0, 0, [])


def test_what_a_store_that_was_put_back_had_been_given_is_forgotten_and_what_waits_is_not() -> None:
    backlog = filled(key(2, 0), key(2, 1))
    backlog.finish(key(2, 0), backlog.take(key(2, 0)).place, SegmentState.STORED)
    backlog.add_manifest(manifest(2, 9, missing={1}), MACHINE)
    before = backlog.index_bytes
    backlog.doubt_stored(GENERATION)
    assert backlog.find(key(2, 0)) is None
    assert backlog.find(key(2, 1)) is not None
    assert before - backlog.index_bytes == SEGMENT_INDEX_BYTES
    (pending,) = backlog.pending_manifests()
    assert pending.unverified
    assert heads(backlog) == [key(2, 1)]
    backlog.doubt_stored(GenerationKey(DISK, GenerationId(7)))
