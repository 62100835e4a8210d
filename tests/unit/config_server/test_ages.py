"""How long ago something was, whatever happens to the clock: unit, and a site whose own clock is set back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from config_server.ages import FORGOTTEN_AFTER_S, Ages
from config_server.core.age import Age
from config_server.core.job import JobKind, JobState
from config_server.events import SYSTEM
from config_server.incidents import record_incident
from config_server.items import find_item
from config_server.job_documents import NoContext, NoParameters
from config_server.jobs import end_job, newest_job, open_jobs, start_job
from tests.harness.config_site import running_lab
from tests.harness.driven_site import DrivenSite, driven_site
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import new_id

HOUR_S = 3600


class Clocks:
    """A clock that is set and one that is not."""

    def __init__(self) -> None:
        self.started_ns = time.time_ns()
        self.set_s = 0.0
        self.passed_s = 0.0

    def wall(self) -> int:
        return self.started_ns + int((self.set_s + self.passed_s) * 1e9)

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def ages(clocks: Clocks) -> Ages:
    return Ages(clocks.wall, clocks.monotonic)


def test_what_never_was_has_no_age(ages: Ages) -> None:
    assert ages.of("heard", "a", None) is None


@pytest.mark.parametrize("set_s", [-90000.0, 90000.0])
def test_age_grows_by_what_passes_wherever_the_clock_is_set(clocks: Clocks, ages: Ages, set_s: float) -> None:
    heard_ns = clocks.wall()
    assert ages.of("heard", "a", heard_ns) == Age(0.0)
    clocks.set_s = set_s
    clocks.passed_s = 31.0
    assert ages.of("heard", "a", heard_ns) == Age(31.0)


@pytest.mark.parametrize("set_s", [-90000.0, 90000.0])
def test_what_has_changed_since_the_last_look_is_no_older_than_that(clocks: Clocks, ages: Ages, set_s: float) -> None:
    ages.of("heard", "a", clocks.wall())
    clocks.passed_s = 10.0
    heard_ns = clocks.wall()
    clocks.set_s = set_s
    clocks.passed_s = 12.0
    age = ages.of("heard", "a", heard_ns)
    assert age is not None
    assert age.known
    assert 0.0 <= age.seconds <= 12.0


def test_stamp_of_an_earlier_process_says_its_age(clocks: Clocks, ages: Ages) -> None:
    assert ages.of("heard", "a", clocks.wall() - 40 * 10**9) == Age(40.0)


def test_stamp_in_the_future_is_never_fresh_and_its_age_grows_from_when_it_was_first_seen(
    clocks: Clocks, ages: Ages
) -> None:
    heard_ns = clocks.wall() + HOUR_S * 10**9
    age = ages.of("heard", "a", heard_ns)
    assert age == Age(0.0, known=False)
    assert not age.is_within(30.0)
    assert not age.exceeds(30.0)
    clocks.passed_s = 31.0
    age = ages.of("heard", "a", heard_ns)
    assert age == Age(31.0, known=False)
    assert age.exceeds(30.0)
    assert ages.of("heard", "a", clocks.wall()) == Age(0.0), "and then it was heard"


def test_only_what_is_asked_for_is_remembered(clocks: Clocks, ages: Ages) -> None:
    ages.of("heard", "once", clocks.wall())
    for _ in range(3):
        clocks.passed_s += FORGOTTEN_AFTER_S * 0.6
        ages.of("heard", "always", 1)
    assert [which for _, which in ages._seen] == ["always"]


async def conditions(site: DrivenSite) -> dict[str, Any]:
    return {condition["code"]: condition for condition in (await site.item())["conditions"]}


@pytest.mark.parametrize("hour_s", [-24 * HOUR_S, 24 * HOUR_S])
async def test_silence_is_told_in_time_though_the_server_s_clock_is_set(
    tmp_path: Path, clocks: Clocks, hour_s: int
) -> None:
    async with driven_site(tmp_path, clocks.wall, clocks.monotonic) as site:
        await site.replicate()
        clocks.set_s = hour_s
        await site.settle()
        found = await conditions(site)
        assert not {"agent-disconnected", "process-server-disconnected", "stalled"} & set(found)
        clocks.passed_s += 31.0
        await site.settle()
        found = await conditions(site)
        assert found["agent-disconnected"]["health"] == "warning"
        assert found["process-server-disconnected"]["health"] == "warning"
        servers = (await site.lab.administer("GET", "/api/v1/servers")).json["items"]
        assert [(server["connected"], server["heard_age_known"]) for server in servers] == [(False, True)]
        clocks.passed_s += 900.0
        found = await conditions(site)
        assert found["agent-disconnected"]["health"] == "critical"
        assert "stalled" in found
        shown = {
            sample.name: sample.value
            for family in site.lab.running.reconciler.figures.collect()
            for sample in family.samples
        }
        assert shown["blockferry_reconciler_age_seconds"] == pytest.approx(900.0)
        assert shown["blockferry_heartbeat_age_seconds"] == pytest.approx(931.0)


async def test_a_server_that_never_got_a_recovery_point_shows_since_when_until_it_gets_one(
    tmp_path: Path, clocks: Clocks
) -> None:
    def shown(site: DrivenSite) -> list[float]:
        families = site.lab.running.reconciler.figures.collect()
        family = next(family for family in families if family.name == "blockferry_without_recovery_point_seconds")
        return [sample.value for sample in family.samples if sample.labels == {"server": "web-1"}]

    async with driven_site(tmp_path, clocks.wall, clocks.monotonic) as site:
        await site.protect()
        await site.settle()
        assert shown(site) == [], "initial replication is not over"
        await site.observe()
        await site.settle()
        clocks.passed_s += 4000.0
        await site.lab.running.reconciler.run_once()
        assert shown(site) == [pytest.approx(4000.0)]
        clocks.passed_s += 60.0
        assert shown(site) == [pytest.approx(4060.0)], "it grows between snapshots"
        await site.verb("/pause")
        await site.settle()
        assert shown(site) == [], "none is due while it is paused"
        await site.verb("/resume")
        await site.settle()
        assert shown(site) == [pytest.approx(0.0)], "it counts from the resume"
        clocks.passed_s += 60.0
        assert shown(site) == [pytest.approx(60.0)]
        item = (await site.item())["id"]
        await site.writer.publish_point(item, new_id(), time_ns=clocks.wall())
        await site.settle()
        assert shown(site) == []


async def test_who_was_heard_in_the_future_is_not_fresh_after_a_restart_until_heard(
    tmp_path: Path, clocks: Clocks
) -> None:
    async with driven_site(tmp_path, clocks.wall, clocks.monotonic) as site:
        await site.replicate()
        lab = site.lab
    clocks.set_s = -24 * HOUR_S
    async with running_lab(
        tmp_path, lab.store, writer=lab.writer, clock=clocks.wall, monotonic=clocks.monotonic, reconcile=False
    ) as again:
        again.identities.update(lab.identities)
        site = DrivenSite(again, site.writer)
        found = await conditions(site)
        assert found["agent-disconnected"]["health"] == "warning"
        assert "not known, as this server's clock was set back" in found["agent-disconnected"]["message"]
        clocks.passed_s += 901.0
        found = await conditions(site)
        assert found["agent-disconnected"]["health"] == "critical"
        assert "in the last 901 s" in found["process-server-disconnected"]["message"]
        [server] = (await again.administer("GET", "/api/v1/servers")).json["items"]
        assert (server["heard_age_s"], server["heard_age_known"]) == (901.0, False)
        await site.observe()
        assert "agent-disconnected" not in await conditions(site)


async def test_incident_of_the_future_keeps_none_of_now_quiet(tmp_path: Path, clocks: Clocks) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), clock=clocks.wall, reconcile=False) as lab:
        for now_ns in (clocks.wall() + HOUR_S * 10**9, clocks.wall(), clocks.wall() + 10**9):
            await record_incident(lab.running.site.database, now_ns, SYSTEM, "second-incarnation", "two", None)
        events = (await lab.administer("GET", "/api/v1/events?kind=second-incarnation")).json["items"]
        assert len(events) == 2


async def test_jobs_and_items_have_their_order_though_the_clock_was_set_back_between_them(
    tmp_path: Path, clocks: Clocks
) -> None:
    async with driven_site(tmp_path, clocks.wall, clocks.monotonic) as site:
        await site.replicate()
        await site.verb("/stop")
        await site.observe([])
        await site.settle()
        clocks.set_s = -24 * HOUR_S
        item = await site.replicate()
        async with site.lab.running.site.database.write() as session:
            row = await find_item(session, "web-1")
            assert row.id == item
            made = []
            for now_ns in (clocks.wall() + 2 * 10**9, clocks.wall() + 10**9, clocks.wall()):
                job = await start_job(
                    session,
                    row,
                    JobKind.RECOVERY_POINT,
                    step="waiting",
                    parameters=NoParameters(),
                    context=NoContext(),
                    actor=SYSTEM,
                    now_ns=now_ns,
                )
                made.append(job.id)
            assert [job.id for job in await open_jobs(session, item, JobKind.RECOVERY_POINT)] == made
            for job in await open_jobs(session, item, JobKind.RECOVERY_POINT):
                end_job(session, job, row, JobState.CANCELLED, clocks.wall())
            newest = await newest_job(session, item, JobKind.RECOVERY_POINT)
            assert newest is not None
            assert newest.id == made[-1]
        await site.verb("/stop")
        await site.observe([])
        await site.settle()
        assert (await site.item())["id"] == item


def test_what_is_true_just_now_is_no_age_though_its_stamp_is_old(clocks: Clocks, ages: Ages) -> None:
    heard_ns = clocks.wall()
    ages.renew("heard", "a")  # nobody has asked yet: its stamp will tell
    assert ages.of("heard", "a", heard_ns) == Age(0.0)
    clocks.passed_s = 40.0
    ages.renew("heard", "a")
    assert ages.of("heard", "a", heard_ns) == Age(0.0)
    clocks.passed_s = 45.0
    assert ages.of("heard", "a", heard_ns) == Age(5.0)
    assert ages.of("heard", "a", clocks.wall()) == Age(0.0), "its stamp was written in the end"
