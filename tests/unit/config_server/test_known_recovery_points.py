"""Recovery points: suspect ones, retention, on demand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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


async def test_doubt_makes_points_suspect_and_they_are_never_the_last_good_one(site: DrivenSite) -> None:
    item = await site.replicate()
    good, later = new_id(), new_id()
    begun = time.time_ns()
    await site.writer.publish_point(item, good, time_ns=begun)
    await site.settle()
    await site.observe([disk_observation(disk, newest_cut=good) for disk in SOURCE])
    await site.writer.publish_point(item, later, time_ns=begun + 10**9)
    await site.settle()
    repaired = disk_observation(DISK, newest_cut=good, doubt="marks were lost and dirtied again")
    await site.observe([repaired, disk_observation(OTHER_DISK, newest_cut=good)])
    shown = await site.item()
    assert (shown["health"], shown["suspect_points"]) == ("warning", 0)
    doubtful = disk_observation(
        DISK, newest_cut=later, tracker_health="degraded", tracker_reason="two writes are missing from the bitmap"
    )
    await site.observe([doubtful, disk_observation(OTHER_DISK, newest_cut=later)])
    points = (await site.lab.administer("GET", "/api/v1/protected-items/web-1/recovery-points")).json["items"]
    assert [(point["cut"], point["suspect"] is not None) for point in points] == [(later, True), (good, False)]
    shown = await site.item()
    assert (shown["health"], shown["suspect_points"]) == ("warning", 1)
    refused = await site.lab.administer("POST", "/api/v1/protected-items/web-1/test-migration", {"point": later})
    assert refused.status == 409
    job = await site.verb("/test-migration", {"point": "latest-processed"})
    await site.settle()
    assert (await site.job(job["id"]))["result"]["cut"] == good


async def test_points_are_pruned_by_retention_but_not_the_newest_good_one(site: DrivenSite) -> None:
    item = await site.replicate()
    now = time.time_ns()
    hour = 3600 * 10**9
    cuts = {age: new_id() for age in (0, 1, 5, 30)}
    for age, cut in cuts.items():
        await site.writer.publish_point(item, cut, time_ns=now - age * hour)
    await site.settle()
    points = (await site.lab.administer("GET", "/api/v1/protected-items/web-1/recovery-points")).json["items"]
    assert [point["cut"] for point in points] == [cuts[0], cuts[1], cuts[5]]
    left = {blob.name async for blob in site.lab.store.list_blobs("recovery-points", f"{item}/")}
    assert left == {f"{item}/{cuts[age]}" for age in (0, 1, 5)}


async def test_on_demand_recovery_point_is_the_job_s_own_cut(site: DrivenSite) -> None:
    item = await site.replicate()
    job = await site.verb("/recovery-points", {"consistency": "crash"})
    assert (await site.desired())["item"]["point_request"]["request"] == job["id"]
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    assert (await site.job(job["id"]))["result"]["cut"] == job["id"]
    assert (await site.desired())["item"]["point_request"] is None
