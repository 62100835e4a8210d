"""The smaller decisions: doubt, progress, desired state, names, forecast, attempts, jobs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core.attempt_limiter import AttemptLimiter
from config_server.core.desired_state import DesiredFacts, desired_item
from config_server.core.disk_names import made_disk_name
from config_server.core.disk_progress import PEAK_REMEMBERED_S, FallingBehind, came_forward, falling_behind
from config_server.core.doubt import (
    END_OF_GENERATION,
    Position,
    TrackingLoss,
    doubt_of,
    lost_tracking,
    proved_position,
    suspicion,
)
from config_server.core.forecast import SeedingDisk, seeding_forecast
from config_server.core.job import TRANSITIONS, JobState, next_job_state
from config_server.core.observation import ObservedDisk, progress_of
from config_server.core.protected_item import ENDED_STATES, Progress, State
from replication.control_plane import (
    DesiredCutover,
    DiskObservation,
    PointRequest,
    ProcessServerAddress,
    ReplicationTiming,
    ResyncOrder,
)
from replication.errors import Conflict
from replication.store_documents import MakeDiskItem
from tests.harness.scripted_peers import DISK, GIB, OTHER_DISK, disk_observation

JOB = "bbbbbbbb-0000-4000-8000-000000000001"
ITEM = "bbbbbbbb-0000-4000-8000-000000000003"


# -- where replication stands -------------------------------------------------------------------------------------


def seen(phase: str | None, *, seeded: bool = False, ordered: bool = False, **changes: Any) -> ObservedDisk:
    observation = None if phase is None else disk_observation(DISK, phase=phase, **changes)
    return ObservedDisk(DISK, observation, seeded, ordered)


@pytest.mark.parametrize(
    ("disks", "progress"),
    [
        ([seen(None), seen("waiting")], Progress.WAITING),
        ([seen("waiting"), seen("seeding")], Progress.SEEDING),
        ([seen("waiting"), seen("replicating", seeded=True)], Progress.SEEDING),
        ([seen("replicating", seeded=True), seen("replicating")], Progress.REPLICATING),
        ([seen("seeding", seeded=True)], Progress.RESYNCHRONIZING),
        ([seen("resynchronizing", seeded=True), seen("replicating", seeded=True)], Progress.RESYNCHRONIZING),
        ([seen("replicating", seeded=True, ordered=True)], Progress.RESYNCHRONIZING),
        ([seen("paused", seeded=True)], Progress.REPLICATING),
        ([seen("paused")], Progress.SEEDING),
        ([seen("held", seeded=True)], Progress.REPLICATING),
        ([seen("failed"), seen("seeding")], Progress.FAILED_SEEDING),
        ([seen("failed", seeded=True)], Progress.FAILED_REPLICATING),
        ([seen("failed", seeded=True, ordered=True)], Progress.FAILED_RESYNCHRONIZING),
        ([seen(None, seeded=True)], Progress.REPLICATING),
    ],
)
def test_least_advanced_disk_counts(disks: list[ObservedDisk], progress: Progress) -> None:
    assert progress_of(disks)[0] is progress


def test_failed_disk_s_reason_is_told() -> None:
    problem = {"code": "gone", "message": "the disk is gone", "hint": None}
    assert progress_of([seen("failed", problem=problem)])[1] == "the disk is gone"
    assert progress_of([seen("failed")])[1] == "the agent gives no reason"
    assert progress_of([seen("seeding")])[1] is None


# -- desired state ------------------------------------------------------------------------------------------------


def wanted(state: State, **changes: Any) -> DesiredFacts:
    usual = DesiredFacts(
        item=ITEM,
        state=state,
        disks=[DISK],
        timing=ReplicationTiming(),
        process_server=ProcessServerAddress(identifier=ITEM, url="https://ps:9443"),
        point_requests=[PointRequest(request=JOB), PointRequest(request=ITEM)],
        cutover=DesiredCutover(job=JOB, mode="offline-disk"),
        resyncs=[ResyncOrder(request=JOB, disk=DISK, reason="x")],
    )
    return dataclasses.replace(usual, **changes)


@pytest.mark.parametrize("state", State)
def test_desired_state_of_every_state(state: State) -> None:
    item = desired_item(wanted(state))
    deleting = {State.STOPPING, State.STOPPING_FAILED, State.COMPLETING, State.COMPLETING_FAILED} | ENDED_STATES
    if state in deleting:
        assert item is None
        return
    assert item is not None
    migrating = state in (State.MIGRATING, State.MIGRATION_FAILED, State.MIGRATED)
    assert (item.cutover is not None) == migrating
    expected = "pause" if state is State.PAUSED else "replicate"
    assert item.goal == ("hold" if state in (State.MIGRATION_FAILED, State.MIGRATED) else expected)
    assert (item.point_request is None) == (migrating or state is State.PAUSED)
    assert bool(item.resyncs) != migrating


def test_points_are_asked_for_one_at_a_time() -> None:
    item = desired_item(wanted(State.REPLICATING))
    assert item is not None
    assert item.point_request == PointRequest(request=JOB)


def test_source_that_was_released_is_not_held() -> None:
    item = desired_item(wanted(State.MIGRATION_FAILED, cutover=None))
    assert item is not None
    assert (item.goal, item.cutover) == ("replicate", None)


# -- doubt and progress of a disk ---------------------------------------------------------------------------------


def test_doubt_blindness_and_degradation_are_told_and_seeding_is_not_doubt() -> None:
    assert doubt_of(disk_observation()) is None
    assert doubt_of(disk_observation(doubt="overflow")) == "overflow"
    assert "degraded: iostats off" in str(
        doubt_of(disk_observation(tracker_health="degraded", tracker_reason="iostats off"))
    )
    assert doubt_of(disk_observation(phase="seeding", tracker_health="blind")) is None
    assert doubt_of(disk_observation(generation=None, tracker_health="blind")) is None


def test_tracking_is_lost_where_the_tracker_says_so_and_not_where_marks_were_dirtied_again() -> None:
    assert lost_tracking(disk_observation()) is None
    assert lost_tracking(disk_observation(doubt="marks were lost and dirtied again")) is None
    assert lost_tracking(disk_observation(phase="resynchronizing")) is None, "its generation tells why"
    assert "blind" in str(lost_tracking(disk_observation(tracker_health="blind")))


def test_position_is_proved_only_by_a_tracker_that_tracks_without_doubt() -> None:
    assert proved_position(disk_observation(generation=2, applied_epoch=9)) == Position(2, 9)
    assert proved_position(disk_observation(doubt="marks were lost")) is None
    assert proved_position(disk_observation(tracker_health="degraded")) is None
    assert proved_position(disk_observation(generation=None)) is None


def test_points_after_the_proved_position_are_suspect_until_the_loss_is_over() -> None:
    loss = TrackingLoss(DISK, Position(1, 5), Position(2, END_OF_GENERATION), "rebooted")
    assert suspicion([(DISK, Position(1, 5)), (OTHER_DISK, Position(9, 9))], [loss]) is None
    for lost in (Position(1, 6), Position(2, 1), Position(2, 10**9)):
        assert suspicion([(OTHER_DISK, Position(1, 1)), (DISK, lost)], [loss]) == f"disk {DISK}: rebooted"
    assert suspicion([(DISK, Position(3, 0))], [loss]) is None
    assert suspicion([(OTHER_DISK, Position(1, 6))], [loss]) is None


def test_disk_without_backlog_does_not_stall_and_one_with_backlog_must_move() -> None:
    idle = disk_observation(backlog_bytes=0)
    assert came_forward(idle, idle)
    stuck = disk_observation(backlog_bytes=5)
    assert came_forward(None, stuck)
    assert not came_forward(stuck, stuck)
    assert came_forward(stuck, disk_observation(backlog_bytes=5, applied_epoch=4, sealed_epoch=4))
    seeding = disk_observation(phase="seeding", seeding_done_bytes=1)
    assert not came_forward(seeding, seeding)
    assert came_forward(seeding, disk_observation(phase="seeding", seeding_done_bytes=2))
    claimed = disk_observation(phase="cutting-over", backlog_bytes=5)
    assert came_forward(claimed, claimed), "it waits to be unmounted, or is read"
    final = disk_observation(phase="cutting-over", sealed_epoch=9, applied_epoch=3)
    assert not came_forward(final, final)
    unapplied = disk_observation(sealed_epoch=9, applied_epoch=3)
    assert not came_forward(unapplied, unapplied)


def begins_to_fall_behind(before: DiskObservation | None, now: DiskObservation) -> bool:
    return falling_behind(None, before, now, 0) is not None


def test_disk_falls_behind_when_churn_outruns_shipping_and_the_backlog_does_not_shrink() -> None:
    before = disk_observation(backlog_bytes=10)
    worse = disk_observation(backlog_bytes=20, churn_bytes_per_s=100.0, send_rate_bytes_per_s=50.0)
    assert begins_to_fall_behind(before, worse)
    assert not begins_to_fall_behind(None, worse)
    assert not begins_to_fall_behind(disk_observation(backlog_bytes=30), worse)
    faster = disk_observation(backlog_bytes=20, churn_bytes_per_s=100.0, send_rate_bytes_per_s=150.0)
    assert not begins_to_fall_behind(before, faster)
    assert not begins_to_fall_behind(before, worse.model_copy(update={"phase": "paused"}))


def grown_for_s(backlogs: Iterable[int], *, every_s: int = 5) -> list[float | None]:
    """Of a disk that fell behind at first, by the backlog alone: how long it has been growing, at each observation."""
    known: FallingBehind | None = FallingBehind(0, 0, 0)
    grown: list[float | None] = []
    for number, backlog_bytes in enumerate(backlogs):
        now = disk_observation(backlog_bytes=backlog_bytes, churn_bytes_per_s=0.0, send_rate_bytes_per_s=8.0)
        known = falling_behind(known, now, now, number * every_s * 10**9)
        grown.append(None if known is None else (known.peak_ns - known.since_ns) / 1e9)
    return grown


def test_disk_goes_on_falling_behind_though_each_applied_epoch_makes_its_backlog_smaller_for_a_moment() -> None:
    """32 MiB/s in; every minute 256 MiB out at once: seen in the bench, and never told."""
    tooth = [512 + 160 * step - 256 * (step // 12) for step in range(120)]
    assert any(after < before for before, after in itertools.pairwise(tooth))
    assert all(each is not None and each >= 5 * step - 5 for step, each in enumerate(grown_for_s(tooth)))
    assert grown_for_s([20] * 100)[-1] == 495.0, "also between harvests, when nothing is added"


def test_disk_whose_backlog_is_worked_off_falls_behind_no_more() -> None:
    burst = [1000 - step for step in range(600)]
    grown = grown_for_s(burst)
    assert grown[:100] == [0.0] * 100, "one burst is not growing"
    assert grown[501] is None, "half of it is gone"
    long = grown_for_s([1000] + [900] * 400)
    remembered = int(PEAK_REMEMBERED_S) // 5
    assert (long[remembered], long[remembered + 1]) == (0.0, None)
    assert grown_for_s([20, 0]) == [0.0, None]
    paused = disk_observation(backlog_bytes=20, phase="paused")
    assert falling_behind(FallingBehind(0, 20, 0), paused, paused, 1) is None


# -- names, forecast ---------------------------------------------------------------------------------------------


@given(st.text(max_size=300), st.integers(1, 99), st.booleans())
def test_made_disk_names_are_blob_names(server: str, number: int, test: bool) -> None:
    name = made_disk_name(server, number, test=test, taken=(), item=ITEM)
    assert MakeDiskItem(disk=DISK, name=name).name == name
    assert name.endswith("-Test") == test


def test_made_disk_names_do_not_collide() -> None:
    taken: set[str] = set()
    for _ in range(4):
        name = made_disk_name("web", 1, test=True, taken=taken, item=ITEM)
        assert name not in taken
        taken.add(name)
    assert sorted(taken) == [
        "web-bbbbbbbb-disk1-2-Test",
        "web-bbbbbbbb-disk1-3-Test",
        "web-bbbbbbbb-disk1-Test",
        "web-disk1-Test",
    ]


def test_forecast_counts_what_is_left_against_the_net_rate() -> None:
    seeding = disk_observation(
        phase="seeding",
        seeding_total_bytes=GIB,
        seeding_done_bytes=GIB // 2,
        backlog_bytes=1000,
        send_rate_bytes_per_s=100.0,
        churn_bytes_per_s=20.0,
    )
    forecast = seeding_forecast([SeedingDisk(GIB, seeding, seeded=False)])
    assert forecast.eta_s == pytest.approx((GIB // 2 + 1000) / 80.0)
    assert forecast.fraction == 0.5
    hopeless = seeding.model_copy(update={"churn_bytes_per_s": 100.0})
    assert seeding_forecast([SeedingDisk(GIB, hopeless, seeded=False)]).eta_s is None
    assert seeding_forecast([SeedingDisk(GIB, disk_observation(), seeded=True)]).eta_s == 0.0
    unknown = seeding_forecast([SeedingDisk(GIB, None, seeded=False)])
    assert (unknown.done_bytes, unknown.total_bytes, unknown.eta_s) == (0, GIB, None)
    assert seeding_forecast([]).fraction == 1.0
    resyncing = disk_observation(phase="resynchronizing", seeding_done_bytes=GIB // 4)
    assert seeding_forecast([SeedingDisk(GIB, resyncing, seeded=True)]).fraction == 0.25
    closed = disk_observation(phase="paused", generation=None, seeding_total_bytes=0, seeding_done_bytes=0)
    assert seeding_forecast([SeedingDisk(GIB, closed, seeded=True)]).fraction == 1.0


# -- attempts, jobs -----------------------------------------------------------------------------------------------


def test_caller_may_try_a_burst_then_one_each_interval() -> None:
    limiter = AttemptLimiter(burst=3, interval_s=10.0)
    assert [limiter.wait_s("a", 0.0) for _ in range(3)] == [0.0] * 3
    assert limiter.wait_s("a", 0.0) == pytest.approx(10.0)
    assert limiter.wait_s("b", 0.0) == 0.0
    assert limiter.wait_s("a", 10.0) == 0.0
    assert limiter.wait_s("a", 10.0) > 0


def test_all_callers_together_are_limited_too() -> None:
    limiter = AttemptLimiter(burst=3, interval_s=10.0)
    waits = [limiter.wait_s(f"caller-{n}", 0.0) for n in range(40)]
    assert waits.count(0.0) == 30


def test_right_attempt_does_not_count() -> None:
    limiter = AttemptLimiter(burst=1, interval_s=10.0)
    for _ in range(5):
        assert limiter.wait_s("a", 0.0) == 0.0
        limiter.give_back("a")


def test_limiter_forgets_quiet_callers() -> None:
    limiter = AttemptLimiter(burst=1, interval_s=0.001)
    for n in range(30_000):
        limiter.wait_s(f"caller-{n}", float(n))
    assert len(limiter._callers) < 10_001


@pytest.mark.parametrize(("state", "target"), list(itertools.product(JobState, JobState)))
def test_ended_jobs_stay_ended(state: JobState, target: JobState) -> None:
    if target in TRANSITIONS[state]:
        assert next_job_state(state, target) is target
    else:
        assert state not in (JobState.IN_PROGRESS, JobState.WAITING_FOR_INPUT)
        with pytest.raises(Conflict):
            next_job_state(state, target)
