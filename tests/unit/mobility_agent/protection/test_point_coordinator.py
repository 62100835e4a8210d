"""Points: what makes one, what prevents one, and that whatever was harvested for one that was not made is pending again."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mobility_agent.change_tracker.interface import Harvest
from mobility_agent.pace import Pace, Step
from mobility_agent.protection import point_coordinator
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.point_coordinator import PAGE_BYTES, PointCoordinator, PointImage, PointOutcome
from mobility_agent.quiesce.interface import Freeze, FreezeResult, Mount
from replication.agent_limits import MIN_CPU_CORES, MIN_READ_BYTES_PER_S
from replication.clock import Clock
from replication.dirty_bitmap import DirtyBitmap
from replication.epoch_manifest import EpochFlag, decode_manifest
from replication.errors import BlockferryError, ResyncRequired
from replication.extents import Extent
from replication.identifiers import CutId, DiskId, EpochKey, ItemId
from tests.harness.fake_tracker import FakeDisk, FakeTracker
from tests.harness.memory_sink import MemorySink
from tests.harness.session_site import GRANULARITY_BYTES, MANIFEST_KEY, FakeFreeze, FakeFreezer, SessionSite

ITEM = ItemId("11111111-1111-4111-8111-111111111111")
DISKS = [DiskId(f"22222222-2222-4222-8222-22222222222{number}") for number in range(2)]
MOUNT = Mount("/m", "ext4", "/d", (7, 0))
ROOM_GRANULES = 16


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[list[SessionSite]]:
    made = [SessionSite(tmp_path / str(number), disk) for number, disk in enumerate(DISKS)]
    for site in made:
        fill(site, 0, 64, 1)
        site.start()
    for site in made:
        await site.settle()
    yield made
    for site in made:
        await site.crash()


def fill(site: SessionSite, start: int, count: int, byte: int) -> None:
    length = min(count * GRANULARITY_BYTES, site.geometry.size_bytes - start * GRANULARITY_BYTES)
    site.disk.write(start * GRANULARITY_BYTES, bytes([byte]) * length)


def new_cut() -> CutId:
    return CutId(str(uuid.uuid4()))


def session_of(site: SessionSite) -> DiskSession:
    assert site.session is not None
    return site.session


async def cut_point(
    sites: Sequence[SessionSite],
    *,
    freezer: FakeFreezer | None = None,
    find_mounts: Callable[[Sequence[DiskId]], Sequence[Mount]] = lambda _: [MOUNT],
    cut: CutId | None = None,
    quiesced: bool = False,
) -> PointOutcome:
    memory = memoryview(bytearray(ROOM_GRANULES * (GRANULARITY_BYTES + PAGE_BYTES)))
    coordinator = PointCoordinator(freezer or FakeFreezer(), memory, find_mounts)
    sessions = {site.disk_id: session_of(site) for site in sites}
    async with asyncio.timeout(30):
        return await coordinator.cut(
            ITEM, sessions, cut or new_cut(), flags=EpochFlag(0), freeze_budget_s=1.0, quiesced=quiesced
        )


async def test_two_disks_are_cut_at_one_instant(sites: list[SessionSite]) -> None:
    images: list[bytes] = []
    freezer = FakeFreezer(lambda: images.extend(bytes(site.disk.content) for site in sites))
    for site in sites:
        fill(site, 5, 2, 9)
    outcome = await cut_point(sites, freezer=freezer)
    assert outcome.made
    manifests = []
    for site, image in zip(sites, images, strict=True):
        await site.settle()
        assert site.sink.points[outcome.cut] == image
        key = EpochKey(site.disk_id, site.sink.generation.generation, outcome.epochs[site.disk_id].number)
        manifests.append(decode_manifest(site.sink.manifests[key.epoch], MANIFEST_KEY, expected=key))
    assert manifests[0].cut == manifests[1].cut
    assert manifests[0].cut_time_ns == manifests[1].cut_time_ns


async def test_what_is_still_pending_after_the_rounds_before_it_is_in_the_last_round(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker has given it away already, so its harvest does not name it."""
    site, session = sites[0], session_of(sites[0])
    monkeypatch.setattr(point_coordinator, "MAX_PRECOPY_ROUNDS", 1)
    session.limits = replace(session.limits, epoch_bytes=GRANULARITY_BYTES)
    frozen_at: list[tuple[bytes, int]] = []
    freezer = FakeFreezer(lambda: frozen_at.append((bytes(site.disk.content), session.ledger.pending_granules)))
    fill(site, 5, 12, 9)
    outcome = await cut_point([site], freezer=freezer)
    assert outcome.made
    image, pending = frozen_at[-1]
    assert pending
    await site.settle()
    assert site.sink.points[outcome.cut] == image


