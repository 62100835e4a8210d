"""A disk's supervisor over a real file, the scan tracker and memory sinks, one for each generation.

Called by ``tests/unit/mobility_agent/protection/test_disk_supervisor.py``. The file's bytes are compared with the sink's replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import ChangeTracker
from mobility_agent.change_tracker.scan import ScanTracker
from mobility_agent.core.own_writes import StateWrites
from mobility_agent.interruption import Interruption
from mobility_agent.protection.disk_session import SessionLimits
from mobility_agent.protection.disk_supervisor import DiskEnvironment, DiskSupervisor
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.epoch_shipper import ShippingBuffers
from replication.batch_frame import BatchFrame
from replication.control_plane import GenerationGrant, GenerationRequest
from replication.data_plane import BatchAcknowledgement
from replication.dirty_bitmap import Geometry
from replication.documents import WriterIdentity
from replication.errors import BlockferryError, NotFound, Refused, Retryable
from replication.identifiers import DiskId, EpochId, EpochKey, GenerationId, GenerationKey, ItemId
from replication.store_documents import GenerationBase
from tests.harness.memory_sink import MemorySink

GRANULARITY_BYTES = 4096
SIZE_BYTES = 40 * GRANULARITY_BYTES
ITEM = ItemId("11111111-1111-4111-8111-111111111111")
DISK = DiskId("22222222-2222-4222-8222-222222222222")
KEY = bytes(range(32))


class Sinks:
    """``Uplink`` over one memory sink a generation; the replica goes from one to the next.

    ``mute``: batches arrive, but manifests do not, and no receipt comes.
    """

    def __init__(self) -> None:
        self.mute = False
        self.writer = WriterIdentity.generate()
        self.all: dict[int, MemorySink] = {}

    def open(self, generation: int) -> MemorySink:
        key = GenerationKey(DISK, GenerationId(generation))
        made = self.all[generation] = MemorySink(key, KEY, SIZE_BYTES, self.writer)
        if generation > 1:
            made.replica[:] = self.all[generation - 1].replica
        return made

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        return await self.all[frame.key.generation].put_batch(frame)

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        self._fail_if_mute()
        await self.all[key.generation].put_manifest(key, encoded)

    def _fail_if_mute(self) -> None:
        if self.mute:
            raise Retryable("cannot reach the store", retry_after_s=0.001)

    async def stored_manifest(self, key: EpochKey) -> bytes | None:
        self._fail_if_mute()
        return await self.all[key.generation].stored_manifest(key)

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None:
        self._fail_if_mute()
        return await self.all[key.generation].receipt(key, after_epoch, wait_s, seen)


class Grants:
    """The configuration server: a generation for each request, idempotent. ``answers``: errors to raise first."""

    def __init__(self, sinks: Sinks) -> None:
        self._sinks = sinks
        self.granted: dict[str, GenerationGrant] = {}
        self.asked: list[GenerationRequest] = []
        self.answers: list[BlockferryError] = []
        self.changes: dict[str, object] = {}

    async def new_generation(self, disk: DiskId, request: GenerationRequest) -> GenerationGrant:
        self.asked.append(request)
        if self.answers:
            raise self.answers.pop(0)
        if request.request not in self.granted:
            self.granted[request.request] = self._grant(request)
        return self.granted[request.request].model_copy(update=self.changes)

    def _grant(self, request: GenerationRequest) -> GenerationGrant:
        generation = len(self.granted) + 1
        before = self._sinks.all.get(generation - 1)
        self._sinks.open(generation)
        return GenerationGrant(
            disk=DISK,
            item=ITEM,
            generation=generation,
            size_bytes=request.size_bytes,
            granularity_bytes=request.granularity_bytes,
            base=None if before is None else self._base(generation - 1, before),
            manifest_key=KEY.hex(),
            digest_key=KEY.hex(),
            writer_public_key=self._sinks.writer.public.encode(),
        )

    @staticmethod
    def _base(generation: int, sink: MemorySink) -> GenerationBase:
        return GenerationBase(generation=generation, epoch=sink.applied_epoch, manifest_hash=sink.applied_hash.hex())


class Rig:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk.img"
        self.path.write_bytes(os.urandom(SIZE_BYTES))
        self.sinks = Sinks()
        self.grants = Grants(self.sinks)
        self.readers: list[DiskReader] = []
        self.others = False
        """Whether another agent of the machine replicates the disk."""
        self.held = 0
        environment = DiskEnvironment(
            state_dir=directory,
            granularity_bytes=GRANULARITY_BYTES,
            locate=self._locate,
            open_tracker=self._open_tracker,
            config_server=self.grants,
            buffers=ShippingBuffers(3, 4 * GRANULARITY_BYTES),
            batches_in_flight=2,
            limits=SessionLimits(
                epoch_bytes=16 * GRANULARITY_BYTES, unconfirmed_epochs=3, epoch_interval_s=0.0, scan_interval_s=0.001
            ),
            seeding_slots=asyncio.Semaphore(1),
            state_writes=StateWrites(lambda: 0.0),
            holds_state=lambda _: False,
            echo_wait_s=1.0,
            hold_disk=self._hold_disk,
        )
        self._environment = environment
        self.supervisor = DiskSupervisor(DISK, ITEM, environment)
        self._task: asyncio.Task[None] | None = None

    def restart_supervisor(self) -> None:
        """As after a boot: it knows what its files say."""
        self.supervisor = DiskSupervisor(DISK, ITEM, self._environment)

    def _hold_disk(self, disk: DiskId) -> contextlib.ExitStack:
        if self.others:
            raise Refused("cannot replicate this disk: another agent does", disk=disk)
        self.held += 1
        holding = contextlib.ExitStack()
        holding.callback(self._let_go)
        return holding

    def _let_go(self) -> None:
        self.held -= 1

    def _locate(self, disk: DiskId) -> Path:
        if not self.path.exists():
            raise NotFound("cannot find the disk on this machine", disk=disk)
        return self.path

    def _open_tracker(
        self, _: DiskId, reader: DiskReader, geometry: Geometry, table: DigestTable, interruption: Interruption
    ) -> ChangeTracker:
        self.readers.append(reader)
        return ScanTracker(reader, geometry, table, is_cancelled=interruption.is_interrupted)

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self.supervisor.run(self.sinks))
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.supervisor.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                assert self._task is None or not self._task.done()
                await asyncio.sleep(0.002)

    async def replicated(self, generation: int) -> None:
        await self.until(lambda: self._is_replicated(generation))

    async def fall_behind(self) -> tuple[MemorySink, dict[str, Any], dict[str, Any]]:
        """Replicate, and put the store back to an older state; returns once the agent says so, with both states."""
        self.start()
        await self.replicated(1)
        sink = self.sinks.all[1]
        older = sink.copied()
        write_at(self.path, 3, b"applied, and lost with the newer store")
        await self.replicated(1)
        await self.until(lambda: (found := self.supervisor.session) is not None and found.ledger.is_clean)
        newer = sink.copied()
        await sink.put_back(older)
        await self.until(lambda: self.supervisor.problem is not None)
        return sink, older, newer

    def _is_replicated(self, generation: int) -> bool:
        session = self.supervisor.session
        return (
            session is not None
            and session.ledger.generation == generation
            and not session.ledger.is_seeding
            and self.sinks.all[generation].replica == self.path.read_bytes()
        )


def write_at(path: Path, granule: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(granule * GRANULARITY_BYTES)
        stream.write(data)
