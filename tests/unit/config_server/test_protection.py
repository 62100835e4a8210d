"""Protecting, pausing, resynchronizing and stopping over the real API, with a scripted agent and writer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config_server.migratectl.rendering import item_tables
from config_server.operator_plane import ItemStatus
from replication.control_plane import GenerationGrant
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    disk_observation,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def test_protected_server_is_seeded_and_replicates(site: DrivenSite) -> None:
    job = await site.protect()
    item = await site.item()
    assert (item["state"], item["process_server"]["hostname"]) == ("enabling-replication", "ps-1")
    desired = (await site.desired())["item"]
    assert (desired["goal"], desired["disks"], desired["process_server"]["url"]) == (
        "replicate",
        [DISK, OTHER_DISK],
        "https://127.0.0.1:9443",
    )
    half = len(SOURCE[DISK]) // 2
    seeding = disk_observation(
        DISK,
        phase="seeding",
        size_bytes=len(SOURCE[DISK]),
        seeding_total_bytes=len(SOURCE[DISK]),
        seeding_done_bytes=half,
        send_rate_bytes_per_s=100.0,
    )
    await site.observe([seeding, disk_observation(OTHER_DISK, phase="waiting", size_bytes=len(SOURCE[OTHER_DISK]))])
    await site.settle()
    shown = await site.job(job["id"])
    total = len(SOURCE[DISK]) + len(SOURCE[OTHER_DISK])
    assert (shown["state"], shown["done_bytes"], shown["total_bytes"]) == ("in-progress", half, total)
    assert shown["eta_s"] == pytest.approx((total - half) / 100.0)
    assert (await site.item())["state"] == "initial-replication"
    await site.observe()
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "succeeded"
    assert (await site.item())["state"] == "replicating"


async def test_pause_resume_and_resync(site: DrivenSite) -> None:
    await site.replicate()
    assert (await site.verb("/pause"))["state"] == "paused"
    assert (await site.desired())["item"]["goal"] == "pause"
    await site.observe([disk_observation(DISK, phase="paused"), disk_observation(OTHER_DISK, phase="paused")])
    shown = await site.item()
    assert (shown["state"], shown["health"], shown["going"]) == ("paused", "warning", "PAUSED")
    assert (await site.verb("/resume"))["state"] == "replicating"
    await site.observe()
    job = await site.verb("/resync", {"disks": [DISK]})
    assert (await site.item())["state"] == "resynchronizing"
    orders = (await site.desired())["item"]["resyncs"]
    assert [order["disk"] for order in orders] == [DISK]
    await site.observe()
    await site.settle()
    assert (await site.item())["state"] == "resynchronizing"  # the observation is from before the resync
    resyncing = disk_observation(DISK, phase="resynchronizing", generation=2)
    await site.observe([resyncing, disk_observation(OTHER_DISK)])
    await site.settle()
    assert (await site.item())["going"] == "RESCAN"
    await site.observe([disk_observation(DISK, generation=2), disk_observation(OTHER_DISK)])
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "succeeded"
    assert (await site.item())["state"] == "replicating"
    assert (await site.desired())["item"]["resyncs"] == []


async def test_stopped_server_can_be_protected_again_and_starts_without_a_base(site: DrivenSite) -> None:
    await site.replicate()
    first = GenerationGrant.decode((await site.grant()).body)
    job = await site.verb("/stop")
    await site.observe([])
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "succeeded"
    assert (await site.item())["state"] == "stopped"
    await site.protect()
    second = GenerationGrant.decode((await site.grant()).body)
    assert (second.generation, second.base) == (2, None)
    assert second.digest_key != first.digest_key


async def test_of_an_item_that_has_ended_nothing_is_observed_any_more(site: DrivenSite) -> None:
    await site.replicate()
    before = await site.item()
    assert (before["health"] is None, before["fraction"]) == (False, 1.0)
    assert None not in (before["replication_lag_s"], before["disks"][0]["observation"])
    await site.verb("/stop")
    await site.observe([])
    await site.settle()
    item = await site.item()
    assert (item["state"], item["going"], item["conditions"]) == ("stopped", "ENDED", [])
    unknown = ("health", "fraction", "done_bytes", "total_bytes", "rate_bytes_per_s", "eta_s", "replication_lag_s")
    assert {name: item[name] for name in (*unknown, "rpo_lag_s")} == dict.fromkeys((*unknown, "rpo_lag_s"))
    for disk in item["disks"]:
        assert (disk["phase"], disk["size_bytes"] > 0) == ("stopped", True)
        assert (disk["fraction"], disk["observation"], disk["observation_age_s"]) == (None, None, None)
        assert (disk["replication_lag_s"], disk["rpo_lag_s"]) == (None, None)
    tables = item_tables([ItemStatus.model_validate(item)])
    shown = " ".join(str(cell) for made in tables for column in made.columns for cell in column.cells)
    assert not [word for word in ("healthy", "replicating", "ebpf", "100 %") if word in shown], shown


async def test_what_an_agent_says_of_an_earlier_item_is_not_taken_for_the_present_one(site: DrivenSite) -> None:
    await site.replicate()
    old = (await site.desired())["revision"]
    await site.verb("/stop")
    await site.observe([])
    await site.settle()
    await site.protect()
    await site.observe(revision=old)
    shown = await site.item()
    assert (shown["state"], shown["fraction"]) == ("enabling-replication", 0.0)
    await site.observe()
    assert (await site.item())["state"] == "replicating"


async def test_stop_of_a_silent_agent_does_not_wait_for_it(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with driven_site(tmp_path, clock=lambda: now[0]) as site:
        await site.replicate()
        await site.grant()
        job = await site.verb("/stop")
        await site.settle()
        assert (await site.job(job["id"]))["step"] == "waiting-for-agent"
        now[0] += 120 * 10**9
        await site.settle()
        assert (await site.job(job["id"]))["state"] == "succeeded"


async def test_policy_is_kept_while_an_item_is_under_it_and_an_ended_one_is_shown_with_the_default_then(
    site: DrivenSite,
) -> None:
    assert (await site.lab.administer("POST", "/api/v1/policies", {"name": "gold"})).status == 201
    body = {"policy": "gold"}
    assert (await site.lab.administer("POST", "/api/v1/servers/web-1/protection", body)).status == 202
    refused = await site.lab.administer("DELETE", "/api/v1/policies/gold")
    assert (refused.status, "used by web-1" in refused.json["detail"]) == (409, True)
    await site.verb("/stop")
    await site.observe([])
    await site.settle()
    assert (await site.lab.administer("DELETE", "/api/v1/policies/gold")).status == 204
    item = await site.item()
    assert (item["state"], item["policy"]) == ("stopped", "default")
    assert (await site.lab.administer("DELETE", "/api/v1/policies/gold")).status == 404


async def test_deletion_that_fails_can_be_asked_again(site: DrivenSite) -> None:
    await site.replicate()
    await site.grant()
    site.writer.failing = {"delete-replicas"}
    await site.verb("/stop")
    await site.observe([])
    await site.settle()
    assert (await site.item())["state"] == "stopping-failed"
    site.writer.failing = set()
    await site.verb("/stop")
    await site.observe([])
    await site.settle()
    assert (await site.item())["state"] == "stopped"


async def test_deletion_that_fails_is_told_though_the_clock_was_set_back_after_the_order(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with driven_site(tmp_path, clock=lambda: now[0]) as site:
        await site.replicate()
        await site.grant()
        site.writer.failing = {"delete-replicas"}
        await site.verb("/stop")
        now[0] -= 3600 * 10**9
        await site.observe([])
        await site.settle()
        assert (await site.item())["state"] == "stopping-failed"
        assert [request.kind for request in site.writer.worked].count("delete-replicas") <= 1
