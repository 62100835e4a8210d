"""Backup of a site that runs, and its restoration elsewhere: everything is there, nothing is taken over, damage is found, agents go on."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from config_server import sealed_archive
from config_server.backup import CHECKING, MEMBERS, STAGING, back_up, check_backup, restore
from config_server.cli import main
from config_server.config import Settings
from config_server.database import DATABASE_FILE
from config_server.private_scratch import private_scratch
from config_server.sealed_archive import CHUNK_BYTES, opened_members, read_header, sealed_parts, tar_parts
from config_server.tables import CertificateRow, EventRow, PolicyRow
from replication.documents import WriterIdentity
from replication.errors import Conflict, IntegrityError, InvalidInput, SettingsError
from replication.tls_identity import Role
from tests.harness.backed_up_site import PASSPHRASE, backed_up, write_configuration
from tests.harness.config_site import lab_settings, running_lab
from tests.harness.little_installer import little_installer
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import DISK, inventory, inventory_disk


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB for each key instead of 128."""
    monkeypatch.setattr(sealed_archive.sealed_parts, "__defaults__", (2**14,))


async def test_a_running_site_is_backed_up_and_restored_elsewhere_and_its_agents_go_on(tmp_path: Path) -> None:
    store = MemoryBlobClient()
    async with running_lab(tmp_path / "old", store) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        report = inventory("web-1", [inventory_disk(DISK, "/dev/sda", 1 << 20)], clock_unix_ns=time.time_ns())
        agent = lab.identities["web-1"]
        assert (await lab.request("PUT", "/api/v1/agent/inventory", report, identity=agent)).status == 200
        archive = await backed_up(lab, tmp_path)
        await lab.enrol(Role.AGENT, "web-2")
        since = lab.identities["web-2"]
        token, writer, fingerprint = lab.token, lab.writer, lab.fingerprint
        old_key = (lab.settings.state_dir / "key-encryption-key").read_bytes()
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    new = lab_settings(tmp_path / "new" / "state", writer)
    configuration = write_configuration(new, tmp_path / "new.yaml")
    settings, facts = await asyncio.to_thread(restore, archive, configuration, PASSPHRASE, time.time_ns)
    assert settings.state_dir == new.state_dir
    assert (new.state_dir / "key-encryption-key").read_bytes() == old_key
    assert not (new.state_dir / STAGING).exists()
    (new.state_dir / "first-token").write_text(token)
    async with running_lab(tmp_path / "new", store, writer=writer) as again:
        assert again.fingerprint == fingerprint == facts.authority_fingerprint
        assert (await again.request("GET", "/api/v1/agent/desired", identity=agent)).status == 200
        assert (await again.administer("GET", "/api/v1/servers/web-1")).json["inventory"]["hostname"] == "web-1"
        # Whoever enrolled after the backup has a certificate of this authority, but no machine here.
        assert (await again.request("GET", "/api/v1/agent/desired", identity=since)).status == 403
        async with again.running.site.database.read() as session:
            policies = (await session.scalars(select(PolicyRow.name))).all()
            events = (await session.scalars(select(EventRow.kind))).all()
            serials = (await session.scalars(select(CertificateRow.serial))).all()
        assert "default" in policies
        assert events.count("restored") == 1
        assert len(serials) == 2


async def test_the_configuration_comes_from_the_backup_where_there_is_none(tmp_path: Path) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive, state = await backed_up(lab, tmp_path), lab.settings.state_dir
    state.rename(tmp_path / "gone")
    settings, _ = await asyncio.to_thread(restore, archive, tmp_path / "etc" / "c.yaml", PASSPHRASE, time.time_ns)
    assert settings.state_dir == state
    assert (tmp_path / "etc" / "c.yaml").read_bytes() == (tmp_path / "config-server.yaml").read_bytes()
    assert (state / "state.sqlite").exists()


