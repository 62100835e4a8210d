"""The database: migrations up from nothing, the schema they make, durability settings, transactions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from config_server.database import DATABASE_FILE, Database, migration_config, sqlite_url
from config_server.policies import ensure_default_policy, find_policy
from config_server.tables import Base, GenerationRow, JobRow, MachineRow, PolicyRow, ProcessServerRow, ProtectedItemRow
from config_server.upload_limits import limits_of
from replication.errors import NotFound, SettingsError
from replication.upload_limits import NO_LIMITS, UploadLimits
from tests.harness.each_database import in_use
from tests.harness.source_tree import SourceTree


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(await in_use.url(tmp_path))
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def schema_of(database: Database, revision: str, directory: Path) -> AsyncIterator[AsyncConnection]:
    """The database as an earlier version left it, to be filled with rows that refer to nothing."""

    def upgrade(connection: Connection) -> None:
        alembic.command.upgrade(migration_config(connection), revision)

    server = database.postgresql
    if server is None:
        engine = create_async_engine(sqlite_url(directory / DATABASE_FILE))
    else:
        engine = create_async_engine(server.engine_url, async_creator=server.connect)
    async with engine.begin() as old:
        await old.run_sync(upgrade)
        if server is not None:
            await old.execute(text("SET session_replication_role = replica"))
        yield old
    await engine.dispose()


async def test_migrations_make_exactly_the_declared_schema(database: Database) -> None:
    await database.upgrade()

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with database.read() as session:
        assert await (await session.connection()).run_sync(differences) == []


async def test_generations_closed_before_torn_ones_were_known_learn_it_from_the_kept_answers(
    database: Database, tmp_path: Path
) -> None:
    async with schema_of(database, "0001", tmp_path) as old:
        for generation, answer in ((1, '{"problem": {"code": "torn-epoch"}}'), (11, '{"problem": null}')):
            await old.execute(
                text(
                    "INSERT INTO generations VALUES ('disk', :generation, 'item', :request, '', 'closed', NULL, 7, 1, 2)"
                ),
                {"generation": generation, "request": str(generation)},
            )
            await old.execute(
                text(
                    "INSERT INTO writer_requests (id, key, kind, document, state, answer, created_ns, retired) "
                    "VALUES (:request, :key, 'close-generation', '', 'succeeded', :answer, 1, 0)"
                ),
                {"request": str(generation), "key": f"close-generation/disk/{generation}/1", "answer": answer},
            )
    await database.upgrade()
    async with database.read() as session:
        rows = await session.scalars(select(GenerationRow).order_by(GenerationRow.generation))
        assert [(row.generation, row.torn) for row in rows] == [(1, True), (11, False)]


async def test_jobs_from_before_they_were_counted_keep_their_order_and_an_open_one_is_the_newest(
    database: Database, tmp_path: Path
) -> None:
    async with schema_of(database, "0009", tmp_path) as old:
        for job, state, created_ns in (("b", "succeeded", 9), ("c", "in-progress", 5), ("a", "failed", 7)):
            await old.execute(
                text(
                    "INSERT INTO jobs (id, item_id, kind, state, step, message, actor, parameters, context, done_bytes, total_bytes, "
                    "created_ns, updated_ns) VALUES (:job, 'item', 'migrate', :state, '', '', '', '', '', 0, 0, :created_ns, 0)"
                ),
                {"job": job, "state": state, "created_ns": created_ns},
            )
    await database.upgrade()
    async with database.read() as session:
        rows = await session.scalars(select(JobRow).order_by(JobRow.number))
        assert [(row.id, row.number) for row in rows] == [("a", 1), ("b", 2), ("c", 3)]


async def test_upgrade_may_be_repeated_and_keeps_what_is_there(database: Database) -> None:
    await database.upgrade()
    await ensure_default_policy(database)
    await database.upgrade()
    await ensure_default_policy(database)
    async with database.read() as session:
        assert [row.name for row in await session.scalars(select(PolicyRow))] == ["default"]
        policy = await find_policy(session, "default")
        assert (policy.recovery_point_interval_s, policy.app_consistent_interval_s, policy.retention_s) == (
            300,
            None,
            86400,
        )
        with pytest.raises(NotFound):
            await find_policy(session, "none")


async def test_database_of_a_newer_version_is_refused(database: Database, tmp_path: Path) -> None:
    await database.upgrade()
    async with database.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="cannot use the database"):
        await database.upgrade()


async def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"no database at all, but long enough to look at" * 50)
    database = Database(sqlite_url(tmp_path / "state.sqlite"))
    with pytest.raises(SettingsError, match="cannot open the database"):
        await database.upgrade()
    await database.close()


async def test_directory_that_is_missing_is_refused(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "none" / "state.sqlite"))
    with pytest.raises(SettingsError, match="cannot open the database"):
        await database.upgrade()
    await database.close()


async def test_every_connection_is_durable_and_checks_references(database: Database) -> None:
    await database.upgrade()
    if database.postgresql is not None:
        async with database.write() as session:
            assert (await session.execute(text("SHOW synchronous_commit"))).scalar() == "on"
        return
    async with database.write() as writing, database.read() as reading:
        for session in (writing, reading):
            found = [
                (await session.execute(text(f"PRAGMA {name}"))).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert found == ["wal", 2, 1]


def machine(identifier: str) -> MachineRow:
    return MachineRow(
        id=identifier,
        hostname=identifier,
        machine_fingerprint=identifier,
        enrolled_ns=1,
        connected=False,
        desired_revision=0,
    )


async def test_exception_rolls_back(database: Database) -> None:
    await database.upgrade()

    async def fail_half_way() -> None:
        async with database.write() as session:
            session.add(machine("a"))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_half_way()
    async with database.read() as session:
        assert (await session.scalars(select(MachineRow))).all() == []


async def test_cancellation_rolls_back_and_frees_the_write_turn(database: Database) -> None:
    await database.upgrade()
    entered = asyncio.Event()

    async def write_and_hang() -> None:
        async with database.write() as session:
            session.add(machine("a"))
            await session.flush()
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_hang())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as session:
        assert (await session.scalars(select(MachineRow))).all() == []


async def test_writers_that_read_first_do_not_lose_each_other_s_changes(database: Database) -> None:
    await database.upgrade()
    async with database.write() as session:
        session.add(machine("a"))

    async def count_up() -> None:
        async with database.write() as session:
            row = await session.get_one(MachineRow, "a")
            row.desired_revision += 1

    await asyncio.gather(*(count_up() for _ in range(20)))
    async with database.read() as session:
        assert (await session.get_one(MachineRow, "a")).desired_revision == 20


async def test_reader_is_not_kept_waiting_by_a_writer(database: Database) -> None:
    await database.upgrade()
    async with database.write() as writing:
        writing.add(machine("a"))
        await writing.flush()
        async with database.read() as reading:
            assert (await reading.scalars(select(MachineRow))).all() == []


async def test_machine_has_at_most_one_item_that_has_not_ended(database: Database) -> None:
    await database.upgrade()
    await ensure_default_policy(database)
    async with database.write() as session:
        session.add(machine("a"))
        policy = (await find_policy(session, "default")).id

    def item(identifier: str, ended_ns: int | None) -> ProtectedItemRow:
        return ProtectedItemRow(
            id=identifier,
            machine_id="a",
            policy_id=policy,
            state="replicating",
            state_since_ns=1,
            created_ns=1,
            ended_ns=ended_ns,
        )

    async with database.write() as session:
        session.add_all([item("1", 5), item("2", 6), item("3", None)])
    with pytest.raises(IntegrityError):
        async with database.write() as session:
            session.add(item("4", None))


def test_no_row_is_locked_for_itself() -> None:
    """Writers of a site queue for one lock; in a reading transaction PostgreSQL would refuse ``FOR UPDATE``."""
    files = SourceTree.of_repository().files
    found = [
        path for path, content in files.items() if path.startswith("config_server/") and "with_for_update" in content
    ]
    assert found == []


async def test_upload_limits_that_were_set_before_there_were_work_hours_are_kept(
    database: Database, tmp_path: Path
) -> None:
    async with schema_of(database, "0010", tmp_path) as old:
        for name, threads, limit in (("a", 4, None), ("b", 1, 64_000), ("c", 8, 20_000_000)):
            await old.execute(
                text(
                    "INSERT INTO process_servers (id, hostname, machine_fingerprint, service_url, enrolled_ns, connected, "
                    "draining, upload_threads_per_machine, upload_limit_bits_per_s) "
                    "VALUES (:name, :name, :name, '', 1, false, false, :threads, :bits)"
                ),
                {"name": name, "threads": threads, "bits": limit},
            )
    await database.upgrade()
    async with database.read() as session:
        rows = await session.scalars(select(ProcessServerRow).order_by(ProcessServerRow.id))
        assert [limits_of(row) for row in rows] == [
            NO_LIMITS,
            UploadLimits(limit_bits_per_s=512_000),
            UploadLimits(limit_bits_per_s=20_000_000, threads_per_machine=8),
        ]
