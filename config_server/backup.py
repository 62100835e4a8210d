"""Backup of a configuration server while it runs, and its restoration on an empty place.

Called by ``cli.py`` (backup, restore), never inside of an event loop.

What is in it: the configuration file, the authority, the key-encryption key, the database as of one instant (``database_image.py``), and a
list of them with their digests. What is not: this server's own certificate (made again), and the store's account key (it is not the
site's). All of it is sealed with a passphrase (``sealed_archive.py``), since whoever has it holds the site.

``restore`` takes over nothing that is there, proves what it unpacked before it puts it in place, and only then says so. What goes on by
itself after it, and what is to be done by hand, is in docs/operations/backup.md.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from config_server.authority import TrustStore
from config_server.config import Settings
from config_server.database_image import (
    check_kept_database,
    database_file,
    fault_of_keys,
    prepare_image,
    prove_image,
    put_image,
    take_image,
)
from config_server.events import Clock
from config_server.installation import site_key_file
from config_server.key_encryption import KeyEncryptionKey
from config_server.private_scratch import private_scratch
from config_server.sealed_archive import opened_members, sealed_parts, tar_parts
from config_server.site_keys import HINT
from replication import __version__
from replication.durable_file import DurableFile, make_directory_durably, sync_directory
from replication.errors import Conflict, IntegrityError, SettingsError
from replication.settings import load_settings

CONFIGURATION: Final = "configuration.yaml"
KEY: Final = "key-encryption-key"
DATABASE: Final = "state.sqlite"
MANIFEST: Final = "manifest.json"
_AUTHORITY: Final = ("authority/key.pem", "authority/certificate.pem", "authority/trusted.pem")
MEMBERS: Final = (CONFIGURATION, *_AUTHORITY, KEY, DATABASE, MANIFEST)
"""All of them, in this order: what the configuration says is needed before anything is written."""
STAGING: Final = "restoring"
CHECKING: Final = ".blockferry-check"
"""What a check that was killed leaves under this name, the site's keys in clear, the next check in the same directory clears."""
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


def back_up(settings: Settings, config_path: Path, out: Path, passphrase: str, clock: Clock) -> BackupFacts:
    """Write the backup to ``out``; durable on return, and then ``out`` is whole. The server may run meanwhile.

    :raises SettingsError: if something that belongs in it cannot be read, or the keys are not the database's.
    :raises DatabaseUnavailable: if PostgreSQL does not answer.
    """
    authority = TrustStore(settings.authority_directory)
    fingerprint = authority.load().fingerprint
    key_path = site_key_file(settings)
    key = KeyEncryptionKey.load(key_path)
    created_at = dt.datetime.fromtimestamp(clock() / 1e9, dt.UTC).isoformat(timespec="seconds")
    file = database_file(settings)
    place = settings.state_dir if file is None or not file.exists() else file.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=".backup-") as scratch:  # it is no less private there
        copy = Path(scratch) / DATABASE
        take_image(settings, copy)
        if fault := fault_of_keys(copy, authority, key):
            raise SettingsError(
                f"cannot back up this site with the key-encryption key {key_path} and the authority that are here: {fault}",
                hint=HINT,
            )
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


def check_backup(archive: Path, passphrase: str, work_in: Path | None = None) -> BackupFacts:
    """Open all of it and prove it, in a private directory in ``work_in`` (None: beside it) that is gone on return; nothing else is changed.

    :raises IntegrityError: if it could not be restored. :raises Conflict: if another check runs beside it.
    :raises SettingsError: if it cannot be read, or there can be no such directory.
    """
    with _opened(archive) as stream:
        members = opened_members(stream, passphrase)
        _first(members)
        with private_scratch((work_in or archive.parent).absolute() / CHECKING) as scratch:
            return _unpacked(members, scratch)