async def test_nothing_that_is_there_is_taken_over(tmp_path: Path) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
        before = sorted(lab.settings.state_dir.rglob("*"))
        with pytest.raises(Conflict, match="it is not empty"):
            await asyncio.to_thread(restore, archive, tmp_path / "config-server.yaml", PASSPHRASE, time.time_ns)
        assert sorted(lab.settings.state_dir.rglob("*")) == before
        other = replace(
            lab_settings(tmp_path / "new" / "state", lab.writer), key_encryption_key_file=tmp_path / "another-key"
        )
    (tmp_path / "another-key").write_text("A" * 43 + "=\n")
    (tmp_path / "another-key").chmod(0o600)
    configuration = write_configuration(other, tmp_path / "new.yaml")
    configuration.write_text(configuration.read_text() + f"key_encryption_key_file: {tmp_path / 'another-key'}\n")
    with pytest.raises(Conflict, match="another one is there"):
        await asyncio.to_thread(restore, archive, configuration, PASSPHRASE, time.time_ns)
    assert list(other.state_dir.iterdir()) == [], "a refusal leaves nothing"


async def test_a_damaged_a_cut_off_and_a_foreign_file_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
        new = lab_settings(tmp_path / "new" / "state", lab.writer)
    configuration = write_configuration(new, tmp_path / "new.yaml")
    whole = archive.read_bytes()
    assert check_backup(archive, PASSPHRASE).database_bytes > 0
    at = len(whole) // 2
    for damaged in (
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        whole[:at],
        whole[:-1],
        whole + b"x",
        whole.replace(b'"p": 1', b'"p": 2', 1),
        whole.replace(b'"n": 16384', b'"n": 99999999', 1),
        b"something else",
        b"",
    ):
        archive.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            check_backup(archive, PASSPHRASE)
        with pytest.raises(IntegrityError):
            await asyncio.to_thread(restore, archive, configuration, PASSPHRASE, time.time_ns)
        assert not new.state_dir.exists() or list(new.state_dir.iterdir()) == []
    archive.write_bytes(whole)
    with pytest.raises(IntegrityError, match="the passphrase is wrong"):
        check_backup(archive, "another passphrase")
    with pytest.raises(SettingsError):
        check_backup(tmp_path / "none", PASSPHRASE)


_KILLED_CHECK = """
import os, signal, sys
from pathlib import Path
from config_server import backup
backup.prove_image = lambda image: os.kill(os.getpid(), signal.SIGKILL)
os.umask(0)
backup.check_backup(Path(sys.argv[1]), sys.argv[2])
"""


def _with_a_private_key(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


async def test_a_check_that_is_killed_leaves_keys_only_in_a_private_place_that_the_next_one_clears(
    tmp_path: Path,
) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
    kept, temporary = tmp_path / "backups", tmp_path / "tmp"
    kept.mkdir()
    temporary.mkdir()
    archive = archive.rename(kept / "backup")
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _KILLED_CHECK, str(archive), PASSPHRASE],
        env={**os.environ, "TMPDIR": str(temporary)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(temporary.iterdir()) == []
    assert _with_a_private_key(kept) == [kept / CHECKING / "authority" / "key.pem"]
    assert stat.S_IMODE((kept / CHECKING).stat().st_mode) == 0o700
    second = archive.rename(kept / "of the next night")
    assert check_backup(second, PASSPHRASE).database_bytes > 0
    assert list(kept.iterdir()) == [second]


async def test_a_check_works_where_it_is_told_and_nowhere_without_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
    elsewhere = tmp_path / "of this machine"
    elsewhere.mkdir()
    (archive.parent / CHECKING).touch()  # where nothing can be made
    with pytest.raises(SettingsError, match="--work-in"):
        check_backup(archive, PASSPHRASE)
    assert check_backup(archive, PASSPHRASE, elsewhere).database_bytes > 0
    monkeypatch.setattr("os.fchmod", lambda _descriptor, _mode: None)
    before = os.umask(0o300)  # stands for a file system that has no permissions of its own
    try:
        with pytest.raises(SettingsError, match="keeps no permissions"):
            check_backup(archive, PASSPHRASE, elsewhere)
    finally:
        os.umask(before)
    assert list(elsewhere.iterdir()) == []


async def test_checks_do_not_get_into_each_other_s_way(tmp_path: Path) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
    scratch = archive.parent / CHECKING
    with private_scratch(scratch), pytest.raises(Conflict, match="another process does"):
        check_backup(archive, PASSPHRASE)
    assert check_backup(archive, PASSPHRASE).database_bytes > 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "somebody's").touch()
    scratch.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="cannot work in"):
        check_backup(archive, PASSPHRASE)
    assert (tmp_path / "elsewhere" / "somebody's").exists()


