"""Generations and their keys: in the store before they are granted, closed before they are followed, for their owner only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from config_server.tables import GenerationRow, WriterRequestRow
from replication.control_plane import DataKeyGrant, GenerationGrant, GenerationRequest
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.segment_keys import manifest_key
from replication.store_documents import GenerationBase
from replication.tls_identity import Role
from tests.harness.driven_site import DISKS, DrivenSite, driven_site
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    disk_observation,
    inventory,
    new_id,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def test_the_tests_run_on_the_database_that_they_are_named_after(site: DrivenSite, database_kind: str) -> None:
    on_postgresql = site.lab.running.site.database.postgresql is not None
    assert on_postgresql == (database_kind == "postgresql")


async def test_generation_is_in_the_store_before_it_is_granted_and_the_same_request_gets_the_same(
    site: DrivenSite,
) -> None:
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


async def test_next_generation_names_the_closed_one_as_base_and_keeps_the_digest_key(site: DrivenSite) -> None:
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


async def test_base_names_the_manifests_that_the_writer_named(site: DrivenSite) -> None:
    await site.replicate()
    await granted(site)
    site.writer.named = {"manifest_hash": "ab" * 32, "torn_manifest_hash": "cd" * 32}
    second = await granted(site)
    assert second.base == GenerationBase(generation=1, epoch=site.writer.final_epoch, **site.writer.named)
    site.writer.named = None
    third = await granted(site)
    assert third.base == GenerationBase(generation=2, epoch=site.writer.final_epoch), "an older writer names none"


@pytest.mark.parametrize("deleted", [[], [1]], ids=["all-in-the-store", "the-first-deleted"])
async def test_database_that_lost_everything_adopts_and_closes_the_newest_generation_of_the_store(
    site: DrivenSite, deleted: list[int]
) -> None:
    await site.replicate()
    await site.grant()
    request = new_id()
    await site.grant(request=request)
    await site.settle()
    assert GenerationGrant.decode((await site.grant(request=request)).body).generation == 2
    for generation in deleted:
        await site.lab.store.delete_blob("replication", f"keys/{DISK}/{generation:010}")
    async with site.lab.running.site.database.write() as session:
        for row in (GenerationRow, WriterRequestRow):
            await session.execute(delete(row))
    request = new_id()
    adopting = await site.grant(request=request)
    assert (adopting.status, "knows a later one" in adopting.json["detail"]) == (503, True)
    assert (await site.grant(request=request)).status == 503, "it is being closed"
    await site.settle()
    granted = GenerationGrant.decode((await site.grant(request=request)).body)
    assert (granted.generation, granted.base is not None and granted.base.generation) == (3, 2)


async def test_answer_about_an_earlier_generation_of_the_same_number_closes_nothing(site: DrivenSite) -> None:
    """The database is lost and the disk's keys are deleted within the day that answers are kept: numbers begin anew."""
    await site.replicate()
    for life in (1, 2):
        assert (await site.grant()).status == 200
        request = new_id()
        assert (await site.grant(request=request)).status == 503
        assert (await site.grant(request=request)).status == 503
        await site.lab.running.reconciler.run_once()
        assert (await site.grant(request=request)).status == 503, "another generation's answer was taken for this one's"
        await site.settle()
        granted = GenerationGrant.decode((await site.grant(request=request)).body)
        assert (granted.generation, granted.base is not None) == (2, True)
        assert sum(request.kind == "close-generation" for request in site.writer.worked) == life
        async with site.lab.running.site.database.write() as session:
            for row in (GenerationRow, WriterRequestRow):
                await session.execute(delete(row))
        for generation in (1, 2):
            await site.lab.store.delete_blob("replication", f"keys/{DISK}/{generation:010}")


async def test_request_to_close_a_generation_is_the_same_after_a_restored_backup(site: DrivenSite) -> None:
    """The database forgets what it asked; the generation is adopted from the store, and the answer that is there still counts."""
    await site.replicate()
    await site.grant()
    await site.grant()
    await site.settle()
    async with site.lab.running.site.database.write() as session:
        for row in (GenerationRow, WriterRequestRow):
            await session.execute(delete(row))
    request = new_id()
    for _ in range(3):
        reply = await site.grant(request=request)
        await site.settle()
    assert (reply.status, GenerationGrant.decode(reply.body).generation) == (200, 2)
    assert sum(request.kind == "close-generation" for request in site.writer.worked) == 1


