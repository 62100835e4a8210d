"""What ``/metrics`` shows of the site, from a snapshot that the reconciler takes. Called by ``reconciler/loop.py`` and the registry.

Ages and lags grow between snapshots by the time that has passed, so that a reconciler that hangs shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.certificate_ages import ends_by_name
from config_server.config import HeartbeatSettings
from config_server.core.age import at_least_s
from config_server.core.health import Health
from config_server.core.job import OPEN_STATES
from config_server.core.point_wait import points_are_due, waited_s
from config_server.core.protected_item import State
from config_server.core.source_hold import SourceHold, hold_now
from config_server.divergences import differing_disks
from config_server.item_health import disk_facts
from config_server.items import agent_age
from config_server.point_history import AVAILABLE, LOST
from config_server.process_servers import heard_age
from config_server.reconciler.placement_figures import PlacementFigures, families, placement_figures
from config_server.resumptions import resumed_age_s
from config_server.source_watch import source_hold
from config_server.tables import (
    ItemDiskRow,
    JobRow,
    MachineRow,
    ProcessServerRow,
    ProtectedItemRow,
    RecoveryPointRow,
    WriterRequestRow,
)
from config_server.writer_requests import NEW, PUT

_HOLDS: Final[tuple[SourceHold, ...]] = ("held", "unknown", "written")
_LEVELS: Final = {level.name.lower(): level.value for level in Health}


@dataclass(slots=True)
class Snapshot:
    """Counts and times of one moment; lags and ages in seconds at ``taken_s``, by the clock that nobody sets; None: there is none yet."""

    taken_s: float | None = None
    items: dict[str, int] = field(default_factory=dict)
    jobs: dict[tuple[str, str], int] = field(default_factory=dict)
    heard_s: dict[tuple[str, str], float] = field(default_factory=dict)
    health: dict[str, int] = field(default_factory=dict)
    replication_lags_s: dict[tuple[str, str], float] = field(default_factory=dict)
    rpo_lags_s: dict[tuple[str, str], float] = field(default_factory=dict)
    without_point_s: dict[str, float] = field(default_factory=dict)
    points: dict[tuple[str, str], int] = field(default_factory=dict)
    clock_offsets_s: dict[str, float] = field(default_factory=dict)
    differing: dict[str, int] = field(default_factory=dict)
    source_holds: dict[str, int] = field(default_factory=dict)
    certificate_ends_ns: dict[tuple[str, str], int] = field(default_factory=dict)
    open_requests: int = 0
    store_reachable: bool = False
    placement: PlacementFigures = field(default_factory=PlacementFigures)


async def take_snapshot(
    session: AsyncSession,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    *,
    store_reachable: bool,
    changes: Mapping[str, int],
) -> Snapshot:
    """Read everything that is shown; ``changes``: of process servers, by cause."""
    snapshot = Snapshot(
        taken_s=ages.monotonic_s(),
        items={state.value: 0 for state in State},
        store_reachable=store_reachable,
        placement=await placement_figures(session, ages, changes),
    )
    names = {machine.id: machine.hostname for machine in await session.scalars(select(MachineRow))}
    for machine in await session.scalars(select(MachineRow).where(MachineRow.heard_ns.is_not(None))):
        snapshot.heard_s["agent", machine.hostname] = at_least_s(agent_age(machine, ages)) or 0.0
    for machine in await session.scalars(select(MachineRow).where(MachineRow.clock_offset_ns.is_not(None))):
        snapshot.clock_offsets_s[machine.hostname] = (machine.clock_offset_ns or 0) / 1e9
    for server in await session.scalars(select(ProcessServerRow).where(ProcessServerRow.heard_ns.is_not(None))):
        snapshot.heard_s["process-server", server.hostname] = at_least_s(heard_age(server, ages)) or 0.0
    servers: dict[str, str] = {}
    seeded_s: dict[str, float] = {}
    for item in await session.scalars(select(ProtectedItemRow)):
        snapshot.items[item.state] += 1
        if item.ended_ns is None:
            servers[item.id] = names[item.machine_id]
            snapshot.health[names[item.machine_id]] = _LEVELS.get(item.health or "", Health.CRITICAL.value)
            snapshot.differing[names[item.machine_id]] = len(await differing_disks(session, item.id))
            if item.seeded_ns is not None and points_are_due(State(item.state), paused=item.paused):
                seeded = at_least_s(ages.of("seeded", item.id, item.seeded_ns)) or 0.0
                seeded_s[names[item.machine_id]] = waited_s(seeded, await resumed_age_s(session, item.id, ages))
            if State(item.state) is State.MIGRATED:
                age = agent_age(await session.get_one(MachineRow, item.machine_id), ages)
                hold = hold_now(await source_hold(session, item), age, heartbeat.agent_timeout_s)
                snapshot.source_holds[names[item.machine_id]] = _HOLDS.index(hold)
    for row in await session.scalars(select(ItemDiskRow).where(ItemDiskRow.observation.is_not(None))):
        facts = disk_facts(row, ages)
        if row.item_id in servers and facts.replication_lag_s is not None:
            snapshot.replication_lags_s[servers[row.item_id], row.disk_id] = facts.replication_lag_s
        if row.item_id in servers and facts.rpo_lag_s is not None:
            snapshot.rpo_lags_s[servers[row.item_id], row.disk_id] = facts.rpo_lag_s
    suspect = RecoveryPointRow.suspect.is_not(None)
    lost = await session.execute(
        select(RecoveryPointRow.item_id, func.count())
        .where(RecoveryPointRow.state == LOST)
        .group_by(RecoveryPointRow.item_id)
    )
    for item_id, count in lost:
        if item_id in servers:
            snapshot.points[servers[item_id], "lost"] = count
    counted = await session.execute(
        select(RecoveryPointRow.item_id, suspect, func.count())
        .where(RecoveryPointRow.state == AVAILABLE)
        .group_by(RecoveryPointRow.item_id, suspect)
    )
    for item_id, is_suspect, count in counted:
        if item_id in servers:
            snapshot.points[servers[item_id], "suspect" if is_suspect else "good"] = count
    snapshot.without_point_s = {
        name: age_s for name, age_s in seeded_s.items() if (name, "good") not in snapshot.points
    }
    jobs = await session.execute(
        select(JobRow.kind, JobRow.state, func.count())
        .where(JobRow.state.in_([state.value for state in OPEN_STATES]))
        .group_by(JobRow.kind, JobRow.state)
    )
    for kind, state, count in jobs:
        snapshot.jobs[kind, state] = count
    open_requests = await session.scalar(
        select(func.count()).select_from(WriterRequestRow).where(WriterRequestRow.state.in_((NEW, PUT)))
    )
    snapshot.open_requests = open_requests or 0
    snapshot.certificate_ends_ns = await ends_by_name(session)
    return snapshot


class Figures(Collector):
    """Answers Prometheus from the newest snapshot."""

    def __init__(self, ages: Ages) -> None:
        self._ages = ages
        self.snapshot = Snapshot()

    def collect(self) -> Iterable[Metric]:
        shown = self.snapshot
        since_s = 0.0 if shown.taken_s is None else self._ages.monotonic_s() - shown.taken_s
        heard = {key: age_s + since_s for key, age_s in shown.heard_s.items()}
        replication = {key: lag_s + since_s for key, lag_s in shown.replication_lags_s.items()}
        rpo = {key: lag_s + since_s for key, lag_s in shown.rpo_lags_s.items()}
        items = [((state,), count) for state, count in shown.items.items()]
        health = [((name,), level) for name, level in shown.health.items()]
        yield _family("items", "Protected items by state", ["state"], items)
        yield _family("jobs", "Open jobs by kind and state", ["kind", "state"], shown.jobs.items())
        yield _family("heartbeat_age_seconds", "Seconds since a daemon was heard", ["role", "name"], heard.items())
        yield _family("item_health", "0 healthy, 1 warning, 2 critical", ["server"], health)
        lag_labels = ["server", "disk"]
        yield _family("replication_lag_seconds", "Age of the newest applied cut", lag_labels, replication.items())
        yield _family("rpo_lag_seconds", "Age of the newest recovery point", lag_labels, rpo.items())
        pointless = [((name,), age_s + since_s) for name, age_s in shown.without_point_s.items()]
        yield _family("without_recovery_point_seconds", "Since seeded, without any good point", ["server"], pointless)
        yield _family("recovery_points", "Recovery points", ["server", "quality"], shown.points.items())
        offsets = [((name,), offset_s) for name, offset_s in shown.clock_offsets_s.items()]
        yield _family("clock_offset_seconds", "The server's clock less this one's", ["server"], offsets)
        differing = [((name,), count) for name, count in shown.differing.items()]
        holds = [((name,), level) for name, level in shown.source_holds.items()]
        yield _family(
            "disks_differing", "Disks whose replica is known to differ from its source", ["server"], differing
        )
        yield _family("source_hold", "Of a migrated source: 0 as proved, 1 not known, 2 written to", ["server"], holds)
        yield _family("writer_requests_open", "Requests without a final answer", [], [((), shown.open_requests)])
        yield _family("store_reachable", "Whether the store answered", [], [((), int(shown.store_reachable))])
        yield from families(shown.placement)
        yield _family("reconciler_age_seconds", "Seconds since the reconciler's last snapshot", [], [((), since_s)])


def _family(name: str, text: str, labels: list[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(f"blockferry_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(list(key), value)
    return family
