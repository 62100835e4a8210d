"""Intake with its spool on a simulated disk, a store that can be slow, and bodies that come when they are let to.

Called by the tests of intake, in virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any, cast

from prometheus_client import CollectorRegistry

from process_server.buffer_arena import BufferArena
from process_server.core.backlog import Backlog, GenerationBacklog, SegmentState
from process_server.core.epoch_chain import ReceiptFacts
from process_server.core.spool_budget import SpoolBudget
from process_server.intake.back_pressure import BackPressure
from process_server.intake.batch_intake import BatchAnswer, BatchIntake
from process_server.intake.body import Body
from process_server.intake.grants import Grants
from process_server.intake.manifest_intake import ManifestIntake
from process_server.intake.sealing import Sealing
from process_server.metrics import ProcessServerMetrics
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoreInquiry
from replication.batch_frame import BatchFrame
from replication.errors import InvalidInput
from replication.identifiers import BatchKey, EpochId, GenerationKey, MachineId
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabConfigServer, ShippedDisk
from tests.harness.process_time import virtual_clock
from tests.harness.simulated_disk import SimulatedDisk
from tests.harness.unreliable_store import UnreliableStore

RANDOM = Random(97)
MIB = 2**20


class SlowStore(UnreliableStore):
    """Answers questions only when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def head_blob(self, *args: Any, **kwargs: Any) -> Any:
        await self.answers.wait()
        return await super().head_blob(*args, **kwargs)

    async def list_blobs(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        await self.answers.wait()
        async for item in super().list_blobs(*args, **kwargs):
            yield item


class Content:
    """A body that arrives when ``arrives`` is set, or fails."""

    def __init__(self, content: bytes, arrives: asyncio.Event | None = None, error: Exception | None = None) -> None:
        self._content = content
        self._arrives = arrives
        self._error = error

    def as_body(self) -> Body:
        return cast("Body", self)

    def length(self, *, at_least: int, at_most: int) -> int:
        if not at_least <= len(self._content) <= at_most:
            raise InvalidInput(f"cannot accept a body of {len(self._content)} bytes")
        return len(self._content)

    @property
    def received_bytes(self) -> int:
        return 0

    async def receive_into(self, view: memoryview) -> None:
        if self._arrives is not None:
            await self._arrives.wait()
        if self._error is not None:
            raise self._error
        view[:] = self._content


class Rig:
    """Both intakes and what they stand on; ``waiting``, ``begun``, ``pending`` are what they told."""

    def __init__(self, limit_bytes: int = 256 * MIB, arena_bytes: int = 4 * MIB) -> None:
        clock = virtual_clock()
        self.store, self.config = SlowStore(), LabConfigServer()
        self.backlog = Backlog()
        self.files = SimulatedDisk()
        self.spool = Spool(self.files, SpoolBudget(limit_bytes), index_bytes=lambda: self.backlog.index_bytes)
        list(self.spool.recover())
        self.spool.begin([])
        self.arena = BufferArena(arena_bytes)
        self.level = 1
        self.sealing = Sealing(self.spool, threads=2, level=lambda: self.level, unix_ns=clock.unix_ns)
        self.waiting: list[GenerationKey] = []
        self.begun: list[GenerationKey] = []
        self.pending: list[GenerationKey] = []
        self.receipt: ReceiptFacts | None = None
        """What the store says when it is read anew."""
        self.receipts_read = 0
        self.stepped_back: list[ReceiptFacts] = []
        inquiry, metrics = StoreInquiry(self.store), ProcessServerMetrics(CollectorRegistry())
        grants = Grants(self.config, inquiry, clock)
        self.pressure = BackPressure(self.spool.budget, lambda: self.spool.use, lambda: 0.0, clock)
        note: Callable[[GenerationBacklog], None] = lambda generation: self.waiting.append(generation.key)  # noqa: E731
        self.batches = BatchIntake(
            self.backlog, self.spool, self.sealing, self.arena, grants, inquiry, metrics, self.pressure,
            on_segment=note, on_generation=self.begun.append,
        )  # fmt: skip
        self.manifests = ManifestIntake(
            self.backlog, self.spool, grants, inquiry, self.arena, metrics, self.sealing.pool,
            unix_ns=clock.unix_ns, on_manifest=self.pending.append,
            read_receipt=self.read_receipt, on_step_back=self.step_back,
        )  # fmt: skip
        self.disk = self.new_disk()

    def new_disk(self) -> ShippedDisk:
        disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
        self.config.grants[disk.key] = disk.grant
        return disk

    async def put(self, frame: BatchFrame, **how: Any) -> BatchAnswer:
        content = Content(b"".join((frame.head, *frame.data)), **how)
        answer = await self.batches.put(frame.key, self.disk.machine, content.as_body())
        self.disk.acknowledged[frame.key] = answer.acknowledgement
        return answer

    async def put_manifest(self, epoch: int, encoded: bytes, disk: ShippedDisk | None = None, **how: Any) -> bool:
        disk = disk or self.disk
        return await self.manifests.put(disk.epoch_key(epoch), disk.machine, Content(encoded, **how).as_body())

    async def read_receipt(self, _key: GenerationKey) -> None:
        self.receipts_read += 1
        if self.receipt is not None:
            self.backlog.generation(self.disk.key, self.disk.machine).chain.learn(self.receipt)

    def step_back(self, key: GenerationKey, facts: ReceiptFacts) -> None:
        self.stepped_back.append(facts)
        self.backlog.generation(key, self.disk.machine).chain.step_back(facts)
        self.backlog.doubt_stored(key)

    def decide(self, epoch: int, digest: bytes = b"h" * 32) -> None:
        self.backlog.generation(self.disk.key, self.disk.machine).chain.decide(EpochId(epoch), digest)
        self.backlog.settle(self.disk.key)

    def state(self, key: BatchKey) -> SegmentState | None:
        entry = self.backlog.find(key)
        return None if entry is None else entry.state

    @property
    def holds_nothing(self) -> bool:
        return self.arena.leased_bytes == 0 and self.spool.budget.reserved_bytes == 0


@contextlib.asynccontextmanager
async def running(**how: Any) -> AsyncIterator[Rig]:
    rig = Rig(**how)
    task = asyncio.create_task(rig.spool.run())
    try:
        yield rig
        assert rig.holds_nothing
    finally:
        task.cancel()
        await asyncio.wait([task])
        rig.sealing.close()
        await rig.spool.close()
