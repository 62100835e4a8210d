"""The database stays bounded: what is over is forgotten in small batches, what anything can still ask for is not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.config import HistorySettings
from config_server.reconciler import housekeeping
from config_server.reconciler.housekeeping import BATCH, NEWEST_EVENTS_KEPT, forget_what_is_over
from config_server.tables import EventRow, JobRow, MadeDiskRow, ProtectedItemRow, RecoveryPointRow, WriterRequestRow
from replication.store_documents import PrunePoints
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.scripted_peers import DISK, new_id

DAY = 86400 * 10**9
MANY = 30_000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def forget(site: DrivenSite) -> int:
    """Until nothing more is over; returns how many rows it was."""
    total = 0
    while True:
        async with site.lab.running.site.database.write() as session:
            forgotten = await forget_what_is_over(session, HistorySettings(), time.time_ns())
        total += forgotten
        if not forgotten:
            return total


async def count(session: AsyncSession, row: Any) -> int:
    return await session.scalar(select(func.count()).select_from(row)) or 0


def a_point(item: str, cut: str, state: str) -> dict[str, Any]:
    return {
        "item_id": item, "cut": cut, "time_ns": 1, "consistency": "crash", "final": False, "document": "{}", "state": state,
        "suspect": None, "found_ns": 1, "history_generation": 0, "history_epoch": 0, "counted_ns": 1,
    }  # fmt: skip


def a_request(item: str | None, job: str | None, kind: str, age_days: int, **changes: Any) -> dict[str, Any]:
    at_ns = time.time_ns() - age_days * DAY
    usual = {
        "id": new_id(), "key": new_id(), "kind": kind, "item_id": item, "job_id": job, "document": "{}", "state": "succeeded",
        "created_ns": at_ns, "answered_ns": at_ns, "heard_ns": at_ns, "retired": 2,
    }  # fmt: skip
    return usual | changes


def a_job(item: str, kind: str, age_days: int, **changes: Any) -> dict[str, Any]:
    at_ns = time.time_ns() - age_days * DAY
    usual = {
        "id": new_id(), "item_id": item, "number": at_ns, "kind": kind, "state": "succeeded", "step": "x", "message": "", "actor": "system",
        "parameters": "{}", "context": "{}", "done_bytes": 0, "total_bytes": 0, "created_ns": at_ns, "updated_ns": at_ns,
        "ended_ns": at_ns,
    }  # fmt: skip
    return usual | changes


async def test_a_look_at_an_item_reads_as_many_rows_as_it_has_points(site: DrivenSite) -> None:
    item = await site.replicate()
    kept = [new_id() for _ in range(3)]
    for epoch, cut in enumerate(kept, 1):
        await site.writer.publish_point(item, cut, time_ns=time.time_ns(), epoch=epoch)
    database = site.lab.running.site.database
    async with database.write() as session:
        await session.execute(
            insert(RecoveryPointRow), [a_point(item, f"deleted-{each}", "deleted") for each in range(MANY)]
        )
        long_ago = [
            a_request(item, None, "prune-points", 8, key=f"prune/{each}", created_ns=each, answered_ns=each)
            for each in range(MANY)
        ]
        await session.execute(insert(WriterRequestRow), long_ago)
        newest = PrunePoints(request=new_id(), item=item, cuts=[new_id()])
        await session.execute(
            update(WriterRequestRow)
            .where(WriterRequestRow.id == long_ago[-1]["id"])
            .values(document=newest.model_dump_json())
        )
    site.lab.running.reconciler.look_around_soon()
    await site.settle()  # the look that forgets
    async with database.read() as session:
        assert {row.cut for row in await session.scalars(select(RecoveryPointRow))} == set(kept)
    read = RowsRead(database)
    site.lab.running.reconciler.look_around_soon()
    with read:
        await site.lab.running.reconciler.run_once()
    assert 0 < read.largest <= 50


class RowsRead:
    """The most rows that one statement of the server has read from the tables that grow."""

    def __init__(self, database: Any) -> None:
        self._engine = database._engine.sync_engine
        self.largest = 0

    def __enter__(self) -> None:
        event.listen(self._engine, "before_cursor_execute", self._seen)

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._seen)

    def _seen(self, connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("SELECT") and any(name in statement for name in ("recovery_points", "writer_requests")):
            counting = connection.connection.cursor()
            counting.execute(f"SELECT count(*) FROM ({statement}) AS counted", parameters)  # noqa: S608 - of statements that are executed anyway
            self.largest = max(self.largest, counting.fetchone()[0])
            counting.close()


async def test_old_events_go_in_batches_and_the_newest_always_stay(site: DrivenSite) -> None:
    database = site.lab.running.site.database
    old = time.time_ns() - 91 * DAY
    rows = [{"time_ns": old, "actor": "system", "kind": "x", "message": "y"} for _ in range(NEWEST_EVENTS_KEPT + 1200)]
    async with database.write() as session:
        await session.execute(delete(EventRow))
        await session.execute(insert(EventRow), rows)
    async with database.write() as session:
        assert await forget_what_is_over(session, HistorySettings(), time.time_ns()) == BATCH
    assert await forget(site) == 1200 - BATCH
    async with database.read() as session:
        assert await count(session, EventRow) == NEWEST_EVENTS_KEPT


async def test_events_that_are_not_old_stay(site: DrivenSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "NEWEST_EVENTS_KEPT", 1)
    async with site.lab.running.site.database.read() as session:
        before = await count(session, EventRow)
    assert before > 1
    assert await forget(site) == 0


async def test_requests_to_prune_stay_while_a_point_waits_to_be_settled_by_one(site: DrivenSite) -> None:
    item = await site.replicate()
    async with site.lab.running.site.database.write() as session:
        await session.execute(insert(WriterRequestRow), [a_request(item, None, "prune-points", 9)])
        await session.execute(insert(RecoveryPointRow), [a_point(item, new_id(), "pruning")])
    assert await forget(site) == 0
    async with site.lab.running.site.database.write() as session:
        await session.execute(update(RecoveryPointRow).values(state="available"))
    assert await forget(site) == 1


async def test_requests_that_could_be_asked_again_or_whose_answer_could_be_met_stay(site: DrivenSite) -> None:
    item = await site.replicate()
    over, disks_left, going_on = (a_job(item, "test-migrate", 20) for _ in range(3))
    going_on |= {"state": "waiting-for-input", "ended_ns": None}
    made = {"id": new_id(), "item_id": item, "job_id": disks_left["id"], "cut": new_id(), "disk_id": DISK, "purpose": "test",
            "name": "disk", "unwanted": True}  # fmt: skip
    gone = [
        a_request(item, over["id"], "make-disks", 8),
        a_request(item, over["id"], "delete-disks", 8, state="failed"),
        a_request(item, None, "prune-points", 9),
        a_request(item, None, "prune-points", 8),
    ]
    stay = [
        a_request(item, over["id"], "make-disks", 6),
        a_request(item, over["id"], "make-disks", 8, retired=1),  # its answer is in the store
        a_request(item, over["id"], "make-disks", 8, retired=0),
        a_request(item, over["id"], "make-disks", 8, state="put", answered_ns=None, retired=0),
        a_request(item, disks_left["id"], "delete-disks", 8, state="failed"),
        a_request(item, going_on["id"], "hash-disk", 8),
        a_request(item, None, "close-generation", 8),
    ]
    database = site.lab.running.site.database
    async with database.write() as session:
        await session.execute(insert(JobRow), [over, disks_left, going_on])
        await session.execute(insert(MadeDiskRow), [made])
        for row in gone + stay:
            await session.execute(insert(WriterRequestRow), [row])
    assert await forget(site) == len(gone)
    async with database.write() as session:
        assert set(await session.scalars(select(WriterRequestRow.id))) == {row["id"] for row in stay}
        await session.execute(
            update(ProtectedItemRow).where(ProtectedItemRow.id == item).values(ended_ns=1, state="stopped")
        )
        await session.execute(
            insert(RecoveryPointRow), [a_point(item, "gone", "deleted"), a_point(item, "kept", "available")]
        )
    assert await forget(site) == 2  # closing a generation, the deleted point
    async with database.read() as session:
        kinds = list(await session.scalars(select(WriterRequestRow.kind)))
        assert "close-generation" not in kinds
        assert list(await session.scalars(select(RecoveryPointRow.cut))) == ["kept"]


async def test_jobs_that_something_rests_on_stay(site: DrivenSite) -> None:
    item = await site.replicate()
    gone = [a_job(item, "recovery-point", 92), a_job(item, "cleanup", 93), a_job(item, "recovery-point", 91)]
    made_for, asked_for = a_job(item, "test-migrate", 95), a_job(item, "test-migrate", 96)
    stay = [
        a_job(item, "recovery-point", 89),
        a_job(item, "cleanup", 91),  # the newest
        a_job(item, "resync", 95),
        a_job(item, "resync", 94),
        a_job(item, "recovery-point", 99, state="in-progress", ended_ns=None),
        a_job(item, "test-migrate", 91),
        made_for,
        asked_for,
    ]
    made = {"id": new_id(), "item_id": item, "job_id": made_for["id"], "cut": new_id(), "disk_id": DISK, "purpose": "test",
            "name": "disk"}  # fmt: skip
    database = site.lab.running.site.database
    async with database.write() as session:
        enabling = set(await session.scalars(select(JobRow.id)))
        await session.execute(insert(JobRow), gone + stay)
        await session.execute(insert(MadeDiskRow), [made])
        await session.execute(insert(WriterRequestRow), [a_request(item, asked_for["id"], "make-disks", 6)])
    assert await forget(site) == len(gone)
    async with database.read() as session:
        assert set(await session.scalars(select(JobRow.id))) == {job["id"] for job in stay} | enabling


async def test_point_that_is_lost_is_given_up_but_not_while_a_job_is_at_work_on_it(site: DrivenSite) -> None:
    item = await site.replicate()
    for disk in SOURCE:
        assert (await site.grant(disk)).status == 200
    first, second = new_id(), new_id()
    for epoch, cut in enumerate((first, second), 1):
        await site.writer.publish_point(item, cut, time_ns=time.time_ns(), epoch=epoch)
    await site.settle()
    database = site.lab.running.site.database
    job = a_job(item, "test-migrate", 0, state="in-progress", ended_ns=None, context=f'{{"cut": "{second}"}}')
    async with database.write() as session:
        await session.execute(insert(JobRow), [job])
    for cut in (first, second):
        await site.lab.store.delete_blob("recovery-points", f"{item}/{cut}")
    points = site.lab.running.reconciler._exchange._points
    await points.find_all(item)
    async with database.write() as session:
        assert set(await session.scalars(select(RecoveryPointRow.state))) == {"lost"}
        await session.execute(update(RecoveryPointRow).values(counted_ns=1))  # long before retention
    await points.prune(item)
    await points.find_all(item)
    async with database.read() as session:
        assert [(row.cut, row.state) for row in await session.scalars(select(RecoveryPointRow))] == [(second, "lost")]
    events = (await site.lab.administer("GET", "/api/v1/events?kind=point-lost")).json["items"]
    assert len(events) == 2


async def test_point_that_comes_back_in_the_very_round_in_which_it_is_given_up_is_found_anew(
    site: DrivenSite,
) -> None:
    item, old = await site.replicate(), new_id()
    store, database = site.lab.store, site.lab.running.site.database
    points = site.lab.running.reconciler._exchange._points
    for disk in SOURCE:
        assert (await site.grant(disk)).status == 200
    await site.writer.publish_point(item, old, time_ns=time.time_ns(), epoch=1)
    await site.settle()
    name = f"{item}/{old}"
    kept = await store.get_blob("recovery-points", name, max_bytes=2**20)
    assert kept is not None
    await store.delete_blob("recovery-points", name)
    await points.find_all(item)
    async with database.write() as session:
        month_ns = 30 * 86400 * 10**9
        await session.execute(update(RecoveryPointRow).values(counted_ns=RecoveryPointRow.counted_ns - month_ns))
    await store.put_blob("recovery-points", name, kept.content)  # after the look, before it is given up
    await points.prune(item)
    await site.writer.publish_point(item, new_id(), time_ns=time.time_ns(), epoch=2)
    await points.find_all(item)
    async with database.read() as session:
        assert await session.scalar(select(RecoveryPointRow.state).where(RecoveryPointRow.cut == old)) == "available"


async def test_point_that_was_deleted_and_comes_back_with_an_older_state_of_the_store_is_found_anew(
    site: DrivenSite,
) -> None:
    item, old = await site.replicate(), new_id()
    database = site.lab.running.site.database
    points = site.lab.running.reconciler._exchange._points
    await site.writer.publish_point(item, old, time_ns=time.time_ns(), epoch=1)
    await points.find_all(item)
    async with database.write() as session:
        await session.execute(update(RecoveryPointRow).values(state="deleted"))
    for state in (None, "available"):
        await points.find_all(item)
        async with database.read() as session:
            assert await session.scalar(select(RecoveryPointRow.state)) == state
