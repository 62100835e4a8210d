"""The writer as it runs: tasks, health, metrics, stopping. Called by pytest. Intervals are tiny; conditions are awaited, never timed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from random import Random

import pytest

from azure_sink.replica_writer.replica_writer import ReplicaWriter
from replication.blob_client.api import BlobClient, LeaseState
from replication.clock import Clock
from replication.errors import PeerUnavailable
from replication.service.health import HealthState
from replication.store_documents import CloseGeneration, DeleteReplicas
from replication.store_layout import REPLICAS_CONTAINER, REPLICATION_CONTAINER, segment_name
from tests.harness.epochs import DiskHistory, new_uuid, put_segment
from tests.harness.faulty_blob_client import LossyBlobClient
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.writer_site import WriterSite

DEADLINE_S = 30.0


async def hurried_site() -> WriterSite:
    """Real time, but everything that is waited for comes a hundred times faster."""
    site = await WriterSite.make()
    site.settings = replace(site.settings, sweep_interval_s=5.0)
    site.account = MemoryBlobClient()
    await site.account.create_container(REPLICATION_CONTAINER)
    return site


async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds / 100)


HURRIED = Clock(sleep=nap)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(site: WriterSite, client: BlobClient | None = None) -> AsyncIterator[ReplicaWriter]:
    writer = site.start(client, clock=HURRIED)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def applied(site: WriterSite, disk: DiskHistory) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        receipt = await site.receipt(disk)
        return receipt is not None and receipt.epoch == disk.epoch and receipt.problem is None

    return check


def value(site: WriterSite, name: str, **labels: str) -> float:
    found = site.registry.get_sample_value(name, labels)
    return 0.0 if found is None else found


async def test_running_writer_makes_containers_applies_and_answers() -> None:
    site = await hurried_site()
    disks = [site.disk(), site.disk()]
    async with running(site):
        for disk in disks:
            await disk.open_generation()
            for _ in range(3):
                await disk.put(disk.random_batches(2, 2))
        for disk in disks:
            await until(applied(site, disk))
            assert await site.bytes_of(disk) == disk.model
        close = CloseGeneration(request=new_uuid(site.random), disk=disks[0].disk, generation=1)
        await site.ask(close)

        async def closed() -> bool:
            answer = await site.answer(close)
            return answer is not None and answer.final_epoch == 3

        await until(closed)
        delete = DeleteReplicas(request=new_uuid(site.random), item=disks[1].item, disks=[disks[1].disk])
        await site.ask(delete)

        async def deleted() -> bool:
            return await site.names(REPLICAS_CONTAINER) == [disks[0].disk]

        await until(deleted)
    assert value(site, "blockferry_writer_epochs_applied_total") == 6
    assert value(site, "blockferry_writer_written_bytes_total") > 0
    assert value(site, "blockferry_writer_requests_total", kind="close-generation", state="succeeded") == 1
    assert site.health.worst is HealthState.OK


async def test_stopping_gives_the_leases_back() -> None:
    site = await hurried_site()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 1))
    async with running(site):
        await until(applied(site, disk))
        assert (await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).lease_state is LeaseState.LEASED
    assert (await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).lease_state is LeaseState.AVAILABLE


async def test_one_failing_disk_degrades_health_and_stops_nothing_else() -> None:
    site = await hurried_site()
    bad, good = site.disk(), site.disk()
    for disk in (bad, good):
        await disk.open_generation()
    built = await bad.put(bad.random_batches(2, 2))
    await site.account.delete_blob(REPLICATION_CONTAINER, segment_name(built.segments[0].key))
    async with running(site):

        async def degraded() -> bool:
            return site.health.worst is HealthState.DEGRADED

        await until(degraded)
        (check,) = [check for check in site.health.checks if check.state is not HealthState.OK]
        assert check.name == f"disk {bad.disk}"
        assert "not in the store" in check.reason
        assert value(site, "blockferry_writer_disk_problem", disk=bad.disk, code="segment-missing") == 1
        assert value(site, "blockferry_writer_oldest_manifest_seconds") > 0
        for _ in range(3):
            await good.put(good.random_batches(1, 1))
        await until(applied(site, good))
        await put_segment(site.account, built.segments[0])
        await until(applied(site, bad))

        async def healthy() -> bool:
            return site.health.worst is HealthState.OK

        await until(healthy)
        assert value(site, "blockferry_writer_oldest_manifest_seconds") == 0
        assert (
            site.registry.get_sample_value(
                "blockferry_writer_disk_problem", {"disk": bad.disk, "code": "segment-missing"}
            )
            is None
        )


async def test_store_that_does_not_answer_is_waited_for() -> None:
    site = await hurried_site()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))

    class Unreachable(LossyBlobClient):
        reachable = False

        def __getattr__(self, name: str) -> object:
            if not self.reachable:
                raise PeerUnavailable("cannot reach the store")
            return super().__getattr__(name)

    client = Unreachable(site.account, Random(0), 0.0)
    async with running(site, client.as_client()):

        async def degraded() -> bool:
            return site.health.worst is HealthState.DEGRADED

        await until(degraded)
        client.reachable = True
        await until(applied(site, disk))
        client.reachable = False
        await until(degraded)
        await disk.put(disk.random_batches(1, 2))
        client.reachable = True
        await until(applied(site, disk))
    assert await site.bytes_of(disk) == disk.model


async def test_defect_is_not_swallowed() -> None:
    site = await hurried_site()

    class Defective(LossyBlobClient):
        def __getattr__(self, name: str) -> object:
            raise ZeroDivisionError

    writer = site.start(Defective(site.account, Random(0), 0.0).as_client(), clock=HURRIED)
    with pytest.raises(ExceptionGroup) as caught:
        await writer.run()
    assert caught.group_contains(ZeroDivisionError)
