"""Installing the agent on a discovered server, and protecting it: what the operator asks for, the order, the reports, the end.

Called by the API, the heartbeat and the reconciler. A process server does it (docs/decisions/0020); this keeps the state, and, while
the process server needs them and no longer, the login's credentials and a passphrase made for this installation, wrapped by the site's
key-encryption key. When the process server says *installed*, or the installation ends otherwise, they are erased and the passphrase is
revoked. That passphrase is good for one machine: the one whose fingerprint the probe found, else the first that uses it. The machine that
has enrolled with it is protected as if the operator had done it, and no other: what the probe of a hostile server says leads to none.
"""

from __future__ import annotations

import json
import uuid
from typing import Final

from pydantic import SecretStr
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import discovered_servers, process_servers
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.agent_installation import (
    AT_PROCESS_SERVER,
    InstallationState,
    next_installation_state,
)
from config_server.discovery_plane import InstallationRequest, InstallationStatus
from config_server.discovery_tables import AgentInstallationRow, DiscoveredServerRow
from config_server.events import SYSTEM, Actor, record_event
from config_server.inventories import inventory_of
from config_server.job_documents import JobProblem
from config_server.jobs import problem_from
from config_server.key_encryption import KeyEncryptionKey
from config_server.operator_plane import timestamp
from config_server.passphrases import IssuedPassphrase
from config_server.policies import find_policy
from config_server.protection import protect
from config_server.tables import EnrolmentPassphraseRow, MachineRow, ProcessServerRow
from replication.control_plane import RemoteOrderReference
from replication.errors import BlockferryError, Conflict, InvalidInput, NotFound, Refused
from replication.remote_access import (
    INSTALLATIONS,
    InstallationOrder,
    InstallationReport,
    Secret,
    SecretDocument,
    SshCredentials,
    SshTarget,
)

INSTALLATION_TIMEOUT_S: Final = 2 * 3600.0
"""For the process server's part; the passphrase is valid for as long."""
ENROLLING_TIMEOUT_S: Final = 900.0
REACH_TOLD_WITHIN_S: Final = 30.0
"""Since it was enrolled an agent has told which process servers it reaches, or does not tell: with its second inventory, seconds after the
first, whose answer named them.
"""
_AT_PROCESS_SERVER: Final = tuple(state.value for state in AT_PROCESS_SERVER)


class _Secrets(SecretDocument):
    credentials: SshCredentials
    passphrase: Secret


async def begin(
    session: AsyncSession,
    text: str,
    request: InstallationRequest,
    passphrase: IssuedPassphrase,
    key: KeyEncryptionKey,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    steady_after_s: float,
    actor: Actor,
    now_ns: int,
) -> AgentInstallationRow:
    """Keep what is asked for, and have a process server do it.

    :raises InvalidInput: no way to log in. :raises NotFound: no such server, policy or process server.
    :raises Conflict: it has an agent already, its host key is not accepted, one is under way, or no process server is heard.
    """
    if request.credentials.password is None and request.credentials.private_key is None:
        raise InvalidInput("cannot log in without a password or a private key")
    server = await _installable(session, text)
    policy = await find_policy(session, request.policy)
    chosen = await _process_server(session, server, request.process_server, heartbeat, ages, steady_after_s)
    row = AgentInstallationRow(
        id=str(uuid.uuid4()),
        server_id=server.id,
        hostname=server.hostname,
        process_server_id=chosen.id,
        user=request.user or server.user,
        policy=policy.name,
        disks=None if request.disks is None else json.dumps(request.disks),
        state=InstallationState.WAITING.value,
        message="",
        done_bytes=0,
        total_bytes=0,
        passphrase_id=passphrase.identifier,
        machine_fingerprint=server.machine_fingerprint,
        actor=actor,
        created_ns=now_ns,
        state_since_ns=now_ns,
    )
    secrets = _Secrets(credentials=request.credentials, passphrase=SecretStr(passphrase.text))
    row.secrets = key.wrap_secret(secrets.encode(), _context(row.id))
    session.add(row)
    await session.flush()
    record_event(
        session,
        now_ns,
        actor,
        "installation-started",
        f"installation of the agent on {server.hostname} through process server {chosen.hostname} started",
    )
    return row


