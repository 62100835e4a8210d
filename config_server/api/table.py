"""Every route of the server, from one place: what is served is what is documented. Called by ``daemon.py`` and ``openapi.py``."""

from __future__ import annotations

import functools
import json
from typing import Final

from config_server.api import (
    agent,
    agent_generations,
    agent_installations,
    agent_limits,
    alerts,
    audit,
    certificates,
    discoveries,
    enrolments,
    events,
    jobs,
    process_server,
    process_servers,
    protected_items,
    recovery_points,
    servers,
    site,
    sizing,
    tokens,
    upload_limits,
)
from config_server.api.openapi import openapi_document
from config_server.api.routes import Access, Call, Route, TextAnswer

_RESOURCES: Final[tuple[Route, ...]] = (
    *enrolments.ROUTES,
    *agent.ROUTES,
    *agent_generations.ROUTES,
    *process_server.ROUTES,
    *process_servers.ROUTES,
    *servers.ROUTES,
    *discoveries.ROUTES,
    *agent_installations.ROUTES,
    *protected_items.ROUTES,
    *recovery_points.ROUTES,
    *jobs.ROUTES,
    *events.ROUTES,
    *site.ROUTES,
    *alerts.ROUTES,
    *certificates.ROUTES,
    *tokens.ROUTES,
    *audit.ROUTES,
    *upload_limits.ROUTES,
    *agent_limits.ROUTES,
    *sizing.ROUTES,
)


async def get_openapi(_call: Call) -> TextAnswer:
    return TextAnswer(_openapi_text(), "application/json")


ROUTES: Final[tuple[Route, ...]] = (
    *_RESOURCES,
    Route("GET", "/openapi.json", get_openapi, Access.PUBLIC, "This document", "site"),
)


@functools.cache
def _openapi_text() -> str:
    return json.dumps(openapi_document(ROUTES))
