"""Which process server an item belongs to, from rows to facts to decision to rows. ``core/placement.py`` decides.

Called by ``protection.py`` (a new item), by the reconciler every second (``Placement.follow``) and by ``process_server_verbs.py``. A change
is one transaction: the item's row, the event with its reason, and what its agent is told. The old process server is told nothing: it is
given no more keys for the item, and what it still uploads is harmless (R4, R5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.config import HeartbeatSettings, PlacementSettings
from config_server.core.age import Age
from config_server.core.capacity import APPLIANCE, PROCESS_SERVER, Capacity, MachineSize
from config_server.core.job import JobKind, JobState
from config_server.core.placement import (
    FRESH_FRACTION,
    Candidate,
    Cause,
    Hold,
    PlacedItem,
    Rules,
    choose_process_server,
    decide,
)
from config_server.core.reach import ReachWord
from config_server.core.steady_churn import DAY_S
from config_server.desired import publish
from config_server.events import SYSTEM, Actor, record_event
from config_server.items import AGENT_HEARD
from config_server.job_documents import MigrationContext
from config_server.jobs import context_of
from config_server.listening import TICK_S, Listening
from config_server.process_servers import heard_age, heartbeat_of
from config_server.reach import ReachReports, out_of_reach_of
from config_server.tables import ItemDiskRow, JobRow, MachineRow, ProcessServerRow, ProtectedItemRow

PLACED: Final = "item-placed"
SWITCHED: Final = "process-server-changed"


def rules_of(placement: PlacementSettings, heartbeat: HeartbeatSettings) -> Rules:
    return Rules(
        silent_after_s=heartbeat.process_server_timeout_s,
        take_over=placement.take_over,
        rebalance=placement.rebalance,
        min_difference=placement.min_difference,
        settled_after_s=placement.settled_after_s,
        between_moves_s=placement.between_moves_s,
        steady_after_s=placement.steady_after_s,
    )


def capacity_of(row: ProcessServerRow) -> Capacity:
    """By what it reports of its machine; as long as it does not say, the smallest row of its table."""
    table = APPLIANCE if row.on_appliance else PROCESS_SERVER
    observed = heartbeat_of(row)
    if observed is None or observed.cpu_count is None or observed.memory_bytes is None:
        lowest = table.tiers[0]
        return Capacity(1, lowest.churn_bytes_per_day, lowest.servers)
    return table.capacity_of(MachineSize(observed.cpu_count, observed.memory_bytes, observed.spool_limit_bytes))


async def candidates(session: AsyncSession, ages: Ages) -> list[Candidate]:
    """Every process server of the site."""
    found = []
    for row in await session.scalars(select(ProcessServerRow).order_by(ProcessServerRow.id)):
        observed = heartbeat_of(row)
        problem = None if observed is None else observed.upload_problem
        found.append(
            Candidate(
                identifier=row.id,
                name=row.hostname,
                heard=heard_age(row, ages),
                steady=ages.of("process-server-steady", row.id, row.heard_since_ns),
                draining=row.draining,
                upload_problem=None if problem is None else problem.message,
                spool_free_fraction=0.0 if observed is None else observed.spool_free_fraction,
                capacity=capacity_of(row),
            )
        )
    return found


async def placed_items(
    session: AsyncSession,
    ages: Ages,
    words: Mapping[str, ReachWord] | None = None,
    reach_moved: Mapping[tuple[str, str], Age] | None = None,
) -> list[PlacedItem]:
    """Every item that has not ended, for who decides whether it moves: ``words`` of agents by item, ``reach_moved`` by item and where it
    was moved to.
    """
    words, reach_moved = words or {}, reach_moved or {}
    churn = await session.execute(
        select(ItemDiskRow.item_id, func.sum(ItemDiskRow.steady_churn_bytes_per_s)).group_by(ItemDiskRow.item_id)
    )
    churn_of = {item_id: bytes_per_s or 0.0 for item_id, bytes_per_s in churn}
    holds = await _holds(session)
    rows = await session.execute(
        select(ProtectedItemRow.id, ProtectedItemRow.process_server_id, ProtectedItemRow.placed_ns)
        .where(ProtectedItemRow.ended_ns.is_(None))
        .order_by(ProtectedItemRow.id)
    )
    return [
        PlacedItem(
            identifier=identifier,
            server=server,
            churn_bytes_per_day=churn_of.get(identifier, 0.0) * DAY_S,
            since=ages.of(PLACED, identifier, placed_ns),
            hold=holds.get(identifier, Hold.NONE),
            word=(word := words.get(identifier)),
            out_of_reach=frozenset() if word is None else frozenset(word.unreached),
            reach_moved=None if server is None else reach_moved.get((identifier, server)),
        )
        for identifier, server, placed_ns in rows
    ]


async def _holds(session: AsyncSession) -> dict[str, Hold]:
    """Items whose source is asked to be held for the newest migration: what a new session of the agent would disturb."""
    newest = (
        select(JobRow.item_id, func.max(JobRow.number).label("number"))
        .where(JobRow.kind == JobKind.MIGRATE.value)
        .group_by(JobRow.item_id)
        .subquery()
    )
    jobs = await session.scalars(
        select(JobRow)
        .join(newest, (JobRow.item_id == newest.c.item_id) & (JobRow.number == newest.c.number))
        .join(ProtectedItemRow, ProtectedItemRow.id == JobRow.item_id)
        .where(ProtectedItemRow.ended_ns.is_(None), JobRow.state != JobState.CANCELLED.value)
    )
    return {job.item_id: hold for job in jobs if (hold := _hold_of(job)) is not Hold.NONE}


def _hold_of(job: JobRow) -> Hold:
    context = context_of(job, MigrationContext)
    if context.released:
        return Hold.NONE
    has_applied = context.cutover is not None and context.cutover.state == "applied"
    return Hold.SOURCE_HELD if has_applied else Hold.CUTOVER


async def choose(
    session: AsyncSession, heartbeat: HeartbeatSettings, ages: Ages, machine_id: str | None = None
) -> str | None:
    """The process server for a new item, or None if none can take one. ``machine_id``: whose item, if its agent was heard before."""
    far = frozenset[str]() if machine_id is None else await out_of_reach_of(session, machine_id)
    return await _choose(session, await candidates(session, ages), heartbeat, ages, far)


async def choose_steady(
    session: AsyncSession, heartbeat: HeartbeatSettings, ages: Ages, steady_after_s: float
) -> str | None:
    """As ``choose``, of those only that have been heard for so long without a gap."""
    found = await candidates(session, ages)
    steady = [each for each in found if each.steady is not None and each.steady.exceeds(steady_after_s)]
    return await _choose(session, steady, heartbeat, ages)


async def _choose(
    session: AsyncSession,
    found: list[Candidate],
    heartbeat: HeartbeatSettings,
    ages: Ages,
    out_of_reach: frozenset[str] = frozenset(),
) -> str | None:
    rules = Rules(silent_after_s=heartbeat.process_server_timeout_s)
    return choose_process_server(found, await placed_items(session, ages), rules, out_of_reach)


async def give(
    session: AsyncSession, item: ProtectedItemRow, target: str, cause: str, reason: str, actor: Actor, now_ns: int
) -> None:
    """The item belongs to ``target`` from now on, and its agent is told so."""
    item.process_server_id, item.placed_ns, item.placement_problem = target, now_ns, None
    record_event(
        session,
        now_ns,
        actor,
        "placed" if cause == Cause.ASSIGN else SWITCHED,
        f"{cause}: {reason}",
        machine_id=item.machine_id,
        item_id=item.id,
    )
    await publish(session, item.machine_id)


class Placement:
    """The reconciler's: follows the decision, and counts what came of it."""

    def __init__(self, settings: PlacementSettings, heartbeat: HeartbeatSettings, ages: Ages) -> None:
        self._rules = rules_of(settings, heartbeat)
        self._ages = ages
        self._deaf_after_s = self._rules.silent_after_s * FRESH_FRACTION
        self.calm_s = 0.0
        """After a decision: so long another one need not be asked for, unless something but time changes."""
        self.moves: dict[str, int] = {cause.value: 0 for cause in Cause}
        """Since the start, by cause."""
        self._told_waiting = True
        """Some items may bear the reason why they wait: always after a start."""
        self._reach = ReachReports()
        self._reach_moved: dict[str, tuple[str, float]] = {}
        """Where an item was last moved for reach, and when by the monotonic clock: where it is there, the move was committed. Gone with
        the process: then one move more at most.
        """
        self._listening = Listening(ages.monotonic_s(), self._deaf_after_s)

    async def listen(self) -> None:
        """Tick until cancelled: that this process stood still is noticed by its ticks, however long a decision takes."""
        # Another server of the site may have led meanwhile, and what agents told it is not known.
        self._told_waiting, self._reach = True, ReachReports()
        while True:
            self._listening.tick(self._ages.monotonic_s())
            await asyncio.sleep(TICK_S)

    async def follow(self, session: AsyncSession, now_ns: int) -> bool:
        """One decision and its consequences; returns whether an agent is told something new."""
        found = await candidates(session, self._ages)
        words = await self._reach.words(session, self._ages)
        items = await placed_items(session, self._ages, words, self._since_reach_moves())
        newest_heard_s = await self._newest_heard_s(session, found)
        listening_s = self._listening.listened_s(self._ages.monotonic_s(), newest_heard_s)
        decision = decide(found, items, self._rules, listening_s=listening_s)
        for move in decision.moves:
            item = await session.get_one(ProtectedItemRow, move.item)
            await give(session, item, move.target, move.cause.value, move.reason, SYSTEM, now_ns)
            self.moves[move.cause.value] += 1
            if move.cause is Cause.REACH:
                self._reach_moved[move.item] = move.target, self._ages.monotonic_s()
        if decision.waiting or self._told_waiting:
            await _note_waiting(session, {waiting.item: waiting.reason for waiting in decision.waiting})
        self._told_waiting = bool(decision.waiting)
        drains = any(server.draining for server in found)
        if drains:
            await _note_drained(session, items, {move.item for move in decision.moves}, now_ns)
        in_doubt = drains or bool(decision.moves) or bool(decision.waiting)
        self.calm_s = 0.0 if in_doubt else self._until_silence_s(found, listening_s, newest_heard_s)
        return bool(decision.moves)

    def _since_reach_moves(self) -> dict[tuple[str, str], Age]:
        """Of those that may still matter; the others are forgotten."""
        now_s = self._ages.monotonic_s()
        self._reach_moved = {
            item: (target, moved_s)
            for item, (target, moved_s) in self._reach_moved.items()
            if now_s - moved_s <= self._rules.between_reach_moves_s
        }
        return {(item, target): Age(now_s - moved_s) for item, (target, moved_s) in self._reach_moved.items()}

    def _until_silence_s(self, found: Iterable[Candidate], listening_s: float, newest_heard_s: float | None) -> float:
        """Until silence may begin to count, of a process server or of everybody. What else comes with time (rebalancing) need not be
        decided before the next round.
        """
        if newest_heard_s is None:
            return 0.0
        silences_s = [listening_s if each.heard is None else min(each.heard.seconds, listening_s) for each in found]
        return max(
            0.0, min([self._deaf_after_s - newest_heard_s, *(self._rules.silent_after_s - s for s in silences_s)])
        )

    async def _newest_heard_s(self, session: AsyncSession, servers: Iterable[Candidate]) -> float | None:
        heard = [server.heard for server in servers]
        machines = await session.execute(select(MachineRow.id, MachineRow.heard_ns).where(MachineRow.connected))
        heard += [self._ages.of(AGENT_HEARD, identifier, heard_ns) for identifier, heard_ns in machines]
        return min((age.seconds for age in heard if age is not None and age.known), default=None)


async def _note_waiting(session: AsyncSession, reasons: dict[str, str]) -> None:
    """Why an item stays where it should not be: kept with the item, for its health and for the list of process servers."""
    told = await session.scalars(select(ProtectedItemRow).where(ProtectedItemRow.placement_problem.is_not(None)))
    for item in told:
        if item.id not in reasons:
            item.placement_problem = None
    for identifier, reason in reasons.items():
        item = await session.get_one(ProtectedItemRow, identifier)
        if item.placement_problem != reason:
            item.placement_problem = reason


async def _note_drained(session: AsyncSession, items: Iterable[PlacedItem], moved: set[str], now_ns: int) -> None:
    """Record when the last item has left a process server that is being drained."""
    occupied = {item.server for item in items if item.identifier not in moved}
    draining = select(ProcessServerRow).where(ProcessServerRow.draining, ProcessServerRow.drained_ns.is_(None))
    for server in await session.scalars(draining):
        if server.id not in occupied:
            note_drained(session, server, now_ns)


def note_drained(session: AsyncSession, server: ProcessServerRow, now_ns: int) -> None:
    """The last item has left it."""
    server.drained_ns = now_ns
    record_event(session, now_ns, SYSTEM, "drained", f"process server {server.hostname} has no items any more")
