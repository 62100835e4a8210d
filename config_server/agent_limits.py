"""Limits of the agents: reading them, setting them with an event that says who, and what each agent obeys. Called by the API and the views.

They belong to the server, not to its protected item: what was set before it is protected holds for its initial replication, and what was
set once is not forgotten when it is protected anew. An agent learns of a change with the answer to its next observation.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.events import Actor, record_event
from config_server.operator_plane import AgentLimitsStatus
from config_server.revisions import check_revision, revision_of
from config_server.tables import MachineRow
from replication.agent_limits import NO_AGENT_LIMITS, AgentLimits, AgentLimitsInForce, agent_limits_text
from replication.control_plane import AgentObservation
from replication.time_zones import time_zone

CHANGED: Final = "agent-limits-changed"


def limits_of(machine: MachineRow) -> AgentLimits:
    return NO_AGENT_LIMITS if machine.agent_limits is None else AgentLimits.decode(machine.agent_limits.encode())


def in_force(machine: MachineRow) -> AgentLimitsInForce | None:
    """What the agent said last; None: it was never told any limits and has none of its own, or it is from before there were limits."""
    if machine.observation is None or '"limits":' not in machine.observation:
        return None  # asked of every server all the time: most observations need not be parsed for it
    return AgentObservation.decode(machine.observation.encode()).limits


def status_of_limits(machine: MachineRow) -> AgentLimitsStatus:
    limits = limits_of(machine)
    return AgentLimitsStatus(
        server=machine.hostname, limits=limits, revision=revision_of(limits), in_force=in_force(machine)
    )


def set_limits(
    session: AsyncSession,
    machine: MachineRow,
    limits: AgentLimits,
    actor: Actor,
    now_ns: int,
    if_revision: str | None = None,
) -> None:
    """Take ``limits`` over; setting what is set already is no event.

    :raises InvalidInput: their time zone is not known here.
    :raises Conflict: those that are set are of another revision than ``if_revision``.
    """
    if limits.work_hours is not None:
        time_zone(limits.work_hours.time_zone)
    before = limits_of(machine)
    check_revision(before, if_revision, f"the limits of the agent of {machine.hostname}")
    if limits == before:
        return
    machine.agent_limits = limits.model_dump_json()
    record_event(
        session,
        now_ns,
        actor,
        CHANGED,
        f"limits of the agent of {machine.hostname}: {agent_limits_text(limits)} (before: {agent_limits_text(before)})",
        machine_id=machine.id,
    )


def note_limits_of_file(session: AsyncSession, machine: MachineRow, observation: AgentObservation, now_ns: int) -> None:
    """The limits in an agent's own file have been changed on its server: an event, too. ``machine`` has the observation before."""
    known = in_force(machine)
    before = NO_AGENT_LIMITS if known is None else known.file
    now = NO_AGENT_LIMITS if observation.limits is None else observation.limits.file
    if now != before:
        record_event(
            session,
            now_ns,
            Actor(f"agent:{machine.id}"),
            CHANGED,
            f"limits in the file of the agent of {machine.hostname}: {agent_limits_text(now)} (before: {agent_limits_text(before)})",
            machine_id=machine.id,
        )
