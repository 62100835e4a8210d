"""Replication policies: the default of FIELD.md, and reading and changing them. Called by ``installation.py``, the API and the verbs."""

from __future__ import annotations

import uuid
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.database import Database
from config_server.tables import PolicyRow
from replication.errors import NotFound

DEFAULT_POLICY: Final = "default"
EPOCH_INTERVAL_S: Final = 1.0
RECOVERY_POINT_INTERVAL_S: Final = 300.0
RPO_THRESHOLD_S: Final = 900.0
RETENTION_S: Final = 86400.0
FREEZE_BUDGET_S: Final = 2.0


async def ensure_default_policy(database: Database) -> None:
    """Crash-consistent every 5 minutes, app-consistent off, 24 hours' retention; made once, then the operator's to change."""
    async with database.write() as session:
        if await session.scalar(select(PolicyRow.id).where(PolicyRow.name == DEFAULT_POLICY)) is None:
            session.add(
                PolicyRow(
                    id=str(uuid.uuid4()),
                    name=DEFAULT_POLICY,
                    epoch_interval_s=EPOCH_INTERVAL_S,
                    recovery_point_interval_s=RECOVERY_POINT_INTERVAL_S,
                    app_consistent_interval_s=None,
                    rpo_threshold_s=RPO_THRESHOLD_S,
                    retention_s=RETENTION_S,
                    freeze_budget_s=FREEZE_BUDGET_S,
                )
            )


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
