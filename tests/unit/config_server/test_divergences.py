"""A final disk that differs from its source: what becomes suspect, until when, and how it is repaired (P3, P5, P6, R12)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config_server.core.doubt import Divergence, Position, is_repaired, suspicion
from replication.control_plane import DiskPhase, GenerationRequest
from tests.harness.config_site import running_lab
from tests.harness.driven_site import SOURCE, DrivenSite, applied, driven_site, final_cut
from tests.harness.scripted_peers import DISK, OTHER_DISK, disk_observation, new_id, source_hashes


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def points_of(site: DrivenSite) -> dict[str, str | None]:
    """Every point, and why it is suspect."""
    found = (await site.lab.administer("GET", "/api/v1/protected-items/web-1/recovery-points")).json["items"]
    return {point["cut"]: point["suspect"] for point in found}


async def codes(site: DrivenSite) -> list[str]:
    return [condition["code"] for condition in (await site.item())["conditions"]]


async def metric(site: DrivenSite, name: str) -> float | None:
    """Of the one server, as the next snapshot tells."""
    reconciler = site.lab.running.reconciler
    reconciler.look_around_soon()
    await reconciler.run_once()
    found = {sample.name: sample.value for family in reconciler.figures.collect() for sample in family.samples}
    return found.get(name)


async def refused(site: DrivenSite, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await site.lab.administer("POST", f"/api/v1/protected-items/web-1{path}", body)
    assert reply.status == 409, reply.body
    problem: dict[str, Any] = reply.json
    return problem


async def generation(site: DrivenSite, reason: str, *, distrust: bool, disk: str = DISK) -> int:
    """The agent's next generation of a disk."""
    body = GenerationRequest(
        request=new_id(),
        reason=reason,
        size_bytes=len(SOURCE[disk]),
        granularity_bytes=65536,
        distrust_digests=distrust,
    )
    await site.agent("POST", f"/agent/disks/{disk}/generations", body)
    await site.settle()
    reply = await site.agent("POST", f"/agent/disks/{disk}/generations", body)
    assert reply.status == 200, reply.body
    return int(reply.json["generation"])


async def observe(site: DrivenSite, **first: Any) -> None:
    """Both disks replicate; of the first one also ``first`` is said."""
    await site.observe([disk_observation(DISK, **first), disk_observation(OTHER_DISK)])


async def diverged(site: DrivenSite) -> tuple[str, str, str]:
    """A migration whose first disk differed. Returns item, job, and a point that was good until then."""
    item = await site.replicate()
    for disk in SOURCE:
        assert (await site.grant(disk)).status == 200
    early = new_id()
    await site.writer.publish_point(item, early, time_ns=time.time_ns() - 10**9)
    await site.settle()
    await site.observe()
    assert await points_of(site) == {early: None}
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, source_hashes=source_hashes(SOURCE | {DISK: b"FIRST DISK" * 100})))
    await site.settle()
    return item, job, early


async def test_points_of_a_disk_that_differs_are_suspect_from_the_beginning_when_the_job_fails(
    site: DrivenSite,
) -> None:
    _, job, early = await diverged(site)
    failed = await site.job(job)
    assert (failed["state"], failed["problem"]["code"]) == ("failed", "identity-not-proved")
    assert "unharmed" not in failed["problem"]["hint"]
    assert "cancel" in failed["problem"]["hint"]
    points = await points_of(site)
    assert points.keys() == {early, final_cut(job)}
    assert all(f"disk {DISK}: its final disk was compared" in str(reason) for reason in points.values())
    shown = await site.item()
    assert shown["health"] == "critical"
    assert {"replica-differs", "failed", "points-suspect"} <= set(await codes(site))
    assert await metric(site, "blockferry_disks_differing") == 1
    assert not any("unharmed" in condition["remedy"] for condition in shown["conditions"])
    for kind in ("replica-differs", "points-suspect"):
        events = (await site.lab.administer("GET", f"/api/v1/events?kind={kind}")).json["items"]
        assert [DISK in event["message"] for event in events] == [True]


