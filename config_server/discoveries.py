"""Discovery: what an operator asks for, a process server's order and its reports. Called by the API, the heartbeat and the reconciler.

The configuration server goes to no server itself (docs/decisions/0020): it keeps the hosts, the pinned host keys and, wrapped by the site's
key-encryption key and only while the run is open, the credentials. A run ends when every host has, or after ``RUN_TIMEOUT_S``; then the
credentials are erased. Everything is in the database, so that a restart of either daemon goes on where it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import discovered_servers, process_servers
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.discovery import ENDED_STATES, HostState, next_host_state
from config_server.core.host_list import Host, expand, parse_hosts, target_of
from config_server.discovery_plane import DiscoveryHostStatus, DiscoveryRequest, DiscoveryStatus, HostRequest
from config_server.discovery_tables import DiscoveryHostRow, DiscoveryRunRow
from config_server.events import SYSTEM, Actor, record_event
from config_server.job_documents import JobProblem
from config_server.jobs import problem_from
from config_server.key_encryption import KeyEncryptionKey
from config_server.named_rows import forget_ended
from config_server.operator_plane import timestamp
from config_server.tables import ProcessServerRow
from replication.control_plane import RemoteOrderReference
from replication.errors import Conflict, InvalidInput, NotFound, Overloaded
from replication.remote_access import (
    DISCOVERIES,
    DiscoveryHost,
    DiscoveryOrder,
    HostReport,
    HostReports,
    HostStateName,
    SshCredentials,
)
from replication.server_addresses import DiscoverySettings

RUN_TIMEOUT_S: Final = 2 * 3600.0
MOST_OPEN_RUNS: Final = 4
_ENDED: Final = tuple(state.value for state in ENDED_STATES)


async def begin(
    session: AsyncSession,
    request: DiscoveryRequest,
    key: KeyEncryptionKey,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    steady_after_s: float,
    limits: DiscoverySettings,
    actor: Actor,
    now_ns: int,
) -> DiscoveryRunRow:
    """Keep hosts and credentials, and have a process server look.

    :raises InvalidInput: hosts that cannot be used, or no way to log in. :raises Conflict: no process server is heard (for long enough, if
        none is named), or a given host key is not the pinned one. :raises Overloaded: too many discoveries are under way.
    """
    if request.credentials.password is None and request.credentials.private_key is None:
        raise InvalidInput("cannot log in anywhere without a password or a private key")
    named = (each for one in request.hosts for each in _hosts_of(one, limits))
    hosts = expand(named, user=request.user, port=request.port)
    for each in hosts:
        target_of(each)
    under_way = await session.scalar(
        select(func.count()).select_from(DiscoveryRunRow).where(DiscoveryRunRow.ended_ns.is_(None))
    )
    if (under_way or 0) >= MOST_OPEN_RUNS:
        raise Overloaded(f"cannot begin: {under_way} discoveries are under way", hint="wait for one to end")
    server = await discovered_servers.process_server_for(
        session, request.process_server, heartbeat, ages, steady_after_s
    )
    run = DiscoveryRunRow(id=str(uuid.uuid4()), process_server_id=server.id, actor=actor, message="", created_ns=now_ns)
    run.credentials = key.wrap_secret(request.credentials.encode(), _context(run.id))
    session.add(run)
    await session.flush()
    for ordinal, host in enumerate(hosts, 1):
        session.add(await _host_row(session, run.id, ordinal, host))
    record_event(
        session,
        now_ns,
        actor,
        "discovery-started",
        f"discovery of {len(hosts)} hosts through process server {server.hostname} started",
    )
    return run


def _hosts_of(request: HostRequest, limits: DiscoverySettings) -> list[Host]:
    hosts = parse_hosts(request.address, allow_loopback=limits.allow_loopback)
    if request.host_key is not None and len(hosts) > 1:
        raise InvalidInput(f"cannot use one host key for {request.address}", hint="name the hosts one by one")
    return [
        replace(
            host,
            port=request.port or host.port,
            user=request.user or host.user,
            host_key=request.host_key,
            of_range=host.of_range or request.of_range,
        )
        for host in hosts
    ]


async def _host_row(session: AsyncSession, run_id: str, ordinal: int, host: Host) -> DiscoveryHostRow:
    port = host.port or 0
    known = await discovered_servers.at_address(session, host.host, port)
    pinned = None if known is None else known.host_key
    if host.host_key is not None and pinned is not None and host.host_key != pinned:
        raise Conflict(
            f"cannot take {host.host_key} for the host key of {host.host}: {pinned} was accepted",
            hint=f"if it is right, `migratectl servers accept-host-key {host.host} {host.host_key}` first",
        )
    return DiscoveryHostRow(
        run_id=run_id,
        ordinal=ordinal,
        address=host.host,
        port=port,
        user=host.user or "",
        host_key=host.host_key or pinned,
        of_range=host.of_range,
        state=HostState.WAITING.value,
    )


def _context(run_id: str) -> str:
    return f"discovery {run_id}"


async def orders_for(session: AsyncSession, process_server_id: str) -> list[RemoteOrderReference]:
    """What a process server's heartbeat is answered with."""
    rows = await session.scalars(
        select(DiscoveryRunRow.id)
        .where(DiscoveryRunRow.process_server_id == process_server_id, DiscoveryRunRow.ended_ns.is_(None))
        .order_by(DiscoveryRunRow.created_ns)
    )
    return [RemoteOrderReference(kind=DISCOVERIES, identifier=identifier) for identifier in rows]