async def _installable(session: AsyncSession, text: str) -> DiscoveredServerRow:
    server = await discovered_servers.find_server(session, text)
    if isinstance(server, MachineRow):
        raise Conflict(
            f"cannot install the agent on {server.hostname}: it has one that has enrolled",
            hint=f"`migratectl protect {server.hostname}` without a login",
        )
    if not discovered_servers.is_what_operator_called(server, text):
        raise Conflict(
            f"cannot send a login to {text[:100]}: that is only what the server at {server.address} port {server.port} calls itself",
            hint=f"if you mean that one, name its address: `migratectl protect {server.address}`",
        )
    if server.host_key is None or server.offered_host_key is not None:
        shown = server.offered_host_key or "none yet"
        raise Conflict(
            f"cannot go to {server.address}: its host key ({shown}) is not accepted",
            hint=f"compare it, then `migratectl servers accept-host-key {server.address} {shown}`",
        )
    if (
        await session.scalar(
            select(AgentInstallationRow.id).where(
                AgentInstallationRow.server_id == server.id, AgentInstallationRow.ended_ns.is_(None)
            )
        )
    ) is not None:
        raise Conflict(
            f"cannot begin: an installation on {server.hostname} is under way", hint="`migratectl installations`"
        )
    return server


async def _process_server(
    session: AsyncSession,
    server: DiscoveredServerRow,
    named: str | None,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    steady_after_s: float,
) -> ProcessServerRow:
    """The named one, the one that was handed credentials for this server before, or one that is steady."""
    if named is None and server.process_server_id is not None:
        before = await session.get(ProcessServerRow, server.process_server_id)
        age = None if before is None else process_servers.heard_age(before, ages)
        if before is not None and age is not None and age.is_within(heartbeat.process_server_timeout_s):
            return before
    return await discovered_servers.process_server_for(session, named, heartbeat, ages, steady_after_s)


def _context(identifier: str) -> str:
    return f"installation {identifier}"


async def orders_for(session: AsyncSession, process_server_id: str) -> list[RemoteOrderReference]:
    """What a process server's heartbeat is answered with."""
    rows = await session.scalars(
        select(AgentInstallationRow.id)
        .where(
            AgentInstallationRow.process_server_id == process_server_id,
            AgentInstallationRow.state.in_(_AT_PROCESS_SERVER),
        )
        .order_by(AgentInstallationRow.created_ns)
    )
    return [RemoteOrderReference(kind=INSTALLATIONS, identifier=identifier) for identifier in rows]


async def _ordered(session: AsyncSession, process_server_id: str, identifier: str) -> AgentInstallationRow:
    """:raises NotFound: if it is not an order of this process server any more."""
    row = await session.get(AgentInstallationRow, identifier)
    if row is None or row.process_server_id != process_server_id or row.state not in _AT_PROCESS_SERVER:
        raise NotFound("cannot find this installation among those that you shall carry out")
    return row


async def order(
    session: AsyncSession, process_server_id: str, identifier: str, key: KeyEncryptionKey, fingerprint: str, now_ns: int
) -> InstallationOrder:
    """What to do, with the credentials; the hand-out is recorded. :raises NotFound: it is over, or the server forgotten."""
    row = await _ordered(session, process_server_id, identifier)
    server = await session.get(DiscoveredServerRow, row.server_id)
    if server is None:
        raise NotFound("cannot find the server of this installation: it was forgotten")
    secrets = _Secrets.decode(key.unwrap_secret(row.secrets or b"", _context(row.id)))
    await discovered_servers.record_hand_out(
        session, process_server_id, f"the installation on {row.hostname} ({row.id})", now_ns
    )
    return InstallationOrder(
        installation=row.id,
        target=SshTarget(host=server.address, port=server.port, user=row.user, host_key=server.host_key),
        credentials=secrets.credentials,
        passphrase=secrets.passphrase,
        fingerprint=fingerprint,
    )


