"""PostgreSQL as the database: what its transactions mean with two servers on it, and what happens when it is not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from pathlib import Path

import pytest
from sqlalchemy import select, text

from config_server.audit import AuditLog
from config_server.core.audit_chain import AuditRecord
from config_server.database import Database, sqlite_url
from config_server.database_copy import copy_database
from config_server.policies import ensure_default_policy
from config_server.postgresql import DatabaseUnavailable, PostgresqlServer, PostgresqlSettings
from config_server.tables import EnrolmentPassphraseRow, EventRow, MachineRow, PolicyRow, ProtectedItemRow
from replication.errors import Conflict, InvalidInput, SettingsError
from replication.tls_identity import Role
from tests.harness.config_site import running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.postgresql_cluster import USER, PostgresqlCluster
from tests.harness.tls import LabAuthority

pytestmark = pytest.mark.requires("postgresql")

SETTINGS = PostgresqlSettings()
AUDITED = AuditRecord(1, "administrator:a", None, "10.0.0.1", "POST /policies", "", 200, "")


def machine(identifier: str = "a") -> MachineRow:
    return MachineRow(id=identifier, hostname=identifier, machine_fingerprint=identifier, enrolled_ns=1)


# ---- where it is


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@host/site",
        "postgresql://host/site",
        "postgresql://user@host",
        "postgresql://user@/site",
        "postgresql://user@/site?host=relative",
        "postgresql://user@host/site?host=/run/postgresql",
        "postgresql://user@host/site?sslmode=disable",
        "postgresql://user@host:port/site",
    ],
)
def test_address_that_names_a_password_or_not_enough_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        PostgresqlServer.parse(url, SETTINGS)
    assert "secret" not in str(refused.value)


def test_address_names_a_host_or_the_directory_of_a_socket() -> None:
    remote = PostgresqlServer.parse("postgresql://user@db.example:5433/site", SETTINGS)
    assert (remote.host, remote.port, remote.user, remote.database) == ("db.example", 5433, "user", "site")
    local = PostgresqlServer.parse("postgresql://user@/site?host=/run/postgresql", SETTINGS)
    assert (local.host, local.is_local, remote.is_local) == ("/run/postgresql", True, False)


# ---- transactions


async def test_writers_of_two_servers_that_read_first_do_not_lose_each_other_s_changes(
    servers: tuple[Database, Database],
) -> None:
    async with servers[0].write() as session:
        session.add(machine())

    async def count_up(server: Database) -> None:
        async with server.write() as session:
            row = await session.get_one(MachineRow, "a")
            await asyncio.sleep(0)
            row.desired_revision += 1

    await asyncio.gather(*(count_up(server) for server in servers * 15))
    async with servers[0].read() as session:
        assert (await session.get_one(MachineRow, "a")).desired_revision == 30


async def test_numbers_of_events_are_in_the_order_in_which_they_can_be_seen(
    servers: tuple[Database, Database],
) -> None:
    """Who follows the log by number misses none: nothing smaller is committed later."""
    seen: list[int] = []

    async def record(server: Database) -> None:
        async with server.write() as session:
            session.add(EventRow(time_ns=1, actor="system", kind="test", message=""))
        async with server.read() as session:
            found = list(await session.scalars(select(EventRow.id).order_by(EventRow.id)))
        assert found[: len(seen)] == seen
        seen[:] = found

    await asyncio.gather(*(record(server) for server in servers * 10))
    assert len(seen) == 20


async def test_reader_sees_one_state_while_another_server_writes(servers: tuple[Database, Database]) -> None:
    first, second = servers
    async with first.read() as reading:
        assert (await reading.scalars(select(MachineRow))).all() == []
        async with second.write() as writing:
            writing.add(machine())
        assert (await reading.scalars(select(MachineRow))).all() == []
    async with first.read() as reading:
        assert len((await reading.scalars(select(MachineRow))).all()) == 1


async def test_reader_can_change_nothing(servers: tuple[Database, Database]) -> None:
    async with servers[0].read() as session:
        session.add(machine())
        with pytest.raises(Exception, match="read-only transaction"):
            await session.flush()


async def test_servers_that_start_at_the_same_time_make_the_schema_once(cluster: PostgresqlCluster) -> None:
    url = cluster.url(await cluster.create_database())
    several = [Database(url) for _ in range(3)]
    await asyncio.gather(*(server.upgrade() for server in several))
    for server in several:
        await server.close()


async def test_what_postgresql_cannot_hold_is_replaced_or_refused(servers: tuple[Database, Database]) -> None:
    async with servers[0].write() as session:
        session.add(machine("with\0nul"))
    async with servers[0].read() as session:
        assert (await session.scalars(select(MachineRow.hostname))).all() == ["with\ufffdnul"]
        assert await session.get(MachineRow, "with\0nul") is not None
    with pytest.raises(InvalidInput, match="too long"):
        async with servers[0].write() as session:
            session.add(machine("x" * 300))


async def test_writer_that_stands_still_in_its_transaction_loses_it_and_the_others_go_on(
    servers: tuple[Database, Database],
) -> None:
    stalled, other = servers

    async def stand_still() -> None:
        async with stalled.write() as session:
            session.add(machine("stalled"))
            await session.flush()
            async with other.write() as session:  # waits, until the first one was silent for ``leader_timeout_s``
                session.add(machine("other"))

    with pytest.raises(DatabaseUnavailable):
        await stand_still()
    async with stalled.read() as session:
        assert (await session.scalars(select(MachineRow.id))).all() == ["other"]


async def test_site_moves_from_sqlite_with_everything_and_goes_on_counting_events(
    servers: tuple[Database, Database], tmp_path: Path
) -> None:
    target = servers[0]
    source = Database(sqlite_url(tmp_path / "state.sqlite"))
    await source.upgrade()
    await ensure_default_policy(source)
    async with source.write() as session:
        policy = (await session.scalars(select(PolicyRow))).one().id
        session.add(machine())
        await session.flush()
        session.add(
            ProtectedItemRow(id="i", machine_id="a", policy_id=policy, state="paused", state_since_ns=1, created_ns=1)
        )
        session.add(
            EnrolmentPassphraseRow(
                id="p", role="agent", salt=b"\0s", digest=b"\0d", created_ns=1, created_by="x", expires_ns=2
            )
        )
        session.add_all(EventRow(time_ns=n, actor="system", kind="test", message="") for n in range(1200))
    await AuditLog(source).append(AUDITED)
    await AuditLog(source).append(AUDITED)
    copied = await copy_database(source, target)
    await source.close()
    assert copied == 1 + 1 + 1 + 1 + 1200 + 2
    await AuditLog(target).append(AUDITED)
    assert (await AuditLog(target).verify()).first_broken is None
    assert len(await AuditLog(target).read(after=None, limit=10, actor=None)) == 3
    async with target.write() as session:
        assert (await session.get_one(ProtectedItemRow, "i")).paused is False
        assert (await session.get_one(EnrolmentPassphraseRow, "p")).salt == b"\0s"
        session.add(EventRow(time_ns=5, actor="system", kind="test", message="newest"))
        await session.flush()
        newest = (await session.scalars(select(EventRow).order_by(EventRow.id.desc()).limit(1))).one()
        assert newest.message == "newest"
    again = Database(sqlite_url(tmp_path / "state.sqlite"))
    with pytest.raises(Conflict, match="cannot copy the database"):
        await copy_database(again, target)
    await again.close()


# ---- not there


async def test_database_that_restarts_costs_each_request_an_answer_to_try_again_and_no_more(
    cluster: PostgresqlCluster, tmp_path: Path
) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        assert (await lab.administer("GET", "/api/v1/site")).status == 200
        cluster.stop()
        try:
            for method, path in (("GET", "/api/v1/site"), ("POST", "/api/v1/servers/none/protection")):
                reply = await lab.administer(method, path, None if method == "GET" else {})
                assert (reply.status, reply.headers["Retry-After"], reply.json["title"]) == (503, "2", "retryable")
                assert "cannot" in reply.json["detail"]
                assert "database" in reply.json["detail"]
        finally:
            cluster.start()
        assert (await lab.administer("GET", "/api/v1/site")).status == 200
        assert (await lab.administer("POST", "/api/v1/servers/none/protection", {})).status == 404


async def test_statement_that_is_not_answered_in_time_is_given_up(cluster: PostgresqlCluster) -> None:
    database = Database(cluster.url("postgres"), PostgresqlSettings(statement_timeout_s=1))
    with pytest.raises(DatabaseUnavailable, match="statement timeout"):
        async with database.read() as session:
            await session.execute(text("SELECT pg_sleep(30)"))
    async with database.read() as session:
        assert await session.scalar(text("SELECT 1")) == 1
    await database.close()


# ---- who may


async def test_password_comes_from_a_file_that_only_its_owner_reads(cluster: PostgresqlCluster, tmp_path: Path) -> None:
    name = await cluster.create_database()
    connection = await cluster.connect()
    await connection.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'right'")
    await connection.execute(f'ALTER DATABASE "{name}" OWNER TO "{name}"')
    rules = cluster.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all {name} scram-sha-256\n{before}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    url, password = cluster.url(name).replace(USER, name, 1), tmp_path / "password"
    server = PostgresqlServer.parse(url, PostgresqlSettings(password_file=password))
    try:
        for content, mode, complaint in (
            (None, 0o600, "cannot read the database's password"),
            ("right\n", 0o644, "others may read it"),
            ("wrong\n", 0o600, "password authentication failed"),
        ):
            if content is not None:
                password.write_text(content)
                os.chmod(password, mode)
            database = Database(url, server.settings)
            with pytest.raises(SettingsError, match=complaint) as refused:
                await database.upgrade()
            assert "wrong" not in str(refused.value)
            await database.close()
        database = Database(url, PostgresqlSettings())
        with pytest.raises(SettingsError, match=r"no password supplied|password authentication failed") as without:
            await database.upgrade()
        assert "LoadCredential=database-password" in str(without.value.hint), "the daemon may be given one by systemd"
        await database.close()
        password.write_text("right\n")
        database = Database(url, server.settings)
        await database.upgrade()
        await database.close()
    finally:
        rules.write_text(before)


async def test_nobody_there_is_told_with_the_address(tmp_path: Path) -> None:
    database = Database(f"postgresql://user@/site?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable, match="cannot reach the database 'site'"):
        await database.upgrade()
    with contextlib.suppress(DatabaseUnavailable):
        await database.close()


async def test_database_that_stands_still_is_given_up_and_others_may_write(
    servers: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is stopped: no timeout of its own ends anything, and nothing closes the connection."""
    monkeypatch.setattr("config_server.postgresql.ANSWER_MARGIN_S", 0.5)
    server = servers[0].postgresql
    assert server is not None
    database = Database(
        f"postgresql://{USER}@/{server.database}?host={server.host}", PostgresqlSettings(statement_timeout_s=1)
    )
    stopped = 0

    async def write_into_the_void() -> None:
        nonlocal stopped
        async with database.write() as session:
            stopped = await session.scalar(text("SELECT pg_backend_pid()")) or 0
            os.kill(stopped, signal.SIGSTOP)
            session.add(machine("lost"))

    try:
        async with asyncio.timeout(30):
            with pytest.raises(DatabaseUnavailable, match="does not answer"):
                await write_into_the_void()
    finally:
        os.kill(stopped, signal.SIGCONT)
    async with database.write() as session:
        session.add(machine("found"))
    async with database.read() as session:
        assert (await session.scalars(select(MachineRow.id))).all() == ["found"]
    await database.close()


