"""Test migrations and their clean-up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config_server.tables import WriterRequestRow
from config_server.writer_requests import SUCCEEDED, ask_writer, request_id
from replication.documents import MAX_DOCUMENT_BYTES, WriterIdentity
from replication.store_documents import DeleteDisks, WriterAnswer
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.scripted_peers import (
    OTHER_DISK,
    new_id,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        yield made


async def test_drill_from_the_latest_point_counts_only_after_its_clean_up(site: DrivenSite) -> None:
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


async def test_paused_item_stays_paused_during_and_after_its_drill(site: DrivenSite) -> None:
    item = await site.replicate()
    await site.writer.publish_point(item, new_id(), time_ns=time.time_ns())
    await site.settle()
    await site.verb("/pause")
    refused = await site.lab.administer("POST", "/api/v1/protected-items/web-1/test-migration", {"point": "latest"})
    assert refused.status == 409
    await site.verb("/test-migration", {"point": "latest-processed"})
    await site.settle()
    assert (await site.item())["state"] == "test-migration-clean-up-pending"
    assert (await site.desired())["item"]["goal"] == "pause"
    assert "paused" in [condition["code"] for condition in (await site.item())["conditions"]]
    again = await site.lab.administer("POST", "/api/v1/protected-items/web-1/pause")
    assert (again.status, "clean up" in again.json["hint"]) == (409, True)
    await site.verb("/test-migration/clean-up")
    await site.settle()
    assert (await site.item())["state"] == "paused"
    assert (await site.verb("/resume"))["state"] == "replicating"
    assert (await site.desired())["item"]["goal"] == "replicate"


async def test_writer_that_says_nothing_is_told_with_item_and_job(tmp_path: Path) -> None:
    moved_s = [0]
    async with driven_site(tmp_path, lambda: time.time_ns() + moved_s[0] * 10**9) as site:
        item = await site.replicate()
        site.writer.silent = {"make-disks", "delete-disks"}
        job = await site.verb("/test-migration", {})
        await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
        await site.settle()
        assert "writer-silent" not in [condition["code"] for condition in (await site.item())["conditions"]]
        moved_s[0] = 400
        await site.settle()
        conditions = {condition["code"]: condition["health"] for condition in (await site.item())["conditions"]}
        assert conditions["writer-silent"] == "warning"
        assert "has not answered" in (await site.job(job["id"]))["message"]
        site.writer.silent = set()
        await site.settle()
        assert (await site.job(job["id"]))["state"] == "succeeded"
        assert "writer-silent" not in [condition["code"] for condition in (await site.item())["conditions"]]


async def test_second_drill_makes_disks_of_the_same_names_again(site: DrivenSite) -> None:
    item = await site.replicate()
    for _ in range(2):
        job = await site.verb("/test-migration", {"point": "latest"})
        await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
        await site.settle()
        assert sorted(site.writer.contents) == ["web-1-disk1-Test", "web-1-disk2-Test"]
        await site.verb("/test-migration/clean-up")
        await site.settle()
        assert site.writer.contents == {}


async def test_failed_drill_is_cleaned_up_and_does_not_count(site: DrivenSite) -> None:
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


async def test_clean_up_that_fails_can_be_asked_again(site: DrivenSite) -> None:
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


async def test_unverifiable_answers_and_points_are_refused_and_shown(site: DrivenSite) -> None:
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


async def test_an_answer_too_large_to_be_read_is_refused_and_those_after_it_are_taken(site: DrivenSite) -> None:
    item = await site.replicate()
    site.writer.silent = {"make-disks"}
    job = await site.verb("/test-migration", {"point": "latest"})
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    (asked,) = [blob.name async for blob in site.lab.store.list_blobs("replication", "requests/")]
    answer = asked.replace("requests/", "answers/")
    await site.lab.store.put_blob("replication", answer, bytes(MAX_DOCUMENT_BYTES + 1))
    later = DeleteDisks(request=request_id("later"), names=["x"])
    database = site.lab.running.site.database
    async with database.write() as session:
        await ask_writer(session, "later", later, time.time_ns())
    await site.settle()
    async with database.read() as session:
        assert (await session.get_one(WriterRequestRow, later.request)).state == SUCCEEDED
        refused = await session.get_one(WriterRequestRow, asked.removeprefix("requests/"))
        assert "larger than" in str(refused.problem)
    assert (await site.job(job["id"]))["state"] == "in-progress"
    kinds = [event["kind"] for event in (await site.lab.administer("GET", "/api/v1/events")).json["items"]]
    assert kinds.count("answer-refused") == 1
    site.writer.silent = set()
    await site.lab.store.delete_blob("replication", answer)
    await site.settle()
    assert (await site.job(job["id"]))["state"] == "succeeded"


async def test_requests_are_removed_from_the_store_once_answered(site: DrivenSite) -> None:
    item = await site.replicate()
    job = await site.verb("/test-migration", {})
    await site.writer.publish_point(item, job["id"], time_ns=time.time_ns())
    await site.settle()
    await site.settle()
    assert [blob.name async for blob in site.lab.store.list_blobs("replication", "requests/")] == []
    assert [blob.name async for blob in site.lab.store.list_blobs("replication", "answers/")] != []
