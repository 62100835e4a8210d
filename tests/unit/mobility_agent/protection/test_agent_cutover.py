"""Cutover of an offline disk: claimed, cut, applied, hashed; what it proves, what it refuses to, and that a failure harms nothing."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import cast

import pytest

from mobility_agent.block_device.standstill import QUIET, Standstill
from mobility_agent.pace import Pace, Step
from mobility_agent.protection import cutover as cutover_module
from mobility_agent.protection.cutover import Cutover, HeldClaim
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.quiesce.interface import Mount
from replication.agent_limits import MIN_READ_BYTES_PER_S
from replication.clock import Clock
from replication.control_plane import SOURCE_WRITTEN, CutoverMode, DesiredCutover
from replication.epoch_manifest import EpochFlag, decode_manifest
from replication.errors import Conflict
from replication.extents import Extent
from replication.identifiers import DiskId, EpochId, EpochKey, ItemId
from tests.harness.fake_tracker import FakeDisk, FakeTracker
from tests.harness.memory_sink import MemorySink
from tests.harness.session_site import MANIFEST_KEY, FakeFreezer, SessionSite

ITEM = ItemId("11111111-1111-4111-8111-111111111111")
DISKS = [DiskId(f"22222222-2222-4222-8222-22222222222{number}") for number in range(2)]


class Claims:
    """Claims on fake disks: ``holder`` refuses them; ``held`` are claimed now; ``unable``: they cannot tell of writes."""

    def __init__(self) -> None:
        self.held: list[DiskId] = []
        self.holder = ""
        self.refused = 0
        self.unable = ""

    def claim(self, session: DiskSession) -> HeldClaim:
        if self.holder:
            self.refused += 1
            raise Conflict(f"cannot claim: {self.holder}", hint="unmount it")
        return _Held(self, session.parts.disk, cast("FakeDisk", session.parts.reader))


class _Held:
    def __init__(self, claims: Claims, disk: DiskId, device: FakeDisk) -> None:
        self._claims, self._disk, self._device = claims, disk, device
        self._events = 0
        claims.held.append(disk)

    def watch(self) -> Standstill:
        self._events = self._device.events
        return self._tell(QUIET)

    def look(self) -> Standstill:
        return self._tell(QUIET if self._device.events == self._events else Standstill("written", "it was counted"))

    def _tell(self, seen: Standstill) -> Standstill:
        return Standstill("unknown", self._claims.unable) if self._claims.unable else seen

    def close(self) -> None:
        self._claims.held.remove(self._disk)


class Scene:
    def __init__(self, sites: list[SessionSite], claims: Claims, cutover: Cutover) -> None:
        self.sites, self.claims, self.cutover = sites, claims, cutover

    @property
    def state(self) -> str:
        return self.cutover.observation.state

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)

    async def applied_and_hashed(self) -> None:
        await self.until(lambda: self.cutover.observation.identity_claimed or self.state == "failed")
        assert self.state == "applied", self.cutover.observation.problem


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[list[SessionSite]]:
    made = [SessionSite(tmp_path / str(number), disk) for number, disk in enumerate(DISKS)]
    for number, site in enumerate(made, 1):
        site.disk.write(0, bytes([number]) * site.geometry.size_bytes)
        site.start()
    for site in made:
        await site.settle()
    yield made
    for site in made:
        await site.crash()


@asynccontextmanager
async def cutting_over(
    sites: list[SessionSite],
    claims: Claims,
    mode: CutoverMode = "offline-disk",
    find_mounts: Callable[[Sequence[DiskId]], Sequence[Mount]] = lambda _: [],
    limits_lifted: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> AsyncIterator[Scene]:
    sessions = {site.disk_id: site.session for site in sites if site.session is not None}
    coordinator = PointCoordinator(FakeFreezer(), memoryview(bytearray(2**20)), find_mounts, limits_lifted)
    cutover = Cutover(DesiredCutover(job=str(uuid.uuid4()), mode=mode), ITEM, sessions, coordinator, claims.claim)
    task = asyncio.create_task(cutover.run())
    try:
        yield Scene(sites, claims, cutover)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert claims.held == [], "claims are released, however it ended"


async def test_a_cutover_tells_its_decisions(sites: list[SessionSite], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mobility_agent")
    async with cutting_over(sites, Claims()) as scene:
        await scene.applied_and_hashed()
    told = [record.message for record in caplog.records if record.name == cutover_module.__name__]
    assert told == [
        "the disks are claimed",
        "the final epoch is sealed",
        "identity is claimed: applied, hashed, and not written meanwhile",
        "the disks are released",
    ]


async def test_the_final_epoch_is_applied_and_its_sources_are_hashed_while_claimed(sites: list[SessionSite]) -> None:
    sites[0].disk.write(4096, b"z" * 512)
    async with cutting_over(sites, Claims()) as scene:
        await scene.applied_and_hashed()
        observed = scene.cutover.observation
        assert scene.claims.held == sorted(DISKS)
        assert scene.cutover.is_over
        assert {each.disk: each.sha256 for each in observed.source_hashes} == {
            site.disk_id: hashlib.sha256(site.disk.content).hexdigest() for site in sites
        }
        assert observed.hashed_bytes == observed.total_bytes == sum(site.geometry.size_bytes for site in sites)
        for site in sites:
            assert site.replica_matches
            key = EpochKey(site.disk_id, site.sink.generation.generation, applied_epoch(site))
            final = decode_manifest(site.sink.manifests[key.epoch], MANIFEST_KEY, expected=key)
            assert final.flags & EpochFlag.FINAL
            assert final.cut is not None
            assert final.cut.cut == observed.cut


def applied_epoch(site: SessionSite) -> EpochId:
    assert site.session is not None
    return site.session.ledger.applied_epoch


async def test_what_holds_a_disk_is_said_and_waited_for_while_replication_goes_on(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutover_module, "_CLAIM_RETRY_S", 0.001)
    claims = Claims()
    claims.holder = "/dev/x is mounted on /srv"
    async with cutting_over(sites, claims) as scene:
        await scene.until(lambda: claims.refused > 2)
        problem = scene.cutover.observation.problem
        assert problem is not None
        assert "mounted on /srv" in problem.message
        sites[0].disk.write(0, b"r" * 512)
        await sites[0].settle()
        claims.holder = ""
        await scene.applied_and_hashed()
        assert scene.cutover.observation.problem is None


async def test_a_disk_that_is_never_free_fails_the_cutover(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutover_module, "_CLAIM_RETRY_S", 0.001)
    monkeypatch.setattr(cutover_module, "CLAIM_DEADLINE_S", 0.02)
    claims = Claims()
    claims.holder = "/dev/x is mounted on /srv"
    async with cutting_over(sites, claims) as scene:
        await scene.until(lambda: scene.state == "failed")
    await replication_goes_on(sites)


async def replication_goes_on(sites: list[SessionSite]) -> None:
    for site in sites:
        site.disk.write(8192, b"a" * 512)
        await site.settle()
        assert site.replica_matches


async def test_a_write_after_the_final_cut_is_no_identity(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the hashes might be equal."""
    real = FakeDisk.read_into
    written: list[int] = []

    def read_into(disk: FakeDisk, buffer: memoryview, extent: Extent) -> None:
        real(disk, buffer, extent)
        if disk is sites[1].disk and extent.length_bytes == sites[1].geometry.size_bytes and not written:
            written.append(extent.offset_bytes)
            disk.write(0, bytes(disk.content[:512]))

    monkeypatch.setattr(FakeDisk, "read_into", read_into)
    async with cutting_over(sites, Claims()) as scene:
        await scene.until(lambda: scene.state == "failed")
        problem = scene.cutover.observation.problem
        assert problem is not None
        assert "written after the final cut" in problem.message
        assert problem.code == SOURCE_WRITTEN
        assert not scene.cutover.observation.identity_claimed
    await replication_goes_on(sites)


