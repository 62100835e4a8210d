"""Ships one attempt of an epoch: a reader fills buffers, a bounded window of batches is in flight, each retried until durable.

Called by ``disk_session``. The hot path of the agent, kept plain: take a buffer, fill it in the disk's executor, send it in a task, give
it back when the process server has acknowledged. What the manifest must say is collected in batch order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import numpy as np

from mobility_agent.block_device.buffers import AlignedBuffer, BufferPool
from mobility_agent.pace import Pace, Step, unlimited
from mobility_agent.shipping.digest_table import DIGEST_BYTES, Digests, Indices
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_reader import EpochReader, FilledBatch, Unfinished
from mobility_agent.task_groups import Crew
from replication.batch_frame import BatchFrame, encode_batch
from replication.data_plane import BatchAcknowledgement
from replication.epoch_manifest import ManifestSegment
from replication.errors import BlockferryError, Retryable
from replication.failpoint import reached
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, EpochId, EpochKey, GenerationKey

FIRST_BACKOFF_S: Final = 0.25
MAX_BACKOFF_S: Final = 10.0
MIN_ASKED_S: Final = 0.01
MAX_ASKED_S: Final = 60.0
"""What a peer may ask for: neither a busy loop nor a standstill."""
_MAX_DOUBLINGS: Final = 16

ResultT = TypeVar("ResultT")


class Uplink(Protocol):
    """What a session needs of a process server."""

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement: ...

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None: ...

    async def stored_manifest(self, key: EpochKey) -> bytes | None: ...

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class ShippedAttempt:
    """Every batch of the attempt is durable at the process server."""

    segments: tuple[ManifestSegment, ...]
    indices: Indices
    digests: Digests
    logical_bytes: int


@dataclass(frozen=True, slots=True)
class _Content:
    """What a batch brings to the digest table; the batch's data is not kept."""

    indices: Indices
    digests: Digests


@dataclass(slots=True)
class _Sent:
    """An attempt while it is read and sent. ``contents`` in batch order; ``segments`` as they are acknowledged."""

    segments: dict[BatchNumber, ManifestSegment] = field(default_factory=dict)
    contents: list[_Content] = field(default_factory=list)
    logical_bytes: int = 0


async def finished_in(
    executor: Executor, function: Callable[[], ResultT], on_cancel: Callable[[], None] = lambda: None
) -> ResultT:
    """Run ``function`` in ``executor``; if cancelled, however often, wait until it has ended, so that what it uses can be given back.

    ``on_cancel`` is called when it is cancelled, to make ``function`` end soon.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        on_cancel()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # nobody asks for it any more
        raise


def backoff_s(failures: int, asked_s: float | None) -> float:
    """Seconds to wait after the n-th failure in a row (from 1): what the peer asked for within bounds, else doubling up to the maximum."""
    if asked_s is not None:
        return min(MAX_ASKED_S, max(MIN_ASKED_S, asked_s))
    doublings = min(_MAX_DOUBLINGS, max(0, failures - 1))
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0**doublings)


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
        pace: Pace | None = None,
    ) -> None:
        """:param on_peer: told of each failure to reach the process server and of the first success after it.
        :param pace: of all the agent's disks; None: no limits.
        """
        self.uplink = uplink
        self._buffers = buffers
        self._executor = executor
        self._figures = figures
        self._window = window
        self._on_peer = on_peer
        self.pace = unlimited() if pace is None else pace

    async def ship(
        self, key: EpochKey, attempt: AttemptNumber, reader: EpochReader, *, paced: bool = True
    ) -> ShippedAttempt:
        """Return when every batch is durable at the process server. Waits for as long as it is unreachable.

        :param paced: reading keeps to the agent's limits. False: nothing is read of a disk.
        :raises BlockferryError: for what no retry mends: a read error, a refusal, a key conflict.
        On cancel nothing is lost: the attempt is void and the next one reads again.
        """
        crew = Crew()
        reading = crew.start(self._read_and_send(key, attempt, reader, crew, paced=paced))
        await crew.finish()
        sent = reading.result()
        return ShippedAttempt(
            tuple(sent.segments[number] for number in sorted(sent.segments)),
            np.concatenate([np.empty(0, dtype=np.int64), *(content.indices for content in sent.contents)]),
            np.concatenate([np.empty((0, DIGEST_BYTES), dtype=np.uint8), *(each.digests for each in sent.contents)]),
            sent.logical_bytes,
        )

    async def _read_and_send(
        self, key: EpochKey, attempt: AttemptNumber, reader: EpochReader, crew: Crew, *, paced: bool
    ) -> _Sent:
        """Read to the end, each batch sent by a task of ``crew``: ``segments`` is complete when they have ended."""
        sent = _Sent()
        slots = asyncio.Semaphore(self._window)
        number = 0
        while True:
            await slots.acquire()
            buffer = await self._buffers.acquire()
            try:
                batch = BatchKey(key.disk, key.generation, key.epoch, attempt, BatchNumber(number))
                filled = await self._filled(reader, buffer, batch, paced=paced)
            except BaseException:
                self._buffers.release(buffer)
                raise
            if filled is None:
                self._buffers.release(buffer)
                return sent
            content, frame = filled
            if frame is None:
                self._buffers.release(buffer)
                slots.release()
                continue
            sent.contents.append(_Content(content.indices, content.digests))
            sent.logical_bytes += frame.logical_bytes
            sending = crew.start(self._send(frame, sent.segments))
            # Not by the task itself: cancelled before its first step it would never give the buffer back.
            sending.add_done_callback(functools.partial(self._give_back, buffer, slots))
            number += 1

    async def _filled(
        self, reader: EpochReader, buffer: AlignedBuffer, key: BatchKey, *, paced: bool
    ) -> tuple[FilledBatch, BatchFrame | None] | None:
        """In one step, or under a limit in as many as it takes: the executor is free in between."""
        while True:
            step = await self.pace.step() if paced else Step(None, 0)
            before_bytes = reader.read_bytes
            fill = functools.partial(self._fill, reader, buffer, key, step.at_most_bytes)
            filled = await finished_in(self._executor, fill)
            if paced:
                self.pace.read(step, reader.read_bytes - before_bytes)
            if not isinstance(filled, Unfinished):
                return filled

    @staticmethod
    def _fill(
        reader: EpochReader, buffer: AlignedBuffer, key: BatchKey, at_most_bytes: int | None
    ) -> tuple[FilledBatch, BatchFrame | None] | Unfinished | None:
        filled = reader.next_batch(buffer.view, at_most_bytes)
        if filled is None or isinstance(filled, Unfinished):
            return filled
        return filled, encode_batch(key, filled.extents) if filled.extents else None

    def _give_back(self, buffer: AlignedBuffer, slots: asyncio.Semaphore, _sent: asyncio.Task[None]) -> None:
        self._buffers.release(buffer)
        slots.release()

    async def _send(self, frame: BatchFrame, segments: dict[BatchNumber, ManifestSegment]) -> None:
        acknowledged = await self.persistently(lambda: self.uplink.put_batch(frame))
        reached("agent.batch.acknowledged")
        segments[frame.key.batch] = ManifestSegment(
            frame.key.batch, acknowledged.segment_bytes, bytes.fromhex(acknowledged.tag), frame.digest
        )
        self._figures.sent_bytes += frame.frame_bytes

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
