"""A disk's ledger that is durable before it is acted on: one change at a time, each saved, and the end of everything if a saving fails.

Shared by the parts of one disk session (``disk_session``, ``manifest_delivery``, ``receipt_intake``) and held still by
``point_coordinator`` while file systems are frozen. Changes run whole in the disk's executor: what was begun is finished even if the
caller is cancelled, so that memory and journal never part. If one fails, the ledger in memory may be ahead of the journal; nothing may
be built on it, so ``failure`` is set, every wait ends with it, and the next session starts from the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.core.own_writes import StateWrites
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.shipping.epoch_shipper import finished_in
from replication.errors import BlockferryError, Retryable

ResultT = TypeVar("ResultT")


class KeptLedger:
    """``ledger`` is changed through ``change`` only, by whoever holds ``lock``; it may be read at any time."""

    def __init__(self, ledger: EpochLedger, journal: EpochJournal, executor: Executor, writes: StateWrites) -> None:
        """:param writes: told of every write of the agent's own state."""
        self.ledger = ledger
        self.journal = journal
        self.lock = asyncio.Lock()
        self.failure: BlockferryError | OSError | None = None
        self.on_tell: Callable[[], None] = lambda: None
        """Called, too, whenever all who wait are told to look again."""
        self._executor = executor
        self._writes = writes
        self._changed = asyncio.Event()

    async def change(self, function: Callable[[], ResultT], on_cancel: Callable[[], None] = lambda: None) -> ResultT:
        """Run ``function``, which changes the ledger and saves it with ``save``, in the executor; the caller holds ``lock``.

        On cancel it has run to its end. :raises: what it raises, or what an earlier change failed with; then all is over, also when the
        caller was cancelled and does not hear of it: a harvest in doubt that nobody heard of would be taken for an exact one.
        """

        def run() -> ResultT:
            try:
                return function()
            except (BlockferryError, OSError) as error:
                self.failure = self.failure or error
                raise

        self.require_alive()
        try:
            return await self.in_executor(run, on_cancel)
        except (BlockferryError, OSError) as error:
            self.fail(error)
            raise
        finally:
            self.tell()

    def save(self) -> None:
        """Make the ledger durable; called inside ``change``. Blocks."""
        self.journal.save(self.ledger)
        self.wrote()

    def wrote(self, times: int = 1) -> None:
        """The agent's own state was written, ``times`` times."""
        self._writes.note(times)

    async def in_executor(
        self, function: Callable[[], ResultT], on_cancel: Callable[[], None] = lambda: None
    ) -> ResultT:
        """Run a blocking call that changes nothing of the ledger."""
        return await finished_in(self._executor, function, on_cancel)

    # ---- waiting

    def tell(self) -> None:
        """Let all who wait look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self.on_tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition``, which depends on the ledger. :raises: what the session failed with, if it fails meanwhile."""
        while self.failure is None and not condition():
            await self._changed.wait()
        self.require_alive()

    # ---- the end

    def fail(self, error: BlockferryError | OSError) -> None:
        """The first error counts."""
        if self.failure is None:
            self.failure = error
        self.tell()

    def end(self) -> None:
        """The session is over: nobody shall wait for it."""
        self.fail(Retryable("cannot go on: the disk's session has ended", disk=self.ledger.disk))

    def require_alive(self) -> None:
        """:raises: what the session failed with."""
        if self.failure is not None:
            raise self.failure
