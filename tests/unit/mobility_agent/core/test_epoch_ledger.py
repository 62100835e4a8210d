"""The ledger of epochs: what is pending, sealed, adopted, confirmed; and that no granule is ever in no place."""

from __future__ import annotations

import pytest

from mobility_agent.core.epoch_ledger import EpochLedger, EpochState, HistoryDiverged
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.epoch_manifest import NO_MANIFEST, ConsistentCut, EpochFlag, manifest_hash
from replication.errors import BlockferryError
from replication.identifiers import CutId, DiskId, EpochId, GenerationId, ItemId

DISK = DiskId("22222222-2222-4222-8222-222222222222")
ITEM = ItemId("11111111-1111-4111-8111-111111111111")
CUT = CutId("33333333-3333-4333-8333-333333333333")
GEOMETRY = Geometry(256 * 4096, 4096)


@pytest.fixture
def ledger() -> EpochLedger:
    return EpochLedger(DISK, GenerationId(1), GEOMETRY)


def change(ledger: EpochLedger, *runs: tuple[int, int]) -> None:
    bitmap = DirtyBitmap(GEOMETRY.granules)
    bitmap.mark_runs(GranuleRuns.of(runs))
    ledger.absorb(bitmap)


def cut(ledger: EpochLedger, *runs: tuple[int, int], time_ns: int = 100) -> EpochId:
    change(ledger, *runs)
    epoch = ledger.cut(limit_granules=1000, harvest_time_ns=time_ns)
    assert epoch is not None
    return epoch.number


def seal(ledger: EpochLedger, number: EpochId, content: bytes | None = None) -> bytes:
    """The manifest that is sealed for it."""
    epoch = ledger.find(number)
    assert epoch is not None
    manifest = content or b"manifest %d, attempt %d" % (number, epoch.attempt)
    ledger.seal(number, manifest)
    return manifest


def confirm(ledger: EpochLedger, number: EpochId, manifest: bytes) -> list[int]:
    confirmed = ledger.confirm(number, manifest_hash(manifest), 7)
    return [each.epoch.number for each in confirmed]


def test_a_cut_moves_granules_from_pending_to_an_epoch(ledger: EpochLedger) -> None:
    number = cut(ledger, (3, 4), (100, 1))
    epoch = ledger.find(number)
    assert epoch is not None
    assert list(epoch.granules) == [(3, 4), (100, 1)]
    assert ledger.pending_granules == 0
    assert ledger.cut(limit_granules=1000, harvest_time_ns=200) is None


def test_a_cut_time_is_claimed_only_if_nothing_stays_pending(ledger: EpochLedger) -> None:
    change(ledger, (0, 10))
    partial = ledger.cut(limit_granules=4, harvest_time_ns=100)
    whole = ledger.cut(limit_granules=1000, harvest_time_ns=200)
    assert partial is not None
    assert whole is not None
    assert (partial.cut_time_ns, whole.cut_time_ns) == (0, 200)
    later = cut(ledger, (1, 1), time_ns=300)
    found = ledger.find(later)
    assert found is not None
    assert found.cut_time_ns == 300
    change(ledger, (5, 1))
    without_harvest = ledger.cut(limit_granules=1000, harvest_time_ns=None)
    assert without_harvest is not None
    assert without_harvest.cut_time_ns == 300


