"""Servers, discovered or with an agent: list, one with its inventory, the pre-check, protection, re-enrolment. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.api.routes import Access, Call, Query, Route
from config_server.certificates import find_enrolled
from config_server.core.age import at_least_s
from config_server.discovered_servers import (
    Listed,
    discovered_as,
    facts_of,
    find_server,
    list_all,
    reference_to,
    summary_of,
)
from config_server.discovery_tables import DiscoveredServerRow
from config_server.events import record_event
from config_server.inventories import inventory_of
from config_server.item_status import health_level
from config_server.items import active_item, agent_age
from config_server.job_status import job_status
from config_server.operator_plane import (
    DEFAULT_PAGE,
    MAX_PAGE,
    ItemReference,
    JobStatus,
    Page,
    ProtectRequest,
    ReadinessCheck,
    ReadinessReport,
    ServerDetail,
    ServerSummary,
    timestamp,
)
from config_server.protection import protect
from config_server.readiness_facts import readiness_of, readiness_of_discovered
from config_server.tables import DiskRow, MachineRow
from replication.errors import Conflict


class PageQuery(Query):
    """``after``: the ``next`` of the page before; ``limit``: at most so many."""

    after: str | None = None
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)


class ReadinessQuery(Query):
    """``disks``: identifiers or paths, separated by commas; absent: all that can be protected."""

    disks: str | None = None


async def list_servers(call: Call) -> Page[ServerSummary]:
    query = call.parameters(PageQuery)
    async with call.site.database.read() as session:
        rows = await list_all(session, query.after or "", query.limit + 1)
        shown = [await _listed(session, row, call.site.ages) for row in rows[: query.limit]]
    return Page[ServerSummary](items=shown, next=rows[query.limit - 1].key if len(rows) > query.limit else None)


async def _listed(session: AsyncSession, row: Listed, ages: Ages) -> ServerSummary:
    if row.machine is not None:
        return await _summary(session, row.machine, row.discovered, ages)
    if row.discovered is None:
        raise AssertionError("a server is enrolled or discovered")
    return summary_of(row.discovered)


async def get_server(call: Call) -> ServerDetail:
    async with call.site.database.read() as session:
        machine = await find_server(session, call.path["server"])
        if isinstance(machine, DiscoveredServerRow):
            return ServerDetail(
                server=summary_of(machine),
                inventory=None,
                inventory_at=None,
                desired=None,
                discovered=facts_of(machine),
            )
        found = await inventory_of(session, machine.id)
        discovered = await discovered_as(session, machine)
        summary = await _summary(session, machine, discovered, call.site.ages)
    return ServerDetail(
        discovered=None if discovered is None else facts_of(discovered),
        server=summary,
        inventory=None if found is None else found[0],
        inventory_at=None if found is None else timestamp(found[1]),
        desired=await call.site.feed.current(machine.id),
    )


async def _summary(
    session: AsyncSession, machine: MachineRow, discovered: DiscoveredServerRow | None, ages: Ages
) -> ServerSummary:
    found = await inventory_of(session, machine.id)
    inventory = None if found is None else found[0]
    item = await active_item(session, machine.id)
    count, total = (
        await session.execute(
            select(func.count(), func.coalesce(func.sum(DiskRow.size_bytes), 0)).where(
                DiskRow.machine_id == machine.id, DiskRow.present
            )
        )
    ).one()
    heard = agent_age(machine, ages)
    reference = None
    if item is not None:
        health = None if item.health is None else health_level(item.health)
        reference = ItemReference(id=item.id, state=item.state, health=health)
    return ServerSummary(
        id=machine.id,
        hostname=machine.hostname,
        platform=inventory.platform if inventory else None,
        operating_system=inventory.operating_system if inventory else None,
        cpu_count=inventory.cpu_count if inventory else None,
        memory_bytes=inventory.memory_bytes if inventory else None,
        disk_count=int(count),
        disk_bytes=int(total),
        agent_version=inventory.agent_version if inventory else None,
        enrolled_at=timestamp(machine.enrolled_ns),
        connected=machine.connected,
        heard_age_s=at_least_s(heard),
        heard_age_known=heard is None or heard.known,
        item=reference,
        discovery=None if discovered is None else reference_to(discovered),
    )


async def check_server(call: Call) -> ReadinessReport:
    query = call.parameters(ReadinessQuery)
    disks = None if query.disks is None else [name for name in query.disks.split(",") if name]
    async with call.site.database.read() as session:
        server = await find_server(session, call.path["server"])
        facts = (disks, call.site.heartbeat, call.site.store_status, call.site.ages)
        if isinstance(server, DiscoveredServerRow):
            readiness = await readiness_of_discovered(session, server, *facts, call.site.installers)
        else:
            readiness = await readiness_of(session, server, *facts)
    return ReadinessReport(
        server=server.hostname,
        ready=readiness.ready,
        checks=[
            ReadinessCheck(name=check.name, grade=check.grade.value, message=check.message, remedy=check.remedy)
            for check in readiness.checks
        ],
    )


async def protect_server(call: Call) -> JobStatus:
    request = call.body(ProtectRequest)
    async with call.site.database.write() as session:
        server = await find_server(session, call.path["server"])
        if isinstance(server, DiscoveredServerRow):
            raise Conflict(
                f"cannot protect {server.hostname}: it has no agent yet",
                hint="say how to log in (--key-file or --password-file) to have it installed, or install it by hand",
            )
        job = await protect(
            session,
            server.id,
            request.disks,
            request.policy,
            call.site.heartbeat,
            call.site.ages,
            call.actor,
            call.site.clock(),
        )
        status = await job_status(session, job)
    call.site.changed()
    return status


async def allow_reenrolment(call: Call) -> None:
    deadline_ns = call.site.enrolments.reenrolment_deadline_ns()
    async with call.site.database.write() as session:
        holder = await find_enrolled(session, call.path["server"])
        holder.reenrolment_until_ns = deadline_ns
        record_event(
            session,
            call.site.clock(),
            call.actor,
            "reenrolment-allowed",
            f"{holder.hostname} may enrol anew once until {timestamp(deadline_ns)}",
            machine_id=holder.id if isinstance(holder, MachineRow) else None,
        )


ROUTES: Final = (
    Route(
        "GET",
        "/servers",
        list_servers,
        Access.READER,
        "Servers by name: those whose agents have enrolled, and those that were discovered",
        "servers",
        query=PageQuery,
        answer=Page[ServerSummary],
    ),
    Route(
        "GET",
        "/servers/{server}",
        get_server,
        Access.READER,
        "A server, by identifier or host name, with its inventory and what its agent is told",
        "servers",
        answer=ServerDetail,
        answers={404: "no such server", 409: "the name is not unique"},
    ),
    Route(
        "GET",
        "/servers/{server}/readiness",
        check_server,
        Access.READER,
        "The pre-check: whether protecting this server will work, and why not",
        "servers",
        query=ReadinessQuery,
        answer=ReadinessReport,
        answers={404: "no such server"},
    ),
    Route(
        "POST",
        "/servers/{server}/protection",
        protect_server,
        Access.OPERATOR,
        "Enable replication; the job ends with initial replication",
        "servers",
        body=ProtectRequest,
        answer=JobStatus,
        status=202,
        answers={404: "no such server or policy", 409: "protected already, or a disk cannot be protected"},
    ),
    Route(
        "POST",
        "/servers/{server}/reenrolment",
        allow_reenrolment,
        Access.ADMINISTRATOR,
        "Let this server or process server enrol anew once within an hour",
        "servers",
        status=204,
        answers={404: "no such server"},
    ),
)
