"""The database: engine, transactions, schema upgrade. SQLite (WAL, foreign keys, synchronous=FULL) now; PostgreSQL fits behind it.

Called by ``daemon.py`` and ``cli.py``, which hand it to the services. ``read`` and ``write`` are transactions that commit at the end
of the block and roll back on an exception or on cancellation. On SQLite a writing transaction takes the write lock at its start
(BEGIN IMMEDIATE), because one that begins by reading can fail when it later writes, and writers of this process queue for it in order.
Committed means durable (P1). Rows that two servers could change at once are loaded ``with_for_update``, which SQLite ignores.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiosqlite
import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from replication.errors import SettingsError

DATABASE_FILE: Final = "state.sqlite"
BUSY_TIMEOUT_S: Final = 30.0
WORKER_STOP_S: Final = 5.0
_WRITING: Final = "blockferry_writing"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


class Database:
    """Owns the engine. ``close`` must be awaited at the end."""

    def __init__(self, url: str) -> None:
        self._is_sqlite = url.startswith("sqlite")
        self._file = make_url(url).database or ":memory:"
        self._workers: list[threading.Thread] = []
        arguments: dict[str, Any] = (
            {"async_creator": self._connect_sqlite} if self._is_sqlite else {"pool_pre_ping": True}
        )
        self._engine: AsyncEngine = create_async_engine(url, **arguments)
        self._writer = self._engine.execution_options(**{_WRITING: True})
        self._write_turn = asyncio.Lock()
        if self._is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite_connection)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite_transaction)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A transaction that sees one state of the database and changes nothing."""
        async with AsyncSession(self._engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction; durable when the block has been left without an exception."""
        async with contextlib.AsyncExitStack() as stack:
            if self._is_sqlite:
                await stack.enter_async_context(self._write_turn)
            session = await stack.enter_async_context(AsyncSession(self._writer, expire_on_commit=False))
            async with session.begin():
                yield session

    async def upgrade(self) -> None:
        """Bring the schema to this version's; idempotent.

        :raises SettingsError: if the database cannot be opened, or was written by a newer version.
        """
        try:
            async with self._writer.begin() as connection:
                await connection.run_sync(_upgrade_schema)
        except alembic.util.CommandError as error:
            raise SettingsError(
                f"cannot use the database: {error}", hint="it was written by a newer version: upgrade this one"
            ) from error
        except DBAPIError as error:
            raise SettingsError(f"cannot open the database: {error.orig}") from error

    async def close(self) -> None:
        """Close every connection; on return none of their threads speaks to the event loop any more."""
        await self._engine.dispose()
        for worker in filter(threading.Thread.is_alive, self._workers):
            await asyncio.to_thread(worker.join, WORKER_STOP_S)

    async def _connect_sqlite(self) -> aiosqlite.Connection:
        """A connection whose thread is known here: a cancelled or failed one is given up by SQLAlchemy without waiting for it."""
        connection = aiosqlite.connect(self._file, timeout=BUSY_TIMEOUT_S)
        worker: threading.Thread = connection._thread
        worker.daemon = True
        self._workers = [*(known for known in self._workers if known.is_alive()), worker]
        return await connection


def _upgrade_schema(connection: Connection) -> None:
    alembic.command.upgrade(migration_config(connection), "head")


def migration_config(connection: Connection) -> alembic.config.Config:
    """Alembic's configuration for an open connection; there is no alembic.ini, the scripts are part of the package."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _configure_sqlite_connection(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = (
        None  # transactions begin where ``_begin_sqlite_transaction`` says, not where sqlite3 guesses
    )
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite_transaction(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN DEFERRED")
