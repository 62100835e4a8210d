"""Ledger, digest table and tracker opened together: each may be lost, old or of another history, and digests that nobody vouches for go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from mobility_agent.core.epoch_ledger import EpochLedger, HistoryDiverged
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.ledger_opening import open_ledger, settle_attach
from mobility_agent.shipping.digest_table import DigestTable
from replication.control_plane import GenerationGrant
from replication.dirty_bitmap import DirtyBitmap, Geometry
from replication.epoch_manifest import manifest_hash
from replication.errors import ResyncRequired
from replication.identifiers import DiskId, EpochId, GenerationId
from replication.store_documents import GenerationBase
from tests.harness.fake_tracker import FakeDisk, FakeTracker

DISK = DiskId("22222222-2222-4222-8222-222222222222")
ITEM = "11111111-1111-4111-8111-111111111111"
GEOMETRY = Geometry(64 * 4096, 4096)
UNKNOWN = bytes(16)
EXACT = 5
"""The epoch that the table is exact for, in ``Place``."""


class Place:
    """A disk's state directory: all digests known and exact for epoch 5 of generation 1, whose ledger is the test's to make."""

    def __init__(self, directory: Path) -> None:
        self.journal = EpochJournal(directory)
        self.path = directory / "digests"
        self.table = DigestTable(self.path, DISK, GEOMETRY, bytes(32))
        self.table.begin_generation(GenerationId(1), ())
        digests = np.full((GEOMETRY.granules, 16), 7, dtype=np.uint8)
        self.table.apply(EpochId(EXACT), np.arange(GEOMETRY.granules, dtype=np.int64), digests)

    def save_ledger(self, epochs: Sequence[str], *, applied: int = EXACT) -> EpochLedger:
        """``epochs``: sealed or open, numbered from ``applied`` + 1; each has the one granule of its number."""
        ledger = EpochLedger(DISK, GenerationId(1), GEOMETRY)
        ledger.applied_epoch, ledger.applied_hash, ledger.serial = EpochId(applied), hash_of(applied), 20
        for number, state in enumerate(epochs, applied + 1):
            bitmap = DirtyBitmap(GEOMETRY.granules)
            bitmap.mark(number, 1)
            ledger.absorb(bitmap)
            ledger.cut(limit_granules=9, harvest_time_ns=1)
            if state == "sealed":
                ledger.seal(EpochId(number), _manifest(number))
        self.journal.save(ledger)
        return ledger

    def open(self, grant: GenerationGrant, *, is_new: bool = True, distrust_digests: bool = False) -> EpochLedger:
        return open_ledger(
            self.journal, self.table, grant, GEOMETRY, is_new=is_new, distrust_digests=distrust_digests, serial=3
        )

    @property
    def unknown(self) -> list[int]:
        return [granule for granule in range(GEOMETRY.granules) if self.table.known(granule) == UNKNOWN]


ALL = list(range(GEOMETRY.granules))


def _manifest(number: int, history: str = "") -> bytes:
    return f"{history}{number}".encode()


def hash_of(number: int, history: str = "") -> bytes:
    return manifest_hash(_manifest(number, history))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.table.close()


def grant_of(
    generation: int,
    base_epoch: int | None = None,
    *,
    base_generation: int = 1,
    torn: bool = False,
    history: str | None = "",
    torn_history: str | None = "",
) -> GenerationGrant:
    """``history``, ``torn_history``: whose manifests the sink applied; None: the configuration server does not say."""
    base = None
    if base_epoch is not None:
        base = GenerationBase(
            generation=base_generation,
            epoch=base_epoch,
            manifest_hash=None if history is None else hash_of(base_epoch, history).hex(),
            torn_manifest_hash=hash_of(base_epoch + 1, torn_history).hex()
            if torn and torn_history is not None
            else None,
        )
    return GenerationGrant(
        disk=DISK,
        item=ITEM,
        generation=generation,
        size_bytes=GEOMETRY.size_bytes,
        granularity_bytes=GEOMETRY.granularity_bytes,
        base=base,
        torn=torn,
        manifest_key="0" * 64,
        digest_key="0" * 64,
        writer_public_key="key",
    )


# ---- a new generation


def test_a_new_generation_seeds_everything_and_counts_serials_on(place: Place) -> None:
    saved = place.save_ledger(["sealed"])
    ledger = place.open(grant_of(2, 5))
    assert (ledger.generation, ledger.seed_cursor, ledger.pending_granules) == (2, 0, GEOMETRY.granules)
    assert ledger.serial > saved.serial
    assert (place.table.generation, place.table.exact_epoch) == (2, 0)


@pytest.mark.parametrize("base", [5, 6, 7])
def test_granules_of_every_unconfirmed_epoch_are_forgotten(place: Place, base: int) -> None:
    """Up to the base they were applied; beyond it the sink may have applied a part. What else was applied is still known."""
    place.save_ledger(["sealed", "sealed", "open"])
    place.open(grant_of(2, base))
    assert place.unknown == [6, 7, 8]


def test_a_torn_epoch_that_is_known_here_is_forgotten_and_the_rest_is_kept(place: Place) -> None:
    place.save_ledger(["sealed", "sealed"])
    place.open(grant_of(2, 6, torn=True))
    assert place.unknown == [6, 7]


@pytest.mark.parametrize("base", [5, 6, 7])
@pytest.mark.parametrize("history", ["another", None])
def test_a_base_of_another_history_leaves_nothing_known_although_its_number_is_known(
    place: Place, base: int, history: str | None
) -> None:
    """The machine was reverted: under the numbers of its own epochs the sink has applied what it knows nothing of."""
    place.save_ledger(["sealed", "sealed"])
    place.open(grant_of(2, base, history=history))
    assert place.unknown == ALL


@pytest.mark.parametrize("history", ["another", None])
def test_a_torn_epoch_of_another_history_leaves_nothing_known(place: Place, history: str | None) -> None:
    place.save_ledger(["sealed", "sealed"])
    place.open(grant_of(2, 6, torn=True, torn_history=history))
    assert place.unknown == ALL


def test_a_base_that_an_earlier_attempt_decided_is_this_ledger_s(place: Place) -> None:
    saved = place.save_ledger(["sealed", "sealed"])
    saved.begin_attempt(EpochId(6))
    place.journal.save(saved)
    place.open(grant_of(2, 6))
    assert place.unknown == [6, 7]


@pytest.mark.parametrize("epochs", [["sealed"], ["sealed", "open"]], ids=["not known here", "never sealed here"])
def test_after_a_torn_epoch_that_is_not_this_ledger_s_nothing_is_known(place: Place, epochs: list[str]) -> None:
    place.save_ledger(epochs)
    place.open(grant_of(2, 6, torn=True))
    assert place.unknown == ALL


def test_a_torn_epoch_after_all_that_is_known_here_leaves_nothing_known(place: Place) -> None:
    """Its granules are in no ledger: without the word of the sink, what it overwrote would be taken for sent."""
    place.save_ledger([])
    place.open(grant_of(2, 5, torn=True))
    assert place.unknown == ALL


@pytest.mark.parametrize(
    "grant",
    [
        grant_of(2),
        grant_of(2, 4),
        grant_of(2, 8),
        grant_of(3, 5, base_generation=2),
    ],
    ids=["no base", "base before the table", "base beyond the ledger", "base of another generation"],
)
def test_a_base_that_the_ledger_does_not_lead_to_leaves_nothing_known(place: Place, grant: GenerationGrant) -> None:
    place.save_ledger(["sealed", "sealed"])
    place.open(grant)
    assert place.unknown == ALL


def test_an_epoch_that_was_never_sealed_here_cannot_be_what_was_applied(place: Place) -> None:
    place.save_ledger(["sealed", "open"])
    place.open(grant_of(2, 7))
    assert place.unknown == ALL


def test_distrusted_digests_are_all_forgotten(place: Place) -> None:
    place.save_ledger([])
    place.open(grant_of(2, 5), distrust_digests=True)
    assert place.unknown == ALL


def test_without_a_readable_ledger_nothing_is_known(place: Place, tmp_path: Path) -> None:
    place.save_ledger([])
    (tmp_path / "ledger").write_bytes(b"rubbish, but long enough to hold a checksum")
    ledger = place.open(grant_of(2, 5))
    assert place.unknown == ALL
    assert ledger.serial > 3


def test_a_crash_before_the_new_ledger_was_saved_changes_nothing(place: Place) -> None:
    """The table is of the new generation already, the ledger still of the old one: done again, it comes to the same."""
    place.save_ledger(["sealed", "sealed"])
    saved = place.journal.load()
    assert saved is not None
    place.open(grant_of(2, 6))
    place.journal.save(saved)
    ledger = place.open(grant_of(2, 6))
    assert ledger.generation == 2
    assert place.unknown == [6, 7]


def test_a_new_generation_that_was_begun_before_a_crash_is_gone_on_with(place: Place) -> None:
    place.save_ledger([])
    begun = place.open(grant_of(2, 5))
    again = place.open(grant_of(2, 5))
    assert (again.serial, again.seed_cursor) == (begun.serial, 0)
    assert place.unknown == []


# ---- the present generation


def test_the_saved_ledger_of_the_granted_generation_is_gone_on_with(place: Place) -> None:
    place.save_ledger(["sealed"])
    ledger = place.open(grant_of(1), is_new=False)
    assert [epoch.number for epoch in ledger.epochs] == [6]
    assert place.unknown == []


def test_a_ledger_that_is_missing_damaged_or_of_another_generation_demands_a_resync(
    place: Place, tmp_path: Path
) -> None:
    with pytest.raises(ResyncRequired, match="missing"):
        place.open(grant_of(1), is_new=False)
    place.save_ledger([])
    with pytest.raises(ResyncRequired, match="another generation"):
        place.open(grant_of(2), is_new=False)
    (tmp_path / "ledger").write_bytes(b"rubbish, but long enough to hold a checksum")
    with pytest.raises(ResyncRequired, match="checksum"):
        place.open(grant_of(1), is_new=False)


def test_what_a_table_ahead_of_the_ledger_knows_of_later_epochs_is_forgotten(place: Place) -> None:
    """A full disk lets the table be updated and not the ledger. The receipt comes again; until then nothing may be skipped for what was
    applied after the epoch that the ledger, and so the table from now on, stands for: it would have been exact for epoch 4 with what it
    knows of epoch 5 as soon as epoch 4 was recorded again.
    """
    place.save_ledger(["sealed", "sealed", "sealed"], applied=3)
    place.open(grant_of(1), is_new=False)
    assert place.unknown == [4, 5]
    assert (place.table.exact_epoch, place.table.interrupted_epoch) == (3, None)


def test_a_table_ahead_of_the_ledger_whose_next_update_was_interrupted_forgets_that_too(place: Place) -> None:
    place.save_ledger(["sealed", "sealed", "sealed"], applied=4)
    place.table._begin(EpochId(6))
    place.open(grant_of(1), is_new=False)
    assert place.unknown == [5, 6]
    assert (place.table.exact_epoch, place.table.interrupted_epoch) == (4, None)


def test_a_table_of_an_epoch_that_the_ledger_does_not_know_is_forgotten(place: Place) -> None:
    place.save_ledger(["sealed"], applied=2)
    place.open(grant_of(1), is_new=False)
    assert place.unknown == ALL


def test_a_table_behind_the_ledger_is_forgotten(place: Place) -> None:
    """It was restored from a backup: what was applied since is not in it."""
    place.save_ledger([], applied=6)
    place.open(grant_of(1), is_new=False)
    assert place.unknown == ALL
    assert place.table.exact_epoch == 6


def test_an_update_that_was_interrupted_costs_the_granules_of_its_epoch(place: Place) -> None:
    place.save_ledger(["sealed", "sealed"])
    place.table._begin(EpochId(6))  # as a crash in the middle of ``apply`` leaves it
    place.open(grant_of(1), is_new=False)
    assert place.unknown == [6]
    assert (place.table.exact_epoch, place.table.interrupted_epoch) == (5, None)


def test_an_interrupted_update_of_an_epoch_that_nobody_knows_costs_all(place: Place) -> None:
    place.save_ledger([])
    place.table._begin(EpochId(5))
    place.open(grant_of(1), is_new=False)
    assert place.unknown == ALL


# ---- the tracker


def test_a_tracker_that_could_not_continue_demands_a_resync_unless_everything_is_still_to_be_read() -> None:
    tracker = FakeTracker(FakeDisk(GEOMETRY))
    ledger = EpochLedger(DISK, GenerationId(1), GEOMETRY)
    with pytest.raises(ResyncRequired, match="tracking was interrupted"):
        settle_attach(tracker, ledger)
    ledger.begin_seeding()
    settle_attach(tracker, ledger)
    assert not tracker.begin_harvest().doubt.reason, "what was before is covered by the seeding"


def test_a_ledger_older_than_what_the_tracker_has_given_away_has_diverged() -> None:
    disk = FakeDisk(GEOMETRY)
    first = FakeTracker(disk)
    first.begin_harvest()
    first.commit_harvest(9)
    ledger = EpochLedger(DISK, GenerationId(1), GEOMETRY)
    ledger.serial = 8
    with pytest.raises(HistoryDiverged, match="older than the tracking"):
        settle_attach(FakeTracker(disk), ledger)
    ledger.serial = 9
    settle_attach(FakeTracker(disk), ledger)


def test_marks_of_a_tracker_that_continued_are_kept() -> None:
    disk = FakeDisk(GEOMETRY)
    FakeTracker(disk).commit_harvest()
    ledger = EpochLedger(DISK, GenerationId(1), GEOMETRY)
    disk.write(4096, b"x" * 512)
    tracker = FakeTracker(disk)
    settle_attach(tracker, ledger)
    assert list(tracker.begin_harvest().bitmap.runs()) == [(1, 1)]


def tracked_disk() -> FakeDisk:
    """Its tracking began long ago."""
    disk = FakeDisk(GEOMETRY)
    tracker = FakeTracker(disk)
    tracker.begin_harvest()
    tracker.commit_harvest()
    return disk


def test_tracking_that_was_lost_before_an_ordered_resync_began_is_a_reason_of_its_own() -> None:
    """R12: the order's reason says that nothing was lost, so the points that were cut since would stay unsuspected."""
    ledger = EpochLedger(DISK, GenerationId(2), GEOMETRY)
    ledger.begin_seeding()
    rebooted = FakeTracker(FakeDisk(GEOMETRY))
    with pytest.raises(ResyncRequired, match="before the ordered resync began: it was started anew"):
        settle_attach(rebooted, ledger, is_ordered=True)
    overflowed = tracked_disk()
    overflowed.lost_marks = "the map overflowed"
    with pytest.raises(ResyncRequired, match="before the ordered resync began: the map overflowed"):
        settle_attach(FakeTracker(overflowed), ledger, is_ordered=True)
    with pytest.raises(ResyncRequired, match="the map overflowed"):
        settle_attach(FakeTracker(overflowed), ledger, is_ordered=True)
    settle_attach(FakeTracker(overflowed), ledger)
    settle_attach(FakeTracker(tracked_disk()), ledger, is_ordered=True)
