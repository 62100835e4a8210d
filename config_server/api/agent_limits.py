"""Limits of one server's agent: what it is told and what it obeys. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from config_server.agent_limits import set_limits, status_of_limits
from config_server.api.if_revision import IfRevision
from config_server.api.routes import Access, Call, Route
from config_server.items import find_machine
from config_server.operator_plane import AgentLimitsStatus
from replication.agent_limits import AgentLimits

_PATH: Final = "/servers/{server}/agent-limits"
_ANSWERS: Final = {404: "no such server, or one without an agent", 409: "the name is not unique"}
_CHANGED: Final = {409: "the name is not unique, or the limits are of another revision"}


async def get_agent_limits(call: Call) -> AgentLimitsStatus:
    async with call.site.database.read() as session:
        return status_of_limits(await find_machine(session, call.path["server"]))


async def put_agent_limits(call: Call) -> AgentLimitsStatus:
    async with call.site.database.write() as session:
        machine = await find_machine(session, call.path["server"])
        if_revision = call.parameters(IfRevision).if_revision
        set_limits(session, machine, call.body(AgentLimits), call.actor, call.site.clock(), if_revision)
        return status_of_limits(machine)


ROUTES: Final = (
    Route(
        "GET",
        _PATH,
        get_agent_limits,
        Access.READER,
        "How much of its server an agent may use: told, and in force",
        "servers",
        answer=AgentLimitsStatus,
        answers=_ANSWERS,
    ),
    Route(
        "PUT",
        _PATH,
        put_agent_limits,
        Access.OPERATOR,
        "Limit what an agent reads and how much processor time it uses; it obeys from its next observation on",
        "servers",
        body=AgentLimits,
        query=IfRevision,
        answer=AgentLimitsStatus,
        answers=_ANSWERS | _CHANGED,
    ),
)