def test_a_count_that_a_change_overtook_does_not_count(ledger: EpochLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread absorbs a harvest while this one counts: the number it found must not stay."""
    counted = DirtyBitmap.count

    def count_slowly(bitmap: DirtyBitmap) -> int:
        found = counted(bitmap)
        monkeypatch.setattr(DirtyBitmap, "count", counted)
        change(ledger, (9, 2))
        return found

    change(ledger, (0, 1))
    monkeypatch.setattr(DirtyBitmap, "count", count_slowly)
    assert ledger.pending_granules == 1
    assert ledger.pending_granules == 3


def test_seeding_takes_granules_in_order_and_what_changes_behind_it_waits(ledger: EpochLedger) -> None:
    ledger.begin_seeding()
    first = ledger.cut(limit_granules=100, harvest_time_ns=1)
    assert first is not None
    change(ledger, (5, 1))
    second = ledger.cut(limit_granules=100, harvest_time_ns=2)
    assert second is not None
    assert list(second.granules) == [(100, 100)]
    third = ledger.cut(limit_granules=100, harvest_time_ns=3)
    assert third is not None
    assert list(third.granules) == [(200, 56)]
    assert ledger.seed_cursor is None
    assert ledger.is_seeding
    delta = ledger.cut(limit_granules=100, harvest_time_ns=4)
    assert delta is not None
    assert list(delta.granules) == [(5, 1)]
    assert not delta.flags & EpochFlag.SEEDING


def test_manifests_chain_and_epochs_are_sealed_in_order(ledger: EpochLedger) -> None:
    first, second = cut(ledger, (1, 1)), cut(ledger, (2, 1))
    with pytest.raises(BlockferryError, match="before the one it chains to"):
        ledger.seal(second, b"x")
    manifest = seal(ledger, first)
    assert ledger.chain_hash(first) == NO_MANIFEST
    assert ledger.chain_hash(second) == manifest_hash(manifest)
    with pytest.raises(BlockferryError, match="twice"):
        ledger.seal(first, b"x")
    with pytest.raises(BlockferryError, match="cannot find"):
        ledger.seal(EpochId(9), b"x")


def test_a_new_attempt_opens_all_later_epochs_and_a_point_is_no_point_any_more(ledger: EpochLedger) -> None:
    first = cut(ledger, (1, 1))
    seal(ledger, first)
    point = ledger.add_point(
        GranuleRuns.of([(2, 1)]), EpochFlag.APP_CONSISTENT, 50, ConsistentCut(CUT, ITEM, (DISK,))
    ).number
    seal(ledger, point)
    ledger.begin_attempt(first)
    opened = ledger.find(point)
    assert opened is not None
    assert (opened.state, opened.attempt, opened.cut, opened.flags) == (EpochState.OPEN, 2, None, EpochFlag(0))
    assert list(opened.granules) == [(2, 1)]
    assert len(opened.fixed) == 1


def test_a_receipt_confirms_all_epochs_up_to_it_by_the_chain(ledger: EpochLedger) -> None:
    numbers = [cut(ledger, (index, 1)) for index in range(3)]
    manifests = [seal(ledger, number) for number in numbers]
    assert [each.epoch.number for each in ledger.confirmable(numbers[1], manifest_hash(manifests[1]))] == [1, 2]
    assert ledger.applied_epoch == 0, "asking changes nothing"
    assert confirm(ledger, numbers[1], manifests[1]) == [1, 2]
    assert (ledger.applied_epoch, ledger.applied_cut_time_ns) == (2, 7)
    assert confirm(ledger, numbers[1], manifests[1]) == [], "the same receipt again"
    assert confirm(ledger, numbers[0], manifests[0]) == [], "an older receipt"
    assert [epoch.number for epoch in ledger.epochs] == [3]
    assert ledger.next_epoch == 4


def test_an_earlier_attempt_that_decided_opens_what_was_chained_to_the_later_one(ledger: EpochLedger) -> None:
    first, second = cut(ledger, (1, 1)), cut(ledger, (2, 1))
    decided = seal(ledger, first)
    ledger.begin_attempt(first)
    seal(ledger, first)
    seal(ledger, second)
    assert confirm(ledger, first, decided) == [1]
    opened = ledger.find(second)
    assert opened is not None
    assert opened.state is EpochState.OPEN
    assert ledger.chain_hash(second) == manifest_hash(decided)


def test_a_receipt_of_another_history_diverges_and_changes_nothing(ledger: EpochLedger) -> None:
    first, second = cut(ledger, (1, 1)), cut(ledger, (2, 1))
    manifest = seal(ledger, first)
    for number, content in ((first, b"never sealed here"), (second, b"not sealed yet"), (EpochId(7), b"ahead")):
        with pytest.raises(HistoryDiverged):
            confirm(ledger, number, content)
    assert confirm(ledger, first, manifest) == [1]
    with pytest.raises(HistoryDiverged, match="applied another manifest"):
        confirm(ledger, first, b"other")


def test_manifests_that_do_not_chain_to_what_was_applied_diverge(ledger: EpochLedger) -> None:
    """Both were sealed here, but the first one's applied attempt is not the one that the second chains to."""
    first, second = cut(ledger, (1, 1)), cut(ledger, (2, 1))
    early = seal(ledger, first)
    ledger.begin_attempt(first)
    seal(ledger, first)
    late = seal(ledger, second)
    ledger.confirm(first, manifest_hash(early), 0)
    with pytest.raises(HistoryDiverged):
        confirm(ledger, second, late)


def test_an_earlier_manifest_in_the_store_is_adopted_and_a_foreign_one_is_not(ledger: EpochLedger) -> None:
    first, second = cut(ledger, (1, 1)), cut(ledger, (2, 1))
    early = seal(ledger, first)
    ledger.begin_attempt(first)
    seal(ledger, first)
    seal(ledger, second)
    ledger.adopt(first, early)
    adopted, after = ledger.find(first), ledger.find(second)
    assert adopted is not None
    assert after is not None
    assert adopted.sealed is not None
    assert (adopted.sealed.attempt, adopted.manifest, after.state) == (1, early, EpochState.OPEN)
    with pytest.raises(HistoryDiverged):
        ledger.adopt(first, b"foreign")


def test_a_void_manifest_gives_its_granules_back(ledger: EpochLedger) -> None:
    first, second = cut(ledger, (1, 3)), cut(ledger, (9, 1))
    seal(ledger, first)
    with pytest.raises(HistoryDiverged):
        ledger.adopt_void(first, b"void", b"\1" * 32)
    ledger.adopt_void(first, b"void", NO_MANIFEST)
    assert list(ledger.pending.runs()) == [(1, 3)]
    assert ledger.pending_granules == 3
    assert confirm(ledger, first, b"void") == [1]
    after = ledger.find(second)
    assert after is not None
    assert after.state is EpochState.OPEN


def test_granules_of_all_other_unconfirmed_epochs_are_not_to_be_skipped(ledger: EpochLedger) -> None:
    numbers = [cut(ledger, (index, 1)) for index in range(3)]
    assert [list(runs) for runs in ledger.granules_not_to_skip(numbers[1])] == [[(0, 1)], [(2, 1)]]


def test_an_epoch_is_found_by_its_number_while_another_thread_confirms(ledger: EpochLedger) -> None:
    """The list of epochs and the number of the applied one are two things: between them nothing is taken for another."""
    numbers = [cut(ledger, (index, 1)) for index in range(3)]
    ledger.epochs = ledger.epochs[1:]  # as inside ``confirm``
    assert ledger.find(numbers[0]) is None
    found = ledger.find(numbers[1])
    assert found is not None
    assert found.number == numbers[1]
