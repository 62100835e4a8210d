"""Migrations over the real API: proof, failures, cancellation, completion."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replication.control_plane import CutoverObservation
from tests.harness.driven_site import SOURCE, DrivenSite, applied, driven_site, final_cut
from tests.harness.scripted_peers import (
    DISK,
    disk_observation,
    new_id,
    source_hashes,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def test_migration_proves_identity_and_completion_keeps_only_the_final_disks(site: DrivenSite) -> None:
    item = await site.replicate()
    await site.grant()
    job = await site.verb("/migration", {"mode": "offline-disk"})
    identifier = job["id"]
    assert (await site.desired())["item"]["cutover"] == {"job": identifier, "mode": "offline-disk"}
    await site.observe(cutover=CutoverObservation(job=identifier, state="waiting-for-disk"))
    await site.settle()
    waiting = await site.job(identifier)
    assert waiting["state"] == "waiting-for-input"
    assert "unmount" in waiting["message"]
    await site.observe(cutover=CutoverObservation(job=identifier, state="shipping"))
    await site.settle()
    assert (await site.job(identifier))["state"] == "in-progress"
    await site.observe(cutover=CutoverObservation(job=identifier, state="sealed", cut=final_cut(identifier)))
    await site.writer.publish_point(item, final_cut(identifier), time_ns=time.time_ns(), final=True)
    await site.settle()
    assert (await site.job(identifier))["step"] == "proving-identity"
    held = [disk_observation(disk, phase="held", size_bytes=len(content)) for disk, content in SOURCE.items()]
    await site.observe(held, cutover=applied(identifier))
    await site.settle()
    done = await site.job(identifier)
    assert done["state"] == "succeeded", done
    assert done["result"]["identity"] == "proved"
    assert done["result"]["disks"][0]["sha256"] == hashlib.sha256(SOURCE[DISK]).hexdigest()
    assert [disk["name"] for disk in done["result"]["disks"]] == ["web-1-disk1", "web-1-disk2"]
    assert done["result"]["seconds_to_usable"] <= done["result"]["seconds_to_proof"]
    assert (await site.item())["state"] == "migrated"
    desired = (await site.desired())["item"]
    assert (desired["goal"], desired["cutover"]["job"]) == ("hold", identifier)
    completing = await site.verb("/migration/complete", {})
    assert (await site.desired())["item"] is None
    await site.settle()
    assert (await site.job(completing["id"]))["step"] == "waiting-for-agent"
    await site.observe([])
    await site.settle()
    assert (await site.job(completing["id"]))["state"] == "succeeded"
    assert (await site.item())["state"] == "completed"
    assert sorted(site.writer.contents) == ["web-1-disk1", "web-1-disk2"]
    assert [request.kind for request in site.writer.worked][-1] == "delete-replicas"
    assert (await site.grant()).status == 403


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source_hashes": []}, "gives 0 hashes"),
        ({"source_hashes": source_hashes(SOURCE)[:1]}, "gives 0 hashes"),
        ({"source_hashes": source_hashes(SOURCE | {DISK: b"other content " * 80})[:2]}, "bytes"),
        ({"source_hashes": source_hashes(SOURCE | {DISK: b"FIRST DISK" * 100})}, "SHA-256 of the source"),
    ],
)
async def test_migration_without_proof_fails_and_says_what_differs(
    site: DrivenSite, changes: dict[str, Any], says: str
) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, **changes))
    await site.settle()
    failed = await site.job(job)
    assert failed["state"] == "failed"
    assert says in failed["problem"]["message"]
    shown = await site.item()
    assert (shown["state"], shown["health"], shown["recovery_points"]) == ("migration-failed", "critical", 1)
    assert (await site.desired())["item"]["goal"] == "hold"
    cancelled = await site.verb("/migration/cancel", {})
    assert cancelled["state"] == ("resynchronizing" if says.startswith("SHA-256") else "replicating")
    desired = (await site.desired())["item"]
    assert (desired["goal"], desired["cutover"]) == ("replicate", None)
    await site.settle()
    assert site.writer.contents == {}


async def test_identity_is_not_judged_before_the_agent_claims_it(site: DrivenSite) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, identity_claimed=False))
    await site.settle()
    waiting = await site.job(job)
    assert (waiting["state"], waiting["step"]) == ("in-progress", "proving-identity")
    await site.observe(cutover=applied(job))
    await site.settle()
    assert (await site.job(job))["state"] == "succeeded"


async def test_agent_that_cut_again_gets_disks_of_its_newest_final_point(site: DrivenSite) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, identity_claimed=False))
    await site.settle()
    assert site.writer.contents["web-1-disk1"] == SOURCE[DISK]
    await site.observe(cutover=CutoverObservation(job=job, state="waiting-for-disk"))  # the agent was restarted
    await site.settle()
    assert (await site.job(job))["state"] == "waiting-for-input"
    changed = SOURCE | {DISK: b"other bytes" * 91}
    site.writer.source[DISK] = changed[DISK]
    second = new_id()
    await site.writer.publish_point(item, second, time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, cut=second, source_hashes=source_hashes(changed)))
    await site.settle()
    await site.settle()
    done = await site.job(job)
    assert (done["state"], done["result"]["cut"]) == ("succeeded", second), done
    assert site.writer.contents["web-1-disk1"] == changed[DISK]
    assert sorted(site.writer.contents) == ["web-1-disk1", "web-1-disk2"]


async def test_cutover_that_fails_on_the_source_releases_it_and_may_be_tried_again(site: DrivenSite) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    problem = {"code": "disk-busy", "message": "the disk was mounted again", "hint": None}
    await site.observe(cutover=applied(job, state="failed", problem=problem))
    await site.settle()
    assert (await site.job(job))["problem"]["code"] == "disk-busy"
    desired = (await site.desired())["item"]
    assert (desired["goal"], desired["cutover"]) == ("replicate", None)
    again = (await site.verb("/migration", {}))["id"]
    assert (await site.desired())["item"]["cutover"]["job"] == again
    await site.writer.publish_point(item, final_cut(again), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(again))
    await site.settle()
    assert (await site.item())["state"] == "migrated"


async def test_cancelled_migration_goes_back_to_replication_and_deletes_what_it_made(site: DrivenSite) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, identity_claimed=False))
    await site.settle()
    assert site.writer.contents
    await site.verb("/migration/cancel", {})
    await site.settle()
    assert site.writer.contents == {}
    shown = await site.item()
    assert (shown["state"], shown["recovery_points"]) == ("replicating", 1)
    assert (await site.job(job))["state"] == "cancelled"


async def test_cancelling_after_migrated_keeps_the_disks_unless_asked_otherwise(site: DrivenSite) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job))
    await site.settle()
    await site.verb("/migration/cancel", {})
    await site.settle()
    assert sorted(site.writer.contents) == ["web-1-disk1", "web-1-disk2"]
    again = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(again), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(again))
    await site.settle()
    names = {disk["name"] for disk in (await site.job(again))["result"]["disks"]}
    assert names == {f"web-1-{item[:8]}-disk1", f"web-1-{item[:8]}-disk2"}
    await site.verb("/migration/cancel", {"delete_disks": True})
    await site.settle()
    assert sorted(site.writer.contents) == ["web-1-disk1", "web-1-disk2"]


async def test_other_cutover_modes_are_refused_with_what_to_do(site: DrivenSite) -> None:
    await site.replicate()
    for mode in ("live-root-disk", "writers-running"):
        reply = await site.lab.administer("POST", "/api/v1/protected-items/web-1/migration", {"mode": mode})
        assert reply.status == 501
        assert "offline-disk" in reply.json["hint"]
    assert (await site.item())["state"] == "replicating"