EFI = Mount("/boot/efi", "vfat", "/d1", (7, 1))


async def test_what_cannot_be_frozen_is_left_running_and_must_be_quiet(sites: list[SessionSite]) -> None:
    freezer = FakeFreezer()
    fill(sites[0], 5, 2, 9)
    outcome = await cut_point(sites[:1], freezer=freezer, find_mounts=lambda _: [EFI, MOUNT])
    assert outcome.made
    assert freezer.asked == [[MOUNT]]


async def test_a_quiet_disk_with_nothing_that_can_be_frozen_has_points(sites: list[SessionSite]) -> None:
    freezer = FakeFreezer()
    outcome = await cut_point(sites[:1], freezer=freezer, find_mounts=lambda _: [EFI])
    assert outcome.made
    assert not freezer.asked


async def test_a_write_to_what_cannot_be_frozen_makes_it_no_point(sites: list[SessionSite]) -> None:
    values = iter(range(2, 200))
    real = session_of(sites[0]).parts.tracker.wrote_since_flip

    def write_meanwhile() -> bool:
        fill(sites[0], 3, 1, next(values))
        return real()

    fill(sites[0], 5, 2, 9)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session_of(sites[0]).parts.tracker, "wrote_since_flip", write_meanwhile)
        outcome = await cut_point(sites[:1], find_mounts=lambda _: [EFI, MOUNT])
    assert not outcome.made
    assert "a write was seen" in outcome.reason
    await sites[0].settle()
    assert sites[0].replica_matches


async def test_a_tracker_that_cannot_prove_quiet_has_everything_frozen(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTracker, "proves_quiet", False)
    freezer = FakeFreezer()
    await cut_point(sites[:1], freezer=freezer, find_mounts=lambda _: [EFI, MOUNT])
    assert freezer.asked[0] == [EFI, MOUNT]


async def test_a_last_round_that_does_not_fit_is_no_point_and_nothing_of_it_is_lost(sites: list[SessionSite]) -> None:
    site = sites[0]
    values = iter(range(2, 200))

    def write_much() -> None:
        fill(site, 0, ROOM_GRANULES * 2, next(values))

    outcome = await cut_point(sites[:1], freezer=FakeFreezer(write_much))
    assert not outcome.made
    assert not outcome.is_spent
    assert "changed in the last round" in outcome.reason
    await site.settle()
    assert site.replica_matches
    assert not site.sink.points


async def test_no_point_is_cut_while_a_disk_is_seeded(tmp_path: Path) -> None:
    site = SessionSite(tmp_path, DISKS[0])
    site.sink.applying = False
    site.start()
    outcome = await cut_point([site])
    assert "not complete" in outcome.reason
    await site.crash()


async def test_lost_marks_that_are_found_while_frozen_end_the_session(sites: list[SessionSite]) -> None:
    site = sites[0]

    def lose_marks() -> None:
        site.disk.lost_marks = "an overflow"

    with pytest.raises(ResyncRequired, match="an overflow"):
        await cut_point(sites, freezer=FakeFreezer(lose_marks))
    assert site.doubts == ["an overflow"]
    assert site._task is not None
    with pytest.raises(ResyncRequired):
        await site._task
    assert not sites[1].sink.points


