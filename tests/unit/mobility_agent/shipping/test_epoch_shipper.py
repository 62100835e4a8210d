"""Shipping one attempt: what is retried, what is bounded, and that no buffer is lost however it ends."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mobility_agent.pace import Pace
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_reader import EpochReader
from mobility_agent.shipping.epoch_shipper import (
    MAX_BACKOFF_S,
    EpochShipper,
    ShippingBuffers,
    backoff_s,
    finished_in,
)
from replication.batch_frame import BatchFrame
from replication.clock import Clock
from replication.data_plane import BatchAcknowledgement
from replication.dirty_bitmap import Geometry, GranuleRuns
from replication.errors import BlockferryError, KeyConflict, PeerUnavailable
from replication.identifiers import AttemptNumber, DiskId, EpochId, EpochKey, GenerationId, GenerationKey
from tests.harness.fake_tracker import FakeDisk

GRANULARITY_BYTES = 4096
BATCH_BYTES = 4 * GRANULARITY_BYTES
DISK = DiskId("22222222-2222-4222-8222-222222222222")
KEY = EpochKey(DISK, GenerationId(1), EpochId(1))
GEOMETRY = Geometry(64 * GRANULARITY_BYTES, GRANULARITY_BYTES)


@dataclass
class ScriptedUplink:
    """Answers batches as ``answers`` say, in turn; afterwards it accepts. An answer is an error to raise, or None."""

    answers: list[BlockferryError | None] = field(default_factory=list)
    accepting: asyncio.Event = field(default_factory=asyncio.Event)
    frames: list[BatchFrame] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    def __post_init__(self) -> None:
        self.accepting.set()

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.accepting.wait()
            await asyncio.sleep(0)
            answer = self.answers.pop(0) if self.answers else None
            if answer is not None:
                raise answer
        finally:
            self.under_way -= 1
        self.frames.append(frame)
        return BatchAcknowledgement(tag=frame.digest.hex(), segment_bytes=frame.frame_bytes)

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        raise NotImplementedError

    async def stored_manifest(self, key: EpochKey) -> bytes | None:
        raise NotImplementedError

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None:
        raise NotImplementedError


@dataclass
class Rig:
    uplink: ScriptedUplink
    buffers: ShippingBuffers
    shipper: EpochShipper
    table: DigestTable
    disk: FakeDisk
    executor: ThreadPoolExecutor
    peers: list[BlockferryError | None]

    def reader(self) -> EpochReader:
        return EpochReader(self.disk, GranuleRuns.of([(0, GEOMETRY.granules)]), self.table, ())

    async def free_buffers(self, count: int) -> bool:
        """Whether ``count`` buffers can be had at once."""
        try:
            async with asyncio.timeout(5):
                held = [await self.buffers.acquire() for _ in range(count)]
        except TimeoutError:
            return False
        for buffer in held:
            self.buffers.release(buffer)
        return True


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    executor = ThreadPoolExecutor(1)
    table = DigestTable(tmp_path / "digests", DISK, GEOMETRY, bytes(32))
    disk = FakeDisk(GEOMETRY)
    for granule in range(GEOMETRY.granules):
        disk.write(granule * GRANULARITY_BYTES, uuid.UUID(int=granule + 1).bytes * (GRANULARITY_BYTES // 16))
    uplink, buffers = ScriptedUplink(), ShippingBuffers(3, BATCH_BYTES)
    peers: list[BlockferryError | None] = []
    shipper = EpochShipper(uplink, buffers, executor, DiskFigures(), window=2, on_peer=peers.append)
    yield Rig(uplink, buffers, shipper, table, disk, executor, peers)
    executor.shutdown()
    table.close()


def test_pauses_grow_to_a_maximum_however_long_the_peer_is_away() -> None:
    assert backoff_s(1, None) < backoff_s(2, None) <= MAX_BACKOFF_S
    assert backoff_s(5000, None) == MAX_BACKOFF_S


class InlineExecutor(Executor):
    """Runs everything at once, so that the order of the event loop's steps is the same each time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


async def test_no_buffer_is_lost_when_a_batch_fails_while_another_one_has_not_begun(rig: Rig) -> None:
    """A send that is cancelled before its first step never runs at all: its buffer must come back all the same."""
    shipper = EpochShipper(rig.uplink, rig.buffers, InlineExecutor(), DiskFigures(), window=3, on_peer=rig.peers.append)

    async def fail_after(steps: int) -> BatchAcknowledgement:
        for _ in range(steps):
            await asyncio.sleep(0)
        raise KeyConflict("cannot accept: another digest")

    for steps in range(40):
        rig.uplink.put_batch = lambda _, steps=steps: fail_after(steps)  # type: ignore[method-assign, misc]  # scripted
        with pytest.raises(KeyConflict):
            await shipper.ship(KEY, AttemptNumber(1), rig.reader())
        assert await rig.free_buffers(3), f"failed after {steps} steps"


