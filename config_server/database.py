"""The database: engine, transactions, schema upgrade. SQLite (WAL, foreign keys, synchronous=FULL), or PostgreSQL for several servers.

Called by ``daemon.py`` and ``cli.py``, which hand it to the services. ``read`` and ``write`` are transactions that commit at the end
of the block and roll back on an exception or on cancellation. They mean the same on both: a reading one sees one state of the database
(on PostgreSQL REPEATABLE READ, READ ONLY); writing ones of the whole site run one after the other, in order. On SQLite a writing one takes
the write lock with its first statement, whatever that is (BEGIN IMMEDIATE, ``sqlite_connection.py``); on PostgreSQL an advisory lock before
it, and under READ COMMITTED, so that all its statements see what the writer before it committed. So no row is ever locked for itself.
Committed means durable (P1).

A database that does not answer is ``DatabaseUnavailable``, to be tried again; what it cannot keep is ``InvalidInput``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiosqlite
import alembic.command
import alembic.config
import alembic.util
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from config_server.postgresql import (
    BROKEN,
    WRITE_LOCK,
    DatabaseDenied,
    DatabaseUnavailable,
    PostgresqlServer,
    PostgresqlSettings,
    is_postgresql,
    meaning_of,
)
from config_server.sqlite_connection import SqliteConnection
from replication.errors import BlockferryError, SettingsError

DATABASE_FILE: Final = "state.sqlite"
BUSY_TIMEOUT_S: Final = 30.0
"""How long one waits for its turn to write, and for a free connection."""

WORKER_STOP_S: Final = 5.0
ROLLBACK_S: Final = 5.0
_WRITING: Final = "blockferry_writing"
_UPGRADE_STEP: Final = "120s"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_PASSING_IN_SQLITE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)


Guard = Callable[[AsyncSession], Awaitable[None]]
"""What a transaction begins with; it raises when the transaction must not take place."""


async def unguarded(_session: AsyncSession) -> None:
    """The guard of what always may take place."""


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


class Database:
    """Owns the engine. ``close`` must be awaited at the end. ``postgresql``: which server it is, unless it is SQLite."""

    def __init__(self, url: str, postgresql: PostgresqlSettings | None = None) -> None:
        self.postgresql: PostgresqlServer | None = None
        self._workers: list[threading.Thread] = []
        self._guard: Guard = unguarded
        self._write_turn = asyncio.Lock()
        if is_postgresql(url):
            self.postgresql = PostgresqlServer.parse(url, postgresql or PostgresqlSettings())
            self._engine = _postgresql_engine(self.postgresql)
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            self._file = make_url(url).database or ":memory:"
            self._engine = create_async_engine(url, async_creator=self._connect_sqlite)
            self._reader = self._engine
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite_connection)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite_transaction)
        self._writer = self._engine.execution_options(**{_WRITING: True})

    def guarded(self, guard: Guard) -> Database:
        """The same database; each writing transaction begins with ``guard``, which raises when it must not take place."""
        view = copy.copy(self)
        view._guard = guard
        return view

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A transaction that sees one state of the database and changes nothing.

        :raises DatabaseUnavailable: if the database does not answer.
        """
        with _translated_errors():
            async with AsyncSession(self._reader, expire_on_commit=False, autoflush=False) as session:
                yield session

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction; durable when the block has been left without an exception.

        :raises DatabaseUnavailable: if the database does not answer; if that was while it committed, it may have committed.
        """
        with _translated_errors():
            async with self._turn(), AsyncSession(self._writer, expire_on_commit=False) as session, session.begin():
                await self._guard(session)
                yield session

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Writers of this process queue here, and not in the database: each would hold a connection meanwhile."""
        try:
            async with asyncio.timeout(BUSY_TIMEOUT_S):
                await self._write_turn.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailable(f"cannot write now: it was nobody's turn for {BUSY_TIMEOUT_S:g} s") from error
        try:
            yield
        finally:
            self._write_turn.release()

    async def upgrade(self) -> None:
        """Bring the schema to this version's; idempotent. Servers that start at the same time do it one after the other.

        :raises SettingsError: if the database cannot be opened, or was written by a newer version.
        :raises DatabaseUnavailable: if it does not answer.
        """
        try:
            with _translated_errors(opening=True):
                async with self._writer.begin() as connection:
                    if self.postgresql is not None:
                        # Between two steps this process may have much to do; a leader's lease is shorter than that.
                        await connection.execute(
                            text(f"SET LOCAL idle_in_transaction_session_timeout = '{_UPGRADE_STEP}'")
                        )
                    await connection.run_sync(_upgrade_schema)
        except alembic.util.CommandError as error:
            raise SettingsError(
                f"cannot use the database: {error}", hint="it was written by a newer version: upgrade this one"
            ) from error
        except DatabaseDenied as error:
            raise SettingsError(error.message, hint=error.hint) from error
        except DBAPIError as error:
            raise SettingsError(f"cannot open the database: {error.orig}") from error

    async def check_schema(self) -> None:
        """Return if the schema is this version's; nothing is changed.

        :raises SettingsError: if it is another version's, or there is none. :raises DatabaseUnavailable: if it does not answer.
        """
        try:
            with _translated_errors(opening=True):
                async with self._reader.connect() as connection:
                    found, expected = await connection.run_sync(_schema_revisions)
        except DatabaseDenied as error:
            raise SettingsError(error.message, hint=error.hint) from error
        except DBAPIError as error:
            raise SettingsError(f"cannot open the database: {error.orig}") from error
        if found is None:
            raise SettingsError(
                "cannot use the database: there is nothing in it", hint="run `config-server init` first"
            )
        if found != expected:
            raise SettingsError(
                f"cannot use the database: its schema is {found}, and this version's is {expected}",
                hint="use the version that runs on it; a server of this version brings it up when it starts",
            )

    async def close(self) -> None:
        """Close every connection; on return none of their threads speaks to the event loop any more."""
        await self._engine.dispose()
        for worker in filter(threading.Thread.is_alive, self._workers):
            await asyncio.to_thread(worker.join, WORKER_STOP_S)

    async def _connect_sqlite(self) -> aiosqlite.Connection:
        """A connection whose thread is known here: a cancelled or failed one is given up by SQLAlchemy without waiting for it."""
        connection = SqliteConnection(self._file, BUSY_TIMEOUT_S)
        worker: threading.Thread = connection._thread
        worker.daemon = True
        self._workers = [*(known for known in self._workers if known.is_alive()), worker]
        return await connection


