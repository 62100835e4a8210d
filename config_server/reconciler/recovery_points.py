"""Recovery points: finding the writer's records, verifying them, and pruning by retention. Called by ``reconciler/loop.py``.

A point exists for this server once its signed record was verified; a record that cannot be verified is refused and recorded as an
event. What is found at one look is taken in in the order of the history. A known one that the store does not list is lost until it does
again; when its retention would have ended it is given up. What was given up or deleted is forgotten, unless a job is at work on it: so a
look reads as many rows as there are points, and one that the store has again after all is found anew, and pruned. Points are deleted by
the writer at this server's request only (``core/retention.py`` decides), one request an item at a time.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.job import JobKind, JobState
from config_server.core.point_state import PointState, next_point_state
from config_server.core.protected_item import DELETING_STATES, State
from config_server.core.retention import Point, points_to_prune
from config_server.database import Database
from config_server.events import SYSTEM, Clock, record_event
from config_server.incidents import record_incident
from config_server.job_documents import MigrationContext, TestMigrationContext
from config_server.jobs import context_of, newest_job, open_jobs
from config_server.point_history import AVAILABLE, DELETED, LOST, PRUNING, place_of, settle_pruning, take_in
from config_server.tables import JobRow, PolicyRow, ProtectedItemRow, RecoveryPointRow, WriterRequestRow
from config_server.tracking_losses import newest_proved_cut, suspicion_of
from config_server.writer_requests import FAILED, NEW, PUT, SUCCEEDED, ask_writer, request_id, request_of
from replication.blob_client.api import BlobClient
from replication.documents import MAX_DOCUMENT_BYTES, WriterPublicKey
from replication.errors import NotFound, PeerProtocolError
from replication.failpoint import reached
from replication.identifiers import CutId, ItemId
from replication.store_documents import PrunePoints, RecoveryPoint
from replication.store_layout import RECOVERY_POINTS_CONTAINER, recovery_point_name, recovery_point_prefix

MAX_CUTS_A_REQUEST: Final = 200
ASK_AGAIN_S: Final = 600.0
PRUNE_POINTS: Final = "prune-points"
LOST_KEPT_S: Final = 3600.0
"""A lost point is waited for at least that long, however short the retention."""

_logger = logging.getLogger(__name__)


class RecoveryPoints:
    """Every method is idempotent and makes no store call inside a transaction."""

    def __init__(
        self, database: Database, store: BlobClient, writer: WriterPublicKey, ages: Ages, clock: Clock
    ) -> None:
        self._database = database
        self._store = store
        self._writer = writer
        self._ages = ages
        self._clock = clock
        self._refused: dict[str, str] = {}
        """Names of records that were refused, with their etag: read again only if they change."""
        self._reported: dict[str, frozenset[str]] = {}
        """What the agents named last as their newest point, by item; and what of it was not looked for yet."""
        self._to_look_for: dict[str, frozenset[str]] = {}

    def note_reported(self, item_id: str, cuts: frozenset[str]) -> None:
        """An agent has seen in receipts that these are recorded. They are looked for once; what is not found then, ``find_all`` finds."""
        if cuts and self._reported.get(item_id) != cuts:
            self._reported[item_id] = self._to_look_for[item_id] = cuts

    async def find_reported(self) -> int:
        """Take in what agents have reported and is not known yet, so that no new point waits for the next round; returns how many."""
        reported, self._to_look_for = self._to_look_for, {}
        found = 0
        for item_id, cuts in reported.items():
            async with self._database.read() as session:
                known = await _known_states(session, item_id, cuts)
            for cut in sorted(cuts - known.keys()):
                found += await self._take([await self._fetch(item_id, cut)])
        return found

    async def find_awaited(self, item_id: str) -> tuple[int, int]:
        """Look for the points that open jobs wait for, by name; returns how many were found, and how many are still missing."""
        async with self._database.read() as session:
            jobs = await open_jobs(session, item_id)
            cuts = [cut for job in jobs if (cut := _awaited_cut(job)) is not None]
            awaited = [cut for cut in cuts if await session.get(RecoveryPointRow, (item_id, cut)) is None]
        found = 0
        for cut in awaited:
            found += await self._take([await self._fetch(item_id, cut)])
        return found, len(awaited) - found

    async def find_all(self, item_id: str) -> None:
        """List the item's records and take in the new ones, and those that were lost; a known one that is gone is recorded as lost.

        What was deleted before the look is forgotten, listed or not: the writer has answered that it is gone, so one that is listed came
        back with an older state of the store. The next look finds it anew.
        """
        async with self._database.read() as session:
            known = await _known_states(session, item_id)
        listed: dict[str, str] = {}
        prefix = recovery_point_prefix(ItemId(item_id))
        async for blob in self._store.list_blobs(RECOVERY_POINTS_CONTAINER, prefix):
            listed[blob.name.removeprefix(prefix)] = blob.properties.etag
        new = [
            cut
            for cut, etag in listed.items()
            if known.get(cut, LOST) == LOST and self._refused.get(prefix + cut) != etag
        ]
        await self._take([await self._fetch(item_id, cut) for cut in new])
        lost = [cut for cut, state in known.items() if state == AVAILABLE and cut not in listed]
        if lost:
            await self._record_lost(item_id, lost)
        deleted = [cut for cut, state in known.items() if state == DELETED]
        if deleted:
            await self._forget(item_id, deleted)

    async def _fetch(self, item_id: str, cut: str) -> RecoveryPoint | None:
        name = recovery_point_name(ItemId(item_id), CutId(cut))
        try:
            found = await self._store.get_blob(RECOVERY_POINTS_CONTAINER, name, max_bytes=MAX_DOCUMENT_BYTES)
        except NotFound:
            return None
        except PeerProtocolError as error:
            await self._refuse_unread(name, error)
            return None
        if found is None:
            return None
        try:
            return self._opened(item_id, cut, found.content)
        except PeerProtocolError as error:
            await self._refuse(name, found.properties.etag, error)
            return None

    async def _refuse_unread(self, name: str, error: PeerProtocolError) -> None:
        """A record that cannot even be read is refused like one that is not the writer's; the others are taken in.

        :raises BlockferryError: nor does the store say that there is a record: then it is not the record that is bad.
        """
        try:
            properties = await self._store.head_blob(RECOVERY_POINTS_CONTAINER, name)
        except NotFound:
            return
        is_too_large = properties.length_bytes > MAX_DOCUMENT_BYTES
        await self._refuse(name, properties.etag if is_too_large else None, error)

    async def _refuse(self, name: str, etag: str | None, error: PeerProtocolError) -> None:
        """Without ``etag`` it is read again at the next look."""
        if etag is not None:
            self._refused[name] = etag
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        message = f"recovery point record {name} refused ({digest}): {error}"
        await record_incident(self._database, self._clock(), SYSTEM, "point-refused", message, None)

    def _opened(self, item_id: str, cut: str, content: bytes) -> RecoveryPoint:
        point = self._writer.open_signed(RecoveryPoint, content)
        if (point.item, point.cut) != (item_id, cut):
            raise PeerProtocolError(f"cannot accept the recovery point {item_id}/{cut}: it is {point.item}/{point.cut}")
        return point

    async def _take(self, fetched: list[RecoveryPoint | None]) -> int:
        """Take in what is there of ``fetched``; returns how many."""
        points = sorted(
            (point for point in fetched if point is not None), key=lambda point: (place_of(point), point.time_ns)
        )
        for point in points:
            async with self._database.write() as session:
                await take_in(session, point, await suspicion_of(session, point), self._clock())
            reached("config.point.committed")
        return len(points)

    async def _forget(self, item_id: str, cuts: list[str]) -> None:
        async with self._database.write() as session:
            kept = await _in_use(session, item_id)
            for begin in range(0, len(cuts), MAX_CUTS_A_REQUEST):
                some = [cut for cut in cuts[begin : begin + MAX_CUTS_A_REQUEST] if cut not in kept]
                await session.execute(
                    delete(RecoveryPointRow)
                    .where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.cut.in_(some))
                    .where(RecoveryPointRow.state == DELETED)
                    .execution_options(synchronize_session=False)
                )

    async def _record_lost(self, item_id: str, cuts: list[str]) -> None:
        async with self._database.write() as session:
            for cut in cuts:
                row = await session.get_one(RecoveryPointRow, (item_id, cut))
                if row.state == AVAILABLE:
                    row.state = next_point_state(PointState.AVAILABLE, PointState.LOST).value
                    message = (
                        f"recovery point {cut} is gone from the store without having been pruned; "
                        "it is offered again if the store has it again"
                    )
                    record_event(session, self._clock(), SYSTEM, "point-lost", message, item_id=item_id)

    async def prune(self, item_id: str) -> None:
        """Ask for what retention lets go now, unless an earlier request is open or has just failed."""
        async with self._database.write() as session:
            if await self._waits(session, item_id):
                return
            await _settle_what_was_left(session, item_id)
            item = await session.get_one(ProtectedItemRow, item_id)
            if State(item.state) in DELETING_STATES | {State.MIGRATING}:
                return  # while a migration is judged, nothing gives way to its final point: that may turn out to differ
            policy = await session.get_one(PolicyRow, item.policy_id)
            kept = await _in_use(session, item_id)
            await self._give_up_lost(session, item_id, max(policy.retention_s, LOST_KEPT_S), kept)
            points = await _points(session, item_id)
            # The newest ones may turn out to be suspect: then this is the last good one (R12).
            if (proved := await newest_proved_cut(session, item_id)) is not None:
                kept.add(proved)
            cuts = points_to_prune(points, policy.retention_s, kept)[:MAX_CUTS_A_REQUEST]
            if not cuts:
                return
            key = f"prune-points/{item_id}/{uuid.uuid4()}"
            request = PrunePoints(request=request_id(key), item=item_id, cuts=cuts)
            await ask_writer(session, key, request, self._clock(), item_id=item_id)
            await session.execute(
                update(RecoveryPointRow)
                .where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.cut.in_(cuts))
                .where(RecoveryPointRow.state == AVAILABLE)
                .values(state=PRUNING)
                .execution_options(synchronize_session=False)
            )
        reached("config.prune.asked")

    async def _give_up_lost(self, session: AsyncSession, item_id: str, after_s: float, kept: set[str]) -> None:
        """Forget those that retention would have let go by now, but for ``kept``: nothing remembers them, so one that comes back, be it in
        this very moment, is a point like any other. By this server's clock: a wrong one keeps them longer or less long, unharmed.
        """
        await session.execute(
            delete(RecoveryPointRow)
            .where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.state == LOST)
            .where(RecoveryPointRow.counted_ns < self._clock() - int(after_s * 1e9))
            .where(RecoveryPointRow.cut.not_in(kept))
            .execution_options(synchronize_session=False)
        )

    async def _waits(self, session: AsyncSession, item_id: str) -> bool:
        """Whether a request to prune is still open, or failed a moment ago: of all of them, as their stamps say nothing of their order."""
        found = await session.execute(
            select(WriterRequestRow.id, WriterRequestRow.state, WriterRequestRow.answered_ns)
            .where(WriterRequestRow.item_id == item_id, WriterRequestRow.kind == PRUNE_POINTS)
            .where(WriterRequestRow.state.in_((NEW, PUT, FAILED)))
        )
        for identifier, state, answered_ns in found:
            failed = self._ages.of("pruning-failed", identifier, answered_ns)
            if state != FAILED or (failed is not None and not failed.exceeds(ASK_AGAIN_S)):
                return True
        return False


async def _settle_what_was_left(session: AsyncSession, item_id: str) -> None:
    """Points that wait for an answer though no request is open: an earlier version settled by the newest answer alone, and took another
    one for that while this server's clock was set back. What one answer deleted is deleted; what none did is as it was.
    """
    waiting = select(RecoveryPointRow.cut).where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.state == PRUNING)
    if await session.scalar(waiting.limit(1)) is None:
        return
    answered = select(WriterRequestRow).where(
        WriterRequestRow.item_id == item_id, WriterRequestRow.kind == PRUNE_POINTS, WriterRequestRow.state == SUCCEEDED
    )
    for row in list(await session.scalars(answered)):
        request = request_of(row)
        if isinstance(request, PrunePoints):
            await settle_pruning(session, request.item, request.cuts, done=True)
    await settle_pruning(session, item_id, list(await session.scalars(waiting)), done=False)


async def _known_states(session: AsyncSession, item_id: str, cuts: frozenset[str] | None = None) -> dict[str, str]:
    """Of ``cuts``, else of all."""
    query = select(RecoveryPointRow.cut, RecoveryPointRow.state).where(RecoveryPointRow.item_id == item_id)
    found = await session.execute(query if cuts is None else query.where(RecoveryPointRow.cut.in_(cuts)))
    return {row.cut: row.state for row in found}


async def _points(session: AsyncSession, item_id: str) -> list[Point]:
    """What retention decides about, without the documents."""
    row = RecoveryPointRow
    found = await session.execute(
        select(
            row.cut,
            row.counted_ns,
            row.consistency,
            row.suspect.is_not(None),
            row.history_generation,
            row.history_epoch,
        ).where(row.item_id == item_id, row.state == AVAILABLE)
    )
    return [
        Point(cut, counted_ns, consistency == "app", suspect, (generation, epoch))
        for cut, counted_ns, consistency, suspect, generation, epoch in found
    ]


async def _in_use(session: AsyncSession, item_id: str) -> set[str]:
    """Cuts that a migration or a test migration is working from."""
    used: set[str] = set()
    for job in await open_jobs(session, item_id):
        used.add(_awaited_cut(job) or job.id)
        if job.kind == JobKind.TEST_MIGRATE and (cut := context_of(job, TestMigrationContext).cut) is not None:
            used.add(cut)
    migration = await newest_job(session, item_id, JobKind.MIGRATE)
    if migration is not None and migration.state == JobState.SUCCEEDED.value:
        used.add(_awaited_cut(migration) or migration.id)
    return used


def _awaited_cut(job: JobRow) -> str | None:
    """The cut of the point that a job waits for: the job's own identifier where this server asked, else what the agent says."""
    match JobKind(job.kind):
        case JobKind.TEST_MIGRATE | JobKind.RECOVERY_POINT:
            return job.id
        case JobKind.MIGRATE:
            cutover = context_of(job, MigrationContext).cutover
            return None if cutover is None else cutover.cut
        case _:
            return None
