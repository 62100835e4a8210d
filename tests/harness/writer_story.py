"""A story that a replica writer lives through, with an auditor between writer and store: nothing is stated that is not so.

Called by ``tests/property/test_replica_writer_crashes.py`` and ``tests/contract/test_replica_writer_contract.py``. The story has
overlapping batches, epochs of one group and of several, void epochs, points of one and of two disks, an abandoned cut, a change of
generation with growth, and made disks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, cast

from azure_sink.core.replica_metadata import decode_state
from azure_sink.core.replica_state import Phase, Position
from replication.blob_client.api import BlobClient
from replication.documents import WriterPublicKey
from replication.epoch_manifest import EpochFlag
from replication.identifiers import DiskId
from replication.store_documents import (
    CloseGeneration,
    GenerationBase,
    MakeDiskItem,
    MakeDisks,
    Receipt,
    RecoveryPoint,
    WriterRequest,
)
from replication.store_layout import (
    DISKS_CONTAINER,
    RECOVERY_POINTS_CONTAINER,
    REPLICAS_CONTAINER,
    REPLICATION_CONTAINER,
)
from tests.harness.epochs import DiskHistory, new_uuid
from tests.harness.writer_site import MIB, WriterSite

SIZE_BYTES: Final = MIB + 3 * 512
GROWN_BYTES: Final = 2 * MIB + 512


@dataclass(slots=True)
class Story:
    """What happens to two disks of one item; each ``yield`` is a moment at which the writer must have caught up to go on."""

    site: WriterSite
    first: DiskHistory
    second: DiskHistory
    completed_cuts: dict[str, tuple[DiskHistory, ...]]
    abandoned_cut: str = ""
    made_from: str = ""

    @classmethod
    def begin(cls, site: WriterSite) -> Story:
        first = site.disk(SIZE_BYTES)
        second = site.disk(SIZE_BYTES, first.item)
        return cls(site, first, second, {})

    def _complete(self, cut: str, *disks: DiskHistory) -> None:
        self.completed_cuts[cut] = disks

    async def tell(self) -> AsyncIterator[WriterRequest | None]:
        first, second = self.first, self.second
        await first.open_generation()
        await second.open_generation()
        await first.put(first.random_batches(5, 4))
        await second.put(second.random_batches(2, 3))
        yield None
        cut = first.cut(second)
        await first.put(first.random_batches(1, 3), cut=cut)
        await first.put(first.random_batches(2, 2))
        yield None
        await second.put(second.random_batches(1, 2), cut=cut)
        self._complete(cut.cut, first, second)
        abandoned = first.cut(second)
        self.abandoned_cut = abandoned.cut
        await first.put(first.random_batches(1, 1), cut=abandoned)
        await second.put_void()
        await first.put_void(attempt=2)
        await first.put(())
        alone = first.cut()
        await first.put(first.random_batches(3, 2), cut=alone, flags=EpochFlag.APP_CONSISTENT)
        self._complete(alone.cut, first)
        yield None
        close = CloseGeneration(request=new_uuid(self.site.random), disk=first.disk, generation=1)
        await self.site.ask(close)
        yield close
        answer = await self.site.answer(close)
        assert answer is not None
        assert answer.final_epoch == first.epoch
        first.size_bytes = GROWN_BYTES
        await first.open_generation(GenerationBase(generation=1, epoch=first.built_epochs(1)))
        await first.put(first.random_batches(4, 4))
        last = first.cut(second)
        await first.put(first.random_batches(1, 2), cut=last, flags=EpochFlag.FINAL)
        await second.put(second.random_batches(4, 2), cut=last, flags=EpochFlag.FINAL)
        self._complete(last.cut, first, second)
        self.made_from = last.cut
        yield None
        make = MakeDisks(
            request=new_uuid(self.site.random),
            item=first.item,
            cut=last.cut,
            disks=[
                MakeDiskItem(disk=first.disk, name="first-Test"),
                MakeDiskItem(disk=second.disk, name="second-Test"),
            ],
        )
        await self.site.ask(make)
        yield make

    async def check_end(self) -> None:
        """Bytes, points, receipts and what is left over, at the end of the story."""
        site = self.site
        for disk in (self.first, self.second):
            assert await site.bytes_of(disk) == disk.model
            receipt = await site.receipt(disk)
            assert receipt is not None
            assert (receipt.epoch, receipt.manifest_hash) == (disk.epoch, disk.previous_hash.hex())
            assert receipt.problem is None
            assert receipt.newest_point is not None
            assert receipt.newest_point.cut == self.made_from
            made = "first-Test" if disk is self.first else "second-Test"
            assert (await site.blob_bytes(DISKS_CONTAINER, made))[: disk.size_bytes] == disk.cuts[self.made_from]
        for cut, disks in self.completed_cuts.items():
            for disk in disks:
                assert await site.point_bytes(self.first.item, cut, disk.disk) == disk.cuts[cut]
        recorded = {name.split("/")[1] for name in await site.names(RECOVERY_POINTS_CONTAINER)}
        assert recorded == set(self.completed_cuts)
        snapshots = {disk.disk: len(await site.snapshots(disk)) for disk in (self.first, self.second)}
        assert snapshots == {self.first.disk: 3, self.second.disk: 2}, "snapshots of abandoned cuts are gone, no others"
        closed = await site.receipt(self.first, 1)
        assert closed is not None
        assert closed.closed


class Auditor:
    """Between a writer and its account: nothing is stated that is not so."""

    def __init__(self, inner: BlobClient, account: BlobClient, site: WriterSite, disks: list[DiskHistory]) -> None:
        self._inner = inner
        self._account = account
        self._site = site
        self._key: WriterPublicKey = site.identity.public
        self._disks: dict[str, DiskHistory] = {disk.disk: disk for disk in disks}

    def as_client(self) -> BlobClient:
        return cast("BlobClient", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put_blob(self, container: str, name: str, body: bytes, **kwargs: Any) -> Any:
        if container == REPLICATION_CONTAINER and name.endswith("/receipt"):
            await self._check_receipt(self._key.open_signed(Receipt, body))
        if container == RECOVERY_POINTS_CONTAINER:
            await self._check_point(self._key.open_signed(RecoveryPoint, body))
        return await self._inner.put_blob(container, name, body, **kwargs)

    async def _check_receipt(self, receipt: Receipt) -> None:
        state = decode_state((await self._account.head_blob(REPLICAS_CONTAINER, receipt.disk)).metadata)
        stated = Position(receipt.generation, receipt.epoch)
        assert state.applied == stated, "a receipt ahead of, or behind, its replica"
        assert (state.phase is Phase.CLOSED) == receipt.closed
        disk = self._disks[receipt.disk]
        if receipt.epoch and state.applying_epoch is None:
            size_bytes = len(disk.after[receipt.generation, receipt.epoch])
            held = await self._site.bytes_of(DiskId(receipt.disk), size_bytes=size_bytes)
            assert held == disk.after[receipt.generation, receipt.epoch]

    async def _check_point(self, point: RecoveryPoint) -> None:
        for part in point.disks:
            held = await self._site.bytes_of(DiskId(part.disk), part.snapshot, part.size_bytes)
            assert held == self._disks[part.disk].cuts[point.cut]


async def catch_up(
    story: Story, client: BlobClient | None, waited_for: WriterRequest | None, lease_id: str | None = None
) -> None:
    """One writer process, until nothing is left to do."""
    site = story.site
    inner: BlobClient = site.account if client is None else client
    audited = Auditor(inner, site.account, site, [story.first, story.second]).as_client()
    writer = site.start(audited, lease_id=lease_id)
    try:
        for _ in range(40):
            await writer.settle()
            if waited_for is None or await is_answered(site, waited_for):
                site.time.advance(6)  # longer than a follower waits before it looks for other disks' points again
                await writer.settle()
                if await is_caught_up(story):
                    return
            site.time.advance(20)
        raise AssertionError("the writer does not catch up")
    finally:
        writer.abandon()


async def is_answered(site: WriterSite, request: WriterRequest) -> bool:
    answer = await site.answer(request)
    return answer is not None and answer.state != "in-progress"


async def is_caught_up(story: Story) -> bool:
    for disk in (story.first, story.second):
        receipt = await story.site.receipt(disk)
        if receipt is None or receipt.epoch != disk.epoch:
            return False
    return True
