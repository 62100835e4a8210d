"""Churn profiles: agents are asked to watch disks without replicating them, and what they have seen is kept for planning.

Called by the API (begin, withdraw, list), ``observations.py`` (progress) and ``desired.py`` (the order, as part of the desired state). One
for each server, the newest; an order stands until its agent says that it is done, or it is withdrawn.
"""

from __future__ import annotations

import uuid
from collections.abc import Container, Iterator, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.sizing import ProfiledChurn
from config_server.core.target_disks import DEFAULT_DISK_TYPE, ChurnLimit, churn_limit
from config_server.events import Actor, record_event
from config_server.items import active_item, find_machine, item_disks
from config_server.operator_plane import timestamp
from config_server.sizing_documents import ProfileStatus
from config_server.tables import ChurnProfileRow, DiskRow, MachineRow
from replication.churn_profile import ProfiledDisk, ProfileObservation, ProfileOrder
from replication.errors import Conflict, NotFound


async def begin_profiles(
    session: AsyncSession, servers: Sequence[str], duration_s: float, actor: Actor, now_ns: int
) -> list[str]:
    """Order it for these servers, or (none named) for all that have disks which are not replicated; returns their names.

    :raises Conflict: a named one, or none at all, has such a disk. :raises NotFound: there is no such server.
    """
    named = [await find_machine(session, server) for server in servers]
    machines = named or list(await session.scalars(select(MachineRow).order_by(MachineRow.hostname)))
    begun = []
    for machine in machines:
        disks = await _disks_to_watch(session, machine)
        if disks:
            await _begin(session, machine, disks, duration_s, actor, now_ns)
            begun.append(machine.hostname)
        elif named:
            raise Conflict(
                f"cannot profile {machine.hostname}: it has no disk that is not replicated already",
                hint="what replicates is observed anyway: `migratectl size`",
            )
    if not begun:
        raise Conflict(
            "cannot profile anything: no server has a disk that is not replicated", hint="enrol agents first"
        )
    return begun


async def _disks_to_watch(session: AsyncSession, machine: MachineRow) -> list[str]:
    item = await active_item(session, machine.id)
    replicated = set() if item is None else {disk.disk_id for disk in await item_disks(session, item.id)}
    known = await session.scalars(
        select(DiskRow.id).where(DiskRow.machine_id == machine.id, DiskRow.present).order_by(DiskRow.path)
    )
    return [disk for disk in known if disk not in replicated]


async def _begin(
    session: AsyncSession, machine: MachineRow, disks: list[str], duration_s: float, actor: Actor, now_ns: int
) -> None:
    order = ProfileOrder(request=str(uuid.uuid4()), disks=disks, duration_s=duration_s)
    row = await session.get(ChurnProfileRow, machine.id)
    if row is None:
        row = ChurnProfileRow(machine_id=machine.id)
        session.add(row)
    row.request, row.document, row.result = order.request, order.model_dump_json(), None
    row.created_ns, row.ended_ns = now_ns, None
    machine.desired_revision += 1
    text = f"churn of {machine.hostname} is measured for {duration_s:g} s ({len(disks)} disks)"
    record_event(session, now_ns, actor, "profile-begun", text, machine_id=machine.id)


async def withdraw_profile(session: AsyncSession, server: str, actor: Actor, now_ns: int) -> None:
    """:raises NotFound: nothing is measured on this server."""
    machine = await find_machine(session, server)
    row = await session.get(ChurnProfileRow, machine.id)
    if row is None or row.ended_ns is not None:
        raise NotFound(f"cannot stop a profile of {machine.hostname}: none is under way")
    row.ended_ns = now_ns
    machine.desired_revision += 1
    record_event(
        session,
        now_ns,
        actor,
        "profile-stopped",
        f"churn of {machine.hostname} is no longer measured",
        machine_id=machine.id,
    )


async def follow_profile(
    session: AsyncSession, machine: MachineRow, observation: ProfileObservation | None, now_ns: int
) -> None:
    """Keep what the agent has seen so far; once it is done the order is taken back."""
    if observation is None:
        return
    row = await session.get(ChurnProfileRow, machine.id)
    if row is None or row.ended_ns is not None or row.request != observation.request:
        return
    row.result = observation.model_dump_json()
    if observation.done:
        row.ended_ns = now_ns
        machine.desired_revision += 1
        record_event(
            session,
            now_ns,
            Actor(f"agent:{machine.id}"),
            "profile-done",
            f"churn of {machine.hostname} was measured for {observation.elapsed_s:.0f} s",
            machine_id=machine.id,
        )


async def wanted_profile(session: AsyncSession, machine_id: str) -> ProfileOrder | None:
    row = await session.get(ChurnProfileRow, machine_id)
    return None if row is None or row.ended_ns is not None else ProfileOrder.decode(row.document.encode())


async def list_profiles(session: AsyncSession) -> list[ProfileStatus]:
    """By server's name."""
    rows = await session.execute(
        select(ChurnProfileRow, MachineRow.hostname)
        .join(MachineRow, MachineRow.id == ChurnProfileRow.machine_id)
        .order_by(MachineRow.hostname)
    )
    return [
        ProfileStatus(
            server=hostname,
            begun_at=timestamp(row.created_ns),
            duration_s=ProfileOrder.decode(row.document.encode()).duration_s,
            ended_at=None if row.ended_ns is None else timestamp(row.ended_ns),
            seen=None if row.result is None else ProfileObservation.decode(row.result.encode()),
        )
        for row, hostname in rows
    ]


async def measured_disks(session: AsyncSession) -> set[str]:
    """Of which a profile knows something."""
    return {disk.disk for _, disk in _measured(await list_profiles(session))}


def _measured(profiles: Sequence[ProfileStatus]) -> Iterator[tuple[str, ProfiledDisk]]:
    """Each with its server; but for those that replicate meanwhile."""
    for status in profiles:
        for disk in () if status.seen is None else status.seen.disks:
            if disk.windows and disk.state != "replicated":
                yield status.server, disk


async def profiled_churn(
    session: AsyncSession, limits: Mapping[str, ChurnLimit], counted: Container[str]
) -> list[ProfiledChurn]:
    """What was measured of the disks that count; ``limits`` by disk."""
    paths = {disk: path for disk, path in await session.execute(select(DiskRow.id, DiskRow.path))}  # noqa: C416 -- rows
    return [
        ProfiledChurn(
            server=server,
            disk=paths.get(disk.disk, disk.disk),
            windows=tuple((each.interval_s, each.mean_bytes, each.most_bytes) for each in disk.windows),
            watched_s=disk.watched_s,
            limit=limits.get(disk.disk) or churn_limit(DEFAULT_DISK_TYPE, 0),
        )
        for server, disk in _measured(await list_profiles(session))
        if disk.disk in counted
    ]
