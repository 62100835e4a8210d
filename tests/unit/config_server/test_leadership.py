"""Several configuration servers on one database: who leads, what a deposed leader can still do, whose keys they have."""

from __future__ import annotations

import asyncio
import functools
import io
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import select

from config_server.config import Settings
from config_server.database import Database
from config_server.installation import initialize
from config_server.key_encryption import KeyEncryptionKey
from config_server.leadership import DESIRED, WORK, LeadershipLost, OwnName, SharedLeadership
from config_server.migratectl.rendering import server_table
from config_server.operator_plane import ConfigurationServerStatus
from config_server.postgresql import PostgresqlSettings
from config_server.tables import MachineRow
from replication.documents import WriterIdentity
from replication.errors import SettingsError
from replication.service.health import HealthBoard
from tests.harness.config_site import lab_settings, running_lab
from tests.harness.driven_site import driven_site
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.postgresql_cluster import PostgresqlCluster

pytestmark = pytest.mark.requires("postgresql")


def machine(identifier: str = "a") -> MachineRow:
    return MachineRow(id=identifier, hostname=identifier, machine_fingerprint=identifier, enrolled_ns=1)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


# ---- who leads


async def test_leader_of_an_earlier_term_changes_nothing_any_more(servers: tuple[Database, Database]) -> None:
    stalled, board = servers[0], HealthBoard()
    server = stalled.postgresql
    assert server is not None
    old = SharedLeadership(stalled, server, OwnName(str(uuid.uuid4()), "old"), board, time.time_ns, time.monotonic)
    new = SharedLeadership(servers[1], server, OwnName(str(uuid.uuid4()), "new"), board, time.time_ns, time.monotonic)
    old.term = await old._begin_term()
    led = stalled.guarded(old.guard)
    async with led.write() as session:
        session.add(machine("before"))
    new.term = await new._begin_term()  # the database has given the seat to another; this one does not know yet
    assert (old.term, new.term) == (1, 2)

    async def write_late() -> None:
        async with led.write() as session:
            session.add(machine("late"))

    with pytest.raises(LeadershipLost):
        await write_late()
    async with servers[1].read() as session:
        assert (await session.scalars(select(MachineRow.id))).all() == ["before"]


async def test_leader_that_did_not_hear_the_database_for_too_long_touches_no_store(
    servers: tuple[Database, Database],
) -> None:
    now_s = [100.0]
    server = servers[0].postgresql
    assert server is not None
    own = OwnName(str(uuid.uuid4()), "a")
    seat = SharedLeadership(servers[0], server, own, HealthBoard(), time.time_ns, lambda: now_s[0])
    with pytest.raises(LeadershipLost):
        seat.may_act()
    seat.term, seat._confirmed_s = 1, 100.0
    seat.may_act()
    now_s[0] += server.settings.leader_timeout_s
    with pytest.raises(LeadershipLost):
        seat.may_act()


async def test_one_of_two_leads_and_the_other_follows_when_its_session_is_cut(
    servers: tuple[Database, Database], cluster: PostgresqlCluster
) -> None:
    led: list[str] = []
    heard: list[str] = []
    seats = {}

    async def lead(name: str) -> None:
        led.append(name)
        await asyncio.Event().wait()

    async def look() -> None:
        pass

    async with asyncio.TaskGroup() as tasks:
        running = []
        for name, database in zip(("a", "b"), servers, strict=True):
            server = database.postgresql
            assert server is not None
            own = OwnName(str(uuid.uuid4()), name)
            seats[name] = SharedLeadership(database, server, own, HealthBoard(), time.time_ns, time.monotonic)
            running.append(tasks.create_task(seats[name].run(functools.partial(lead, name), look, heard.append)))
        await until(lambda: len(led) == 1)
        first = led[0]
        other = "b" if first == "a" else "a"
        seats[other].ring(WORK)
        await until(lambda: heard == [WORK])
        seats[first].ring(DESIRED)
        await until(lambda: heard == [WORK, DESIRED])
        connection = await cluster.connect()
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        )
        await connection.close()
        await until(lambda: len(led) == 2)
        await until(
            lambda: [seat.term for seat in seats.values()].count(None) == 1
        )  # the first one notices in its own time
        for task in running:
            task.cancel()


