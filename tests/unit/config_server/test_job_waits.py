"""Waiting for a job's end over REST: answered when it comes, also when no bell is rung; never longer than asked for."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from sqlalchemy import update

from config_server import job_feed
from config_server.job_feed import JobFeed
from config_server.tables import JobRow
from tests.harness.driven_site import driven_site

FOR_EVER_S = 3600.0


async def test_answer_comes_when_the_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_feed, "RECHECK_S", FOR_EVER_S)
    async with driven_site(tmp_path) as site:
        job = (await site.protect())["id"]
        answer = asyncio.ensure_future(site.lab.administer("GET", f"/api/v1/jobs/{job}?wait_s=30"))
        await site.observe()
        await site.settle()
        assert (await answer).json["state"] == "succeeded"


async def test_answer_comes_when_an_operator_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_feed, "RECHECK_S", FOR_EVER_S)
    async with driven_site(tmp_path) as site:
        await site.replicate()
        job = (await site.verb("/migration", {}))["id"]
        answer = asyncio.ensure_future(site.lab.administer("GET", f"/api/v1/jobs/{job}?wait_s=30"))
        await site.verb("/migration/cancel", {})
        await site.observe()
        await site.settle()
        assert (await answer).json["state"] == "cancelled"


async def test_end_of_which_no_bell_told_is_found_by_looking_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server of the site ended it."""
    monkeypatch.setattr(job_feed, "RECHECK_S", 0.01)
    async with driven_site(tmp_path) as site:
        job, database = (await site.protect())["id"], site.lab.running.site.database
        feed = JobFeed(database, lambda: 0.0)
        waiting = asyncio.ensure_future(feed.wait(job, 30.0))
        async with database.write() as session:
            await session.execute(update(JobRow).values(ended_ns=1, state="succeeded"))
        await asyncio.wait_for(waiting, 30)


async def test_wait_is_over_with_its_time_or_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_feed, "RECHECK_S", FOR_EVER_S)
    async with driven_site(tmp_path) as site:
        job, now_s = (await site.protect())["id"], [0.0]
        feed = JobFeed(site.lab.running.site.database, lambda: now_s[0])
        await feed.wait(job, 0.0)
        waiting = asyncio.ensure_future(feed.wait(job, 30.0))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
        assert not waiting.done()
        now_s[0] = 30.0
        feed.wake()
        await asyncio.wait_for(waiting, 30)
        now_s[0] = 0.0
        waiting = asyncio.ensure_future(feed.wait(job, 30.0))
        feed.release_waiters()
        await asyncio.wait_for(waiting, 30)
        await feed.wait(job, 30.0)  # it stops: nobody waits any more


async def test_unknown_job_and_a_wait_without_measure_are_refused_at_once(tmp_path: Path) -> None:
    async with driven_site(tmp_path) as site:
        unknown = await site.lab.administer("GET", "/api/v1/jobs/none?wait_s=30")
        assert unknown.status == 404
        assert (await site.lab.administer("GET", "/api/v1/jobs/none?wait_s=31")).status == 400