async def test_no_migration_and_no_drill_of_a_new_point_while_a_replica_is_known_to_differ(site: DrivenSite) -> None:
    await diverged(site)
    problem = await refused(site, "/migration", {})
    assert "differs from its source" in problem["detail"]
    assert "cancel" in problem["hint"]
    await site.verb("/migration/cancel", {})
    await observe(site)
    problem = await refused(site, "/migration", {})
    assert "wait for the end of the resync" in problem["hint"]
    problem = await refused(site, "/test-migration", {"point": "latest"})
    assert "differs from its source" in problem["detail"]
    await refused(site, "/test-migration", {"point": "latest-processed"})


async def test_cancel_orders_the_repair_which_alone_ends_the_alarm(site: DrivenSite) -> None:
    item, job, early = await diverged(site)
    cancelled = await site.verb("/migration/cancel", {})
    assert (cancelled["state"], cancelled["health"]) == ("resynchronizing", "critical")
    (order,) = (await site.desired())["item"]["resyncs"]
    assert (order["disk"], order["distrust_digests"]) == (DISK, True)
    await observe(site)
    await site.settle()
    assert "replica-differs" in await codes(site)

    # Tracking is lost before the order is obeyed: a generation that rests on the digests repairs nothing.
    lost = await generation(site, "cannot go on: rebooted", distrust=False)
    await observe(site, generation=lost)
    middle = new_id()
    await site.writer.publish_point(item, middle, time_ns=time.time_ns(), generation=lost, epoch=2)
    await site.settle()
    assert "replica-differs" in await codes(site)
    assert (await points_of(site))[middle] is not None
    assert len((await site.item())["open_jobs"]) == 1

    repaired = await generation(site, order["reason"], distrust=True)
    await observe(site, generation=repaired, phase="resynchronizing")
    await site.settle()
    assert "replica-differs" in await codes(site)
    after = new_id()
    await site.writer.publish_point(item, after, time_ns=time.time_ns(), generation=repaired, epoch=2)
    await site.settle()  # found before the agent says that it is over
    await observe(site, generation=repaired)
    await site.settle()
    points = await points_of(site)
    assert [cut for cut, reason in points.items() if reason is None] == [after]
    assert {early, final_cut(job), middle} < points.keys()
    shown = await site.item()
    assert (shown["state"], shown["open_jobs"]) == ("replicating", [])
    assert "replica-differs" not in await codes(site)
    events = (await site.lab.administer("GET", "/api/v1/events?kind=replica-repaired")).json["items"]
    assert len(events) == 1

    again = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(
        item, final_cut(again), time_ns=time.time_ns(), final=True, generation=repaired, epoch=3
    )
    await site.observe(cutover=applied(again))
    await site.settle()
    await site.settle()
    assert (await site.job(again))["result"]["identity"] == "proved"


async def test_operator_s_plain_resync_of_a_disk_that_differs_sends_everything_all_the_same(site: DrivenSite) -> None:
    await diverged(site)
    await site.verb("/migration/cancel", {})
    await observe(site, problem={"code": "operating-system", "message": "the file system is full", "hint": None})
    await site.verb("/resync", {})
    orders = (await site.desired())["item"]["resyncs"]
    assert {order["disk"]: order["distrust_digests"] for order in orders} == {DISK: True, OTHER_DISK: False}


async def test_operator_may_distrust_digests_that_nothing_speaks_against(site: DrivenSite) -> None:
    await site.replicate()
    assert (await site.grant()).status == 200
    job = await site.verb("/resync", {"disks": [DISK], "distrust_digests": True})
    (order,) = (await site.desired())["item"]["resyncs"]
    assert order["distrust_digests"] is True
    trusting = await generation(site, "cannot go on: rebooted", distrust=False)
    await observe(site, generation=trusting)
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "in-progress", "that one compares digests"
    distrusting = await generation(site, f"cannot go on; {order['reason']}", distrust=True)
    await observe(site, generation=distrusting)
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "succeeded"
    assert "every block is sent" in str(
        (await site.lab.administer("GET", "/api/v1/events?kind=generation-allocated")).json["items"][-1]
    )