async def report(
    session: AsyncSession, process_server_id: str, identifier: str, told: InstallationReport, now_ns: int
) -> None:
    """Take what the process server tells. :raises NotFound: if it is over."""
    row = await _ordered(session, process_server_id, identifier)
    row.message, row.done_bytes, row.total_bytes = told.message, told.done_bytes, told.total_bytes
    row.version = told.version or row.version
    if told.facts is not None:
        server = await session.get(DiscoveredServerRow, row.server_id)
        if server is not None:
            discovered_servers.learn(server, told.facts, row.user, process_server_id, now_ns)
        if row.machine_id is None:  # else the passphrase was used, and is bound
            row.machine_fingerprint = told.facts.machine_fingerprint or row.machine_fingerprint
    match told.state:
        case "installed":
            text = f"the agent was installed on {row.hostname}: {told.message}"
            record_event(session, now_ns, SYSTEM, "installation-installed", text, machine_id=row.machine_id)
            _move(row, InstallationState.ENROLLING, now_ns)
            await _forget_secrets(session, row, now_ns)
        case "failed":
            problem = told.problem
            code, message = ("failed", "no reason was told") if problem is None else (problem.code, problem.message)
            await _fail(
                session, row, JobProblem(code=code, message=message, hint=problem.hint if problem else None), now_ns
            )
        case _:
            _move(row, InstallationState(told.state), now_ns)


async def admit(session: AsyncSession, passphrase_id: str, fingerprint: str) -> AgentInstallationRow | None:
    """The installation that a passphrase was made for, or None; bound to the machine of this fingerprint from now on.

    :raises Refused: if it is over, or bound to another machine.
    """
    row: AgentInstallationRow | None = await session.scalar(
        select(AgentInstallationRow).where(AgentInstallationRow.passphrase_id == passphrase_id)
    )
    if row is None:
        return None
    if row.secrets is None:
        raise Refused("cannot enrol: the installation that this passphrase was made for is over")
    if row.machine_fingerprint not in (None, fingerprint):
        raise Refused(
            "cannot enrol: this passphrase was made for installing the agent on another machine",
            hint="`migratectl create-enrolment-passphrase` makes one for any machine",
        )
    row.machine_fingerprint = fingerprint
    return row


def _move(row: AgentInstallationRow, state: InstallationState, now_ns: int) -> None:
    before = InstallationState(row.state)
    if before is not state:
        row.state, row.state_since_ns = next_installation_state(before, state).value, now_ns


async def _forget_secrets(session: AsyncSession, row: AgentInstallationRow, now_ns: int) -> None:
    row.secrets = None
    await session.execute(
        update(EnrolmentPassphraseRow)
        .where(EnrolmentPassphraseRow.id == row.passphrase_id, EnrolmentPassphraseRow.revoked_ns.is_(None))
        .values(revoked_ns=now_ns)
    )


async def _end(
    session: AsyncSession, row: AgentInstallationRow, state: InstallationState, actor: Actor, message: str, now_ns: int
) -> None:
    _move(row, state, now_ns)
    row.ended_ns = now_ns
    await _forget_secrets(session, row, now_ns)
    text = f"installation of the agent on {row.hostname} {state.value}"
    record_event(
        session,
        now_ns,
        actor,
        f"installation-{state.value}",
        f"{text}: {message}" if message else text,
        machine_id=row.machine_id,
        job_id=row.job_id,
    )


async def _fail(session: AsyncSession, row: AgentInstallationRow, problem: JobProblem, now_ns: int) -> None:
    row.problem = problem.model_dump_json()
    await _end(session, row, InstallationState.FAILED, SYSTEM, problem.message, now_ns)


async def cancel(session: AsyncSession, row: AgentInstallationRow, actor: Actor, now_ns: int) -> None:
    """End it; the process server drops it with its next heartbeat. What the installer has begun on the server it may still finish.

    :raises Conflict: if it has ended.
    """
    if row.ended_ns is not None:
        raise Conflict(f"cannot cancel the installation on {row.hostname}: it has ended ({row.state})")
    await _end(session, row, InstallationState.CANCELLED, actor, "", now_ns)


