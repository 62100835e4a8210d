"""Upload limits of process servers: reading them, and setting them with an event that says who. Called by the API.

A process server learns of a change with its next heartbeat's answer.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.events import Actor, record_event
from config_server.process_servers import heartbeat_of
from config_server.revisions import check_revision
from config_server.tables import ProcessServerRow
from replication.control_plane import ProcessServerObservation
from replication.time_zones import time_zone
from replication.upload_limits import NO_LIMITS, UploadLimits, limits_text

SHOWN_NAMES: Final = 10


def limits_of(row: ProcessServerRow) -> UploadLimits:
    return NO_LIMITS if row.upload_limits is None else UploadLimits.decode(row.upload_limits.encode())


def set_limits(
    session: AsyncSession,
    server: ProcessServerRow,
    limits: UploadLimits,
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
    before = limits_of(server)
    check_revision(before, if_revision, f"the upload limits of {server.hostname}")
    if limits == before:
        return
    server.upload_limits = limits.model_dump_json()
    record_event(
        session,
        now_ns,
        actor,
        "upload-limits-changed",
        f"upload limits of process server {server.hostname}: {limits_text(limits)} (before: {limits_text(before)})",
    )


def note_limits_of_file(
    session: AsyncSession, server: ProcessServerRow, observation: ProcessServerObservation, now_ns: int
) -> None:
    """The limits in a process server's own file have been changed on its machine: an event, too."""
    known = heartbeat_of(server)
    if known is None or known.upload is None or observation.upload is None:
        return
    before, now = known.upload.file, observation.upload.file
    if now != before:
        record_event(
            session,
            now_ns,
            Actor(f"process-server:{server.id}"),
            "upload-limits-changed",
            f"upload limits in the file of process server {server.hostname}: {limits_text(now)} (before: {limits_text(before)})",
        )
