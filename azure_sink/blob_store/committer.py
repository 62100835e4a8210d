"""The committer: the one thread that changes the catalog. It commits whatever waits as one group, and only then answers.

Called by ``BlobStore``. For each group: (1) write back the arenas that hold the group's bodies (fdatasync), (2) run each mutation in a
savepoint of one transaction, so that a refused one undoes only itself, (3) COMMIT (the log is synced), (4) answer all. So whatever
was answered is durable, and while a group is being synced the next one gathers. Between groups, and with each, one bounded step of
reclaiming runs (``reclaim``), so that no deletion ever holds up others for long.

A COMMIT that fails says nothing of what the log holds: if its sync failed, the commit frame may lie there whole, and a crash replays it. So
the bodies of such a group are *undecided*: they are never given back before a later commit has overwritten those frames or, where
the failure ends the service (every failed sync does), the next start has read the catalog (``recovery``). Who was refused may then
find what he put: whole, or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from azure_sink.blob_store.arenas import FULL_RETRY_AFTER_S, ArenaSet, StoreFull
from azure_sink.blob_store.freed_space import FreedRange, FreedSpace
from azure_sink.blob_store.reclaim import Reclaimer
from azure_sink.blob_store.schema import fold_log
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import StoredRange
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode
from replication.errors import Permanent, Retryable
from replication.failpoint import reached

MAX_WAITING: Final = 2048
MAX_GROUP: Final = 512

FOLD_EVERY_COMMITS: Final = 500
FOLD_EVERY_CHANGES: Final = 2000
"""Rows; with either the log has about 4,000 pages, 16 MiB."""

_FULL_CODES: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_WRITE)
_FAILED_HINT: Final = "check the device and the kernel's log, then restart"
_logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Waiting:
    mutate: Callable[[Transaction], Any]
    bodies: tuple[StoredRange, ...]
    answer: Future[Any] = field(default_factory=Future)


@dataclass(slots=True)
class _Decided:
    waiting: _Waiting
    result: Any = None
    error: BaseException | None = None


class Committer:
    """Owns the writing connection. ``on_group`` is told the size of each group (metrics); it runs in the committer's thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        arenas: ArenaSet,
        freed_space: FreedSpace,
        clock: Callable[[], float],
        on_group: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._connection = connection
        self._arenas = arenas
        self._freed_space = freed_space
        self._clock = clock
        self._on_group = on_group
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._commits = 0
        self._undecided: list[StoredRange] = []
        self._folded_at_commits = 0
        self._folded_at_changes = connection.total_changes
        self._last_tick: int = connection.execute("SELECT value FROM meta WHERE key = 'last_tick'").fetchone()[0]
        self._reclaimer = Reclaimer()
        self._reclaim_pending = True
        self._reclaim_postponed = False
        self.failure: str | None = None
        """Why nothing can be committed any more; None while all is well."""
        self._thread = threading.Thread(target=self._run, name="blob-committer", daemon=True)
        self._thread.start()

    def submit(self, mutate: Callable[[Transaction], ResultT], bodies: tuple[StoredRange, ...] = ()) -> Future[ResultT]:
        """Have ``mutate`` run in a commit. From here on the committer settles or abandons ``bodies``, whatever happens.

        The future's result is there once the commit is durable. Cancelling works only before its group begins.

        :raises StorageFault: ServerBusy, too many operations wait (``bodies`` are abandoned).
        """
        waiting = _Waiting(mutate, bodies)
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            self._abandon(waiting)
            raise StorageFault(StorageCode.SERVER_BUSY, "too many operations wait") from None
        return waiting.answer

    def close(self) -> None:
        """Commit what waits, then stop. Reclaiming goes on at the next start."""
        self._queue.put(None)
        self._thread.join()

    def wait_until_quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is left to reclaim; False if that took longer (tests)."""
        deadline = time.monotonic() + timeout_s
        quiet_groups = 0
        while quiet_groups < 2:  # the second sees what the first one's answer settled
            if time.monotonic() > deadline:
                return False
            pending = self.submit(_has_reclaims).result(timeout_s)
            quiet_groups = 0 if pending else quiet_groups + 1
        return True

    # -- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        stop = False
        while not stop:
            group, stop = self._next_group()
            try:
                self._commit_group(group)
            except BaseException as error:  # the thread must not end in silence: every caller is told
                self.failure = f"the committer stopped: {error}"
                _logger.exception("the committer stopped")
                self._leave_undecided(group, self._failed())
                self._refuse_until_closed(stop=stop)
                return

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        group: list[_Waiting] = []
        try:
            first = self._queue.get(block=not self._reclaim_pending)
            if first is None:
                return group, True
            group.append(first)
            while len(group) < MAX_GROUP:
                following = self._queue.get_nowait()
                if following is None:
                    return group, True
                group.append(following)
        except queue.Empty:
            pass
        return group, False

    def _commit_group(self, waiting: list[_Waiting]) -> None:
        group = [item for item in waiting if self._begins(item)]
        if self.failure is not None:
            self._refuse(group, self._failed())
            return
        if group:
            self._on_group(len(group))
        poisoned = self._arenas.make_durable({body.arena for item in group for body in item.bodies})
        if group:
            reached("sink.store.bodies-durable")
        transaction = Transaction(self._connection, self._clock(), self._last_tick)
        candidates = self._arenas.take_candidates()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if self._undecided:
                transaction.next_tick()  # has this commit write at least one frame, over what the failed one left
            decided = [self._decide(item, transaction, poisoned) for item in group]
            if self._reclaim_pending:
                self._reclaim_pending = self._reclaimer.step(transaction)
            freed = transaction.punchable_ranges() + self._unneeded_arenas(transaction, candidates)
            if transaction.last_tick != self._last_tick:
                self._connection.execute("UPDATE meta SET value = ? WHERE key = 'last_tick'", (transaction.last_tick,))
            if group:
                reached("sink.store.uncommitted")
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._arenas.put_candidates_back(candidates)
            self._undo(error, group)
            return
        if group:
            reached("sink.store.committed")
        self._last_tick = transaction.last_tick
        self._reclaim_pending |= transaction.asks_for_reclaim or self._reclaim_postponed
        self._reclaim_postponed = False
        self._commits += 1
        self._freed_space.release(self._commits, freed)
        undecided, self._undecided = self._undecided, []
        for body in undecided:
            self._arenas.abandon(body)
        for item in decided:
            self._answer(item)
        self._fold_log_when_due()

    def _fold_log_when_due(self) -> None:
        """A fold that cannot be synced ends the service: a second sync would succeed without the pages that the first one lost."""
        changes = self._connection.total_changes
        if (
            self._commits - self._folded_at_commits < FOLD_EVERY_COMMITS
            and changes - self._folded_at_changes < FOLD_EVERY_CHANGES
        ):
            return
        self._folded_at_commits, self._folded_at_changes = self._commits, changes
        try:
            fold_log(self._connection)
        except sqlite3.Error as error:
            _logger.exception("the log was not folded into the catalog")
            if getattr(error, "sqlite_errorcode", None) not in _FULL_CODES:
                self.failure = f"the log could not be folded into the catalog: {error}"

    def _begins(self, item: _Waiting) -> bool:
        if item.answer.set_running_or_notify_cancel():
            return True
        self._abandon(item)
        return False

    def _decide(self, item: _Waiting, transaction: Transaction, poisoned: set[int]) -> _Decided:
        if any(body.arena in poisoned for body in item.bodies):
            return _Decided(item, error=Retryable("cannot store the body: the device failed to write it back"))
        self._connection.execute("SAVEPOINT mutation")
        transaction.begin_mutation()
        try:
            result = item.mutate(transaction)
        except sqlite3.Error as error:
            if not self._connection.in_transaction or not isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
                raise
            refused: BaseException = error
        except BaseException as error:  # noqa: BLE001 - whatever a mutation fails with belongs to its caller alone
            refused = error
        else:
            self._connection.execute("RELEASE mutation")
            transaction.end_mutation()
            return _Decided(item, result)
        self._connection.execute("ROLLBACK TO mutation")
        self._connection.execute("RELEASE mutation")
        transaction.undo_mutation()
        return _Decided(item, error=refused)

    def _unneeded_arenas(self, transaction: Transaction, candidates: set[int]) -> list[FreedRange]:
        return [
            FreedRange(number, 0, 0)
            for number in sorted(candidates | transaction.touched_arenas())
            if self._arenas.is_idle(number) and not transaction.refers_to_arena(number)
        ]

    def _undo(self, error: sqlite3.Error, group: list[_Waiting]) -> None:
        """Nothing of the group is visible. A full file system passes; a log that could not be synced does not."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        code = getattr(error, "sqlite_errorcode", None)
        _logger.error("a commit failed", extra={"fields": {"error": str(error), "operations": len(group)}})
        if code not in _FULL_CODES:
            self.failure = f"the catalog failed: {error}"
            self._leave_undecided(group, self._failed())
            return
        shown = StoreFull("cannot change the blob store: its file system is full", retry_after_s=FULL_RETRY_AFTER_S)
        self._reclaim_postponed |= self._reclaim_pending
        self._reclaim_pending = False
        if code == sqlite3.SQLITE_FULL:
            self._refuse(group, shown)  # a block of the log is missing, so the commit frame is; and the room is needed
        else:
            self._leave_undecided(group, shown)

    def _failed(self) -> Permanent:
        return Permanent(f"cannot change the blob store: {self.failure}", hint=_FAILED_HINT)

    def _leave_undecided(self, group: list[_Waiting], error: BaseException) -> None:
        """Refuse those that are not answered yet, and keep their bodies: what became of them only the log knows."""
        for item in group:
            if not item.answer.done():
                self._undecided += item.bodies
                item.answer.set_exception(error)

    def _refuse(self, group: list[_Waiting], error: BaseException) -> None:
        for item in group:
            if not item.answer.done():
                self._answer(_Decided(item, error=error))

    def _refuse_until_closed(self, *, stop: bool) -> None:
        while not stop:
            item = self._queue.get()
            if item is None:
                return
            if item.answer.set_running_or_notify_cancel():
                self._answer(_Decided(item, error=self._failed()))

    def _answer(self, decided: _Decided) -> None:
        if decided.error is None:
            for body in decided.waiting.bodies:
                self._arenas.settle(body)
            decided.waiting.answer.set_result(decided.result)
        else:
            self._abandon(decided.waiting)
            decided.waiting.answer.set_exception(decided.error)

    def _abandon(self, item: _Waiting) -> None:
        for body in item.bodies:
            self._arenas.abandon(body)


def _has_reclaims(transaction: Transaction) -> bool:
    return bool(transaction.connection.execute("SELECT EXISTS (SELECT 1 FROM reclaims)").fetchone()[0])
