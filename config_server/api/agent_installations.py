"""Installing the agent over SSH: begin, see, cancel; and what the process server that does it fetches and reports. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from config_server import agent_installations
from config_server.api.routes import Access, Call, Route
from config_server.discovery_plane import InstallationRequest, InstallationStatus
from config_server.discovery_tables import AgentInstallationRow
from config_server.operator_plane import Page
from replication.remote_access import InstallationOrder, InstallationReport
from replication.tls_identity import fingerprint

MOST_INSTALLATIONS: Final = 200


async def begin_installation(call: Call) -> InstallationStatus:
    site = call.site
    made = await site.passphrases.make()
    async with site.database.write() as session:
        # In one transaction: what cannot be begun leaves no passphrase behind.
        passphrase = site.passphrases.issue(session, made, agent_installations.INSTALLATION_TIMEOUT_S, call.actor)
        row = await agent_installations.begin(
            session,
            call.path["server"],
            call.body(InstallationRequest),
            passphrase,
            site.key,
            site.heartbeat,
            site.ages,
            site.steady_after_s,
            call.actor,
            site.clock(),
        )
        return await agent_installations.status_of(session, row)


async def list_installations(call: Call) -> Page[InstallationStatus]:
    newest = select(AgentInstallationRow).order_by(AgentInstallationRow.created_ns.desc()).limit(MOST_INSTALLATIONS)
    async with call.site.database.read() as session:
        rows = list(await session.scalars(newest))
        return Page[InstallationStatus](items=[await agent_installations.status_of(session, row) for row in rows])


async def get_installation(call: Call) -> InstallationStatus:
    async with call.site.database.read() as session:
        row = await agent_installations.find(session, call.path["installation"])
        return await agent_installations.status_of(session, row)


async def cancel_installation(call: Call) -> InstallationStatus:
    async with call.site.database.write() as session:
        row = await agent_installations.find(session, call.path["installation"])
        await agent_installations.cancel(session, row, call.actor, call.site.clock())
        return await agent_installations.status_of(session, row)


async def get_installation_order(call: Call) -> InstallationOrder:
    authority = fingerprint(call.site.authority.certificate)
    async with call.site.database.write() as session:
        return await agent_installations.order(
            session, call.peer_id, call.path["installation"], call.site.key, authority, call.site.clock()
        )


async def post_installation_report(call: Call) -> None:
    async with call.site.database.write() as session:
        await agent_installations.report(
            session, call.peer_id, call.path["installation"], call.body(InstallationReport), call.site.clock()
        )
    call.site.wake_reconciler()


ROUTES: Final = (
    Route(
        "POST",
        "/servers/{server}/installation",
        begin_installation,
        Access.OPERATOR,
        "Have a process server install the agent on a discovered server, then protect it",
        "discovery",
        body=InstallationRequest,
        answer=InstallationStatus,
        status=202,
        answers={
            404: "no such server, policy or process server",
            409: "it has an agent, its host key is not accepted, or no process server is heard for long enough and none is named",
        },
    ),
    Route(
        "GET",
        "/installations",
        list_installations,
        Access.READER,
        "The newest installations of agents",
        "discovery",
        answer=Page[InstallationStatus],
    ),
    Route(
        "GET",
        "/installations/{installation}",
        get_installation,
        Access.READER,
        "An installation: step, progress, cause of failure",
        "discovery",
        answer=InstallationStatus,
        answers={404: "no such installation"},
    ),
    Route(
        "POST",
        "/installations/{installation}/cancellation",
        cancel_installation,
        Access.OPERATOR,
        "End an installation; its credentials are erased",
        "discovery",
        answer=InstallationStatus,
        answers={404: "no such installation", 409: "it has ended"},
    ),
    Route(
        "GET",
        "/process-server/installations/{installation}",
        get_installation_order,
        Access.PROCESS_SERVER,
        "Where to install the agent, with credentials and passphrase",
        "process server",
        answer=InstallationOrder,
        answers={404: "it is over, or another's"},
    ),
    Route(
        "POST",
        "/process-server/installations/{installation}/reports",
        post_installation_report,
        Access.PROCESS_SERVER,
        "How far an installation has come",
        "process server",
        body=InstallationReport,
        status=204,
        answers={404: "it is over, or another's"},
    ),
)
