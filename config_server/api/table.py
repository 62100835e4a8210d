"""Every route of the server, from one place: what is served is what is documented. Called by ``daemon.py`` and ``openapi.py``."""

from __future__ import annotations

from typing import Final

from config_server.api import agent, agent_generations, enrolments, process_server
from config_server.api.routes import Route

ROUTES: Final[tuple[Route, ...]] = (
    *enrolments.ROUTES,
    *agent.ROUTES,
    *agent_generations.ROUTES,
    *process_server.ROUTES,
)
