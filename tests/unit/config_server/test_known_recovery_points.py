"""Recovery points: suspect ones, retention, on demand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from config_server.tables import TrackingLossRow
from replication.documents import MAX_DOCUMENT_BYTES
from replication.store_layout import RECOVERY_POINTS_CONTAINER
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    disk_observation,
    new_id,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def points_of(site: DrivenSite) -> dict[str, bool]:
    """Every point, and whether it is suspect."""
    found = (await site.lab.administer("GET", "/api/v1/protected-items/web-1/recovery-points")).json["items"]
    return {point["cut"]: point["suspect"] is not None for point in found}


async def observe(site: DrivenSite, *, first: dict[str, Any], both: dict[str, Any]) -> None:
    """Both disks are reported with ``both``, the first one with ``first`` besides."""
    await site.observe([disk_observation(DISK, **(both | first)), disk_observation(OTHER_DISK, **both)])


async def resync(site: DrivenSite, reason: str, disk: str = DISK) -> int:
    """The agent gives a generation up and gets the next one; returns its number."""
    request = new_id()
    await site.grant(disk, request, reason)
    await site.settle()
    reply = await site.grant(disk, request, reason)
    assert reply.status == 200, reply.body
    return int(reply.json["generation"])


async def seeded_with_points(site: DrivenSite) -> tuple[str, str, str]:
    """An item whose first point is proved by a heartbeat and whose second is newer than the newest one."""
    item = await site.replicate()
    for disk in SOURCE:
        assert (await site.grant(disk)).status == 200
    proved, later = new_id(), new_id()
    begun = time.time_ns()
    await site.writer.publish_point(item, proved, time_ns=begun, epoch=4)
    await observe(site, first={}, both={"applied_epoch": 4, "sealed_epoch": 4, "newest_cut": proved})
    await site.writer.publish_point(item, later, time_ns=begun + 10**9, epoch=8)
    return item, proved, later


async def test_a_record_too_large_to_be_read_is_refused_and_the_others_are_taken_in(site: DrivenSite) -> None:
    item = await site.replicate()
    bad, good = sorted((new_id(), new_id()))
    await site.lab.store.put_blob(RECOVERY_POINTS_CONTAINER, f"{item}/{bad}", bytes(MAX_DOCUMENT_BYTES + 1))
    await site.writer.publish_point(item, good, time_ns=time.time_ns())
    await site.settle()
    assert set(await points_of(site)) == {good}
    events = (await site.lab.administer("GET", "/api/v1/events")).json["items"]
    (refused,) = [event["message"] for event in events if event["kind"] == "point-refused"]
    assert bad in refused
    assert "larger than" in refused
    await site.writer.publish_point(item, bad, time_ns=time.time_ns())
    await site.settle()
    assert set(await points_of(site)) == {bad, good}


async def test_lost_tracking_makes_points_suspect_and_they_are_never_the_last_good_one(site: DrivenSite) -> None:
    _, good, later = await seeded_with_points(site)
    await site.settle()
    at_8 = {"applied_epoch": 8, "sealed_epoch": 8}
    await observe(site, first={"doubt": "marks were lost and dirtied again"}, both={"applied_epoch": 4})
    shown = await site.item()
    assert (shown["health"], shown["suspect_points"]) == ("warning", 0)
    await observe(site, first={"tracker_health": "degraded", "tracker_reason": "two writes are missing"}, both=at_8)
    assert await points_of(site) == {later: True, good: False}
    shown = await site.item()
    assert (shown["health"], shown["suspect_points"]) == ("warning", 1)
    refused = await site.lab.administer("POST", "/api/v1/protected-items/web-1/test-migration", {"point": later})
    assert refused.status == 409
    job = await site.verb("/test-migration", {"point": "latest-processed"})
    await site.settle()
    assert (await site.job(job["id"]))["result"]["cut"] == good


async def test_resync_that_no_heartbeat_saw_makes_the_points_before_it_suspect(site: DrivenSite) -> None:
    """The agent loses tracking, resynchronizes and cuts the next point between two heartbeats, both of which say *replicating*."""
    item, proved, lost = await seeded_with_points(site)
    await site.settle()
    assert await resync(site, "cannot go on: tracking was interrupted: rebooted") == 2
    after = new_id()
    await site.writer.publish_point(item, after, time_ns=time.time_ns(), generation=2, epoch=3)
    await site.settle()
    await observe(site, first={"generation": 2}, both={"applied_epoch": 9, "sealed_epoch": 9, "newest_cut": after})
    assert await points_of(site) == {proved: False, lost: True, after: False}
    events = (await site.lab.administer("GET", "/api/v1/events?kind=points-suspect")).json["items"]
    assert "rebooted" in events[-1]["message"]


async def test_point_from_before_a_resync_is_suspect_also_if_its_record_comes_after_it(site: DrivenSite) -> None:
    """Closing the generation applied what was on its way: the point is listed when all is over. The clock was set back, too."""
    item, proved, lost = await seeded_with_points(site)
    await site.settle()
    await resync(site, "cannot vouch for tracking: overflow")
    await observe(site, first={"generation": 2}, both={"applied_epoch": 9, "sealed_epoch": 9})
    late = new_id()
    await site.writer.publish_point(item, late, time_ns=time.time_ns() - 60 * 10**9, epoch=9)
    await site.settle()
    assert await points_of(site) == {proved: False, lost: True, late: True}


async def test_resync_that_was_ordered_leaves_the_points_good(site: DrivenSite) -> None:
    _, proved, later = await seeded_with_points(site)
    await site.settle()
    await site.verb("/resync", {"disks": [DISK], "reason": "to be sure"})
    (order,) = (await site.desired())["item"]["resyncs"]
    assert await resync(site, order["reason"]) == 2
    await observe(site, first={"generation": 2, "applied_epoch": 1}, both={"applied_epoch": 9, "sealed_epoch": 9})
    await site.settle()
    assert await points_of(site) == {proved: False, later: False}
    assert (await site.item())["open_jobs"] == []


async def test_operator_s_words_do_not_make_a_loss_an_ordered_resync(site: DrivenSite) -> None:
    """An order was obeyed; then tracking is lost for a reason that the operator had typed off."""
    _, proved, later = await seeded_with_points(site)
    await site.settle()
    loss = "cannot go on: tracking was interrupted: rebooted"
    await site.verb("/resync", {"disks": [DISK], "reason": loss})
    await resync(site, loss)
    assert await points_of(site) == {proved: False, later: True}


async def test_first_generation_of_an_item_is_no_loss(site: DrivenSite) -> None:
    await site.replicate()
    assert (await site.grant(reason="initial replication")).status == 200
    async with site.lab.running.site.database.read() as session:
        assert list(await session.scalars(select(TrackingLossRow))) == []


async def test_lost_points_are_told_and_offered_again_when_the_store_has_them_again(site: DrivenSite) -> None:
    """The store is put back to an older state by mistake, and its newer one brought back; tracking was lost meanwhile."""
    item, proved, later = await seeded_with_points(site)
    await site.settle()
    store = site.lab.store
    names = [f"{item}/{cut}" for cut in (proved, later)]
    kept = [await store.get_blob("recovery-points", name, max_bytes=2**20) for name in names]
    for name in names:
        await store.delete_blob("recovery-points", name)
    reconciler = site.lab.running.reconciler
    reconciler.look_around_soon()
    await site.settle()
    assert await points_of(site) == {}
    (condition,) = [each for each in (await site.item())["conditions"] if each["code"] == "points-lost"]
    assert condition["message"].startswith("2 recovery points")
    assert reconciler.figures.snapshot.points["web-1", "lost"] == 2
    await resync(site, "cannot go on: tracking was interrupted: rebooted")
    for name, blob in zip(names, kept, strict=True):
        assert blob is not None
        await store.put_blob("recovery-points", name, blob.content)
    reconciler.look_around_soon()
    await site.settle()
    assert await points_of(site) == {proved: False, later: True}
    assert "points-lost" not in [each["code"] for each in (await site.item())["conditions"]]
    for kind, count in (("point-lost", 2), ("point-found-again", 2)):
        assert len((await site.lab.administer("GET", f"/api/v1/events?kind={kind}")).json["items"]) == count


async def test_newest_proved_point_outlives_retention_until_a_newer_one_is_proved(site: DrivenSite) -> None:
    """Else a loss could make the only points that are left suspect (R12)."""
    policy = (await site.lab.administer("GET", "/api/v1/policies")).json["items"][0]
    body = {key: value for key, value in policy.items() if key != "id"} | {"retention_s": 0}
    reply = await site.lab.administer("PUT", f"/api/v1/policies/{policy['name']}", body)
    assert reply.status == 200, reply.body
    _, proved, later = await seeded_with_points(site)
    await site.settle()
    assert await points_of(site) == {proved: False, later: False}
    await observe(site, first={}, both={"applied_epoch": 8, "sealed_epoch": 8})
    await site.settle()
    assert await points_of(site) == {later: False}


async def test_on_demand_recovery_point_is_the_job_s_own_cut(site: DrivenSite) -> None:
    item = await site.replicate()
    job = await site.verb("/recovery-points", {"consistency": "crash"})
    assert (await site.desired())["item"]["point_request"]["request"] == job["id"]
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    assert (await site.job(job["id"]))["result"]["cut"] == job["id"]
    assert (await site.desired())["item"]["point_request"] is None


async def test_point_that_an_agent_names_is_known_without_waiting_for_the_next_round(tmp_path: Path) -> None:
    now_ns = time.time_ns()  # stands still: no round becomes due
    async with driven_site(tmp_path, lambda: now_ns) as site:
        item, made = await site.replicate(), new_id()
        for disk in SOURCE:
            assert (await site.grant(disk)).status == 200
        await site.writer.publish_point(item, made, time_ns=now_ns, epoch=4)
        await site.lab.running.reconciler.run_once()
        assert await points_of(site) == {}
        for named in (new_id(), made):  # the first one is nowhere
            await observe(site, first={}, both={"applied_epoch": 4, "sealed_epoch": 4, "newest_cut": named})
            await site.lab.running.reconciler.run_once()
        assert await points_of(site) == {made: False}
