"""Servers without an agent, as rows: found, their host keys pinned, matched with the machine that enrols, listed among the others.

Called by ``discoveries.py``, ``installations.py`` and the API inside their transactions. A discovered server and a machine are one if they
state the same fingerprint; that is looked up when somebody asks, so that nothing has to be kept in step.
"""

from __future__ import annotations

import ipaddress
import uuid
from dataclasses import dataclass
from typing import Final

from sqlalchemy import exists, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.discovery_plane import DiscoveredServer
from config_server.discovery_tables import DiscoveredServerRow
from config_server.events import Actor, record_event
from config_server.items import find_machine
from config_server.operator_plane import DiscoveryReference, ServerSummary, timestamp
from config_server.placement import choose, choose_steady
from config_server.process_server_verbs import find_process_server
from config_server.tables import MachineRow, ProcessServerRow
from replication.errors import Conflict, NotFound
from replication.remote_access import DiscoveredFacts

_MAX_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the list of all servers; ``key`` orders it."""

    key: str
    machine: MachineRow | None
    discovered: DiscoveredServerRow | None


async def list_all(session: AsyncSession, after: str, limit: int) -> list[Listed]:
    """Machines and the discovered servers that are none of them, by name; each after the key ``after``."""
    machine_key = (MachineRow.hostname + "/" + MachineRow.id).label("key")
    discovered_key = (DiscoveredServerRow.hostname + "/" + DiscoveredServerRow.id).label("key")
    machines = select(machine_key, MachineRow.id.label("id"), literal(1).label("enrolled"))
    discovered = select(discovered_key, DiscoveredServerRow.id.label("id"), literal(0).label("enrolled")).where(
        DiscoveredServerRow.machine_fingerprint.is_(None)
        | ~exists().where(MachineRow.machine_fingerprint == DiscoveredServerRow.machine_fingerprint)
    )
    both = machines.union_all(discovered).subquery()
    rows = await session.execute(
        select(both.c.key, both.c.id, both.c.enrolled).where(both.c.key > after).order_by(both.c.key).limit(limit)
    )
    found = []
    for key, identifier, enrolled in list(rows):
        if enrolled:
            machine = await session.get_one(MachineRow, identifier)
            found.append(Listed(key, machine, await discovered_as(session, machine)))
        else:
            found.append(Listed(key, None, await session.get_one(DiscoveredServerRow, identifier)))
    return found


async def find_server(session: AsyncSession, text: str) -> MachineRow | DiscoveredServerRow:
    """A machine by identifier or host name, else a discovered server by identifier, address or host name; one that has enrolled since is
    the machine. An address is an address first: no machine that calls itself so comes before the one that was met there.

    :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
    """
    met_there = await _met_at(session, text)
    if len(met_there) == 1:
        machine = await enrolled_as(session, met_there[0])
        if machine is not None or _is_address(text):
            return machine or met_there[0]
    try:
        return await find_machine(session, text)
    except NotFound:
        found = await find_discovered(session, text)
        return await enrolled_as(session, found) or found


async def find_discovered(session: AsyncSession, text: str) -> DiscoveredServerRow:
    """By identifier, by what the operator called it when it was discovered, or else by what it calls itself.

    :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
    """
    row = await session.get(DiscoveredServerRow, text)
    if row is not None:
        return row
    named = await _met_at(session, text) or list(
        await session.scalars(select(DiscoveredServerRow).where(DiscoveredServerRow.hostname == text).limit(2))
    )
    if len(named) > 1:
        raise Conflict(
            f"cannot tell which server {text[:_MAX_SHOWN]!r} is: several have this name or address",
            hint="use the identifier: `migratectl servers --json`",
        )
    if not named:
        raise NotFound(f"cannot find the server {text[:_MAX_SHOWN]!r}", hint="`migratectl servers` lists them")
    return named[0]


def is_what_operator_called(server: DiscoveredServerRow, text: str) -> bool:
    """Whether ``text`` is not only the name that the server told of itself."""
    return text == server.id or text.lower() == server.address.lower()


async def _met_at(session: AsyncSession, text: str) -> list[DiscoveredServerRow]:
    """At most two, as one address may have several ports."""
    found = select(DiscoveredServerRow).where(func.lower(DiscoveredServerRow.address) == text.lower()).limit(2)
    return list(await session.scalars(found))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def process_server_for(
    session: AsyncSession, wanted: str | None, heartbeat: HeartbeatSettings, ages: Ages, steady_after_s: float
) -> ProcessServerRow:
    """Who goes to servers, and is handed credentials: the process server that an operator named, or the one that is chosen. One that has
    enrolled a moment ago, by whomever, is not chosen, unless the site has no other one: then there is nothing to choose.

    :raises NotFound: there is none of this name. :raises Conflict: several have it, none is heard, or none for so long without a gap.
    """
    if wanted is not None:
        return await find_process_server(session, wanted)
    chosen = await choose_steady(session, heartbeat, ages, steady_after_s)
    fresh = None if chosen is not None else await choose(session, heartbeat, ages)
    if fresh is not None and await _is_the_only_one(session):
        chosen = fresh
    elif fresh is not None:
        name = (await session.get_one(ProcessServerRow, fresh)).hostname
        raise Conflict(
            f"cannot choose who is handed the credentials: no process server has been heard for {steady_after_s:.0f} s without a gap",
            hint=f"wait, or name the one that you trust with them: `--process-server {name}`",
        )
    if chosen is None:
        raise Conflict("cannot go to the servers: no process server is heard", hint="`migratectl process-servers`")
    return await session.get_one(ProcessServerRow, chosen)


async def _is_the_only_one(session: AsyncSession) -> bool:
    """Whether the site has one process server, also counting those that are silent."""
    return await session.scalar(select(func.count()).select_from(ProcessServerRow)) == 1


async def record_hand_out(session: AsyncSession, process_server_id: str, what: str, now_ns: int) -> None:
    """Each time that a process server is given the credentials of ``what``."""
    server = await session.get_one(ProcessServerRow, process_server_id)
    record_event(
        session,
        now_ns,
        Actor(f"process-server:{process_server_id}"),
        "credentials-handed-out",
        f"the credentials of {what} were handed to process server {server.hostname}",
    )


async def enrolled_as(session: AsyncSession, server: DiscoveredServerRow) -> MachineRow | None:
    """The machine that a discovered server has become."""
    if server.machine_fingerprint is None:
        return None
    found: MachineRow | None = await session.scalar(
        select(MachineRow).where(MachineRow.machine_fingerprint == server.machine_fingerprint)
    )
    return found


async def discovered_as(session: AsyncSession, machine: MachineRow) -> DiscoveredServerRow | None:
    """What a machine was discovered as; of several addresses the one looked at last."""
    found: DiscoveredServerRow | None = await session.scalar(
        select(DiscoveredServerRow)
        .where(DiscoveredServerRow.machine_fingerprint == machine.machine_fingerprint)
        .order_by(DiscoveredServerRow.facts_ns.desc())
        .limit(1)
    )
    return found


async def at_address(session: AsyncSession, address: str, port: int) -> DiscoveredServerRow | None:
    found: DiscoveredServerRow | None = await session.scalar(
        select(DiscoveredServerRow).where(
            func.lower(DiscoveredServerRow.address) == address.lower(), DiscoveredServerRow.port == port
        )
    )
    return found


async def met(session: AsyncSession, address: str, port: int, user: str, now_ns: int) -> DiscoveredServerRow:
    """The server at an address that has answered, known or new."""
    known = await at_address(session, address, port)
    if known is None:
        known = DiscoveredServerRow(
            id=str(uuid.uuid4()), address=address, port=port, user=user, hostname=address, created_ns=now_ns
        )
        session.add(known)
        await session.flush()
    return known


def learn(server: DiscoveredServerRow, facts: DiscoveredFacts, user: str, process_server_id: str, now_ns: int) -> None:
    """Take what the probe found."""
    server.facts, server.facts_ns = facts.model_dump_json(), now_ns
    server.hostname = facts.hostname[:255]
    server.user, server.process_server_id = user, process_server_id
    server.machine_fingerprint = facts.machine_fingerprint or server.machine_fingerprint


def facts_of(server: DiscoveredServerRow) -> DiscoveredFacts | None:
    return None if server.facts is None else DiscoveredFacts.decode(server.facts.encode())


async def accept_host_key(
    session: AsyncSession, server: DiscoveredServerRow, host_key: str, actor: Actor, now_ns: int
) -> None:
    """Pin a host key: the only one with which the server is spoken to from now on."""
    before = server.host_key
    server.host_key, server.offered_host_key = host_key, None
    if before != host_key:
        record_event(
            session,
            now_ns,
            actor,
            "host-key-accepted",
            f"host key of {server.address} port {server.port} accepted: {host_key}"
            + ("" if before is None else f", instead of {before}"),
        )


def reference_to(server: DiscoveredServerRow) -> DiscoveryReference:
    return DiscoveryReference(
        id=server.id,
        address=server.address,
        port=server.port,
        host_key=server.host_key,
        offered_host_key=server.offered_host_key,
        looked_at=None if server.facts_ns is None else timestamp(server.facts_ns),
    )


def summary_of(server: DiscoveredServerRow) -> ServerSummary:
    """A line of the list of servers, for one without an agent."""
    facts = facts_of(server)
    return ServerSummary(
        id=server.id,
        hostname=server.hostname,
        platform=facts.platform if facts else None,
        operating_system=facts.operating_system if facts else None,
        cpu_count=facts.cpu_count if facts else None,
        memory_bytes=facts.memory_bytes if facts else None,
        disk_count=len(facts.disks) if facts else 0,
        disk_bytes=sum(disk.size_bytes for disk in facts.disks) if facts else 0,
        agent_version=None,
        enrolled_at=None,
        connected=False,
        heard_age_s=None,
        heard_age_known=True,
        item=None,
        discovery=reference_to(server),
    )


def status_of(server: DiscoveredServerRow) -> DiscoveredServer:
    return DiscoveredServer(
        id=server.id,
        address=server.address,
        port=server.port,
        user=server.user,
        hostname=server.hostname,
        host_key=server.host_key,
        offered_host_key=server.offered_host_key,
        facts=facts_of(server),
        facts_at=None if server.facts_ns is None else timestamp(server.facts_ns),
    )