async def test_over_the_network_certificate_and_name_of_the_database_are_verified(tmp_path: Path) -> None:
    authority = LabAuthority()
    identity = authority.issue(Role.SINK, str(uuid.uuid4()), tmp_path / "server", addresses=("localhost",))
    right, wrong = tmp_path / "right.pem", tmp_path / "wrong.pem"
    right.write_bytes(authority.certificate_pem)
    wrong.write_bytes(LabAuthority().certificate_pem)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    async def is_encrypted(host: str, settings: PostgresqlSettings) -> bool:
        server = PostgresqlServer.parse(f"postgresql://{USER}@{host}:{port}/postgres", settings)
        connection = await server.connect()
        try:
            return bool(await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        finally:
            await connection.close()

    with PostgresqlCluster(identity, port):
        assert await is_encrypted("localhost", PostgresqlSettings(ca_file=right))
        assert not await is_encrypted("localhost", PostgresqlSettings(tls="off"))
        for host, settings in (
            ("localhost", PostgresqlSettings(ca_file=wrong)),
            ("localhost", PostgresqlSettings()),
            ("127.0.0.1", PostgresqlSettings(ca_file=right)),  # not a name in the certificate
        ):
            with pytest.raises(DatabaseUnavailable, match="cannot trust"):
                await is_encrypted(host, settings)
