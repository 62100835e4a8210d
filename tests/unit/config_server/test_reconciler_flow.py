"""The road of a protected item over the real API, with a scripted agent and a scripted writer: protect → test → migrate → complete."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replication.control_plane import CutoverObservation, DataKeyGrant, GenerationGrant, GenerationRequest
from replication.documents import WriterIdentity
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.segment_keys import manifest_key
from replication.store_documents import WriterAnswer
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    ScriptedWriter,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    new_id,
    observation,
    source_hashes,
)

SOURCE = {DISK: b"first disk" * 100, OTHER_DISK: b"second disk" * 70}
DISKS = [
    inventory_disk(DISK, "/dev/sda", len(SOURCE[DISK])),
    inventory_disk(OTHER_DISK, "/dev/sdb", len(SOURCE[OTHER_DISK])),
]


class Site:
    """A lab with one process server and one server of two disks, driven step by step."""

    def __init__(self, lab: Lab, writer: ScriptedWriter) -> None:
        self.lab = lab
        self.writer = writer

    async def prepare(self) -> None:
        await self.lab.enrol(Role.PROCESS_SERVER, "ps-1")
        await self.lab.enrol(Role.AGENT, "web-1")
        await self.beat()
        reply = await self.agent("PUT", "/agent/inventory", inventory("web-1", DISKS, clock_unix_ns=time.time_ns()))
        assert reply.status == 204, reply.body
        await self.observe([])
        await self.settle()

    async def beat(self) -> None:
        reply = await self.lab.request(
            "POST", "/api/v1/process-server/heartbeats", heartbeat(), identity=self.lab.identities["ps-1"]
        )
        assert reply.status == 200, reply.body

    async def agent(self, method: str, path: str, body: Any = None) -> Any:
        return await self.lab.request(method, "/api/v1" + path, body, identity=self.lab.identities["web-1"])

    async def observe(
        self, disks: list[Any] | None = None, *, cutover: CutoverObservation | None = None, revision: int | None = None
    ) -> None:
        both = [disk_observation(disk, size_bytes=len(content)) for disk, content in SOURCE.items()]
        seen = revision if revision is not None else (await self.desired())["revision"]
        body = observation("web-1", both if disks is None else disks, cutover=cutover, revision=seen)
        reply = await self.agent("POST", "/agent/observations", body)
        assert reply.status == 204, reply.body

    async def desired(self) -> Any:
        return (await self.agent("GET", "/agent/desired")).json

    async def settle(self) -> None:
        """Let server and writer work until nothing more is to be done."""
        for _ in range(4):
            await self.lab.running.reconciler.run_once()
            await self.writer.work()

    async def verb(self, path: str, body: dict[str, Any] | None = None) -> Any:
        reply = await self.lab.administer("POST", f"/api/v1/protected-items/web-1{path}", body)
        assert reply.status in (200, 202), reply.body
        return reply.json

    async def item(self) -> Any:
        return (await self.lab.administer("GET", "/api/v1/protected-items/web-1")).json

    async def job(self, identifier: str) -> Any:
        return (await self.lab.administer("GET", f"/api/v1/jobs/{identifier}")).json

    async def protect(self) -> Any:
        reply = await self.lab.administer("POST", "/api/v1/servers/web-1/protection", {})
        assert reply.status == 202, reply.body
        return reply.json

    async def replicate(self) -> str:
        """Protected, seeded, replicating; returns the item."""
        job = await self.protect()
        await self.observe()
        await self.settle()
        assert (await self.item())["state"] == "replicating"
        return str(job["item"])

    async def grant(self, disk: str = DISK, request: str | None = None) -> Any:
        body = GenerationRequest(
            request=request or new_id(), reason="test", size_bytes=len(SOURCE[disk]), granularity_bytes=65536
        )
        return await self.agent("POST", f"/agent/disks/{disk}/generations", body)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    store = MemoryBlobClient()
    writer = ScriptedWriter(store, source=dict(SOURCE))
    async with running_lab(tmp_path, store, writer=writer.identity, reconcile=False) as lab:
        made = Site(lab, writer)
        await lab.running.reconciler.run_once()
        await made.prepare()
        yield made


async def test_protected_server_is_seeded_and_replicates(site: Site) -> None:
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


async def test_generation_is_in_the_store_before_it_is_granted_and_the_same_request_gets_the_same(site: Site) -> None:
    item = await site.replicate()
    request = new_id()
    reply = await site.grant(request=request)
    assert reply.status == 200, reply.body
    grant = GenerationGrant.decode(reply.body)
    assert (grant.generation, grant.base, grant.item) == (1, None, item)
    stored = await site.lab.store.head_blob("replication", f"keys/{DISK}/0000000001")
    assert stored.length_bytes > 0
    assert GenerationGrant.decode((await site.grant(request=request)).body) == grant
    assert GenerationGrant.decode((await site.agent("GET", f"/agent/disks/{DISK}/generations/1")).body) == grant
    key = await site.lab.request(
        "GET", f"/api/v1/process-server/disks/{DISK}/generations/1/key", identity=site.lab.identities["ps-1"]
    )
    data_key = DataKeyGrant.decode(key.body)
    derived = manifest_key(bytes.fromhex(data_key.data_key), GenerationKey(DiskId(DISK), GenerationId(1)))
    assert derived.hex() == grant.manifest_key


async def test_next_generation_names_the_closed_one_as_base_and_keeps_the_digest_key(site: Site) -> None:
    await site.replicate()
    first = GenerationGrant.decode((await site.grant()).body)
    request = new_id()
    waiting = await site.grant(request=request)
    assert (waiting.status, waiting.headers["Retry-After"]) == (503, "1")
    await site.settle()
    second = GenerationGrant.decode((await site.grant(request=request)).body)
    assert (second.generation, second.base is not None and second.base.generation) == (2, 1)
    assert second.base is not None
    assert second.base.epoch == site.writer.final_epoch
    assert second.digest_key == first.digest_key
    assert second.manifest_key != first.manifest_key


async def test_writer_that_cannot_close_a_generation_is_named_to_the_agent(site: Site) -> None:
    await site.replicate()
    await site.grant()
    site.writer.failing = {"close-generation"}
    await site.grant()
    await site.settle()
    reply = await site.grant()
    assert reply.status == 503
    assert "fails as scripted" in reply.json["detail"]


async def test_machine_can_only_touch_disks_it_owns(site: Site) -> None:
    await site.replicate()
    await site.lab.enrol(Role.AGENT, "db-1")
    thief = site.lab.identities["db-1"]
    body = GenerationRequest(request=new_id(), reason="x", size_bytes=512, granularity_bytes=65536)
    reply = await site.lab.request("POST", f"/api/v1/agent/disks/{DISK}/generations", body, identity=thief)
    assert reply.status == 403
    await site.grant()
    assert (await site.lab.request("GET", f"/api/v1/agent/disks/{DISK}/generations/1", identity=thief)).status == 403
    stolen = await site.lab.request("PUT", "/api/v1/agent/inventory", inventory("db-1", DISKS), identity=thief)
    assert stolen.status == 409
    events = (await site.lab.administer("GET", "/api/v1/events?kind=second-incarnation")).json["items"]
    assert len(events) == 1


async def test_data_key_is_only_for_the_assigned_process_server(site: Site) -> None:
    await site.replicate()
    await site.grant()
    await site.lab.enrol(Role.PROCESS_SERVER, "ps-2")
    path = f"/api/v1/process-server/disks/{DISK}/generations/1/key"
    assert (await site.lab.request("GET", path, identity=site.lab.identities["ps-2"])).status == 403
    assert (await site.lab.request("GET", path, identity=site.lab.identities["web-1"])).status == 403
    assert (await site.lab.request("GET", path)).status == 401


async def test_drill_from_the_latest_point_counts_only_after_its_clean_up(site: Site) -> None:
    item = await site.replicate()
    job = await site.verb("/test-migration", {"point": "latest"})
    assert (await site.desired())["item"]["point_request"] == {"request": job["id"], "consistency": "crash"}
    assert (await site.item())["state"] == "test-migration-pending"
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    done = await site.job(job["id"])
    assert done["state"] == "succeeded", done
    assert [disk["name"] for disk in done["result"]["disks"]] == ["web-1-disk1-Test", "web-1-disk2-Test"]
    assert site.writer.contents["web-1-disk2-Test"] == SOURCE[OTHER_DISK]
    shown = await site.item()
    assert (shown["state"], shown["last_drill_at"]) == ("test-migration-clean-up-pending", None)
    assert (await site.desired())["item"]["point_request"] is None
    cleaning = await site.verb("/test-migration/clean-up")
    await site.settle()
    assert (await site.job(cleaning["id"]))["state"] == "succeeded"
    shown = await site.item()
    assert shown["state"] == "replicating"
    assert shown["last_drill_at"] is not None
    assert site.writer.contents == {}


async def test_second_drill_makes_disks_of_the_same_names_again(site: Site) -> None:
    item = await site.replicate()
    for _ in range(2):
        job = await site.verb("/test-migration", {"point": "latest"})
        await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
        await site.settle()
        assert sorted(site.writer.contents) == ["web-1-disk1-Test", "web-1-disk2-Test"]
        await site.verb("/test-migration/clean-up")
        await site.settle()
        assert site.writer.contents == {}


async def test_failed_drill_is_cleaned_up_and_does_not_count(site: Site) -> None:
    item = await site.replicate()
    site.writer.failing = {"make-disks"}
    job = await site.verb("/test-migration", {"point": "latest"})
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    failed = await site.job(job["id"])
    assert (failed["state"], failed["problem"]["message"]) == ("failed", "make-disks fails as scripted")
    assert (await site.item())["state"] == "test-migration-failed"
    await site.verb("/test-migration/clean-up")
    await site.settle()
    shown = await site.item()
    assert (shown["state"], shown["last_drill_at"]) == ("replicating", None)


async def test_clean_up_that_fails_can_be_asked_again(site: Site) -> None:
    item = await site.replicate()
    job = await site.verb("/test-migration", {})
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    site.writer.failing = {"delete-disks"}
    await site.verb("/test-migration/clean-up")
    await site.settle()
    assert (await site.item())["state"] == "test-migration-clean-up-failed"
    site.writer.failing = set()
    await site.verb("/test-migration/clean-up")
    await site.settle()
    assert (await site.item())["state"] == "replicating"
    assert site.writer.contents == {}


async def test_unverifiable_answers_and_points_are_refused_and_shown(site: Site) -> None:
    item = await site.replicate()
    stranger = WriterIdentity.generate()
    site.writer.silent = {"make-disks"}
    job = await site.verb("/test-migration", {"point": "latest"})
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns(), signer=stranger)
    await site.settle()
    assert (await site.item())["state"] == "test-migration-pending"
    kinds = [event["kind"] for event in (await site.lab.administer("GET", "/api/v1/events")).json["items"]]
    assert kinds.count("point-refused") == 1
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    requests = [blob.name async for blob in site.lab.store.list_blobs("replication", "requests/")]
    request = requests[0].removeprefix("requests/")
    await site.writer.answer(WriterAnswer(request=request, state="succeeded"), signer=stranger)
    await site.settle()
    shown = await site.job(job["id"])
    assert shown["state"] == "in-progress"
    assert "refused" in shown["message"]
    site.writer.silent = set()
    await site.lab.store.delete_blob("replication", f"answers/{request}")
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "succeeded"


def final_cut(job: str) -> str:
    """The cut that the scripted agent makes for a job."""
    return str(uuid.uuid5(uuid.UUID(job), "final"))


def applied(job: str, **changes: Any) -> CutoverObservation:
    whole = sum(len(content) for content in SOURCE.values())
    usual = CutoverObservation(
        job=job,
        state="applied",
        cut=changes.get("cut", final_cut(job)),
        hashed_bytes=whole,
        total_bytes=whole,
        source_hashes=source_hashes(SOURCE),
        identity_claimed=True,
    )
    return CutoverObservation.model_validate(usual.model_dump() | changes)


async def test_migration_proves_identity_and_completion_keeps_only_the_final_disks(site: Site) -> None:
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
    completing = await site.verb("/migration/complete")
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
    site: Site, changes: dict[str, Any], says: str
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
    assert cancelled["state"] == "replicating"
    desired = (await site.desired())["item"]
    assert (desired["goal"], desired["cutover"]) == ("replicate", None)
    await site.settle()
    assert site.writer.contents == {}


async def test_identity_is_not_judged_before_the_agent_claims_it(site: Site) -> None:
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


async def test_agent_that_cut_again_gets_disks_of_its_newest_final_point(site: Site) -> None:
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


async def test_cutover_that_fails_on_the_source_releases_it_and_may_be_tried_again(site: Site) -> None:
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


async def test_cancelled_migration_goes_back_to_replication_and_deletes_what_it_made(site: Site) -> None:
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


async def test_cancelling_after_migrated_keeps_the_disks_unless_asked_otherwise(site: Site) -> None:
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


async def test_other_cutover_modes_are_refused_with_what_to_do(site: Site) -> None:
    await site.replicate()
    for mode in ("live-root-disk", "writers-running"):
        reply = await site.lab.administer("POST", "/api/v1/protected-items/web-1/migration", {"mode": mode})
        assert reply.status == 501
        assert "offline-disk" in reply.json["hint"]
    assert (await site.item())["state"] == "replicating"


async def test_pause_resume_and_resync(site: Site) -> None:
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


async def test_stopped_server_can_be_protected_again_and_starts_without_a_base(site: Site) -> None:
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


async def test_what_an_agent_says_of_an_earlier_item_is_not_taken_for_the_present_one(site: Site) -> None:
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
    store = MemoryBlobClient()
    writer = ScriptedWriter(store, source=dict(SOURCE))
    async with running_lab(tmp_path, store, writer=writer.identity, clock=lambda: now[0], reconcile=False) as lab:
        site = Site(lab, writer)
        await lab.running.reconciler.run_once()
        await site.prepare()
        await site.replicate()
        await site.grant()
        job = await site.verb("/stop")
        await site.settle()
        assert (await site.job(job["id"]))["step"] == "waiting-for-agent"
        now[0] += 120 * 10**9
        await site.settle()
        assert (await site.job(job["id"]))["state"] == "succeeded"


async def test_deletion_that_fails_can_be_asked_again(site: Site) -> None:
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


async def test_doubt_makes_points_suspect_and_they_are_never_the_last_good_one(site: Site) -> None:
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


async def test_points_are_pruned_by_retention_but_not_the_newest_good_one(site: Site) -> None:
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


async def test_requests_are_removed_from_the_store_once_answered(site: Site) -> None:
    item = await site.replicate()
    job = await site.verb("/test-migration", {})
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    await site.settle()
    assert [blob.name async for blob in site.lab.store.list_blobs("replication", "requests/")] == []
    assert [blob.name async for blob in site.lab.store.list_blobs("replication", "answers/")] != []


async def test_on_demand_recovery_point_is_the_job_s_own_cut(site: Site) -> None:
    item = await site.replicate()
    job = await site.verb("/recovery-points", {"consistency": "crash"})
    assert (await site.desired())["item"]["point_request"]["request"] == job["id"]
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    assert (await site.job(job["id"]))["result"]["cut"] == job["id"]
    assert (await site.desired())["item"]["point_request"] is None
