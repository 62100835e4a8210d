"""What agents send and ask: inventory, observations, desired state. Served by ``routes``; the caller is the certificate's machine."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from config_server.agent_limits import limits_of
from config_server.api.routes import Access, Answer, Call, Query, Route
from config_server.desired import publish
from config_server.incarnations import SupersededIncarnation, admit
from config_server.incidents import record_incident
from config_server.inventory import report_inventory
from config_server.items import AGENT_HEARD
from config_server.observations import report_agent
from config_server.process_servers import could_take
from config_server.tables import MachineRow
from replication.agent_limits import ObservationAnswer
from replication.control_plane import (
    MAX_DESIRED_WAIT_S,
    AgentDesired,
    AgentObservation,
    InventoryAnswer,
    MachineInventory,
)
from replication.errors import Conflict, Refused
from replication.failpoint import reached

SECOND_INCARNATION: Final = "second-incarnation"


class DesiredQuery(Query):
    """``after_revision``: the newest that the caller has; ``wait_s``: how long to wait for another one."""

    after_revision: int | None = None
    wait_s: float = Field(default=0.0, ge=0.0, le=MAX_DESIRED_WAIT_S)


async def put_inventory(call: Call) -> InventoryAnswer:
    inventory, arrived_ns = call.body(MachineInventory), call.site.clock()  # its clock is compared: not after waiting
    try:
        async with call.site.database.write() as session:
            machine = await session.get_one(MachineRow, call.peer_id)
            await report_inventory(session, machine, inventory, arrived_ns)
            answer = InventoryAnswer(process_servers=await could_take(session, call.site.heartbeat, call.site.ages))
    except (Conflict, Refused) as error:
        await record_incident(
            call.site.database, call.site.clock(), call.actor, SECOND_INCARNATION, str(error), call.peer_id
        )
        raise
    call.site.wake_reconciler()
    return answer


async def post_observation(call: Call) -> ObservationAnswer:
    observation, heard_ns = call.body(AgentObservation), call.site.clock()
    try:
        async with call.site.database.write() as session:
            machine = await session.get_one(MachineRow, call.peer_id)
            reported = await report_agent(session, machine, observation, call.site.ages, heard_ns)
            # Afterwards: a report from another machine must not supersede the agent of the right one.
            admit(machine, observation.incarnation, call.site.clock())
            # Of the rest of what it shall do nothing depends on what it says.
            published = reported is not None and reported.is_news and await publish(session, machine.id)
            answer = ObservationAnswer(limits=limits_of(machine))
    except SupersededIncarnation as error:
        if not error.is_late:
            await record_incident(
                call.site.database, call.site.clock(), call.actor, SECOND_INCARNATION, str(error), call.peer_id
            )
        raise
    except Refused as error:
        await record_incident(
            call.site.database, call.site.clock(), call.actor, SECOND_INCARNATION, str(error), call.peer_id
        )
        raise
    reached("config.observation.committed")
    # Its age rests on being looked at: nobody else may do so for seconds.
    call.site.ages.of(AGENT_HEARD, call.peer_id, heard_ns)
    if reported is not None:
        cuts = frozenset(disk.newest_cut for disk in observation.disks if disk.newest_cut is not None)
        call.site.note_points(reported.item, cuts)
    if published:
        call.site.feed.wake()
    call.site.wake_for_jobs()
    return answer


async def get_desired(call: Call) -> AgentDesired | Answer:
    query = call.parameters(DesiredQuery)
    found = await call.site.feed.wait(call.peer_id, query.after_revision, query.wait_s)
    return Answer(204) if found is None else found


ROUTES: Final = (
    Route(
        "PUT",
        "/agent/inventory",
        put_inventory,
        Access.AGENT,
        "Report what the machine is, which disks it has, and where it stands. Answered with the process servers that could take them",
        "agent",
        body=MachineInventory,
        answer=InventoryAnswer,
        answers={403: "reported by another installation", 409: "a disk belongs to another machine"},
    ),
    Route(
        "POST",
        "/agent/observations",
        post_observation,
        Access.AGENT,
        "Report how replication goes; also the heartbeat. Answered with the agent's limits",
        "agent",
        body=AgentObservation,
        answer=ObservationAnswer,
        answers={403: "reported by another installation, or by an agent beside which another was started"},
    ),
    Route(
        "GET",
        "/agent/desired",
        get_desired,
        Access.AGENT,
        "What the agent shall do; waits for a revision other than the known one",
        "agent",
        query=DesiredQuery,
        answer=AgentDesired,
        answers={204: "nothing new came within wait_s"},
    ),
)
