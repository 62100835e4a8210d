"""Silence and health: who is no longer heard, whose health changed. Called by ``reconciler/loop.py``."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import process_servers
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.age import Age
from config_server.core.health import Health, Verdict
from config_server.events import SYSTEM, record_event
from config_server.item_health import assess_item
from config_server.items import AGENT_HEARD
from config_server.tables import MachineRow, ProcessServerRow, ProtectedItemRow

BETTER_AFTER_S: Final = 60.0


async def notice_silence(session: AsyncSession, heartbeat: HeartbeatSettings, ages: Ages, now_ns: int) -> float:
    """Mark and record agents and process servers that were not heard within their timeouts; returns for how many seconds none of them
    can become silent, however long they say nothing.

    Of all of them, every time: their ages rest on being looked at.
    """
    calm_s = float("inf")
    connected = await session.execute(select(MachineRow.id, MachineRow.heard_ns).where(MachineRow.connected))
    for identifier, heard_ns in list(connected):
        left_s = _left_s(ages.of(AGENT_HEARD, identifier, heard_ns), heartbeat.agent_timeout_s)
        if left_s >= 0:
            calm_s = min(calm_s, left_s)
            continue
        machine = await session.get_one(MachineRow, identifier)
        machine.connected = False
        message = f"the agent of {machine.hostname} is not heard any more"
        record_event(session, now_ns, SYSTEM, "disconnected", message, machine_id=machine.id)
    for server in list(await session.scalars(select(ProcessServerRow).where(ProcessServerRow.connected))):
        left_s = _left_s(process_servers.heard_age(server, ages), heartbeat.process_server_timeout_s)
        if left_s >= 0:
            calm_s = min(calm_s, left_s)
            continue
        server.connected = False
        message = f"process server {server.hostname} is not heard any more"
        record_event(session, now_ns, SYSTEM, "disconnected", message)
    return calm_s


async def look_at_heartbeats(session: AsyncSession, ages: Ages) -> None:
    """What ``notice_silence`` looks at, for a server that does not lead: when it does, it must not take its clock for the other's."""
    for identifier, heard_ns in await session.execute(select(MachineRow.id, MachineRow.heard_ns)):
        ages.of(AGENT_HEARD, identifier, heard_ns)
    for server in await session.scalars(select(ProcessServerRow)):
        process_servers.heard_age(server, ages)


def _left_s(heard: Age | None, timeout_s: float) -> float:
    """Until it counts as silent; below 0: it does."""
    return timeout_s - (0.0 if heard is None else heard.seconds)


async def notice_health(
    session: AsyncSession, heartbeat: HeartbeatSettings, store_problem: str | None, ages: Ages, now_ns: int
) -> list[tuple[ProtectedItemRow, Verdict]]:
    """Record when an item's health becomes another, with the worst reason; returns every item that has not ended with its verdict.

    Worse is recorded at once, better only when the worse has been known for ``BETTER_AFTER_S``: a health that goes up and down
    is one entry, not hundreds. What ``status`` shows is always the verdict of the moment.
    """
    verdicts = []
    for item in list(await session.scalars(select(ProtectedItemRow).where(ProtectedItemRow.ended_ns.is_(None)))):
        verdict = await assess_item(session, item, heartbeat, store_problem, ages, now_ns)
        verdicts.append((item, verdict))
        level = verdict.health.name.lower()
        if item.health == level:
            continue
        better = item.health is not None and verdict.health < Health[item.health.upper()]
        known_for = ages.of("health", item.id, item.health_since_ns)
        if better and known_for is not None and not known_for.exceeds(BETTER_AFTER_S):
            continue
        if item.health is not None or verdict.conditions:
            reason = f": {verdict.conditions[0].message}" if verdict.conditions else ""
            record_event(
                session,
                now_ns,
                SYSTEM,
                "health",
                f"{item.health or 'unknown'} → {level}{reason}",
                machine_id=item.machine_id,
                item_id=item.id,
            )
        item.health, item.health_since_ns = level, now_ns
    return verdicts
