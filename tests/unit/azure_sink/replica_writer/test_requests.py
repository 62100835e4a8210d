"""Requests and their signed answers: disks made, deleted and hashed, points pruned, replicas deleted. Called by pytest."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.replica_writer.made_disks import DiskHash
from azure_sink.replica_writer.replica_writer import ReplicaWriter
from azure_sink.replica_writer.request_desk import RequestWithdrawn, RequestWork
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.documents import WriterIdentity
from replication.errors import Conflict, PeerUnavailable
from replication.identifiers import CutId
from replication.store_documents import (
    DeleteDisks,
    DeleteReplicas,
    HashDisk,
    MakeDiskItem,
    MakeDisks,
    PrunePoints,
    WriterAnswer,
)
from replication.store_layout import (
    DISKS_CONTAINER,
    RECOVERY_POINTS_CONTAINER,
    REPLICAS_CONTAINER,
    REPLICATION_CONTAINER,
    answer_name,
    request_name,
)
from tests.harness.epochs import DiskHistory, Write, new_uuid
from tests.harness.faulty_blob_client import LossyBlobClient
from tests.harness.writer_site import MIB, WriterSite


async def replicated(
    site: WriterSite, points: int = 1, disks: int = 1
) -> tuple[ReplicaWriter, list[DiskHistory], list[CutId]]:
    """Disks of one item with ``points`` recovery points."""
    made = [site.disk(MIB + 512)]
    made += [site.disk(MIB, item=made[0].item) for _ in range(disks - 1)]
    for disk in made:
        await disk.open_generation()
    cuts = []
    for _ in range(points):
        cut = made[0].cut(*made[1:])
        cuts.append(cut.cut)
        for disk in made:
            await disk.put(disk.random_batches(2, 3), cut=cut)
            await disk.put(disk.random_batches(1, 1))
    writer = site.start()
    await writer.settle()
    return writer, made, cuts


def make(site: WriterSite, disk: DiskHistory, cut: CutId, name: str = "web01-Test") -> MakeDisks:
    return MakeDisks(
        request=new_uuid(site.random), item=disk.item, cut=cut, disks=[MakeDiskItem(disk=disk.disk, name=name)]
    )


# -- make-disks -----------------------------------------------------------------------------------------------


async def test_made_disk_is_the_recovery_point() -> None:
    site = await WriterSite.make()
    writer, (disk, other), (cut,) = await replicated(site, disks=2)
    request = MakeDisks(
        request=new_uuid(site.random),
        item=disk.item,
        cut=cut,
        disks=[MakeDiskItem(disk=disk.disk, name="a-Test"), MakeDiskItem(disk=other.disk, name="b-Test")],
    )
    answer = await site.asked(writer, request)
    assert answer.state == "succeeded"
    assert [(made.disk, made.container, made.name, made.size_bytes) for made in answer.disks] == [
        (disk.disk, DISKS_CONTAINER, "a-Test", disk.size_bytes),
        (other.disk, DISKS_CONTAINER, "b-Test", other.size_bytes),
    ]
    assert answer.done_bytes == answer.total_bytes == disk.size_bytes + other.size_bytes
    for each, name in ((disk, "a-Test"), (other, "b-Test")):
        assert (await site.blob_bytes(DISKS_CONTAINER, name))[: each.size_bytes] == each.cuts[cut]


async def test_same_disk_again_is_a_success_and_not_copied_again() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    await site.asked(writer, make(site, disk, cut))
    await site.account.put_pages(DISKS_CONTAINER, "web01-Test", 0, b"booted!!" * 64)
    answer = await site.asked(writer, make(site, disk, cut))
    assert answer.state == "succeeded"
    assert (await site.blob_bytes(DISKS_CONTAINER, "web01-Test"))[:8] == b"booted!!"


async def test_copy_that_was_interrupted_is_made_again() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    # What a crash in the midst of a copy leaves: the blob with its metadata, its bytes not yet.
    metadata = {"disk": disk.disk, "cut": cut, "sizebytes": str(disk.size_bytes)}
    await site.account.create_page_blob(DISKS_CONTAINER, "web01-Test", 2 * MIB + 512, metadata=metadata)
    answer = await site.asked(writer, make(site, disk, cut))
    assert answer.state == "succeeded"
    assert (await site.blob_bytes(DISKS_CONTAINER, "web01-Test"))[: disk.size_bytes] == disk.cuts[cut]


@pytest.mark.parametrize("taken_by", ["foreign", "another cut"])
async def test_name_taken_by_something_else_fails_and_nothing_is_made(taken_by: str) -> None:
    site = await WriterSite.make()
    writer, (disk,), cuts = await replicated(site, points=2)
    if taken_by == "foreign":
        await site.account.create_page_blob(DISKS_CONTAINER, "taken", 512)
    else:
        await site.asked(writer, make(site, disk, cuts[0], "taken"))
    request = MakeDisks(
        request=new_uuid(site.random),
        item=disk.item,
        cut=cuts[1],
        disks=[MakeDiskItem(disk=disk.disk, name="free"), MakeDiskItem(disk=disk.disk, name="taken")],
    )
    answer = await site.asked(writer, request)
    assert answer.state == "failed"
    assert answer.problem is not None
    assert answer.problem.code == "conflict"
    assert await site.names(DISKS_CONTAINER) == ["taken"]


async def test_disks_are_made_only_of_what_is_recorded() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    stranger = site.disk()
    for request in (
        make(site, disk, CutId(new_uuid(site.random))),
        make(site, stranger, cut),
        MakeDisks(
            request=new_uuid(site.random),
            item=disk.item,
            cut=cut,
            disks=[MakeDiskItem(disk=stranger.disk, name="x")],
        ),
    ):
        answer = await site.asked(writer, request)
        assert answer.state == "failed"
        assert answer.problem is not None
        assert answer.problem.code == "not-found"
    assert await site.names(DISKS_CONTAINER) == []


async def test_record_that_the_writer_did_not_sign_makes_no_disk() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    point = await site.point(disk.item, cut)
    assert point is not None
    await site.account.put_blob(RECOVERY_POINTS_CONTAINER, f"{disk.item}/{cut}", WriterIdentity.generate().sign(point))
    answer = await site.asked(writer, make(site, disk, cut))
    assert answer.state == "failed"
    assert answer.problem is not None
    assert answer.problem.code == "integrity"


# -- delete-disks, hash-disk ----------------------------------------------------------------------------------


async def test_deleting_a_disk_that_is_gone_is_a_success() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    await site.asked(writer, make(site, disk, cut))
    for _ in range(2):
        request = DeleteDisks(request=new_uuid(site.random), names=["web01-Test", "never-was"])
        assert (await site.asked(writer, request)).state == "succeeded"
        assert await site.names(DISKS_CONTAINER) == []


@pytest.mark.parametrize("size_bytes", [MIB + 512, 9 * MIB + 512, 512])
async def test_hash_is_over_exactly_the_disks_bytes(size_bytes: int) -> None:
    site = await WriterSite.make()
    disk = site.disk(size_bytes)
    await disk.open_generation()
    cut = disk.cut()
    writes = [Write(0, site.random.randbytes(512)), Write(size_bytes - 512, site.random.randbytes(512))]
    await disk.put([writes[-1:] if size_bytes == 512 else writes], cut=cut)
    writer = site.start()
    await writer.settle()
    await site.asked(writer, make(site, disk, cut.cut))
    request = HashDisk(request=new_uuid(site.random), name="web01-Test", size_bytes=size_bytes)
    answer = await site.asked(writer, request)
    assert answer.state == "succeeded"
    assert answer.sha256 == hashlib.sha256(disk.model).hexdigest()
    assert (answer.done_bytes, answer.total_bytes) == (size_bytes, size_bytes)


async def test_hash_of_another_size_or_of_nothing_fails() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    await site.asked(writer, make(site, disk, cut))
    for name, size_bytes in (("web01-Test", disk.size_bytes + 512), ("web01-Test", 512), ("nothing", 512)):
        request = HashDisk(request=new_uuid(site.random), name=name, size_bytes=size_bytes)
        answer = await site.asked(writer, request)
        assert (answer.state, answer.sha256) == ("failed", None)


async def test_hash_of_a_disk_that_changes_meanwhile_is_no_hash() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    await site.asked(writer, make(site, disk, cut))
    properties = await site.account.head_blob(DISKS_CONTAINER, "web01-Test")
    await site.account.clear_pages(DISKS_CONTAINER, "web01-Test", MIB, 512)
    work = RequestWork(site.account, site.identity, site.time.clock, new_uuid(site.random), site.lease_id)
    with pytest.raises(Conflict):
        await DiskHash(site.account, DISKS_CONTAINER, "web01-Test", 512, properties).run(work)


async def test_withdrawn_request_stops_the_work() -> None:
    site = await WriterSite.make()
    _, (disk,), (cut,) = await replicated(site)
    request = make(site, disk, cut)
    work = RequestWork(site.account, site.identity, site.time.clock, request.request, site.lease_id)
    with pytest.raises(RequestWithdrawn):
        await work.report(1, 2, now=True)


async def test_progress_is_stated_at_most_once_a_second() -> None:
    site = await WriterSite.make()
    request = DeleteDisks(request=new_uuid(site.random), names=["x"])
    await site.ask(request)
    name = answer_name(request.request)
    await site.account.put_blob(REPLICATION_CONTAINER, name, b"")
    await site.account.acquire_lease(REPLICATION_CONTAINER, name, 60, site.lease_id)
    work = RequestWork(site.account, site.identity, site.time.clock, request.request, site.lease_id)
    await work.report(1, 10)
    assert (await site.account.head_blob(REPLICATION_CONTAINER, name)).length_bytes == 0
    site.time.advance(1.1)
    await work.report(2, 10)
    await work.report(3, 10)
    answer = await site.answer(request)
    assert answer is not None
    assert (answer.state, answer.done_bytes, answer.total_bytes) == ("in-progress", 2, 10)


async def test_progress_that_arrives_late_does_not_undo_the_answer() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    request = make(site, disk, cut)
    late: list[Callable[[], Awaitable[object]]] = []

    class DelaysProgress:
        def __getattr__(self, name: str) -> object:
            return getattr(site.account, name)

        async def put_blob(self, container: str, name: str, body: bytes, **kwargs: Any) -> object:
            if name == answer_name(request.request) and b"in-progress" in body and kwargs.get("if_match") and not late:
                late.append(lambda: site.account.put_blob(container, name, body, **kwargs))
                raise PeerUnavailable("cannot hear the answer")
            return await site.account.put_blob(container, name, body, **kwargs)

    slow: BlobClient = DelaysProgress()  # type: ignore[assignment]
    await writer.close()
    await site.ask(request)
    writer = site.start(slow)
    await writer.settle()
    site.time.advance(5)
    await writer.settle()
    with pytest.raises(BlobConflict):
        await late[0]()
    answer = await site.answer(request)
    assert answer is not None
    assert answer.state == "succeeded"


# -- prune-points ---------------------------------------------------------------------------------------------


async def test_pruned_points_and_their_snapshots_are_gone() -> None:
    site = await WriterSite.make()
    writer, (disk, other), cuts = await replicated(site, points=3, disks=2)
    request = PrunePoints(request=new_uuid(site.random), item=disk.item, cuts=list(cuts[:2]))
    assert (await site.asked(writer, request)).state == "succeeded"
    assert await site.names(RECOVERY_POINTS_CONTAINER) == [f"{disk.item}/{cuts[2]}"]
    for each in (disk, other):
        assert len(await site.snapshots(each)) == 1
        assert await site.point_bytes(each.item, cuts[2], each.disk) == each.cuts[cuts[2]]
    again = PrunePoints(request=new_uuid(site.random), item=disk.item, cuts=list(cuts[:2]))
    assert (await site.asked(writer, again)).state == "succeeded"


async def test_newest_point_is_refused_and_nothing_is_pruned() -> None:
    site = await WriterSite.make()
    writer, (disk,), cuts = await replicated(site, points=3)
    request = PrunePoints(request=new_uuid(site.random), item=disk.item, cuts=[cuts[0], cuts[2]])
    answer = await site.asked(writer, request)
    assert answer.state == "failed"
    assert answer.problem is not None
    assert answer.problem.code == "refused"
    assert len(await site.names(RECOVERY_POINTS_CONTAINER)) == 3
    assert len(await site.snapshots(disk)) == 3


async def test_pruning_does_not_touch_a_cut_that_waits_for_other_disks() -> None:
    site = await WriterSite.make()
    writer, (disk, other), _ = await replicated(site, points=1, disks=2)
    waiting = disk.cut(other)
    await disk.put(disk.random_batches(1, 1), cut=waiting)
    await writer.settle()
    request = PrunePoints(request=new_uuid(site.random), item=disk.item, cuts=[waiting.cut])
    assert (await site.asked(writer, request)).state == "succeeded"
    await other.put(other.random_batches(1, 1), cut=waiting)
    await writer.settle()
    assert await site.point_bytes(disk.item, waiting.cut, disk.disk) == disk.cuts[waiting.cut]


async def test_half_pruned_point_does_not_come_back() -> None:
    site = await WriterSite.make()
    _, (disk,), cuts = await replicated(site, points=2)
    await site.account.delete_blob(RECOVERY_POINTS_CONTAINER, f"{disk.item}/{cuts[0]}")  # then the writer died
    writer = site.start()
    await disk.put(disk.random_batches(1, 1))
    await writer.settle()
    site.time.advance(10)
    await writer.settle()
    assert await site.names(RECOVERY_POINTS_CONTAINER) == [f"{disk.item}/{cuts[1]}"]
    assert len(await site.snapshots(disk)) == 1


# -- delete-replicas ------------------------------------------------------------------------------------------


async def test_deleted_replicas_leave_nothing_but_answers() -> None:
    site = await WriterSite.make()
    writer, disks, _ = await replicated(site, points=2, disks=2)
    disk = disks[0]
    request = DeleteReplicas(request=new_uuid(site.random), item=disk.item, disks=[each.disk for each in disks])
    assert (await site.asked(writer, request)).state == "succeeded"
    assert await site.names(REPLICAS_CONTAINER) == []
    assert await site.names(RECOVERY_POINTS_CONTAINER) == []
    assert [name for name in await site.names(REPLICATION_CONTAINER) if not name.startswith("answers/")] == []
    again = request.model_copy(update={"request": new_uuid(site.random)})
    assert (await site.asked(writer, again)).state == "succeeded"


async def test_points_of_an_items_other_disk_stay() -> None:
    site = await WriterSite.make()
    writer, (disk, other), (cut,) = await replicated(site, disks=2)
    request = DeleteReplicas(request=new_uuid(site.random), item=disk.item, disks=[disk.disk])
    assert (await site.asked(writer, request)).state == "succeeded"
    assert await site.point_bytes(other.item, cut, other.disk) == other.cuts[cut]
    assert (await site.asked(writer, make(site, other, cut))).state == "succeeded"


async def test_deleted_disk_can_be_protected_again() -> None:
    site = await WriterSite.make()
    writer, (disk,), _ = await replicated(site)
    request = DeleteReplicas(request=new_uuid(site.random), item=disk.item, disks=[disk.disk])
    await site.asked(writer, request)
    disk.model = bytearray(disk.size_bytes)
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 3))
    await writer.settle()
    assert await site.bytes_of(disk) == disk.model


async def test_replica_of_another_living_writer_is_not_deleted() -> None:
    site = await WriterSite.make()
    _, (disk,), (cut,) = await replicated(site)
    other = site.start(lease_id=new_uuid(Random(9)))
    request = DeleteReplicas(request=new_uuid(site.random), item=disk.item, disks=[disk.disk])
    await site.ask(request)
    await other.followers.discover()
    await other.desk.handle(request.request)
    answer = await site.answer(request)
    assert answer is not None
    assert answer.state == "in-progress", "left to the writer that holds the replica"
    assert await site.point_bytes(disk.item, cut, disk.disk) == disk.cuts[cut]
    assert await site.names(REPLICATION_CONTAINER, "keys/") != []
    site.time.advance(61)
    assert (await other.settle())[disk.disk] is not Outcome.TROUBLED


# -- the desk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "format-disks"}', b"\xff" * 100])
async def test_request_that_cannot_be_read_is_answered(content: bytes) -> None:
    site = await WriterSite.make()
    name = new_uuid(site.random)
    await site.account.put_blob(REPLICATION_CONTAINER, request_name(name), content)
    await site.start().settle()
    answer = await site.answer(DeleteDisks(request=name, names=["x"]))
    assert answer is not None
    assert answer.state == "failed"
    assert answer.problem is not None
    assert await site.names(REPLICATION_CONTAINER, "requests/") == []


async def test_request_under_another_ones_name_is_refused() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    await site.asked(writer, make(site, disk, cut))
    name = new_uuid(site.random)
    inner = DeleteDisks(request=new_uuid(site.random), names=["web01-Test"])
    await site.account.put_blob(REPLICATION_CONTAINER, request_name(name), inner.encode())
    await writer.settle()
    assert await site.names(DISKS_CONTAINER) == ["web01-Test"]
    assert await site.answer(inner) is None


async def test_answered_request_is_not_worked_on_again() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    request = make(site, disk, cut)
    await site.asked(writer, request)
    await site.account.delete_blob(DISKS_CONTAINER, "web01-Test")
    await site.ask(request)  # asked again by a configuration server that had not seen the answer
    await site.start().settle()
    assert (answer := await site.answer(request)) is not None
    assert answer.state == "succeeded"
    assert await site.names(DISKS_CONTAINER) == []
    assert await site.names(REPLICATION_CONTAINER, "requests/") == []


async def test_answer_that_the_writer_did_not_sign_is_none() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    request = make(site, disk, cut)
    forged = WriterIdentity.generate().sign(WriterAnswer(request=request.request, state="succeeded"))
    await site.account.put_blob(REPLICATION_CONTAINER, answer_name(request.request), forged)
    answer = await site.asked(writer, request)
    assert answer.state == "succeeded"
    assert await site.names(DISKS_CONTAINER) == ["web01-Test"]


async def test_request_is_put_off_while_the_store_does_not_answer() -> None:
    site = await WriterSite.make()
    _, (disk,), (cut,) = await replicated(site)

    class CopyFails(LossyBlobClient):
        failing = True

        def __getattr__(self, name: str) -> object:
            if name == "copy_from_snapshot" and self.failing:
                return self._fail
            return super().__getattr__(name)

        async def _fail(self, *args: object, **kwargs: object) -> None:
            raise PeerUnavailable("cannot reach the store")

    client = CopyFails(site.account, Random(0), 0.0)
    writer = site.start(client.as_client())
    request = make(site, disk, cut)
    await site.ask(request)
    await writer.settle()
    answer = await site.answer(request)
    assert answer is not None
    assert answer.state == "in-progress"
    assert await site.names(REPLICATION_CONTAINER, "requests/") == [request_name(request.request)]
    client.failing = False
    site.time.advance(10)
    await writer.settle()
    answer = await site.answer(request)
    assert answer is not None
    assert answer.state == "succeeded"


async def test_two_writers_do_not_work_on_one_request() -> None:
    site = await WriterSite.make()
    writer, (disk,), (cut,) = await replicated(site)
    request = make(site, disk, cut)
    await site.ask(request)
    begun = site.identity.sign(WriterAnswer(request=request.request, state="in-progress"))
    await site.account.put_blob(REPLICATION_CONTAINER, answer_name(request.request), begun)
    await site.account.acquire_lease(REPLICATION_CONTAINER, answer_name(request.request), 60, new_uuid(Random(3)))
    await writer.desk.handle(request.request)
    assert await site.names(DISKS_CONTAINER) == []
    site.time.advance(61)  # the other writer died
    await writer.settle()
    assert await site.names(DISKS_CONTAINER) == ["web01-Test"]


async def test_name_that_is_no_request_is_left_alone() -> None:
    site = await WriterSite.make()
    await site.account.put_blob(REPLICATION_CONTAINER, "requests/readme.txt", b"hello")
    writer = site.start()
    await writer.settle()
    assert await site.names(REPLICATION_CONTAINER) == ["requests/readme.txt"]
    with pytest.raises(BlobNotFound):
        await site.account.head_blob(REPLICATION_CONTAINER, "answers/readme.txt")
