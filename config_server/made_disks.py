"""The disks that migrations make: names planned, results written down, unwanted ones marked. Called by the verbs and the reconciler.

A row exists before the writer is asked, so that no made disk is ever forgotten. Deleting is declared (``unwanted``) and then done by
``reconciler/made_disk_removal.py``, which waits until the writer has finished making: a disk is never deleted while it is being made.
"""

from __future__ import annotations

import uuid
from typing import Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.disk_names import made_disk_name
from config_server.core.job import JobState
from config_server.items import item_disks
from config_server.job_documents import MadeDiskResult
from config_server.tables import DiskRow, JobRow, MachineRow, MadeDiskRow, ProtectedItemRow
from replication.store_documents import MadeDisk, MakeDiskItem

Purpose = Literal["test", "final"]
TEST: Purpose = "test"
FINAL: Purpose = "final"


async def plan_disks(
    session: AsyncSession, item: ProtectedItemRow, job: JobRow, cut: str, purpose: Purpose
) -> list[MakeDiskItem]:
    """Which disks to make for a job from a cut, under which names; the same at each call."""
    planned = await made_disks(session, job_id=job.id, cut=cut)
    if not planned:
        machine = await session.get_one(MachineRow, item.machine_id)
        taken = set(await session.scalars(select(MadeDiskRow.name).where(MadeDiskRow.deleted_ns.is_(None))))
        for disk in await item_disks(session, item.id):
            name = made_disk_name(machine.hostname, disk.ordinal, test=purpose == TEST, taken=taken, item=item.id)
            row = MadeDiskRow(
                id=str(uuid.uuid4()),
                item_id=item.id,
                job_id=job.id,
                cut=cut,
                disk_id=disk.disk_id,
                purpose=purpose,
                name=name,
                unwanted=False,
            )
            session.add(row)
            planned.append(row)
            taken.add(name)
        await session.flush()
    return [MakeDiskItem(disk=row.disk_id, name=row.name) for row in planned]


async def made_disks(
    session: AsyncSession,
    *,
    job_id: str | None = None,
    cut: str | None = None,
    item_id: str | None = None,
    purpose: Purpose | None = None,
) -> list[MadeDiskRow]:
    """Planned or made disks that are not deleted, of a job or an item, by name."""
    query = select(MadeDiskRow).where(MadeDiskRow.deleted_ns.is_(None))
    if job_id is not None:
        query = query.where(MadeDiskRow.job_id == job_id)
    if cut is not None:
        query = query.where(MadeDiskRow.cut == cut)
    if item_id is not None:
        query = query.where(MadeDiskRow.item_id == item_id)
    if purpose is not None:
        query = query.where(MadeDiskRow.purpose == purpose)
    return list(await session.scalars(query.order_by(MadeDiskRow.name)))


async def keep_made(session: AsyncSession, job: JobRow, cut: str, made: list[MadeDisk], now_ns: int) -> None:
    """Write down where the writer made them."""
    by_disk = {disk.disk: disk for disk in made}
    for row in await made_disks(session, job_id=job.id, cut=cut):
        disk = by_disk.get(row.disk_id)
        if disk is not None and disk.name == row.name:
            row.container, row.size_bytes = disk.container, disk.size_bytes
            row.made_ns = row.made_ns or now_ns


async def mark_unwanted(session: AsyncSession, rows: list[MadeDiskRow]) -> None:
    """Declare that these shall be deleted."""
    for row in rows:
        row.unwanted = True
    await session.flush()


async def unwant_all_but_finished(session: AsyncSession, item_id: str) -> None:
    """Declare unwanted what test migrations and unfinished or failed migrations of an item made."""
    rows = []
    for row in await made_disks(session, item_id=item_id):
        job = await session.get_one(JobRow, row.job_id)
        if row.purpose == TEST or job.state != JobState.SUCCEEDED.value:
            rows.append(row)
    await mark_unwanted(session, rows)


async def results_of(session: AsyncSession, job: JobRow, cut: str) -> list[MadeDiskResult]:
    """What the operator gets: each made disk, where it is, and which disk of the source it was."""
    found = []
    for row in await made_disks(session, job_id=job.id, cut=cut):
        source = await session.get_one(DiskRow, row.disk_id)
        if row.container is not None and row.size_bytes is not None:
            found.append(
                MadeDiskResult(
                    disk=row.disk_id,
                    source_path=source.path,
                    container=row.container,
                    name=row.name,
                    size_bytes=row.size_bytes,
                    sha256=row.sha256,
                )
            )
    return found