async def test_an_order_upon_an_order_is_no_loss_of_tracking(site: DrivenSite) -> None:
    """The agent had not begun the first one: it asks once, with the reasons of both."""
    item = await site.replicate()
    assert (await site.grant()).status == 200
    point = new_id()
    await site.writer.publish_point(item, point, time_ns=time.time_ns(), epoch=9)
    await site.settle()
    await site.verb("/resync", {"disks": [DISK]})
    (first,) = (await site.desired())["item"]["resyncs"]
    await observe(site, problem={"code": "operating-system", "message": "the file system is full", "hint": None})
    await site.verb("/resync", {"disks": [DISK], "distrust_digests": True})
    (second,) = (await site.desired())["item"]["resyncs"]
    await generation(site, f"{first['reason']}; {second['reason']}", distrust=True)
    assert await points_of(site) == {point: None}


async def test_a_missing_hash_says_nothing_of_a_replica(site: DrivenSite) -> None:
    item = await site.replicate()
    job = (await site.verb("/migration", {}))["id"]
    await site.writer.publish_point(item, final_cut(job), time_ns=time.time_ns(), final=True)
    await site.observe(cutover=applied(job, source_hashes=[]))
    await site.settle()
    assert (await site.job(job))["problem"]["code"] == "identity-not-proved"
    assert await points_of(site) == {final_cut(job): None}
    await site.verb("/migration/cancel", {})
    assert (await site.desired())["item"]["resyncs"] == []


async def test_divergence_prunes_nothing_and_outlives_a_restart(tmp_path: Path) -> None:
    async with driven_site(tmp_path) as site:
        policy = (await site.lab.administer("GET", "/api/v1/policies")).json["items"][0]
        body = {key: value for key, value in policy.items() if key != "id"} | {"retention_s": 0}
        reply = await site.lab.administer("PUT", f"/api/v1/policies/{policy['name']}", body)
        assert reply.status == 200, reply.body
        _, job, early = await diverged(site)
        await site.settle()
        assert (await points_of(site)).keys() == {early, final_cut(job)}
        store, writer = site.lab.store, site.writer.identity
    async with running_lab(tmp_path, store, writer=writer, reconcile=False) as lab:
        shown = (await lab.administer("GET", "/api/v1/protected-items/web-1")).json
        assert "replica-differs" in [condition["code"] for condition in shown["conditions"]]


@pytest.mark.parametrize(
    ("resent", "generation", "phase", "repaired"),
    [
        (None, 9, "replicating", False),
        (5, None, "replicating", False),
        (5, 4, "replicating", False),
        (5, 5, "resynchronizing", False),
        (5, 5, "failed", False),
        (5, 5, "replicating", True),
        (5, 6, "replicating", True),
    ],
)
def test_divergence_is_repaired_once_the_disk_replicates_in_a_generation_that_sent_everything(
    resent: int | None, generation: int | None, phase: DiskPhase, repaired: bool
) -> None:
    assert is_repaired(Divergence(DISK, 3, "it differs", resent), generation, phase) is repaired


def test_everything_of_a_disk_that_differs_is_suspect_until_all_of_it_is_sent_again() -> None:
    for_now = Divergence(DISK, 3, "it differs", None).as_loss()
    assert suspicion([(DISK, Position(1, 1))], [for_now]) == f"disk {DISK}: it differs"
    assert suspicion([(DISK, Position(99, 1))], [for_now]) is not None
    assert suspicion([(OTHER_DISK, Position(1, 1))], [for_now]) is None
    then = Divergence(DISK, 3, "it differs", 5).as_loss()
    assert suspicion([(DISK, Position(4, 10**6))], [then]) is not None
    assert suspicion([(DISK, Position(5, 1))], [then]) is None