async def _open_run(session: AsyncSession, process_server_id: str, identifier: str) -> DiscoveryRunRow:
    """:raises NotFound: if there is none, it is over, or another process server's."""
    run = await session.get(DiscoveryRunRow, identifier)
    if run is None or run.ended_ns is not None or run.process_server_id != process_server_id:
        raise NotFound("cannot find this discovery among those that you shall carry out")
    return run


async def _hosts(session: AsyncSession, run_id: str) -> list[DiscoveryHostRow]:
    return list(
        await session.scalars(
            select(DiscoveryHostRow).where(DiscoveryHostRow.run_id == run_id).order_by(DiscoveryHostRow.ordinal)
        )
    )


async def order(
    session: AsyncSession, process_server_id: str, identifier: str, key: KeyEncryptionKey, now_ns: int
) -> DiscoveryOrder:
    """What is left to do of a run, with the credentials; that they are handed out is recorded. :raises NotFound: if it is over."""
    run = await _open_run(session, process_server_id, identifier)
    credentials = SshCredentials.decode(key.unwrap_secret(run.credentials or b"", _context(run.id)))
    await discovered_servers.record_hand_out(session, process_server_id, f"discovery {run.id}", now_ns)
    hosts = []
    for host in await _hosts(session, run.id):
        if host.state in _ENDED:
            continue
        try:
            target = target_of(Host(host.address, host.port, host.user, host.host_key))
        except InvalidInput as error:  # what an older version took
            host.state, host.problem = HostState.FAILED.value, problem_from(error).model_dump_json()
        else:
            hosts.append(DiscoveryHost(ordinal=host.ordinal, target=target))
    if not hosts:
        _end(session, run, SYSTEM, now_ns, "no host is left that can be looked at")
    return DiscoveryOrder(run=run.id, credentials=credentials, hosts=hosts)


async def report(
    session: AsyncSession, process_server_id: str, identifier: str, reports: HostReports, now_ns: int
) -> None:
    """Take what a process server tells; a host that has ended stays as it is.

    :raises NotFound: if the run is over. :raises InvalidInput: for a host that is not of it.
    """
    run = await _open_run(session, process_server_id, identifier)
    for told in reports.reports:
        host = await session.get(DiscoveryHostRow, (run.id, told.ordinal))
        if host is None:
            raise InvalidInput(f"cannot take a report on host {told.ordinal}: the discovery has none such")
        await _take(session, run, host, told, now_ns)
    await session.flush()
    left = await session.scalar(
        select(func.count())
        .select_from(DiscoveryHostRow)
        .where(DiscoveryHostRow.run_id == run.id, DiscoveryHostRow.state.not_in(_ENDED))
    )
    if not left:
        _end(session, run, SYSTEM, now_ns, "")


async def _take(
    session: AsyncSession, run: DiscoveryRunRow, host: DiscoveryHostRow, told: HostReport, now_ns: int
) -> None:
    if HostState(host.state) in ENDED_STATES:
        return
    host.state = next_host_state(HostState(host.state), HostState(told.state)).value
    host.problem = (
        None
        if told.problem is None
        else JobProblem(code=told.problem.code, message=told.problem.message, hint=told.problem.hint).model_dump_json()
    )
    if told.offered_host_key is None:
        return
    host.offered_host_key = told.offered_host_key
    server = await discovered_servers.met(session, host.address, host.port, host.user, now_ns)
    host.server_id = server.id
    if host.state in (HostState.HOST_KEY_UNKNOWN.value, HostState.HOST_KEY_CHANGED.value):
        if told.offered_host_key != server.host_key:
            server.offered_host_key = told.offered_host_key
    elif host.host_key is not None and server.host_key is None:
        # The operator gave it with the request, and the server has proved to hold it.
        await discovered_servers.accept_host_key(session, server, host.host_key, Actor(run.actor), now_ns)
    if told.facts is not None and host.state == HostState.FOUND.value:
        discovered_servers.learn(server, told.facts, host.user, run.process_server_id, now_ns)