async def test_nothing_in_a_backup_can_be_read_without_its_passphrase(tmp_path: Path) -> None:
    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        archive = await backed_up(lab, tmp_path)
        key = (lab.settings.authority_directory / "key.pem").read_bytes()
        site_key = (lab.settings.state_dir / "key-encryption-key").read_bytes().strip()
    content = archive.read_bytes()
    assert key.splitlines()[1] not in content
    assert site_key not in content
    assert b"SQLite format 3" not in content
    with archive.open("rb") as stream:
        _, header = read_header(stream)
        stream.seek(0)
        assert [name for name, _ in opened_members(stream, PASSPHRASE)] == list(MEMBERS)
    assert set(header) == {"authority_fingerprint", "created_at", "n", "p", "r", "salt", "version"}


async def test_a_damaged_database_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(settings: Settings, image: Path) -> None:
        image.write_bytes((settings.state_dir / DATABASE_FILE).read_bytes()[:8192])

    async with running_lab(tmp_path / "old", MemoryBlobClient(), reconcile=False) as lab:
        monkeypatch.setattr("config_server.backup.take_image", damage)
        configuration, out = write_configuration(lab.settings, tmp_path / "c.yaml"), tmp_path / "damaged.backup"
        with pytest.raises(IntegrityError, match="database"):
            await asyncio.to_thread(back_up, lab.settings, configuration, out, PASSPHRASE, time.time_ns)
        assert not out.exists()
        monkeypatch.setattr("config_server.backup.fault_of_keys", lambda *_: None)
        archive = await backed_up(lab, tmp_path)
    with pytest.raises(IntegrityError, match="database"):
        check_backup(archive, PASSPHRASE)


def test_archives_of_many_chunks_are_put_together_again(tmp_path: Path) -> None:
    contents = {"one": b"", "two": b"x" * (2 * CHUNK_BYTES), "three": bytes(range(256)) * 5000}
    members = [(name, len(content), [content]) for name, content in contents.items()]
    sealed = b"".join(sealed_parts(tar_parts(members), PASSPHRASE, {}))
    found = {name: content.read() for name, content in opened_members(io.BytesIO(sealed), PASSPHRASE)}
    assert found == contents
    with pytest.raises(InvalidInput, match="too short"):
        list(sealed_parts([], "short", {}))
    with pytest.raises(InvalidInput, match="another length"):
        list(tar_parts([("grown", 1, [b"xx"])]))


def read_all(stream: io.BytesIO) -> None:
    for _name, content in opened_members(stream, PASSPHRASE):
        content.read()


def test_chunks_that_were_swapped_or_left_out_do_not_open() -> None:
    sealed = list(sealed_parts([bytes(CHUNK_BYTES)] * 4, PASSPHRASE, {}))
    for order in ([0, 2, 1, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3, 4, 4]):
        stream = io.BytesIO(b"".join(sealed[index] for index in order))
        with pytest.raises(IntegrityError):
            read_all(stream)


def test_the_commands_say_what_follows(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")
    account_key = tmp_path / "account-key"
    account_key.write_text("AAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    configuration = tmp_path / "config-server.yaml"
    settings = lab_settings(tmp_path / "state", WriterIdentity.generate())
    write_configuration(settings, configuration)

    def run(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        return done.exit_code, done.output

    out, options = tmp_path / "site.backup", ("--passphrase-file", passphrase, "--config", configuration)
    assert run("backup", "--out", out, *options)[0] == 2, "before init"
    assert run("init", "--config", configuration)[0] == 0
    installer = little_installer(tmp_path)
    assert run("add-installer", "--config", configuration, installer)[0] == 0
    code, text = run("backup", "--out", out, *options)
    assert (code, "keep them apart" in text) == (0, True), text
    code, text = run("restore", out, "--check", *options)
    assert (code, "can be restored" in text) == (0, True), text
    code, text = run("restore", out, *options)
    assert (code, "it is not empty" in text) == (1, True), text
    (tmp_path / "state").rename(tmp_path / "old")
    code, text = run("restore", out, *options)
    assert (code, "must never run again" in text, "add-installer" in text) == (0, True, True), text
    assert installer.name not in run("installers", "--config", configuration)[1]
    assert run("add-installer", "--config", configuration, installer)[0] == 0
    assert sqlite3.connect(tmp_path / "state" / "state.sqlite").execute("SELECT count(*) FROM policies").fetchone() == (
        1,
    )
    passphrase.write_text("short")
    assert run("backup", "--out", tmp_path / "x", *options)[0] == 1
