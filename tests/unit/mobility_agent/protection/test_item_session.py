"""An item at work: points when they are due, orders that go before them, cutovers that begin again; over sessions on a fake disk."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mobility_agent.block_device.standstill import QUIET, Standstill
from mobility_agent.changes import Changes
from mobility_agent.core.epoch_ledger import Epoch
from mobility_agent.protection import item_session
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.disk_supervisor import DiskEnvironment, DiskSupervisor
from mobility_agent.protection.item_session import ItemEnvironment, ItemSession, runs, structure_of
from mobility_agent.protection.point_coordinator import PointCoordinator, PointOutcome
from mobility_agent.shipping.epoch_shipper import Uplink
from replication.control_plane import (
    POINT_NEEDS_HOOKS,
    POINT_NOT_MADE,
    DesiredCutover,
    DesiredItem,
    PointRequest,
    ProcessServerAddress,
    ReplicationTiming,
    ResyncOrder,
)
from replication.identifiers import CutId, DiskId
from tests.harness.session_site import FakeFreezer, SessionSite

DISK = DiskId("22222222-2222-4222-8222-222222222222")
TIMING = ReplicationTiming(epoch_interval_s=0.0, recovery_point_interval_s=3600.0)
PROCESS_SERVER = ProcessServerAddress(identifier=str(uuid.uuid4()), url="https://ps")


def desired_item(**changes: object) -> DesiredItem:
    base = DesiredItem(
        item="11111111-1111-4111-8111-111111111111",
        disks=[DISK],
        goal="replicate",
        timing=TIMING,
        process_server=PROCESS_SERVER,
    )
    return base.model_copy(update=changes)


class SiteSupervisor:
    """A supervisor that runs the session of a ``SessionSite``, again and again."""

    def __init__(self, site: SessionSite) -> None:
        self.disk = DISK
        self.site = site
        self.session: DiskSession | None = None
        self.begun = 0
        self.orders: list[str] = []
        self.distrusting: list[str] = []
        self.may_run = asyncio.Event()
        self.may_run.set()

    async def run(self, _: Uplink) -> None:
        try:
            while True:
                await self.may_run.wait()
                self.begun += 1
                self.session = self.site.start()
                assert self.site._task is not None
                await asyncio.wait([self.site._task])
                self.session = None
                await self.site.crash()
        finally:
            self.session = None
            await self.site.crash()

    async def order_resync(self, order: str, reason: str, *, distrust_digests: bool = False) -> bool:
        if order in self.orders:
            return False
        self.orders.append(order)
        if distrust_digests:
            self.distrusting.append(order)
        return True

    async def close(self) -> None:
        return None


class _Claim:
    def __init__(self, claims: list[str]) -> None:
        self._claims = claims
        claims.append("claimed")

    def watch(self) -> Standstill:
        return QUIET

    look = watch

    def close(self) -> None:
        self._claims.append("released")


class Scene:
    def __init__(self, site: SessionSite, desired: DesiredItem, *, hooks: bool = True) -> None:
        self.site = site
        self.claims: list[str] = []
        self.hooks: list[str] = []
        self.freezer = FakeFreezer()
        coordinator = PointCoordinator(self.freezer, memoryview(bytearray(2**20)), lambda _: [], self._limits_lifted)
        environment = ItemEnvironment(
            disks=cast("DiskEnvironment", _Environment(site.directory)),
            coordinator=coordinator,
            quiesced=self._quiesced if hooks else None,
            claim=lambda _: _Claim(self.claims),
        )
        self.item = ItemSession(desired, environment)
        self.supervisor = SiteSupervisor(site)
        self.item.supervisors = {DISK: cast("DiskSupervisor", self.supervisor)}

    @asynccontextmanager
    async def _quiesced(self) -> AsyncIterator[None]:
        self.hooks.append("pre")
        yield
        self.hooks.append("post")

    @contextmanager
    def _limits_lifted(self) -> Iterator[None]:
        self.hooks.append("limits lifted")
        yield
        self.hooks.append("limits hold")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)


class _Environment:
    """What a supervisor's constructor reads."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir


@asynccontextmanager
async def running(site: SessionSite, desired: DesiredItem, *, hooks: bool = True) -> AsyncIterator[Scene]:
    scene = Scene(site, desired, hooks=hooks)
    task = asyncio.create_task(scene.item.run(cast("Uplink", site.sink)))
    try:
        yield scene
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionSite:
    monkeypatch.setattr(item_session, "_POLL_S", 0.002)
    site = SessionSite(tmp_path, DISK)
    site.disk.write(0, b"x" * site.geometry.size_bytes)
    return site


async def test_a_point_is_made_when_seeding_is_over_and_no_other_until_it_is_due(site: SessionSite) -> None:
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: len(site.sink.points) == 1)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert len(site.sink.points) == 1
        assert scene.item.newest_outcome is not None
        assert scene.item.newest_outcome.made


async def test_a_request_is_answered_by_its_name_and_by_hooks_if_it_asks_for_them(site: SessionSite) -> None:
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: len(site.sink.points) == 1)
        request = PointRequest(request=str(uuid.uuid4()), consistency="app")
        scene.item.update(desired_item(point_request=request))
        await scene.until(lambda: request.request in site.sink.points)
        # The applications are at rest between the hooks: nothing waits for a limit there, and only there.
        assert scene.hooks == ["pre", "limits lifted", "limits hold", "post"]