async def test_no_buffer_is_lost_whenever_it_is_cancelled(rig: Rig) -> None:
    for steps in range(60):
        shipping = asyncio.create_task(rig.shipper.ship(KEY, AttemptNumber(1), rig.reader()))
        for _ in range(steps):
            await asyncio.sleep(0)
        shipping.cancel()
        await asyncio.wait([shipping])
        assert await rig.free_buffers(3), f"cancelled after {steps} steps"


async def test_a_second_cancellation_does_not_give_a_buffer_back_while_it_is_read_into(rig: Rig) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        leave.wait(10)

    task = asyncio.create_task(finished_in(rig.executor, slow))
    await asyncio.to_thread(entered.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    leave.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_cancellation_wins_over_an_error_of_the_same_moment(rig: Rig) -> None:
    """Otherwise whoever cancelled waits for a task that goes on."""
    rig.uplink.accepting.clear()
    rig.uplink.answers = [KeyConflict("cannot accept")] * 4
    shipping = asyncio.create_task(rig.shipper.ship(KEY, AttemptNumber(1), rig.reader()))
    while rig.uplink.under_way < 2:
        await asyncio.sleep(0)
    rig.uplink.accepting.set()
    for _ in range(2):
        await asyncio.sleep(0)
    shipping.cancel()
    await asyncio.wait([shipping])
    assert shipping.cancelled()


async def test_the_window_bounds_what_is_in_flight(rig: Rig) -> None:
    rig.uplink.accepting.clear()
    shipping = asyncio.create_task(rig.shipper.ship(KEY, AttemptNumber(1), rig.reader()))
    while rig.uplink.under_way < 2:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    rig.uplink.accepting.set()
    await shipping
    assert rig.uplink.most_under_way == 2


async def test_an_unreachable_peer_is_reported_and_its_return_too(rig: Rig) -> None:
    away = PeerUnavailable("cannot reach", retry_after_s=0.0)
    rig.uplink.answers = [away, away]
    shipped = await rig.shipper.ship(KEY, AttemptNumber(1), rig.reader())
    assert rig.peers[0] is away
    assert rig.peers[-1] is None
    assert len(shipped.segments) == GEOMETRY.granules // 4
    assert shipped.indices.tolist() == list(range(GEOMETRY.granules))


async def test_a_key_conflict_is_never_retried(rig: Rig) -> None:
    rig.uplink.answers = [KeyConflict("cannot accept: another digest")]
    with pytest.raises(KeyConflict):
        await rig.shipper.ship(KEY, AttemptNumber(1), rig.reader())
    assert not any(frame.key.batch == 0 for frame in rig.uplink.frames)


async def test_a_limit_holds_for_what_is_read_of_a_disk_and_leaves_the_executor_free(rig: Rig) -> None:
    """In steps of a granule here, so that what waits is the shipper and nobody else."""
    pauses: list[float] = []
    time_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal time_s
        pauses.append(seconds)
        time_s += seconds
        # Whoever else needs the executor gets it meanwhile.
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(rig.executor, lambda: None), 10)

    pace = Pace(Clock(monotonic_s=lambda: time_s, sleep=sleep), lambda: 0.0)
    pace.set_limits(1_000_000, None)
    shipper = EpochShipper(
        rig.uplink, rig.buffers, rig.executor, DiskFigures(), window=2, on_peer=rig.peers.append, pace=pace
    )
    shipped = await shipper.ship(KEY, AttemptNumber(1), rig.reader())
    assert shipped.indices.tolist() == list(range(GEOMETRY.granules))
    assert time_s == pytest.approx(GEOMETRY.size_bytes / 1_000_000, abs=0.1)
    assert pauses
    assert len(rig.uplink.frames) == GEOMETRY.granules // 4, "batches are as large as without a limit"


async def test_who_waits_for_a_limit_can_be_cancelled_and_no_buffer_is_lost(rig: Rig) -> None:
    async def sleep(_: float) -> None:
        await asyncio.Event().wait()

    pace = Pace(Clock(monotonic_s=lambda: 0.0, sleep=sleep), lambda: 0.0)
    pace.set_limits(1_000_000, None)
    pace.read(await pace.step(), 10**9)
    shipper = EpochShipper(
        rig.uplink, rig.buffers, rig.executor, DiskFigures(), window=2, on_peer=rig.peers.append, pace=pace
    )
    shipping = asyncio.create_task(shipper.ship(KEY, AttemptNumber(1), rig.reader()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not rig.uplink.frames
    shipping.cancel()
    await asyncio.wait([shipping])
    assert await rig.free_buffers(3)


async def test_what_is_no_disk_is_shipped_whatever_the_limits(rig: Rig) -> None:
    pace = Pace(Clock(monotonic_s=lambda: 0.0), lambda: 0.0)
    pace.set_limits(1_000_000, 0.05)
    pace.read(await pace.step(), 10**9)
    shipper = EpochShipper(
        rig.uplink, rig.buffers, rig.executor, DiskFigures(), window=2, on_peer=rig.peers.append, pace=pace
    )
    shipped = await shipper.ship(KEY, AttemptNumber(1), rig.reader(), paced=False)
    assert shipped.indices.tolist() == list(range(GEOMETRY.granules))
