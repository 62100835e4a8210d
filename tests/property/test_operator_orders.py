"""Operators' orders in any order and at any moment: refused or carried out, never half; nothing hangs, nothing is deleted unasked.

A sequence of orders is given between single steps of reconciler, agent and writer, while the process dies now and then. The agent takes
a cutover through its stages one by one, so that each order meets each stage. Afterwards everybody works until nothing moves any more:
then no job is open, each ended once, the store holds exactly the disks that the database names, and the item can be brought to its end.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import migration, protection
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.job import OPEN_STATES
from config_server.job_documents import ResyncParameters, TestMigrationParameters
from config_server.tables import (
    EventRow,
    GenerationRow,
    JobRow,
    MachineRow,
    MadeDiskRow,
    ProtectedItemRow,
    RecoveryPointRow,
)
from replication.control_plane import AgentObservation, CutoverObservation, DesiredItem, GenerationRequest
from replication.errors import BlockferryError
from tests.harness.mortal_site import MACHINE, OPERATOR, SOURCE, Fate, World, directory
from tests.harness.scripted_peers import disk_observation, observation, source_hashes

Verb = Callable[[AsyncSession, int], Awaitable[Any]]
BEAT: Final = HeartbeatSettings(agent_timeout_s=10**6, process_server_timeout_s=10**6)
STAGES: Final = ("waiting-for-disk", "shipping", "sealed", "applied")
SETTLING_PASSES: Final = 24
ORDERS: Final[dict[str, Verb]] = {
    "pause": lambda s, now: protection.pause(s, "web-1", OPERATOR, now),
    "resume": lambda s, now: protection.resume(s, "web-1", OPERATOR, now),
    "resync": lambda s, now: protection.resync(s, "web-1", ResyncParameters(), OPERATOR, now),
    "resync-all": lambda s, now: protection.resync(s, "web-1", ResyncParameters(distrust_digests=True), OPERATOR, now),
    "point": lambda s, now: protection.request_recovery_point(s, "web-1", "crash", OPERATOR, now),
    "test": lambda s, now: migration.test_migrate(s, "web-1", TestMigrationParameters(), OPERATOR, now),
    "test-processed": lambda s, now: migration.test_migrate(
        s, "web-1", TestMigrationParameters(point="latest-processed"), OPERATOR, now
    ),
    "clean-up": lambda s, now: migration.clean_up(s, "web-1", OPERATOR, now),
    "migrate": lambda s, now: migration.migrate(s, "web-1", "offline-disk", OPERATOR, now),
    "cancel": lambda s, now: migration.cancel(s, "web-1", delete_disks=False, actor=OPERATOR, now_ns=now),
    "cancel-delete": lambda s, now: migration.cancel(s, "web-1", delete_disks=True, actor=OPERATOR, now_ns=now),
    "complete": lambda s, now: migration.complete(
        s, "web-1", discard_source_changes=False, ages=Ages(lambda: now, lambda: 0.0), actor=OPERATOR, now_ns=now
    ),
    "stop": lambda s, now: protection.stop(s, "web-1", OPERATOR, now),
}
STEPS: Final = ("reconcile", "agent", "writer")
STABLE: Final = {"replicating", "paused", "test-migration-clean-up-pending", "migrated", "completed", "stopped"}
BEGUN: Final = {"enabling-replication"}
LEAVING: Final = {
    "replicating": "stop",
    "paused": "stop",
    "test-migration-clean-up-pending": "clean-up",
    "migrated": "complete",
}


class Site(World):
    """With an agent that takes its time over a cutover, obeys each resync once, and seeds before it replicates."""

    def __init__(self, path: Path, fate: Fate) -> None:
        super().__init__(path, fate)
        self.stages: dict[str, int] = {}
        self.obeyed: set[str] = set()
        self.wanted: dict[str, tuple[str, str, bool]] = {
            disk: (self.generation_requests[disk], "initial replication", False) for disk in SOURCE
        }
        self.generation: dict[str, int] = {}
        self.paused = False
        self.accepted: list[str] = []

    async def have_generations(self) -> None:
        for disk, (request, reason, distrust) in list(self.wanted.items()):
            body = GenerationRequest(
                request=request,
                reason=reason,
                size_bytes=len(SOURCE[disk]),
                granularity_bytes=65536,
                distrust_digests=distrust,
            )
            try:
                granted = await self.generations.grant(MACHINE, disk, body)
            except BlockferryError:
                continue
            self.generation[disk] = granted.generation
            del self.wanted[disk]

    async def observe(self, desired: DesiredItem, revision: int) -> AgentObservation:
        for order in desired.resyncs:
            if order.request not in self.obeyed:
                self.obeyed.add(order.request)
                _, due, distrust = self.wanted.get(order.disk, ("", "", False))
                if not due or (order.distrust_digests and not distrust):
                    reason = f"{due}; {order.reason}" if due else order.reason
                    self.wanted[order.disk] = (str(uuid.uuid4()), reason, order.distrust_digests)
        if desired.goal == "pause":
            disks = [disk_observation(disk, phase="paused", generation=self.generation.get(disk)) for disk in SOURCE]
            return observation("web-1", disks, revision=revision)
        if desired.point_request is not None:
            await self.publish_point(desired.item, desired.point_request.request, final=False)
        cutover = None
        if desired.cutover is not None:
            stage = self.stages.get(desired.cutover.job, 0)
            self.stages[desired.cutover.job] = min(stage + 1, len(STAGES) - 1)
            cutover = await self.cutover(desired.item, desired.cutover.job, STAGES[stage])
        disks = [
            disk_observation(
                disk,
                size_bytes=len(content),
                generation=self.generation.get(disk),
                phase="waiting" if disk in self.wanted else "replicating",
            )
            for disk, content in SOURCE.items()
        ]
        return observation("web-1", disks, revision=revision, cutover=cutover)

    async def cutover(self, item: str, job: str, state: Any) -> CutoverObservation:
        cut = str(uuid.uuid5(uuid.UUID(job), "cut"))
        if state not in ("sealed", "applied"):
            return CutoverObservation(job=job, state=state)
        await self.publish_point(item, cut, final=True)
        hashes = source_hashes(SOURCE) if state == "applied" else []
        return CutoverObservation(
            job=job, state=state, cut=cut, source_hashes=hashes, identity_claimed=state == "applied"
        )

    async def act(self, name: str) -> None:
        """One order or one step; an order that is refused changes nothing."""
        match name:
            case "reconcile":
                await self.survive(self.reconcile)
            case "agent":
                await self.survive(self.agent)
            case "writer":
                await self.writer.work()
            case _:
                await self.survive(lambda: self.ordered(name))

    async def ordered(self, name: str) -> None:
        try:
            await self.write(lambda session: ORDERS[name](session, self.clock()))
        except BlockferryError:
            return
        self.accepted.append(name)

    async def settle(self) -> str:
        """Let everybody work until two passes in a row have changed nothing."""
        seen: list[Any] = []
        for _ in range(SETTLING_PASSES):
            for step in STEPS:
                await self.act(step)
            async with self.database.read() as session:
                events = await session.scalar(select(func.count()).select_from(EventRow))
                steps = list(await session.scalars(select(JobRow.step).order_by(JobRow.id)))
            seen.append((await self.state(), events, steps, dict(self.stages), len(self.writer.worked)))
            if len(seen) > 3 and seen[-1] == seen[-2] == seen[-3]:
                break
        return await self.state()


async def check_settled(site: Site, state: str) -> None:
    """Nothing is under way that nobody waits for, and store and database agree."""
    assert state in STABLE, state
    async with site.database.read() as session:
        jobs = list(await session.scalars(select(JobRow)))
        disks = list(await session.scalars(select(MadeDiskRow).where(MadeDiskRow.deleted_ns.is_(None))))
        ends = dict(
            (
                await session.execute(
                    select(EventRow.job_id, func.count())
                    .where(EventRow.kind.in_(["job-succeeded", "job-failed", "job-cancelled"]))
                    .group_by(EventRow.job_id)
                )
            ).all()
        )
        machine = await session.get_one(MachineRow, MACHINE)
        item = (await session.scalars(select(ProtectedItemRow))).one()
        generations = await session.scalar(select(func.count()).select_from(GenerationRow)) or 0
        points = list(await session.scalars(select(RecoveryPointRow)))
    still = {job.kind for job in jobs if job.state in OPEN_STATES}
    waits = {"resync", "recovery-point"} if state == "paused" else set()
    if waits and item.seeded_ns is None:
        waits.add("enable-replication")  # paused before initial replication was over
    assert still <= waits, still
    assert ends == {job.id: 1 for job in jobs if job.state not in OPEN_STATES}
    assert not any(disk.unwanted for disk in disks)
    assert {disk.name for disk in disks} == set(site.writer.contents)
    assert not any(point.suspect for point in points), "nothing was lost, whatever was ordered"
    desired = None if machine.desired in (None, "null") else DesiredItem.decode(str(machine.desired).encode())
    goal = None if desired is None else desired.goal
    goals = {"paused": "pause", "migrated": "hold", "completed": None, "stopped": None}
    if state == "test-migration-clean-up-pending":
        assert goal in ("replicate", "pause")
    else:
        assert goal == goals.get(state, "replicate")
    kinds = [request.kind for request in site.writer.worked]
    assert ("delete-replicas" in kinds) == (state in ("completed", "stopped") and generations > 0)
    assert kinds.count("delete-replicas") <= 1
    kept = {disk.job_id for disk in disks if disk.purpose == "final"}
    migrations = {job.id: job.state for job in jobs if job.kind == "migrate"}
    assert all(migrations[job] == "succeeded" for job in kept)


async def whole_story(site: Site, actions: list[str]) -> None:
    site.open()
    await site.survive(site.populate)
    await site.order(
        lambda s: protection.protect(s, "web-1", None, "default", BEAT, site.ages, OPERATOR, site.clock()), BEGUN
    )
    for name in actions:
        await site.act(name)
    state = await site.settle()
    await check_settled(site, state)
    for _ in range(4):
        if state in ("completed", "stopped"):
            break
        await site.act(LEAVING[state])
        state = await site.settle()
        await check_settled(site, state)
    assert state in ("completed", "stopped")


def play(actions: list[str], gaps: list[int]) -> Site:
    async def act() -> Site:
        with directory() as path:
            site = Site(path, Fate(gaps))
            try:
                await whole_story(site, actions)
            finally:
                await site.database.close()
            return site

    return asyncio.run(act())


SEEDED: Final = [*STEPS, *STEPS, *STEPS]
"""Enough for the item to replicate."""


@settings(max_examples=4)
@given(
    st.lists(st.sampled_from([*ORDERS, *STEPS, *STEPS, *STEPS]), max_size=40),
    st.lists(st.integers(1, 120), max_size=3),
)
@example(["stop", "stop"], [])
@example([*STEPS, "stop", "agent", "agent", "reconcile", "stop"], [])
@example([*SEEDED, "resync", "migrate", "agent", "pause", "resume", "migrate", "resync"], [])
@example([*SEEDED, "test", "pause", "agent", "reconcile", "pause", "migrate", "clean-up"], [])
@example([*SEEDED, "point", *STEPS, *STEPS, "pause", "test-processed", *STEPS, "clean-up", "stop"], [])
def test_orders_in_any_order_leave_nothing_under_way(actions: list[str], gaps: list[int]) -> None:
    play([*SEEDED[: 3 * (len(actions) % 4)], *actions], gaps)


@pytest.mark.parametrize(
    ("order", "steps"), [("cancel", 0), ("cancel", 7), ("cancel", 10), ("cancel", 13), ("cancel-delete", 24)]
)
def test_migration_cancelled_at_each_step_can_be_ordered_again(order: str, steps: int) -> None:
    during = [STEPS[number % 3] for number in range(steps)]
    site = play([*SEEDED, "migrate", *during, order, order, "agent", "reconcile", "migrate"], [])
    assert site.accepted[:3] == ["migrate", order, "migrate"]


@pytest.mark.parametrize("steps", [0, 10])
def test_migration_comes_before_other_orders(steps: int) -> None:
    during = [STEPS[number % 3] for number in range(steps)]
    others = ["migrate", "pause", "resync", "test", "point", "clean-up", "stop"]
    site = play([*SEEDED, "migrate", *during, *others, *(STEPS * 2), *others], [])
    assert site.accepted[:2] == ["migrate", "complete"]


def test_completing_twice_deletes_once_and_keeps_the_final_disks() -> None:
    site = play([*SEEDED, "migrate", *(STEPS * 8), "complete", "complete", *(STEPS * 4), "complete"], [])
    assert site.accepted.count("complete") == 1
    assert site.writer.contents == {
        f"web-1-disk{number}": content for number, content in enumerate(SOURCE.values(), start=1)
    }