@contextlib.contextmanager
def _translated_errors(*, opening: bool = False) -> Iterator[None]:
    """``opening``: what SQLite says then is about the file that it was given."""
    try:
        yield
    except NoConnectionLeft as error:
        raise DatabaseUnavailable(
            f"cannot use the database now: no connection was free for {BUSY_TIMEOUT_S:g} s"
        ) from error
    except DBAPIError as error:
        meaning = _meaning_of(error, opening=opening)
        if meaning is None:
            raise
        raise meaning from error
    except TimeoutError as error:
        # Of a statement (asyncpg's command_timeout): nothing else is waited for within a transaction.
        raise DatabaseUnavailable("cannot use the database now: it does not answer") from error


def _meaning_of(error: DBAPIError, *, opening: bool) -> BlockferryError | None:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        if opening or getattr(original, "sqlite_errorcode", 0) & 0xFF not in _PASSING_IN_SQLITE:
            return None
        return DatabaseUnavailable(f"cannot use the database now: {original}", hint="see that its disk is not full")
    cause = None if original is None else original.__cause__
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate is not None and (meaning := meaning_of(sqlstate, str(cause or original))) is not None:
        return meaning
    # A ValueError among them is about a value, not about the connection.
    if error.connection_invalidated or (isinstance(cause, BROKEN) and not isinstance(cause, ValueError)):
        return DatabaseUnavailable("cannot use the database now: the connection to it is cut")
    return None


def _upgrade_schema(connection: Connection) -> None:
    alembic.command.upgrade(migration_config(connection), "head")


def _schema_revisions(connection: Connection) -> tuple[str | None, str | None]:
    """That of the database, and this version's."""
    scripts = ScriptDirectory.from_config(migration_config(connection))
    return MigrationContext.configure(connection).get_current_revision(), scripts.get_current_head()


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
    # Past SQLAlchemy's way for statements: nothing is executed yet, and that way takes as long as a statement.
    raw: Any = connection.connection.driver_connection
    raw.begin_with_next_statement("BEGIN IMMEDIATE" if writing else "BEGIN DEFERRED")


def _postgresql_engine(server: PostgresqlServer) -> AsyncEngine:
    engine = create_async_engine(
        server.engine_url,
        async_creator=server.connect,
        isolation_level="READ COMMITTED",
        pool_size=server.settings.connections,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed_connection)
    event.listen(engine.sync_engine, "begin", _begin_postgresql_transaction)
    event.listen(engine.sync_engine, "before_cursor_execute", _without_nul, retval=True)
    return engine


def _refuse_closed_connection(dbapi_connection: Any, _record: object, _proxy: object) -> None:
    """One that the database has closed meanwhile is replaced; that it has is known without asking."""
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError


def _begin_postgresql_transaction(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITING, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def _without_nul(
    _connection: Connection, _cursor: object, statement: str, parameters: Any, _context: object, _executemany: object
) -> tuple[str, Any]:
    """PostgreSQL's text holds no NUL, SQLite's does: what a peer says with one is kept with a replacement character."""
    return statement, _replaced(parameters)


def _replaced(parameters: Any) -> Any:
    if isinstance(parameters, str):
        return parameters.replace("\0", "\ufffd")
    if isinstance(parameters, tuple | list):
        return type(parameters)(_replaced(parameter) for parameter in parameters)
    if isinstance(parameters, dict):
        return {name: _replaced(value) for name, value in parameters.items()}
    return parameters