@pytest.fixture(params=["ebpf-like", "scan-like"])
def tracker_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both sorts of trackers: one that proves quiet, and one that can only answer "cannot know"."""
    if request.param == "scan-like":
        monkeypatch.setattr(FakeTracker, "proves_quiet", False)
        monkeypatch.setattr(FakeTracker, "wrote_since_flip", lambda _: True)
    return str(request.param)


async def fails_as_written(scene: Scene) -> None:
    await scene.until(lambda: scene.state == "failed")
    problem = scene.cutover.observation.problem
    assert problem is not None
    assert (problem.code, scene.cutover.observation.identity_claimed) == (SOURCE_WRITTEN, False)
    assert scene.claims.held == []


@pytest.mark.usefixtures("tracker_kind")
async def test_a_write_behind_the_hash_is_no_identity(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash of the source equals the final disk's: the written slice had been hashed before. The source differs all the same."""
    monkeypatch.setattr(cutover_module, "_HASH_SLICE_BYTES", 4096)
    async with cutting_over(sites, Claims()) as scene:
        await scene.until(lambda: scene.cutover.observation.hashed_bytes >= 4096)
        sites[0].disk.write(0, b"!" * 512)
        await fails_as_written(scene)
    await replication_goes_on(sites)


@pytest.mark.usefixtures("tracker_kind")
async def test_a_write_between_the_hashes_and_the_claim_of_identity_is_none(sites: list[SessionSite]) -> None:
    """The sink takes longer than the hashes; what is written until it has applied counts."""
    for site in sites:
        site.sink.applying = False
    async with cutting_over(sites, Claims()) as scene:
        await scene.until(lambda: len(scene.cutover.observation.source_hashes) == len(DISKS))
        sites[0].disk.write(0, b"!" * 512)
        for site in sites:
            site.sink.applying = True
            await site.sink.apply_ready()
        await fails_as_written(scene)