async def test_an_epoch_that_is_opened_again_before_the_freeze_goes_before_the_point(
    sites: list[SessionSite],
) -> None:
    """What is read again after the cut may hold later writes, so nothing that follows it is a point."""
    site, loop = sites[0], asyncio.get_running_loop()
    session, freezer = session_of(site), FakeFreezer()
    site.sink.applying = False
    fill(site, 3, 1, 7)
    freezes_at_loss: list[int] = []

    async def lose_spool() -> None:
        site.sink.lose_spool()
        await session._manifests.put_all(again=True)
        assert session.ledger.open_epoch is not None

    def find_mounts(_: Sequence[DiskId]) -> Sequence[Mount]:
        if not freezes_at_loss:
            freezes_at_loss.append(freezer.count)
            asyncio.run_coroutine_threadsafe(lose_spool(), loop).result(10)
        return [MOUNT]

    outcome = await cut_point(sites, freezer=freezer, find_mounts=find_mounts)
    at_cut = bytes(site.disk.content)
    assert outcome.made
    assert (freezes_at_loss, freezer.count) == ([0], 1), "nothing was frozen in vain"
    fill(site, 3, 1, 8)
    site.sink.applying = True
    await site.sink.apply_ready()
    await site.settle()
    assert site.sink.points[outcome.cut] == at_cut
    assert site.replica_matches