async def test_server_that_stood_by_does_not_take_its_own_clock_for_the_other_s(
    cluster: PostgresqlCluster, tmp_path: Path
) -> None:
    """Its clock is an hour ahead: an agent that has just reported to the leader is no silent one when it takes over."""
    passed_s = [0.0]

    def ahead() -> int:
        return time.time_ns() + 3600 * 10**9 + int(passed_s[0] * 1e9)

    async with driven_site(tmp_path / "leader") as site:
        url = site.lab.settings.database_url
        assert url is not None
        store = MemoryBlobClient()
        async with running_lab(
            tmp_path / "other",
            store,
            clock=ahead,
            monotonic=lambda: passed_s[0],
            change=lambda settings: replace(settings, database_url=url),
            reconcile=False,
        ) as standby:
            await standby.running.reconciler.look_on()
            passed_s[0] += 1
            await site.observe([])
            await standby.running.reconciler.look_on()
            passed_s[0] += 1
            await standby.running.reconciler.run_once()  # it leads
        events = (await site.lab.administer("GET", "/api/v1/events?kind=disconnected")).json["items"]
        assert [event for event in events if "web-1" in event["message"]] == []


# ---- whose keys


async def test_server_with_keys_of_its_own_is_refused_and_told_where_to_get_the_site_s(
    cluster: PostgresqlCluster, tmp_path: Path
) -> None:
    url = cluster.url(await cluster.create_database())
    writer = WriterIdentity.generate()

    def settings(name: str) -> Settings:
        return replace(lab_settings(tmp_path / name, writer), database_url=url)

    await initialize(settings("first"), time.time_ns)
    with pytest.raises(SettingsError, match="cannot find the authority"):
        await initialize(settings("second"), time.time_ns)
    assert not (tmp_path / "second" / "authority").exists(), "it makes none"
    shutil.copytree(tmp_path / "first" / "authority", tmp_path / "second" / "authority")
    other_key = tmp_path / "second" / "key-encryption-key"
    KeyEncryptionKey.load_or_create(other_key)
    with pytest.raises(SettingsError, match="its key-encryption key is another"):
        await initialize(settings("second"), time.time_ns)
    shutil.copy2(tmp_path / "first" / "key-encryption-key", other_key)
    joined = await initialize(settings("second"), time.time_ns)
    assert joined.secret is None
    foreign = replace(lab_settings(tmp_path / "foreign", writer), database_url=None)
    await initialize(foreign, time.time_ns)
    with pytest.raises(SettingsError, match="its authority is"):
        await initialize(replace(foreign, database_url=url), time.time_ns)
    await initialize(replace(foreign, database_url=url), time.time_ns, replace_keys=True)
    with pytest.raises(SettingsError, match="its authority is"):
        await initialize(settings("first"), time.time_ns)


async def test_reconciler_outlives_the_database_s_restart(cluster: PostgresqlCluster, tmp_path: Path) -> None:
    def quick(settings: Settings) -> Settings:
        return replace(settings, postgresql=PostgresqlSettings(leader_timeout_s=2))

    async with running_lab(tmp_path, MemoryBlobClient(), change=quick) as lab:
        await until(lambda: lab.running.site.leadership.term == 1)
        cluster.stop()
        try:
            await until(lambda: lab.running.site.leadership.term is None)
        finally:
            cluster.start()
        await until(lambda: lab.running.site.leadership.term == 2)
        shown = (await lab.administer("GET", "/api/v1/site")).json
        assert shown["leads"] is True
        assert [(server["leads"], server["term"]) for server in shown["configuration_servers"]] == [(True, 2)]


def test_operator_sees_which_server_leads_and_whose_clock_is_wrong() -> None:
    servers = [
        ConfigurationServerStatus(
            id=str(uuid.uuid4()),
            hostname=name,
            version="1",
            heard_age_s=2.0,
            clock_offset_s=offset_s,
            leads=term is not None,
            term=term,
            leads_since=None,
        )
        for name, offset_s, term in (("appliance-a", -7.25, None), ("appliance-b", 0.0, 3))
    ]
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(server_table(servers))
    first, second = console.export_text().splitlines()[-2:]
    assert "appliance-a" in first
    assert "stands by" in first
    assert "-7.2 s" in first
    assert "appliance-b" in second
    assert "leads, term 3" in second