async def granted(site: DrivenSite) -> GenerationGrant:
    """The next generation, once the one before is closed."""
    request = new_id()
    for _ in range(3):
        reply = await site.grant(request=request)
        if reply.status == 200:
            break
        await site.settle()
    return GenerationGrant.decode(reply.body)


async def test_generation_after_one_that_was_never_opened_continues_what_the_replica_is_at(site: DrivenSite) -> None:
    await site.replicate()
    assert [(await granted(site)).generation for _ in range(2)] == [1, 2]
    site.writer.refused_base = GenerationBase(generation=1, epoch=5)
    third = await granted(site)
    assert (third.generation, third.base, third.torn) == (3, GenerationBase(generation=1, epoch=5), True)
    events = (await site.lab.administer("GET", "/api/v1/events?kind=generation-refused")).json["items"]
    assert len(events) == 1
    site.writer.refused_base = GenerationBase(generation=9, epoch=2)
    fourth = await granted(site)
    assert (fourth.generation, fourth.base) == (10, site.writer.refused_base), "beyond the replica's own number"


async def test_number_is_beyond_what_was_written_under_a_record_that_is_gone(site: DrivenSite) -> None:
    await site.replicate()
    await site.lab.store.put_blob("replication", f"{DISK}/0000000006/receipt", b"of an earlier life")
    assert (await granted(site)).generation == 7


async def test_refused_generation_is_a_condition_of_the_item_and_another_resync_may_be_ordered(
    site: DrivenSite,
) -> None:
    await site.replicate()
    first = await site.verb("/resync", {"reason": "to be sure"})
    again = await site.lab.administer("POST", "/api/v1/protected-items/web-1/resync", {"reason": "to be sure"})
    assert again.status == 409, "it is under way"
    problem = {"code": "generation-refused", "message": "cannot open generation 2", "hint": "order a resync"}
    stuck = disk_observation(DISK, phase="resynchronizing", generation=2, problem=problem)
    await site.observe([stuck, disk_observation(OTHER_DISK)])
    conditions = {condition["code"]: condition for condition in (await site.item())["conditions"]}
    assert conditions["disk-generation-refused"]["health"] == "critical"
    assert conditions["disk-generation-refused"]["remedy"] == "order a resync"
    second = await site.verb("/resync", {"reason": "the sink refused the generation"})
    assert (await site.item())["open_jobs"] == [second["id"]]
    assert (await site.job(first["id"]))["state"] == "cancelled"


async def test_resync_that_an_agent_was_about_to_make_anyhow_fulfils_the_order(tmp_path: Path) -> None:
    """The generation was granted, and the agent had not begun it, when the operator ordered one: it asks for no other."""
    moved_s = [0]
    async with driven_site(tmp_path, lambda: time.time_ns() + moved_s[0] * 10**9) as site:
        await site.replicate()
        assert [(await granted(site)).generation for _ in range(2)] == [1, 2]
        job = await site.verb("/resync", {"disks": [DISK], "reason": "to be sure"})
        await site.observe([disk_observation(DISK, generation=2), disk_observation(OTHER_DISK)])
        await site.settle()
        waiting = await site.job(job["id"])
        assert (waiting["state"], waiting["message"]) == ("in-progress", "the agent has not taken it up yet")
        moved_s[0] = 61
        await site.observe([disk_observation(DISK, generation=2), disk_observation(OTHER_DISK)])
        await site.settle()
        assert (await site.job(job["id"]))["state"] == "succeeded"


async def test_resync_that_fails_waits_for_input_and_says_why(site: DrivenSite) -> None:
    await site.replicate()
    job = await site.verb("/resync", {"reason": "to be sure"})
    problem = {"code": "no-space", "message": "cannot keep the journal; make room", "hint": "make room"}
    await site.observe([disk_observation(DISK, phase="failed", problem=problem), disk_observation(OTHER_DISK)])
    await site.settle()
    waiting = await site.job(job["id"])
    assert (waiting["state"], waiting["message"]) == ("waiting-for-input", "cannot keep the journal")


