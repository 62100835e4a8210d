"""Completeness, order, pruning and dropping of recovery points. Called by pytest."""

from __future__ import annotations

import pytest

from azure_sink.core.recovery_points import (
    CutMismatch,
    PointSnapshot,
    complete_point,
    is_newer,
    not_prunable,
    still_awaited,
)
from azure_sink.core.replica_state import PointMark, Position
from replication.identifiers import CutId, DiskId, ItemId
from replication.store_documents import RecoveryPoint, RecoveryPointDisk

ITEM = ItemId("00000000-0000-4000-8000-000000000001")
A, B, C = (DiskId(f"00000000-0000-4000-8000-00000000000{letter}") for letter in "abc")


def cut(number: int) -> CutId:
    return CutId(f"10000000-0000-4000-8000-{number:012x}")


def snapshot(disk: DiskId, mark: PointMark, epoch: int = 1, time_ns: int = 100) -> PointSnapshot:
    return PointSnapshot(disk, f"snapshot-{epoch}", Position(1, epoch), "00" * 32, time_ns, 4096, mark)


def point(number: int, time_ns: int, **epochs: int) -> RecoveryPoint:
    disks = {"a": A, "b": B, "c": C}
    return RecoveryPoint(
        item=ITEM,
        cut=cut(number),
        time_ns=time_ns,
        consistency="crash",
        disks=[
            RecoveryPointDisk(
                disk=disks[name], generation=1, epoch=epoch, manifest_hash="00" * 32, snapshot="s", size_bytes=1
            )
            for name, epoch in epochs.items()
        ],
    )


def test_point_is_complete_only_with_every_disk() -> None:
    mark = PointMark(cut(1), ITEM, (B, A))
    assert complete_point({A: snapshot(A, mark)}, mark) is None
    made = complete_point({A: snapshot(A, mark, 3, 90), B: snapshot(B, mark, 7, 90)}, mark)
    assert made is not None
    assert [(part.disk, part.epoch) for part in made.disks] == [(A, 3), (B, 7)]
    assert made.time_ns == 90


def test_same_snapshots_make_the_same_record() -> None:
    one, other = PointMark(cut(1), ITEM, (A, B)), PointMark(cut(1), ITEM, (B, A))
    first = complete_point({A: snapshot(A, one), B: snapshot(B, other)}, one)
    second = complete_point({B: snapshot(B, other), A: snapshot(A, one)}, other)
    assert first == second


def test_point_is_app_consistent_and_final_only_if_every_disk_is() -> None:
    plain, special = PointMark(cut(1), ITEM, (A, B)), PointMark(cut(1), ITEM, (A, B), app_consistent=True, final=True)
    mixed = complete_point({A: snapshot(A, plain), B: snapshot(B, special)}, plain)
    both = complete_point({A: snapshot(A, special), B: snapshot(B, special)}, special)
    assert mixed is not None
    assert (mixed.consistency, mixed.final) == ("crash", False)
    assert both is not None
    assert (both.consistency, both.final) == ("app", True)


def test_snapshots_that_disagree_about_the_cut_make_no_point() -> None:
    mine, theirs = PointMark(cut(1), ITEM, (A, B)), PointMark(cut(1), ITEM, (A, B, C))
    with pytest.raises(CutMismatch, match="different cuts"):
        complete_point({A: snapshot(A, mine), B: snapshot(B, theirs)}, mine)


def test_parts_of_different_instants_make_no_point() -> None:
    """Also while a part is missing: no part that comes can mend it."""
    mark = PointMark(cut(1), ITEM, (A, B, C))
    parts = {A: snapshot(A, mark, 3, 100), B: snapshot(B, mark, 7, 101)}
    with pytest.raises(CutMismatch, match="different times"):
        complete_point(parts, mark)
    with pytest.raises(CutMismatch, match="different times"):
        complete_point({**parts, C: snapshot(C, mark, 1, 100)}, mark)


def test_history_and_not_the_clock_says_which_point_is_newer() -> None:
    early, late = point(1, 500, a=3, b=4), point(2, 100, a=5, b=6)
    assert is_newer(late, early)
    assert not is_newer(early, late)
    assert is_newer(point(2, 500, b=1), point(1, 100, a=9)), "without a common disk the clock decides"


def test_newest_point_is_never_pruned() -> None:
    points = [point(number, number, a=number, b=number) for number in (1, 2, 3)]
    assert not_prunable(points, {cut(1), cut(2)}, ()) == []
    assert not_prunable(points, {cut(3)}, ()) == [cut(3)]
    assert not_prunable(points, {cut(1), cut(2), cut(3)}, ()) == [cut(1), cut(2), cut(3)]
    assert not_prunable(points, {cut(1), cut(2), cut(3)}, (A, B)) == [cut(1), cut(2), cut(3)]
    assert not_prunable(points, {cut(9)}, ()) == []
    assert not_prunable([], {cut(1)}, ()) == []


def test_newest_point_of_a_disk_that_later_points_leave_out_is_kept() -> None:
    points = [point(1, 1, a=1, b=1), point(2, 2, a=2, b=2), point(3, 3, a=3)]
    assert not_prunable(points, {cut(1)}, ()) == []
    assert not_prunable(points, {cut(2)}, ()) == [cut(2)]
    assert not_prunable(points, {cut(2)}, (B,)) == [], "its replica is gone"


def test_newest_point_by_a_clock_that_went_back_is_kept() -> None:
    points = [point(1, 900, a=1), point(2, 100, a=2)]
    assert not_prunable(points, {cut(2)}, ()) == [cut(2)]
    assert not_prunable(points, {cut(1)}, ()) == []


def test_cut_is_awaited_until_every_disk_of_it_is_in_a_later_point() -> None:
    waiting = snapshot(A, PointMark(cut(1), ITEM, (A, B)), epoch=5)
    assert still_awaited(waiting, []) == {A, B}
    assert still_awaited(waiting, [point(2, 2, a=4, b=4)]) == {A, B}, "an earlier point"
    assert still_awaited(waiting, [point(2, 2, a=6)]) == {B}
    assert still_awaited(waiting, [point(2, 2, b=6)]) == {A, B}, "another disk's history says nothing of this one's"
    assert still_awaited(waiting, [point(2, 2, a=6, b=6)]) == frozenset()
    assert still_awaited(waiting, [point(2, 2, a=6), point(3, 3, a=7, b=7)]) == frozenset()
