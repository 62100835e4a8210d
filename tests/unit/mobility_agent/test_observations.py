"""What the agent tells of its disks: never that one replicates whose session does not run (P3)."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import pytest

from mobility_agent.observations import DiskMetrics, observe_disk, seeded_bytes, standing
from mobility_agent.protection.disk_supervisor import DiskSupervisor
from mobility_agent.protection.item_session import ItemSession
from mobility_agent.protection.resting_disk import RestingDisk, look_at, look_at_all
from mobility_agent.shipping.disk_figures import DiskFigures
from replication.control_plane import (
    POINT_NOT_MADE,
    CutoverObservation,
    DesiredCutover,
    DesiredItem,
    DiskObservation,
    Problem,
    ReplicationTiming,
)
from replication.dirty_bitmap import Geometry
from replication.identifiers import DiskId
from tests.harness.session_site import GRANULARITY_BYTES, SessionSite

DISK = DiskId("22222222-2222-4222-8222-222222222222")
CutoverState = Literal["waiting-for-disk", "shipping", "sealed", "applied", "failed"]


class Supervisor:
    """What an observation reads of a supervisor."""

    def __init__(self) -> None:
        self.disk = DISK
        self.session = None
        self.tracker = None
        self.figures = DiskFigures()
        self.problem: Problem | None = None
        self.begins_from_nothing = True

    def runs(self, site: SessionSite) -> None:
        assert site.session is not None
        self.session = site.session  # type: ignore[assignment]  # None while it does not run
        self.tracker = site.session.parts.tracker  # type: ignore[assignment]  # as above
        self.figures = site.session.figures


class Item:
    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisors = {DISK: supervisor}
        self.cutover: CutoverObservation | None = None
        self.resting: dict[DiskId, RestingDisk] = {}
        self.point_problem: Problem | None = None
        self.desired = DesiredItem(
            item=str(uuid.uuid4()), disks=[DISK], goal="replicate", timing=ReplicationTiming(), process_server=None
        )

    def is_cutting_over(self, state: CutoverState) -> None:
        self.cutover = CutoverObservation(job=str(uuid.uuid4()), state=state)

    def observe(self) -> DiskObservation:
        supervisor = cast("DiskSupervisor", self.supervisors[DISK])
        return observe_disk(supervisor, cast("ItemSession", self), time.time_ns())


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def item(supervisor: Supervisor) -> Item:
    return Item(supervisor)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SessionSite]:
    site = SessionSite(tmp_path, DISK)
    site.disk.write(0, b"x" * site.geometry.size_bytes)
    yield site
    await site.crash()


def test_a_disk_without_a_session_waits_or_has_failed_and_nothing_tracks_it(item: Item, supervisor: Supervisor) -> None:
    observed = item.observe()
    assert (observed.phase, observed.tracker_kind, observed.tracker_health) == ("waiting", None, "blind")
    supervisor.problem = Problem(code="not-found", message="cannot find the disk")
    assert (item.observe().phase, item.observe().problem) == ("failed", supervisor.problem)


async def test_phases_of_a_running_session(item: Item, supervisor: Supervisor, site: SessionSite) -> None:
    site.sink.applying = False
    session = site.start()
    supervisor.runs(site)
    assert item.observe().phase == "seeding"
    supervisor.begins_from_nothing = False
    assert item.observe().phase == "resynchronizing"
    while session.ledger.seed_cursor is not None:
        await asyncio.sleep(0.001)
    assert item.observe().phase == "resynchronizing", "until the last epoch that seeds is applied"
    site.sink.applying = True
    await site.sink.apply_ready()
    await site.settle()
    observed = item.observe()
    assert (observed.phase, observed.backlog_bytes, observed.generation) == ("replicating", 0, 1)
    assert observed.sealed_epoch == observed.applied_epoch == session.ledger.applied_epoch
    assert observed.seeding_done_bytes == observed.seeding_total_bytes == site.geometry.size_bytes
    while item.observe().replication_lag_s is None:
        await asyncio.sleep(0.001)


async def test_phases_of_a_cutover_and_of_a_pause(item: Item, supervisor: Supervisor, site: SessionSite) -> None:
    site.start()
    supervisor.runs(site)
    await site.settle()
    for state, phase in (("shipping", "cutting-over"), ("sealed", "cutting-over"), ("applied", "held")):
        item.is_cutting_over(cast("CutoverState", state))
        assert item.observe().phase == phase
    item.is_cutting_over("failed")
    assert item.observe().phase == "replicating"
    item.desired = item.desired.model_copy(update={"goal": "pause"})
    assert item.observe().phase == "paused"


def test_of_a_paused_disk_is_told_what_it_has_reached_and_what_tracks_it(item: Item, supervisor: Supervisor) -> None:
    geometry = Geometry(10 * GRANULARITY_BYTES, GRANULARITY_BYTES)
    item.desired = item.desired.model_copy(update={"goal": "pause"})
    pins = [True]
    item.resting[DISK] = RestingDisk(geometry, 4, "ebpf", lambda: pins[0])
    observed = item.observe()
    assert (observed.phase, observed.tracker_kind, observed.tracker_health) == ("paused", "ebpf", "tracking")
    assert "without the agent" in observed.tracker_reason
    assert observed.size_bytes == observed.seeding_total_bytes == geometry.size_bytes
    assert observed.seeding_done_bytes == 4 * GRANULARITY_BYTES
    assert (observed.generation, observed.doubt) == (None, None), "what nobody looks at proves nothing, and is no doubt"
    metrics = DiskMetrics()
    metrics.item = cast("ItemSession", item)
    samples = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
    assert samples["blockferry_agent_tracker_healthy"] == 1
    pins[0] = False
    observed = item.observe()
    assert (observed.tracker_kind, observed.tracker_health) == ("ebpf", "blind"), "the machine was restarted"
    assert "everything is compared" in observed.tracker_reason
    item.resting[DISK] = RestingDisk(geometry, None, "scan", lambda: False)
    observed = item.observe()
    assert (observed.tracker_kind, observed.tracker_health) == ("scan", "tracking")
    assert (observed.seeding_done_bytes, "scan" in observed.tracker_reason) == (geometry.size_bytes, True)
    item.resting[DISK] = RestingDisk(None, None, "ebpf", lambda: False)
    observed = item.observe()
    assert (observed.tracker_kind, observed.tracker_health, observed.size_bytes) == (None, "blind", 0)
    item.desired = item.desired.model_copy(update={"goal": "replicate"})
    assert item.observe().tracker_reason == "the disk is not opened"


async def test_a_paused_disk_is_known_by_its_journal(tmp_path: Path, site: SessionSite) -> None:
    site.start()
    await site.settle()
    await site.crash()
    disks = look_at_all(tmp_path, [DISK], lambda _disk: ("scan", lambda: False))
    assert disks[DISK].geometry is None, "there is no such directory, and none is made"
    assert not (tmp_path / "disks").exists()
    found = look_at(site.directory, "scan", lambda: False)
    assert (found.geometry, found.seed_cursor) == (site.geometry, None)
    (site.directory / "ledger").write_bytes(b"damaged")
    assert look_at(site.directory, "scan", lambda: False).geometry is None


async def test_a_blind_tracker_is_told_with_its_reason(item: Item, supervisor: Supervisor, site: SessionSite) -> None:
    site.start()
    supervisor.runs(site)
    site.disk.blind_reason = "the device is gone"
    observed = item.observe()
    assert (observed.tracker_health, observed.tracker_reason) == ("blind", "the device is gone")


def test_what_seeding_has_taken_never_exceeds_the_disk() -> None:
    geometry = Geometry(10 * GRANULARITY_BYTES - 512, GRANULARITY_BYTES)
    assert seeded_bytes(0, geometry) == 0
    assert seeded_bytes(4, geometry) == 4 * GRANULARITY_BYTES
    assert seeded_bytes(10, geometry) == seeded_bytes(None, geometry) == geometry.size_bytes


async def test_metrics_are_of_the_present_item(item: Item, supervisor: Supervisor, site: SessionSite) -> None:
    metrics = DiskMetrics()
    assert not [sample for family in metrics.collect() for sample in family.samples]
    site.start()
    supervisor.runs(site)
    await site.settle()
    metrics.item = cast("ItemSession", item)
    samples = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
    assert samples["blockferry_agent_tracker_healthy"] == 1
    assert samples["blockferry_agent_disk_sent_bytes_total"] >= site.geometry.size_bytes
    assert samples["blockferry_agent_disk_backlog_bytes"] == 0
    assert "blockferry_agent_disk_rpo_lag_seconds" not in samples, "nothing is said of what is not known"


async def test_metrics_tell_of_points_that_are_due_only_and_of_no_lag_of_a_held_disk(
    item: Item, supervisor: Supervisor, site: SessionSite
) -> None:
    metrics = DiskMetrics()
    metrics.item = cast("ItemSession", item)
    interval, lag, rpo = (
        "blockferry_agent_recovery_point_interval_seconds",
        "blockferry_agent_disk_replication_lag_seconds",
        "blockferry_agent_disk_rpo_lag_seconds",
    )

    def shown() -> dict[str, float]:
        samples = (sample for family in metrics.collect() for sample in family.samples)
        return {sample.name: sample.value for sample in samples if sample.name in (interval, lag, rpo)}

    assert shown() == {interval: 300.0}, "also before there is a session"
    site.start()
    supervisor.runs(site)
    await site.settle()
    supervisor.figures.newest_point_ns = supervisor.figures.newest_applied_cut_ns = time.time_ns() - 4000 * 10**9
    assert shown().keys() == {interval, lag, rpo}
    replicating = item.desired
    item.desired = replicating.model_copy(update={"goal": "pause"})
    assert shown().keys() == {lag, rpo}, "it is old, and none is due"
    cutover = DesiredCutover(job=str(uuid.uuid4()), mode="live-root-disk")
    item.desired = replicating.model_copy(update={"cutover": cutover})
    item.is_cutting_over("shipping")
    assert shown().keys() == {lag, rpo}
    item.is_cutting_over("applied")
    assert not shown(), "the held source does not change: what is at the sink is as new as it"
    item.desired = replicating.model_copy(update={"goal": "hold", "cutover": cutover})
    assert not shown()
    item.cutover = None
    assert shown().keys() == {lag, rpo}, "an agent that was restarted makes no points of a held source"
    item.desired = replicating
    assert shown().keys() == {interval, lag, rpo}, "it was cancelled"


def test_phase_point_problem_and_cutover_are_worth_a_report_at_once_bytes_are_not() -> None:
    supervisor = Supervisor()
    item = Item(supervisor)
    seen = [standing(cast("ItemSession", item))]

    def is_another() -> bool:
        seen.append(standing(cast("ItemSession", item)))
        return seen[-1] != seen[-2]

    supervisor.figures.sent_bytes += 2**20
    assert not is_another()
    supervisor.figures.newest_point_cut = str(uuid.uuid4())
    assert is_another()
    supervisor.problem = Problem(code="peer-unavailable", message="it is away")
    assert is_another()
    item.point_problem = Problem(code=POINT_NOT_MADE, message="a write was seen")
    assert is_another()
    item.is_cutting_over("shipping")
    assert is_another()
    item.is_cutting_over("applied")
    assert is_another()
    item.desired = item.desired.model_copy(update={"goal": "pause"})
    assert is_another()
    assert not is_another()
