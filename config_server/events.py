"""The event log: what happened, when, through whom. Called by every service inside the transaction of the change itself.

An actor is ``administrator:NAME``, ``agent:UUID``, ``process-server:UUID``, ``command-line`` or ``system``. Events carry no secrets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NewType

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.tables import EventRow

Actor = NewType("Actor", str)
SYSTEM: Final = Actor("system")
COMMAND_LINE: Final = Actor("command-line")

Clock = Callable[[], int]
"""Nanoseconds since 1970; ``time.time_ns`` outside of tests."""


def record_event(
    session: AsyncSession,
    now_ns: int,
    actor: Actor,
    kind: str,
    message: str,
    *,
    machine_id: str | None = None,
    item_id: str | None = None,
    job_id: str | None = None,
) -> None:
    """Add an event to the transaction: it exists if and only if the change does."""
    session.add(
        EventRow(
            time_ns=now_ns,
            actor=actor,
            kind=kind,
            message=message,
            machine_id=machine_id,
            item_id=item_id,
            job_id=job_id,
        )
    )
