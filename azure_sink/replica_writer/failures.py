"""What can go wrong between the writer and its store beyond the error tree's classes, and how often a call is made again.

Called by the parts of the replica writer. ``patiently`` repeats only calls that may be repeated: reads, and writes that are disjoint
within their epoch and fenced by lease and sequence number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Final, NoReturn, TypeVar

from replication.clock import Clock
from replication.errors import BlockferryError, Conflict, NotFound, PeerProtocolError, Permanent, Retryable
from replication.store_documents import WriterProblem

ATTEMPTS: Final = 4
FIRST_DELAY_S: Final = 0.2
MAX_DELAY_S: Final = 10.0

T = TypeVar("T")


class FenceLost(Conflict):
    """This writer may not write the replica any more: its lease or its sequence number is another's. It stops at once."""

    code = "fence-lost"


class ReplicaHeld(Retryable):
    """Another writer that is alive holds the replica; it wins."""

    code = "replica-held"


class SegmentMissing(NotFound):
    """A manifest names a segment that is not in the store."""

    code = "segment-missing"


class ManifestMissing(NotFound):
    """An epoch's manifest is not in the store, though a later one is, or though the epoch was begun."""

    code = "manifest-missing"


class GenerationRefused(Conflict):
    """A generation that does not continue this replica (R8); it is answered for in its own receipt."""

    code = "generation-refused"

    def __init__(self, generation: int, reason: str, *, disk: str, hint: str) -> None:
        super().__init__(f"cannot open generation {generation}: {reason}", disk=disk, hint=hint)
        self.generation = generation


async def patiently(call: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Make an idempotent call up to ``ATTEMPTS`` times while it fails with ``Retryable``; the last failure is raised."""
    delay_s = FIRST_DELAY_S
    for _ in range(ATTEMPTS - 1):
        try:
            return await call()
        except Retryable as error:
            await clock.sleep(min(MAX_DELAY_S, delay_s if error.retry_after_s is None else error.retry_after_s))
            delay_s *= 3
    return await call()


async def together(work: Iterable[Coroutine[object, object, None]]) -> None:
    """Do ``work`` at the same time; the first failure ends it all, and the gravest is raised as it is, not as a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for each in work:
                tasks.create_task(each)
    except BaseExceptionGroup as group:
        raise_gravest(group)


def raise_gravest(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the one error of a task group that decides what happens next: a defect, a lost fence, bad content, then the rest."""

    def gravity(error: BaseException) -> int:
        ranks: tuple[type[BaseException], ...] = (FenceLost, PeerProtocolError, Permanent, BlockferryError)
        if not isinstance(error, BlockferryError):
            return -1
        return next(rank for rank, kind in enumerate(ranks) if isinstance(error, kind))

    raise min(_leaves(group), key=gravity) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def problem_of(error: BlockferryError) -> WriterProblem:
    """What the operator is told."""
    return WriterProblem(code=error.code, message=str(error).removesuffix(f"; {error.hint}"), hint=error.hint)
