"""Recovery points: snapshots of cuts, complete records, receipts that name the newest one, cuts that never complete. Called by pytest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, cast

import pytest

from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.replica_writer.point_ledger import PointLedger
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from replication.blob_client.api import BlobClient
from replication.epoch_manifest import ConsistentCut, EpochFlag
from replication.identifiers import CutId
from replication.store_layout import RECOVERY_POINTS_CONTAINER
from tests.harness.epochs import DiskHistory, new_uuid
from tests.harness.faulty_blob_client import ProcessDied
from tests.harness.writer_site import WriterSite


async def test_point_of_one_disk_is_recorded_with_its_snapshot() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(2, 3))
    cut = disk.cut()
    built = await disk.put(disk.random_batches(1, 2), cut=cut, flags=EpochFlag.APP_CONSISTENT | EpochFlag.FINAL)
    await disk.put(disk.random_batches(2, 3))
    await site.start().settle()
    point = await site.point(disk.item, cut.cut)
    assert point is not None
    assert (point.consistency, point.final, point.time_ns) == ("app", True, built.manifest.cut_time_ns)
    (part,) = point.disks
    assert (part.disk, part.generation, part.epoch, part.manifest_hash) == (disk.disk, 1, 2, built.hash.hex())
    assert await site.point_bytes(disk.item, cut.cut, disk.disk) == disk.cuts[cut.cut]
    assert await site.bytes_of(disk) == disk.model
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.newest_point is not None
    assert (receipt.newest_point.cut, receipt.newest_point.epoch) == (cut.cut, 2)


async def test_point_of_several_disks_waits_for_the_last_of_them() -> None:
    site = await WriterSite.make()
    disks = [site.disk()]
    disks += [site.disk(item=disks[0].item) for _ in range(2)]
    for disk in disks:
        await disk.open_generation()
    cut = disks[0].cut(*disks[1:])
    writer = site.start()
    for disk in disks[:2]:
        await disk.put(disk.random_batches(1, 2), cut=cut)
        await disk.put(disk.random_batches(1, 2))
    await writer.settle()
    assert await site.point(disks[0].item, cut.cut) is None
    early = await site.receipt(disks[0])
    assert early is not None
    assert early.newest_point is None
    assert early.epoch == 2, "the others go on meanwhile"
    await disks[2].put(disks[2].random_batches(1, 2), cut=cut)
    await writer.settle()
    for disk in disks:
        assert await site.point_bytes(disk.item, cut.cut, disk.disk) == disk.cuts[cut.cut]
        receipt = await site.receipt(disk)
        assert receipt is not None
        assert receipt.newest_point is not None
        assert receipt.newest_point.cut == cut.cut


async def test_snapshot_exists_before_the_next_epoch_is_applied() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    cuts = []
    for _ in range(5):
        cut = disk.cut()
        cuts.append(cut.cut)
        await disk.put(disk.random_batches(1, 2), cut=cut)
        await disk.put(disk.random_batches(1, 2))
    await site.start().settle()
    for cut_id in cuts:
        assert await site.point_bytes(disk.item, cut_id, disk.disk) == disk.cuts[cut_id]


async def test_a_point_whose_writer_died_before_its_snapshot_gets_it_before_the_next_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    cut = disk.cut()
    await disk.put(disk.random_batches(1, 2), cut=cut)
    await disk.put(disk.random_batches(1, 2))

    async def dies(_replica: ReplicaBlob) -> str:
        raise ProcessDied("snapshot_blob")

    with monkeypatch.context() as patched:
        patched.setattr(ReplicaBlob, "snapshot", dies)
        with pytest.raises(ProcessDied):
            await site.start().settle()
    await site.start().settle()
    assert await site.point_bytes(disk.item, cut.cut, disk.disk) == disk.cuts[cut.cut]
    assert await site.bytes_of(disk) == disk.model


async def test_cut_that_is_never_completed_is_dropped_only_after_a_later_point() -> None:
    site = await WriterSite.make()
    first = site.disk()
    second = site.disk(item=first.item)
    for disk in (first, second):
        await disk.open_generation()
    abandoned, complete = first.cut(second), first.cut(second)
    await first.put(first.random_batches(1, 2), cut=abandoned)
    await second.put_void()
    await second.put(second.random_batches(1, 1))
    writer = site.start()
    await writer.settle()
    assert len(await site.snapshots(first)) == 1, "kept as long as no later point is complete"
    await site.start().settle()
    assert len(await site.snapshots(first)) == 1, "also over a restart"
    writer = site.start()
    await first.put(first.random_batches(1, 2), cut=complete)
    await writer.settle()
    assert len(await site.snapshots(first)) == 2
    await second.put(second.random_batches(1, 2), cut=complete)
    await writer.settle()
    site.time.advance(10)
    await writer.settle()
    assert len(await site.snapshots(first)) == 1
    assert len(await site.snapshots(second)) == 1
    assert await site.names(RECOVERY_POINTS_CONTAINER) == [f"{first.item}/{complete.cut}"]
    for disk in (first, second):
        assert await site.point_bytes(disk.item, complete.cut, disk.disk) == disk.cuts[complete.cut]


async def test_disks_held_by_two_writers_complete_a_point_together() -> None:
    site = await WriterSite.make()
    first = site.disk()
    second = site.disk(item=first.item)
    await first.open_generation()
    one = site.start(lease_id=new_uuid(Random(1)))
    await one.settle()
    await second.open_generation()
    other = site.start(lease_id=new_uuid(Random(2)))
    assert await other.settle() == {first.disk: Outcome.STANDBY, second.disk: Outcome.IDLE}
    cut = first.cut(second)
    await first.put(first.random_batches(1, 2), cut=cut)
    await second.put(second.random_batches(1, 2), cut=cut)
    await one.settle()
    assert await site.point(first.item, cut.cut) is None
    await other.settle()
    assert await site.point(first.item, cut.cut) is not None
    site.time.advance(6)
    await one.settle()
    receipt = await site.receipt(first)
    assert receipt is not None
    assert receipt.newest_point is not None, "the first writer finds the record that the other one put"


async def test_disks_that_disagree_about_their_cut_make_no_point() -> None:
    site = await WriterSite.make()
    first = site.disk()
    second = site.disk(item=first.item)
    third = site.disk(item=first.item)
    for disk in (first, second):
        await disk.open_generation()
    cut = CutId(new_uuid(site.random))
    mine = ConsistentCut(cut, first.item, (first.disk, second.disk))
    theirs = ConsistentCut(cut, first.item, (first.disk, second.disk, third.disk))
    await first.put(first.random_batches(1, 1), cut=mine)
    await second.put(second.random_batches(1, 1), cut=theirs)
    await second.put(second.random_batches(1, 1))
    outcomes = await site.start().settle()
    assert set(outcomes.values()) == {Outcome.IDLE}, "the epochs themselves are good"
    assert await site.bytes_of(second) == second.model
    assert await site.names(RECOVERY_POINTS_CONTAINER) == []
    assert [await problem_code(site, disk) for disk in (first, second)] == ["cut-mismatch"] * 2


async def problem_code(site: WriterSite, disk: DiskHistory) -> str | None:
    receipt = await site.receipt(disk)
    assert receipt is not None
    return None if receipt.problem is None else receipt.problem.code


def problem_metric(site: WriterSite, disk: DiskHistory) -> float | None:
    labels = {"disk": disk.disk, "code": "cut-mismatch"}
    return site.registry.get_sample_value("blockferry_writer_disk_problem", labels)


async def cut_apart(site: WriterSite) -> tuple[list[DiskHistory], ConsistentCut]:
    """Two disks that are one write apart, and put parts of both under one name."""
    first = site.disk()
    second = site.disk(item=first.item)
    for disk in (first, second):
        await disk.open_generation()
    cut = ConsistentCut(CutId(new_uuid(site.random)), first.item, (first.disk, second.disk))
    await first.put(first.random_batches(1, 1), cut=cut)
    await first.put(first.random_batches(1, 1))
    await second.put(second.random_batches(1, 1))
    await second.put(second.random_batches(1, 1), cut=cut)
    return [first, second], cut


async def test_parts_of_different_instants_make_no_point_and_are_stated(caplog: pytest.LogCaptureFixture) -> None:
    site = await WriterSite.make()
    disks, cut = await cut_apart(site)
    writer = site.start()
    for _ in range(3):
        assert set((await writer.settle()).values()) == {Outcome.IDLE}, "nothing else waits for it"
        site.time.advance(6)
    assert await site.names(RECOVERY_POINTS_CONTAINER) == []
    for disk in disks:
        assert await site.bytes_of(disk) == disk.model
        assert await problem_code(site, disk) == "cut-mismatch"
        assert problem_metric(site, disk) == 1
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == len(disks), "once a disk"
    assert all(cut.cut in record.getMessage() and "different times" in record.getMessage() for record in logged)


async def test_snapshots_of_a_cut_that_is_refused_go_after_the_next_point() -> None:
    site = await WriterSite.make()
    disks, _ = await cut_apart(site)
    await site.start().settle()
    writer = site.start()
    await writer.settle()
    assert [await problem_code(site, disk) for disk in disks] == ["cut-mismatch"] * 2, "also over a restart"
    assert [len(await site.snapshots(disk)) for disk in disks] == [1, 1]
    whole = disks[0].cut(disks[1])
    for disk in disks:
        await disk.put(disk.random_batches(1, 2), cut=whole)
    await writer.settle()
    site.time.advance(10)
    await writer.settle()
    assert await site.names(RECOVERY_POINTS_CONTAINER) == [f"{disks[0].item}/{whole.cut}"]
    for disk in disks:
        assert await site.point_bytes(disk.item, whole.cut, disk.disk) == disk.cuts[whole.cut]
        assert len(await site.snapshots(disk)) == 1
        assert await problem_code(site, disk) is None
        assert problem_metric(site, disk) is None


async def test_a_cut_s_name_that_a_disk_gave_to_two_instants_makes_no_point() -> None:
    site = await WriterSite.make()
    first = site.disk()
    second = site.disk(item=first.item)
    for disk in (first, second):
        await disk.open_generation()
    cut = first.cut(second)
    first_instant_ns = first.instants[cut.cut]
    await first.put(first.random_batches(1, 1), cut=cut)
    first.instants[cut.cut] = second.instants[cut.cut] = first_instant_ns + 1
    await first.put(first.random_batches(1, 1), cut=cut)
    await second.put(second.random_batches(1, 1), cut=cut)
    writer = site.start()
    await writer.settle()
    site.time.advance(6)
    await writer.settle()
    assert await site.names(RECOVERY_POINTS_CONTAINER) == []
    assert [await problem_code(site, disk) for disk in (first, second)] == ["cut-mismatch"] * 2


async def test_a_part_that_comes_after_its_point_with_another_instant_is_no_part_of_it() -> None:
    site = await WriterSite.make()
    first = site.disk()
    second = site.disk(item=first.item)
    for disk in (first, second):
        await disk.open_generation()
    cut = first.cut(second)
    for disk in (first, second):
        await disk.put(disk.random_batches(1, 1), cut=cut)
    writer = site.start()
    await writer.settle()
    recorded = await site.point(first.item, cut.cut)
    at_the_cut = first.cuts[cut.cut]
    first.instants[cut.cut] += 1
    await first.put(first.random_batches(1, 1), cut=cut)
    await writer.settle()
    assert await problem_code(site, first) == "cut-mismatch"
    later = first.cut(second)
    for disk in (first, second):
        await disk.put(disk.random_batches(1, 1), cut=later)
    await writer.settle()
    site.time.advance(6)
    await writer.settle()
    assert await problem_code(site, first) is None
    assert [len(await site.snapshots(disk)) for disk in (first, second)] == [2, 2]
    assert await site.point(first.item, cut.cut) == recorded
    assert await site.point_bytes(first.item, cut.cut, first.disk) == at_the_cut


async def test_a_writer_that_lost_the_replica_says_nothing_of_its_cuts() -> None:
    site = await WriterSite.make()
    disks, _ = await cut_apart(site)
    writer = site.start()
    await writer.settle()
    registry = site.registry
    site.time.advance(61)
    await site.start(lease_id=new_uuid(Random(2))).settle()
    site.registry = registry
    await disks[1].put(disks[1].random_batches(1, 1))
    outcomes = await writer.settle()
    assert set(outcomes.values()) == {Outcome.STANDBY}
    assert [problem_metric(site, disk) for disk in disks] == [None, None]


async def test_newest_point_survives_a_change_of_writer() -> None:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    cut = disk.cut()
    await disk.put(disk.random_batches(1, 2), cut=cut)
    await site.start().settle()
    await disk.put(disk.random_batches(1, 2))
    site.time.advance(60)
    await site.start(lease_id=new_uuid(site.random)).settle()
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.epoch == 2
    assert receipt.newest_point is not None
    assert receipt.newest_point.cut == cut.cut


class _StalledBeforeItsRecord:
    """A client whose put of a recovery point's record takes so long that ``meanwhile`` happens before it."""

    def __init__(self, inner: BlobClient, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put_blob(self, container: str, *arguments: Any, **named: Any) -> Any:
        if container == RECOVERY_POINTS_CONTAINER:
            await self._meanwhile()
        return await self._inner.put_blob(container, *arguments, **named)


async def test_a_point_that_was_pruned_while_its_record_was_on_its_way_does_not_come_back() -> None:
    """The first writer stalls before the put; a second one records the point, and it is pruned: its record would name no snapshot."""
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    cut = disk.cut()
    await disk.put(disk.random_batches(1, 2), cut=cut)
    writer = site.start()
    await writer.settle()
    others = PointLedger(site.account, site.identity)
    (own,) = await others.snapshots_of(disk.disk)
    await others.delete_record(disk.item, cut.cut)  # as it was before the second writer recorded it

    async def recorded_and_pruned() -> None:
        assert await others.complete(own) is not None
        await others.delete_record(disk.item, cut.cut)
        await others.delete_snapshot(disk.disk, own.snapshot)

    stalled = PointLedger(cast("BlobClient", _StalledBeforeItsRecord(site.account, recorded_and_pruned)), site.identity)
    assert await stalled.complete(own) is None
    assert await site.names(RECOVERY_POINTS_CONTAINER) == []
    assert stalled.remembered(cut.cut) is None
