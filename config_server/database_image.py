"""The database in a backup: its *image*, an SQLite file of one instant, whichever database the site has. Called by ``backup.py``.

So a backup does not depend on PostgreSQL's programs nor on their versions, and goes back onto either: a site's backup made on SQLite can be
restored onto PostgreSQL, and the other way. An image of PostgreSQL is made by reading every table within one transaction (REPEATABLE READ,
READ ONLY) while the servers run; putting it back is one transaction on a database that must be empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import make_url

from config_server.authority import TrustStore
from config_server.config import Settings
from config_server.database import Database, sqlite_url
from config_server.database_copy import check_empty, copy_database
from config_server.events import COMMAND_LINE, Clock, record_event
from config_server.key_encryption import KeyEncryptionKey
from config_server.postgresql import is_postgresql
from config_server.site_keys import KnownKeys, check_site_keys, must_have_keys_already
from replication.durable_file import make_directory_durably, sync_directory
from replication.errors import Conflict, IntegrityError, NotFound, SettingsError


def database_file(settings: Settings) -> Path | None:
    """SQLite's file; None on PostgreSQL."""
    url = settings.effective_database_url
    return None if is_postgresql(url) else Path(make_url(url).database or "")


def take_image(settings: Settings, image: Path) -> None:
    """Write the database as of one instant to ``image``; writers go on meanwhile.

    :raises SettingsError: if it cannot be read, or its schema is another version's. :raises DatabaseUnavailable: if it does not answer.
    """
    source = database_file(settings)
    if source is None:
        asyncio.run(_export(settings, image))
        return
    if not source.exists():
        raise SettingsError(f"cannot find the database {source}", hint="run `config-server init` first")
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=30)
            ) as reading,
            contextlib.closing(sqlite3.connect(image)) as writing,
        ):
            reading.backup(writing)  # SQLite's backup API, inside of one read transaction
            writing.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise SettingsError(f"cannot copy the database {source}: {error}") from error


async def _export(settings: Settings, image: Path) -> None:
    async with _opened(settings) as source, _opened_image(image) as target:
        await copy_database(source, target, upgrade_source=False)
    try:
        with contextlib.closing(sqlite3.connect(image)) as database:
            database.execute("PRAGMA journal_mode=DELETE")  # one file: nothing is left in a log beside it
    except sqlite3.Error as error:
        raise SettingsError(f"cannot write the copy of the database {image}: {error}") from error


def prove_image(image: Path) -> None:
    """:raises IntegrityError: if it is damaged."""
    try:
        with contextlib.closing(sqlite3.connect(image)) as database:
            [(verdict,)] = database.execute("PRAGMA integrity_check(1)").fetchall()
            orphans = database.execute("PRAGMA foreign_key_check").fetchall()
    except sqlite3.Error as error:
        raise IntegrityError(f"cannot use the backup: its database cannot be read: {error}") from error
    if verdict != "ok" or orphans:
        raise IntegrityError(
            f"cannot use the backup: its database is damaged: {verdict if verdict != 'ok' else 'orphans'}"
        )


def fault_of_keys(image: Path, trust_store: TrustStore, key: KeyEncryptionKey) -> str | None:
    """Why these keys are not those of the database in ``image``, whatever version's; None if they are.

    :raises IntegrityError: if it cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(image)) as database:
            checks = _rows(database, "site_keys", "authority_fingerprint", "key_check")
            digest_keys = [row for row in _rows(database, "disks", "id", "digest_key") if None not in row]
    except sqlite3.Error as error:
        raise IntegrityError(f"cannot use this copy of the database: it cannot be read: {error}") from error
    known_fingerprint, key_check = checks[0] if checks else (None, None)
    return KnownKeys(known_fingerprint, key_check, digest_keys).fault(trust_store, key)


def _rows(database: sqlite3.Connection, table: str, *columns: str) -> list[tuple[str, str]]:
    """None from before the table had these columns."""
    there = {name for (name,) in database.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    if not there.issuperset(columns):
        return []
    return database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()  # noqa: S608 -- names from above


def prepare_image(settings: Settings, image: Path, message: str, clock: Clock) -> None:
    """Bring its schema to this version's, record an event that says ``message``, and see that there is a place for it.

    :raises SettingsError: if it is a newer version's. :raises Conflict: if there is something in the PostgreSQL database.
    """
    asyncio.run(_prepare(settings, image, message, clock))


async def _prepare(settings: Settings, image: Path, message: str, clock: Clock) -> None:
    async with _opened_image(image) as database:
        await database.upgrade()
        async with database.write() as session:
            record_event(session, clock(), COMMAND_LINE, "restored", message)
    if database_file(settings) is None:
        async with _opened(settings) as target:
            try:
                await check_empty(target)
            except Conflict as error:
                raise Conflict(
                    f"cannot restore into the database {target.postgresql}: there is a site in it already",
                    hint="a new, empty database; or --keep-database, if that is the site's, and only the keys were lost",
                ) from error


def put_image(settings: Settings, image: Path) -> None:
    """Make the image the site's database; durable on return. ``image`` is not to be used any more.

    :raises Conflict: if something came into the PostgreSQL database meanwhile; nothing was changed in it.
    """
    target = database_file(settings)
    if target is None:
        asyncio.run(_import(settings, image))
        return
    make_directory_durably(target.parent)
    sync_directory(image.parent)
    image.replace(target)
    sync_directory(target.parent)


async def _import(settings: Settings, image: Path) -> None:
    async with _opened_image(image) as source, _opened(settings) as target:
        await copy_database(source, target)


def check_kept_database(settings: Settings, trust_store: TrustStore, key: KeyEncryptionKey) -> None:
    """Return if these keys are those of the site that is in the PostgreSQL database.

    :raises SettingsError: if they are another's, or the database is SQLite's. :raises NotFound: if there is no site in it.
    """
    asyncio.run(_check_kept(settings, trust_store, key))


async def _check_kept(settings: Settings, trust_store: TrustStore, key: KeyEncryptionKey) -> None:
    if database_file(settings) is not None:
        raise SettingsError(
            "cannot keep the database: it is an SQLite file, in the state directory that is restored",
            hint="leave --keep-database out",
        )
    async with _opened(settings) as database:
        await database.upgrade()
        if not await must_have_keys_already(database):
            raise NotFound(
                f"cannot keep the database {database.postgresql}: there is no site in it",
                hint="leave --keep-database out: the backup has its database",
            )
        await check_site_keys(database, trust_store, key)


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Database]:
    database = settings.open_database()
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def _opened_image(image: Path) -> AsyncIterator[Database]:
    database = Database(sqlite_url(image))
    try:
        yield database
    finally:
        await database.close()
