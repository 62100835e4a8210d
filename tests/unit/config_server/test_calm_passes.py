"""What the reconciler leaves out while nothing happens, and that nothing is missed or late by it: also when a doorbell is not heard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.age import Age
from config_server.items import AGENT_HEARD
from config_server.observations import follow_observation
from config_server.process_servers import HEARD
from config_server.reconciler import loop
from config_server.reconciler.work_at_hand import WorkAtHand, work_at_hand
from config_server.tables import ItemDiskRow, JobRow, MachineRow, ProcessServerRow, ProtectedItemRow, WriterRequestRow
from config_server.writer_requests import BOTH_DELETED, NEW, PUT, REQUEST_DELETED, SUCCEEDED
from replication.errors import Conflict
from replication.service.health import HealthCheck, HealthState
from tests.harness.driven_site import driven_site
from tests.harness.several_process_servers import Site, site_of

IDLE_STATEMENTS = 3
"""Of a pass over a site on which nothing is to be done: one for each loop, and whether there are requests by now."""

OPEN_JOB_STATEMENTS = 18
"""Of a pass over an item with an open job: those of an idle one, and in one transaction each thing once. PostgreSQL is asked for the turn
to write, and who leads, as well.
"""


BEAT_S = 3


class Statements:
    """Every statement that is executed while it is entered."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.texts.append(statement)

    def __enter__(self) -> Self:
        event.listen(Engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_exception: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._note)


async def seconds_pass(site: Site, seconds: int, *, beats: bool = True) -> None:
    """One pass of the reconciler after each second, as ``run`` makes them."""
    for second in range(seconds):
        site.advance(1.0)
        if beats and second % BEAT_S == 0:
            await site.beat()
            await site.observe()
        await site.lab.running.reconciler.pass_once()


