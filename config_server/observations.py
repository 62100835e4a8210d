"""What agents and process servers report, written down, and its consequences for the item's state. Called by the API.

Ages come as seconds by the sender's own clock; this server adds the time since it received them. Nothing here waits for the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.agent_limits import note_limits_of_file as note_limits_of_agents_file
from config_server.ages import Ages
from config_server.churn import follow_churn
from config_server.churn_history import note_churn
from config_server.churn_profiles import follow_profile
from config_server.core.address_claims import OwnAddresses, check_claim
from config_server.core.disk_progress import FallingBehind, came_forward, falling_behind
from config_server.core.job import JobKind
from config_server.core.observation import SEEDED_PHASES
from config_server.core.protected_item import TRANSITIONS, ReplicationObserved, State
from config_server.core.steady_churn import steady_churn
from config_server.divergences import follow_repair
from config_server.events import Actor, record_event
from config_server.inventory import check_same_machine
from config_server.items import active_item, apply_event, item_disks, observation_of, observed_progress
from config_server.job_documents import MigrationContext
from config_server.jobs import context_of, keep_context, newest_job
from config_server.process_server_load import follow_load
from config_server.service_addresses import addresses_of_others
from config_server.source_watch import watch_source
from config_server.tables import (
    ItemDiskRow,
    MachineRow,
    ProcessServerRow,
    ProtectedItemRow,
)
from config_server.tracking_losses import follow_tracking
from config_server.upload_limits import note_limits_of_file
from replication.control_plane import AgentObservation, CutoverObservation, DiskObservation, ProcessServerObservation
from replication.errors import Conflict, InvalidInput, Refused
from replication.service_address import ServiceAddress


@dataclass(frozen=True, slots=True)
class Reported:
    """What followed from an observation. ``item``: the one that it speaks of; ``is_news``: that has another state now, so that the agent
    may have to do something else.
    """

    item: str
    is_news: bool


async def report_agent(
    session: AsyncSession, machine: MachineRow, observation: AgentObservation, ages: Ages, now_ns: int
) -> Reported | None:
    """Write an agent's observation down; returns what followed for the item that it speaks of, if it does.

    :raises Refused: if it comes from another installation than the one that enrolled (R11).
    """
    check_same_machine(machine, observation.machine_fingerprint)
    if not machine.connected:
        record_event(
            session,
            now_ns,
            Actor(f"agent:{machine.id}"),
            "connected",
            f"the agent of {machine.hostname} reports",
            machine_id=machine.id,
        )
    machine.connected, machine.heard_ns = True, now_ns
    note_limits_of_agents_file(session, machine, observation, now_ns)
    machine.observation = observation.model_dump_json()
    await follow_profile(session, machine, observation.profile, now_ns)
    item = await active_item(session, machine.id)
    if item is None or observation.revision < item.first_revision:
        return None  # nothing is protected, or the agent does not know yet what is: it speaks of an earlier item
    reported = {disk.disk: disk for disk in observation.disks}
    state = item.state
    disks = await item_disks(session, item.id)
    for row in (disk for disk in disks if disk.disk_id in reported):
        await follow_tracking(session, item, row, reported[row.disk_id], now_ns)
        await follow_repair(session, item, reported[row.disk_id], now_ns)
        await follow_churn(session, item.id, observation_of(row), reported[row.disk_id], ages, now_ns)
        await note_churn(session, observation_of(row), row.observed_ns, reported[row.disk_id], now_ns)
        _write_disk(row, reported[row.disk_id], now_ns)
    await session.flush()
    if State(item.state) is State.MIGRATED:
        await watch_source(session, item, observation.cutover, now_ns)
    elif observation.cutover is not None:
        await _keep_cutover(session, item, observation.cutover, now_ns)
    await follow_observation(session, item, now_ns, disks)
    return Reported(item.id, item.state != state)


def _write_disk(row: ItemDiskRow, observation: DiskObservation, now_ns: int) -> None:
    before = observation_of(row)
    if came_forward(before, observation):
        row.progress_ns = now_ns
    since_ns, peak_bytes, peak_ns = (
        row.falling_behind_since_ns,
        row.falling_behind_peak_bytes,
        row.falling_behind_peak_ns,
    )
    known = None
    if since_ns is not None and peak_bytes is not None and peak_ns is not None:
        known = FallingBehind(since_ns, peak_bytes, peak_ns)
    behind = falling_behind(known, before, observation, now_ns)
    row.falling_behind_since_ns = None if behind is None else behind.since_ns
    row.falling_behind_peak_bytes = None if behind is None else behind.peak_bytes
    row.falling_behind_peak_ns = None if behind is None else behind.peak_ns
    if observation.phase in SEEDED_PHASES and row.seeded_ns is None:
        row.seeded_ns = now_ns
    if observation.size_bytes:
        row.size_bytes = observation.size_bytes
    since_s = 0.0 if row.observed_ns is None else (now_ns - row.observed_ns) / 1e9
    row.steady_churn_bytes_per_s = steady_churn(row.steady_churn_bytes_per_s, observation.churn_bytes_per_s, since_s)
    row.observation, row.observed_ns = observation.model_dump_json(), now_ns


async def follow_observation(
    session: AsyncSession, item: ProtectedItemRow, now_ns: int, disks: Sequence[ItemDiskRow] | None = None
) -> None:
    """Bring the item into the state that its newest observations say, if its present state follows observations. ``disks``: all of the
    item's, if at hand.
    """
    if (State(item.state), ReplicationObserved) not in TRANSITIONS:
        return
    if disks is None:
        disks = await item_disks(session, item.id)
    progress, reason = await observed_progress(session, item.id, disks)
    if any(disk.observation is not None for disk in disks):
        apply_event(session, item, ReplicationObserved(progress, reason), Actor(f"agent:{item.machine_id}"), now_ns)
    if item.seeded_ns is None and all(disk.seeded_ns is not None for disk in disks):
        item.seeded_ns = now_ns


async def _keep_cutover(
    session: AsyncSession, item: ProtectedItemRow, cutover: CutoverObservation, now_ns: int
) -> None:
    """Remember how far the agent's cutover has come, with the times at which this was first heard."""
    job = await newest_job(session, item.id, JobKind.MIGRATE)
    if job is None or job.id != cutover.job or job.ended_ns is not None:
        return
    context = context_of(job, MigrationContext)
    claimed_ns, sealed_ns = context.claimed_ns, context.sealed_ns
    if cutover.state in ("shipping", "sealed", "applied"):
        claimed_ns = claimed_ns or now_ns
    if cutover.state in ("sealed", "applied"):
        sealed_ns = sealed_ns or now_ns
    keep_context(job, context.model_copy(update={"cutover": cutover, "claimed_ns": claimed_ns, "sealed_ns": sealed_ns}))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What followed from a heartbeat. ``moved``: agents must be told another address; ``refused``: why not, though it names one."""

    moved: bool
    refused: str | None


async def report_process_server(
    session: AsyncSession,
    server: ProcessServerRow,
    observation: ProcessServerObservation,
    own: OwnAddresses,
    ages: Ages,
    now_ns: int,
    *,
    same_machine: bool,
) -> Heartbeat:
    """Write a heartbeat down. An address that could not get into its certificate is not taken either: agents are told the one before.

    ``same_machine``: it came from the machine that this server runs on.
    """
    if not server.connected:
        record_event(
            session,
            now_ns,
            Actor(f"process-server:{server.id}"),
            "connected",
            f"process server {server.hostname} reports",
        )
    moved, refused = False, None
    if server.service_url != observation.service_url:
        try:
            others = await addresses_of_others(session, server.id, ages, now_ns)
            check_claim(ServiceAddress.parse(observation.service_url), own, others, same_machine=same_machine)
        except (Refused, Conflict, InvalidInput) as error:
            refused = f"process server {server.hostname} stays at {server.service_url}: {error.message}"
        else:
            moved = True
            server.service_url = observation.service_url
            record_event(
                session,
                now_ns,
                Actor(f"process-server:{server.id}"),
                "moved",
                f"process server {server.hostname} is now at {observation.service_url}",
            )
    note_limits_of_file(session, server, observation, now_ns)
    if not server.connected or server.heard_since_ns is None:
        server.heard_since_ns = now_ns
    server.on_appliance = same_machine
    server.connected, server.heard_ns, server.observation = True, now_ns, observation.model_dump_json()
    await follow_load(session, server.id, observation, ages, now_ns)
    return Heartbeat(moved, refused)