async def test_protection_that_ends_while_a_record_is_on_its_way_leaves_no_key_behind(site: DrivenSite) -> None:
    """Else the writer would begin a replica that nobody knows of."""
    await site.replicate()
    store, generations = site.lab.store, site.lab.running.site.generations

    class Slow:
        """A store to which the record takes as long as it takes to stop the replication."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def put_blob(self, container: str, name: str, *arguments: Any, **named: Any) -> Any:
            await site.verb("/stop")
            return await store.put_blob(container, name, *arguments, **named)

    slow: Any = Slow()
    generations._store = slow
    reply = await site.grant()
    generations._store = store
    assert reply.status == 403, reply.body
    assert [blob.name async for blob in store.list_blobs("replication", f"keys/{DISK}/")] == []
    await site.observe()
    await site.settle()
    assert (await site.item())["state"] == "stopped"


@pytest.mark.parametrize("torn", [True, False])
async def test_next_generation_says_whether_the_closed_one_ended_in_a_torn_epoch(site: DrivenSite, torn: bool) -> None:
    await site.replicate()
    assert not GenerationGrant.decode((await site.grant()).body).torn
    site.writer.torn = torn
    request = new_id()
    await site.grant(request=request)
    await site.settle()
    second = GenerationGrant.decode((await site.grant(request=request)).body)
    assert (second.generation, second.torn) == (2, torn)
    assert GenerationGrant.decode((await site.grant(request=request)).body) == second
    assert GenerationGrant.decode((await site.agent("GET", f"/agent/disks/{DISK}/generations/2")).body).torn == torn
    site.writer.torn = False
    later = new_id()
    await site.grant(request=later)
    await site.settle()
    assert not GenerationGrant.decode((await site.grant(request=later)).body).torn


async def test_writer_that_cannot_close_a_generation_is_named_to_the_agent(site: DrivenSite) -> None:
    await site.replicate()
    await site.grant()
    site.writer.failing = {"close-generation"}
    await site.grant()
    await site.settle()
    reply = await site.grant()
    assert reply.status == 503
    assert "fails as scripted" in reply.json["detail"]


async def test_record_that_the_store_has_lost_is_put_again_so_that_its_generation_can_be_closed(
    site: DrivenSite,
) -> None:
    """The store was put back to a state from before the generation: its writer knows nothing that it could close."""
    await site.replicate()
    await granted(site)
    name = f"keys/{DISK}/0000000001"
    record = await site.lab.store.get_blob("replication", name, max_bytes=2**20)
    await site.lab.store.delete_blob("replication", name)
    site.writer.failing = {"close-generation"}
    request = new_id()
    await site.grant(request=request)
    await site.settle()
    refused = await site.grant(request=request)
    assert (refused.status, "fails as scripted" in refused.json["detail"]) == (503, True)
    assert record is not None
    again = await site.lab.store.get_blob("replication", name, max_bytes=2**20)
    assert again is not None
    assert again.content == record.content


async def test_request_that_the_store_has_lost_is_put_again_after_a_minute(tmp_path: Path) -> None:
    moved_s = [0]
    async with driven_site(tmp_path, lambda: time.time_ns() + moved_s[0] * 10**9) as site:
        await site.replicate()
        await granted(site)
        request = new_id()
        site.writer.silent = {"close-generation"}
        await site.grant(request=request)
        await site.settle()
        (name,) = [blob.name async for blob in site.lab.store.list_blobs("replication", "requests/")]
        await site.lab.store.delete_blob("replication", name)
        site.writer.silent = set()
        await site.settle()
        assert (await site.grant(request=request)).status == 503
        moved_s[0] = 61
        await site.settle()
        assert GenerationGrant.decode((await site.grant(request=request)).body).generation == 2


async def test_machine_can_only_touch_disks_it_owns(site: DrivenSite) -> None:
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


async def test_a_generation_is_over_as_soon_as_its_item_is_being_stopped(site: DrivenSite) -> None:
    await site.replicate()
    await site.grant()
    path, process_server = f"/api/v1/process-server/disks/{DISK}/generations/1/key", site.lab.identities["ps-1"]
    assert (await site.lab.request("GET", path, identity=process_server)).status == 200
    await site.verb("/stop")
    assert (await site.item())["state"] == "stopping"
    gone = await site.lab.request("GET", path, identity=process_server)
    assert gone.status == 404, "before anything is deleted: what goes is then known to go on purpose"


async def test_data_key_is_only_for_the_assigned_process_server(site: DrivenSite) -> None:
    await site.replicate()
    await site.grant()
    await site.lab.enrol(Role.PROCESS_SERVER, "ps-2", service_url="https://127.0.0.1:9444")
    path = f"/api/v1/process-server/disks/{DISK}/generations/1/key"
    assert (await site.lab.request("GET", path, identity=site.lab.identities["ps-2"])).status == 403
    assert (await site.lab.request("GET", path, identity=site.lab.identities["web-1"])).status == 403
    assert (await site.lab.request("GET", path)).status == 401