async def test_pass_without_anything_to_do_asks_little(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        await seconds_pass(site, 6)
        await site.observe()
        with Statements() as asked:
            await site.lab.running.reconciler.pass_once()
    assert len(asked.texts) <= IDLE_STATEMENTS, asked.texts


async def test_pass_over_an_open_job_computes_once_what_the_agent_shall_do(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1",)) as site:
        await site.protect("web-1")
        await seconds_pass(site, 1, beats=False)
        async with site.lab.running.site.database.write() as session:
            await session.execute(update(ItemDiskRow).values(seeded_ns=None))
            await session.execute(update(ProtectedItemRow).values(seeded_ns=None))
            await session.execute(update(JobRow).values(state="in-progress", ended_ns=None))
        await site.lab.running.reconciler.pass_once()
        with Statements() as asked:
            await site.lab.running.reconciler.pass_once()
    assert len(asked.texts) <= OPEN_JOB_STATEMENTS, asked.texts
    assert sum("FROM machines LEFT OUTER JOIN protected_items" in text for text in asked.texts) == 1


async def test_step_of_a_job_that_fails_keeps_nothing_else_of_its_item_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: Any) -> None:
        raise Conflict("cannot go on: test")

    monkeypatch.setattr(loop, "follow_enabling", fail)
    async with driven_site(tmp_path) as site:
        await site.protect()
        async with site.lab.running.site.database.write() as session:
            await session.execute(update(MachineRow).values(desired="null"))
        await site.lab.running.reconciler.pass_once()
        async with site.lab.running.site.database.read() as session:
            job = (await session.scalars(select(JobRow))).one()
            machine = (await session.scalars(select(MachineRow))).one()
    assert job.message == "a step failed and is tried again: cannot go on: test"
    assert machine.desired not in (None, "null")


async def test_item_whose_own_step_fails_is_told_and_keeps_neither_its_job_nor_other_items_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad: list[str] = []

    async def fail(session: AsyncSession, item: ProtectedItemRow, now_ns: int) -> None:
        if item.id in bad:
            raise Conflict("cannot read what was observed: test")
        await follow_observation(session, item, now_ns)

    monkeypatch.setattr(loop, "follow_observation", fail)
    async with site_of(tmp_path, ("ps-1",)) as site:
        running = site.lab.running
        await site.protect("web-1")
        await site.protect("web-2")
        async with running.site.database.write() as session:
            bad.append(min(await session.scalars(select(ProtectedItemRow.id))))
            await session.execute(update(JobRow).values(state="in-progress", ended_ns=None))
            await session.execute(update(MachineRow).values(desired="null"))
        await running.reconciler.pass_once()
        async with running.site.database.read() as session:
            jobs = list(await session.scalars(select(JobRow)))
            machines = list(await session.scalars(select(MachineRow)))
        assert len(jobs) == 2
        assert all(job.ended_ns is not None and "failed" not in job.message for job in jobs)
        assert all(machine.desired not in (None, "null") for machine in machines)
        board = running.reconciler._board
        told = HealthCheck("items", HealthState.DEGRADED, f"item {bad.pop()}: cannot read what was observed: test")
        assert told in board.checks
        async with running.site.database.write() as session:
            await session.execute(update(JobRow).values(state="in-progress", ended_ns=None))
        await running.reconciler.pass_once()
        assert HealthCheck("items", HealthState.OK, "") in board.checks


async def test_step_that_asks_the_writer_wakes_the_exchange_whichever_item_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site_of(tmp_path, ("ps-1",)) as site:
        reconciler = site.lab.running.reconciler
        await site.protect("web-1")
        await site.protect("web-2")
        async with site.lab.running.site.database.write() as session:
            first = min(await session.scalars(select(ProtectedItemRow.id)))
            await session.execute(update(JobRow).values(state="in-progress", ended_ns=None))

        async def ask(session: AsyncSession, job: JobRow, item: ProtectedItemRow, now_ns: int) -> None:
            if item.id == first:
                document = {"id": item.id, "key": "test", "kind": "test", "document": "{}", "item_id": item.id}
                session.add(WriterRequestRow(**document, state=NEW, created_ns=now_ns, retired=0))

        async def nothing(*_arguments: Any) -> None:
            pass

        monkeypatch.setattr(loop, "follow_enabling", nothing)
        reconciler._exchange_woken.clear()
        await reconciler._follow_once()
        assert not reconciler._exchange_woken.is_set()
        monkeypatch.setattr(loop, "follow_enabling", ask)
        await reconciler._follow_once()
        assert reconciler._exchange_woken.is_set()


async def test_silence_is_noticed_in_the_second_in_which_it_is_silence(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        await seconds_pass(site, 18)
        before = await site.where()
        site.silent.add(before["web-1"])
        await seconds_pass(site, 12)
        assert await site.where() == before
        await seconds_pass(site, 4)
        assert (await site.where())["web-1"] not in (before["web-1"], "nowhere")
        assert any("is not heard any more" in message for message in await site.events("disconnected"))


async def test_agent_that_falls_silent_is_noticed_in_its_second(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1",)) as site:
        await site.protect("web-1")
        await seconds_pass(site, 3)
        site.silent.add("web-1")
        await seconds_pass(site, 28)
        assert await site.events("disconnected") == []
        await seconds_pass(site, 3)
        assert await site.events("disconnected") == ["the agent of web-1 is not heard any more"]


async def test_deafness_is_noticed_though_passes_were_calm(tmp_path: Path) -> None:
    """Nobody is heard for 14 s; then the agent is first, and the process server not yet: its silence was ours."""
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        await seconds_pass(site, 18)
        before = await site.where()
        await seconds_pass(site, 14, beats=False)
        await site.observe()
        await seconds_pass(site, 3, beats=False)
        assert await site.where() == before


async def test_change_whose_word_was_lost_is_found_by_the_next_round(tmp_path: Path) -> None:
    """Another server of the site wrote it, and its message did not come."""
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        await seconds_pass(site, 6)
        async with site.lab.running.site.database.write() as session:
            await session.execute(update(ProtectedItemRow).values(process_server_id=None))
        await seconds_pass(site, 6)
        assert (await site.where())["web-1"] != "nowhere"


async def test_word_of_a_change_makes_the_next_pass_look(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        await seconds_pass(site, 6)
        async with site.lab.running.site.database.write() as session:
            await session.execute(update(ProtectedItemRow).values(process_server_id=None))
        site.lab.running.reconciler.wake()
        await site.lab.running.reconciler.pass_once()
        assert (await site.where())["web-1"] != "nowhere"


async def test_clock_that_is_set_after_a_heartbeat_makes_nobody_older(tmp_path: Path) -> None:
    """A heartbeat is looked at when it comes; no pass needs to do so before the clock is set."""
    now_ns, ran_s = [time.time_ns()], [1000.0]
    async with driven_site(tmp_path, lambda: now_ns[0], lambda: ran_s[0]) as site:
        running = site.lab.running.site
        now_ns[0], ran_s[0] = now_ns[0] + 4 * 10**9, ran_s[0] + 4.0
        await site.observe([])
        await site.beat()
        now_ns[0] += 3600 * 10**9
        async with running.database.read() as session:
            machine = (await session.scalars(select(MachineRow))).one()
            server = (await session.scalars(select(ProcessServerRow))).one()
        assert running.ages.of(AGENT_HEARD, machine.id, machine.heard_ns) == Age(0.0)
        assert running.ages.of(HEARD, server.id, server.heard_ns) == Age(0.0)


async def test_work_at_hand_is_what_there_is(tmp_path: Path) -> None:
    async with driven_site(tmp_path) as site:
        database = site.lab.running.site.database

        async def at_hand() -> WorkAtHand:
            async with database.read() as session:
                return await work_at_hand(session, answers_due_ns=100)

        nothing = WorkAtHand((), (), {}, new=False, put=False, settled=False, installations=False)
        assert await at_hand() == nothing
        item = (await site.protect())["item"]
        assert (await at_hand()).busy == (item,)
        assert (await at_hand()).expecting == ()
        async with database.read() as session:
            enabling = await session.scalar(select(JobRow.id))
        assert (await at_hand()).jobs == {item: [enabling]}
        await site.observe()
        await site.settle()
        assert (await at_hand()).busy == ()
        await site.verb("/recovery-points", {})
        assert (await at_hand()).expecting == (item,)

        async def request(**values: Any) -> WorkAtHand:
            async with database.write() as session:
                await session.execute(update(WriterRequestRow).values(**values))
            return await at_hand()

        async with database.write() as session:
            session.add(
                WriterRequestRow(
                    id=item, key="test", kind="test", document="{}", state=NEW, created_ns=1, retired=0, item_id=item
                )
            )
        found = await at_hand()
        assert (found.new, found.put, found.settled) == (True, False, False)
        found = await request(state=PUT)
        assert (found.new, found.put, found.settled) == (False, True, False)
        found = await request(state=SUCCEEDED, answered_ns=99)
        assert (found.new, found.put, found.settled) == (False, False, True)
        found = await request(retired=REQUEST_DELETED)
        assert found.settled
        found = await request(answered_ns=101)
        assert not found.settled
        found = await request(answered_ns=99, retired=BOTH_DELETED)
        assert not found.settled
