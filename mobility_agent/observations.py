"""What the agent tells of its disks: observations for the configuration server, metrics for Prometheus. Computed, never stored.

Called by ``daemon`` at each heartbeat, whenever something may be worth one, and at each scrape. Never says *replicating* of a disk whose
session does not run (P3).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mobility_agent.change_tracker.interface import TrackerState
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.disk_supervisor import DiskSupervisor
from mobility_agent.protection.item_session import ItemSession
from mobility_agent.protection.resting_disk import RestingDisk
from replication.control_plane import DiskObservation, DiskPhase, TrackerHealth, TrackerKind
from replication.dirty_bitmap import Geometry

_HEALTH: Final[dict[TrackerState, TrackerHealth]] = {
    TrackerState.TRACKING: "tracking",
    TrackerState.DEGRADED: "degraded",
    TrackerState.BLIND: "blind",
}


def observe_item(item: ItemSession) -> list[DiskObservation]:
    """One observation per disk of the item."""
    now_ns = time.time_ns()
    return [observe_disk(supervisor, item, now_ns) for supervisor in item.supervisors.values()]


def standing(item: ItemSession | None) -> tuple[object, ...]:
    """What is worth a report at once, and costs next to nothing to look at: how far every disk is, its newest point, what it complains of,
    why no point can be made, and how far a cutover is. Bytes and lags wait for the heartbeat.
    """
    if item is None:
        return ()
    disks = tuple(
        (
            supervisor.disk,
            _phase(supervisor, item),
            None if supervisor.session is None else supervisor.session.ledger.generation,
            supervisor.figures.newest_point_cut,
            None if supervisor.problem is None else supervisor.problem.code,
        )
        for supervisor in item.supervisors.values()
    )
    refused = None if item.point_problem is None else item.point_problem.code
    cutover = item.cutover
    if cutover is None:
        return (*disks, refused)
    problem = None if cutover.problem is None else cutover.problem.code
    hashed = len(cutover.source_hashes)
    return (*disks, refused, cutover.job, cutover.state, cutover.cut, hashed, cutover.identity_claimed, problem)


def observe_disk(supervisor: DiskSupervisor, item: ItemSession, now_ns: int) -> DiskObservation:
    session, figures, tracker = supervisor.session, supervisor.figures, supervisor.tracker
    status = None if tracker is None else tracker.status()
    observation = DiskObservation(
        disk=supervisor.disk,
        phase=_phase(supervisor, item),
        tracker_kind=None if tracker is None else _tracker_kind(tracker.kind),
        tracker_health="blind" if status is None else _HEALTH[status.state],
        tracker_reason="the disk is not opened" if status is None else status.reason,
        read_bytes=figures.read_bytes,
        sent_bytes=figures.sent_bytes,
        changed_bytes=figures.changed_bytes,
        send_rate_bytes_per_s=figures.send_rate.sample(now_ns, figures.sent_bytes),
        churn_bytes_per_s=figures.churn_rate.sample(now_ns, figures.changed_bytes),
        replication_lag_s=figures.replication_lag_s(now_ns),
        rpo_lag_s=figures.rpo_lag_s(now_ns),
        newest_cut=figures.newest_point_cut,
        last_freeze_s=figures.freezes_s[-1] if figures.freezes_s else None,
        problem=supervisor.problem,
    )
    if session is not None:
        return _with_session(observation, session)
    resting = item.resting.get(supervisor.disk)
    return observation if resting is None or observation.phase != "paused" else _at_rest(observation, resting)


def _at_rest(observation: DiskObservation, resting: RestingDisk) -> DiskObservation:
    """Paused: no session vouches for anything (so without a generation), but what it had reached stays, and tracking may go on."""
    kind, health, reason = resting.tracking()
    told = observation.model_copy(update={"tracker_kind": kind, "tracker_health": health, "tracker_reason": reason})
    if resting.geometry is None:
        return told
    size = resting.geometry.size_bytes
    done = seeded_bytes(resting.seed_cursor, resting.geometry)
    return told.model_copy(update={"size_bytes": size, "seeding_total_bytes": size, "seeding_done_bytes": done})


def _with_session(observation: DiskObservation, session: DiskSession) -> DiskObservation:
    ledger = session.ledger
    size = ledger.geometry.size_bytes
    backlog = ledger.pending_bytes() + ledger.unconfirmed_bytes()
    rate = observation.send_rate_bytes_per_s
    return observation.model_copy(
        update={
            "generation": ledger.generation,
            "size_bytes": size,
            "seeding_total_bytes": size,
            "seeding_done_bytes": seeded_bytes(ledger.seed_cursor, ledger.geometry),
            "backlog_bytes": min(backlog, size),
            "eta_s": min(backlog, size) / rate if rate > 0 and backlog else None,
            "sealed_epoch": ledger.sealed_epoch,
            "applied_epoch": ledger.applied_epoch,
            "doubt": session.doubt,
        }
    )


def seeded_bytes(seed_cursor: int | None, geometry: Geometry) -> int:
    """Bytes that initial replication or resync has taken so far."""
    if seed_cursor is None:
        return geometry.size_bytes
    return min(seed_cursor * geometry.granularity_bytes, geometry.size_bytes)


def _tracker_kind(kind: str) -> TrackerKind:
    return "scan" if kind == "scan" else "ebpf"


def _phase(supervisor: DiskSupervisor, item: ItemSession) -> DiskPhase:
    session = supervisor.session
    if item.desired.goal == "pause":
        return "paused"
    if session is None:
        return "waiting" if supervisor.problem is None else "failed"
    cutover = item.cutover
    if cutover is not None and cutover.state != "failed":
        return "held" if cutover.state == "applied" else "cutting-over"
    if session.ledger.is_seeding:
        return "seeding" if supervisor.begins_from_nothing else "resynchronizing"
    return "replicating"


_LAGS: Final = ("replication_lag_s", "rpo_lag_s")
"""Not told of a held disk: nothing is added to it, so that what is at the sink is as new as the disk however old it is."""


def _awaits_points(item: ItemSession) -> bool:
    """Not while it is paused, nor from *migrate* until it is completed or cancelled."""
    return item.desired.goal == "replicate" and item.desired.cutover is None


class DiskMetrics(Collector):
    """Prometheus families over the present item and its disks."""

    def __init__(self) -> None:
        self.item: ItemSession | None = None

    def collect(self) -> Iterable[Metric]:
        observations: Sequence[DiskObservation] = () if self.item is None else observe_item(self.item)
        counters = {
            "read_bytes": "Bytes read from the disk: to ship, to compare, to scan for changes.",
            "sent_bytes": "Bytes of batches acknowledged by process servers.",
            "changed_bytes": "Bytes of granules that the change tracker reported as changed.",
        }
        gauges = {
            "backlog_bytes": "Bytes of granules not yet applied at the sink.",
            "replication_lag_s": "Age of the newest cut applied at the sink, in seconds.",
            "rpo_lag_s": "Age of the newest recovery point, in seconds.",
            "last_freeze_s": "Duration of the newest freeze, in seconds.",
            "applied_epoch": "Newest epoch applied at the sink.",
        }
        for name, text in counters.items():
            family = CounterMetricFamily(f"blockferry_agent_disk_{name}", text, labels=["disk"])
            for observation in observations:
                family.add_metric([observation.disk], getattr(observation, name))
            yield family
        for name, text in gauges.items():
            unit = name.removesuffix("_s") + "_seconds" if name.endswith("_s") else name
            gauge = GaugeMetricFamily(f"blockferry_agent_disk_{unit}", text, labels=["disk"])
            for observation in observations:
                value = getattr(observation, name)
                if value is not None and not (observation.phase == "held" and name in _LAGS):
                    gauge.add_metric([observation.disk], value)
            yield gauge
        interval = GaugeMetricFamily(
            "blockferry_agent_recovery_point_interval_seconds",
            "The policy's interval between recovery points; absent while none are due.",
        )
        if self.item is not None and _awaits_points(self.item):
            interval.add_metric([], self.item.desired.timing.recovery_point_interval_s)
        yield interval
        health = GaugeMetricFamily(
            "blockferry_agent_tracker_healthy", "1 while every write is tracked.", labels=["disk", "kind"]
        )
        for observation in observations:
            health.add_metric(
                [observation.disk, observation.tracker_kind or "none"], float(observation.tracker_health == "tracking")
            )
        yield health
