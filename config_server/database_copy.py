"""Every row of one database into another, empty one: SQLite's or PostgreSQL's, in either direction.

Called by ``config-server copy-database`` (a site moves to PostgreSQL, once, while no configuration server runs) and by
``database_image.py`` (a backup of a PostgreSQL database, and its restoration). All or nothing: one transaction of each, and that of
``source`` sees one state. Nothing is changed in the source but its schema, where the caller says so.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import insert, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.database import Database
from config_server.schema import METADATA
from config_server.server_tables import ConfigServerRow
from replication.errors import Conflict

ROWS_AT_A_TIME: Final = 500
_CONTINUE: Final = "SELECT setval(pg_get_serial_sequence('{0}', '{1}'), max({1})) FROM {0} HAVING max({1}) IS NOT NULL"
"""Numbers that the database counts go on where they ended."""


async def copy_database(source: Database, target: Database, *, upgrade_source: bool = True) -> int:
    """Copy every row; returns how many. Durable on return.

    Which configuration servers there are is not copied: each says so itself. ``upgrade_source``: False where it is in use.

    :raises Conflict: if there is anything in ``target``.
    :raises InvalidInput: if a row does not fit.
    :raises SettingsError: if the schema of a source that is not to be upgraded is not this version's.
    """
    if upgrade_source:
        await source.upgrade()
    else:
        await source.check_schema()
    await target.upgrade()
    copied = 0
    tables = [table for table in METADATA.sorted_tables if table.name != ConfigServerRow.__tablename__]
    async with source.read() as reading, target.write() as writing:
        await _must_be_empty(writing)
        for table in tables:
            rows = await reading.stream(select(table))
            async for some in rows.mappings().partitions(ROWS_AT_A_TIME):
                await writing.execute(insert(table), [dict(row) for row in some])
                copied += len(some)
        if target.postgresql is not None:
            for table in tables:
                counted = table.autoincrement_column
                if counted is not None:
                    await writing.execute(text(_CONTINUE.format(table.name, counted.name)))
    return copied


async def check_empty(database: Database) -> None:
    """:raises Conflict: if there is anything in it. :raises DatabaseUnavailable: if it does not answer."""
    await database.upgrade()
    async with database.read() as session:
        await _must_be_empty(session)


async def _must_be_empty(session: AsyncSession) -> None:
    for table in METADATA.sorted_tables:
        if await session.scalar(select(literal(1)).select_from(table).limit(1)) is not None:
            raise Conflict(
                f"cannot copy the database: there are rows in the table {table.name} of the new one",
                hint="make a new, empty database; `config-server init` comes after the copy",
            )