async def follow(session: AsyncSession, identifier: str, heartbeat: HeartbeatSettings, ages: Ages, now_ns: int) -> None:
    """One step of an installation that is open: protect the machine that has enrolled, or give up waiting. Idempotent."""
    row = await session.get_one(AgentInstallationRow, identifier)
    if row.ended_ns is not None:
        return
    age = ages.of("installation", f"{row.id} {row.state}", row.state_since_ns)
    if row.state != InstallationState.ENROLLING.value:
        begun = ages.of("installation", row.id, row.created_ns)
        if begun is not None and begun.exceeds(INSTALLATION_TIMEOUT_S):
            problem = JobProblem(
                code="not-installed",
                message=f"the agent was not installed within {INSTALLATION_TIMEOUT_S / 3600:.0f} h; it came to {row.state}",
                hint="see that the process server is heard, then protect the server again",
            )
            await _fail(session, row, problem, now_ns)
        return
    machine = None if row.machine_id is None else await session.get(MachineRow, row.machine_id)
    stranger = None
    if machine is None and row.machine_fingerprint is not None:
        stranger = await session.scalar(
            select(MachineRow).where(MachineRow.machine_fingerprint == row.machine_fingerprint)
        )
    if stranger is not None:
        problem = JobProblem(
            code="enrolled-before",
            message=f"the machine that {row.hostname} says it is has not enrolled by this installation: it is {stranger.hostname}"
            f" ({stranger.id}), enrolled {timestamp(stranger.enrolled_ns)}",
            hint=f"if it is that server, `migratectl protect {stranger.id}`; if not, find out why it says so",
        )
        await _fail(session, row, problem, now_ns)
    elif machine is not None and (found := await inventory_of(session, machine.id)) is not None:
        if found[0].surroundings is None and await _may_tell_reach(session, machine, ages):
            row.message = "waits for the agent to tell which process servers it reaches"
        else:
            await _protect(session, row, machine, heartbeat, ages, now_ns)
    elif age is not None and age.exceeds(ENROLLING_TIMEOUT_S):
        what = "has enrolled, but has sent no inventory" if machine is not None else "has not enrolled"
        problem = JobProblem(
            code="agent-silent",
            message=f"the agent was installed, and {what} within {ENROLLING_TIMEOUT_S / 60:.0f} min",
            hint="on the server: `systemctl status blockferry-agent` and its journal",
        )
        await _fail(session, row, problem, now_ns)
    else:
        row.message = "waits for the agent's inventory" if machine is not None else "waits for the agent to enrol"


async def _may_tell_reach(session: AsyncSession, machine: MachineRow, ages: Ages) -> bool:
    """Whether it is worth waiting for: its disks would be placed by it."""
    enrolled = ages.of("enrolled", machine.id, machine.enrolled_ns)
    if enrolled is None or enrolled.exceeds(REACH_TOLD_WITHIN_S):
        return False
    return (await session.scalar(select(func.count()).select_from(ProcessServerRow)) or 0) > 1


async def _protect(
    session: AsyncSession,
    row: AgentInstallationRow,
    machine: MachineRow,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    now_ns: int,
) -> None:
    disks = None if row.disks is None else json.loads(row.disks)
    try:
        async with session.begin_nested():
            job = await protect(session, machine.id, disks, row.policy, heartbeat, ages, Actor(row.actor), now_ns)
    except BlockferryError as error:
        await _fail(session, row, problem_from(error), now_ns)
        return
    row.job_id, row.message = job.id, ""
    await _end(session, row, InstallationState.SUCCEEDED, SYSTEM, f"version {row.version}", now_ns)


async def open_installations(session: AsyncSession) -> list[str]:
    rows = await session.scalars(
        select(AgentInstallationRow.id)
        .where(AgentInstallationRow.ended_ns.is_(None))
        .order_by(AgentInstallationRow.created_ns)
    )
    return list(rows)


async def find(session: AsyncSession, identifier: str) -> AgentInstallationRow:
    """:raises NotFound: if there is none."""
    row = await session.get(AgentInstallationRow, identifier)
    if row is None:
        raise NotFound(
            f"cannot find the installation {identifier[:64]!r}", hint="`migratectl installations` lists them"
        )
    return row


async def status_of(session: AsyncSession, row: AgentInstallationRow) -> InstallationStatus:
    server = await session.get_one(ProcessServerRow, row.process_server_id)
    return InstallationStatus(
        id=row.id,
        server=row.hostname,
        state=row.state,
        message=row.message,
        process_server=server.hostname,
        policy=row.policy,
        actor=row.actor,
        created_at=timestamp(row.created_ns),
        ended_at=None if row.ended_ns is None else timestamp(row.ended_ns),
        done_bytes=row.done_bytes,
        total_bytes=row.total_bytes,
        version=row.version,
        problem=None if row.problem is None else JobProblem.decode(row.problem.encode()),
        machine=row.machine_id,
        job=row.job_id,
    )
