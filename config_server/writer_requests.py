"""Asking the replica writer: requests written into the database first, delivered to the store by ``reconciler/mailbox.py``.

Called by ``generations.py`` and the reconciler. A request has a key that says what it is for; its identifier is derived from the key,
so that asking twice, or again after a crash or a restored backup, is asking once. Answers stay in the store for a day, also when this
database is lost: a key must name what will never be again (a job, an item, a cut, a generation's record), not only a number.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.tables import WriterRequestRow
from replication.store_documents import WriterAnswer, WriterProblem, WriterRequest, decode_writer_request

NEW: Final = "new"
PUT: Final = "put"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
IN_STORE: Final = 0
REQUEST_DELETED: Final = 1
BOTH_DELETED: Final = 2
"""How much of a request and its answer is gone from the store: ``WriterRequestRow.retired``."""

_NAMESPACE: Final = uuid.UUID("5d4f0c5e-2f0b-5d0e-9b43-0a8f3c1d7a61")


def request_id(key: str) -> str:
    """The identifier of the request for ``key``, always the same."""
    return str(uuid.uuid5(_NAMESPACE, key))


async def ask_writer(
    session: AsyncSession,
    key: str,
    request: WriterRequest,
    now_ns: int,
    *,
    item_id: str | None = None,
    job_id: str | None = None,
) -> WriterRequestRow:
    """The request for ``key``, created if there is none yet; ``request.request`` must be ``request_id(key)``."""
    found = await request_for(session, key)
    if found is not None:
        return found
    row = WriterRequestRow(
        id=request.request,
        key=key,
        kind=request.kind,
        item_id=item_id,
        job_id=job_id,
        document=request.model_dump_json(),
        state=NEW,
        created_ns=now_ns,
        retired=0,
    )
    session.add(row)
    await session.flush()
    return row


async def has_new_requests(session: AsyncSession) -> bool:
    """Whether requests wait for their delivery."""
    return (await session.scalar(select(WriterRequestRow.id).where(WriterRequestRow.state == NEW).limit(1))) is not None


async def request_for(session: AsyncSession, key: str) -> WriterRequestRow | None:
    found: WriterRequestRow | None = await session.scalar(select(WriterRequestRow).where(WriterRequestRow.key == key))
    return found


def request_of(row: WriterRequestRow) -> WriterRequest:
    return decode_writer_request(row.document.encode())


def answer_of(row: WriterRequestRow) -> WriterAnswer | None:
    """The newest verified answer."""
    return None if row.answer is None else WriterAnswer.decode(row.answer.encode())


async def ask_writer_anew(
    session: AsyncSession,
    purpose: str,
    build: Callable[[str], WriterRequest],
    now_ns: int,
    *,
    after_failure_before_ns: int | None,
    item_id: str | None = None,
    job_id: str | None = None,
) -> WriterRequestRow:
    """The newest attempt of ``purpose``; a failed one that was answered before ``after_failure_before_ns`` is followed by another, and so
    is one that was answered in the future, before this server's clock was set back. None: one that was asked for another job is.

    ``build`` makes the request from its identifier. An attempt that has not failed is never repeated. Attempts are counted: which is the
    newest is no question of time.
    """
    attempt, newest = 1, None
    while (row := await request_for(session, f"{purpose}/{attempt}")) is not None:
        attempt, newest = attempt + 1, row
    if newest is not None:
        if newest.state != FAILED:
            return newest
        if after_failure_before_ns is None:
            stands = newest.job_id == job_id
        else:
            stands = after_failure_before_ns <= (newest.answered_ns or 0) <= now_ns
        if stands:
            return newest
    key = f"{purpose}/{attempt}"
    return await ask_writer(session, key, build(request_id(key)), now_ns, item_id=item_id, job_id=job_id)


def failure_of(row: WriterRequestRow) -> WriterProblem | None:
    """Why the writer could not do it; None unless it failed."""
    if row.state != FAILED:
        return None
    answer = answer_of(row)
    if answer is None or answer.problem is None:
        return WriterProblem(code="unexplained", message="the replica writer gives no reason")
    return answer.problem


async def writer_silence_s(session: AsyncSession, item_id: str, ages: Ages) -> float | None:
    """Seconds since the writer was given a request of this item, or said how far it is: the longest of all; None: it has none."""
    put = await session.execute(
        select(WriterRequestRow.id, func.coalesce(WriterRequestRow.heard_ns, WriterRequestRow.created_ns)).where(
            WriterRequestRow.item_id == item_id, WriterRequestRow.state == PUT
        )
    )
    silences = [ages.of("writer-heard", request, heard_ns) for request, heard_ns in put]
    return max((silence.seconds for silence in silences if silence is not None), default=None)


async def refused_answer(session: AsyncSession, item_id: str) -> str | None:
    """Why the answer to an open request of this item cannot be accepted, or None."""
    found: str | None = await session.scalar(
        select(WriterRequestRow.problem)
        .where(
            WriterRequestRow.item_id == item_id, WriterRequestRow.state == PUT, WriterRequestRow.problem.is_not(None)
        )
        .limit(1)
    )
    return found


def make_disks_key(job_id: str, cut: str) -> str:
    """What the request for a job's disks of one cut is asked under."""
    return f"make-disks/{job_id}/{cut}"