async def test_a_point_that_needs_hooks_where_there_are_none_is_told_with_the_remedy(site: SessionSite) -> None:
    async with running(site, desired_item(), hooks=False) as scene:
        await scene.until(lambda: len(site.sink.points) == 1)
        scene.item.update(desired_item(point_request=PointRequest(request=str(uuid.uuid4()), consistency="app")))
        await scene.until(lambda: scene.item.point_problem is not None)
        problem = scene.item.point_problem
        assert problem is not None
        assert (problem.code, problem.message) == (
            POINT_NEEDS_HOOKS,
            "this point needs quiesce hooks, and none are configured",
        )
        assert "quiesce.pre" in (problem.hint or "")


async def test_a_point_that_takes_too_long_gives_up_and_nothing_else_does(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: len(site.sink.points) == 1)
        monkeypatch.setattr(item_session, "POINT_DEADLINE_S", 0.05)
        site.sink.failures = 10**9
        scene.item.update(desired_item(point_request=PointRequest(request=str(uuid.uuid4()))))
        site.disk.write(0, b"y" * 512)
        await scene.until(lambda: scene.item.newest_outcome is not None and not scene.item.newest_outcome.made)
        assert scene.item.newest_outcome is not None
        assert "longer than" in scene.item.newest_outcome.reason
        assert scene.item.point_problem is not None
        assert scene.item.point_problem.code == POINT_NOT_MADE
        site.sink.failures = 0
        await site.settle()
        assert site.replica_matches


async def test_a_resync_order_begins_another_session_once(site: SessionSite) -> None:
    order = ResyncOrder(request=str(uuid.uuid4()), disk=DISK, reason="asked", distrust_digests=True)
    foreign = ResyncOrder(request=str(uuid.uuid4()), disk=str(uuid.uuid4()), reason="not ours")
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: scene.supervisor.begun == 1)
        scene.item.update(desired_item(resyncs=[foreign, order]))
        await scene.until(lambda: scene.supervisor.begun == 2)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert scene.supervisor.begun == 2
        assert scene.supervisor.orders == scene.supervisor.distrusting == [order.request]


async def test_a_cutover_goes_before_points_and_is_given_up_when_it_is_not_desired_any_more(site: SessionSite) -> None:
    cutover = DesiredCutover(job=str(uuid.uuid4()), mode="offline-disk")
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: len(site.sink.points) == 1)
        scene.item.update(desired_item(cutover=cutover))
        await scene.until(lambda: scene.item.cutover is not None and scene.item.cutover.identity_claimed)
        assert scene.item.cutover is not None
        assert scene.item.cutover.cut in site.sink.points
        assert scene.claims == ["claimed"]
        scene.item.update(desired_item())
        await scene.until(lambda: scene.item.cutover is None)
        assert scene.claims == ["claimed", "released"]
        site.disk.write(0, b"z" * 512)
        await site.settle()
        assert site.replica_matches


async def test_a_cutover_whose_session_ended_begins_again_with_the_next(site: SessionSite) -> None:
    cutover = DesiredCutover(job=str(uuid.uuid4()), mode="offline-disk")
    async with running(site, desired_item()) as scene:
        await scene.until(lambda: len(site.sink.points) == 1)
        site.sink.applying = False
        site.disk.write(0, b"z" * 512)
        scene.item.update(desired_item(cutover=cutover))
        await scene.until(lambda: scene.item.cutover is not None and scene.item.cutover.state == "sealed")
        scene.supervisor.may_run.clear()
        assert site._task is not None
        site._task.cancel()
        await scene.until(lambda: scene.item.cutover is None)
        assert scene.claims == ["claimed", "released"]
        site.sink.applying = True
        await site.sink.apply_ready()
        scene.supervisor.may_run.set()
        await scene.until(lambda: scene.item.cutover is not None and scene.item.cutover.identity_claimed)
        assert site.replica_matches


def test_what_runs_and_what_must_stay_the_same() -> None:
    cutover = DesiredCutover(job=str(uuid.uuid4()), mode="offline-disk")
    assert runs(desired_item())
    assert not runs(desired_item(goal="pause"))
    assert not runs(desired_item(goal="hold"))
    assert runs(desired_item(goal="hold", cutover=cutover))
    same = structure_of(desired_item())
    live = desired_item(cutover=cutover, timing=TIMING.model_copy(update={"recovery_point_interval_s": 9.0}))
    assert structure_of(live) == same
    for change in (
        {"goal": "pause"},
        {"disks": [DISK, str(uuid.uuid4())]},
        {"timing": TIMING.model_copy(update={"epoch_interval_s": 9.0})},
        {"process_server": None},
        {"process_server": PROCESS_SERVER.model_copy(update={"identifier": str(uuid.uuid4())})},
    ):
        assert structure_of(desired_item(**change)) != same


def test_points_that_fail_are_told_seldom_and_that_they_are_made_again_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "mobility_agent")
    environment = SimpleNamespace(disks=_Environment(Path("/nowhere")), changes=Changes())
    item = ItemSession(desired_item(), cast("ItemEnvironment", environment))
    cut = CutId(str(uuid.uuid4()))
    made = PointOutcome(cut, {DISK: cast("Epoch", None)})
    item._tell_outcome(made, 0.0)
    for second in range(400):
        item._tell_outcome(PointOutcome(cut, {}, f"{second} bytes changed"), float(second))
    item._tell_outcome(made, 401.0)
    item._tell_outcome(made, 402.0)
    assert [(record.message, vars(record)["fields"].get("reason")) for record in caplog.records] == [
        ("cannot make a recovery point", "0 bytes changed"),
        ("cannot make a recovery point", "300 bytes changed"),
        ("recovery points are made again", None),
    ]
