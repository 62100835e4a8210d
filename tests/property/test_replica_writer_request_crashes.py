"""The replica writer dies at every call of a request's work: the next one finishes it, and it was done once. Called by pytest."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import pytest

from replication.identifiers import CutId
from replication.store_documents import (
    CloseGeneration,
    DeleteDisks,
    DeleteReplicas,
    HashDisk,
    MakeDiskItem,
    MakeDisks,
    PrunePoints,
    WriterRequest,
)
from replication.store_layout import (
    DISKS_CONTAINER,
    RECOVERY_POINTS_CONTAINER,
    REPLICAS_CONTAINER,
    REPLICATION_CONTAINER,
)
from tests.harness.epochs import DiskHistory, new_uuid
from tests.harness.faulty_blob_client import DyingBlobClient, Effect, LossyBlobClient, ProcessDied
from tests.harness.writer_site import WriterSite


@dataclass(slots=True)
class Scene:
    """Two disks of one item with three recovery points and a made disk."""

    site: WriterSite
    disks: list[DiskHistory]
    cuts: list[CutId]

    @classmethod
    async def set_up(cls) -> Scene:
        site = await WriterSite.make()
        disks = [site.disk(128 * 1024)]
        disks.append(site.disk(96 * 1024, item=disks[0].item))
        for disk in disks:
            await disk.open_generation()
        cuts = []
        for _ in range(3):
            cut = disks[0].cut(disks[1])
            cuts.append(cut.cut)
            for disk in disks:
                await disk.put(disk.random_batches(1, 2, 8192), cut=cut)
        scene = cls(site, disks, cuts)
        writer = site.start()
        await writer.settle()
        await site.asked(writer, scene.make("kept-Test"))
        writer.abandon()
        for disk in disks:
            await disk.put(disk.random_batches(1, 2, 8192))
        return scene

    def request(self) -> str:
        return new_uuid(self.site.random)

    def make(self, *names: str) -> MakeDisks:
        wanted = [MakeDiskItem(disk=disk.disk, name=name) for disk, name in zip(self.disks, names, strict=False)]
        return MakeDisks(request=self.request(), item=self.disks[0].item, cut=self.cuts[1], disks=wanted)


async def disks_are_made(scene: Scene) -> None:
    for disk, name in zip(scene.disks, ("a", "b"), strict=True):
        content = await scene.site.blob_bytes(DISKS_CONTAINER, name)
        assert content[: disk.size_bytes] == disk.cuts[scene.cuts[1]]


async def disk_is_gone(scene: Scene) -> None:
    assert await scene.site.names(DISKS_CONTAINER) == []


async def nothing_else(scene: Scene) -> None:
    assert await scene.site.names(DISKS_CONTAINER) == ["kept-Test"]


async def generation_is_closed(scene: Scene) -> None:
    receipt = await scene.site.receipt(scene.disks[0])
    assert receipt is not None
    assert (receipt.closed, receipt.epoch) == (True, 4)


async def only_the_newest_point_is_left(scene: Scene) -> None:
    assert await scene.site.names(RECOVERY_POINTS_CONTAINER) == [f"{scene.disks[0].item}/{scene.cuts[2]}"]
    for disk in scene.disks:
        assert len(await scene.site.snapshots(disk)) == 1
        content = await scene.site.point_bytes(disk.item, scene.cuts[2], disk.disk)
        assert content == disk.cuts[scene.cuts[2]]


async def everything_is_gone(scene: Scene) -> None:
    assert await scene.site.names(REPLICAS_CONTAINER) == []
    assert await scene.site.names(RECOVERY_POINTS_CONTAINER) == []
    left = [name for name in await scene.site.names(REPLICATION_CONTAINER) if not name.startswith("answers/")]
    assert left == []


Ask = Callable[[Scene], WriterRequest]
Check = Callable[[Scene], Awaitable[None]]
CASES: dict[str, tuple[Ask, Check]] = {
    "make-disks": (lambda scene: scene.make("a", "b"), disks_are_made),
    "delete-disks": (lambda scene: DeleteDisks(request=scene.request(), names=["kept-Test"]), disk_is_gone),
    "hash-disk": (
        lambda scene: HashDisk(request=scene.request(), name="kept-Test", size_bytes=scene.disks[0].size_bytes),
        nothing_else,
    ),
    "close-generation": (
        lambda scene: CloseGeneration(request=scene.request(), disk=scene.disks[0].disk, generation=1),
        generation_is_closed,
    ),
    "prune-points": (
        lambda scene: PrunePoints(request=scene.request(), item=scene.disks[0].item, cuts=list(scene.cuts[:2])),
        only_the_newest_point_is_left,
    ),
    "delete-replicas": (
        lambda scene: DeleteReplicas(
            request=scene.request(), item=scene.disks[0].item, disks=[disk.disk for disk in scene.disks]
        ),
        everything_is_gone,
    ),
}


@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.parametrize("kind", CASES)
async def test_request_is_finished_by_the_next_writer(kind: str, effect: Effect) -> None:
    ask, check = CASES[kind]
    at, died = 0, True
    while died:
        at += 1
        scene = await Scene.set_up()
        request = ask(scene)
        await scene.site.ask(request)
        client = DyingBlobClient(scene.site.account, at, effect)
        writer = scene.site.start(client.as_client())
        with contextlib.suppress(ProcessDied):
            await writer.settle()
        writer.abandon()
        died = client.dead
        last = scene.site.start()
        await last.settle()
        await last.settle()
        last.abandon()
        answer = await scene.site.answer(request)
        assert answer is not None, f"died at call {at}"
        assert answer.state == "succeeded", f"died at call {at}: {answer.problem}"
        assert await scene.site.names(REPLICATION_CONTAINER, "requests/") == []
        await check(scene)
    assert at > 5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", CASES)
async def test_request_is_answered_over_a_bad_network(kind: str, seed: int) -> None:
    ask, check = CASES[kind]
    scene = await Scene.set_up()
    request = ask(scene)
    await scene.site.ask(request)
    client = LossyBlobClient(scene.site.account, Random(seed), 0.3)
    writer = scene.site.start(client.as_client())
    for _ in range(60):
        await writer.settle()
        answer = await scene.site.answer(request)
        if answer is not None and answer.state != "in-progress":
            break
        scene.site.time.advance(20)
    writer.abandon()
    await client.deliver_late()
    last = scene.site.start()
    await last.settle()
    scene.site.time.advance(10)
    await last.settle()
    last.abandon()
    answer = await scene.site.answer(request)
    assert answer is not None
    assert answer.state == "succeeded", answer.problem
    await check(scene)
