"""The mailbox between this server and the replica writer: requests into the store, verified answers out of it.

Called by ``reconciler/loop.py``. A request is put with If-None-Match, so that delivering it again after a crash changes nothing. An
answer counts only if the writer's signature holds and it names the request; others are refused and shown with the request (the writer
may still replace them), and the answers after it are read all the same. Once an answer is final and written down here, the request is
deleted from the store at once and the answer after ``answer_keep_s``: a writer that listed the request a moment ago still finds the answer
and does not do the work again.

A leader that was deposed while it stood still puts and deletes nothing more (``may_act``). What slips through between question and deed
is a request that it had read as unanswered: if it was answered meanwhile, its answer still lies there for ``answer_keep_s``.

A request without any answer is put again now and then: a store that was put back to an older state may have lost it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.database import Database
from config_server.events import SYSTEM, Clock, record_event
from config_server.point_history import settle_pruning
from config_server.tables import MadeDiskRow, WriterRequestRow
from config_server.writer_requests import BOTH_DELETED, IN_STORE, NEW, PUT, REQUEST_DELETED, request_of
from replication.blob_client.api import BlobClient, BlobContent
from replication.documents import MAX_DOCUMENT_BYTES, WriterPublicKey
from replication.errors import Conflict, NotFound, PeerProtocolError
from replication.failpoint import reached
from replication.store_documents import DeleteDisks, PrunePoints, WriterAnswer
from replication.store_layout import REPLICATION_CONTAINER, answer_name, request_name

PUT_AGAIN_S: Final = 60.0

_logger = logging.getLogger(__name__)


class Mailbox:
    """Every method is idempotent and makes no store call inside a transaction."""

    def __init__(
        self,
        database: Database,
        store: BlobClient,
        writer: WriterPublicKey,
        ages: Ages,
        clock: Clock,
        answer_keep_s: float,
        may_act: Callable[[], None] = lambda: None,
    ) -> None:
        self._may_act = may_act
        self._database = database
        self._store = store
        self._writer = writer
        self._ages = ages
        self._clock = clock
        self._answer_keep_ns = int(answer_keep_s * 1e9)
        self._put_s: dict[str, float] = {}
        """When a request that has no answer was put last, or first looked for by this process; monotonic."""

    async def deliver(self) -> None:
        """Put every new request into the store."""
        for row in await self._rows(NEW):
            if not await self._put(row):
                _logger.info("request is in the store already", extra={"fields": {"request": row.id, "kind": row.kind}})
            reached("config.request.put")
            async with self._database.write() as session:
                stored = await session.get_one(WriterRequestRow, row.id)
                if stored.state == NEW:
                    stored.state, stored.heard_ns = PUT, self._clock()

    async def collect(self) -> tuple[int, int]:
        """Read the answers to requests that are open; returns how many were settled by it, and how many are still open."""
        rows = await self._rows(PUT)
        now_s = self._ages.monotonic_s()
        self._put_s = {row.id: self._put_s.get(row.id, now_s) for row in rows}
        settled = 0
        for row in rows:
            try:
                found = await self._store.get_blob(
                    REPLICATION_CONTAINER,
                    answer_name(row.id),
                    max_bytes=MAX_DOCUMENT_BYTES,
                    if_none_match=row.answer_etag,
                )
            except NotFound:
                await self._put_again(row)
                continue
            except PeerProtocolError as error:
                await self._refuse_unread(row, error)
                continue
            if found is not None:
                settled += await self._take(row, found)
        return settled, len(rows) - settled

    async def _put(self, row: WriterRequestRow) -> bool:
        """Whether it was not there."""
        self._may_act()
        try:
            await self._store.put_blob(
                REPLICATION_CONTAINER, request_name(row.id), row.document.encode(), if_none_match_any=True
            )
        except Conflict:
            return False
        return True

    async def _put_again(self, row: WriterRequestRow) -> None:
        now_s = self._ages.monotonic_s()
        if now_s - self._put_s[row.id] < PUT_AGAIN_S:
            return
        self._put_s[row.id] = now_s
        if await self._put(row):
            fields = {"request": row.id, "kind": row.kind}
            _logger.warning("the store has lost a request: it is put again", extra={"fields": fields})

    def answers_due_ns(self) -> int:
        """Answers that were taken in before it are deleted from the store."""
        return self._clock() - self._answer_keep_ns

    async def retire(self) -> None:
        """Delete what is settled from the store: requests at once, answers later. What is not due yet is not read.

        Due is an answer by this server's clock: if that was set back, answers stay longer, which costs a little room.
        """
        due_ns = self.answers_due_ns()
        async with self._database.read() as session:
            rows = list(
                await session.scalars(
                    select(WriterRequestRow)
                    .where(
                        ((WriterRequestRow.retired == IN_STORE) & WriterRequestRow.answered_ns.is_not(None))
                        | ((WriterRequestRow.retired == REQUEST_DELETED) & (WriterRequestRow.answered_ns <= due_ns))
                    )
                    .order_by(WriterRequestRow.created_ns)
                )
            )
        for row in rows:
            if row.retired == IN_STORE:
                await self._delete(request_name(row.id))
                reached("config.request.deleted")
                await self._set_retired(row.id, REQUEST_DELETED)
            else:
                await self._delete(answer_name(row.id))
                reached("config.answer.deleted")
                await self._set_retired(row.id, BOTH_DELETED)

    async def _rows(self, state: str) -> list[WriterRequestRow]:
        async with self._database.read() as session:
            return list(
                await session.scalars(
                    select(WriterRequestRow)
                    .where(WriterRequestRow.state == state)
                    .order_by(WriterRequestRow.created_ns)
                )
            )

    async def _take(self, row: WriterRequestRow, found: BlobContent) -> bool:
        try:
            answer = self._opened(row.id, found.content)
        except PeerProtocolError as error:
            await self._refuse(row, found.properties.etag, str(error))
            return False
        async with self._database.write() as session:
            stored = await session.get_one(WriterRequestRow, row.id)
            if stored.state != PUT:
                return False
            stored.answer, stored.answer_etag, stored.problem = (
                answer.model_dump_json(),
                found.properties.etag,
                None,
            )
            stored.heard_ns = self._clock()
            if answer.state == "in-progress":
                return False
            stored.state, stored.answered_ns = answer.state, self._clock()
            await self._settle(session, stored, answer)
        reached("config.answer.committed")
        return True

    def _opened(self, identifier: str, content: bytes) -> WriterAnswer:
        answer = self._writer.open_signed(WriterAnswer, content)
        if answer.request != identifier:
            raise PeerProtocolError(f"cannot accept the answer: it is to request {answer.request}")
        return answer

    async def _settle(self, session: AsyncSession, row: WriterRequestRow, answer: WriterAnswer) -> None:
        """What follows from a final answer wherever the request came from."""
        request = request_of(row)
        if isinstance(request, PrunePoints):
            await settle_pruning(session, request.item, request.cuts, done=answer.state == "succeeded")
        if answer.state == "succeeded" and isinstance(request, DeleteDisks):
            await session.execute(
                update(MadeDiskRow)
                .where(MadeDiskRow.name.in_(request.names), MadeDiskRow.deleted_ns.is_(None), MadeDiskRow.unwanted)
                .values(deleted_ns=self._clock())
            )
        if answer.state == "failed":
            problem = answer.problem
            message = f"{row.kind}: {problem.message if problem else 'no reason given'}"
            record_event(
                session, self._clock(), SYSTEM, "writer-failed", message, item_id=row.item_id, job_id=row.job_id
            )

    async def _refuse_unread(self, row: WriterRequestRow, error: PeerProtocolError) -> None:
        """An answer that cannot even be read (too large) is refused like one that is not the writer's; it is read again in the next pass.

        :raises BlockferryError: nor does the store say that there is an answer: then it is not the answer that is bad.
        """
        with contextlib.suppress(NotFound):
            await self._store.head_blob(REPLICATION_CONTAINER, answer_name(row.id))
            await self._refuse(row, row.answer_etag, str(error))

    async def _refuse(self, row: WriterRequestRow, etag: str | None, problem: str) -> None:
        async with self._database.write() as session:
            stored = await session.get_one(WriterRequestRow, row.id)
            stored.answer_etag = etag
            if stored.problem != problem:
                stored.problem = problem
                record_event(
                    session,
                    self._clock(),
                    SYSTEM,
                    "answer-refused",
                    f"{row.kind}: {problem}",
                    item_id=row.item_id,
                    job_id=row.job_id,
                )

    async def _delete(self, name: str) -> None:
        self._may_act()
        try:
            await self._store.delete_blob(REPLICATION_CONTAINER, name)
        except NotFound:
            return

    async def _set_retired(self, identifier: str, retired: int) -> None:
        async with self._database.write() as session:
            await session.execute(
                update(WriterRequestRow).where(WriterRequestRow.id == identifier).values(retired=retired)
            )