@pytest.mark.usefixtures("tracker_kind")
@pytest.mark.parametrize("sessions_are_over", [False, True])
async def test_a_write_while_the_disks_are_held_takes_the_claim_back(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch, sessions_are_over: bool
) -> None:
    monkeypatch.setattr(cutover_module, "_LOOK_INTERVAL_S", 0.001)
    async with cutting_over(sites, Claims()) as scene:
        await scene.applied_and_hashed()
        if sessions_are_over:
            for site in sites:
                await site.crash()
        sites[1].disk.write(0, b"!" * 512)
        await fails_as_written(scene)


@pytest.mark.usefixtures("tracker_kind")
async def test_where_nothing_tells_of_writes_identity_is_not_claimed_and_nothing_is_cut(
    sites: list[SessionSite],
) -> None:
    claims = Claims()
    claims.unable = "the kernel grants no lease"
    async with cutting_over(sites, claims) as scene:
        await scene.until(lambda: scene.state == "failed")
        observed = scene.cutover.observation
        assert observed.problem is not None
        assert observed.problem.code == "quiet-not-provable"
        assert "the kernel grants no lease" in observed.problem.message
        assert (observed.cut, observed.source_hashes, claims.held) == (None, [], [])
    await replication_goes_on(sites)


async def test_a_claim_that_cannot_tell_any_more_is_no_proof(sites: list[SessionSite]) -> None:
    claims = Claims()
    sites[0].sink.applying = False
    async with cutting_over(sites, claims) as scene:
        await scene.until(lambda: len(scene.cutover.observation.source_hashes) == len(DISKS))
        claims.unable = "its statistics were switched off"
        sites[0].sink.applying = True
        await sites[0].sink.apply_ready()
        await scene.until(lambda: scene.state == "failed")
        assert not scene.cutover.observation.identity_claimed


