"""Replication policies: the default of FIELD.md, and reading and changing them. Called by ``installation.py``, the API and the verbs."""

from __future__ import annotations

import uuid
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.database import Database
from config_server.operator_plane import Policy
from config_server.tables import PolicyRow
from replication.errors import NotFound

DEFAULT_POLICY: Final = "default"


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


def policy_of(row: PolicyRow) -> Policy:
    return Policy(
        name=row.name,
        epoch_interval_s=row.epoch_interval_s,
        recovery_point_interval_s=row.recovery_point_interval_s,
        app_consistent_interval_s=row.app_consistent_interval_s,
        rpo_threshold_s=row.rpo_threshold_s,
        retention_s=row.retention_s,
        freeze_budget_s=row.freeze_budget_s,
    )


def write_policy(row: PolicyRow, policy: Policy) -> None:
    row.epoch_interval_s = policy.epoch_interval_s
    row.recovery_point_interval_s = policy.recovery_point_interval_s
    row.app_consistent_interval_s = policy.app_consistent_interval_s
    row.rpo_threshold_s = policy.rpo_threshold_s
    row.retention_s = policy.retention_s
    row.freeze_budget_s = policy.freeze_budget_s


def new_policy_row(policy: Policy) -> PolicyRow:
    row = PolicyRow(id=str(uuid.uuid4()), name=policy.name)
    write_policy(row, policy)
    return row