def _end(session: AsyncSession, run: DiscoveryRunRow, actor: Actor, now_ns: int, message: str) -> None:
    run.ended_ns, run.message, run.credentials = now_ns, message, None
    record_event(
        session, now_ns, actor, "discovery-ended", f"discovery {run.id} ended{': ' if message else ''}{message}"
    )


async def _fail_rest(session: AsyncSession, run: DiscoveryRunRow, problem: JobProblem) -> None:
    for host in await _hosts(session, run.id):
        if host.state not in _ENDED:
            host.state, host.problem = HostState.FAILED.value, problem.model_dump_json()


async def cancel(session: AsyncSession, run: DiscoveryRunRow, actor: Actor, now_ns: int) -> None:
    """End it and erase its credentials; the process server drops it with its next report. :raises Conflict: if it has ended."""
    if run.ended_ns is not None:
        raise Conflict(f"cannot cancel the discovery {run.id}: it has ended")
    await _fail_rest(session, run, JobProblem(code="cancelled", message="the discovery was cancelled", hint=None))
    _end(session, run, actor, now_ns, "cancelled")


async def end_overdue(session: AsyncSession, ages: Ages, now_ns: int) -> None:
    """Called by the reconciler: credentials do not wait for ever for a process server that is away."""
    for run in await session.scalars(select(DiscoveryRunRow).where(DiscoveryRunRow.ended_ns.is_(None))):
        age = ages.of("discovery", run.id, run.created_ns)
        if age is not None and age.exceeds(RUN_TIMEOUT_S):
            problem = JobProblem(
                code="not-looked-at",
                message="the discovery's time was over before the process server had looked at this host",
                hint="see that the process server is heard, and discover again",
            )
            await _fail_rest(session, run, problem)
            _end(session, run, SYSTEM, now_ns, f"not every host was looked at within {RUN_TIMEOUT_S / 3600:.0f} h")


async def forget_runs(session: AsyncSession, before_ns: int, most: int) -> int:
    """Delete at most so many runs that ended before; returns how many it were. What they found stays."""
    return await forget_ended(session, DiscoveryRunRow, before_ns, most, DiscoveryHostRow.run_id)


async def find_run(session: AsyncSession, identifier: str) -> DiscoveryRunRow:
    """:raises NotFound: if there is none."""
    run = await session.get(DiscoveryRunRow, identifier)
    if run is None:
        raise NotFound(f"cannot find the discovery {identifier[:64]!r}")
    return run


async def status_of(
    session: AsyncSession, run: DiscoveryRunRow, heartbeat: HeartbeatSettings, ages: Ages
) -> DiscoveryStatus:
    """Everything of a run but the addresses of ranges at which nothing answers."""
    server = await session.get_one(ProcessServerRow, run.process_server_id)
    hosts = await _hosts(session, run.id)
    shown = [host for host in hosts if not host.of_range or host.state != HostState.SILENT.value]
    age = process_servers.heard_age(server, ages)
    heard = age is not None and age.is_within(heartbeat.process_server_timeout_s)
    message = run.message or (
        "" if heard or run.ended_ns is not None else f"process server {server.hostname} is not heard"
    )
    return DiscoveryStatus(
        id=run.id,
        state="in-progress" if run.ended_ns is None else "ended",
        message=message,
        actor=run.actor,
        process_server=server.hostname,
        created_at=timestamp(run.created_ns),
        ended_at=None if run.ended_ns is None else timestamp(run.ended_ns),
        total=len(hosts),
        done=sum(host.state in _ENDED for host in hosts),
        silent=len(hosts) - len(shown),
        hosts=_shown(shown),
    )


def _shown(hosts: Sequence[DiscoveryHostRow]) -> list[DiscoveryHostStatus]:
    return [
        DiscoveryHostStatus(
            address=host.address,
            port=host.port,
            user=host.user,
            of_range=host.of_range,
            state=cast("HostStateName", host.state),
            host_key=host.host_key,
            offered_host_key=host.offered_host_key,
            problem=None if host.problem is None else JobProblem.decode(host.problem.encode()),
            server=host.server_id,
        )
        for host in hosts
    ]
