"""Quiesce hooks around a point: applications are brought to rest when nothing has to be waited for any more, and for a short time only."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mobility_agent.protection import item_session, point_coordinator, point_schedule
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.point_coordinator import PAGE_BYTES, PointCoordinator, PointOutcome, Rest
from replication.control_plane import DesiredItem, PointRequest
from replication.epoch_manifest import EpochFlag
from replication.identifiers import CutId, ItemId
from tests.harness.session_site import GRANULARITY_BYTES, FakeFreezer, SessionSite
from tests.unit.mobility_agent.protection.test_item_session import DISK, Scene, desired_item, running

ITEM = ItemId("11111111-1111-4111-8111-111111111111")
ROOM_GRANULES = 16


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionSite:
    monkeypatch.setattr(item_session, "_POLL_S", 0.002)
    site = SessionSite(tmp_path, DISK)
    site.disk.write(0, b"x" * site.geometry.size_bytes)
    return site


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes in an outage takes a moment."""
    monkeypatch.setattr(item_session, "POINT_DEADLINE_S", 0.1)
    monkeypatch.setattr(point_schedule, "FAILED_POINT_RETRY_S", 0.01)


def asks_for_app() -> DesiredItem:
    return desired_item(point_request=PointRequest(request=str(uuid.uuid4()), consistency="app"))


async def fail_points(scene: Scene, count: int) -> None:
    """Until so many points more have failed."""
    for _ in range(count):
        before = scene.item.newest_outcome
        await scene.until(lambda before=before: scene.item.newest_outcome is not before)  # type: ignore[misc]
        assert scene.item.newest_outcome is not None
        assert not scene.item.newest_outcome.made


@pytest.mark.usefixtures("impatient")
async def test_while_the_process_server_is_away_no_application_is_brought_to_rest(site: SessionSite) -> None:
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: scene.item.newest_outcome is not None)
        site.sink.failures = 10**9
        site.disk.write(0, b"y" * 512)
        scene.item.update(asks_for_app())
        await fail_points(scene, 3)
        assert scene.hooks == []
        site.sink.failures = 0
        await scene.until(lambda: len(site.sink.points) == 2)
        assert scene.hooks == ["pre", "limits lifted", "limits hold", "post"]


@pytest.mark.usefixtures("impatient")
async def test_while_the_store_applies_nothing_no_application_is_brought_to_rest(site: SessionSite) -> None:
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: scene.item.newest_outcome is not None)
        site.sink.applying = False
        session = scene.supervisor.session
        assert session is not None
        while len(session.ledger.epochs) <= session.limits.unconfirmed_epochs:
            site.disk.write(0, uuid.uuid4().bytes * 32)
            await asyncio.sleep(0.002)
        scene.item.update(asks_for_app())
        await fail_points(scene, 3)
        assert scene.hooks == []


class WritingHooks(list[str]):
    """A pre hook that writes to the disk, as a checkpoint does: the point's epoch is not an empty one."""

    def __init__(self, site: SessionSite) -> None:
        super().__init__()
        self._site = site

    def append(self, told: str) -> None:
        super().append(told)
        if told == "pre":
            self._site.disk.write(0, b"p" * 512)


