"""Discovery: begin one, see how it goes; host keys; and what the process server that carries it out fetches and reports. By ``routes``."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from config_server import discovered_servers, discoveries
from config_server.api.routes import Access, Call, Route
from config_server.discovery_plane import DiscoveredServer, DiscoveryRequest, DiscoveryStatus, HostKeyAcceptance
from config_server.discovery_tables import DiscoveryRunRow
from config_server.events import record_event
from config_server.operator_plane import Page
from replication.remote_access import DiscoveryOrder, HostReports

MOST_RUNS: Final = 50


async def begin_discovery(call: Call) -> DiscoveryStatus:
    async with call.site.database.write() as session:
        run = await discoveries.begin(
            session,
            call.body(DiscoveryRequest),
            call.site.key,
            call.site.heartbeat,
            call.site.ages,
            call.site.steady_after_s,
            call.site.discovery,
            call.actor,
            call.site.clock(),
        )
        await session.flush()
        return await discoveries.status_of(session, run, call.site.heartbeat, call.site.ages)


async def list_discoveries(call: Call) -> Page[DiscoveryStatus]:
    async with call.site.database.read() as session:
        rows = await session.scalars(
            select(DiscoveryRunRow).order_by(DiscoveryRunRow.created_ns.desc()).limit(MOST_RUNS)
        )
        found = [await discoveries.status_of(session, row, call.site.heartbeat, call.site.ages) for row in list(rows)]
    return Page[DiscoveryStatus](items=[status.model_copy(update={"hosts": []}) for status in found])


async def get_discovery(call: Call) -> DiscoveryStatus:
    async with call.site.database.read() as session:
        run = await discoveries.find_run(session, call.path["discovery"])
        return await discoveries.status_of(session, run, call.site.heartbeat, call.site.ages)


async def cancel_discovery(call: Call) -> DiscoveryStatus:
    async with call.site.database.write() as session:
        run = await discoveries.find_run(session, call.path["discovery"])
        await discoveries.cancel(session, run, call.actor, call.site.clock())
        return await discoveries.status_of(session, run, call.site.heartbeat, call.site.ages)


async def accept_host_key(call: Call) -> DiscoveredServer:
    async with call.site.database.write() as session:
        server = await discovered_servers.find_discovered(session, call.path["server"])
        await discovered_servers.accept_host_key(
            session, server, call.body(HostKeyAcceptance).host_key, call.actor, call.site.clock()
        )
        return discovered_servers.status_of(server)


async def forget_server(call: Call) -> None:
    async with call.site.database.write() as session:
        server = await discovered_servers.find_discovered(session, call.path["server"])
        await session.delete(server)
        record_event(
            session,
            call.site.clock(),
            call.actor,
            "server-forgotten",
            f"the discovered server {server.address} port {server.port} and its host key were forgotten",
        )


async def get_discovery_order(call: Call) -> DiscoveryOrder:
    async with call.site.database.write() as session:
        return await discoveries.order(session, call.peer_id, call.path["discovery"], call.site.key, call.site.clock())


async def post_host_reports(call: Call) -> None:
    async with call.site.database.write() as session:
        await discoveries.report(
            session, call.peer_id, call.path["discovery"], call.body(HostReports), call.site.clock()
        )


ROUTES: Final = (
    Route(
        "POST",
        "/discoveries",
        begin_discovery,
        Access.OPERATOR,
        "Have a process server look at hosts over SSH; credentials are erased when it is over",
        "discovery",
        body=DiscoveryRequest,
        answer=DiscoveryStatus,
        status=202,
        answers={
            409: "no process server is heard (for long enough, if none is named), or a given host key is not the accepted one",
            503: "too many at once",
        },
    ),
    Route(
        "GET",
        "/discoveries",
        list_discoveries,
        Access.READER,
        "The newest discoveries, without their hosts",
        "discovery",
        answer=Page[DiscoveryStatus],
    ),
    Route(
        "GET",
        "/discoveries/{discovery}",
        get_discovery,
        Access.READER,
        "A discovery and how far each host has come",
        "discovery",
        answer=DiscoveryStatus,
        answers={404: "no such discovery"},
    ),
    Route(
        "POST",
        "/discoveries/{discovery}/cancellation",
        cancel_discovery,
        Access.OPERATOR,
        "End a discovery; its credentials are erased",
        "discovery",
        answer=DiscoveryStatus,
        answers={404: "no such discovery", 409: "it has ended"},
    ),
    Route(
        "PUT",
        "/servers/{server}/host-key",
        accept_host_key,
        Access.OPERATOR,
        "Accept a host key of a discovered server: the only one with which it is spoken to",
        "discovery",
        body=HostKeyAcceptance,
        answer=DiscoveredServer,
        answers={404: "no such discovered server", 409: "the name is not unique"},
    ),
    Route(
        "DELETE",
        "/servers/{server}/discovery",
        forget_server,
        Access.OPERATOR,
        "Forget what was discovered of a server, and its host key",
        "discovery",
        status=204,
        answers={404: "no such discovered server", 409: "the name is not unique"},
    ),
    Route(
        "GET",
        "/process-server/discoveries/{discovery}",
        get_discovery_order,
        Access.PROCESS_SERVER,
        "The hosts that are left to look at, with the credentials",
        "process server",
        answer=DiscoveryOrder,
        answers={404: "it is over, or another's"},
    ),
    Route(
        "POST",
        "/process-server/discoveries/{discovery}/reports",
        post_host_reports,
        Access.PROCESS_SERVER,
        "How far hosts have come, and what was found",
        "process server",
        body=HostReports,
        status=204,
        answers={404: "it is over, or another's"},
    ),
)
