"""Which process servers an item's agent says it cannot reach, from the inventories. Called by ``placement.py`` (a new item, and
each second the reconciler's) and by ``process_server_verbs.py``. ``core/reach.py`` reads the agent's word.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.reach import ReachWord, open_to, out_of_reach
from config_server.inventories import inventory_of
from config_server.tables import InventoryRow, ProcessServerRow, ProtectedItemRow
from replication.surroundings import Surroundings


async def surroundings_of(session: AsyncSession, machine_id: str) -> Surroundings | None:
    """What the agent of a machine told last; None: it has told nothing of the kind."""
    found = await inventory_of(session, machine_id)
    return None if found is None else found[0].surroundings


async def out_of_reach_of(session: AsyncSession, machine_id: str) -> frozenset[str]:
    """The process servers that the agent of a machine says it cannot reach."""
    return out_of_reach(await _addresses(session), await surroundings_of(session, machine_id))


class ReachReports:
    """What the agents of protected items told. An inventory is read once, however often is asked."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, Surroundings | None]] = {}
        """By machine: when its inventory came, and what it says."""
        self._unreached: dict[str, dict[str, int]] = {}
        """By machine, of each process server that it cannot connect to: when the first inventory came of those that all say so. From
        before a start only the newest is known."""

    async def words(self, session: AsyncSession, ages: Ages) -> dict[str, ReachWord]:
        """By item, of those that have not ended. Where there is nothing to choose, nothing is read."""
        servers = await _addresses(session)
        if len(servers) < 2:
            return {}
        rows = await session.execute(
            select(ProtectedItemRow.id, InventoryRow.machine_id, InventoryRow.received_ns)
            .join(InventoryRow, InventoryRow.machine_id == ProtectedItemRow.machine_id)
            .where(ProtectedItemRow.ended_ns.is_(None))
        )
        known, unreached, found = self._told, self._unreached, {}
        self._told, self._unreached = {}, {}
        for item_id, machine_id, received_ns in rows.all():
            told = known.get(machine_id)
            if told is None or told[0] != received_ns:
                told = received_ns, await surroundings_of(session, machine_id)
            self._told[machine_id] = told
            before = unreached.get(machine_id, {})
            far = {server: before.get(server, received_ns) for server in out_of_reach(servers, told[1])}
            self._unreached[machine_id] = far
            age = ages.of("inventory", machine_id, received_ns)
            if age is not None and told[1] is not None:
                found[item_id] = ReachWord(
                    told=age,
                    unreached={
                        server: since
                        for server, first_ns in far.items()
                        if (since := ages.of("unreached", f"{machine_id} {server}", first_ns)) is not None
                    },
                    open_to=open_to(servers, told[1]),
                )
        return found


async def _addresses(session: AsyncSession) -> list[tuple[str, str]]:
    rows = await session.execute(select(ProcessServerRow.id, ProcessServerRow.service_url))
    return [(identifier, url) for identifier, url in rows]
