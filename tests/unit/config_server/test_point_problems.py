"""A recovery point that the agent cannot make: the reason reaches the job that waits, the item's health and the test migration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from replication.control_plane import POINT_NEEDS_HOOKS, POINT_NOT_MADE, Problem
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.scripted_peers import disk_observation

HOOKS: Final = Problem(
    code=POINT_NEEDS_HOOKS,
    message="this point needs quiesce hooks, and none are configured",
    hint="configure quiesce.pre and quiesce.post of the agent, then restart it",
)
SLOW: Final = Problem(code=POINT_NOT_MADE, message="the freeze took longer than its budget of 2 s")
SCANNED: Final = [
    disk_observation(disk, size_bytes=len(content), tracker_kind="scan") for disk, content in SOURCE.items()
]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        await made.replicate()
        yield made


async def told(site: DrivenSite, job: Any) -> Any:
    await site.settle()
    return await site.job(job["id"])


async def test_point_that_can_never_be_made_fails_its_job_with_the_agent_s_reason_and_remedy(site: DrivenSite) -> None:
    await site.observe(SCANNED, problem=HOOKS)
    before = (await site.desired())["revision"]
    job = await site.verb("/recovery-points", {})
    await site.observe(SCANNED, problem=HOOKS, revision=before)
    assert (await told(site, job))["state"] == "in-progress", "the agent may not have known of the job when it said so"
    await site.observe(SCANNED, problem=HOOKS)
    failed = await told(site, job)
    assert (failed["state"], failed["problem"]["code"]) == ("failed", POINT_NEEDS_HOOKS)
    assert "this point needs quiesce hooks, and none are configured" in failed["problem"]["message"]
    assert failed["problem"]["hint"] == HOOKS.hint
    [condition] = [each for each in (await site.item())["conditions"] if each["code"] == "no-recovery-point-yet"]
    assert condition["message"] == f"there is no recovery point yet: {HOOKS.message}"
    assert condition["remedy"] == HOOKS.hint


async def test_app_consistent_point_fails_without_hooks_and_a_crash_consistent_one_of_a_tracked_disk_waits(
    site: DrivenSite,
) -> None:
    crash = await site.verb("/recovery-points", {})
    app = await site.verb("/recovery-points", {"consistency": "app"})
    await site.observe(problem=HOOKS)
    assert (await told(site, app))["problem"]["code"] == POINT_NEEDS_HOOKS
    waiting = await told(site, crash)
    assert (waiting["state"], waiting["message"]) == ("in-progress", "")
    assert not [each for each in (await site.item())["conditions"] if "hooks" in each["message"]]


async def test_job_that_waits_for_a_point_says_why_it_has_to_and_only_as_long(site: DrivenSite) -> None:
    job = await site.verb("/recovery-points", {})
    await site.observe(problem=SLOW)
    waiting = await told(site, job)
    assert (waiting["state"], waiting["step"]) == ("in-progress", "waiting-for-point")
    assert waiting["message"] == "the agent cannot make it yet and tries again: " + SLOW.message
    await site.observe()
    assert (await told(site, job))["message"] == ""


async def test_test_migration_from_a_point_that_can_never_be_made_fails_with_the_reason(site: DrivenSite) -> None:
    job = await site.verb("/test-migration", {})
    await site.observe(SCANNED, problem=HOOKS)
    failed = await told(site, job)
    assert (failed["state"], failed["problem"]["code"]) == ("failed", POINT_NEEDS_HOOKS)
    assert HOOKS.message in (await site.item())["reason"]
