"""What process servers send and ask: heartbeats and data keys. Served by ``routes``; the caller is the certificate's process server."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from config_server import agent_installations, discoveries
from config_server.api.agent_generations import generation_key
from config_server.api.callers import is_of_this_machine
from config_server.api.routes import Access, Call, Route
from config_server.desired import publish
from config_server.incidents import record_incident
from config_server.observations import report_process_server
from config_server.process_servers import HEARD
from config_server.revocations import revoked_serials
from config_server.tables import ProcessServerRow, ProtectedItemRow
from config_server.upload_limits import limits_of
from replication.control_plane import DataKeyGrant, ProcessServerDesired, ProcessServerObservation
from replication.errors import Refused


async def post_heartbeat(call: Call) -> ProcessServerDesired:
    now_ns = call.site.clock()
    call.site.ages.renew(HEARD, call.peer_id)  # it is not silent while its heartbeat waits for a busy database
    async with call.site.database.write() as session:
        server = await session.get(ProcessServerRow, call.peer_id)
        if server is None:  # removed since its certificate was looked at
            raise Refused("cannot take a heartbeat: this process server was removed", hint="enrol again")
        heartbeat = await report_process_server(
            session,
            server,
            call.body(ProcessServerObservation),
            call.site.own,
            call.site.ages,
            now_ns,
            same_machine=is_of_this_machine(call.remote),
        )
        if heartbeat.moved:
            machines = await session.scalars(
                select(ProtectedItemRow.machine_id).where(
                    ProtectedItemRow.process_server_id == server.id, ProtectedItemRow.ended_ns.is_(None)
                )
            )
            for machine_id in list(machines):
                await publish(session, machine_id)
        desired = ProcessServerDesired(
            upload=limits_of(server),
            revoked_serials=await revoked_serials(session, now_ns),
            remote_orders=[
                *await discoveries.orders_for(session, server.id),
                *await agent_installations.orders_for(session, server.id),
            ],
        )
    call.site.ages.of(
        HEARD, call.peer_id, now_ns
    )  # its age rests on being looked at: nobody else may do so for seconds
    if heartbeat.moved:
        call.site.changed()
    if heartbeat.refused is not None:
        await record_incident(call.site.database, now_ns, call.actor, "address-refused", heartbeat.refused, None)
    return desired


async def get_data_key(call: Call) -> DataKeyGrant:
    return await call.site.generations.data_key(call.peer_id, generation_key(call), guard=call.standing)


ROUTES: Final = (
    Route(
        "POST",
        "/process-server/heartbeats",
        post_heartbeat,
        Access.PROCESS_SERVER,
        "Report load, spool and upload; learn limits and revoked certificates",
        "process server",
        body=ProcessServerObservation,
        answer=ProcessServerDesired,
    ),
    Route(
        "GET",
        "/process-server/disks/{disk}/generations/{generation}/key",
        get_data_key,
        Access.PROCESS_SERVER,
        "The data key of a generation that is assigned to this process server",
        "process server",
        answer=DataKeyGrant,
        answers={403: "assigned to another process server", 404: "no such generation"},
    ),
)
