"""Manifests on their way to the store: after their segments, in order, once decided never again; whatever the store answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from process_server.core.backlog import Backlog
from process_server.core.backoff import MAX_RETRY_S, SLOW_RETRY_S, StoreGate
from process_server.core.epoch_chain import PendingManifest, ReceiptFacts
from process_server.core.spool_budget import SpoolBudget
from process_server.metrics import ProcessServerMetrics
from process_server.receipt_watch import ReceiptWatch
from process_server.spool.record import RecordHeader, RecordKind
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoreInquiry
from process_server.uploader.manifest_courier import ManifestCourier
from replication.blob_client.failures import failure_from_answer
from replication.data_plane import BatchAcknowledgement
from replication.epoch_manifest import NO_MANIFEST, manifest_hash
from replication.errors import BlockferryError, PeerUnavailable
from replication.identifiers import AttemptNumber, BatchNumber, EpochId, GenerationKey, MachineId
from replication.store_layout import MANIFEST_HASH_METADATA, REPLICATION_CONTAINER, manifest_name
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabWriter, ShippedDisk
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock
from tests.harness.simulated_disk import SimulatedDisk
from tests.harness.unreliable_store import UnreliableStore

RANDOM = Random(81)


class Rig:
    """Manifests of empty epochs (of one disk unless told otherwise) in a spool, and the courier."""

    def __init__(self) -> None:
        clock = virtual_clock()
        self.store = UnreliableStore()
        self.writer = LabWriter(self.store)
        self.backlog = Backlog()
        self.files = SimulatedDisk()
        self.spool = Spool(self.files, SpoolBudget(2**26), index_bytes=lambda: 0)
        list(self.spool.recover())
        self.spool.begin([])
        self.gate = StoreGate()
        self.receipts = ReceiptWatch(self.store, clock, self._learn)
        self.disk = self.new_disk()
        self.courier = ManifestCourier(
            self.backlog,
            self.spool,
            self.store,
            StoreInquiry(self.store),
            self.receipts,
            self.gate,
            clock,
            ProcessServerMetrics(CollectorRegistry()),
            chance=lambda: 1.0,
        )

    def new_disk(self) -> ShippedDisk:
        return ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))

    def _learn(self, key: GenerationKey, facts: ReceiptFacts) -> None:
        generation = self.backlog.generations.get(key)
        if generation is not None:
            generation.chain.learn(facts)
            self.courier.settle(key)

    def add(
        self,
        epoch: int,
        previous: bytes,
        *,
        attempt: int = 1,
        missing: set[int] | None = None,
        disk: ShippedDisk | None = None,
    ) -> PendingManifest:
        disk = disk or self.disk
        encoded = disk.manifest(epoch, [], attempt=attempt, previous_hash=previous)
        written = self.spool.append(RecordHeader(RecordKind.MANIFEST, 0, 0, 0), memoryview(encoded))
        batches = {BatchNumber(batch) for batch in missing or set()}
        pending = PendingManifest(
            disk.epoch_key(epoch), AttemptNumber(attempt), manifest_hash(encoded), previous, written.place, 0, batches
        )
        self.backlog.add_manifest(pending, disk.machine)
        self.courier.nudge(disk.key)
        return pending

    def chain(self, *epochs: int) -> list[PendingManifest]:
        manifests, previous = [], NO_MANIFEST
        for epoch in epochs:
            manifests.append(self.add(epoch, previous))
            previous = manifests[-1].manifest_hash
        return manifests

    async def put_foreign(self, epoch: int, content: bytes = b"another manifest") -> bytes:
        """Another process server was first. Returns its hash."""
        await self.store.create_container(REPLICATION_CONTAINER)
        digest = manifest_hash(content)
        await self.store.put_blob(
            REPLICATION_CONTAINER,
            manifest_name(self.disk.epoch_key(epoch)),
            content,
            metadata={MANIFEST_HASH_METADATA: digest.hex()},
        )
        return digest

    @property
    def put(self) -> list[str]:
        return self.store.put_order

    def names(self, *epochs: int) -> list[str]:
        return [manifest_name(self.disk.epoch_key(epoch)) for epoch in epochs]

    def pending(self) -> list[int]:
        return sorted(manifest.key.epoch for manifest in self.backlog.pending_manifests())

    def problem(self) -> BlockferryError | None:
        return self.courier.problem

    async def settled(self, within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while self.pending():
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Rig]:
    rig = Rig()
    tasks = [asyncio.create_task(rig.courier.run()), asyncio.create_task(rig.receipts.run())]
    try:
        yield rig
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)


@in_virtual_time
async def test_manifests_are_put_in_the_order_of_their_chain() -> None:
    async with running() as rig:
        first, second, third = rig.chain(1, 2, 3)
        assert (first.key.epoch, second.key.epoch, third.key.epoch) == (1, 2, 3)
        await rig.settled()
        assert rig.put == rig.names(1, 2, 3)
        assert list(rig.backlog.places()) == []
        assert rig.backlog.generations[rig.disk.key].chain.decided_through == 3


@in_virtual_time
async def test_nothing_is_put_while_a_segment_of_the_lowest_epoch_is_missing() -> None:
    async with running() as rig:
        first = rig.add(1, NO_MANIFEST, missing={0})
        rig.add(2, first.manifest_hash)
        await asyncio.sleep(3600)
        assert rig.put == []
        first.missing.clear()
        rig.courier.segment_settled(rig.disk.batch_key(1, 0))
        await rig.settled()
        assert rig.put == rig.names(1, 2)


@in_virtual_time
async def test_a_manifest_whose_predecessor_is_elsewhere_waits_for_it() -> None:
    async with running() as rig:
        content = b"the one before, by another process server"
        rig.add(2, manifest_hash(content))
        await asyncio.sleep(600)
        assert rig.put == []
        assert rig.store.calls["head_blob"] < 600, "it looks now and then"
        await rig.put_foreign(1, content)
        await rig.settled(5)
        assert rig.put[-1:] == rig.names(2)


@in_virtual_time
async def test_a_predecessor_that_is_applied_and_gone_is_known_by_its_receipt() -> None:
    async with running() as rig:
        digest = b"h" * 32
        await rig.writer.apply(rig.disk, 7, digest)
        rig.add(8, digest)
        await rig.settled(5)
        assert rig.put[-1:] == rig.names(8)


@in_virtual_time
async def test_the_first_manifest_in_the_store_decides_and_those_that_chain_to_the_other_are_dropped() -> None:
    async with running() as rig:
        rig.store.held.clear()
        rig.chain(1, 2, 3)
        rig.store.held.set()
        digest = await rig.put_foreign(1)
        await asyncio.sleep(60)
        assert rig.put == rig.names(1), "only the other one"
        assert rig.backlog.generations[rig.disk.key].chain.hash_of(EpochId(1)) == digest
        assert rig.pending() == [3], "somebody else may still decide epoch 2"
        await rig.put_foreign(2)
        await rig.settled()
        assert rig.put == rig.names(1, 2)
        assert list(rig.backlog.places()) == []


@in_virtual_time
async def test_a_lost_answer_is_found_out_to_have_been_a_success() -> None:
    async with running() as rig:
        rig.store.lost_answers = 1
        rig.chain(1, 2)
        await rig.settled()
        assert rig.put == rig.names(1, 2)


@pytest.mark.parametrize(
    ("failure", "mended_within_s"),
    [
        (failure_from_answer(503, "ServerBusy", "put blob"), MAX_RETRY_S + 1),
        (failure_from_answer(500, "InternalError", "put blob"), MAX_RETRY_S + 1),
        (PeerUnavailable("cannot reach it"), MAX_RETRY_S + 1),
        (failure_from_answer(403, "AuthenticationFailed", "put blob"), SLOW_RETRY_S + 1),
    ],
)
def test_an_outage_of_hours_drops_nothing_and_ends_by_itself(failure: BlockferryError, mended_within_s: float) -> None:
    @in_virtual_time
    async def check() -> None:
        async with running() as rig:
            rig.store.failing = failure
            rig.chain(1, 2)
            await asyncio.sleep(14400)
            assert rig.pending() == [1, 2]
            assert rig.store.calls["put_blob"] <= 14400 / MAX_RETRY_S * 1.3
            rig.store.failing = None
            await rig.settled(mended_within_s)

    check()


@in_virtual_time
async def test_another_s_success_ends_the_wait_for_the_next_try() -> None:
    async with running() as rig:
        rig.chain(1)
        rig.store.failing = failure_from_answer(403, "AuthenticationFailed", "put blob")
        await asyncio.sleep(SLOW_RETRY_S + 1)
        assert rig.pending() == [1]
        rig.store.failing = None
        rig.gate.succeeded()
        await rig.settled(within_s=1)


@in_virtual_time
async def test_a_refused_manifest_holds_up_no_other_disk_and_is_tried_again() -> None:
    async with running() as rig:
        other = rig.new_disk()
        refused = rig.names(1)[0]
        rig.store.refused_names[refused] = failure_from_answer(400, "InvalidInput", "put blob")
        rig.chain(1)
        for epoch in range(1, 4):
            previous = NO_MANIFEST if epoch == 1 else other.previous_hash
            pending = rig.add(epoch, previous, disk=other)
            other.previous_hash = pending.manifest_hash
            await asyncio.sleep(SLOW_RETRY_S / 2)
        assert rig.pending() == [1]
        assert rig.problem() is not None, "though the other disk's went through"
        assert rig.gate.problem is None
        rig.store.refused_names.clear()
        await rig.settled(SLOW_RETRY_S + 1)
        assert rig.problem() is None


@in_virtual_time
async def test_the_problem_of_a_generation_that_is_over_is_none_any_more() -> None:
    async with running() as rig:
        rig.store.refused_names[""] = failure_from_answer(400, "InvalidInput", "put blob")
        rig.chain(1)
        await asyncio.sleep(1)
        assert rig.problem() is not None
        rig.backlog.discard_generation(rig.disk.key)
        assert rig.problem() is None


@in_virtual_time
async def test_a_manifest_that_cannot_be_read_back_is_given_up_for_its_agent_to_put_again() -> None:
    async with running() as rig:
        rig.store.failing = PeerUnavailable("cannot reach it")
        (pending,) = rig.chain(1)
        await asyncio.sleep(1)
        rig.files._written[rig.files.names()[0]].content[pending.place.offset + 200] ^= 1
        rig.store.failing = None
        await rig.settled()
        assert rig.put == []
        rig.add(1, NO_MANIFEST)
        await rig.settled()
        assert rig.put == rig.names(1)


@in_virtual_time
async def test_segments_that_only_the_store_may_have_are_asked_for_before_the_manifest_goes() -> None:
    async with running() as rig:
        frames = [rig.disk.frame(1, 0)]
        rig.disk.acknowledged[frames[0].key] = BatchAcknowledgement(tag="ab" * 16, segment_bytes=70)
        encoded = rig.disk.manifest(1, frames)
        written = rig.spool.append(RecordHeader(RecordKind.MANIFEST, 0, 0, 0), memoryview(encoded))
        pending = PendingManifest(
            rig.disk.epoch_key(1), AttemptNumber(1), manifest_hash(encoded), NO_MANIFEST, written.place, 0, set(),
            unverified=True,
        )  # fmt: skip
        rig.backlog.add_manifest(pending, rig.disk.machine)
        rig.courier.nudge(rig.disk.key)
        await rig.settled()
        assert rig.put == [], "the store does not have it: the epoch needs a new attempt"
        assert now_s() < 5
