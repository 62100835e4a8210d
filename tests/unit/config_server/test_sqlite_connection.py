"""One change of threads for a statement; transactions that begin with their first one, and never without it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from config_server.database import Database, sqlite_url
from config_server.sqlite_connection import FETCHED_AT_ONCE, SqliteConnection

MANY = FETCHED_AT_ONCE * 2 + 3


class Counting(SqliteConnection):
    """Counts how often its thread is asked."""

    def __init__(self, file: Path, timeout_s: float) -> None:
        super().__init__(file, timeout_s)
        self.asked = 0

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def connected(file: Path, timeout_s: float = 5.0) -> AsyncIterator[Counting]:
    connection = Counting(file, timeout_s)
    await connection
    try:
        await connection.run(lambda sqlite: setattr(sqlite, "isolation_level", None))
        connection.asked = 0
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "test.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
        made.executemany("INSERT INTO numbers VALUES (?)", [(number,) for number in range(MANY)])
        made.commit()
    return path


def count(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as looking:
        return int(looking.execute("SELECT count(*) FROM numbers").fetchone()[0])


async def test_transaction_of_one_statement_asks_the_thread_twice(file: Path) -> None:
    async with connected(file) as connection:
        connection.begin_with_next_statement("BEGIN DEFERRED")
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT n FROM numbers WHERE n < ?", (3,))
            assert await cursor.fetchall() == [(0,), (1,), (2,)]
        await connection.rollback()
        assert connection.asked == 2


async def test_transaction_without_a_statement_asks_nothing(file: Path) -> None:
    async with connected(file) as connection:
        connection.begin_with_next_statement("BEGIN IMMEDIATE")
        await connection.commit()
        connection.begin_with_next_statement("BEGIN DEFERRED")
        await connection.rollback()
        assert connection.asked == 0


async def test_rows_beyond_the_first_ones_come_when_they_are_asked_for(file: Path) -> None:
    async with connected(file) as connection:
        cursor = await connection.cursor().execute("SELECT n FROM numbers ORDER BY n")
        assert await cursor.fetchall() == [(number,) for number in range(MANY)]
        cursor = await connection.cursor().execute("SELECT n FROM numbers ORDER BY n")
        assert await cursor.fetchone() == (0,)
        read = 1
        while some := await cursor.fetchmany(100):
            assert some == [(number,) for number in range(read, min(read + 100, MANY))]
            read += len(some)
        assert read == MANY
        cursor = await connection.cursor().execute("SELECT n FROM numbers")
        await cursor.close()  # with rows left
        assert await cursor.fetchall() == []


async def test_write_lock_is_taken_with_the_first_statement_and_held_until_the_end(file: Path) -> None:
    async with connected(file) as one, connected(file, 0.0) as other:
        one.begin_with_next_statement("BEGIN IMMEDIATE")
        other.begin_with_next_statement("BEGIN IMMEDIATE")
        await one.cursor().execute("SELECT n FROM numbers WHERE n = 1")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await other.cursor().execute("SELECT n FROM numbers WHERE n = 1")
        await one.commit()
        await other.cursor().execute("DELETE FROM numbers")
        await other.rollback()
    assert count(file) == MANY


async def test_statement_after_a_begin_that_failed_does_not_slip_out_of_its_transaction(file: Path) -> None:
    async with connected(file) as one, connected(file, 0.0) as other:
        one.begin_with_next_statement("BEGIN IMMEDIATE")
        await one.cursor().execute("DELETE FROM numbers WHERE n = 1")
        other.begin_with_next_statement("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await other.cursor().execute("DELETE FROM numbers")
        await one.rollback()
        await other.cursor().execute("DELETE FROM numbers")  # the lock is free now: it begins with this one
        await other.rollback()
    assert count(file) == MANY


async def test_statement_that_fails_leaves_its_transaction_to_be_rolled_back(file: Path) -> None:
    async with connected(file) as connection:
        connection.begin_with_next_statement("BEGIN IMMEDIATE")
        await connection.cursor().execute("DELETE FROM numbers")
        with pytest.raises(sqlite3.IntegrityError):
            await connection.cursor().executemany("INSERT INTO numbers VALUES (?)", [(1,), (1,)])
        await connection.rollback()
    assert count(file) == MANY


async def test_rollback_after_a_cancelled_statement_comes_after_it(file: Path) -> None:
    """The statement waits for the lock while its task is cancelled: what it begins then is rolled back all the same."""
    async with connected(file) as one, connected(file, 30.0) as other:
        one.begin_with_next_statement("BEGIN IMMEDIATE")
        await one.cursor().execute("DELETE FROM numbers WHERE n = 1")
        other.begin_with_next_statement("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(other.cursor().execute("DELETE FROM numbers"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await one.commit()
        await other.rollback()
        assert not other.in_transaction
    assert count(file) == MANY - 1


async def test_large_results_stream_through_the_engine(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "test.sqlite"))
    try:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE numbers (n INTEGER)"))
            await session.execute(text("INSERT INTO numbers VALUES (:n)"), [{"n": n} for n in range(MANY)])
        async with database.read() as session:
            rows = await session.stream(text("SELECT n FROM numbers ORDER BY n"))
            assert [row.n async for row in rows] == list(range(MANY))
            assert len((await session.execute(text("SELECT n FROM numbers"))).all()) == MANY
    finally:
        await database.close()
