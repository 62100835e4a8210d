"""The site's configuration servers, as operators see them. Called by ``api/site.py``; who leads is decided in ``leadership.py``."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.age import at_least_s
from config_server.operator_plane import ConfigurationServerStatus, timestamp
from config_server.server_tables import ONLY, ConfigServerRow, LeadershipRow


async def configuration_servers(session: AsyncSession, ages: Ages) -> list[ConfigurationServerStatus]:
    """Those on this database, by host name; none on SQLite."""
    leadership = await session.get(LeadershipRow, ONLY)
    found = []
    for row in await session.scalars(select(ConfigServerRow).order_by(ConfigServerRow.hostname, ConfigServerRow.id)):
        leads = leadership is not None and leadership.server_id == row.id
        found.append(
            ConfigurationServerStatus(
                id=row.id,
                hostname=row.hostname,
                version=row.version,
                heard_age_s=at_least_s(ages.of("config-server", row.id, row.heard_ns)) or 0.0,
                clock_offset_s=row.clock_offset_us / 1e6,
                leads=leads,
                term=leadership.term if leads and leadership is not None else None,
                leads_since=timestamp(leadership.since_ns) if leads and leadership is not None else None,
            )
        )
    return found
