"""When a point is due, and that one name of a cut never stands for two instants."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import pytest

from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.protection.point_schedule import FAILED_POINT_RETRY_S, DuePoint, PointSchedule
from replication.control_plane import PointRequest, ReplicationTiming
from replication.dirty_bitmap import Geometry
from replication.identifiers import CutId, DiskId, GenerationId

TIMING = ReplicationTiming(
    epoch_interval_s=1, recovery_point_interval_s=300, app_consistent_interval_s=None, freeze_budget_s=5
)
WITH_APP = TIMING.model_copy(update={"app_consistent_interval_s": 3600})


def request_of() -> PointRequest:
    return PointRequest(request=str(uuid.uuid4()))


@dataclass
class Disk:
    """What the schedule sees of a disk."""

    ledger: EpochLedger = field(
        default_factory=lambda: EpochLedger(
            DiskId("22222222-2222-4222-8222-222222222222"), GenerationId(1), Geometry(4096, 4096)
        )
    )
    on_its_way: set[CutId] = field(default_factory=set)
    applied: set[CutId] = field(default_factory=set)
    newest_point_cut: CutId | None = None

    def holds_cut(self, cut: CutId) -> bool:
        return cut in self.on_its_way or self.has_applied_cut(cut)

    def has_applied_cut(self, cut: CutId) -> bool:
        return cut in self.applied

    def seal(self, cut: CutId) -> None:
        self.on_its_way.add(cut)

    def record(self, cut: CutId) -> None:
        """The point is applied, complete, and known by its receipt."""
        self.applied.add(cut)
        self.newest_point_cut = cut


class Timeline:
    def __init__(self, disks: int = 1) -> None:
        self.schedule = PointSchedule()
        self.disks = [Disk() for _ in range(disks)]
        self.now_s = 1000.0

    def due(self, request: PointRequest | None = None, timing: ReplicationTiming = TIMING) -> DuePoint | None:
        return self.schedule.due(timing, request, self.disks, self.now_s)

    def make(self, point: DuePoint | None) -> CutId:
        assert point is not None
        for disk in self.disks:
            disk.seal(point.cut)
        self.schedule.note_made(point, self.now_s)
        return point.cut

    def make_and_record(self, point: DuePoint | None) -> CutId:
        cut = self.make(point)
        for disk in self.disks:
            disk.record(cut)
        return cut

    def fail(self, point: DuePoint | None, *, is_spent: bool) -> None:
        assert point is not None
        self.schedule.note_failed(point, self.now_s, is_spent=is_spent)
        assert self.due() is None, "not at once again"
        self.now_s += FAILED_POINT_RETRY_S + 1


@pytest.fixture
def single() -> Timeline:
    return Timeline()


@pytest.fixture
def several() -> Timeline:
    """Two disks; what an agent before this one may have tried is settled."""
    return Timeline(2)


def test_the_first_point_is_due_at_once_and_the_next_after_the_interval(single: Timeline) -> None:
    first = single.make(single.due())
    assert single.due() is None
    single.now_s += 299
    assert single.due() is None
    single.now_s += 1
    second = single.due()
    assert second is not None
    assert second.cut != first


def test_nothing_is_due_while_a_disk_is_seeded(several: Timeline) -> None:
    several.disks[1].ledger.begin_seeding()
    assert several.due(request_of()) is None


def test_an_app_consistent_point_goes_before_and_counts_as_both(single: Timeline) -> None:
    due = single.due(timing=WITH_APP)
    assert due is not None
    assert due.consistency == "app"
    single.make(due)
    assert single.due(timing=WITH_APP) is None


@pytest.mark.parametrize("asked", [True, False])
def test_an_app_consistent_point_that_fails_does_not_keep_the_others_from_being_made(
    single: Timeline, asked: bool
) -> None:
    request = PointRequest(request=str(uuid.uuid4()), consistency="app") if asked else None
    timing = TIMING if asked else WITH_APP
    tried = []
    for _ in range(4):  # the server has no hooks, so that every app-consistent one fails
        due = single.due(request, timing)
        assert due is not None
        tried.append(due.consistency)
        if due.consistency == "app":
            single.schedule.note_failed(due, single.now_s, is_spent=False)
            single.now_s += FAILED_POINT_RETRY_S + 1
        else:
            single.make(due)
    assert tried == ["app", "crash", "app", "app"]


def test_a_point_that_was_opened_again_is_due_again(single: Timeline) -> None:
    cut = single.make(single.due())
    single.disks[0].on_its_way.remove(cut)
    again = single.due()
    assert again is not None
    assert again.cut != cut


def test_a_point_that_every_disk_has_applied_stands_for_ever(single: Timeline) -> None:
    cut = single.make_and_record(single.due())
    assert single.due() is None
    single.disks[0].applied.remove(cut)
    single.disks[0].on_its_way.remove(cut)
    assert single.due() is None


def test_a_request_is_answered_by_a_cut_of_its_name_and_then_no_more(single: Timeline) -> None:
    single.make(single.due())
    request = request_of()
    due = single.due(request)
    assert due is not None
    assert due.cut == request.request
    single.make(due)
    assert single.due(request) is None


def test_a_request_that_was_answered_before_a_restart_is_not_cut_again(several: Timeline) -> None:
    request = request_of()
    for disk in several.disks:
        disk.record(CutId(request.request))
    due = several.due(request)
    assert due is not None
    assert due.cut != request.request, "only the point that is due anyway"


def test_a_request_for_one_disk_keeps_its_name_whatever_happened(single: Timeline) -> None:
    request = request_of()
    for _ in range(3):
        due = single.due(request)
        assert due is not None
        assert due.cut == request.request
        single.fail(due, is_spent=True)


def test_a_request_that_failed_before_anything_was_sealed_keeps_its_name(several: Timeline) -> None:
    several.make(several.due())
    request = request_of()
    for _ in range(3):
        due = several.due(request)
        assert due is not None
        assert due.cut == request.request
        several.fail(due, is_spent=False)


def spent_request(several: Timeline) -> PointRequest:
    """A request of which one disk's part was sealed under its name, and the other's was not."""
    several.make_and_record(several.due())
    request = request_of()
    due = several.due(request)
    assert due is not None
    several.disks[0].seal(due.cut)
    several.fail(due, is_spent=True)
    return request


def test_a_name_that_may_be_used_is_not_used_again_before_a_later_point_is_recorded_on_every_disk(
    several: Timeline,
) -> None:
    """Else the sink would put one disk's part of the first instant and the other's of the second into one point."""
    request = spent_request(several)
    passing = several.due(request)
    assert passing is not None
    assert passing.cut != request.request
    several.make(passing)
    assert several.due(request) is None, "it waits for the record"
    several.disks[0].record(passing.cut)
    assert several.due(request) is None
    several.disks[1].record(passing.cut)
    due = several.due(request)
    assert due is not None
    assert due.cut == request.request


def test_a_point_that_was_recorded_before_the_failure_does_not_pass_it(several: Timeline) -> None:
    request = spent_request(several)
    for _ in range(2):
        due = several.due(request)
        assert due is not None
        assert due.cut != request.request
        several.fail(due, is_spent=True)


def test_a_made_request_that_was_lost_is_spent_too(several: Timeline) -> None:
    several.make_and_record(several.due())
    request = request_of()
    cut = several.make(several.due(request))
    several.disks[1].on_its_way.remove(cut)
    due = several.due(request)
    assert due is not None
    assert due.cut != cut


def test_what_an_agent_before_this_one_may_have_tried_counts_as_spent() -> None:
    timeline, request = Timeline(2), request_of()
    due = timeline.due(request)
    assert due is not None
    assert due.cut != request.request
    timeline.make_and_record(due)
    again = timeline.due(request)
    assert again is not None
    assert again.cut == request.request


def test_another_request_is_not_kept_waiting_by_one_before_it(several: Timeline) -> None:
    several.make_and_record(several.due())
    for _ in range(3):
        request = request_of()
        due = several.due(request)
        assert due is not None
        assert due.cut == request.request
        several.make_and_record(due)


def fail_at_rest(timeline: Timeline, request: PointRequest | None, timing: ReplicationTiming) -> float:
    """The point that is due fails, with applications at rest; how long none of its kind is due."""
    due = timeline.due(request, timing)
    assert due is not None
    timeline.schedule.note_failed(due, timeline.now_s, is_spent=False, was_at_rest=True)
    failed_s = timeline.now_s
    while (again := timeline.due(request, timing)) is None or again.consistency != due.consistency:
        if again is None:
            timeline.now_s += FAILED_POINT_RETRY_S
        else:
            timeline.make(again)
    return timeline.now_s - failed_s


def test_applications_that_were_brought_to_rest_in_vain_are_let_alone_longer_each_time_up_to_the_interval(
    single: Timeline,
) -> None:
    waits = [fail_at_rest(single, None, TIMING) for _ in range(9)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    single.make(single.due())
    single.now_s += 300
    assert fail_at_rest(single, None, TIMING) == 5, "a point that was made ends the patience"


def test_points_without_hooks_are_made_while_applications_are_let_alone(single: Timeline) -> None:
    waits = [fail_at_rest(single, None, WITH_APP) for _ in range(11)]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600]
    assert single.schedule._newest is not None
    assert single.now_s - single.schedule._newest.made_s <= 300 + FAILED_POINT_RETRY_S


def test_another_request_is_tried_although_applications_are_let_alone(single: Timeline) -> None:
    single.make(single.due())
    request = PointRequest(request=str(uuid.uuid4()), consistency="app")
    for _ in range(6):
        fail_at_rest(single, request, TIMING)
    due = single.due(request)
    assert due is not None
    single.schedule.note_failed(due, single.now_s, is_spent=False, was_at_rest=True)
    single.now_s += FAILED_POINT_RETRY_S
    assert single.due(request) is None
    another = PointRequest(request=str(uuid.uuid4()), consistency="app")
    assert single.due(another) == DuePoint(CutId(another.request), "app")


def test_a_point_that_failed_before_anything_was_brought_to_rest_is_tried_again_soon(single: Timeline) -> None:
    for _ in range(9):
        single.fail(single.due(), is_spent=True)
    assert single.due() is not None
