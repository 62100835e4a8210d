"""Operators' verbs on replication: protect, pause, resume, resynchronize, stop, cut a recovery point. Called by the API.

Each is one transaction: the item's state, the job and the agent's desired state change together or not at all. What then has to be
done elsewhere is the reconciler's and the agent's work.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import placement, steps
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.job import JobKind, JobState
from config_server.core.protected_item import (
    PauseRequested,
    ResumeRequested,
    ResyncRequested,
    State,
    StopRequested,
)
from config_server.core.readiness import chosen_disks
from config_server.desired import publish
from config_server.divergences import differing_disks
from config_server.events import Actor, record_event
from config_server.generations import newest_generation
from config_server.inventories import inventory_of
from config_server.items import (
    active_item,
    apply_event,
    find_item,
    find_machine,
    item_disks,
    observation_of,
    observed_progress,
)
from config_server.job_documents import (
    DeletionContext,
    NoContext,
    NoParameters,
    RecoveryPointParameters,
    ResyncContext,
    ResyncParameters,
)
from config_server.jobs import end_job, open_jobs, start_job
from config_server.made_disks import unwant_all_but_finished
from config_server.policies import find_policy
from config_server.resumptions import record_resumed
from config_server.tables import DiskRow, ItemDiskRow, JobRow, MachineRow, ProtectedItemRow
from replication.control_plane import ResyncOrder
from replication.errors import Conflict, InvalidInput
from replication.store_documents import Consistency


async def protect(
    session: AsyncSession,
    server: str,
    disks: Collection[str] | None,
    policy_name: str,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    actor: Actor,
    now_ns: int,
) -> JobRow:
    """Put a machine under a policy; the job ends with its initial replication.

    :raises NotFound: unknown server or policy. :raises Conflict: it is protected already, or a chosen disk cannot be.
    """
    machine = await find_machine(session, server)
    policy = await find_policy(session, policy_name)
    if (already := await active_item(session, machine.id)) is not None:
        raise Conflict(f"cannot protect {machine.hostname}: it is protected already, in state {already.state}")
    item = ProtectedItemRow(
        id=str(uuid.uuid4()),
        machine_id=machine.id,
        policy_id=policy.id,
        process_server_id=await placement.choose(session, heartbeat, ages, machine.id),
        placed_ns=now_ns,
        state=State.ENABLING.value,
        state_since_ns=now_ns,
        created_ns=now_ns,
    )
    rows = await _item_disks(session, machine, item.id, disks)
    session.add(item)
    await session.flush()
    session.add_all(rows)
    record_event(
        session,
        now_ns,
        actor,
        "protected",
        f"{machine.hostname} protected with policy {policy.name}: {len(rows)} disks",
        machine_id=machine.id,
        item_id=item.id,
    )
    job = await start_job(
        session,
        item,
        JobKind.ENABLE_REPLICATION,
        step=steps.WAITING_FOR_AGENT,
        parameters=NoParameters(),
        context=NoContext(),
        actor=actor,
        now_ns=now_ns,
        message="" if item.process_server_id else "no process server can take it yet",
    )
    await publish(session, machine.id)
    item.first_revision = machine.desired_revision
    return job


async def _item_disks(
    session: AsyncSession, machine: MachineRow, item_id: str, wanted: Collection[str] | None
) -> list[ItemDiskRow]:
    found = await inventory_of(session, machine.id)
    if found is None:
        raise Conflict(f"cannot protect {machine.hostname}: its agent has sent no inventory", hint="start the agent")
    inventory = found[0]
    chosen = chosen_disks(inventory, wanted)
    known = {name for disk in chosen for name in (disk.disk, disk.path)}
    for name in wanted or ():
        if name not in known:
            raise Conflict(
                f"cannot protect {machine.hostname}: it has no disk {name[:100]!r}",
                hint=f"its disks: {', '.join(disk.path for disk in inventory.disks)}",
            )
    for disk in chosen:
        if disk.not_protectable is not None:
            raise Conflict(f"cannot protect {disk.path}: {disk.not_protectable}", disk=disk.disk, hint=disk.remedy)
        owner = await session.get(DiskRow, disk.disk)
        if owner is None or owner.machine_id != machine.id:
            raise Conflict(f"cannot protect {disk.path}: the disk is another machine's", disk=disk.disk)
    if not chosen:
        raise Conflict(
            f"cannot protect {machine.hostname}: none of its disks can be protected", hint="`migratectl check`"
        )
    return [
        ItemDiskRow(item_id=item_id, disk_id=disk.disk, ordinal=number, size_bytes=disk.size_bytes)
        for number, disk in enumerate(chosen, start=1)
    ]


async def pause(session: AsyncSession, server: str, actor: Actor, now_ns: int) -> ProtectedItemRow:
    """Ship nothing more; changes go on being tracked.

    :raises Conflict: if the item's state does not allow it.
    """
    item = await find_item(session, server)
    apply_event(session, item, PauseRequested(), actor, now_ns)
    item.paused = True
    await publish(session, item.machine_id)
    return item


async def resume(session: AsyncSession, server: str, actor: Actor, now_ns: int) -> ProtectedItemRow:
    """Go on where it was paused.

    :raises Conflict: if it is not paused.
    """
    item = await find_item(session, server)
    progress, _ = await observed_progress(session, item.id)
    apply_event(session, item, ResumeRequested(progress), actor, now_ns)
    item.paused = False
    record_resumed(session, item, actor, now_ns)
    await publish(session, item.machine_id)
    return item


async def resync(session: AsyncSession, server: str, parameters: ResyncParameters, actor: Actor, now_ns: int) -> JobRow:
    """Compare and repair, in a new generation of each disk. One that is under way and has a problem is superseded.

    A disk whose replica is known to differ from its source is never repaired by its digests alone: everything of it is sent.

    :raises Conflict: if the item's state does not allow it. :raises InvalidInput: if a disk is not the item's.
    """
    item = await find_item(session, server)
    rows = await item_disks(session, item.id)
    unknown = set(parameters.disks) - {disk.disk_id for disk in rows}
    if unknown:
        raise InvalidInput(f"cannot resynchronize {min(unknown)}: it is not a disk of this item")
    apply_event(session, item, ResyncRequested(), actor, now_ns)
    has_problem = any(found.problem is not None for row in rows if (found := observation_of(row)) is not None)
    # One that is open cannot go on; else it would be waited for, for ever.
    job = await order_resync(session, item, parameters, actor, now_ns, supersede=has_problem)
    await publish(session, item.machine_id)
    return job


async def order_resync(
    session: AsyncSession,
    item: ProtectedItemRow,
    parameters: ResyncParameters,
    actor: Actor,
    now_ns: int,
    *,
    supersede: bool,
) -> JobRow:
    """The job and its orders; the caller has the item's state follow and publishes. Also called by ``migration.cancel``.

    Each order's reason carries its identifier: the agent asks for the new generation with it, so that one asked for without is known
    to have another cause (``tracking_losses.py``).

    :raises Conflict: if a resync is open that is not superseded.
    """
    rows = await item_disks(session, item.id)
    chosen = [row.disk_id for row in rows if not parameters.disks or row.disk_id in parameters.disks]
    differing = set(await differing_disks(session, item.id))
    if supersede:
        for stuck in await open_jobs(session, item.id, JobKind.RESYNC):
            end_job(session, stuck, item, JobState.CANCELLED, now_ns, actor=actor, message="another resync was ordered")
    observed = {row.disk_id: found.generation for row in rows if (found := observation_of(row)) is not None}
    generations = {}
    for disk in chosen:
        newest = await newest_generation(session, disk)
        generations[disk] = max(0 if newest is None else newest.generation, observed.get(disk) or 0)
    return await start_job(
        session,
        item,
        JobKind.RESYNC,
        step=steps.RESYNCHRONIZING,
        parameters=parameters,
        context=ResyncContext(
            orders=[
                _order(disk, parameters.reason, distrust_digests=parameters.distrust_digests or disk in differing)
                for disk in chosen
            ],
            generations=generations,
            observed={disk: observed.get(disk) or 0 for disk in chosen},
        ),
        actor=actor,
        now_ns=now_ns,
    )


def _order(disk: str, reason: str, *, distrust_digests: bool) -> ResyncOrder:
    request = str(uuid.uuid4())
    reason = f"{reason} (order {request})"
    return ResyncOrder(request=request, disk=disk, reason=reason, distrust_digests=distrust_digests)


async def request_recovery_point(
    session: AsyncSession, server: str, consistency: Consistency, actor: Actor, now_ns: int
) -> JobRow:
    """Cut a recovery point now; the job's identifier is the cut's.

    :raises Conflict: unless the item is replicating.
    """
    item = await find_item(session, server)
    if State(item.state) is not State.REPLICATING:
        raise Conflict(f"cannot cut a recovery point while the item is in state {item.state}")
    job = await start_job(
        session,
        item,
        JobKind.RECOVERY_POINT,
        step=steps.WAITING_FOR_POINT,
        parameters=RecoveryPointParameters(consistency=consistency),
        context=NoContext(),
        actor=actor,
        now_ns=now_ns,
    )
    await publish(session, item.machine_id)
    return job


async def stop(session: AsyncSession, server: str, actor: Actor, now_ns: int) -> JobRow:
    """Give the protection up: the agent lets go, then replica, points and test disks are deleted.

    :raises Conflict: while a migration is under way or waits for its completion.
    """
    item = await find_item(session, server)
    apply_event(session, item, StopRequested(), actor, now_ns)
    return await begin_deletion(session, item, JobKind.STOP, actor, now_ns)


async def begin_deletion(
    session: AsyncSession, item: ProtectedItemRow, kind: JobKind, actor: Actor, now_ns: int
) -> JobRow:
    """The job that ends an item (stop, complete). Open jobs of the item are cancelled; the agent is told that nothing is protected."""
    for open_job in await open_jobs(session, item.id):
        end_job(session, open_job, item, JobState.CANCELLED, now_ns, actor=actor, message=f"{kind} was asked for")
    await unwant_all_but_finished(session, item.id)
    await publish(session, item.machine_id)
    machine = await session.get_one(MachineRow, item.machine_id)
    return await start_job(
        session,
        item,
        kind,
        step=steps.WAITING_FOR_AGENT,
        parameters=NoParameters(),
        context=DeletionContext(revision=machine.desired_revision),
        actor=actor,
        now_ns=now_ns,
    )
