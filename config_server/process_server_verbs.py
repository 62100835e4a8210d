"""Operators' verbs on process servers: drain, undrain, remove; and giving an item another one. Called by ``api/process_servers.py``.

Each is one transaction. What a drain moves is the reconciler's work (``placement.py``), a few items at a time.
"""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.placement import Candidate, Hold, PlacedItem, Rules
from config_server.core.reach import reach_of
from config_server.discovery_tables import AgentInstallationRow, DiscoveredServerRow, DiscoveryHostRow, DiscoveryRunRow
from config_server.events import Actor, record_event
from config_server.items import find_item
from config_server.named_rows import enrolled_as
from config_server.placement import candidates, give, note_drained, placed_items
from config_server.process_servers import item_counts
from config_server.reach import surroundings_of
from config_server.tables import CertificateRow, EnrolmentPassphraseRow, MachineRow, ProcessServerRow, ProtectedItemRow
from replication.errors import Conflict, NotFound


async def find_process_server(session: AsyncSession, text: str) -> ProcessServerRow:
    """A process server by identifier, host name, or HOST:PORT of its address.

    :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
    """
    found = await enrolled_as(session, ProcessServerRow, text, ProcessServerRow.service_url == f"https://{text}")
    if len(found) > 1:
        raise Conflict(
            f"cannot tell which process server {text[:100]!r} is: several have this name",
            hint="use HOST:PORT of its address, or its identifier: `migratectl process-servers --json`",
        )
    if not found:
        raise NotFound(f"cannot find the process server {text[:100]!r}", hint="`migratectl process-servers` lists them")
    return found[0]


async def drain(session: AsyncSession, text: str, actor: Actor, now_ns: int) -> ProcessServerRow:
    """Let its items change over to others, and give it no new ones. Repeating it changes nothing."""
    server = await find_process_server(session, text)
    if not server.draining:
        items = (await item_counts(session)).get(server.id, 0)
        server.draining, server.drain_began_ns, server.drain_items, server.drained_ns = True, now_ns, items, None
        message = f"process server {server.hostname} is drained of {items} items"
        record_event(session, now_ns, actor, "drain-began", message)
        if not items:  # at once: nobody has to wait for the reconciler
            note_drained(session, server, now_ns)
    return server


async def undrain(session: AsyncSession, text: str, actor: Actor, now_ns: int) -> ProcessServerRow:
    """Let it take items again. Those that have left come back only if the load says so. Repeating it changes nothing."""
    server = await find_process_server(session, text)
    if server.draining:
        server.draining, server.drain_began_ns, server.drain_items, server.drained_ns = False, None, 0, None
        record_event(session, now_ns, actor, "drain-ended", f"process server {server.hostname} takes items again")
    return server


async def remove(
    session: AsyncSession, text: str, heartbeat: HeartbeatSettings, ages: Ages, actor: Actor, now_ns: int
) -> list[str]:
    """Forget a process server and revoke its certificates, whose serial numbers are returned. The items of one that is silent are given
    to others by the reconciler.

    :raises Conflict: while it is heard and has items, or has one whose migrated source must stay held.
    """
    server = await find_process_server(session, text)
    items = [item for item in await placed_items(session, ages) if item.server == server.id]
    candidate = _candidate(await candidates(session, ages), server.id)
    is_silent = candidate.heard is None or candidate.heard.exceeds(heartbeat.process_server_timeout_s)
    if items and not is_silent:
        raise Conflict(
            f"cannot remove process server {server.hostname}: {len(items)} items are on it",
            hint=f"`migratectl drain-process-server {server.id}` first",
        )
    held = [item for item in items if item.hold is Hold.SOURCE_HELD]
    if held:
        raise Conflict(
            f"cannot remove process server {server.hostname}: {len(held)} migrated items are on it, whose sources are held",
            hint="complete or cancel these migrations first",
        )
    await session.execute(
        update(ProtectedItemRow)
        .where(ProtectedItemRow.process_server_id == server.id)
        .values(process_server_id=None, placement_problem=None)
    )
    await _forget_work_over_ssh(session, server.id, now_ns)
    certificates = list(await session.scalars(select(CertificateRow).where(CertificateRow.holder_id == server.id)))
    for certificate in certificates:
        certificate.revoked_ns = certificate.revoked_ns or now_ns
    message = f"process server {server.hostname} ({server.id}) is removed; its certificates are revoked"
    if items:
        message += f"; its {len(items)} items are given to others"
    record_event(session, now_ns, actor, "process-server-removed", message)
    await session.delete(server)
    return [certificate.serial for certificate in certificates]


