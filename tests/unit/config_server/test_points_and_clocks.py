"""Recovery points of a server whose clock is wrong, and points that are found late: what is kept, chosen, shown and told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from config_server.tables import PolicyRow, RecoveryPointRow
from tests.harness.driven_site import DISKS, DrivenSite, driven_site
from tests.harness.scripted_peers import inventory, new_id

HOUR_S = 3600
DAY_S = 24 * HOUR_S


class SetClock:
    """The configuration server's clocks: real time and what the test has let pass; the one that is shown can be set."""

    def __init__(self) -> None:
        self.passed_s = 0
        self.set_s = 0

    def __call__(self) -> int:
        return time.time_ns() + (self.passed_s + self.set_s) * 10**9

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s


class ClockSite:
    def __init__(self, site: DrivenSite, clock: SetClock, item: str) -> None:
        self.site = site
        self.clock = clock
        self.item = item
        self.epoch = 0

    async def cut(self, *, after_s: int, ahead_s: int = 0) -> str:
        """A point that is cut when ``after_s`` have passed, by a clock that is ahead; nobody looks for it yet."""
        self.clock.passed_s += after_s
        self.epoch += 1
        made = new_id()
        await self.site.writer.publish_point(self.item, made, time_ns=self.clock() + ahead_s * 10**9, epoch=self.epoch)
        return made

    async def settle(self) -> None:
        self.site.lab.running.reconciler.look_around_soon()
        await self.site.settle()

    async def points(self) -> list[Any]:
        return list(
            (await self.site.lab.administer("GET", "/api/v1/protected-items/web-1/recovery-points")).json["items"]
        )

    async def cuts(self) -> list[str]:
        return [point["cut"] for point in await self.points()]

    async def conditions(self) -> list[str]:
        return [condition["code"] for condition in (await self.site.item())["conditions"]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ClockSite]:
    clock = SetClock()
    async with driven_site(tmp_path, clock, clock.monotonic) as made:
        yield ClockSite(made, clock, await made.replicate())


async def test_points_are_pruned_by_retention_but_not_the_newest_good_one(site: ClockSite) -> None:
    cuts = []
    for after_s in (60, 25 * HOUR_S, 4 * HOUR_S, HOUR_S):
        cuts.append(await site.cut(after_s=after_s))
        await site.settle()
    assert await site.cuts() == cuts[:0:-1]
    left = {blob.name async for blob in site.site.lab.store.list_blobs("recovery-points", f"{site.item}/")}
    assert left == {f"{site.item}/{cut}" for cut in cuts[1:]}


async def test_one_point_from_the_future_takes_nothing_with_it_and_is_told(site: ClockSite) -> None:
    cuts = []
    for _ in range(4):
        cuts.append(await site.cut(after_s=300))
        await site.settle()
    assert "clock-wrong" not in await site.conditions()
    cuts.append(await site.cut(after_s=300, ahead_s=40 * DAY_S))
    await site.settle()
    assert await site.cuts() == cuts[::-1]
    cuts.append(await site.cut(after_s=300))
    await site.settle()
    shown = await site.points()
    assert [point["cut"] for point in shown] == cuts[::-1]
    assert [point["clock_error_s"] is None for point in shown] == [True, False, True, True, True, True]
    assert shown[1]["clock_error_s"] == pytest.approx(40 * DAY_S, abs=60)
    assert shown[1]["taken_at"] <= shown[0]["taken_at"]
    assert shown[1]["age_s"] == pytest.approx(300, abs=60)
    assert "clock-wrong" in await site.conditions()
    events = (await site.site.lab.administer("GET", "/api/v1/events?kind=point-time-wrong")).json["items"]
    assert [cuts[4] in event["message"] for event in events] == [True]
    assert "web-1" in events[0]["message"]
    job = await site.site.verb("/test-migration", {"point": "latest-processed"})
    await site.settle()
    assert (await site.site.job(job["id"]))["result"]["cut"] == cuts[-1]


@pytest.mark.parametrize("ahead_s", [40 * DAY_S, -40 * DAY_S])
async def test_rpo_is_counted_and_alarmed_whatever_the_newest_point_says(site: ClockSite, ahead_s: int) -> None:
    await site.cut(after_s=300)
    await site.settle()
    await site.cut(after_s=300, ahead_s=ahead_s)
    await site.settle()
    assert (await site.points())[0]["age_s"] == pytest.approx(0, abs=60)
    site.clock.passed_s += 2 * HOUR_S
    assert (await site.points())[0]["age_s"] == pytest.approx(2 * HOUR_S, abs=60)
    assert "no-recovery-point" in await site.conditions()


