"""A configuration server that dies at any point goes on where it was: nothing is forgotten, nothing is done twice.

The whole life of an item (protect, drill, clean-up, migrate, complete) is driven through the services and the reconciler; the process
"dies" at given steps, before or after any transaction or call to the store, and is built anew from the database file alone.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from config_server import migration, protection
from config_server.config import HeartbeatSettings
from config_server.job_documents import TestMigrationParameters
from config_server.tables import EventRow, JobRow, MadeDiskRow
from tests.harness.mortal_site import OPERATOR, SOURCE, Fate, World, directory
from tests.harness.scripted_peers import DISK, OTHER_DISK


async def whole_life(world: World) -> None:
    world.open()
    await world.survive(world.populate)
    now, beat = world.clock, HeartbeatSettings(agent_timeout_s=10**6, process_server_timeout_s=10**6)
    begun = {"enabling-replication", "initial-replication-queued", "initial-replication", "replicating"}
    await world.order(
        lambda s: protection.protect(s, "web-1", None, "default", beat, world.ages, OPERATOR, now()), begun
    )
    await world.live_until("replicating")
    testing = {"test-migration-pending", "test-migration-in-progress", "test-migration-clean-up-pending"}
    await world.order(lambda s: migration.test_migrate(s, "web-1", TestMigrationParameters(), OPERATOR, now()), testing)
    await world.live_until("test-migration-clean-up-pending")
    assert {name: world.writer.contents[name] for name in world.writer.contents} == {
        "web-1-disk1-Test": SOURCE[DISK],
        "web-1-disk2-Test": SOURCE[OTHER_DISK],
    }
    await world.order(lambda s: migration.clean_up(s, "web-1", OPERATOR, now()), {"test-migration-clean-up"})
    await world.live_until("replicating")
    assert world.writer.contents == {}
    await world.order(
        lambda s: migration.migrate(s, "web-1", "offline-disk", OPERATOR, now()), {"migration-in-progress", "migrated"}
    )
    await world.live_until("migrated")
    await world.order(
        lambda s: migration.complete(
            s, "web-1", discard_source_changes=False, ages=world.ages, actor=OPERATOR, now_ns=now()
        ),
        {"completing", "completed"},
    )
    await world.live_until("completed")


async def check_end(world: World) -> None:
    assert world.writer.contents == {"web-1-disk1": SOURCE[DISK], "web-1-disk2": SOURCE[OTHER_DISK]}
    kinds = [request.kind for request in world.writer.worked]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "make-disks": 2,
        "delete-disks": 1,
        "hash-disk": 2,
        "close-generation": 2,
        "delete-replicas": 1,
    }
    async with world.database.read() as session:
        jobs = {job.kind: job.state for job in await session.scalars(select(JobRow))}
        ended = [e.message for e in await session.scalars(select(EventRow).where(EventRow.kind == "job-succeeded"))]
        left = [row.name for row in await session.scalars(select(MadeDiskRow)) if row.deleted_ns is None]
    assert jobs == dict.fromkeys(("enable-replication", "test-migrate", "cleanup", "migrate", "complete"), "succeeded")
    assert len(ended) == len(jobs)
    assert sorted(left) == ["web-1-disk1", "web-1-disk2"]


def live(gaps: list[int]) -> int:
    """The whole life with deaths after each of ``gaps`` steps; returns how many there were."""

    async def act() -> int:
        with directory() as path:
            world = World(path, Fate(gaps))
            try:
                await whole_life(world)
                await check_end(world)
            finally:
                await world.database.close()
            return world.fate.deaths

    return asyncio.run(act())


def test_life_without_a_death() -> None:
    assert live([]) == 0


@pytest.mark.heavy("a reconciler that dies at every step")
@settings(max_examples=8)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
@example([1] * 40)
@example([13] * 20)
def test_deaths_at_any_step_change_nothing_of_the_outcome(gaps: list[int]) -> None:
    deaths = live(gaps)
    assert deaths == len(gaps) or sum(gaps) > 300
