"""SQLite's connection with one change of threads for each statement. Made by ``database.py``, driven by SQLAlchemy's aiosqlite dialect.

aiosqlite runs a connection in a thread of its own and goes there for each single call: to make a cursor, to execute, to fetch, to close it.
Each way there and back wakes two threads, which costs more than what SQLite does for most statements. Here a statement is executed, its
rows are fetched and its cursor is closed in one go. A transaction's BEGIN goes with its first statement: until then nothing is read and
nothing locked, and one without any statement costs nothing. Rows beyond ``FETCHED_AT_ONCE`` come when they are asked for.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import aiosqlite

FETCHED_AT_ONCE: Final = 512
Rows = list[tuple[Any, ...]]


class BeginFailed(Exception):
    """The transaction has not begun, so the statement was not tried; the cause says why."""


class SqliteConnection(aiosqlite.Connection):
    """One of aiosqlite whose cursors are ``SqliteCursor``. Whoever uses it awaits each call before the next one, as SQLAlchemy does."""

    def __init__(self, file: str | Path, timeout_s: float) -> None:
        super().__init__(lambda: sqlite3.connect(file, timeout=timeout_s), iter_chunk_size=FETCHED_AT_ONCE)
        self._to_begin: str | None = None

    def cursor(self) -> SqliteCursor:  # type: ignore[override]  # without a change of threads: nothing is to be awaited
        return SqliteCursor(self)

    async def commit(self) -> None:
        if self._has_begun():
            await super().commit()

    async def rollback(self) -> None:
        if self._has_begun():
            await super().rollback()

    def _has_begun(self) -> bool:
        """What never began is over with this question."""
        never_begun, self._to_begin = self._to_begin is not None, None
        return not never_begun

    def begin_with_next_statement(self, begin: str) -> None:
        self._to_begin = begin

    async def run(self, act: Callable[[sqlite3.Connection], Any]) -> Any:
        """``act`` in the connection's thread, after the BEGIN that is due. If that fails it stays due: no statement slips out of its
        transaction.
        """
        begin, self._to_begin = self._to_begin, None
        try:
            return await self._execute(_begin_and_act, self._conn, begin, act)  # type: ignore[no-untyped-call]
        except BeginFailed as error:
            self._to_begin = begin
            raise error.__cause__ or error from None


def _begin_and_act(connection: sqlite3.Connection, begin: str | None, act: Callable[[sqlite3.Connection], Any]) -> Any:
    if begin is not None:
        try:
            connection.execute(begin)
        except sqlite3.Error as error:
            raise BeginFailed from error
    return act(connection)


class SqliteCursor:
    """What SQLAlchemy asks of a cursor of asyncio. Holds a cursor of SQLite only while rows are left there."""

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._left: sqlite3.Cursor | None = None
        self._rows: deque[tuple[Any, ...]] = deque()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def execute(self, statement: str, parameters: Iterable[Any] = ()) -> Self:
        return await self._run(lambda cursor: cursor.execute(statement, parameters))  # type: ignore[arg-type]

    async def executemany(self, statement: str, parameters: Iterable[Iterable[Any]]) -> Self:
        return await self._run(lambda cursor: cursor.executemany(statement, parameters))  # type: ignore[arg-type]

    async def _run(self, execute: Callable[[sqlite3.Cursor], object]) -> Self:
        def act(connection: sqlite3.Connection) -> tuple[sqlite3.Cursor, Any, Rows, bool]:
            cursor = connection.cursor()
            execute(cursor)
            description = cursor.description
            rows = [] if description is None else cursor.fetchmany(FETCHED_AT_ONCE)
            is_whole = len(rows) < FETCHED_AT_ONCE
            if is_whole:
                cursor.close()
            return cursor, description, rows, is_whole

        await self.close()
        cursor, self.description, rows, is_whole = await self._connection.run(act)
        self.rowcount, self.lastrowid = cursor.rowcount, cursor.lastrowid
        self._rows, self._left = deque(rows), None if is_whole else cursor
        return self

    async def fetchone(self) -> tuple[Any, ...] | None:
        found = await self.fetchmany(1)
        return found[0] if found else None

    async def fetchmany(self, size: int | None = None) -> Rows:
        wanted = self.arraysize if size is None else size
        if self._left is not None and len(self._rows) < wanted:
            missing = max(wanted - len(self._rows), FETCHED_AT_ONCE)
            await self._fetch(lambda cursor: cursor.fetchmany(missing), missing)
        return [self._rows.popleft() for _ in range(min(wanted, len(self._rows)))]

    async def fetchall(self) -> Rows:
        if self._left is not None:
            await self._fetch(lambda cursor: cursor.fetchall(), None)
        rows = list(self._rows)
        self._rows.clear()
        return rows

    async def _fetch(self, fetch: Callable[[sqlite3.Cursor], Sequence[tuple[Any, ...]]], asked: int | None) -> None:
        left = self._left
        if left is None:
            return

        def act(_connection: sqlite3.Connection) -> tuple[Sequence[tuple[Any, ...]], bool]:
            rows = fetch(left)
            is_whole = asked is None or len(rows) < asked
            if is_whole:
                left.close()
            return rows, is_whole

        rows, is_whole = await self._connection.run(act)
        self._rows.extend(rows)
        if is_whole:
            self._left = None

    async def close(self) -> None:
        left, self._left = self._left, None
        self._rows.clear()
        if left is not None:
            await self._connection.run(lambda _connection: left.close())
