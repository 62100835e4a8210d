"""Generations that are over leave spool and memory; those that are merely quiet, or of which nobody can be asked, do not."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from prometheus_client import CollectorRegistry

from process_server.core.backlog import Backlog, SegmentEntry, SegmentState
from process_server.core.epoch_chain import PendingManifest
from process_server.core.spool_budget import SpoolBudget
from process_server.metrics import ProcessServerMetrics
from process_server.retirement import REVIEW_EVERY_S, Retirement
from process_server.spool.record import RecordHeader, RecordKind
from process_server.spool.spool import Spool
from replication.clock import Clock
from replication.control_plane import AssignedElsewhere, DataKeyGrant
from replication.errors import BlockferryError, NotFound, PeerProtocolError, PeerUnavailable, Permanent, Refused
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
    MachineId,
)
from tests.harness.process_time import in_virtual_time, virtual_clock
from tests.harness.simulated_disk import SimulatedDisk

DISK = DiskId("11111111-1111-4111-8111-111111111111")
OTHER = DiskId("33333333-3333-4333-8333-333333333333")
MACHINE = MachineId("22222222-2222-4222-8222-222222222222")
FIRST, SECOND = GenerationKey(DISK, GenerationId(1)), GenerationKey(DISK, GenerationId(2))


class Rig:
    """Generations with a segment each in a spool, and a configuration server that answers ``answers``."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.backlog = Backlog()
        self.spool = Spool(SimulatedDisk(), SpoolBudget(2**26), index_bytes=lambda: 0)
        list(self.spool.recover())
        self.spool.begin([])
        self.answer: BlockferryError | None = None
        self.asked: list[GenerationKey] = []
        self.forgotten: list[GenerationKey] = []
        self.batches = itertools.count()
        self.store_answers = True
        self.retirement = Retirement(
            self.backlog,
            self.spool,
            self,
            clock or Clock(),
            ProcessServerMetrics(CollectorRegistry()),
            (self.forgotten.append,),
            store_answers=lambda: self.store_answers,
        )

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        self.asked.append(key)
        if self.answer is not None:
            raise self.answer
        return DataKeyGrant(
            disk=key.disk, generation=key.generation, machine=MACHINE, size_bytes=512, data_key="0" * 64
        )

    def add(self, key: GenerationKey) -> BatchKey:
        batch = BatchKey(key.disk, key.generation, EpochId(1), AttemptNumber(1), BatchNumber(next(self.batches)))
        written = self.spool.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(b"segment"))
        entry = SegmentEntry(bytes(16), bytes(16), 7, SegmentState.WAITING, written.place, 0)
        assert self.backlog.add_segment(batch, MACHINE, entry)
        return batch

    def add_manifest(self, key: GenerationKey) -> None:
        epoch = EpochKey(key.disk, key.generation, EpochId(1))
        written = self.spool.append(RecordHeader(RecordKind.MANIFEST, 0, 0, 0), memoryview(b"manifest"))
        pending = PendingManifest(epoch, AttemptNumber(1), bytes(32), bytes(32), written.place, 0, missing=set())
        self.backlog.add_manifest(pending, MACHINE)

    @property
    def kept(self) -> set[GenerationKey]:
        return set(self.backlog.generations)


def test_a_newer_generation_of_the_disk_ends_the_older_ones_only() -> None:
    rig, other = Rig(), GenerationKey(OTHER, GenerationId(1))
    for key in (FIRST, SECOND, other):
        rig.add(key)
    rig.retirement.ships(FIRST)
    assert rig.kept == {FIRST, SECOND, other}
    rig.retirement.ships(SECOND)
    assert rig.kept == {SECOND, other}
    assert rig.forgotten == [FIRST]
    assert rig.backlog.waiting_bytes == 14


async def test_what_has_moved_since_the_last_review_is_not_asked_about() -> None:
    rig = Rig()
    rig.add(FIRST)
    await rig.retirement.review()
    assert not rig.asked
    rig.add(FIRST)
    await rig.retirement.review()
    assert not rig.asked
    await rig.retirement.review()
    assert rig.asked == [FIRST]
    assert rig.kept == {FIRST}, "it is only quiet"