def restore(
    archive: Path, config_path: Path, passphrase: str, clock: Clock, *, keep_database: bool = False
) -> tuple[Settings, BackupFacts]:
    """Put everything in its place; durable on return. The configuration of the backup is used where ``config_path`` does not exist.

    ``keep_database``: PostgreSQL has the site's still, and only what this machine had was lost.

    :raises Conflict: if the state directory or the PostgreSQL database is not empty, or another key-encryption key is where this one
        belongs; nothing was changed.
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
            facts = _unpacked(members, staging, key_in_place=site_key_file(settings))
            key_path = _check_key_place(settings, staging)
            image: Path | None = staging / DATABASE
            if keep_database:
                image = None
                check_kept_database(settings, TrustStore(staging / "authority"), KeyEncryptionKey.load(staging / KEY))
            else:
                message = f"restored from the backup of {facts.created_at}; what happened since then is not known here"
                prepare_image(settings, staging / DATABASE, message, clock)
                if database_file(settings) is None:  # one transaction, and first: if it fails, nothing is in place
                    put_image(settings, staging / DATABASE)
                    image = None
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    if not config_path.exists():
        make_directory_durably(config_path.parent, mode=0o755)
        DurableFile(config_path, mode=0o644).replace(configuration)
    _put_in_place(settings, staging, key_path, image=image)
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


def _unpacked(
    members: Iterator[tuple[str, IO[bytes]]], directory: Path, *, key_in_place: Path | None = None
) -> BackupFacts:
    """Every member but the first as a durable file in ``directory``, proved: whole, as listed, and good for a configuration server."""
    found: dict[str, dict[str, object]] = {}
    for name, content in members:
        if name not in MEMBERS or name in found:
            raise IntegrityError(f"cannot use the backup: it has an unexpected {name[:100]!r}")
        found[name] = _stored(directory / name, content, mode=0o644 if name in _AUTHORITY[1:] else 0o600)
    if found.keys() != set(MEMBERS) - {CONFIGURATION}:
        raise IntegrityError("cannot use the backup: it is not complete")
    return _proved(directory, found, key_in_place)


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


def _proved(directory: Path, found: dict[str, dict[str, object]], key_in_place: Path | None) -> BackupFacts:
    """``key_in_place``: where the site's key belongs; the right one that is there replaces a wrong one of the backup."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        listed = {name: manifest["files"][name] for name in found if name != MANIFEST}
        facts = (str(manifest["created_at"]), str(manifest["version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("cannot use the backup: its list is damaged") from error
    if listed != {name: entry for name, entry in found.items() if name != MANIFEST}:
        raise IntegrityError("cannot use the backup: a file in it is not the one that was put in")
    trust_store = TrustStore(directory / "authority")
    prove_image(directory / DATABASE)
    fault = fault_of_keys(directory / DATABASE, trust_store, KeyEncryptionKey.load(directory / KEY))
    if fault is not None and key_in_place is not None and key_in_place.exists():
        fault = fault_of_keys(directory / DATABASE, trust_store, KeyEncryptionKey.load(key_in_place))
        if fault is None:
            DurableFile(directory / KEY).replace(key_in_place.read_bytes())
    if fault is not None:
        raise IntegrityError(
            f"cannot use the backup: authority and key-encryption key in it are not its database's: {fault}",
            hint="make another one where the site's own keys are; if that machine is lost: `config-server restore` takes the site's own "
            "key from where key_encryption_key_file of the configuration names it",
        )
    return BackupFacts(*facts, trust_store.load().fingerprint, int(str(found[DATABASE]["bytes"])))


def _check_key_place(settings: Settings, staging: Path) -> Path:
    path = site_key_file(settings)
    if path.exists() and KeyEncryptionKey.load(path).key != KeyEncryptionKey.load(staging / KEY).key:
        raise Conflict(
            f"cannot restore the key-encryption key to {path}: another one is there",
            hint="it is another site's, or was changed; move it away if the backup's is the right one",
        )
    return path


def _put_in_place(settings: Settings, staging: Path, key_path: Path, *, image: Path | None) -> None:
    """The database comes last: with it the configuration server can start. ``image``: None if it is in its place already."""
    if not key_path.exists():
        make_directory_durably(key_path.parent)
        DurableFile(key_path).replace((staging / KEY).read_bytes())
    (staging / "authority").replace(settings.authority_directory)
    if image is not None:
        put_image(settings, image)
    shutil.rmtree(staging)
    sync_directory(settings.state_dir)
