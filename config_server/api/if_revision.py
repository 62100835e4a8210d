"""The precondition of a ``PUT`` of limits. Declared by the routes of agents' and process servers' limits."""

from __future__ import annotations

from config_server.api.routes import Query


class IfRevision(Query):
    """``if_revision``: of the limits that were read; others by now: 409, and nothing is changed. Absent: whatever they are."""

    if_revision: str | None = None
