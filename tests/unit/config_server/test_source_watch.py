"""After the proof: whether the source still is what was proved, and what that means for completing (P3, P6)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config_server.core.age import Age
from config_server.core.source_hold import SILENCE_ACCEPTED_S, SourceHold, follow_hold, hold_now
from config_server.source_watch import require_held
from replication.control_plane import SOURCE_WRITTEN, CutoverObservation
from replication.errors import Conflict
from tests.harness.driven_site import SOURCE, DrivenSite, applied, driven_site, final_cut
from tests.harness.scripted_peers import DISK, OTHER_DISK, new_id, source_hashes

JOB = "bbbbbbbb-0000-4000-8000-000000000001"
CHANGED = source_hashes(SOURCE | {DISK: b"FIRST DISK" * 100})
RESIZED = source_hashes(SOURCE | {DISK: b"first disk" * 101})
PROVED = applied(JOB)


def again(**changes: Any) -> CutoverObservation:
    """The cutover that an agent begins anew, done."""
    return applied(JOB, cut=new_id(), **changes)


def failed(code: str) -> CutoverObservation:
    return applied(JOB, state="failed", problem={"code": code, "message": "it failed", "hint": None})


@pytest.mark.parametrize(
    ("seen", "after_held", "after_unknown", "after_written"),
    [
        (PROVED, "held", "held", "written"),
        (None, "unknown", "unknown", "written"),
        (CutoverObservation(job=JOB, state="waiting-for-disk"), "unknown", "unknown", "written"),
        (CutoverObservation(job=JOB, state="sealed", cut=new_id()), "unknown", "unknown", "written"),
        (again(identity_claimed=False), "unknown", "unknown", "written"),
        (again(source_hashes=CHANGED, identity_claimed=False), "unknown", "unknown", "written"),
        (again(), "held", "held", "held"),
        (again(source_hashes=CHANGED), "written", "written", "written"),
        (again(source_hashes=RESIZED), "written", "written", "written"),
        (again(source_hashes=CHANGED[:1]), "written", "written", "written"),
        (again(source_hashes=CHANGED[1:]), "unknown", "unknown", "written"),
        (again(source_hashes=[]), "unknown", "unknown", "written"),
        (again(source_hashes=source_hashes(SOURCE)[:1] * 2), "unknown", "unknown", "written"),
        (failed("conflict"), "unknown", "unknown", "written"),
        (failed(SOURCE_WRITTEN), "written", "written", "written"),
        (applied(new_id()), "unknown", "unknown", "written"),
    ],
)
def test_source_is_held_only_if_the_proved_cut_or_the_proved_hashes_say_so(
    seen: CutoverObservation | None, after_held: SourceHold, after_unknown: SourceHold, after_written: SourceHold
) -> None:
    assert follow_hold("held", PROVED, seen) == after_held
    assert follow_hold("unknown", PROVED, seen) == after_unknown
    assert follow_hold("written", PROVED, seen) == after_written


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def migrated(site: DrivenSite) -> str:
    item = await site.replicate()
    for disk in (DISK, OTHER_DISK):
        assert (await site.grant(disk)).status == 200
    job = str((await site.verb("/migration", {}))["id"])
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job))
    await site.settle()
    await site.observe(cutover=applied(job))
    assert (await site.item())["state"] == "migrated"
    return job


async def condition(site: DrivenSite) -> str | None:
    """Which of the three conditions stands."""
    found = [entry for entry in (await site.item())["conditions"] if entry["code"].startswith("source-")]
    assert len(found) <= 1
    assert all(
        entry["health"] == {"source-not-held": "warning", "source-not-heard": "warning"}.get(entry["code"], "critical")
        for entry in found
    )
    return found[0]["code"] if found else None


async def events(site: DrivenSite) -> list[str]:
    found = (await site.lab.administer("GET", "/api/v1/events")).json["items"]
    return [event["kind"] for event in found if event["kind"].startswith("source-")]


async def completion(site: DrivenSite, **body: Any) -> Any:
    return await site.lab.administer("POST", "/api/v1/protected-items/web-1/migration/complete", body)


async def test_source_that_was_let_go_is_in_question_until_it_is_compared_and_found_the_same(site: DrivenSite) -> None:
    job = await migrated(site)
    assert (await condition(site), await events(site)) == (None, [])
    await site.observe(cutover=CutoverObservation(job=job, state="waiting-for-disk"))  # the agent was restarted
    assert await condition(site) == "source-not-held"
    reply = await completion(site)
    assert reply.status == 409
    assert "has not been compared again" in reply.json["detail"]
    await site.observe(cutover=applied(job, cut=new_id(), identity_claimed=False, source_hashes=[]))
    await site.observe(cutover=applied(job, cut=new_id()))
    assert await condition(site) is None
    assert await events(site) == ["source-not-held", "source-held"]
    await site.settle()
    assert (await site.job(job))["result"]["cut"] == final_cut(job)
    assert sorted(site.writer.contents) == ["web-1-disk1", "web-1-disk2"]
    assert [request.kind for request in site.writer.worked].count("make-disks") == 1
    assert (await completion(site)).status == 202


async def test_source_that_was_written_to_is_an_alarm_and_completing_needs_the_operator_s_word(
    site: DrivenSite,
) -> None:
    job = await migrated(site)
    await site.observe(cutover=applied(job, cut=new_id(), source_hashes=CHANGED))
    assert (await condition(site), await events(site)) == ("source-written", ["source-written"])
    reconciler = site.lab.running.reconciler
    reconciler.look_around_soon()
    await reconciler.run_once()
    assert reconciler.figures.snapshot.source_holds == {"web-1": 2}
    await site.observe(cutover=None)  # restarted once more
    assert await condition(site) == "source-written"
    reply = await completion(site)
    assert reply.status == 409
    assert "do not hold those writes" in reply.json["detail"]
    assert "--discard-source-changes" in reply.json["hint"]
    assert (await site.item())["state"] == "migrated"
    await site.settle()
    assert site.writer.contents["web-1-disk1"] == SOURCE[DISK], "the final disks are never touched"
    assert (await completion(site, discard_source_changes=True)).status == 202
    assert (await site.item())["state"] == "completing"


@pytest.mark.parametrize(
    ("heard_last", "age", "now"),
    [
        ("held", Age(30.0), "held"),
        ("held", Age(30.1), "unknown"),
        ("held", Age(1.0, known=False), "unknown"),
        ("held", None, "unknown"),
        ("unknown", Age(1.0), "unknown"),
        ("written", Age(9999.0), "written"),
    ],
)
def test_source_is_known_to_be_held_only_while_its_agent_is_heard(
    heard_last: SourceHold, age: Age | None, now: SourceHold
) -> None:
    assert hold_now(heard_last, age, 30.0) == now


@pytest.mark.parametrize("age", [None, Age(0.0, known=False), Age(SILENCE_ACCEPTED_S + 1.0)])
def test_completing_is_refused_while_nobody_knows_how_long_the_agent_has_been_silent(age: Age | None) -> None:
    require_held("held", Age(SILENCE_ACCEPTED_S))
    with pytest.raises(Conflict, match="whether the source is still held is not known"):
        require_held("held", age)


async def test_silence_of_the_agent_puts_the_source_in_question_and_after_hours_completing_needs_the_operator_s_word(
    tmp_path: Path,
) -> None:
    now = [time.time_ns()]
    async with driven_site(tmp_path, clock=lambda: now[0]) as site:
        job = await migrated(site)
        now[0] += 60 * 10**9
        assert await condition(site) == "source-not-heard"
        reconciler = site.lab.running.reconciler
        reconciler.look_around_soon()
        await reconciler.run_once()
        assert reconciler.figures.snapshot.source_holds == {"web-1": 1}
        now[0] += int(SILENCE_ACCEPTED_S * 1e9)
        reply = await completion(site)
        assert reply.status == 409
        assert "the agent was last heard 7260 s ago" in reply.json["detail"]
        assert "--discard-source-changes" in reply.json["hint"]
        await site.observe(cutover=applied(job))
        assert await condition(site) is None
        now[0] += int(SILENCE_ACCEPTED_S * 1e9) + 10**9
        assert (await completion(site)).status == 409
        assert (await completion(site, discard_source_changes=True)).status == 202


async def test_source_that_is_switched_off_right_after_the_migration_does_not_hold_completing_up(
    tmp_path: Path,
) -> None:
    now = [time.time_ns()]
    async with driven_site(tmp_path, clock=lambda: now[0]) as site:
        await migrated(site)
        now[0] += 600 * 10**9
        assert (await completion(site)).status == 202


async def test_cancelling_ends_the_alarm_and_the_next_migration_is_judged_anew(site: DrivenSite) -> None:
    await migrated(site)
    await site.observe(cutover=None)
    await site.verb("/migration/cancel", {"delete_disks": True})
    await site.observe()
    assert await condition(site) is None
    await site.settle()
    again_job = (await site.verb("/migration", {}))["id"]
    await site.observe(cutover=CutoverObservation(job=again_job, state="waiting-for-disk"))
    assert await condition(site) is None