async def test_a_cut_of_which_a_part_was_lost_is_spent(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One disk's part is sealed and put, the other's has to be read again: the name of the cut must not be used again."""
    losing = sites[1]
    real = MemorySink.put_manifest

    async def put_manifest(sink: MemorySink, key: EpochKey, encoded: bytes) -> None:
        if sink is losing.sink and decode_manifest(encoded, MANIFEST_KEY, expected=key).cut is not None:
            sink.lose_spool()
        await real(sink, key, encoded)

    monkeypatch.setattr(MemorySink, "put_manifest", put_manifest)
    for site in sites:
        fill(site, 3, 1, 5)

    def write_on() -> None:
        for site in sites:
            fill(site, 4, 1, 6)

    freezer = FakeFreezer(write_on)
    outcome = await cut_point(sites, freezer=freezer)
    assert (outcome.made, outcome.is_spent) == (False, True)
    assert freezer.count == 1, "it was not tried again under the same name"
    for site in sites:
        await site.settle()
        assert site.replica_matches
    assert outcome.cut in sites[0].sink.points
    assert outcome.cut not in losing.sink.points


class CountingScan:
    """Makes a site's session believe that its tracker reads the disk, and counts harvests with what was on its way."""

    def __init__(self, site: SessionSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on_their_way: list[int] = []
        session = session_of(site)
        session.harvest_reads_disk = True
        real = FakeTracker.begin_harvest

        def begin_harvest(tracker: FakeTracker, into: DirtyBitmap | None = None) -> Harvest:
            if tracker is session.parts.tracker:
                self.on_their_way.append(len(session.ledger.epochs))
            return real(tracker, into)

        monkeypatch.setattr(FakeTracker, "begin_harvest", begin_harvest)


async def test_a_scan_never_compares_while_epochs_are_on_their_way(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A granule on its way that has its confirmed content again would look unchanged."""
    site = sites[0]
    scan = CountingScan(site, monkeypatch)
    site.sink.applying = False
    fill(site, 3, 1, 7)
    while not session_of(site).ledger.sealed_epochs:
        await asyncio.sleep(0.001)
    scan.on_their_way.clear()
    cutting = asyncio.create_task(cut_point(sites[:1], quiesced=True))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert scan.on_their_way == []
    site.sink.applying = True
    await site.sink.apply_ready()
    assert (await cutting).made
    assert set(scan.on_their_way) == {0}


async def test_a_scan_that_waits_gives_way_to_an_epoch_that_must_be_read_again(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else ships it: the point holds the disk."""
    site = sites[0]
    session = session_of(site)
    CountingScan(site, monkeypatch)
    site.sink.applying = False
    fill(site, 3, 1, 7)
    while not session.ledger.sealed_epochs:
        await asyncio.sleep(0.001)
    cutting = asyncio.create_task(cut_point(sites[:1], quiesced=True))
    await asyncio.sleep(0.01)
    site.sink.lose_spool()
    site.sink.applying = True
    await session._manifests.put_all(again=True)
    assert (await cutting).made


async def test_a_session_that_ended_while_the_others_were_waited_for_makes_no_point(sites: list[SessionSite]) -> None:
    freezer = FakeFreezer()
    async with session_of(sites[1])._kept.lock:
        cutting = asyncio.create_task(cut_point(sites, freezer=freezer))
        await asyncio.sleep(0.05)
        session_of(sites[0])._kept.end()
    with pytest.raises(BlockferryError, match="has ended"):
        await cutting
    assert freezer.count == 0


def test_an_image_is_read_where_it_was_copied_and_nowhere_else() -> None:
    memory = memoryview(bytearray(4 * PAGE_BYTES))
    image = PointImage(memory, [Extent(8192, 4096), Extent(40960, 1024)])
    for fill_byte, (_, view) in enumerate(image.views(), 1):
        view[:] = bytes([fill_byte]) * len(view)
    buffer = bytearray(512)
    image.read_into(memoryview(buffer), Extent(40960 + 512, 512))
    assert buffer == b"\2" * 512
    for extent in (Extent(0, 512), Extent(8192 + 3584, 1024), Extent(40960, 2048)):
        with pytest.raises(BlockferryError, match="outside"):
            image.read_into(memoryview(bytearray(extent.length_bytes)), extent)


async def test_no_limit_delays_what_is_read_while_frozen_nor_what_is_shipped_of_it(tmp_path: Path) -> None:
    """From the freeze on the limits are used up for days; the same limits hold up the next ordinary epoch."""
    pace = Pace(Clock(), lambda: 0.0)
    site = SessionSite(tmp_path, DISKS[0], pace=pace)
    fill(site, 0, 64, 1)
    site.start()
    await site.settle()
    images: list[bytes] = []

    def use_limits_up() -> None:
        images.append(bytes(site.disk.content))
        pace.set_limits(MIN_READ_BYTES_PER_S, MIN_CPU_CORES)
        pace.read(Step(None, 0), 10**12)

    fill(site, 5, 2, 9)
    outcome = await cut_point([site], freezer=FakeFreezer(use_limits_up))
    assert outcome.made
    while outcome.cut not in site.sink.points:
        await asyncio.sleep(0.001)
    assert site.sink.points[outcome.cut] == images[-1]
    assert pace.waited_s == {"read": 0.0, "cpu": 0.0}
    fill(site, 7, 1, 3)
    while not pace.waited_s["read"]:
        await asyncio.sleep(0.001)
    assert site.sink.replica != site.disk.content
    with pace.lifted():
        await site.settle()
    assert site.replica_matches
    await site.crash()


class EndingFreeze(FakeFreeze):
    """Its time is over when it has been asked so many times."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self._left = asked

    def remaining_s(self) -> float:
        self._left -= 1
        return float(self._left)


async def test_the_freeze_is_looked_after_between_slices_of_one_extent(
    sites: list[SessionSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_coordinator, "READ_SLICE_BYTES", GRANULARITY_BYTES)
    monkeypatch.setattr(point_coordinator, "MAX_ATTEMPTS", 1)
    site = sites[0]
    frozen, read = [False], []
    real = site.disk.read_into

    class Ending(FakeFreezer):
        @contextlib.contextmanager
        def frozen(self, mounts: Sequence[Mount], budget_s: float) -> Iterator[Freeze]:
            fill(site, 0, 8, 7)
            freeze = EndingFreeze(4)
            frozen[0] = True
            yield freeze
            frozen[0] = False
            freeze.result = FreezeResult(False, 0.0, "the freeze watchdog was gone")

    def read_into(buffer: memoryview, extent: Extent) -> None:
        if frozen[0]:
            read.append(extent.length_bytes)
        real(buffer, extent)

    monkeypatch.setattr(FakeDisk, "read_into", lambda _, buffer, extent: read_into(buffer, extent))
    outcome = await cut_point([site], freezer=Ending())
    assert outcome.reason == "the freeze watchdog was gone"
    assert read == [GRANULARITY_BYTES] * 3
    await site.settle()
    assert site.replica_matches
