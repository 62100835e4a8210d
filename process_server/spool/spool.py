"""The spool as the event loop sees it: room reserved, appends made durable together (group commit), records read, released, files removed.

Built by ``daemon``; called by the intake (reserve, append, wait until durable) and the uploader (read, release). Appending blocks and
is done in the sealing threads; syncs and removals run in one thread, reads in others. Many appends that wait are answered by one sync.

Invariant (P1): ``durable`` returns only after an fdatasync that began after the record was written has succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from process_server.core.places import RecordPlace
from process_server.core.spool_budget import Reservation, SpoolBudget, SpoolUse
from process_server.spool.files import FileSystemSpace, SpoolFiles
from process_server.spool.kept_segments import KeptSegments, segment_record_bytes
from process_server.spool.log import Durable, SpoolLog, Written, spool_failure
from process_server.spool.record import MAX_MARKS, RecordHeader, RecordKind, encode_marks, record_bytes
from process_server.spool.recovery import RecoveredMarks, RecoveredRecord, Recovery, RecoveryReport
from replication.errors import BlockferryError, Retryable
from replication.failpoint import reached
from replication.threads import finished, finished_in

MARKS_WITHIN_S: Final = 1.0
"""Marks are written with the next group, or after this time if there is none: they only save repeated uploads."""
_READING_THREADS: Final = 2

_logger = logging.getLogger(__name__)


def _random_seed() -> int:
    return int.from_bytes(os.urandom(8), "little")


class Spool:
    """Use: ``recover`` → iterate to the end → ``begin`` → ``run`` in a task → ``close``."""

    def __init__(
        self,
        files: SpoolFiles,
        budget: SpoolBudget,
        *,
        index_bytes: Callable[[], int],
        on_group: Callable[[int], None] = lambda _size: None,
        new_seed: Callable[[], int] = _random_seed,
    ) -> None:
        """:param index_bytes: memory that the backlog takes now. ``on_group`` is told how many appends one sync answered."""
        self.budget = budget
        self.kept = KeptSegments()
        self._files = files
        self._index_bytes = index_bytes
        self._on_group = on_group
        self._write_problem: BlockferryError | None = None
        self._sync_problem: BlockferryError | None = None
        self._groups = 0
        self._committing = False
        self._new_seed = new_seed
        self._recovery: Recovery | None = Recovery(files, repair=True)
        self._log: SpoolLog | None = None
        self._waiters: list[tuple[Written, asyncio.Future[None]]] = []
        self._marks: dict[RecordKind, list[int]] = {RecordKind.UPLOADED: [], RecordKind.DISCARDED: []}
        self._wanted = asyncio.Event()
        self._stopped = False
        self._syncing = ThreadPoolExecutor(1, thread_name_prefix="spool-sync")
        self._reading = ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="spool-read")

    # -- start ------------------------------------------------------------------------------------------------

    def recover(self) -> Iterator[RecoveredRecord | RecoveredMarks]:
        """Scan the files; blocks. The caller keeps what it wants of it and tells ``begin``."""
        if self._recovery is None:
            raise RuntimeError("the spool has begun already")
        return self._recovery.records()

    def begin(self, kept: Iterable[RecordPlace]) -> RecoveryReport:
        """After ``recover`` is exhausted: ``kept`` are the records that are still needed; blocks.

        :raises BlockferryError: if the disk fails.
        """
        if self._recovery is None:
            raise RuntimeError("the spool has begun already")
        report, self._recovery = self._recovery.report, None
        log = SpoolLog(
            self._files,
            file_bytes=self.budget.file_bytes,
            new_seed=self._new_seed,
            found=report.files,
            next_number=report.last_number + 1,
        )
        for place in kept:
            log.hold(place)
        for number in log.removable():
            try:
                log.remove(number)
            except OSError as error:
                raise spool_failure(error, "remove a file of the spool") from error
            reached("process.spool-file.removed")
        self._log = log
        return report

    @property
    def _opened(self) -> SpoolLog:
        if self._log is None:
            raise RuntimeError("the spool is used before it has begun")
        return self._log

    # -- figures ----------------------------------------------------------------------------------------------

    @property
    def use(self) -> SpoolUse:
        return SpoolUse(self._opened.used_bytes, self._index_bytes())

    @property
    def file_count(self) -> int:
        return self._opened.file_count

    @property
    def problem(self) -> BlockferryError | None:
        """Why the last record could not be written or made durable, if it could not: a full file system or a disk that fails."""
        return self._sync_problem or self._write_problem

    @property
    def group_under_way(self) -> int | None:
        """The serial number of the group that the disk is working on; None if it is idle. The same one for long: the disk hangs."""
        return self._groups if self._committing else None

    async def space(self) -> FileSystemSpace:
        """Of the file system that the spool lies on.

        :raises Retryable: if the disk fails.
        """
        try:
            return await finished_in(self._reading, self._files.space)
        except OSError as error:
            raise spool_failure(error, "ask for the spool's free space") from error

    # -- accepting --------------------------------------------------------------------------------------------

    def reserve_batch(self, frame_bytes: int) -> Reservation:
        """Room for a frame of ``frame_bytes``, before its body is read.

        :raises Overloaded: if the spool is full.
        """
        return self.budget.reserve_batch(self.use, segment_record_bytes(frame_bytes))

    def reserve_manifest(self, manifest_bytes: int) -> Reservation:
        """Room for a manifest: also when batches are refused.

        :raises Overloaded: if the spool is full up to its limit.
        """
        return self.budget.reserve_manifest(self.use, record_bytes(manifest_bytes))

    def append(self, draft: RecordHeader, payload: memoryview, room: memoryview | None = None) -> Written:
        """Write a record; blocks, for any thread. It counts only once ``durable`` has returned.

        :param room: as ``SpoolLog.append`` has it.
        :raises Overloaded, Retryable: nothing was written.
        """
        try:
            written = self._opened.append(draft, payload, urgent=draft.kind is RecordKind.MANIFEST, room=room)
        except BlockferryError as error:
            self._write_problem = error
            raise
        self._write_problem = None
        return written

    async def append_in_thread(self, draft: RecordHeader, payload: memoryview) -> Written:
        """``append`` for callers on the event loop."""
        return await finished_in(self._reading, lambda: self.append(draft, payload))

    async def durable(self, written: Written) -> None:
        """Return when the record is durable. Not to be cancelled: the record would stay without an owner until the next start.

        :raises Overloaded, Retryable: it is not, and never will be; its place is given up.
        """
        if self._stopped:
            raise _stopping()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((written, future))
        self._wanted.set()
        await future

    # -- reading and releasing --------------------------------------------------------------------------------

    def read_blocking(self, place: RecordPlace, buffer: memoryview) -> RecordHeader:
        """``read`` for the start, when nothing else runs."""
        return self._opened.read(place, buffer)

    async def read(self, place: RecordPlace, buffer: memoryview) -> RecordHeader:
        """Read and verify a record's payload; raises as ``SpoolLog.read`` does. On cancel the buffer is the caller's again."""
        return await finished_in(self._reading, lambda: self._opened.read(place, buffer))

    async def read_record(self, place: RecordPlace, room: memoryview) -> RecordHeader:
        """As ``read``, the whole record into ``room``, as ``SpoolLog.read_record`` has it."""
        return await finished_in(self._reading, lambda: self._opened.read_record(place, room))

    def release(self, place: RecordPlace, kind: RecordKind) -> None:
        """The record is durable at the store (``UPLOADED``) or can never count (``DISCARDED``). Its file goes with its last record."""
        self._opened.release(place)
        self.kept.release(place)
        self._marks[kind].append(place.number)

    # -- group commit -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer those that wait for durability, write marks, remove files; until cancelled. Who waits then is told so."""
        try:
            while True:
                try:
                    async with asyncio.timeout(MARKS_WITHIN_S):
                        await self._wanted.wait()
                except TimeoutError:
                    if not any(self._marks.values()):
                        continue
                await finished(self._commit())  # whoever waits for this group is answered whatever happens
        finally:
            self._stopped = True
            for _, future in self._waiters:
                if not future.done():
                    future.set_exception(_stopping())

    async def _commit(self) -> None:
        self._wanted.clear()
        waiters, self._waiters = self._waiters, []
        marks, self._marks = self._marks, {kind: [] for kind in self._marks}
        self._groups += 1
        self._committing = True
        try:
            durable = await finished_in(self._syncing, lambda: self._flush(marks))
        except BlockferryError as error:
            for kind, numbers in marks.items():
                self._marks[kind] += numbers
            self._sync_problem = error
            for written, future in waiters:
                self._opened.release(written.place)
                if not future.done():
                    future.set_exception(_repeated(error))
            return
        except BaseException:
            self._waiters += waiters  # ``run`` ends, and tells them
            raise
        finally:
            self._committing = False
        self._sync_problem = None
        if waiters:
            self._on_group(len(waiters))
        for written, future in waiters:
            self._answer(written, future, durable)

    def _answer(self, written: Written, future: asyncio.Future[None], durable: Durable) -> None:
        if written.incarnation == durable.incarnation and written.place.number <= durable.through:
            if not future.done():
                future.set_result(None)
            return
        self._opened.release(written.place)
        if not future.done():
            future.set_exception(
                Retryable("cannot keep the record: the spool's disk failed while it was written", retry_after_s=1.0)
            )

    def _flush(self, marks: dict[RecordKind, list[int]]) -> Durable:
        """Remove files, write marks, sync; blocks, in the syncing thread."""
        log = self._opened
        for number in log.removable():
            try:
                log.remove(number)
            except OSError as error:
                _logger.warning("cannot remove a spool file", extra={"fields": {"file": number, "error": str(error)}})
            reached("process.spool-file.removed")
        for kind, numbers in marks.items():
            for at in range(0, len(numbers), MAX_MARKS):
                payload = encode_marks(numbers[at : at + MAX_MARKS])
                try:
                    log.append(RecordHeader(kind, 0, 0, len(payload)), memoryview(payload), urgent=True)
                except BlockferryError as error:  # without its mark a record is uploaded again, which changes nothing
                    _logger.warning("cannot write marks", extra={"fields": {"error": str(error)}})
        if any(marks.values()):
            reached("process.marks.appended")
        return log.sync()

    async def close(self) -> None:
        """Write what is left, state that all of it is durable, close the files. To be called when ``run`` has ended."""
        await self._commit()
        await finished_in(self._syncing, self._close)
        self._syncing.shutdown()
        self._reading.shutdown()

    def _close(self) -> None:
        log = self._opened
        try:
            log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(b""), urgent=True)
            log.sync()
        except BlockferryError as error:
            _logger.warning("cannot close the spool cleanly", extra={"fields": {"error": str(error)}})
        log.close()


def _stopping() -> Retryable:
    return Retryable("cannot make the record durable: the process server stops", retry_after_s=1.0)


def _repeated(error: BlockferryError) -> BlockferryError:
    """A copy for each waiter: one exception object raised in many tasks would collect all their tracebacks."""
    retry_after_s = error.retry_after_s if isinstance(error, Retryable) else None
    kind = type(error) if isinstance(error, Retryable) else Retryable
    return kind(error.message, retry_after_s=retry_after_s, hint=error.hint)
