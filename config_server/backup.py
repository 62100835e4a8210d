"""Backup of a configuration server while it runs, and its restoration on an empty place.

Called by ``cli.py`` (backup, restore), never inside of an event loop.

What is in it: the configuration file, the authority, the key-encryption key, the database as of one instant, and a list of them with their
digests. What is not: this server's own certificate (made again), and the store's account key (it is not the site's). All of it is sealed
with a passphrase (``sealed_archive.py``), since whoever has it holds the site.

``restore`` takes over nothing that is there, proves what it unpacked before it puts it in place, and only then says so. What goes on by
itself after it, and what is to be done by hand, is in docs/operations/backup.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import io
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sqlalchemy import make_url

from config_server.authority import TrustStore
from config_server.config import Settings
from config_server.database import Database, sqlite_url
from config_server.events import COMMAND_LINE, Clock, record_event
from config_server.installation import site_key_file
from config_server.key_encryption import KeyEncryptionKey
from config_server.sealed_archive import opened_members, sealed_parts, tar_parts
from replication import __version__
from replication.durable_file import DurableFile, make_directory_durably, sync_directory
from replication.errors import Conflict, IntegrityError, SettingsError, Unsupported
from replication.settings import load_settings

CONFIGURATION: Final = "configuration.yaml"
KEY: Final = "key-encryption-key"
DATABASE: Final = "state.sqlite"
MANIFEST: Final = "manifest.json"
_AUTHORITY: Final = ("authority/key.pem", "authority/certificate.pem", "authority/trusted.pem")
MEMBERS: Final = (CONFIGURATION, *_AUTHORITY, KEY, DATABASE, MANIFEST)
"""All of them, in this order: what the configuration says is needed before anything is written."""
STAGING: Final = "restoring"
_PIECE: Final = 2**20
_MAX_SMALL_BYTES: Final = 2**20
_HARMLESS: Final = ("lost+found", STAGING)


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What a backup says of itself."""

    created_at: str
    version: str
    authority_fingerprint: str
    database_bytes: int


def database_file(settings: Settings) -> Path:
    """The SQLite file.

    :raises Unsupported: for another engine, which has tools of its own.
    """
    url = make_url(settings.effective_database_url)
    if not url.drivername.startswith("sqlite") or not url.database:
        raise Unsupported(
            f"cannot back up a database of {url.drivername} here",
            hint="its own tools do, such as pg_dump; keep the keys as well",
        )
    return Path(url.database)


def back_up(settings: Settings, config_path: Path, out: Path, passphrase: str, clock: Clock) -> BackupFacts:
    """Write the backup to ``out``; durable on return, and then ``out`` is whole. The server may run meanwhile.

    :raises SettingsError: if something that belongs in it cannot be read.
    """
    authority = TrustStore(settings.authority_directory)
    fingerprint = authority.load().fingerprint
    key_path = site_key_file(settings)
    KeyEncryptionKey.load(key_path)
    source = database_file(settings)
    if not source.exists():
        raise SettingsError(f"cannot find the database {source}", hint="run `config-server init` first")
    created_at = dt.datetime.fromtimestamp(clock() / 1e9, dt.UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(dir=source.parent, prefix=".backup-") as scratch:  # it is no less private there
        copy = Path(scratch) / DATABASE
        _copy_database(source, copy)
        files = {
            CONFIGURATION: config_path,
            **{name: settings.authority_directory / Path(name).name for name in _AUTHORITY},
            KEY: key_path,
            DATABASE: copy,
        }
        facts = BackupFacts(created_at, __version__, fingerprint, copy.stat().st_size)
        public = {"created_at": created_at, "version": __version__, "authority_fingerprint": fingerprint}
        parts = sealed_parts(tar_parts(_members(files, facts)), passphrase, public)
        DurableFile(out).replace_parts(parts)
    return facts


def _copy_database(source: Path, copy: Path) -> None:
    """The database as of one instant; writers go on meanwhile (SQLite's backup API inside of one read transaction)."""
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=30)
            ) as reading,
            contextlib.closing(sqlite3.connect(copy)) as writing,
        ):
            reading.backup(writing)
            writing.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise SettingsError(f"cannot copy the database {source}: {error}") from error


