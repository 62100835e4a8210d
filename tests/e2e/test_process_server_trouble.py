"""The process server in trouble: store down or refusing, spool full, file system full, restarts; nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest

from process_server.core.upload_schedule import DEFAULT_THREADS_PER_MACHINE
from process_server.daemon import Surroundings
from process_server.spool.files import DirectoryFiles, SpoolFile
from process_server.spool.record import RECORD_HEADER_BYTES, RecordKind
from process_server.spool.recovery import RecoveredRecord, Recovery
from process_server.upload_limits import FILE_NAME
from replication.batch_frame import MAX_BATCH_DATA_BYTES
from replication.blob_client.failures import failure_from_answer
from replication.control_plane import ProcessServerDesired
from replication.data_plane import SegmentsMissing
from replication.epoch_manifest import manifest_hash
from replication.errors import Overloaded, PeerUnavailable, SettingsError
from replication.identifiers import GenerationId, GenerationKey, MachineId
from replication.service.health import HealthState
from replication.store_layout import segment_name
from replication.upload_limits import NO_LIMITS, UploadLimits
from tests.harness.epochs import new_uuid
from tests.harness.process_site import MIB, LabAgent, LabConfigServer, LabSite, ShippedDisk, lab_settings, running_site
from tests.harness.tls import LabAuthority
from tests.harness.unreliable_store import UnreliableStore

RANDOM = Random(21)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LabSite]:
    async with running_site(tmp_path) as running:
        yield running


def new_disk(site: LabSite, *, machine: MachineId | None = None) -> ShippedDisk:
    disk = ShippedDisk(RANDOM, machine or MachineId(new_uuid(RANDOM)))
    site.config.grants[disk.key] = disk.grant
    return disk


def told(limits: UploadLimits) -> ProcessServerDesired:
    return ProcessServerDesired(upload=limits)


def health(site: LabSite, name: str) -> HealthState:
    return next(check.state for check in site.board.checks if check.name == name)


# -- the store ------------------------------------------------------------------------------------------------


async def test_while_the_store_is_down_batches_are_accepted_and_later_everything_arrives(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    site.store.failing = PeerUnavailable("cannot reach the store")
    for epoch in (1, 2):
        await disk.ship_epoch(agent, epoch, 4)
    await site.until(lambda: site.running.observation.upload_problem is not None, "the problem to be noticed")
    observation = await site.running.observation.observe()
    assert observation.upload_problem is not None
    assert observation.upload_problem.code == "peer-unavailable"
    assert observation.upload_backlog_bytes > 8 * 64 * 1024
    site.running.observation.refresh()
    assert health(site, "upload") is HealthState.DEGRADED
    site.store.failing = None
    await site.until_decided(disk.epoch_key(2))
    for key in disk.frames:
        await disk.check_stored(site.store, key)
    await site.until_drained()
    assert site.running.observation.upload_problem is None


async def test_a_store_that_is_down_is_probed_not_flooded(site: LabSite) -> None:
    disk = new_disk(site)
    site.store.failing = PeerUnavailable("cannot reach the store")
    await disk.ship(site.agent(disk.machine), 1, 40)
    await site.until(lambda: site.running.observation.gate.failures >= 3, "three probes")
    assert site.store.calls["put_blob"] < 20


async def test_a_refusing_store_is_a_problem_for_a_person_and_nothing_is_dropped(site: LabSite) -> None:
    disk = new_disk(site)
    site.store.failing = failure_from_answer(403, "AuthenticationFailed", "put blob x")
    await disk.ship_epoch(site.agent(disk.machine), 1, 2)
    await site.until(lambda: site.running.observation.upload_problem is not None, "the problem")
    observation = await site.running.observation.observe()
    assert observation.upload_problem is not None
    assert observation.upload_problem.hint is not None
    assert "key" in observation.upload_problem.hint
    assert site.metric("upload_failures_total", code="refused") >= 1
    assert site.running.backlog.waiting_bytes > 0


async def test_one_refused_blob_does_not_hold_up_the_others(site: LabSite) -> None:
    disk, other = new_disk(site), new_disk(site)
    bad = disk.batch_key(1, 0)
    site.store.refused_names[segment_name(bad)] = failure_from_answer(400, "InvalidInput", f"put {bad}")
    await disk.ship_epoch(site.agent(disk.machine), 1, 3)
    await other.ship_epoch(site.agent(other.machine), 1, 3)
    await site.until_decided(other.epoch_key(1))
    await site.until_stored(segment_name(disk.batch_key(1, 1)), segment_name(disk.batch_key(1, 2)))
    problem = site.running.observation.upload_problem
    assert problem is not None
    assert segment_name(bad) not in site.stored


async def test_lost_answers_of_the_store_change_nothing(site: LabSite) -> None:
    disk = new_disk(site)
    site.store.lost_answers = 5
    encoded = await disk.ship_epoch(site.agent(disk.machine), 1, 4)
    await site.until_drained()
    assert await site.agent(disk.machine).stored_manifest(disk.epoch_key(1)) == encoded
    for key in disk.frames:
        await disk.check_stored(site.store, key)


async def test_upload_threads_per_machine_are_kept_to_and_changed_live(tmp_path: Path) -> None:
    async with running_site(
        tmp_path, settings=lab_settings(tmp_path / "process-server", threads_per_machine=4)
    ) as site:
        disk = new_disk(site)
        site.store.held.clear()
        await disk.ship(site.agent(disk.machine), 1, 12)
        await site.until(lambda: site.store.in_flight == 4, "four uploads")
        assert site.store.most_in_flight == 4
        site.config.desired = told(UploadLimits(threads_per_machine=6))
        await site.until(lambda: site.store.in_flight == 6, "six uploads")
        site.store.held.set()
        await site.until_drained()
        assert site.store.most_in_flight == 6


async def test_segments_that_do_not_compress_use_all_threads_of_a_default_process_server(tmp_path: Path) -> None:
    """Read back from the spool, as after a restart: what is still in memory would need no room."""
    authority, store = LabAuthority(), UnreliableStore()
    store.held.clear()
    async with running_site(tmp_path, authority=authority, store=store) as site:
        disk = new_disk(site)
        await disk.ship(site.agent(disk.machine), 1, DEFAULT_THREADS_PER_MACHINE + 1, size=MAX_BATCH_DATA_BYTES)
    store.most_in_flight = 0
    async with running_site(tmp_path, authority=authority, store=store) as site:
        site.config.desired = told(NO_LIMITS)
        await site.until(lambda: store.in_flight == DEFAULT_THREADS_PER_MACHINE, "as many uploads as threads")
        store.held.set()
        await site.until_drained()
        assert store.most_in_flight == DEFAULT_THREADS_PER_MACHINE


async def test_more_threads_than_usual_connections_and_buffers_are_in_effect_without_a_restart_and_fewer_again(
    tmp_path: Path,
) -> None:
    """By default settings, read back from the spool: 32 of these take nearly twice the memory that is there for 4 threads."""
    authority, store, config = LabAuthority(), UnreliableStore(), LabConfigServer()
    store.held.clear()
    async with running_site(tmp_path, authority=authority, store=store, config=config) as site:
        disk = new_disk(site)
        await disk.ship(site.agent(disk.machine), 1, 40, size=2 * MIB)
    async with running_site(tmp_path, authority=authority, store=store, config=config) as site:
        site.config.desired = told(NO_LIMITS)
        await site.until(lambda: store.in_flight == DEFAULT_THREADS_PER_MACHINE, "as many uploads as by default")
        site.config.desired = told(UploadLimits(threads_per_machine=32))
        await site.until(lambda: store.in_flight == 32, "32 uploads")
        assert health(site, "upload-limits") is HealthState.OK
        site.config.desired = told(UploadLimits(threads_per_machine=4))
        await site.until(lambda: site.running.schedule.threads_per_machine == 4, "four threads")
        store.held.set()
        await site.until_drained()
        store.held.clear()
        store.most_in_flight = 0
        await disk.ship(site.agent(disk.machine), 2, 12)
        await site.until(lambda: store.in_flight == 4, "four uploads again")
        store.held.set()
        await site.until_drained()
        assert store.most_in_flight == 4


async def test_a_limit_holds_after_a_restart_while_the_configuration_server_is_away(tmp_path: Path) -> None:
    config = LabConfigServer()
    config.desired = told(UploadLimits(limit_bits_per_s=800_000))
    async with running_site(tmp_path, config=config) as site:
        await site.until((site.state_dir / FILE_NAME).exists, "the limit to be remembered")
    config.down = True
    async with running_site(tmp_path, config=config) as site:
        assert site.running.throttle.limit_bits_per_s == 800_000
        config.desired, config.down = told(NO_LIMITS), False
        await site.until(lambda: site.running.throttle.limit_bits_per_s is None, "no limit")
        observed = config.observations[-1].upload
        assert observed is not None


async def test_an_upload_limit_reaches_the_throttle_and_leaves_it(site: LabSite) -> None:
    site.config.desired = told(UploadLimits(limit_bits_per_s=800_000))
    await site.until(lambda: site.running.throttle.limit_bits_per_s == 800_000, "the limit")
    site.config.desired = told(NO_LIMITS)
    await site.until(lambda: site.running.throttle.limit_bits_per_s is None, "no limit")


# -- a full spool ---------------------------------------------------------------------------------------------


async def test_a_full_spool_asks_for_patience_takes_manifests_and_drains(tmp_path: Path) -> None:
    settings = lab_settings(tmp_path / "process-server", limit_bytes=64 * MIB)
    async with running_site(tmp_path, settings=settings) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        site.store.held.clear()
        refusal = await _ship_until_refused(disk, agent)
        frames = [disk.frames[key] for key in disk.acknowledged]
        assert refusal.retry_after_s == 2
        assert 30 < len(frames) < 64
        encoded = disk.manifest(1, frames)
        assert await agent.put_manifest(disk.epoch_key(1), encoded) == 201, "headroom is kept for manifests"
        assert await agent.put_batch(frames[0]) == disk.acknowledged[frames[0].key], "what is there needs no room"
        assert _on_disk(tmp_path) <= 64 * MIB
        site.store.held.set()
        await site.until_decided(disk.epoch_key(1))
        await site.until(lambda: site.running.spool.use.used_bytes < 8 * MIB, "files to be removed")
        await disk.ship(agent, 2, 4, size=MIB)
        for frame in frames:
            await disk.check_stored(site.store, frame.key)


async def _ship_until_refused(disk: ShippedDisk, agent: LabAgent) -> Overloaded:
    """Batches of 1 MiB, one after the other, until the server asks for patience."""
    for batch in itertools.count():
        frame = disk.frame(1, batch, size=MIB)
        try:
            disk.acknowledged[frame.key] = await agent.put_batch(frame)
        except Overloaded as refusal:
            return refusal
    raise AssertionError("it never was full")


def _on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "process-server" / "spool").iterdir())


class _CrampedFiles(DirectoryFiles):
    """A file system that is full whenever ``full`` is set."""

    full = False

    def create(self, name: str, size_bytes: int) -> SpoolFile:
        if type(self).full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(name, size_bytes)


async def test_a_full_file_system_loses_nothing_and_service_resumes_when_space_returns(tmp_path: Path) -> None:
    class Files(_CrampedFiles):
        pass

    settings = lab_settings(tmp_path / "process-server", limit_bytes=64 * MIB)
    async with running_site(tmp_path, settings=settings, around=Surroundings(open_files=Files)) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        site.store.held.clear()
        await disk.ship(agent, 1, 2, size=MIB)
        Files.full = True
        refusal = await _ship_until_refused(disk, agent)
        assert "file system is full" in refusal.message
        Files.full = False
        await disk.ship(agent, 1, 20, size=MIB)
        await agent.put_manifest(disk.epoch_key(1), disk.manifest(1, list(disk.frames.values())))
        site.store.held.set()
        await site.until_decided(disk.epoch_key(1))
        for key in disk.frames:
            await disk.check_stored(site.store, key)


# -- restarts -------------------------------------------------------------------------------------------------


async def test_after_a_restart_everything_goes_on_where_it_was(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        site.store.held.clear()
        first = await disk.ship_epoch(agent, 1, 3)
        frames = await disk.ship(agent, 2, 2)
        store, config, authority = site.store, site.config, site.authority
    store.held.set()
    async with running_site(tmp_path, store=store, config=config, authority=authority) as site:
        agent = site.agent(disk.machine)
        await site.until_decided(disk.epoch_key(1))
        assert await agent.stored_manifest(disk.epoch_key(1)) == first
        frames += await disk.ship(agent, 2, 4)
        await agent.put_manifest(disk.epoch_key(2), disk.manifest(2, frames[2:], previous_hash=manifest_hash(first)))
        await site.until_decided(disk.epoch_key(2))
        for key in disk.frames:
            await disk.check_stored(site.store, key)


async def test_a_kill_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The spool is copied while the server works: what a killed process leaves behind."""
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        agent = site.agent(disk.machine)
        site.store.held.clear()
        await disk.ship_epoch(agent, 1, 3)
        acknowledged = dict(disk.acknowledged)
        shipping = asyncio.create_task(disk.ship(agent, 2, 30))
        await site.until(lambda: len(disk.acknowledged) > 10, "some of epoch 2")
        acknowledged |= disk.acknowledged
        shutil.copytree(tmp_path / "process-server" / "spool", tmp_path / "killed" / "spool")
        shutil.copytree(tmp_path / "process-server" / "identity", tmp_path / "killed" / "identity")
        await shipping
        config, authority = site.config, site.authority
    async with running_site(tmp_path, name="killed", config=config, authority=authority) as site:
        agent = site.agent(disk.machine)
        await site.until_stored(*(segment_name(key) for key in acknowledged))
        await site.until_decided(disk.epoch_key(1))
        for key, known in acknowledged.items():
            assert await agent.put_batch(disk.frames[key]) == known
            await disk.check_stored(site.store, key)


