"""Deleting made disks that are unwanted. Called by ``reconciler/loop.py`` for every item, and asked by jobs that wait for it.

The disks of one migration or test are deleted by one request. It is asked only when the writer has finished making them (a disk that is
deleted while it is being made would come back), and again some time after a failure, or at once for a job that was started after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.made_disks import made_disks
from config_server.writer_requests import FAILED, NEW, PUT, ask_writer_anew, failure_of, make_disks_key, request_for
from replication.store_documents import DeleteDisks, WriterProblem

ASK_AGAIN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Removal:
    """``left``: unwanted disks that are not deleted yet; ``problem``: what the writer complained of, if it did."""

    left: int
    problem: WriterProblem | None


async def remove_unwanted(
    session: AsyncSession, item_id: str, now_ns: int, asked_since_ns: int | None = None
) -> Removal:
    """Ask for the deletion of an item's unwanted disks, or see how far it is.

    ``asked_since_ns``: a failure before this moment is followed by another attempt at once; not if it lies in the future, since this
    server's clock was set back then, and every failure would be before it.
    """
    rows = [row for row in await made_disks(session, item_id=item_id) if row.unwanted]
    by_cut: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        by_cut.setdefault((row.job_id, row.cut), []).append(row.name)
    again_before_ns = now_ns - int(ASK_AGAIN_S * 1e9)
    if asked_since_ns is not None and asked_since_ns <= now_ns:
        again_before_ns = max(again_before_ns, asked_since_ns)
    problem = None
    for (job_id, cut), names in by_cut.items():
        making = await request_for(session, make_disks_key(job_id, cut))
        if making is not None and making.state in (NEW, PUT):
            continue
        ordered = sorted(names)
        asked = await ask_writer_anew(
            session,
            f"delete-disks/{job_id}/{cut}",
            lambda request, ordered=ordered: DeleteDisks(request=request, names=ordered),  # type: ignore[misc]
            now_ns,
            after_failure_before_ns=again_before_ns,
            item_id=item_id,
            job_id=job_id,
        )
        if asked.state == FAILED:
            problem = failure_of(asked)
    return Removal(len(rows), problem)
