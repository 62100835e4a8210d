"""Segments on their way to the store, whatever the store answers: nothing is given up before it is stored, nothing flooded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from process_server.core.backlog import Backlog, SegmentEntry, SegmentState
from process_server.core.backoff import MAX_RETRY_S, SLOW_RETRY_S, StoreGate
from process_server.core.spool_budget import SpoolBudget
from process_server.core.upload_schedule import UploadSchedule
from process_server.metrics import ProcessServerMetrics
from process_server.spool.record import RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoreInquiry
from process_server.throttle import Throttle
from process_server.uploader.segment_uploader import SegmentUploader
from process_server.uploader.upload_room import UploadRoom
from replication.blob_client.failures import failure_from_answer
from replication.clock import Clock
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable
from replication.identifiers import BatchKey, MachineId
from replication.store_layout import (
    REPLICATION_CONTAINER,
    SEGMENT_DIGEST_METADATA,
    SEGMENT_TAG_METADATA,
    segment_name,
)
from tests.harness.epochs import new_uuid
from tests.harness.process_site import ShippedDisk
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock
from tests.harness.simulated_disk import SimulatedDisk
from tests.harness.unreliable_store import UnreliableStore

RANDOM = Random(71)
SIZE = 4096


class Rig:
    """Spooled segments of one machine, and the uploader that takes them to an unreliable store."""

    def __init__(self, *, parallel: int = 8, arena_segments: int = 8, clock: Clock | None = None) -> None:
        clock = clock or virtual_clock()
        self.store = UnreliableStore()
        self.backlog = Backlog()
        self.files = SimulatedDisk()
        self.spool = Spool(self.files, SpoolBudget(2**26), index_bytes=lambda: 0)
        list(self.spool.recover())
        self.spool.begin([])
        self.schedule = UploadSchedule(self.backlog, 32)
        self.gate = StoreGate()
        self.throttle = Throttle(None, clock)
        self.settled: list[BatchKey] = []
        self.disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
        self.serial = itertools.count()
        self.contents: dict[BatchKey, bytes] = {}
        self.uploader = SegmentUploader(
            self.backlog,
            self.schedule,
            self.spool,
            self.store,
            StoreInquiry(self.store),
            UploadRoom(parallel, arena_segments * record_bytes(SIZE)),
            self.throttle,
            self.gate,
            clock,
            ProcessServerMetrics(CollectorRegistry()),
            chance=lambda: 1.0,
            on_settled=self.settled.append,
        )

    def add(self, count: int = 1, *, kept: bool = False) -> list[BatchKey]:
        """:param kept: the segments are in the spool and in memory, as intake leaves them."""
        keys = []
        for _ in range(count):
            key = self.disk.batch_key(1, next(self.serial))
            content = self.contents[key] = RANDOM.randbytes(SIZE)
            written = self.spool.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(content))
            if kept:
                room = self.spool.kept.room(SIZE)
                assert room is not None
                room.view[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + SIZE] = content
                self.spool.kept.keep(written.place, room)
            entry = SegmentEntry(content[:16], content[-16:], SIZE, SegmentState.WAITING, written.place, 0)
            assert self.backlog.add_segment(key, self.disk.machine, entry)
            self.schedule.added(self.backlog.generations[key.generation_key])
            keys.append(key)
        self.uploader.wake()
        return keys

    def state(self, key: BatchKey) -> SegmentState | None:
        entry = self.backlog.find(key)
        return None if entry is None else entry.state

    def problem(self) -> BlockferryError | None:
        return self.gate.problem

    async def stored(self, key: BatchKey) -> bytes | None:
        with contextlib.suppress(BlockferryError):
            blob = await UnreliableStore.get_blob(
                self.store, REPLICATION_CONTAINER, segment_name(key), max_bytes=2 * SIZE
            )
            return None if blob is None else blob.content
        return None

    async def put_another(self, key: BatchKey, digest: bytes, tag: bytes, content: bytes = b"another" * 10) -> None:
        """Another process server was first."""
        await self.store.create_container(REPLICATION_CONTAINER)
        metadata = {SEGMENT_DIGEST_METADATA: digest.hex(), SEGMENT_TAG_METADATA: tag.hex()}
        await self.store.put_blob(REPLICATION_CONTAINER, segment_name(key), content, metadata=metadata)

    async def until_settled(self) -> None:
        while self.backlog.waiting_bytes or self.schedule.in_flight:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    task = asyncio.create_task(rig.uploader.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


@in_virtual_time
async def test_every_segment_arrives_byte_for_byte_with_digest_and_tag() -> None:
    async with running(Rig()) as rig:
        keys = rig.add(40)
        await rig.until_settled()
        for key in keys:
            content = rig.contents[key]
            assert await rig.stored(key) == content
            properties = await rig.store.head_blob(REPLICATION_CONTAINER, segment_name(key))
            assert properties.metadata[SEGMENT_DIGEST_METADATA] == content[:16].hex()
            assert properties.metadata[SEGMENT_TAG_METADATA] == content[-16:].hex()
            assert rig.state(key) is SegmentState.STORED
        assert sorted(rig.settled) == sorted(keys)
        assert list(rig.backlog.places()) == []


@in_virtual_time
async def test_what_is_still_in_memory_is_sent_without_reading_the_spool() -> None:
    async with running(Rig()) as rig:
        keys = rig.add(20, kept=True)
        for name in rig.files.names():
            rig.files.make_unreadable(name, 0, 2**20)
        await rig.until_settled()
        assert [await rig.stored(key) for key in keys] == [rig.contents[key] for key in keys]
        assert rig.spool.kept.kept_bytes == 0


@in_virtual_time
async def test_a_segment_that_could_not_be_sent_from_memory_is_read_back_for_the_next_try() -> None:
    async with running(Rig()) as rig:
        (refused, *others) = rig.add(5, kept=True)
        rig.store.refused_names[segment_name(refused)] = failure_from_answer(409, "SomeCode", "put blob")
        await asyncio.sleep(5)
        assert {rig.state(key) for key in others} == {SegmentState.STORED}
        assert rig.spool.kept.kept_bytes == 0, "memory is not held for what waits for its next try"
        rig.store.refused_names.clear()
        await rig.until_settled()
        assert await rig.stored(refused) == rig.contents[refused]


@in_virtual_time
async def test_what_is_in_memory_and_what_is_not_take_turns() -> None:
    """Memory is full for some: they are read back, and all arrive."""
    async with running(Rig(parallel=2, arena_segments=1)) as rig:
        keys = [key for _ in range(10) for key in (*rig.add(1, kept=True), *rig.add(2))]
        await rig.until_settled()
        assert [await rig.stored(key) for key in keys] == [rig.contents[key] for key in keys]
        assert rig.store.most_in_flight <= 2


@in_virtual_time
async def test_no_more_are_under_way_than_connections_and_memory_allow() -> None:
    for parallel, arena, most in ((3, 8, 3), (8, 2, 2)):
        async with running(Rig(parallel=parallel, arena_segments=arena)) as rig:
            rig.store.held.clear()
            rig.add(20)
            while rig.store.in_flight < most:
                await asyncio.sleep(0.01)
            rig.store.held.set()
            await rig.until_settled()
            assert rig.store.most_in_flight == most


@pytest.mark.parametrize(
    ("failure", "tries_in_an_hour"),
    [
        (failure_from_answer(500, "InternalError", "put blob"), 3600 / MAX_RETRY_S),
        (failure_from_answer(503, "ServerBusy", "put blob"), 3600 / MAX_RETRY_S),
        (PeerUnavailable("cannot put blob: no answer within 60 s"), 3600 / MAX_RETRY_S),
        (PeerProtocolError("cannot use the answer: it is cut off"), 3600 / MAX_RETRY_S),
        (failure_from_answer(403, "AuthenticationFailed", "put blob"), 3600 / SLOW_RETRY_S),
    ],
)
def test_a_store_that_fails_for_an_hour_is_probed_and_afterwards_everything_arrives(
    failure: BlockferryError, tries_in_an_hour: float
) -> None:
    @in_virtual_time
    async def check() -> None:
        async with running(Rig()) as rig:
            keys = rig.add(30)
            rig.store.failing = failure
            await asyncio.sleep(3600)
            assert rig.problem() is failure
            assert rig.store.calls["put_blob"] == pytest.approx(tries_in_an_hour, rel=0.2, abs=25)
            assert {rig.state(key) for key in keys} <= {SegmentState.WAITING, SegmentState.UPLOADING}
            rig.store.failing = None
            await rig.until_settled()
            assert now_s() <= 3600 + SLOW_RETRY_S + 1
            assert rig.problem() is None
            assert {rig.state(key) for key in keys} == {SegmentState.STORED}

    check()


@in_virtual_time
async def test_a_store_that_is_back_between_two_looks_at_the_clock_is_not_overlooked() -> None:
    loop, looks = asyncio.get_running_loop(), itertools.count()
    begun: list[float] = []

    def ticking() -> float:
        """Whatever is not the first look at a moment of the loop is 2⁻¹² s later, as on a machine where all takes its time."""
        nonlocal looks
        if begun != [loop.time()]:
            begun[:], looks = [loop.time()], itertools.count()
        return loop.time() + min(next(looks), 1) / 4096

    async with running(Rig(clock=Clock(monotonic_s=ticking))) as rig:
        (key,) = rig.add()
        rig.store.failing = PeerUnavailable("cannot reach it")
        await asyncio.sleep(0.125)
        assert rig.gate.failures == 1
        rig.store.failing = None
        await asyncio.sleep(1)
        assert rig.state(key) is SegmentState.STORED


@in_virtual_time
async def test_another_s_success_ends_the_wait_for_the_next_probe() -> None:
    async with running(Rig()) as rig:
        (key,) = rig.add()
        rig.store.failing = failure_from_answer(403, "AuthenticationFailed", "put blob")
        await asyncio.sleep(SLOW_RETRY_S + 1)
        rig.store.failing = None
        rig.gate.succeeded()
        await asyncio.sleep(1)
        assert rig.state(key) is SegmentState.STORED


@pytest.mark.parametrize("status", [400, 409, 412, 413, 501])
def test_one_segment_that_is_refused_holds_up_no_other_and_is_tried_again(status: int) -> None:
    @in_virtual_time
    async def check() -> None:
        async with running(Rig()) as rig:
            keys = rig.add(20)
            refused = segment_name(keys[3])
            rig.store.refused_names[refused] = failure_from_answer(status, "SomeCode", "put blob")
            await asyncio.sleep(5)
            assert {rig.state(key) for key in keys if key != keys[3]} == {SegmentState.STORED}
            assert rig.state(keys[3]) is not SegmentState.STORED
            assert rig.uploader.blob_problem is not None
            assert rig.gate.problem is None
            rig.store.refused_names.clear()
            await rig.until_settled()
            assert rig.state(keys[3]) is SegmentState.STORED
            assert rig.uploader.blob_problem is None

    check()


@in_virtual_time
async def test_a_refused_segment_that_is_no_longer_wanted_is_no_problem_any_more() -> None:
    async with running(Rig()) as rig:
        (key,) = rig.add()
        rig.store.refused_names[""] = failure_from_answer(409, "BlobImmutableDueToPolicy", "put blob")
        await asyncio.sleep(1)
        assert rig.uploader.blob_problem is not None
        rig.backlog.discard_generation(key.generation_key)
        assert rig.uploader.blob_problem is None


@in_virtual_time
async def test_a_refusal_shows_that_the_store_answers_again() -> None:
    async with running(Rig()) as rig:
        keys = rig.add(10)
        rig.store.failing = PeerUnavailable("cannot reach it")
        await asyncio.sleep(600)
        rig.store.refused_names[segment_name(keys[0])] = failure_from_answer(400, "InvalidInput", "put blob")
        rig.store.failing = None
        await asyncio.sleep(MAX_RETRY_S + 1)
        assert {rig.state(key) for key in keys[1:]} == {SegmentState.STORED}


@in_virtual_time
async def test_a_lost_answer_is_found_out_to_have_been_a_success() -> None:
    async with running(Rig()) as rig:
        keys = rig.add(10)
        rig.store.lost_answers = 5
        await rig.until_settled()
        assert {rig.state(key) for key in keys} == {SegmentState.STORED}
        for key in keys:
            assert await rig.stored(key) == rig.contents[key]


@in_virtual_time
async def test_what_another_has_stored_is_a_success_only_with_the_same_digest_and_tag() -> None:
    async with running(Rig()) as rig:
        rig.store.held.clear()
        same, other_tag, other_digest = rig.add(3)
        rig.store.held.set()
        digest, tag = rig.contents[same][:16], rig.contents[same][-16:]
        await rig.put_another(same, digest, tag, rig.contents[same])
        await rig.put_another(other_tag, rig.contents[other_tag][:16], bytes(16))
        await rig.put_another(other_digest, bytes(16), rig.contents[other_digest][-16:])
        await rig.until_settled()
        states = [rig.state(key) for key in (same, other_tag, other_digest)]
        assert states == [SegmentState.STORED, SegmentState.DISPLACED, SegmentState.DISPLACED]
        assert await rig.stored(other_tag) == b"another" * 10, "the first one stays"
        assert rig.store.put_order.count(segment_name(same)) == 1, "what reads back is not put again"


@pytest.mark.parametrize("damage", ["zeros", "one-bit", "shorter"])
@in_virtual_time
async def test_a_stored_segment_that_does_not_read_back_is_put_again_before_its_record_is_given_up(damage: str) -> None:
    async with running(Rig()) as rig:
        (key,) = rig.add()
        content = rig.contents[key]
        flipped = bytearray(content)
        flipped[SIZE // 2] ^= 1
        bad = {"zeros": bytes(SIZE), "one-bit": bytes(flipped), "shorter": content[: SIZE // 2]}[damage]
        await rig.put_another(key, content[:16], content[-16:], bad)
        await rig.until_settled()
        assert rig.state(key) is SegmentState.STORED
        assert await rig.stored(key) == content
        properties = await rig.store.head_blob(REPLICATION_CONTAINER, segment_name(key))
        assert properties.metadata[SEGMENT_DIGEST_METADATA] == content[:16].hex()


@in_virtual_time
async def test_a_record_that_cannot_be_read_back_is_lost_and_never_sent() -> None:
    async with running(Rig()) as rig:
        rig.store.held.clear()
        first, second = rig.add(), rig.add()
        entry = rig.backlog.find(second[0])
        assert entry is not None
        inode = rig.files._written[rig.files.names()[0]]
        inode.content[entry.place.offset + 500] ^= 1
        rig.store.held.set()
        await rig.until_settled()
        assert rig.state(first[0]) is SegmentState.STORED
        assert rig.state(second[0]) is SegmentState.LOST
        assert await rig.stored(second[0]) is None
        assert rig.uploader.damaged_at_s is not None


@in_virtual_time
async def test_under_a_low_limit_fewer_go_at_once_so_that_each_is_through_in_time() -> None:
    async with running(Rig()) as rig:
        rig.store.held.clear()
        rig.throttle.set_limit(512_000)
        rig.add(8)
        await asyncio.sleep(1)
        assert rig.store.in_flight == 2
        rig.throttle.set_limit(None)
        rig.uploader.wake()
        await asyncio.sleep(1)
        assert rig.store.in_flight == 8
        rig.store.held.set()
        await rig.until_settled()


@in_virtual_time
async def test_what_is_under_way_when_it_stops_is_neither_stored_nor_lost() -> None:
    rig = Rig()
    async with running(rig):
        keys = rig.add(4)
        rig.store.held.clear()
        await asyncio.sleep(1)
        assert rig.schedule.in_flight == 4
    assert {rig.state(key) for key in keys} == {SegmentState.UPLOADING}
    assert len(list(rig.backlog.places())) == 4, "the next start finds them"


@in_virtual_time
async def test_an_outage_of_a_day_costs_no_more_wake_ups_than_probes() -> None:
    async with running(Rig()) as rig:
        loop, looks = asyncio.get_running_loop(), 0
        rig.add(30)
        rig.store.failing = PeerUnavailable("cannot reach it")
        begun_s, call_at = now_s(), loop.call_at

        def counted(*args: object, **kwargs: object) -> asyncio.TimerHandle:
            nonlocal looks
            looks += 1
            return call_at(*args, **kwargs)  # type: ignore[arg-type]  # as they came

        loop.call_at = counted  # type: ignore[method-assign]  # of this test's own loop
        await asyncio.sleep(86400)
        assert looks < 4 * 86400 / MAX_RETRY_S
        rig.backlog.discard_generation(rig.disk.key)
        looks = 0
        await asyncio.sleep(86400)
        assert looks < 4 * 86400 / MAX_RETRY_S, "with nothing left to upload there is nothing to look for"
        assert now_s() - begun_s == 2 * 86400
