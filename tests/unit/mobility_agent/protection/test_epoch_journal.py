"""The journal on disk: whatever call of the operating system fails or is the last one, the ledger is the old or the new one, whole."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from mobility_agent.core.epoch_ledger import EpochLedger, FixedManifest
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.shipping.digest_table import DIGEST_BYTES
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.errors import IntegrityError
from replication.identifiers import AttemptNumber, DiskId, EpochId, GenerationId
from tests.harness.interruptions import interrupted

DISK = DiskId("22222222-2222-4222-8222-222222222222")
GEOMETRY = Geometry(64 * 4096, 4096)
FIXED = FixedManifest(AttemptNumber(2), b"m" * 32, b"p" * 32)


def make_ledger(*runs: tuple[int, int]) -> EpochLedger:
    ledger = EpochLedger(DISK, GenerationId(1), GEOMETRY)
    bitmap = DirtyBitmap(GEOMETRY.granules)
    bitmap.mark_runs(GranuleRuns.of(runs))
    ledger.absorb(bitmap)
    return ledger


def test_there_is_no_ledger_at_first(tmp_path: Path) -> None:
    assert EpochJournal(tmp_path / "new/place").load() is None


def test_each_saving_has_the_next_serial(tmp_path: Path) -> None:
    journal, ledger = EpochJournal(tmp_path), make_ledger((1, 1))
    for serial in (1, 2, 3):
        journal.save(ledger)
        loaded = EpochJournal(tmp_path).load()
        assert loaded is not None
        assert loaded.serial == ledger.serial == serial


@pytest.mark.parametrize("after_effect", [False, True], ids=["instead", "after"])
@pytest.mark.parametrize("crash", [False, True], ids=["fails", "crashes"])
def test_a_saving_that_is_cut_off_leaves_the_old_or_the_new_ledger(
    tmp_path: Path, crash: bool, after_effect: bool
) -> None:
    at = 0
    while True:
        directory = tmp_path / str(at)
        EpochJournal(directory).save(make_ledger((1, 1)))
        with interrupted(at, crash=crash, after_effect=after_effect) as interrupter:
            ledger = make_ledger((1, 1), (9, 5))
            ledger.serial = 1
            with contextlib.suppress(OSError):
                EpochJournal(directory).save(ledger)
        found = EpochJournal(directory).load()
        assert found is not None
        assert (found.serial, list(found.pending.runs())) in [(1, [(1, 1)]), (2, [(1, 1), (9, 5)])]
        if not interrupter.struck:
            assert found.serial == 2
            return
        at += 1


def test_a_damaged_ledger_is_named_with_its_file(tmp_path: Path) -> None:
    journal = EpochJournal(tmp_path)
    journal.save(make_ledger())
    (tmp_path / "ledger").write_bytes(b"rubbish, but long enough to hold a checksum")
    with pytest.raises(IntegrityError, match=str(tmp_path / "ledger")):
        journal.load()


def test_digests_are_given_only_for_the_manifest_that_they_were_saved_for(tmp_path: Path) -> None:
    journal = EpochJournal(tmp_path)
    indices = np.array([5, 3, 63], dtype=np.int64)
    digests = np.arange(3 * DIGEST_BYTES, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    journal.save_digests(EpochId(7), FIXED, indices, digests)
    found = journal.load_digests(EpochId(7), FIXED)
    assert found is not None
    assert found[0].tolist() == indices.tolist()
    assert (found[1] == digests).all()
    other = FixedManifest(FIXED.attempt, b"o" * 32, FIXED.previous_hash)
    assert journal.load_digests(EpochId(7), other) is None
    assert journal.load_digests(EpochId(8), FIXED) is None


def test_no_digests_at_all_can_be_saved(tmp_path: Path) -> None:
    journal = EpochJournal(tmp_path)
    journal.save_digests(EpochId(1), FIXED, np.empty(0, dtype=np.int64), np.empty((0, DIGEST_BYTES), dtype=np.uint8))
    found = journal.load_digests(EpochId(1), FIXED)
    assert found is not None
    assert found[0].size == found[1].size == 0


def test_digests_that_a_crash_cut_off_are_not_known(tmp_path: Path) -> None:
    journal = EpochJournal(tmp_path)
    journal.save_digests(EpochId(7), FIXED, np.array([1]), np.zeros((1, DIGEST_BYTES), dtype=np.uint8))
    path = tmp_path / "digests-7-2"
    content = path.read_bytes()
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        assert journal.load_digests(EpochId(7), FIXED) is None
        path.write_bytes(content[:length] + bytes(len(content) - length))
        assert journal.load_digests(EpochId(7), FIXED) is None


def test_digests_are_dropped_up_to_an_epoch_or_all_and_nothing_else(tmp_path: Path) -> None:
    journal = EpochJournal(tmp_path)
    journal.save(make_ledger())
    for number in (1, 2, 11):
        journal.save_digests(EpochId(number), FIXED, np.array([1]), np.zeros((1, DIGEST_BYTES), dtype=np.uint8))
    journal.drop_digests(EpochId(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digests-11-2", "ledger"]
    journal.drop_digests()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]
