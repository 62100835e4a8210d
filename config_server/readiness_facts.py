"""The pre-check, from rows to facts to verdict. Called by ``api/servers.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.discovered_readiness import DiscoveredReadinessFacts, check_discovered, checks_of_probe
from config_server.core.readiness import Readiness, ReadinessFacts, check_readiness, chosen_disks
from config_server.core.surroundings_check import checks_of_agent
from config_server.discovered_servers import discovered_as, facts_of
from config_server.discovery_tables import DiscoveredServerRow
from config_server.installers import Installers
from config_server.inventories import inventory_of
from config_server.items import active_item, agent_age
from config_server.process_servers import readiness_of_all
from config_server.store_status import StoreStatus
from config_server.tables import MachineRow
from replication.errors import SettingsError
from replication.installer_catalogue import InstallerCatalogue


async def readiness_of_discovered(
    session: AsyncSession,
    server: DiscoveredServerRow,
    disks: Collection[str] | None,
    heartbeat: HeartbeatSettings,
    store: StoreStatus,
    ages: Ages,
    installers: Installers,
) -> Readiness:
    """What stands against installing the agent on a discovered server and protecting it."""
    age = ages.of("discovered", server.id, server.facts_ns)
    return check_discovered(
        DiscoveredReadinessFacts(
            name=server.address,
            facts=facts_of(server),
            facts_age_s=None if age is None else age.seconds,
            host_key=server.host_key,
            offered_host_key=server.offered_host_key,
            disks=disks,
            installers=await asyncio.to_thread(_offered, installers),
            process_servers=await readiness_of_all(session, heartbeat, ages),
            store_reachable=store.reachable,
            store_problem=store.problem,
        )
    )


def _offered(installers: Installers) -> InstallerCatalogue | None:
    try:
        return installers.read().catalogue
    except SettingsError:
        return None


async def readiness_of(
    session: AsyncSession,
    machine: MachineRow,
    disks: Collection[str] | None,
    heartbeat: HeartbeatSettings,
    store: StoreStatus,
    ages: Ages,
) -> Readiness:
    """What stands against protecting ``machine`` now."""
    found = await inventory_of(session, machine.id)
    inventory = None if found is None else found[0]
    servers = await readiness_of_all(session, heartbeat, ages)
    heard = agent_age(machine, ages)
    readiness = check_readiness(
        ReadinessFacts(
            hostname=machine.hostname,
            inventory=inventory,
            agent_age=heard,
            agent_timeout_s=heartbeat.agent_timeout_s,
            clock_offset_s=None if machine.clock_offset_ns is None else machine.clock_offset_ns / 1e9,
            protected=await active_item(session, machine.id) is not None,
            disks=disks,
            process_servers=servers,
            store_reachable=store.reachable,
            store_problem=store.problem,
        )
    )
    if inventory is not None and inventory.surroundings is not None:
        disks_bytes = sum(disk.size_bytes for disk in chosen_disks(inventory, disks))
        return Readiness((*readiness.checks, *checks_of_agent(inventory.surroundings, disks_bytes, servers)))
    discovered = await discovered_as(session, machine)
    looked_at = None if discovered is None else ages.of("discovered", discovered.id, discovered.facts_ns)
    of_probe = checks_of_probe(
        None if discovered is None else facts_of(discovered),
        None if looked_at is None else looked_at.seconds,
        machine.hostname if discovered is None else discovered.address,
        agent_heard=heard is not None and heard.is_within(heartbeat.agent_timeout_s),
    )
    return Readiness((*readiness.checks, *of_probe))
