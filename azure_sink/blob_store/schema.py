"""The catalog's tables and how its connections are opened. SQLite in WAL mode, synchronous=FULL: a commit is durable when it returns.

Called by the committer (the one writer) and by the readers. Times are seconds, ETags 100 ns ticks; no foreign keys are enforced by
SQLite: each module names the invariant it keeps.

``pages`` and ``inherited`` are multi-version: a row is visible to version v of its content if ``born <= v < died``. For one version the
rows are disjoint. A row of ``pages`` owns its bytes alone. ``inherited`` ranges show the parent content at the parent version.
``holders`` are the versions that something besides the live blob sees: snapshots and contents copied from here.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from replication.durable_file import sync_directory
from replication.errors import Permanent
from replication.failpoint import reached

CATALOG_NAME: Final = "catalog.sqlite3"
LOG_NAME: Final = CATALOG_NAME + "-wal"
SCHEMA_VERSION: Final = 2
LIVE: Final = 2**62
"""``died`` of a row that nothing has overwritten."""

_WRITER_CACHE_KIB: Final = 16 * 1024
_READER_CACHE_KIB: Final = 4 * 1024
_COPY_BYTES: Final = 2**20
_WAL_LIMIT_BYTES: Final = 64 * 2**20
_BUSY_TIMEOUT_S: Final = 30.0

_TABLES: Final = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE containers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT UNIQUE,                       -- NULL: deleted, being reclaimed
    etag INTEGER NOT NULL,
    modified_at INTEGER NOT NULL,
    metadata TEXT NOT NULL
);
CREATE TABLE blobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    container INTEGER NOT NULL,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,                 -- '~': the live blob
    blob_type TEXT NOT NULL,
    content INTEGER NOT NULL,
    version INTEGER NOT NULL,
    length INTEGER NOT NULL,
    etag INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    modified_at INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    content_type TEXT NOT NULL,
    content_encoding TEXT NOT NULL,
    content_language TEXT NOT NULL,
    content_disposition TEXT NOT NULL,
    cache_control TEXT NOT NULL,
    md5 BLOB,
    sequence_number INTEGER NOT NULL,
    lease_id TEXT,
    lease_duration_s INTEGER,
    lease_expires_at REAL,
    lease_breaks_at REAL,
    copy_id TEXT,
    copy_source TEXT,
    copy_total_bytes INTEGER,
    copy_completed_at INTEGER,
    UNIQUE (container, name, snapshot)
);
CREATE TABLE contents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    has_head INTEGER NOT NULL,              -- 1 while a live page blob writes it
    references_ INTEGER NOT NULL,           -- block blobs: blobs and snapshots that show it
    parent INTEGER,
    parent_version INTEGER,
    lineage INTEGER NOT NULL                -- length of the chain of parents
);
CREATE TABLE holders (
    content INTEGER NOT NULL,
    version INTEGER NOT NULL,
    kind TEXT NOT NULL,                     -- 'snapshot' (number of a blob) or 'child' (number of a content)
    number INTEGER NOT NULL,
    PRIMARY KEY (content, version, kind, number)
) WITHOUT ROWID;
CREATE TABLE pages (
    content INTEGER NOT NULL,
    start INTEGER NOT NULL,
    born INTEGER NOT NULL,
    died INTEGER NOT NULL,
    length INTEGER NOT NULL,
    arena INTEGER NOT NULL,
    arena_offset INTEGER NOT NULL,
    PRIMARY KEY (content, start, born)
) WITHOUT ROWID;
CREATE INDEX pages_by_place ON pages (arena, arena_offset, length);
CREATE INDEX pages_dead ON pages (content, died) WHERE died < {LIVE};
CREATE TABLE inherited (
    content INTEGER NOT NULL,
    start INTEGER NOT NULL,
    born INTEGER NOT NULL,
    died INTEGER NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (content, start, born)
) WITHOUT ROWID;
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY,
    arena INTEGER NOT NULL,
    arena_offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    references_ INTEGER NOT NULL            -- rows of parts and uncommitted that show it
);
CREATE INDEX chunks_by_place ON chunks (arena, arena_offset, length);
CREATE TABLE parts (
    content INTEGER NOT NULL,
    start INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    length INTEGER NOT NULL,
    block_id TEXT NOT NULL,                 -- '': written whole by Put Blob
    PRIMARY KEY (content, start)
) WITHOUT ROWID;
CREATE TABLE uncommitted (
    container INTEGER NOT NULL,
    name TEXT NOT NULL,
    block_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    length INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    PRIMARY KEY (container, name, block_id)
) WITHOUT ROWID;
CREATE INDEX uncommitted_by_age ON uncommitted (written_at);
CREATE TABLE reclaims (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,                     -- 'container', 'version' (of a page content) or 'parts' (of a block content)
    target INTEGER NOT NULL,
    version INTEGER NOT NULL
);
INSERT INTO meta VALUES ('last_tick', 0);
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608 - constants

_FROM_VERSION_1: Final = """
ALTER TABLE segments RENAME TO parts;
UPDATE reclaims SET kind = 'parts' WHERE kind = 'segments';
PRAGMA user_version = 2;
"""
"""A segment is a sealed batch; what a block blob consists of has a name of its own."""


def open_for_writing(directory: Path) -> sqlite3.Connection:
    """Open the catalog for the one writer, making its tables if the file is new, or bringing them up to date. The caller's thread may be
    another.

    :raises Permanent: the catalog was written by a newer version of this program, or its log cannot be made durable.
    """
    _write_log_again(directory / LOG_NAME)
    connection = sqlite3.connect(
        directory / CATALOG_NAME, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S
    )
    try:
        _prepare(connection, directory / CATALOG_NAME)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # it keeps silent when a sync fails: ``fold_log`` does not
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
        reached("sink.store.catalog-made")
    elif found == 1:
        connection.executescript(f"BEGIN IMMEDIATE; {_FROM_VERSION_1} COMMIT;")
    elif found != SCHEMA_VERSION:
        raise Permanent(f"cannot use the catalog {path}: it has version {found}, this program {SCHEMA_VERSION}")
    sync_directory(path.parent)


def _write_log_again(log: Path) -> None:
    """Make durable what the log shows, before anything is believed of it; done before the catalog is opened.

    The last run may have failed to sync the log's end. The page cache shows it all the same, as if it were written, and no later sync
    writes it: commits behind it would be acknowledged, and lost with it when the power fails. Written again, it is synced again.
    """
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        position = 0
        while piece := os.pread(descriptor, _COPY_BYTES, position):
            position += os.pwrite(descriptor, piece, position)
        os.fsync(descriptor)
    except OSError as error:
        raise Permanent(
            f"cannot use the catalog's log {log}: {error.strerror}", hint="check the device and the kernel's log"
        ) from error
    finally:
        os.close(descriptor)


def fold_log(connection: sqlite3.Connection) -> None:
    """Write the log's pages to the catalog, as far as readers permit, and sync it once it is whole (a checkpoint).

    :raises sqlite3.Error: the catalog cannot be written or synced. The log still holds everything.
    """
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def close_unfolded(connection: sqlite3.Connection, directory: Path) -> None:
    """Close the writing connection of a store that has failed, and leave its log to the next start.

    The last connection that closes folds the log and deletes it, also after a sync that lost what the fold does not write again. One that
    only reads cannot do that; so one is there until the writing one has gone.
    """
    reading = open_for_reading(directory)
    try:
        reading.execute("SELECT count(*) FROM meta").fetchone()  # from here on it holds its lock
        connection.close()
    finally:
        reading.close()


def open_for_reading(directory: Path) -> sqlite3.Connection:
    """Open a connection that sees the last committed state and can change nothing; for use by one thread at a time."""
    connection = sqlite3.connect(
        f"file:{directory / CATALOG_NAME}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_TIMEOUT_S,
    )
    connection.execute("PRAGMA query_only = 1")
    connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    return connection