async def _forget_work_over_ssh(session: AsyncSession, server_id: str, now_ns: int) -> None:
    """What it found stays; its discoveries and installations are forgotten with their credentials, what is under way cannot go on."""
    await session.execute(
        update(DiscoveredServerRow)
        .where(DiscoveredServerRow.process_server_id == server_id)
        .values(process_server_id=None)
    )
    installations = AgentInstallationRow.process_server_id == server_id
    passphrases = select(AgentInstallationRow.passphrase_id).where(installations)
    await session.execute(
        update(EnrolmentPassphraseRow)
        .where(EnrolmentPassphraseRow.id.in_(passphrases), EnrolmentPassphraseRow.revoked_ns.is_(None))
        .values(revoked_ns=now_ns)
    )
    await session.execute(delete(AgentInstallationRow).where(installations))
    runs = select(DiscoveryRunRow.id).where(DiscoveryRunRow.process_server_id == server_id)
    await session.execute(delete(DiscoveryHostRow).where(DiscoveryHostRow.run_id.in_(runs)))
    await session.execute(delete(DiscoveryRunRow).where(DiscoveryRunRow.process_server_id == server_id))


async def switch(
    session: AsyncSession,
    text: str,
    to: str,
    heartbeat: HeartbeatSettings,
    ages: Ages,
    actor: Actor,
    now_ns: int,
) -> ProtectedItemRow:
    """Give an item to the process server ``to``. Repeating it changes nothing.

    :raises Conflict: if the item has ended or a migration of it is under way, or if that process server can take nothing,
        or the item's agent says that it cannot reach it.
    """
    item = await find_item(session, text)
    server = await find_process_server(session, to)
    if item.ended_ns is not None:
        raise Conflict(f"cannot switch the process server: the item is in state {item.state}")
    if item.process_server_id == server.id:
        return item
    _require_free(next(each for each in await placed_items(session, ages) if each.identifier == item.id))
    target = _candidate(await candidates(session, ages), server.id)
    refusal = target.refusal(Rules(silent_after_s=heartbeat.process_server_timeout_s))
    if refusal is not None:
        raise Conflict(
            f"cannot switch to process server {server.hostname}: {refusal}",
            hint="`migratectl process-servers` shows which can take items",
        )
    machine = await session.get_one(MachineRow, item.machine_id)
    await _require_reach(session, machine, server)
    reason = f"{machine.hostname} ships to process server {server.hostname} ({server.service_url})"
    await give(session, item, server.id, "switch", reason, actor, now_ns)
    return item


def _require_free(item: PlacedItem) -> None:
    if item.hold is not Hold.NONE:
        raise Conflict(
            "cannot switch the process server: a migration of the item is under way, which would begin anew",
            hint="wait for its end, or cancel it",
        )


async def _require_reach(session: AsyncSession, machine: MachineRow, server: ProcessServerRow) -> None:
    surroundings = await surroundings_of(session, machine.id)
    reach = None if surroundings is None else reach_of(server.service_url, surroundings)
    if reach is not None and not reach.may_pass:
        raise Conflict(
            f"cannot switch to process server {server.hostname}: the agent of {machine.hostname} does not reach {reach.host} "
            f"port {reach.port}: {reach.result.replace('-', ' ')}",
            hint="let TCP from the server to it pass the firewall; the agent tries again every 30 s: `migratectl check`",
        )


def _candidate(found: list[Candidate], identifier: str) -> Candidate:
    return next(candidate for candidate in found if candidate.identifier == identifier)
