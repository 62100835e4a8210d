"""The source of a migrated item, watched until the operator completes or cancels. ``core/source_hold.py`` decides.

Called by ``observations.py`` with what the agent says of its cutover while the item is migrated, and by the verb that completes. The
proved cutover stays in the job's context as it was; what is seen since stands beside it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.age import Age
from config_server.core.job import JobKind
from config_server.core.protected_item import State
from config_server.core.source_hold import SILENCE_ACCEPTED_S, SourceHold, follow_hold
from config_server.events import Actor, record_event
from config_server.job_documents import MigrationContext
from config_server.jobs import context_of, keep_context, newest_job
from config_server.tables import ProtectedItemRow
from replication.control_plane import CutoverObservation
from replication.errors import Conflict

NOT_HELD: Final = "the source was not held all the time since the migration was proved"
WRITTEN: Final = (
    "the source has been written to since the migration was proved; the final disks do not hold those writes"
)
_EVENTS: Final[dict[SourceHold, tuple[str, str]]] = {
    "unknown": ("source-not-held", f"{NOT_HELD}; whether it was written to is not known yet"),
    "written": ("source-written", WRITTEN),
    "held": ("source-held", "the source was compared again: it holds what was proved"),
}


async def source_hold(session: AsyncSession, item: ProtectedItemRow) -> SourceHold:
    """How far the proof of a migrated item could be relied on for its source when its agent was last heard; ``held`` for any other item."""
    if State(item.state) is not State.MIGRATED:
        return "held"
    job = await newest_job(session, item.id, JobKind.MIGRATE)
    return "held" if job is None else context_of(job, MigrationContext).hold


async def watch_source(
    session: AsyncSession, item: ProtectedItemRow, seen: CutoverObservation | None, now_ns: int
) -> None:
    """Take in what the agent of a migrated item says of its cutover."""
    job = await newest_job(session, item.id, JobKind.MIGRATE)
    if job is None:
        return
    context = context_of(job, MigrationContext)
    if context.cutover is None:
        return
    hold = follow_hold(context.hold, context.cutover, seen)
    if (hold, seen) != (context.hold, context.seen_since):
        keep_context(job, context.model_copy(update={"hold": hold, "seen_since": seen}))
    if hold != context.hold:
        kind, message = _EVENTS[hold]
        record_event(
            session,
            now_ns,
            Actor(f"agent:{item.machine_id}"),
            kind,
            message,
            machine_id=item.machine_id,
            item_id=item.id,
            job_id=job.id,
        )


def require_held(hold: SourceHold, agent_age: Age | None) -> None:
    """``agent_age``: since the agent was heard, as of which ``hold`` is.

    :raises Conflict: if completing could lose writes to the source.
    """
    if hold == "held" and (agent_age is None or not agent_age.is_within(SILENCE_ACCEPTED_S)):
        heard = "never heard" if agent_age is None else agent_age.heard
        raise Conflict(
            f"cannot complete: whether the source is still held is not known: the agent was {heard}",
            hint="start the agent, and wait until the source has been compared; if it was shut down for good and nobody wrote to it, "
            "complete with --discard-source-changes",
        )
    if hold == "unknown":
        raise Conflict(
            f"cannot complete: {NOT_HELD}, and it has not been compared again yet",
            hint="wait until the agent has compared it, or cancel and migrate again; --discard-source-changes completes all the same",
        )
    if hold == "written":
        raise Conflict(
            f"cannot complete: {WRITTEN}",
            hint="cancel, then migrate again; or, if those writes are not wanted, complete with --discard-source-changes",
        )
