"""What this server and the store have for each other: requests out, answers and recovery points in. Called by ``reconciler/loop.py``.

One pass delivers, collects and looks for the points that agents name, and at each round for new points of every item, and prunes. Whether
the store answers is kept in ``StoreStatus`` and on the health board; it is asked at every round, so that *reachable* is never a guess. A
store that hangs keeps nobody else waiting: the rest of the reconciler runs beside this.
"""

from __future__ import annotations

import contextlib
import logging

from config_server.database import Database
from config_server.events import Clock
from config_server.postgresql import DatabaseUnavailable
from config_server.reconciler.mailbox import Mailbox
from config_server.reconciler.recovery_points import RecoveryPoints
from config_server.reconciler.work_at_hand import WorkAtHand, all_items, work_at_hand
from config_server.store_status import StoreStatus
from config_server.writer_requests import has_new_requests
from replication.blob_client.api import BlobClient
from replication.errors import BlockferryError, NotFound
from replication.service.health import HealthBoard, HealthState
from replication.store_layout import CONTAINERS, REPLICATION_CONTAINER, request_name

_logger = logging.getLogger(__name__)


class StoreExchange:
    """``run_once`` is one pass; ``awaited`` says afterwards whether an answer or a point is still to come."""

    def __init__(
        self,
        database: Database,
        store: BlobClient,
        mailbox: Mailbox,
        points: RecoveryPoints,
        status: StoreStatus,
        board: HealthBoard,
        clock: Clock,
        round_s: float,
    ) -> None:
        self._database = database
        self._store = store
        self._mailbox = mailbox
        self._points = points
        self._status = status
        self._board = board
        self._clock = clock
        self._round_ns = int(round_s * 1e9)
        self._round_due_ns = 0
        self._containers_made = False
        self.awaited = False

    def look_around_soon(self) -> None:
        """Let the next pass look at every item, whenever the next round would be due."""
        self._round_due_ns = 0

    def note_points(self, item_id: str, cuts: frozenset[str]) -> None:
        """An agent names these points as recorded: the next pass looks for those that are not known."""
        self._points.note_reported(item_id, cuts)

    async def run_once(self) -> bool:
        """One pass; returns whether something came that a job may have waited for."""
        try:
            if not self._containers_made:
                for container in CONTAINERS:
                    await self._store.create_container(container)
                self._containers_made = True
            return await self._exchange()
        except DatabaseUnavailable:
            raise
        except BlockferryError as error:
            self._note(error)
            self._round_due_ns = 0  # the next pass asks again whether it answers
            return False

    async def look_on(self) -> None:
        """Only see whether the store answers."""
        try:
            await self._ask_whether_it_answers()
        except BlockferryError as error:
            self._note(error)

    def _note(self, error: BlockferryError) -> None:
        if self._status.problem != str(error):
            _logger.warning("the store does not answer as it should", extra={"fields": {"error": str(error)}})
        self._status.failed(str(error))
        self._board.report("store", HealthState.DEGRADED, str(error))

    async def _exchange(self) -> bool:
        # Or the clock was set back: else nobody would look around until it has caught up.
        looks_around = not self._round_due_ns - self._round_ns <= self._clock() < self._round_due_ns
        async with self._database.read() as session:
            at_hand = await work_at_hand(session, self._mailbox.answers_due_ns())
            every = await all_items(session) if looks_around else []
        settled, open_requests = await self._empty_mailbox(at_hand)
        found, missing = await self._points.find_reported(), 0
        for item_id in at_hand.expecting:
            found_here, missing_here = await self._points.find_awaited(item_id)
            found, missing = found + found_here, missing + missing_here
        self.awaited = open_requests + missing > 0
        if looks_around:
            await self._ask_whether_it_answers()
            for item_id in every:
                await self._points.find_all(item_id)
                await self._points.prune(item_id)
            self._round_due_ns = self._clock() + self._round_ns
        return settled + found > 0

    async def _empty_mailbox(self, at_hand: WorkAtHand) -> tuple[int, int]:
        """How many requests were settled, and how many are still open."""
        settled = open_requests = 0
        if at_hand.new:
            await self._mailbox.deliver()
        if at_hand.new or at_hand.put:
            settled, open_requests = await self._mailbox.collect()
        if settled or at_hand.settled:
            await self._mailbox.retire()
        return settled, open_requests

    async def _ask_whether_it_answers(self) -> None:
        with contextlib.suppress(NotFound):
            await self._store.head_blob(REPLICATION_CONTAINER, request_name("none"))
        self._status.answered(self._clock())
        self._board.report("store", HealthState.OK)

    async def has_new_requests(self) -> bool:
        """Whether requests wait for their delivery."""
        async with self._database.read() as session:
            return await has_new_requests(session)
