"""Making a used PostgreSQL database like its template again, which costs a tenth of a new one. Called by ``each_database.py``.

Rows are deleted and the template's put back (COPY), counters set back; whoever is connected still is sent away. A database whose schema a
test has changed, or that was cleaned ``MOST_USES`` times (rows that were deleted stay in its files), is not used again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

from tests.harness.postgresql_cluster import PostgresqlCluster

MOST_USES: Final = 50
_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname"
)
_COUNTERS: Final = (
    "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace ORDER BY relname"
)
_SCHEMA: Final = """
    SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
        SELECT relname || ':' || relkind::text || ':' || relnatts AS line FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT relname || ' ' || tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid WHERE NOT tgisinternal
        UNION ALL SELECT relname || ' ' || attname || ' ' || format_type(atttypid, atttypmod) || attnotnull::text FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    ) AS lines"""
_SEND_AWAY: Final = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid != pg_backend_pid()"""


def _quoted(name: str) -> str:
    return f'"{name}"'


@dataclass(frozen=True, slots=True)
class Content:
    """What a template has in it."""

    tables: tuple[str, ...]
    rows: dict[str, bytes]
    counters: dict[str, tuple[int, bool]]
    schema: str


async def content_of(cluster: PostgresqlCluster, template: str) -> Content:
    connection = await cluster.connect(template)
    try:
        tables = tuple(row[0] for row in await connection.fetch(_TABLES))
        rows = {table: found for table in tables if (found := await _rows(connection, table))}
        counters = {}
        for row in await connection.fetch(_COUNTERS):
            found = await connection.fetchrow(f"SELECT last_value, is_called FROM {_quoted(row[0])}")  # noqa: S608 -- the catalogue's
            counters[row[0]] = tuple(found)
        return Content(tables, rows, counters, await connection.fetchval(_SCHEMA))
    finally:
        await connection.close()


async def _rows(connection: Any, table: str) -> bytes | None:
    if not await connection.fetchval(f"SELECT count(*) FROM {_quoted(table)}"):  # noqa: S608 -- the catalogue's
        return None
    found = io.BytesIO()
    await connection.copy_from_table(table, output=found, format="binary")
    return found.getvalue()


async def clean(cluster: PostgresqlCluster, database: str, content: Content) -> bool:
    """Make it like its template again; False: it cannot be."""
    connection = await cluster.connect(database)
    try:
        await connection.execute(_SEND_AWAY)
        if await connection.fetchval(_SCHEMA) != content.schema:
            return False
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")  # in whatever order
            statements = [f"DELETE FROM {_quoted(table)}" for table in content.tables]  # noqa: S608 -- the catalogue's
            await connection.execute(";".join(statements))
            for table, rows in content.rows.items():
                await connection.copy_to_table(table, source=io.BytesIO(rows), format="binary")
            for counter, (last, called) in content.counters.items():
                await connection.execute("SELECT setval($1::regclass, $2, $3)", _quoted(counter), last, called)
        return True
    finally:
        await connection.close()
