"""Backup of a site on PostgreSQL, and restoration onto either database; what is there is never taken over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from config_server import sealed_archive
from config_server.audit import AuditLog
from config_server.backup import back_up, check_backup, restore
from config_server.database import DATABASE_FILE, Database, sqlite_url
from config_server.database_copy import copy_database
from config_server.installation import initialize
from config_server.schema import METADATA
from config_server.tables import CertificateRow, EventRow, PolicyRow
from replication.errors import BlockferryError, Conflict, NotFound, Retryable, SettingsError
from replication.tls_identity import Role
from tests.harness.backed_up_site import PASSPHRASE, backed_up, write_configuration
from tests.harness.config_site import lab_settings, running_lab
from tests.harness.each_database import in_use
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.postgresql_cluster import PostgresqlCluster

pytestmark = pytest.mark.requires("postgresql")


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB for each key instead of 128."""
    monkeypatch.setattr(sealed_archive.sealed_parts, "__defaults__", (2**14,))


async def database_url(kind: str, cluster: PostgresqlCluster, state_dir: Path) -> str:
    return sqlite_url(state_dir / DATABASE_FILE) if kind == "sqlite" else cluster.url(await cluster.create_database())


@pytest.mark.parametrize(
    ("before", "after"), [("postgresql", "postgresql"), ("postgresql", "sqlite"), ("sqlite", "postgresql")]
)
async def test_site_is_backed_up_while_it_runs_and_restored_onto_either_database(
    cluster: PostgresqlCluster, tmp_path: Path, before: str, after: str
) -> None:
    store = MemoryBlobClient()
    in_use.kind = before
    url = await database_url(after, cluster, tmp_path / "new" / "state")
    async with running_lab(tmp_path / "old", store) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        agent, token, writer = lab.identities["web-1"], lab.token, lab.writer
        archive = await backed_up(lab, tmp_path)
        old_key = (lab.settings.state_dir / "key-encryption-key").read_bytes()
    assert check_backup(archive, PASSPHRASE).database_bytes > 0
    new = replace(lab_settings(tmp_path / "new" / "state", writer), database_url=url)
    configuration = write_configuration(new, tmp_path / "new.yaml")
    await asyncio.to_thread(restore, archive, configuration, PASSPHRASE, time.time_ns)
    assert (new.state_dir / "key-encryption-key").read_bytes() == old_key
    (new.state_dir / "first-token").write_text(token)
    async with running_lab(
        tmp_path / "new", store, writer=writer, change=lambda s: replace(s, database_url=url)
    ) as again:
        assert (await again.request("GET", "/api/v1/agent/desired", identity=agent)).status == 200
        database = again.running.site.database
        async with database.read() as session:
            assert "default" in (await session.scalars(select(PolicyRow.name))).all()
            assert len((await session.scalars(select(CertificateRow.serial))).all()) == 2
            events = (await session.scalars(select(EventRow.kind).order_by(EventRow.id))).all()
        assert events.count("restored") == 1
        assert (await AuditLog(database).verify()).first_broken is None
        reply = await again.administer("POST", "/api/v1/policies", {"name": "made afterwards"})
        assert reply.status == 201, "numbers that the database counts go on"


async def test_database_with_a_site_in_it_is_not_taken_over_but_its_keys_come_back(
    cluster: PostgresqlCluster, tmp_path: Path
) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        archive, settings = await backed_up(lab, tmp_path), lab.settings
        fingerprint = lab.fingerprint
        await lab.administer("POST", "/api/v1/policies", {"name": "since the backup"})
    settings.state_dir.rename(tmp_path / "lost")
    configuration = tmp_path / "config-server.yaml"

    def put_back(*, keep_database: bool) -> object:
        return restore(archive, configuration, PASSPHRASE, time.time_ns, keep_database=keep_database)

    with pytest.raises(Conflict, match="there is a site in it already") as refused:
        await asyncio.to_thread(put_back, keep_database=False)
    assert "--keep-database" in str(refused.value.hint)
    assert list(settings.state_dir.iterdir()) == [], "a refusal leaves nothing"
    await asyncio.to_thread(put_back, keep_database=True)
    installed = await initialize(settings, time.time_ns)
    assert (installed.fingerprint, installed.secret) == (fingerprint, None)
    database = settings.open_database()
    async with database.read() as session:
        names = (await session.scalars(select(PolicyRow.name))).all()
    await database.close()
    assert "since the backup" in names, "the database is as it was"


async def test_keys_of_another_site_and_an_empty_database_are_refused_where_the_database_is_kept(
    cluster: PostgresqlCluster, tmp_path: Path
) -> None:
    async with running_lab(tmp_path / "one", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
    others = lab_settings(tmp_path / "other" / "state", lab.writer)
    for number, (prepare, refusal) in enumerate(((True, SettingsError), (False, NotFound))):
        url = cluster.url(await cluster.create_database())
        settings = replace(others, state_dir=tmp_path / f"other-{number}" / "state", database_url=url)
        if prepare:
            await initialize(settings, time.time_ns)
            settings = replace(settings, state_dir=tmp_path / "empty" / "state")
        configuration = write_configuration(settings, tmp_path / f"{number}.yaml")
        with pytest.raises(refusal):
            await asyncio.to_thread(restore, archive, configuration, PASSPHRASE, time.time_ns, keep_database=True)
        assert list(settings.state_dir.iterdir()) == []
    on_sqlite = write_configuration(others, tmp_path / "sqlite.yaml")
    with pytest.raises(SettingsError, match="cannot keep the database"):
        await asyncio.to_thread(restore, archive, on_sqlite, PASSPHRASE, time.time_ns, keep_database=True)


async def test_database_that_does_not_answer_or_has_another_schema_is_not_backed_up(
    cluster: PostgresqlCluster, tmp_path: Path
) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        settings = lab.settings
    configuration = write_configuration(settings, tmp_path / "c.yaml")
    out = tmp_path / "site.backup"

    async def refusal() -> BlockferryError:
        with pytest.raises(BlockferryError) as refused:
            await asyncio.to_thread(back_up, settings, configuration, out, PASSPHRASE, time.time_ns)
        assert not out.exists()
        return refused.value

    database = settings.open_database()
    async with database.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    await database.close()
    error = await refusal()
    assert isinstance(error, SettingsError)
    assert "its schema is 0003" in str(error)
    cluster.stop()
    try:
        assert isinstance(await refusal(), Retryable)
    finally:
        cluster.start()


async def test_copy_takes_every_table_but_who_serves(cluster: PostgresqlCluster, tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient()) as lab:
        source = lab.running.site.database
        async with asyncio.timeout(20):
            while lab.running.site.leadership.term is None:
                await asyncio.sleep(0.01)
        target = Database(sqlite_url(tmp_path / "image.sqlite"))
        await copy_database(source, target, upgrade_source=False)
        async with target.read() as session:
            tables = set(await session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'")))
            assert tables - {"sqlite_sequence", "alembic_version"} == METADATA.tables.keys()
            assert await session.scalar(select(func.count()).select_from(METADATA.tables["config_servers"])) == 0
            assert await session.scalar(select(func.count()).select_from(METADATA.tables["leadership"])) == 1
        await target.close()