async def test_marks_spare_a_second_upload_after_a_restart(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        await disk.ship(site.agent(disk.machine), 1, 6)
        await site.until_drained()
        store, config, authority = site.store, site.config, site.authority
    puts = store.calls["put_blob"]
    async with running_site(tmp_path, store=store, config=config, authority=authority) as site:
        await disk.ship_epoch(site.agent(disk.machine), 1, 7)
        await site.until_decided(disk.epoch_key(1))
        assert store.calls["put_blob"] == puts + 2, "one more segment and the manifest"


async def test_a_damaged_record_is_never_uploaded_and_its_epoch_is_asked_for_again(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        disk = new_disk(site)
        site.store.held.clear()
        await disk.ship_epoch(site.agent(disk.machine), 1, 3)
        store, config, authority = site.store, site.config, site.authority
    _damage(tmp_path / "process-server" / "spool", lambda item: item.header.batch == 1)
    store.held.set()
    async with running_site(tmp_path, store=store, config=config, authority=authority) as site:
        agent = site.agent(disk.machine)
        await site.until(lambda: site.metric("damaged_records_total") == 1, "the damage to be found")
        await site.until(
            lambda: site.metric("manifests_total", outcome="superseded") == 1, "the manifest to be dropped"
        )
        assert segment_name(disk.batch_key(1, 1)) not in site.stored
        encoded = disk.manifest(1, list(disk.frames.values()), previous_hash=bytes(32))
        with pytest.raises(SegmentsMissing, match="batches 1 of attempt 1"):
            await agent.put_manifest(disk.epoch_key(1), encoded)
        site.running.observation.refresh()
        assert health(site, "spool-content") is HealthState.DEGRADED
        disk.previous_hash = bytes(32)
        await disk.ship_epoch(agent, 1, 3, attempt=2)
        await site.until_decided(disk.epoch_key(1))


def _damage(spool: Path, which: Callable[[RecoveredRecord], bool]) -> None:
    files = DirectoryFiles(spool)
    for item in list(Recovery(files, repair=False).records()):
        if isinstance(item, RecoveredRecord) and item.header.kind is RecordKind.SEGMENT and which(item):
            name = next(name for name in files.names() if name.startswith(f"{item.place.file:016x}-"))
            with (spool / name).open("r+b") as file:
                file.seek(item.place.offset + RECORD_HEADER_BYTES + 200)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))


