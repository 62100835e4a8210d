"""Replication policies: the default of FIELD.md, and reading and changing them. Called by ``installation.py``, the API and the verbs."""

from __future__ import annotations

import uuid
from typing import Final, cast

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.target_disks import DiskType
from config_server.database import Database
from config_server.operator_plane import Policy, PolicyStatus
from config_server.revisions import revision_of
from config_server.tables import MachineRow, PolicyRow, ProtectedItemRow
from replication.errors import Conflict, NotFound

DEFAULT_POLICY: Final = "default"
SHOWN_USERS: Final = 10


async def ensure_default_policy(database: Database) -> None:
    """Crash-consistent every 5 minutes, app-consistent off, 24 hours' retention; made once, then the operator's to change."""
    async with database.write() as session:
        if await session.scalar(select(PolicyRow.id).where(PolicyRow.name == DEFAULT_POLICY)) is None:
            session.add(new_policy_row(Policy(name=DEFAULT_POLICY)))


async def find_policy(session: AsyncSession, text: str) -> PolicyRow:
    """A policy by name or identifier.

    :raises NotFound: if there is none.
    """
    found: PolicyRow | None = await session.scalar(
        select(PolicyRow).where((PolicyRow.name == text) | (PolicyRow.id == text))
    )
    if found is None:
        raise NotFound(f"cannot find the policy {text[:100]!r}", hint="`migratectl policies` lists them")
    return found


async def delete_policy(session: AsyncSession, name: str) -> None:
    """Forget a policy; items that have ended under it are shown with the default one.

    :raises NotFound: if there is none. :raises Conflict: if an item is under it, or if it is the default policy.
    """
    row = await find_policy(session, name)
    if row.name == DEFAULT_POLICY:
        raise Conflict("cannot delete the default policy: what is protected without naming one comes under it")
    users = await session.scalars(
        select(MachineRow.hostname)
        .join(ProtectedItemRow, ProtectedItemRow.machine_id == MachineRow.id)
        .where(ProtectedItemRow.policy_id == row.id, ProtectedItemRow.ended_ns.is_(None))
        .order_by(MachineRow.hostname)
    )
    if names := list(users):
        shown = ", ".join(names[:SHOWN_USERS]) + (
            f" and {len(names) - SHOWN_USERS} more" if len(names) > SHOWN_USERS else ""
        )
        raise Conflict(
            f"cannot delete the policy {row.name!r}: it is used by {shown}",
            hint="end their protection, or change this policy instead: `migratectl set-policy`",
        )
    default = await find_policy(session, DEFAULT_POLICY)
    await session.execute(
        update(ProtectedItemRow).where(ProtectedItemRow.policy_id == row.id).values(policy_id=default.id)
    )
    await session.delete(row)


def policy_of(row: PolicyRow) -> Policy:
    return Policy(
        name=row.name,
        epoch_interval_s=row.epoch_interval_s,
        recovery_point_interval_s=row.recovery_point_interval_s,
        app_consistent_interval_s=row.app_consistent_interval_s,
        rpo_threshold_s=row.rpo_threshold_s,
        retention_s=row.retention_s,
        freeze_budget_s=row.freeze_budget_s,
        target_disk_type=cast("DiskType", row.target_disk_type),
    )


def policy_status(policy: Policy) -> PolicyStatus:
    return PolicyStatus(**policy.model_dump(), revision=revision_of(policy))


def write_policy(row: PolicyRow, policy: Policy) -> None:
    row.epoch_interval_s = policy.epoch_interval_s
    row.recovery_point_interval_s = policy.recovery_point_interval_s
    row.app_consistent_interval_s = policy.app_consistent_interval_s
    row.rpo_threshold_s = policy.rpo_threshold_s
    row.retention_s = policy.retention_s
    row.freeze_budget_s = policy.freeze_budget_s
    row.target_disk_type = policy.target_disk_type


def new_policy_row(policy: Policy) -> PolicyRow:
    row = PolicyRow(id=str(uuid.uuid4()), name=policy.name)
    write_policy(row, policy)
    return row