async def test_blocks_that_do_not_read_the_same_twice_are_no_identity_and_no_storm(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a discard on a device without deterministic reads: nobody writes, and each reading differs."""
    real, readings = FakeDisk.read_into, itertools.count(1)

    def read_into(disk: FakeDisk, buffer: memoryview, extent: Extent) -> None:
        real(disk, buffer, extent)
        if disk is sites[0].disk and extent.offset_bytes <= 4096 < extent.end_bytes:
            at = 4096 - extent.offset_bytes
            buffer[at : at + 8] = next(readings).to_bytes(8, "big")

    monkeypatch.setattr(FakeDisk, "read_into", read_into)
    sites[0].disk.write(4096, bytes(512))
    await sites[0].settle()
    assert sites[0].session is not None
    epochs = sites[0].session.ledger.next_epoch
    for _ in range(50):
        assert await sites[0].session.ship_next() == 0
    assert sites[0].session.ledger.next_epoch == epochs, "reading again marks nothing"
    async with cutting_over(sites, Claims()) as scene:
        await scene.applied_and_hashed()
        hashed = {each.disk: each.sha256 for each in scene.cutover.observation.source_hashes}
    assert hashed[sites[0].disk_id] != hashlib.sha256(sites[0].sink.replica).hexdigest()
    assert hashed[sites[1].disk_id] == hashlib.sha256(sites[1].sink.replica).hexdigest()


async def test_a_final_epoch_that_was_lost_is_cut_again_under_another_name(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    losing, real = sites[1].sink, MemorySink.put_manifest
    cuts: list[str] = []

    async def put_manifest(sink: MemorySink, key: EpochKey, encoded: bytes) -> None:
        manifest = decode_manifest(encoded, MANIFEST_KEY, expected=key)
        if sink is losing and manifest.cut is not None:
            cuts.append(manifest.cut.cut)
            if len(cuts) == 1:
                sink.lose_spool()
        await real(sink, key, encoded)

    monkeypatch.setattr(MemorySink, "put_manifest", put_manifest)

    def write_at_the_last_moment(_: Sequence[DiskId]) -> Sequence[Mount]:
        for site in sites:
            site.disk.write(4096, b"u" * 512)
        return []

    async with cutting_over(sites, Claims(), find_mounts=write_at_the_last_moment) as scene:
        await scene.applied_and_hashed()
        assert len(set(cuts)) == 2
        assert scene.cutover.observation.cut == cuts[-1]
        assert all(site.replica_matches for site in sites)


async def test_a_session_that_ends_is_no_failure_of_the_cutover(sites: list[SessionSite]) -> None:
    """Its claims are released, and it waits to be begun again with the next session."""
    sites[1].sink.applying = False
    async with cutting_over(sites, Claims()) as scene:
        await scene.until(lambda: scene.state == "sealed")
        await sites[1].crash()
        await scene.until(lambda: scene.state == "waiting-for-disk")
        assert not scene.cutover.is_over
        assert scene.claims.held == []
        problem = scene.cutover.observation.problem
        assert problem is not None
        assert "session has ended" in problem.message


async def test_a_resync_under_way_is_waited_for_and_nothing_is_claimed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutover_module, "_CLAIM_RETRY_S", 0.001)
    site = SessionSite(tmp_path, DISKS[0])
    site.disk.write(0, b"x" * site.geometry.size_bytes)
    site.sink.applying = False
    site.start()
    async with cutting_over([site], Claims()) as scene:
        await scene.until(lambda: scene.cutover.observation.problem is not None)
        problem = scene.cutover.observation.problem
        assert problem is not None
        assert problem.code == "seeding"
        assert (scene.state, scene.claims.held) == ("waiting-for-disk", [])
        site.sink.applying = True
        await site.sink.apply_ready()
        await scene.applied_and_hashed()
    await site.crash()


async def test_a_mode_that_is_not_there_fails_and_touches_nothing(sites: list[SessionSite]) -> None:
    async with cutting_over(sites, Claims(), "live-root-disk") as scene:
        await scene.until(lambda: scene.state == "failed")
        problem = scene.cutover.observation.problem
        assert problem is not None
        assert problem.code == "unsupported"
        assert scene.claims.held == []


async def test_a_disk_that_cannot_be_read_fails_with_the_operating_system_s_word(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: DiskSession) -> HeldClaim:
        raise OSError(5, "Input/output error")

    claims = Claims()
    monkeypatch.setattr(claims, "claim", refuse)
    async with cutting_over(sites, claims) as scene:
        await scene.until(lambda: scene.state == "failed")
        problem = scene.cutover.observation.problem
        assert problem is not None
        assert problem.code == "operating-system"


async def test_once_the_disks_are_claimed_no_limit_makes_the_downtime_longer(
    sites: list[SessionSite], tmp_path: Path
) -> None:
    """Not even for the epoch that was being read at its slow pace when the order came; when the source is let go they hold again."""
    pace = Pace(Clock(), lambda: 0.0)
    slow = SessionSite(tmp_path / "slow", DiskId("22222222-2222-4222-8222-222222222229"), pace=pace)
    slow.start()
    await slow.settle()
    pace.set_limits(MIN_READ_BYTES_PER_S, None)
    pace.read(Step(None, 0), 10**12)
    slow.disk.write(0, b"s" * slow.geometry.size_bytes)
    while not pace.waited_s["read"]:
        await asyncio.sleep(0.001)
    async with cutting_over([*sites, slow], Claims(), limits_lifted=pace.lifted) as scene:
        await scene.applied_and_hashed()
        assert slow.replica_matches
        assert not pace.is_lifted
    await slow.crash()
