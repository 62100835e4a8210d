"""One disk session over a fake disk and the memory sink, with its state on a real directory: started, crashed and started again.

Called by tests of ``mobility_agent/protection``. ``crash`` cancels the session without any farewell and drops every object; the next
``start`` has only the files and the fake disk's own (kernel-like) marks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.core.own_writes import EchoRule, StateWrites
from mobility_agent.pace import Pace
from mobility_agent.protection.disk_session import DiskParts, DiskSession, SessionLimits
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.quiesce.interface import Freeze, FreezeResult, Mount
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_shipper import EpochShipper, ShippingBuffers
from replication.dirty_bitmap import Geometry
from replication.errors import BlockferryError
from replication.identifiers import DiskId, GenerationId, GenerationKey
from tests.harness.fake_tracker import FakeDisk, FakeTracker
from tests.harness.memory_sink import MemorySink

GRANULARITY_BYTES = 4096
MANIFEST_KEY = bytes(range(32))
DIGEST_KEY = bytes(range(1, 33))


@dataclass(slots=True)
class FakeFreeze:
    result: FreezeResult | None = None

    def remaining_s(self) -> float:
        return 1.0


class FakeFreezer:
    """Freezes nothing; ``problem`` makes its freezes no points.

    ``when_frozen`` is called as soon as it is frozen; ``asked`` is what was to be frozen.
    """

    def __init__(self, when_frozen: Callable[[], None] = lambda: None) -> None:
        self.problem = ""
        self.count = 0
        self.asked: list[Sequence[Mount]] = []
        self._when_frozen = when_frozen

    @contextlib.contextmanager
    def frozen(self, mounts: Sequence[Mount], budget_s: float) -> Iterator[Freeze]:
        freeze = FakeFreeze()
        self.count += 1
        self.asked.append(mounts)
        self._when_frozen()
        yield freeze
        freeze.result = FreezeResult(not self.problem, 0.0, self.problem)


@dataclass
class SessionSite:
    directory: Path
    disk_id: DiskId
    granules: int = 64
    short_by_bytes: int = 1024
    epoch_bytes: int = 16 * GRANULARITY_BYTES
    disk: FakeDisk = field(init=False)
    sink: MemorySink = field(init=False)
    session: DiskSession | None = None
    doubts: list[str] = field(default_factory=list)
    state_writes: StateWrites = field(default_factory=lambda: StateWrites(time.monotonic))
    echo: EchoRule | None = None
    pace: Pace | None = None
    _task: asyncio.Task[None] | None = None
    _parts: DiskParts | None = None

    def __post_init__(self) -> None:
        geometry = Geometry(self.granules * GRANULARITY_BYTES - self.short_by_bytes, GRANULARITY_BYTES)
        self.disk = FakeDisk(geometry)
        self.sink = MemorySink(GenerationKey(self.disk_id, GenerationId(1)), MANIFEST_KEY, geometry.size_bytes)

    @property
    def geometry(self) -> Geometry:
        return self.disk.geometry

    def start(self) -> DiskSession:
        journal = EpochJournal(self.directory)
        table = DigestTable(self.directory / "digests", self.disk_id, self.geometry, DIGEST_KEY)
        ledger = journal.load()
        tracker = FakeTracker(self.disk)
        if ledger is None:
            ledger = EpochLedger(self.disk_id, GenerationId(1), self.geometry)
            ledger.begin_seeding()
            journal.save(ledger)
            tracker.begin_harvest()
            tracker.commit_harvest(ledger.serial)
        executor = ThreadPoolExecutor(1)
        figures = DiskFigures()
        self._parts = DiskParts(
            disk=self.disk_id,
            reader=cast("DiskReader", self.disk),
            tracker=tracker,
            journal=journal,
            table=table,
            ledger=ledger,
            executor=executor,
            manifest_key=MANIFEST_KEY,
            writer_key=self.sink.writer.public,
            figures=figures,
            note_doubt=self.doubts.append,
            state_writes=self.state_writes,
            echo=self.echo,
        )
        shipper = EpochShipper(
            self.sink,
            ShippingBuffers(3, 4 * GRANULARITY_BYTES),
            executor,
            figures,
            window=2,
            on_peer=_ignore,
            pace=self.pace,
        )
        limits = SessionLimits(
            epoch_bytes=self.epoch_bytes, unconfirmed_epochs=3, epoch_interval_s=0.0, scan_interval_s=0.0
        )
        self.session = DiskSession(self._parts, shipper, limits, asyncio.Semaphore(1))
        self._task = asyncio.create_task(self.session.run())
        return self.session

    async def crash(self) -> None:
        """End the session wherever it is."""
        if self._task is not None and self._parts is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BlockferryError, OSError):
                await self._task
            self._parts.executor.shutdown()
            self._parts.table.close()
            self._parts.tracker.close()
        self.session = self._task = self._parts = None

    async def settle(self) -> None:
        """Until everything written so far is applied at the sink; raises what ended the session, if it ended."""
        assert self.session is not None
        assert self._task is not None
        while not (self.session.ledger.is_clean and not self.session.ledger.is_seeding and not self._dirty()):
            if self._task.done():
                await self._task
            await asyncio.sleep(0.001)

    def _dirty(self) -> bool:
        pinned = self.disk.pinned
        return pinned is not None and (pinned.active.any() or pinned.flipped.any() or pinned.carried.any())

    @property
    def replica_matches(self) -> bool:
        return self.sink.replica == self.disk.content


def _ignore(_: BlockferryError | None) -> None:
    return None
