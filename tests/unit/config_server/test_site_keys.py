"""Authority and key-encryption key are compared with the database on SQLite, too: at each start, by init, by backup and its proof."""

from __future__ import annotations

import base64
import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from config_server import sealed_archive
from config_server.backup import check_backup
from config_server.cli import main
from config_server.database import DATABASE_FILE
from config_server.key_encryption import KEY_FILE_NAME, KeyEncryptionKey
from replication.credentials import CREDENTIALS_VARIABLE
from replication.documents import WriterIdentity
from replication.errors import IntegrityError, SettingsError
from replication.segment_keys import KEY_BYTES, new_data_key
from tests.harness.backed_up_site import PASSPHRASE, write_configuration
from tests.harness.config_site import lab_settings, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient

MACHINE = "6f0f6a9e-0b0c-4f3f-8a52-0f4b8d3f0001"
DISK = "6f0f6a9e-0b0c-4f3f-8a52-0f4b8d3f0002"


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB for each key instead of 128."""
    monkeypatch.setattr(sealed_archive.sealed_parts, "__defaults__", (2**14,))


class Appliance:
    """Its command line, as one uses it after the guide's first steps; ``init`` was run."""

    def __init__(self, directory: Path) -> None:
        self.state, self.archive = directory / "state", directory / "site.backup"
        self.key, self.moved = self.state / KEY_FILE_NAME, directory / "credentials" / KEY_FILE_NAME
        self._configuration, self._passphrase = directory / "config-server.yaml", directory / "passphrase"
        self._passphrase.write_text(PASSPHRASE)
        account_key = directory / "account-key"
        account_key.write_text("AAAAAAAAAAAAAAAAAAAAAAAAAAA=")
        write_configuration(lab_settings(self.state, WriterIdentity.generate()), self._configuration)
        assert self.init()[0] == 0

    def init(self, *arguments: str) -> tuple[int, str]:
        return self._run("init", "--config", self._configuration, *arguments)

    def back_up(self) -> tuple[int, str]:
        return self._run(
            "backup", "--config", self._configuration, "--out", self.archive, "--passphrase-file", self._passphrase
        )

    def restore(self) -> tuple[int, str]:
        return self._run(
            "restore", self.archive, "--config", self._configuration, "--passphrase-file", self._passphrase
        )

    def configure(self, line: str) -> None:
        self._configuration.write_text(f"{self._configuration.read_text()}{line}\n")

    def move_key_away(self) -> None:
        """As docs/operations/configuration-server.md says."""
        self.moved.parent.mkdir()
        self.key.rename(self.moved)

    def know_a_disk(self, key: Path) -> None:
        """One whose digest key is wrapped by ``key``."""
        wrapped = KeyEncryptionKey.load(key).wrap_digest_key(new_data_key(), DISK)
        self.execute(
            "INSERT INTO machines (id, hostname, machine_fingerprint, enrolled_ns, connected, desired_revision) "
            "VALUES (?, 'web-1', 'x', 1, 0, 0)",
            MACHINE,
        )
        self.execute(
            "INSERT INTO disks (id, machine_id, path, size_bytes, present, seen_ns, digest_key) "
            "VALUES (?, ?, '/dev/sda', 1, 1, 1, ?)",
            DISK,
            MACHINE,
            wrapped,
        )

    def execute(self, statement: str, *values: str) -> None:
        with contextlib.closing(sqlite3.connect(self.state / DATABASE_FILE)) as database, database:
            database.execute(statement, values)

    def forget_keys(self) -> None:
        """As a database was before SQLite's knew them."""
        self.execute("DELETE FROM site_keys")

    @staticmethod
    def _run(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        return done.exit_code, done.output


@pytest.fixture
def appliance(tmp_path: Path) -> Appliance:
    return Appliance(tmp_path)


def put_another_key(path: Path) -> None:
    path.write_bytes(base64.b64encode(os.urandom(KEY_BYTES)))
    path.chmod(0o600)


def test_no_command_makes_another_key_where_the_site_s_is_only_not_seen(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    appliance.move_key_away()
    code, text = appliance.back_up()
    assert (code, "systemd-run" in text) == (2, True), text
    code, text = appliance.init()
    assert (code, "none is made" in text, "systemd-run" in text) == (2, True, True), text
    assert not appliance.key.exists()
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(appliance.moved.parent))
    assert appliance.init()[0] == 0
    code, text = appliance.back_up()
    assert code == 0, text
    assert check_backup(appliance.archive, PASSPHRASE).database_bytes > 0


def test_an_authority_that_is_missing_is_not_made_anew(appliance: Appliance) -> None:
    certificate = appliance.state / "authority" / "certificate.pem"
    certificate.unlink()
    code, text = appliance.init()
    assert (code, "none is made" in text) == (2, True), text
    assert not certificate.exists()


def test_another_key_than_the_database_s_is_neither_initialized_nor_backed_up(appliance: Appliance) -> None:
    put_another_key(appliance.key)
    for code, text in (appliance.init(), appliance.back_up()):
        assert (code, "its key-encryption key is another" in text, "hint:" in text) == (2, True, True), text
    assert not appliance.archive.exists()


async def test_daemon_does_not_start_with_another_key_than_the_database_s(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        writer, key = lab.writer, lab.settings.state_dir / KEY_FILE_NAME
    put_another_key(key)
    with pytest.raises(SettingsError, match="its key-encryption key is another"):
        async with running_lab(tmp_path, MemoryBlobClient(), writer=writer, reconcile=False):
            pass


def test_a_backup_with_another_key_than_its_database_s_is_found(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made before ``backup`` compared."""
    put_another_key(appliance.key)
    with monkeypatch.context() as careless:
        careless.setattr("config_server.backup.fault_of_keys", lambda *_: None)
        assert appliance.back_up()[0] == 0
    with pytest.raises(IntegrityError, match="are not its database's") as found:
        check_backup(appliance.archive, PASSPHRASE)
    assert found.value.hint


def test_restore_takes_the_site_s_own_key_that_is_in_its_place_instead_of_a_wrong_one(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own-key"
    appliance.key.rename(own)
    put_another_key(appliance.key)
    with monkeypatch.context() as careless:
        careless.setattr("config_server.backup.fault_of_keys", lambda *_: None)
        assert appliance.back_up()[0] == 0
    appliance.state.rename(tmp_path / "lost")
    code, text = appliance.restore()
    assert (code, "key_encryption_key_file" in text) == (1, True), text
    assert list(appliance.state.iterdir()) == []
    appliance.configure(f"key_encryption_key_file: {own}")
    code, text = appliance.restore()
    assert code == 0, text
    assert appliance.init()[0] == 0
    assert not appliance.key.exists()


def test_a_database_from_before_it_knew_its_keys_learns_them_from_one_that_opens_a_disk_s(appliance: Appliance) -> None:
    appliance.know_a_disk(appliance.key)
    right = appliance.key.read_bytes()
    appliance.forget_keys()
    put_another_key(appliance.key)
    for code, text in (appliance.init(), appliance.back_up()):
        assert (code, "its key-encryption key is another" in text) == (2, True), text
    appliance.key.unlink()
    assert appliance.init()[0] == 2
    assert not appliance.key.exists(), "a disk's key is under one that exists somewhere"
    appliance.key.write_bytes(right)
    appliance.key.chmod(0o600)
    assert appliance.back_up()[0] == 0
    assert appliance.init()[0] == 0
    put_another_key(appliance.key)
    appliance.execute("DELETE FROM disks")
    assert appliance.init()[0] == 2, "it has learned which one it is"


def test_a_backup_by_a_version_without_these_tables_is_proved_as_far_as_it_can_be(appliance: Appliance) -> None:
    appliance.execute("DROP TABLE site_keys")
    assert appliance.back_up()[0] == 0
    assert check_backup(appliance.archive, PASSPHRASE).database_bytes > 0


def test_keys_that_are_lost_for_good_are_replaced_when_one_says_so(appliance: Appliance) -> None:
    appliance.key.unlink()
    assert appliance.init()[0] == 2
    assert appliance.init("--replace-keys")[0] == 0
    assert appliance.init()[0] == 0
    assert appliance.back_up()[0] == 0