def _members(files: dict[str, Path], facts: BackupFacts) -> Iterator[tuple[str, int, Iterable[bytes]]]:
    digests: dict[str, dict[str, object]] = {}
    for name, path in files.items():
        try:
            size_bytes = path.stat().st_size
            yield name, size_bytes, _digested(path, size_bytes, digests, name)
        except OSError as error:
            raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    manifest = {"created_at": facts.created_at, "version": facts.version, "files": digests}
    content = json.dumps(manifest, sort_keys=True, indent=1).encode()
    yield MANIFEST, len(content), [content]


def _digested(path: Path, size_bytes: int, digests: dict[str, dict[str, object]], name: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            yield piece
    digests[name] = {"bytes": size_bytes, "sha256": digest.hexdigest()}


# -- restoration --------------------------------------------------------------------------------------------------


def check_backup(archive: Path, passphrase: str) -> BackupFacts:
    """Open all of it and prove it, in a temporary directory; nothing is changed.

    :raises IntegrityError: if it could not be restored.
    """
    with tempfile.TemporaryDirectory(prefix="blockferry-check-") as scratch, _opened(archive) as stream:
        members = opened_members(stream, passphrase)
        _first(members)
        return _unpacked(members, Path(scratch))


def restore(archive: Path, config_path: Path, passphrase: str, clock: Clock) -> tuple[Settings, BackupFacts]:
    """Put everything in its place; durable on return. The configuration of the backup is used where ``config_path`` does not exist.

    :raises Conflict: if the state directory is not empty, or another key-encryption key is where this one belongs; nothing was changed.
    :raises IntegrityError: if the backup cannot be opened or does not prove right; nothing was put in place.
    """
    with _opened(archive) as stream:
        members = opened_members(stream, passphrase)
        configuration = _first(members)
        settings = _settings(config_path, configuration)
        _check_empty(settings.state_dir)
        staging = settings.state_dir / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        make_directory_durably(staging)
        try:
            facts = _unpacked(members, staging)
            asyncio.run(_check_schema(staging / DATABASE))
            key_path = _check_key_place(settings, staging)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    if not config_path.exists():
        make_directory_durably(config_path.parent, mode=0o755)
        DurableFile(config_path, mode=0o644).replace(configuration)
    _put_in_place(settings, staging, key_path, facts, clock)
    return settings, facts


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    try:
        with archive.open("rb") as stream:
            yield stream
    except OSError as error:
        raise SettingsError(f"cannot read the backup {archive}: {error.strerror or error}") from error


def _first(members: Iterator[tuple[str, IO[bytes]]]) -> bytes:
    name, content = next(members, ("", io.BytesIO()))
    if name != CONFIGURATION:
        raise IntegrityError("cannot use the backup: it does not begin with a configuration")
    return content.read(_MAX_SMALL_BYTES)


def _settings(config_path: Path, configuration: bytes) -> Settings:
    if config_path.exists():
        return load_settings(Settings, config_path)
    with tempfile.TemporaryDirectory(prefix="blockferry-restore-") as scratch:
        path = Path(scratch) / CONFIGURATION
        path.write_bytes(configuration)
        return load_settings(Settings, path)


def _check_empty(state_dir: Path) -> None:
    if state_dir.exists() and (
        there := sorted(path.name for path in state_dir.iterdir() if path.name not in _HARMLESS)
    ):
        raise Conflict(
            f"cannot restore into {state_dir}: it is not empty ({', '.join(there[:5])})",
            hint="move what is there away first; a configuration server that still runs on it must be stopped for good",
        )


def _unpacked(members: Iterator[tuple[str, IO[bytes]]], directory: Path) -> BackupFacts:
    """Every member but the first as a durable file in ``directory``, proved: whole, as listed, and good for a configuration server."""
    found: dict[str, dict[str, object]] = {}
    for name, content in members:
        if name not in MEMBERS or name in found:
            raise IntegrityError(f"cannot use the backup: it has an unexpected {name[:100]!r}")
        found[name] = _stored(directory / name, content, mode=0o644 if name in _AUTHORITY[1:] else 0o600)
    if found.keys() != set(MEMBERS) - {CONFIGURATION}:
        raise IntegrityError("cannot use the backup: it is not complete")
    return _proved(directory, found)


def _stored(path: Path, content: IO[bytes], *, mode: int) -> dict[str, object]:
    digest, size_bytes = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal size_bytes
        while piece := content.read(_PIECE):
            digest.update(piece)
            size_bytes += len(piece)
            yield piece

    make_directory_durably(path.parent)
    DurableFile(path, mode=mode).replace_parts(pieces())
    return {"bytes": size_bytes, "sha256": digest.hexdigest()}


def _proved(directory: Path, found: dict[str, dict[str, object]]) -> BackupFacts:
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        listed = {name: manifest["files"][name] for name in found if name != MANIFEST}
        facts = (str(manifest["created_at"]), str(manifest["version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("cannot use the backup: its list is damaged") from error
    if listed != {name: entry for name, entry in found.items() if name != MANIFEST}:
        raise IntegrityError("cannot use the backup: a file in it is not the one that was put in")
    fingerprint = TrustStore(directory / "authority").load().fingerprint
    KeyEncryptionKey.load(directory / KEY)
    try:
        with contextlib.closing(sqlite3.connect(directory / DATABASE)) as database:
            [(verdict,)] = database.execute("PRAGMA integrity_check(1)").fetchall()
            orphans = database.execute("PRAGMA foreign_key_check").fetchall()
    except sqlite3.Error as error:
        raise IntegrityError(f"cannot use the backup: its database cannot be read: {error}") from error
    if verdict != "ok" or orphans:
        raise IntegrityError(
            f"cannot use the backup: its database is damaged: {verdict if verdict != 'ok' else 'orphans'}"
        )
    return BackupFacts(*facts, fingerprint, int(str(found[DATABASE]["bytes"])))


async def _check_schema(path: Path) -> None:
    """:raises SettingsError: if it is a newer version's. An older one is brought up."""
    database = Database(sqlite_url(path))
    try:
        await database.upgrade()
    finally:
        await database.close()


def _check_key_place(settings: Settings, staging: Path) -> Path:
    path = site_key_file(settings)
    if path.exists() and KeyEncryptionKey.load(path).key != KeyEncryptionKey.load(staging / KEY).key:
        raise Conflict(
            f"cannot restore the key-encryption key to {path}: another one is there",
            hint="it is another site's, or was changed; move it away if the backup's is the right one",
        )
    return path


def _put_in_place(settings: Settings, staging: Path, key_path: Path, facts: BackupFacts, clock: Clock) -> None:
    """The database comes last: with it the configuration server can start."""
    if not key_path.exists():
        make_directory_durably(key_path.parent)
        DurableFile(key_path).replace((staging / KEY).read_bytes())
    (staging / "authority").replace(settings.authority_directory)
    target = database_file(settings)
    asyncio.run(_tell(staging / DATABASE, facts, clock))
    make_directory_durably(target.parent)
    sync_directory(staging)
    (staging / DATABASE).replace(target)
    sync_directory(target.parent)
    shutil.rmtree(staging)
    sync_directory(settings.state_dir)


async def _tell(path: Path, facts: BackupFacts, clock: Clock) -> None:
    database = Database(sqlite_url(path))
    try:
        async with database.write() as session:
            message = f"restored from the backup of {facts.created_at}; what happened since then is not known here"
            record_event(session, clock(), COMMAND_LINE, "restored", message)
    finally:
        await database.close()