async def test_a_generation_that_does_not_exist_any_more_is_given_up() -> None:
    rig = Rig()
    rig.add(FIRST)
    rig.answer = NotFound("cannot find it")
    await rig.retirement.review()
    await rig.retirement.review()
    assert rig.kept == set()
    assert rig.forgotten == [FIRST]
    assert list(rig.backlog.places()) == []


async def test_whether_a_generation_is_over_is_the_configuration_server_s_word_alone() -> None:
    rig = Rig()
    rig.add(FIRST)
    assert not await rig.retirement.is_over(FIRST)
    for kind in (PeerUnavailable, AssignedElsewhere, Refused):
        rig.answer = kind("cannot")
        assert not await rig.retirement.is_over(FIRST)
    assert rig.kept == {FIRST}
    rig.answer = NotFound("cannot find it")
    assert await rig.retirement.is_over(FIRST)
    assert (rig.kept, rig.forgotten) == (set(), [FIRST])


@pytest.mark.parametrize("kind", [PeerUnavailable, Refused, PeerProtocolError, Permanent, BlockferryError])
async def test_whatever_else_the_configuration_server_says_gives_up_nothing(kind: type[BlockferryError]) -> None:
    rig = Rig()
    rig.add(FIRST)
    rig.answer = kind("cannot")
    for _ in range(5):
        await rig.retirement.review()
    assert rig.kept == {FIRST}
    assert rig.backlog.waiting_bytes == 7


async def test_an_idle_generation_that_holds_nothing_leaves_the_memory_without_a_question() -> None:
    rig = Rig()
    batch = rig.add(FIRST)
    taken = rig.backlog.take(batch)
    rig.backlog.finish(batch, taken.place, SegmentState.STORED)
    rig.backlog.generations[FIRST].chain.decide(EpochId(1), bytes(32))
    rig.backlog.settle(FIRST)
    await rig.retirement.review()
    assert rig.kept == {FIRST}
    await rig.retirement.review()
    assert rig.kept == set()
    assert rig.forgotten == [FIRST]
    assert not rig.asked


@in_virtual_time
async def test_it_reviews_from_time_to_time_through_days_without_a_configuration_server() -> None:
    rig = Rig(virtual_clock())
    rig.add(FIRST)
    rig.answer = PeerUnavailable("cannot reach it")
    task = asyncio.create_task(rig.retirement.run())
    await asyncio.sleep(3 * 86400)
    assert rig.kept == {FIRST}
    assert len(rig.asked) == pytest.approx(3 * 86400 / REVIEW_EVERY_S, abs=3)
    rig.answer = NotFound("cannot find it")
    await asyncio.sleep(REVIEW_EVERY_S)
    assert rig.kept == set()
    task.cancel()
    await asyncio.wait([task])


async def test_what_belongs_to_another_process_server_is_given_up_once_it_cannot_move() -> None:
    rig = Rig()
    rig.add(FIRST)
    rig.add_manifest(FIRST)
    rig.answer = AssignedElsewhere("cannot give the data key")
    await rig.retirement.review()
    assert rig.kept == {FIRST}, "it has moved since the last review"
    rig.store_answers = False
    await rig.retirement.review()
    assert rig.kept == {FIRST}, "its manifest may be the first in the store when that is back"
    rig.store_answers = True
    await rig.retirement.review()
    assert rig.kept == set()
    assert rig.forgotten == [FIRST]
    assert list(rig.backlog.places()) == []


async def test_segments_without_a_manifest_that_belong_elsewhere_are_given_up_even_while_the_store_is_away() -> None:
    rig = Rig()
    rig.add(FIRST)
    rig.answer, rig.store_answers = AssignedElsewhere("cannot give the data key"), False
    await rig.retirement.review()
    await rig.retirement.review()
    assert rig.kept == set()
