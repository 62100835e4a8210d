"""Alerts of a site: raised and over through the reconciler, durable over restarts, acknowledged, shown over REST, counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import delete, select, update

from config_server.ages import Ages
from config_server.alert_tables import AlertRow, DiskChurnRow, ProcessServerLoadRow
from config_server.churn import churn_of_day, follow_churn
from config_server.churn_history import note_churn
from config_server.config import HistorySettings
from config_server.process_server_load import follow_load
from config_server.reconciler.alert_figures import AlertFigures
from config_server.reconciler.housekeeping import forget_what_is_over
from config_server.tables import CertificateRow, ProtectedItemRow
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import DISK, disk_observation, heartbeat, new_id

DAY_S: Final = 86400


class PassingTime:
    """A clock that passes when it is told to."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()

    def __call__(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def passes(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def clock() -> PassingTime:
    return PassingTime()


@pytest.fixture
async def site(tmp_path: Path, clock: PassingTime) -> AsyncIterator[DrivenSite]:
    """Settled: the server has listened for longer than ``settle_s``."""
    async with driven_site(tmp_path, clock, clock.monotonic) as made:
        clock.passes(61)
        await live(made, clock, 10)
        yield made


async def live(
    site: DrivenSite, clock: PassingTime, seconds: float, *, protected: bool = False, **changes: Any
) -> None:
    """The process server, and the agent if it is ``protected``, report about every half minute, and the reconciler looks."""
    rounds = max(1, round(seconds / 29))
    for _ in range(rounds):
        clock.passes(seconds / rounds)
        await beat(site.lab, **changes)
        if protected:
            await site.observe()
        await site.lab.running.reconciler.run_once()


async def beat(lab: Lab, **changes: Any) -> None:
    reply = await lab.request(
        "POST", "/api/v1/process-server/heartbeats", heartbeat(**changes), identity=lab.identities["ps-1"]
    )
    assert reply.status == 200, reply.body


async def alerts(lab: Lab, query: str = "") -> list[Any]:
    reply = await lab.administer("GET", f"/api/v1/alerts{query}")
    assert reply.status == 200, reply.body
    return list(reply.json["items"])


async def events(lab: Lab, kind: str) -> list[str]:
    reply = await lab.administer("GET", f"/api/v1/events?kind={kind}")
    return [event["message"] for event in reply.json["items"]]


async def codes(lab: Lab, query: str = "") -> list[tuple[str, str, str]]:
    return [(alert["code"], alert["severity"], alert["state"]) for alert in await alerts(lab, query)]


async def health(lab: Lab) -> Any:
    return (await lab.administer("GET", "/api/v1/health")).json


async def test_a_full_spool_is_raised_worse_eases_and_is_over_and_each_is_told_once(
    site: DrivenSite, clock: PassingTime
) -> None:
    assert await alerts(site.lab) == []
    await live(site, clock, 50, spool_free_fraction=0.28)
    assert await codes(site.lab) == []
    assert await codes(site.lab, "?all=true") == [("spool-nearly-full", "healthy", "pending")]
    await live(site, clock, 50, spool_free_fraction=0.28)
    assert await codes(site.lab) == [("spool-nearly-full", "warning", "raised")]
    await live(site, clock, 100, spool_free_fraction=0.2)
    assert await codes(site.lab) == [("spool-nearly-full", "critical", "raised")]
    await live(site, clock, 400, spool_free_fraction=0.26)
    assert await codes(site.lab) == [("spool-nearly-full", "critical", "raised")], "27 % clears it"
    await live(site, clock, 360, spool_free_fraction=0.31)
    assert await codes(site.lab) == [("spool-nearly-full", "warning", "raised")], "32 % clears it"
    await live(site, clock, 100)
    assert await codes(site.lab) == [("spool-nearly-full", "warning", "clearing")]
    await live(site, clock, 280)
    assert await codes(site.lab) == []
    over = (await alerts(site.lab, "?all=true"))[0]
    assert (over["code"], over["state"], over["subject"]["name"]) == ("spool-nearly-full", "cleared", "ps-1")
    for change in ("raised", "worsened", "eased", "cleared"):
        assert len(await events(site.lab, f"alert-{change}")) == 1


async def test_a_spool_around_its_threshold_is_one_alert(site: DrivenSite, clock: PassingTime) -> None:
    for turn in range(20):
        await live(site, clock, 29, spool_free_fraction=0.29 if turn % 2 else 0.31)
    assert len(await events(site.lab, "alert-raised")) == 1
    assert await events(site.lab, "alert-cleared") == []


async def test_busy_processors_are_an_alert_after_a_quarter_of_an_hour_though_they_rest_now_and_then(
    site: DrivenSite, clock: PassingTime
) -> None:
    for turn in range(40):
        await live(site, clock, 29, cpu_fraction=0.6 if turn % 6 == 5 else 1.0)
        raised = [code for code, _, _ in await codes(site.lab)]
        assert not raised or turn >= 31, "for 15 minutes"
    assert raised == ["process-server-cpu"]


async def test_a_moment_of_busy_processors_is_none(site: DrivenSite, clock: PassingTime) -> None:
    await live(site, clock, 300, cpu_fraction=1.0)
    await live(site, clock, 700, cpu_fraction=0.5)
    assert await codes(site.lab, "?all=true") == []


async def test_a_server_that_is_silent_is_an_alert_of_its_own_and_critical_after_a_quarter_of_an_hour(
    site: DrivenSite, clock: PassingTime
) -> None:
    await site.replicate()
    await live(site, clock, 70, protected=True)
    seen: dict[tuple[str, str], int] = {}
    for second in range(50, 1000, 50):
        clock.passes(50)
        await beat(site.lab)
        await site.lab.running.reconciler.run_once()
        for alert in await alerts(site.lab):
            seen.setdefault((alert["code"], alert["severity"]), second)
    assert 90 <= seen["agent-disconnected", "warning"] <= 150
    assert 900 <= seen["agent-disconnected", "critical"] <= 950
    alert = next(alert for alert in await alerts(site.lab) if alert["code"] == "agent-disconnected")
    assert alert["subject"]["name"] == "web-1"
    assert alert["subject"]["id"] == (await site.item())["id"]
    assert alert["cause"]
    assert "reach this server" in alert["remedy"]


async def test_a_pause_of_more_than_an_hour_is_no_alert_of_recovery_points_that_do_not_come(
    site: DrivenSite, clock: PassingTime
) -> None:
    item = await site.replicate()
    await site.writer.publish_point(item, new_id(), time_ns=clock())
    await live(site, clock, 60, protected=True)
    await site.verb("/pause")
    resting = [disk_observation(disk, phase="paused") for disk in SOURCE]
    for _ in range(45):
        clock.passes(100)
        await beat(site.lab)
        await site.observe(resting)
        await site.lab.running.reconciler.run_once()
        assert await codes(site.lab, "?all=true") in ([], [("paused", "healthy", "pending")])
    assert [c["code"] for c in (await site.item())["conditions"]] == ["paused"]


async def test_after_a_long_pause_a_recovery_point_is_waited_for_from_the_resume_on(
    site: DrivenSite, clock: PassingTime
) -> None:
    item = await site.replicate()
    await site.writer.publish_point(item, new_id(), time_ns=clock())
    await live(site, clock, 60, protected=True)
    await site.verb("/pause")
    clock.passes(2 * 86400)
    await live(site, clock, 70, protected=True)
    await site.verb("/resume")

    async def codes_after(seconds: int) -> tuple[set[str], set[str]]:
        clock.passes(seconds - 100)
        await live(site, clock, 100, protected=True)
        [shown] = [await site.item()]
        raised = {code for code, _, state in await codes(site.lab) if state == "raised"}
        return {each["code"] for each in shown["conditions"]}, raised

    assert await codes_after(800) == ({"no-recovery-point-yet"}, set())
    assert await codes_after(300) == ({"rpo-threshold"}, {"rpo-threshold"})
    assert (await codes_after(2700))[1] >= {"no-recovery-point"}
    message = next(c["message"] for c in (await site.item())["conditions"] if c["code"] == "no-recovery-point")
    assert "none since replication was resumed" in message
    await site.writer.publish_point(item, new_id(), time_ns=clock())
    await site.settle()
    assert (await codes_after(100))[0] == set()


@pytest.mark.parametrize(("state", "found"), [("replicating", True), ("migrated", False), ("paused", False)])
async def test_no_app_consistent_point_is_missed_while_none_is_due(
    site: DrivenSite, clock: PassingTime, state: str, found: bool
) -> None:
    (policy,) = (await site.lab.administer("GET", "/api/v1/policies")).json["items"]
    await site.lab.administer(
        "PUT", f"/api/v1/policies/{policy['name']}", policy | {"app_consistent_interval_s": 3600.0}
    )
    await site.replicate()
    async with site.lab.running.site.database.write() as session:
        await session.execute(update(ProtectedItemRow).values(state=state, paused=state == "paused"))
    clock.passes(5500)
    await live(site, clock, 10)
    assert ("no-app-consistent-point" in {code for code, _, _ in await codes(site.lab, "?all=true")}) is found


async def test_what_many_items_lack_is_one_alert_of_the_process_server(site: DrivenSite, clock: PassingTime) -> None:
    await site.replicate()
    await live(site, clock, 100, protected=True, upload_problem={"code": "refused", "message": "no key", "hint": None})
    blocked = [alert for alert in await alerts(site.lab) if alert["code"] == "upload-blocked"]
    assert [alert["subject"]["kind"] for alert in blocked] == ["process-server"]
    reasons = [reason for reason in (await health(site.lab))["reasons"] if reason["code"] == "upload-blocked"]
    assert [reason["alert"] for reason in reasons] == [blocked[0]["id"]]


async def test_alerts_end_with_what_they_are_about(site: DrivenSite, clock: PassingTime) -> None:
    item = await site.replicate()
    clock.passes(31)
    for _ in range(8):
        clock.passes(10)
        await site.lab.running.reconciler.run_once()
    assert "agent-disconnected" in [code for code, _, _ in await codes(site.lab)]
    async with site.lab.running.site.database.write() as session:
        await session.execute(
            update(ProtectedItemRow).where(ProtectedItemRow.id == item).values(state="stopped", ended_ns=clock())
        )
    await site.lab.running.reconciler.run_once()
    clock.passes(10)
    await site.lab.running.reconciler.run_once()
    assert "agent-disconnected" not in [code for code, _, _ in await codes(site.lab)]


async def test_a_restart_raises_nothing_twice_forgets_nothing_and_judges_nobody_before_it_has_listened(
    tmp_path: Path, clock: PassingTime
) -> None:
    store = MemoryBlobClient()

    async def quiet(lab: Lab, seconds: int) -> None:
        for _ in range(seconds // 10):
            clock.passes(10)
            await lab.running.reconciler.run_once()

    async with running_lab(tmp_path, store, clock=clock, monotonic=clock.monotonic, reconcile=False) as lab:
        writer, identities = lab.writer, lab.identities
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        await beat(lab)
        await quiet(lab, 60)
        await beat(lab)
        await quiet(lab, 120)
        assert await codes(lab) == [("process-server-disconnected", "warning", "raised")]
        before = await alerts(lab)
    clock.passes(3600)
    async with running_lab(
        tmp_path, store, writer=writer, clock=clock, monotonic=clock.monotonic, reconcile=False
    ) as lab:
        lab.identities |= identities
        await quiet(lab, 50)
        assert [(a["id"], a["severity"]) for a in await alerts(lab)] == [(before[0]["id"], "warning")], (
            "it only listens"
        )
        for _ in range(2):
            await beat(lab)
            await quiet(lab, 10)
        assert (await codes(lab)) == [("process-server-disconnected", "warning", "clearing")]
        for _ in range(40):
            await beat(lab)
            await quiet(lab, 10)
        assert await codes(lab) == []
        assert len(await events(lab, "alert-raised")) == 1
        assert len(await events(lab, "alert-cleared")) == 1


async def test_a_condition_begins_anew_if_nobody_looked_for_long(tmp_path: Path, clock: PassingTime) -> None:
    async with driven_site(tmp_path, clock, clock.monotonic) as site:
        clock.passes(70)
        await live(site, clock, 30, spool_free_fraction=0.1)
        clock.passes(3600)
        await live(site, clock, 10, spool_free_fraction=0.1)
        assert await codes(site.lab) == []
        await live(site, clock, 100, spool_free_fraction=0.1)
        assert await codes(site.lab) == [("spool-nearly-full", "critical", "raised")]


async def test_an_acknowledged_alert_is_silent_until_its_time_is_over_or_it_becomes_worse(
    site: DrivenSite, clock: PassingTime
) -> None:
    await live(site, clock, 100, spool_free_fraction=0.28)
    alert = (await alerts(site.lab))[0]
    path = f"/api/v1/alerts/{alert['id'][:8]}/acknowledgement"
    reply = await site.lab.administer("POST", path, {"valid_for_s": 100.0, "note": "disk is on its way"})
    assert reply.status == 200, reply.body
    taken = reply.json["acknowledgement"]
    assert (taken["by"], taken["note"]) == ("administrator:first", "disk is on its way")
    await live(site, clock, 10, spool_free_fraction=0.28)
    assert [r["acknowledged"] for r in (await health(site.lab))["reasons"] if r["alert"]] == [True]
    assert (await health(site.lab))["health"] == "warning", "silence is no health"
    await live(site, clock, 100, spool_free_fraction=0.28)
    assert (await alerts(site.lab))[0]["acknowledgement"] is None
    assert len(await events(site.lab, "alert-acknowledgement-ended")) == 1
    await site.lab.administer("POST", path, {"valid_for_s": 3600.0})
    await live(site, clock, 100, spool_free_fraction=0.1)
    shown = (await alerts(site.lab))[0]
    assert (shown["severity"], shown["acknowledgement"]) == ("critical", None)
    await site.lab.administer("POST", path, {"valid_for_s": 3600.0})
    reply = await site.lab.administer("DELETE", path)
    assert (reply.status, reply.json["acknowledgement"]) == (200, None)


async def test_what_is_no_raised_alert_cannot_be_acknowledged(site: DrivenSite, clock: PassingTime) -> None:
    await live(site, clock, 30, spool_free_fraction=0.28)
    pending = (await alerts(site.lab, "?all=true"))[0]["id"]
    for which, status in ((pending, 409), ("00000000-0000-0000-0000-000000000000", 404), ("00", 422), ("../x", 404)):
        reply = await site.lab.administer("POST", f"/api/v1/alerts/{which}/acknowledgement", {})
        assert reply.status in (status, 400), (which, reply.body)
    await live(site, clock, 100, spool_free_fraction=0.28)
    for body in ({"valid_for_s": 0}, {"valid_for_s": 1e9}, {"note": "x" * 501}, {"until": "tomorrow"}):
        reply = await site.lab.administer("POST", f"/api/v1/alerts/{pending}/acknowledgement", body)
        assert reply.status in (400, 422), reply.body


async def test_health_is_the_worst_of_alerts_and_items_and_says_why(site: DrivenSite, clock: PassingTime) -> None:
    assert (await health(site.lab))["health"] == "healthy"
    await site.protect()
    await live(site, clock, 10, protected=True)
    found = await health(site.lab)
    assert (found["health"], {reason["code"] for reason in found["reasons"]}) == ("warning", {"no-recovery-point-yet"})
    await live(site, clock, 100, protected=True, spool_free_fraction=0.1)
    found = await health(site.lab)
    assert found["health"] == "critical"
    assert found["reasons"][0]["code"] == "spool-nearly-full"
    assert found["reasons"][0]["alert"] is not None
    status = (await site.lab.administer("GET", "/api/v1/site")).json
    assert (status["health"], status["alerts"], status["webhook"]) == ("critical", {"critical": 1}, None)


async def test_a_server_that_does_not_look_any_more_vouches_for_nothing(site: DrivenSite, clock: PassingTime) -> None:
    clock.passes(61)
    found = await health(site.lab)
    assert (found["health"], found["reasons"][0]["code"]) == ("critical", "not-judged")


async def test_a_certificate_near_its_end_is_an_alert_of_its_holder(site: DrivenSite, clock: PassingTime) -> None:
    await site.replicate()
    async with site.lab.running.site.database.write() as session:
        soon = {"issued_ns": clock() - 80 * DAY_S * 10**9, "expires_ns": clock() + 20 * DAY_S * 10**9}
        await session.execute(update(CertificateRow).values(soon))
    await live(site, clock, 100)
    found = {
        (a["subject"]["name"], a["severity"]) for a in await alerts(site.lab) if a["code"] == "certificate-expires"
    }
    assert found == {("ps-1", "warning"), ("web-1", "warning")}


async def test_churn_beyond_the_limit_for_a_quarter_of_an_hour_is_an_alert(
    site: DrivenSite, clock: PassingTime
) -> None:
    await site.replicate()
    changed = 0
    for _ in range(40):
        clock.passes(29)
        changed += 725_000_000
        await beat(site.lab)
        await site.observe([disk_observation(DISK, changed_bytes=changed)])
        await site.lab.running.reconciler.run_once()
    found = [a for a in await alerts(site.lab) if a["code"].startswith("churn")]
    assert [a["code"] for a in found] == ["churn-of-disk"]
    assert "/dev/sda changes at 25.0 MB/s" in found[0]["message"]


async def test_the_limit_is_that_of_the_disks_that_the_policy_plans(site: DrivenSite, clock: PassingTime) -> None:
    (policy,) = (await site.lab.administer("GET", "/api/v1/policies")).json["items"]
    standard = policy | {"target_disk_type": "standard"}
    assert (await site.lab.administer("PUT", "/api/v1/policies/default", standard)).status == 200
    await site.replicate()
    changed = 0
    for _ in range(40):
        clock.passes(29)
        changed += 87_000_000
        await beat(site.lab)
        await site.observe([disk_observation(DISK, changed_bytes=changed)])
        await site.lab.running.reconciler.run_once()
    (found,) = [a for a in await alerts(site.lab) if a["code"].startswith("churn")]
    assert "3.0 MB/s; the limit is 2 MB/s of a standard disk" in found["message"]
    assert "--target-disk-type" in found["remedy"]


async def test_churn_of_a_day_and_of_a_minute_are_counted_over_restarts_of_the_agent(
    site: DrivenSite, clock: PassingTime
) -> None:
    item = await site.replicate()
    database, ages = site.lab.running.site.database, site.lab.running.site.ages
    before, before_ns = disk_observation(DISK), clock()
    total = 0

    async def report(changed: int, *, restarted: bool = False) -> None:
        nonlocal before, before_ns, total
        clock.passes(40)
        total += changed
        counter = changed if restarted else before.changed_bytes + changed
        seen = disk_observation(DISK, changed_bytes=counter)
        async with database.write() as session:
            await follow_churn(session, item, before, seen, ages, clock())
            await note_churn(session, before, before_ns, seen, clock())
        before, before_ns = seen, clock()

    async with database.write() as session:
        await session.execute(delete(DiskChurnRow))
    for turn in range(200):
        await report(1000, restarted=turn % 50 == 49)
        async with database.read() as session:
            rate = (await session.get_one(DiskChurnRow, (item, DISK))).rate_bytes_per_s
        assert rate is None or 24.9 < rate < 25.1
    async with database.read() as session:
        assert sum((await churn_of_day(session, clock())).values()) == total
    clock.passes(25 * 3600)
    async with database.read() as session:
        assert sum((await churn_of_day(session, clock())).values()) == 0


async def test_a_lying_agent_cannot_break_the_sums(site: DrivenSite, clock: PassingTime) -> None:
    await site.replicate()
    most = 2**56
    for turn in range(10):
        clock.passes(61)
        await beat(site.lab)
        await site.observe([disk_observation(DISK, changed_bytes=most if turn % 2 else -most)])
        await site.lab.running.reconciler.run_once()
    async with site.lab.running.site.database.read() as session:
        assert sum((await churn_of_day(session, clock())).values()) >= 0


async def test_load_is_a_mean_of_about_a_minute(site: DrivenSite, clock: PassingTime) -> None:
    ages = Ages(clock, clock.monotonic)
    async with site.lab.running.site.database.write() as session:
        for cpu in [0.0] * 20 + [1.0] * 6:
            clock.passes(10)
            await follow_load(session, "ps-x", heartbeat(cpu_fraction=cpu), ages, clock())
        row = await session.get_one(ProcessServerLoadRow, "ps-x")
        assert 0.5 < row.cpu_fraction < 0.75
        clock.passes(600)
        await follow_load(session, "ps-x", heartbeat(cpu_fraction=0.1), ages, clock())
        assert row.cpu_fraction == pytest.approx(0.1)


async def test_metrics_count_alerts_and_show_their_end(site: DrivenSite, clock: PassingTime) -> None:
    registry = CollectorRegistry()
    registry.register(AlertFigures(site.lab.running.site.alarms))

    def shown() -> str:
        return generate_latest(registry).decode()

    await live(site, clock, 100, spool_free_fraction=0.28)
    assert 'blockferry_alerts{code="spool-nearly-full",severity="warning"} 1.0' in shown()
    assert "blockferry_site_health 1.0" in shown()
    assert 'blockferry_churn_day_bytes{name="ps-1"} 0.0' in shown()
    await live(site, clock, 400)
    assert 'blockferry_alerts{code="spool-nearly-full",severity="warning"} 0.0' in shown()
    assert "blockferry_site_health 0.0" in shown()


async def test_old_alerts_are_forgotten_raised_ones_never(site: DrivenSite, clock: PassingTime) -> None:
    await live(site, clock, 100, spool_free_fraction=0.28)
    await live(site, clock, 330)
    await live(site, clock, 100, spool_free_fraction=0.28)
    history = dataclasses.replace(HistorySettings(), events_keep_s=DAY_S)
    async with site.lab.running.site.database.write() as session:
        await forget_what_is_over(session, history, clock() + 2 * DAY_S * 10**9)
    async with site.lab.running.site.database.read() as session:
        assert [row.cleared_ns for row in await session.scalars(select(AlertRow))] == [None]
