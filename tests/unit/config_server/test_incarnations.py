"""Two agents with one identity are found by their reports in turn; a restart, however often, is none of them (R11)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import update

from config_server.incarnations import LATE_S, SupersededIncarnation, admit
from config_server.tables import MachineRow
from replication.control_plane import AgentObservation
from tests.harness.driven_site import DrivenSite, driven_site
from tests.harness.scripted_peers import new_id, observation

SECOND = 10**9


def heard(*reports: tuple[str | None, float]) -> list[str]:
    """What became of reports of these incarnations at these times (seconds)."""
    machine, outcomes = MachineRow(id=new_id(), hostname="web-1"), []
    for incarnation, at_s in reports:
        try:
            admit(machine, incarnation, int(at_s * SECOND))
        except SupersededIncarnation as error:
            outcomes.append("late" if error.is_late else "refused")
        else:
            outcomes.append("")
    return outcomes


def test_restarts_are_never_refused() -> None:
    assert heard(*[(f"agent-{number}", number) for number in range(100)]) == [""] * 100


def test_the_superseded_one_of_two_that_report_in_turn_is_refused_and_the_other_is_not() -> None:
    after_s = LATE_S + 1
    assert heard(("a", 0), ("b", 10), ("a", 10 + after_s), ("b", 20 + after_s), ("a", 30 + after_s)) == [
        "", "", "refused", "", "refused",
    ]  # fmt: skip


def test_a_report_that_was_under_way_while_its_agent_was_restarted_is_late_and_no_second_agent() -> None:
    assert heard(("a", 0), ("b", 1), ("a", 1.5), ("b", 2)) == ["", "", "late", ""]


def test_the_one_that_was_refused_is_accepted_once_it_is_restarted() -> None:
    assert heard(("a", 0), ("b", 10), ("a", 100), ("a2", 110), ("b", 200), ("a2", 210)) == [
        "", "", "refused", "", "refused", "",
    ]  # fmt: skip


def test_a_clock_that_was_set_back_hides_nothing() -> None:
    assert heard(("a", 9000), ("b", 9001), ("a", 10)) == ["", "", "refused"]


def test_agents_from_before_incarnations_are_left_alone() -> None:
    assert heard((None, 0), ("a", 1), (None, 2), ("a", 3)) == [""] * 4


# ---- over the API


class Site:
    def __init__(self, driven: DrivenSite, moved_s: list[float]) -> None:
        self.driven = driven
        self._moved_s = moved_s

    def wait(self, seconds: float) -> None:
        self._moved_s[0] += seconds

    async def report(self, incarnation: str, *, fingerprint: str | None = None) -> int:
        body = observation("web-1", [], revision=0)
        changes = {"incarnation": incarnation} | ({} if fingerprint is None else {"machine_fingerprint": fingerprint})
        reply = await self.driven.agent(
            "POST", "/agent/observations", AgentObservation.model_validate(body.model_dump() | changes)
        )
        if reply.status == 403:
            self.detail = reply.json["detail"]
        return int(reply.status)

    async def events(self) -> list[str]:
        answer = await self.driven.lab.administer("GET", "/api/v1/events?kind=second-incarnation")
        return [event["message"] for event in answer.json["items"]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    moved_s = [0.0]
    clock: Callable[[], int] = lambda: time.time_ns() + int(moved_s[0] * SECOND)  # noqa: E731
    async with driven_site(tmp_path, clock) as driven:
        yield Site(driven, moved_s)


async def test_a_second_agent_is_an_event_and_the_superseded_one_is_told_what_to_do(site: Site) -> None:
    original, copy = new_id(), new_id()
    assert await site.report(original) == 200
    assert await site.report(copy) == 200
    assert await site.report(original) == 403
    assert not await site.events(), "so far it may have been a report that was under way"
    site.wait(LATE_S + 1)
    assert await site.report(original) == 403
    assert "another agent reports as web-1" in site.detail
    assert await site.report(copy) == 200
    (event,) = await site.events()
    assert "stop one of them" in event


async def test_a_clone_on_another_machine_supersedes_nobody(site: Site) -> None:
    original, clone = new_id(), new_id()
    assert await site.report(original) == 200
    assert await site.report(clone, fingerprint="fingerprint-of-another") == 403
    site.wait(LATE_S + 1)
    assert await site.report(original) == 200


async def test_a_configuration_server_that_forgot_everything_refuses_no_agent_that_runs_alone(site: Site) -> None:
    running = new_id()
    assert await site.report(new_id()) == 200
    assert await site.report(running) == 200
    async with site.driven.lab.running.site.database.write() as session:
        await session.execute(update(MachineRow).values(incarnations=None))
    site.wait(LATE_S + 1)
    assert await site.report(running) == 200
    assert await site.report(new_id()) == 200