@pytest.mark.usefixtures("impatient")
async def test_a_process_server_that_goes_away_in_the_midst_of_a_point_keeps_no_application_at_rest(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PointCoordinator._ship
    hooks_at_shipping: list[list[str]] = []
    async with running(site, desired_item()) as scene:

        async def ship(*arguments: object) -> object:
            hooks_at_shipping.append(list(scene.hooks))
            site.sink.failures = 10**9
            return await real(*arguments)  # type: ignore[arg-type]

        await scene.until(lambda: scene.item.newest_outcome is not None)
        monkeypatch.setattr(PointCoordinator, "_ship", ship)
        scene.hooks = WritingHooks(site)
        scene.item.update(asks_for_app())
        await fail_points(scene, 4)
        assert hooks_at_shipping == [["pre", "limits lifted", "limits hold", "post"]]
        assert scene.hooks.count("pre") == 1, "the point's epoch must be shipped before the next one is cut"


class Applications:
    """Notes when they are at rest, and does something then."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.at_pre: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        self.told.append("pre")
        self.at_pre()
        try:
            yield
        finally:
            self.told.append("post")


@pytest.fixture
async def session(site: SessionSite) -> AsyncIterator[DiskSession]:
    session = site.start()
    await site.settle()
    yield session
    await site.crash()


async def cut_at_rest(session: DiskSession, applications: Applications, budget_s: float = 30.0) -> PointOutcome:
    memory = memoryview(bytearray(ROOM_GRANULES * (GRANULARITY_BYTES + PAGE_BYTES)))
    coordinator = PointCoordinator(FakeFreezer(), memory, lambda _: [])
    rest = Rest(applications.quiesced, budget_s)
    async with asyncio.timeout(30):
        outcome = await coordinator.cut(
            ITEM,
            {DISK: session},
            CutId(str(uuid.uuid4())),
            flags=EpochFlag.APP_CONSISTENT,
            freeze_budget_s=1.0,
            rest=rest,
        )
    assert rest.was_begun == ("pre" in applications.told)
    return outcome


def write_more_than_the_last_round_holds(site: SessionSite) -> None:
    site.disk.write(0, uuid.uuid4().bytes * (2 * ROOM_GRANULES * GRANULARITY_BYTES // 16))


async def test_the_rounds_come_before_the_rest(site: SessionSite, session: DiskSession) -> None:
    applications = Applications()
    write_more_than_the_last_round_holds(site)

    def is_shipped() -> None:
        assert session.ledger.pending_granules == 0
        assert session.ledger.open_epoch is None
        site.disk.write(0, b"c" * 512)

    applications.at_pre = is_shipped
    outcome = await cut_at_rest(session, applications)
    at_cut = bytes(site.disk.content)
    assert outcome.made
    await site.settle()
    assert site.sink.points[outcome.cut] == at_cut
    assert applications.told == ["pre", "post"]


async def test_what_the_pre_hook_writes_may_be_more_than_the_last_round_holds(
    site: SessionSite, session: DiskSession
) -> None:
    applications = Applications()
    applications.at_pre = lambda: write_more_than_the_last_round_holds(site)
    outcome = await cut_at_rest(session, applications)
    at_cut = bytes(site.disk.content)
    assert outcome.made
    await site.settle()
    assert site.sink.points[outcome.cut] == at_cut
    assert applications.told == ["pre", "post"]


async def test_applications_are_at_rest_no_longer_than_the_budget(site: SessionSite, session: DiskSession) -> None:
    """The pre hook writes much, and while that is shipped the process server goes away: it is not waited for."""
    applications = Applications()

    def write_and_cut_off() -> None:
        write_more_than_the_last_round_holds(site)
        site.sink.failures = 10**9

    applications.at_pre = write_and_cut_off
    outcome = await cut_at_rest(session, applications, budget_s=0.1)
    assert not outcome.made
    assert outcome.is_spent
    assert "at rest took longer than its budget of 0.1 s" in outcome.reason
    assert applications.told == ["pre", "post"]
    site.sink.failures = 0
    await site.settle()
    assert site.replica_matches


@pytest.mark.parametrize(("scan_s", "is_made"), [(0.0, False), (60.0, True)])
async def test_the_time_that_scans_take_is_beside_the_budget(
    site: SessionSite, session: DiskSession, monkeypatch: pytest.MonkeyPatch, scan_s: float, is_made: bool
) -> None:
    monkeypatch.setattr(point_coordinator, "scan_s", lambda _: scan_s)
    site.disk.write(0, b"z" * 512)
    outcome = await cut_at_rest(session, Applications(), budget_s=0.0)
    assert outcome.made == is_made


async def test_a_scan_is_known_by_its_time_and_a_tracker_in_the_kernel_by_none(session: DiskSession) -> None:
    session.harvest_s = 7.0
    assert point_coordinator.scan_s([session]) == 0.0
    session.harvest_reads_disk = True
    assert point_coordinator.scan_s([session, session]) == 14.0
