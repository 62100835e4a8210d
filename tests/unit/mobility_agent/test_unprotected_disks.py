"""What is kept of disks that are not protected any more: discarded late, on a trustworthy word only, and nothing else with it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mobility_agent.unprotected_disks import UnprotectedDisks
from replication.errors import Conflict
from replication.identifiers import DiskId

KEEP_S = 60.0
KEPT = [DiskId(str(uuid.UUID(int=number, version=4))) for number in (1, 2)]


class Place:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.discarded: list[DiskId] = []
        self.trouble: Exception | None = None
        self.disks = UnprotectedDisks(directory, self._discard_tracking, KEEP_S)
        for disk in KEPT:
            (directory / disk).mkdir(parents=True)
            (directory / disk / "ledger").write_bytes(b"x")

    def _discard_tracking(self, disk: DiskId) -> None:
        if self.trouble is not None:
            raise self.trouble
        assert (self.directory / disk).is_dir(), "the state goes last"
        self.discarded.append(disk)

    def pass_time(self, now_s: float, wanted: list[DiskId], *, may_destroy: bool = True) -> set[DiskId]:
        self.disks.discard_due(wanted, may_destroy=may_destroy, now_s=now_s)
        return self.disks.kept()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "disks")


def test_what_is_not_wanted_is_discarded_after_its_time_and_what_is_wanted_never(place: Place) -> None:
    assert place.pass_time(0, [KEPT[0]]) == set(KEPT)
    assert place.pass_time(KEEP_S - 1, [KEPT[0]]) == set(KEPT)
    assert place.pass_time(KEEP_S, [KEPT[0]]) == {KEPT[0]}
    assert place.discarded == [KEPT[1]]


def test_a_wish_that_comes_back_begins_the_time_anew(place: Place) -> None:
    place.pass_time(0, [])
    place.pass_time(KEEP_S - 1, KEPT)
    place.pass_time(KEEP_S + 1, [])
    assert place.pass_time(2 * KEEP_S, []) == set(KEPT)
    assert place.pass_time(2 * KEEP_S + 1, []) == set()


def test_on_a_word_that_may_not_destroy_nothing_is_discarded_however_long_it_lasts(place: Place) -> None:
    place.pass_time(0, [])
    assert place.pass_time(10 * KEEP_S, [], may_destroy=False) == set(KEPT)
    assert place.pass_time(10 * KEEP_S + 1, []) == set(KEPT), "the time runs from the first word that may"


@pytest.mark.parametrize("trouble", [Conflict("cannot discard: in use"), OSError(16, "busy")])
def test_what_cannot_be_discarded_now_is_tried_again(place: Place, trouble: Exception) -> None:
    place.pass_time(0, [KEPT[0]])
    place.trouble = trouble
    assert place.pass_time(KEEP_S, [KEPT[0]]) == set(KEPT)
    place.trouble = None
    assert place.pass_time(KEEP_S + 1, [KEPT[0]]) == {KEPT[0]}


def test_what_is_no_disk_s_is_left_alone(place: Place) -> None:
    (place.directory / "lost+found").mkdir()
    (place.directory / "notes.txt").write_text("mine")
    place.pass_time(0, [])
    assert place.pass_time(KEEP_S, []) == set()
    assert sorted(path.name for path in place.directory.iterdir()) == ["lost+found", "notes.txt"]


def test_without_the_directory_nothing_is_kept(tmp_path: Path) -> None:
    assert UnprotectedDisks(tmp_path / "none", lambda _: None, KEEP_S).kept() == set()
