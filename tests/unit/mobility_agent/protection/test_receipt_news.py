"""Another receipt of the epoch that is applied already: a waiting agent hears of it at once, not with its next look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mobility_agent.protection.receipt_intake import RECEIPT_WAIT_S
from replication.errors import ResyncRequired
from replication.identifiers import DiskId
from replication.store_documents import WriterProblem
from tests.harness.session_site import SessionSite

SOON_S = RECEIPT_WAIT_S / 3


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SessionSite]:
    site = SessionSite(tmp_path, DiskId("22222222-2222-4222-8222-222222222222"))
    site.disk.write(0, b"x" * 4096)
    site.start()
    await site.settle()
    yield site
    await site.crash()


async def until_problem_is(site: SessionSite, code: str | None) -> None:
    assert site.session is not None
    async with asyncio.timeout(SOON_S):
        while code != (None if site.session.sink_problem is None else site.session.sink_problem.code):
            await asyncio.sleep(0.005)


async def test_a_problem_at_the_sink_is_known_at_once_and_so_is_its_end(site: SessionSite) -> None:
    await site.sink.say(problem=WriterProblem(code="no-space", message="cannot write: full"))
    await until_problem_is(site, "no-space")
    await site.sink.say()
    await until_problem_is(site, None)


async def test_a_closed_generation_ends_the_session_at_once(site: SessionSite) -> None:
    session = site.session
    assert session is not None
    await site.sink.say(closed=True)
    async with asyncio.timeout(SOON_S):
        while not session.has_ended:
            await asyncio.sleep(0.005)
    with pytest.raises(ResyncRequired, match="closed"):
        session.require_alive()
