"""The process server's road over real TLS: batches and manifests in, segments and manifests out, in the order that the rules ask for."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mobility_agent.shipping.process_server_client import ProcessServerClient
from process_server.daemon import Surroundings
from process_server.spool.files import DirectoryFiles, SpoolFile
from replication.data_plane import ManifestSuperseded, SegmentsMissing, SinkBehind, batch_path
from replication.epoch_manifest import EpochFlag, manifest_hash
from replication.errors import KeyConflict, NotFound
from replication.identifiers import EpochId, MachineId
from replication.store_layout import manifest_name, segment_name
from replication.tls_identity import Role
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabAgent, LabSite, LabWriter, ShippedDisk, lab_settings, running_site

RANDOM = Random(20)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LabSite]:
    async with running_site(tmp_path) as running:
        yield running


def new_disk(site: LabSite, *, machine: MachineId | None = None) -> ShippedDisk:
    disk = ShippedDisk(RANDOM, machine or MachineId(new_uuid(RANDOM)))
    site.config.grants[disk.key] = disk.grant
    return disk


async def status_of(agent: LabAgent, disk: ShippedDisk, epoch: int, batch: int) -> int:
    frame = disk.frame(epoch, batch)
    return (await agent.request("PUT", batch_path(frame.key), b"".join((frame.head, *frame.data))))[0]


def other_content(disk: ShippedDisk, epoch: int, batch: int) -> ShippedDisk:
    """The same disk, with other content under the same keys."""
    return replace(disk, frames={}, acknowledged={}, random=Random(f"{epoch}/{batch}"))


# -- the road -------------------------------------------------------------------------------------------------


async def test_an_epoch_arrives_whole_segments_first_and_its_manifest_last(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    encoded = await disk.ship_epoch(agent, 1, batches=5)
    await site.until_decided(disk.epoch_key(1))
    for batch in range(5):
        await disk.check_stored(site.store, disk.batch_key(1, batch))
    assert await agent.stored_manifest(disk.epoch_key(1)) == encoded
    assert site.store.put_order[-1] == manifest_name(disk.epoch_key(1))
    await site.until_drained()


async def test_epochs_are_decided_in_order_though_their_batches_arrive_mixed(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    site.store.held.clear()
    for epoch in (1, 2, 3):
        await disk.ship_epoch(agent, epoch, batches=2)
    site.store.held.set()
    await site.until_decided(disk.epoch_key(3))
    decided = [name for name in site.store.put_order if name.endswith("manifest")]
    assert decided == [manifest_name(disk.epoch_key(epoch)) for epoch in (1, 2, 3)]


async def test_an_empty_epoch_needs_only_its_manifest(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    void = disk.manifest(1, [], flags=EpochFlag.VOID)
    assert await agent.put_manifest(disk.epoch_key(1), void) == 201
    await site.until_decided(disk.epoch_key(1))


async def test_a_batch_is_acknowledged_only_after_its_record_is_durable(tmp_path: Path) -> None:
    may_sync = threading.Event()

    class HeldFile:
        def __init__(self, file: SpoolFile) -> None:
            self._file = file
            self._writes = 0

        def write_at(self, offset: int, views: Sequence[memoryview]) -> None:
            self._writes += 1
            self._file.write_at(offset, views)

        def sync(self) -> None:
            if self._writes > 1:  # the file's header is made durable when it is created
                may_sync.wait(20)
            self._file.sync()

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    class HeldFiles(DirectoryFiles):
        def create(self, name: str, size_bytes: int) -> SpoolFile:
            held: object = HeldFile(super().create(name, size_bytes))
            return held  # type: ignore[return-value]  # the rest is delegated

    async with running_site(tmp_path, around=Surroundings(open_files=HeldFiles)) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        shipping = asyncio.create_task(agent.put_batch(disk.frame(1, 0)))
        await site.until(lambda: site.running.spool.use.used_bytes > 60_000, "the record to be written")
        await asyncio.wait([shipping], timeout=0.2)
        assert not shipping.done()
        assert not site.stored, "nothing is uploaded before it is durable"
        may_sync.set()
        await shipping


# -- repeated batches (R4) ------------------------------------------------------------------------------------


async def test_a_repeated_batch_is_answered_with_the_same_tag_wherever_its_segment_is(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        site.store.held.clear()
        first = await agent.put_batch(disk.frame(1, 0))
        assert await status_of(agent, disk, 1, 0) == 200, "spooled"
        assert await agent.put_batch(disk.frame(1, 0)) == first
        site.store.held.set()
        await site.until_drained()
        assert await agent.put_batch(disk.frame(1, 0)) == first, "uploaded"
        disk.acknowledged[disk.batch_key(1, 0)] = first
        await agent.put_manifest(disk.epoch_key(1), disk.manifest(1, [disk.frame(1, 0)]))
        await site.until_decided(disk.epoch_key(1))
        await site.until_drained()
        assert await status_of(agent, disk, 1, 0) == 200, "decided"
        assert await agent.put_batch(disk.frame(1, 0)) == first
        store, config, authority = site.store, site.config, site.authority
    async with running_site(tmp_path, store=store, config=config, authority=authority) as site:
        assert await status_of(site.agent(disk.machine), disk, 1, 0) == 200, "after a restart"
        assert await site.agent(disk.machine).put_batch(disk.frame(1, 0)) == first


async def test_a_repeated_batch_is_known_after_a_restart_and_after_it_left_the_spool(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        first = await site.agent(disk.machine).put_batch(disk.frame(1, 0))
        await site.until_drained()
        store, config, authority = site.store, site.config, site.authority
    shutil.rmtree(tmp_path / "process-server" / "spool")
    async with running_site(tmp_path, store=store, config=config, authority=authority) as site:
        agent = site.agent(disk.machine)
        assert await agent.put_batch(disk.frame(1, 0)) == first
        with pytest.raises(KeyConflict):
            await agent.put_batch(other_content(disk, 1, 0).frame(1, 0))


async def test_other_content_under_a_taken_key_is_a_conflict_and_never_stored(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    await disk.ship(agent, 1, 1)
    with pytest.raises(KeyConflict):
        await agent.put_batch(other_content(disk, 1, 0).frame(1, 0))
    await site.until_drained()
    with pytest.raises(KeyConflict):
        await agent.put_batch(other_content(disk, 1, 0).frame(1, 0))
    await disk.check_stored(site.store, disk.batch_key(1, 0))
    assert site.metric("key_conflicts_total") == 2


async def test_simultaneous_repetitions_make_one_segment(site: LabSite) -> None:
    disk = new_disk(site)
    agents = [site.agent(disk.machine) for _ in range(6)]
    answers = await asyncio.gather(*(agent.put_batch(disk.frame(1, 0)) for agent in agents))
    assert len(set(answers)) == 1
    assert site.metric("batches_total", outcome="accepted") == 1
    assert site.metric("batches_total", outcome="repeated") == 5


async def test_a_batch_that_another_server_stored_under_another_tag_does_not_corrupt_the_epoch(tmp_path: Path) -> None:
    async with running_site(tmp_path, name="one") as one:
        disk = new_disk(one)
        await disk.ship(one.agent(disk.machine), 1, 1)
        await one.until_drained()
        async with running_site(
            tmp_path, name="two", store=one.store, config=one.config, authority=one.authority
        ) as two:
            agent = two.agent(disk.machine)
            two.running.schedule.threads_per_machine = 1
            one.store.failing = NotFound("cannot list: not now")  # so that it is taken as new
            second = replace(disk, acknowledged={})
            await second.ship(agent, 1, 1)
            assert second.acknowledged != disk.acknowledged
            one.store.failing = None
            await two.until_drained()
            with pytest.raises(SegmentsMissing, match="batches 0 of attempt 1"):
                await agent.put_manifest(disk.epoch_key(1), second.manifest(1, [disk.frame(1, 0)]))
            assert await agent.put_batch(disk.frame(1, 0)) == disk.acknowledged[disk.batch_key(1, 0)]
            await disk.ship_epoch(agent, 1, 1)
            await two.until_decided(disk.epoch_key(1))


# -- manifests (R5) -------------------------------------------------------------------------------------------


async def test_a_manifest_waits_until_its_segments_are_stored(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    site.store.held.clear()
    await disk.ship_epoch(agent, 1, batches=3)
    assert (
        await agent.put_manifest(disk.epoch_key(1), disk.manifest(1, _frames(disk, 1, 3), previous_hash=bytes(32)))
        == 200
    )
    with pytest.raises(NotFound):
        await agent.stored_manifest(disk.epoch_key(1))
    site.store.held.set()
    await site.until_decided(disk.epoch_key(1))


def _frames(disk: ShippedDisk, epoch: int, batches: int, attempt: int = 1) -> list:  # type: ignore[type-arg]
    return [disk.frame(epoch, batch, attempt) for batch in range(batches)]


async def test_a_manifest_that_names_what_nobody_has_is_refused_with_the_list(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    await disk.ship(agent, 1, 2)
    ghost = disk.frame(1, 7)
    disk.acknowledged[ghost.key] = disk.acknowledged[disk.batch_key(1, 0)]
    with pytest.raises(SegmentsMissing, match="1 of its 3 segments") as caught:
        await agent.put_manifest(disk.epoch_key(1), disk.manifest(1, [*_frames(disk, 1, 2), ghost]))
    assert "batches 7 of attempt 1" in caught.value.message
    assert not [name for name in site.stored if name.endswith("manifest")]


async def test_a_manifest_with_another_predecessor_is_superseded(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    await disk.ship_epoch(agent, 1, 1)
    await site.until_decided(disk.epoch_key(1))
    frames = await disk.ship(agent, 2, 1)
    with pytest.raises(ManifestSuperseded):
        await agent.put_manifest(disk.epoch_key(2), disk.manifest(2, frames, previous_hash=b"x" * 32))
    await agent.put_manifest(disk.epoch_key(2), disk.manifest(2, frames))
    await site.until_decided(disk.epoch_key(2))


async def test_the_first_manifest_decides_and_another_is_dropped_and_said_so(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    decided = await disk.ship_epoch(agent, 1, 1)
    await site.until_decided(disk.epoch_key(1))
    frames = await disk.ship(agent, 1, 1, attempt=2)
    with pytest.raises(ManifestSuperseded):
        await agent.put_manifest(disk.epoch_key(1), disk.manifest(1, frames, attempt=2, previous_hash=bytes(32)))
    assert await agent.put_manifest(disk.epoch_key(1), decided) == 200
    await site.until_drained()


async def test_a_newer_attempts_manifest_takes_the_place_of_a_pending_one(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    site.store.held.clear()
    first = disk.manifest(1, await disk.ship(agent, 1, 2))
    await agent.put_manifest(disk.epoch_key(1), first)
    second = disk.manifest(1, await disk.ship(agent, 1, 2, attempt=2), attempt=2)
    await agent.put_manifest(disk.epoch_key(1), second)
    with pytest.raises(ManifestSuperseded):
        await agent.put_manifest(disk.epoch_key(1), first)
    site.store.held.set()
    await site.until_decided(disk.epoch_key(1))
    assert await agent.stored_manifest(disk.epoch_key(1)) == second
    await site.until_drained()


async def test_two_process_servers_carry_one_generation_together(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(running_site(tmp_path, name="one"))
        two = await stack.enter_async_context(
            running_site(tmp_path, name="two", store=one.store, config=one.config, authority=one.authority)
        )
        disk = new_disk(one)
        agents = [one.agent(disk.machine), two.agent(disk.machine)]
        one.store.held.clear()
        for epoch in range(1, 7):
            await disk.ship_epoch(agents[epoch % 2], epoch, 2)
        one.store.held.set()
        await one.until_decided(*(disk.epoch_key(epoch) for epoch in range(1, 7)))
        decided = [name for name in one.store.put_order if name.endswith("manifest")]
        assert decided == sorted(decided)
        for epoch in range(1, 7):
            for batch in range(2):
                await disk.check_stored(one.store, disk.batch_key(epoch, batch))


async def test_a_manifest_may_name_segments_that_another_process_server_stored(tmp_path: Path) -> None:
    async with running_site(tmp_path, name="one") as one:
        disk = new_disk(one)
        frames = await disk.ship(one.agent(disk.machine), 1, 3)
        await one.until_stored(*(segment_name(frame.key) for frame in frames))
        async with running_site(
            tmp_path, name="two", store=one.store, config=one.config, authority=one.authority
        ) as two:
            await two.agent(disk.machine).put_manifest(disk.epoch_key(1), disk.manifest(1, frames))
            await two.until_decided(disk.epoch_key(1))


# -- receipts -------------------------------------------------------------------------------------------------


async def test_a_receipt_is_relayed_byte_for_byte_as_soon_as_it_is_there(site: LabSite) -> None:
    disk, writer = new_disk(site), LabWriter(site.store)
    agent = site.agent(disk.machine)
    await writer.have_record(disk)
    encoded = await disk.ship_epoch(agent, 1, 1)
    assert await agent.receipt(disk.key) is None
    waiting = asyncio.create_task(agent.receipt(disk.key, after_epoch=0, wait_s=20))
    await site.until_decided(disk.epoch_key(1))
    content = await writer.apply(disk, 1, manifest_hash(encoded))
    assert await waiting == content
    assert await agent.receipt(disk.key, after_epoch=0) == content
    assert await agent.receipt(disk.key, after_epoch=1) is None


async def test_another_receipt_of_the_same_epoch_reaches_a_waiting_agent(site: LabSite) -> None:
    disk, writer = new_disk(site), LabWriter(site.store)
    identity = site.agent_identity(disk.machine)
    client = ProcessServerClient(site.url, identity.client_context(Role.PROCESS_SERVER), connections=2, timeout_s=20)
    try:
        encoded = await disk.ship_epoch(site.agent(disk.machine), 1, 1)
        first = await writer.apply(disk, 1, manifest_hash(encoded))
        assert await client.receipt(disk.key, EpochId(0), 20) == first
        assert await client.receipt(disk.key, EpochId(1), 0.1, first) is None, "nothing new"
        waiting = asyncio.create_task(client.receipt(disk.key, EpochId(1), 30, first))
        closed = await writer.apply(disk, 1, manifest_hash(encoded), closed=True)
        async with asyncio.timeout(10):
            assert await waiting == closed
        with pytest.raises(SinkBehind, match="its receipt says epoch 1") as behind:
            await client.receipt(disk.key, EpochId(2), 30, first)
        assert behind.value.epoch == 1, "less than what the agent knows"
    finally:
        await client.close()


async def test_an_applied_epoch_counts_as_predecessor_though_its_manifest_is_gone(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        previous = await disk.ship_epoch(site.agent(disk.machine), 1, 1)
        await site.until_decided(disk.epoch_key(1))
        await LabWriter(site.store).apply(disk, 1, manifest_hash(previous))
        await site.store.delete_blob("replication", manifest_name(disk.epoch_key(1)))
        store, config, authority = site.store, site.config, site.authority
    shutil.rmtree(tmp_path / "process-server" / "spool")
    async with running_site(tmp_path, store=store, config=config, authority=authority) as site:
        await disk.ship_epoch(site.agent(disk.machine), 2, 1)
        await site.until_decided(disk.epoch_key(2))


async def test_a_receipt_that_was_read_before_the_first_batch_counts_for_the_chain(site: LabSite) -> None:
    """Found by the simulation: an agent that changes to another process server asks for receipts first."""
    disk, writer = new_disk(site), LabWriter(site.store)
    agent = site.agent(disk.machine)
    disk.previous_hash = RANDOM.randbytes(32)  # of epoch 2, which went another way, was applied and is gone
    await writer.apply(disk, 2, disk.previous_hash)
    assert await agent.receipt(disk.key, wait_s=5) is not None
    await disk.ship_epoch(agent, 3, batches=1)
    await site.until_decided(disk.epoch_key(3))


async def test_a_closed_generation_takes_no_more_manifests_and_leaves_the_spool(site: LabSite) -> None:
    disk, writer = new_disk(site), LabWriter(site.store)
    agent = site.agent(disk.machine)
    encoded = await disk.ship_epoch(agent, 1, 1)
    await site.until_decided(disk.epoch_key(1))
    site.store.held.clear()
    frames = await disk.ship(agent, 2, 2)
    site.store.held.set()
    await writer.apply(disk, 1, manifest_hash(encoded), closed=True)
    await site.until(lambda: _closed(site, disk), "the receipt to be read")
    with pytest.raises(ManifestSuperseded):
        await agent.put_manifest(disk.epoch_key(2), disk.manifest(2, frames))
    await site.until_drained()


def _closed(site: LabSite, disk: ShippedDisk) -> bool:
    receipt = site.running.backlog.generations[disk.key].chain.receipt
    return receipt is not None and receipt.closed


async def test_stopping_does_not_wait_for_those_that_wait_for_receipts(tmp_path: Path) -> None:
    async with running_site(tmp_path, settings=lab_settings(tmp_path / "process-server")) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        await LabWriter(site.store).have_record(disk)
        await disk.ship(agent, 1, 1)
        waiting = asyncio.create_task(agent.receipt(disk.key, after_epoch=0, wait_s=30))
        await site.until(lambda: site.store.calls["get_blob"] > 0, "the wait to begin")
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await site.running.server.close()
        assert await waiting is None
        assert loop.time() - begun_s < 4
