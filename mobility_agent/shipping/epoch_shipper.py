"""Ships one attempt of an epoch: a reader fills buffers, a bounded window of batches is in flight, each retried until durable.

Called by ``disk_session``. The hot path of the agent, kept plain: take a buffer, fill it in the disk's executor, send it in a task, give
it back when the process server has acknowledged. What the manifest must say is collected in batch order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np

from mobility_agent.block_device.buffers import AlignedBuffer, BufferPool
from mobility_agent.shipping.digest_table import DIGEST_BYTES, Digests, Indices
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_reader import EpochReader, FilledBatch
from mobility_agent.task_groups import first_cause
from replication.batch_frame import BatchFrame, encode_batch
from replication.data_plane import BatchAcknowledgement
from replication.epoch_manifest import ManifestSegment
from replication.errors import BlockferryError, Retryable
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, EpochId, EpochKey, GenerationKey

FIRST_BACKOFF_S: Final = 0.25
MAX_BACKOFF_S: Final = 10.0

ResultT = TypeVar("ResultT")


class Uplink(Protocol):
    """What a session needs of a process server."""

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement: ...

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None: ...

    async def stored_manifest(self, key: EpochKey) -> bytes | None: ...

    async def receipt(self, key: GenerationKey, after_epoch: EpochId, wait_s: float) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class ShippedAttempt:
    """Every batch of the attempt is durable at the process server."""

    segments: tuple[ManifestSegment, ...]
    indices: Indices
    digests: Digests
    logical_bytes: int


async def finished_in(executor: Executor, function: Callable[[], ResultT]) -> ResultT:
    """Run ``function`` in ``executor``; if cancelled, wait until it has ended, so that what it uses can be given back."""
    future = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def backoff_s(failures: int, asked_s: float | None) -> float:
    """Seconds to wait after the n-th failure in a row (from 1): what the peer asked for, else doubling up to the maximum."""
    return asked_s if asked_s is not None else min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (failures - 1))


class ShippingBuffers:
    """The agent's buffers for batches, shared by its disks: memory is bounded whatever their number and size."""

    def __init__(self, count: int, buffer_bytes: int) -> None:
        self._pool = BufferPool(count, buffer_bytes)
        self._free = asyncio.Semaphore(count)

    async def acquire(self) -> AlignedBuffer:
        """Wait for a buffer; each is given back with ``release`` below, when nothing uses its slices any more."""
        await self._free.acquire()
        return self._pool.acquire(0)

    def release(self, buffer: AlignedBuffer) -> None:
        buffer.release()
        self._free.release()


class EpochShipper:
    """Ships attempts of one disk, one at a time."""

    def __init__(
        self,
        uplink: Uplink,
        buffers: ShippingBuffers,
        executor: Executor,
        figures: DiskFigures,
        *,
        window: int,
        on_peer: Callable[[BlockferryError | None], None],
    ) -> None:
        """:param on_peer: told of each failure to reach the process server and of the first success after it."""
        self.uplink = uplink
        self._buffers = buffers
        self._executor = executor
        self._figures = figures
        self._window = window
        self._on_peer = on_peer

    async def ship(self, key: EpochKey, attempt: AttemptNumber, reader: EpochReader) -> ShippedAttempt:
        """Return when every batch is durable at the process server. Waits for as long as it is unreachable.

        :raises BlockferryError: for what no retry mends: a read error, a refusal, a key conflict.
        On cancel nothing is lost: the attempt is void and the next one reads again.
        """
        segments: dict[BatchNumber, ManifestSegment] = {}
        filled_batches: list[tuple[Indices, Digests]] = []
        logical_bytes = 0
        slots = asyncio.Semaphore(self._window)
        try:
            async with asyncio.TaskGroup() as sends:
                number = 0
                while True:
                    await slots.acquire()
                    buffer = await self._buffers.acquire()
                    try:
                        batch = BatchKey(key.disk, key.generation, key.epoch, attempt, BatchNumber(number))
                        filled = await finished_in(self._executor, lambda b=buffer, k=batch: self._fill(reader, b, k))  # type: ignore[misc]
                    except BaseException:
                        self._buffers.release(buffer)
                        raise
                    if filled is None:
                        self._buffers.release(buffer)
                        break
                    content, frame = filled
                    self._figures.read_bytes += content.read_bytes
                    if frame is None:
                        self._buffers.release(buffer)
                        slots.release()
                        continue
                    filled_batches.append((content.indices, content.digests))
                    logical_bytes += frame.logical_bytes
                    sends.create_task(self._send(frame, buffer, slots, segments))
                    number += 1
        except BaseExceptionGroup as group:
            raise first_cause(group) from group
        indices = [batch_indices for batch_indices, _ in filled_batches]
        digests = [batch_digests for _, batch_digests in filled_batches]
        return ShippedAttempt(
            tuple(segments[number] for number in sorted(segments)),
            np.concatenate(indices) if indices else np.empty(0, dtype=np.int64),
            np.concatenate(digests) if digests else np.empty((0, DIGEST_BYTES), dtype=np.uint8),
            logical_bytes,
        )

    @staticmethod
    def _fill(
        reader: EpochReader, buffer: AlignedBuffer, key: BatchKey
    ) -> tuple[FilledBatch, BatchFrame | None] | None:
        filled = reader.next_batch(buffer.view)
        if filled is None:
            return None
        return filled, encode_batch(key, filled.extents) if filled.extents else None

    async def _send(
        self,
        frame: BatchFrame,
        buffer: AlignedBuffer,
        slots: asyncio.Semaphore,
        segments: dict[BatchNumber, ManifestSegment],
    ) -> None:
        try:
            acknowledged = await self.persistently(lambda: self.uplink.put_batch(frame))
            segments[frame.key.batch] = ManifestSegment(
                frame.key.batch, acknowledged.segment_bytes, bytes.fromhex(acknowledged.tag), frame.digest
            )
            self._figures.sent_bytes += frame.frame_bytes
        finally:
            self._buffers.release(buffer)
            slots.release()

    async def persistently(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Repeat ``call`` until it succeeds or fails with what is not Retryable; the peer's wish for patience is honoured."""
        failures = 0
        while True:
            try:
                result = await call()
            except Retryable as error:
                failures += 1
                self._on_peer(error)
                await asyncio.sleep(backoff_s(failures, error.retry_after_s))
            else:
                if failures:
                    self._on_peer(None)
                return result