async def test_point_that_is_found_late_does_not_put_off_the_alarm_of_the_newest_one(site: ClockSite) -> None:
    """The newest is found first, its own time is not believed, and the one before it says that it is younger than was thought."""
    await site.cut(after_s=300)
    await site.settle()
    late = await site.cut(after_s=2 * HOUR_S)
    name = f"{site.item}/{late}"
    kept = await site.site.lab.store.get_blob("recovery-points", name, max_bytes=2**20)
    assert kept is not None
    await site.site.lab.store.delete_blob("recovery-points", name)
    newest = await site.cut(after_s=0, ahead_s=-3 * HOUR_S)
    await site.settle()
    site.clock.passed_s += 2 * HOUR_S
    assert "no-recovery-point" in await site.conditions()
    await site.site.lab.store.put_blob("recovery-points", name, kept.content)
    await site.settle()
    assert (await site.cuts())[:2] == [newest, late]
    assert (await site.points())[0]["age_s"] == pytest.approx(2 * HOUR_S, abs=60), "raised: it was an hour more"
    assert "no-recovery-point" in await site.conditions()


async def test_points_of_a_day_without_the_store_are_thinned_by_when_they_were_cut(site: ClockSite) -> None:
    """All are found at once, in the order of their random names."""
    cuts = [await site.cut(after_s=1790) for _ in range(24)]
    await site.settle()
    shown = await site.points()
    ages = [round(point["age_s"] / 1800) for point in shown]
    assert ages[:5] == [0, 1, 2, 3, 4]
    assert shown[0]["cut"] == cuts[-1]
    assert 14 <= len(shown) <= 16  # all of two hours, then one an hour
    assert max(ages) >= 22
    assert "clock-wrong" not in await site.conditions()


async def test_clock_that_stays_wrong_is_told_by_the_newest_inventory_also_without_points(site: ClockSite) -> None:
    body = inventory("web-1", DISKS, clock_unix_ns=site.clock() - HOUR_S * 10**9)
    assert (await site.site.agent("PUT", "/agent/inventory", body)).status == 200
    (condition,) = [each for each in (await site.site.item())["conditions"] if each["code"] == "clock-wrong"]
    assert "differ by 3600 s" in condition["message"]
    assert "chrony" in condition["remedy"]
    await site.settle()
    assert site.site.lab.running.reconciler.figures.snapshot.clock_offsets_s["web-1"] == pytest.approx(-HOUR_S, abs=60)


async def test_points_are_found_and_pruned_also_when_this_server_s_clock_is_set_back(site: ClockSite) -> None:
    site.clock.set_s += DAY_S
    await site.settle()
    site.clock.set_s -= DAY_S
    made = await site.cut(after_s=0)
    await site.site.settle()
    assert await site.cuts() == [made]


async def test_every_answer_to_a_request_to_prune_settles_its_points_though_the_clock_was_set_back(
    site: ClockSite,
) -> None:
    database = site.site.lab.running.site.database
    async with database.write() as session:
        await session.execute(update(PolicyRow).values(retention_s=0.0))
    for set_s in (10 * DAY_S, 0):
        site.clock.set_s = set_s
        for _ in range(3):
            made = await site.cut(after_s=60)
            await site.settle()
            await site.settle()
        assert made in await site.cuts()
    async with database.read() as session:
        states = set(await session.scalars(select(RecoveryPointRow.state)))
    assert "pruning" not in states
    assert len(await site.cuts()) <= 2


async def test_points_that_an_earlier_version_left_to_be_settled_are_settled(site: ClockSite) -> None:
    await site.cut(after_s=60)
    waiting = await site.cut(after_s=60)
    await site.settle()
    database = site.site.lab.running.site.database
    async with database.write() as session:
        await session.execute(update(RecoveryPointRow).where(RecoveryPointRow.cut == waiting).values(state="pruning"))
    await site.settle()
    assert waiting in await site.cuts()


async def test_pages_follow_the_history(site: ClockSite) -> None:
    cuts = [await site.cut(after_s=60, ahead_s=each * DAY_S) for each in (0, 9, -9, 0, 3)]
    await site.settle()
    listed: list[str] = []
    following = ""
    while True:
        path = f"/api/v1/protected-items/web-1/recovery-points?limit=2{following}"
        page = (await site.site.lab.administer("GET", path)).json
        listed += [point["cut"] for point in page["items"]]
        if page["next"] is None:
            break
        following = f"&after={page['next']}"
    assert listed == cuts[::-1]
    for cursor in ("7", "1.", "1.x", f"1.{10**19}"):
        refused = await site.site.lab.administer("GET", f"/api/v1/protected-items/web-1/recovery-points?after={cursor}")
        assert refused.status == 400, cursor