async def test_a_second_process_server_on_the_same_spool_is_refused(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        with pytest.raises(SettingsError, match="another process server uses it"):
            async with running_site(tmp_path, config=site.config, authority=site.authority):
                pass


async def test_a_state_directory_that_cannot_be_used_is_said_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "process-server").mkdir()
    (tmp_path / "process-server" / "spool").write_text("a file in the place of the spool")
    with pytest.raises(SettingsError, match="cannot use state_dir") as caught:
        async with running_site(tmp_path):
            pass
    assert caught.value.hint


# -- generations that are over --------------------------------------------------------------------------------


async def test_a_newer_generation_frees_what_the_older_left_in_the_spool(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    frames = await disk.ship(agent, 5, 2)
    await agent.put_manifest(disk.epoch_key(5), disk.manifest(5, frames, previous_hash=b"p" * 32))
    await site.until(lambda: site.store.calls["head_blob"] > 0, "the predecessor to be asked for")
    assert site.running.backlog.waiting_bytes > 0, "epoch 4 is nowhere: the manifest waits"
    newer = ShippedDisk(RANDOM, disk.machine, disk=disk.disk, generation=2)
    site.config.grants[newer.key] = newer.grant
    await newer.ship_epoch(agent, 1, 1)
    await site.until_decided(newer.epoch_key(1))
    await site.until_drained()
    assert GenerationKey(disk.disk, GenerationId(1)) not in site.running.backlog.generations


async def test_a_generation_that_the_configuration_server_has_deleted_leaves_the_spool(site: LabSite) -> None:
    disk = new_disk(site)
    agent = site.agent(disk.machine)
    frames = await disk.ship(agent, 5, 2)
    await agent.put_manifest(disk.epoch_key(5), disk.manifest(5, frames, previous_hash=b"p" * 32))
    await site.until(lambda: not site.running.schedule.in_flight, "the segments to be stored")
    review = site.running.retirement.review
    await review()
    await review()
    assert disk.key in site.running.backlog.generations, "it is known to the configuration server"
    del site.config.grants[disk.key]
    site.config.down = True
    await review()
    assert disk.key in site.running.backlog.generations, "no answer is no answer"
    site.config.down = False
    await review()
    assert disk.key not in site.running.backlog.generations
    assert site.running.backlog.waiting_bytes == 0
