"""Moving a site's state from SQLite to PostgreSQL, once. Called by ``config-server copy-database`` while no configuration server runs.

All or nothing: one transaction. Nothing is changed in the SQLite file but its schema, which is brought to this version's first.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import insert, literal, select, text

from config_server import server_tables  # noqa: F401 -- its tables belong to the metadata
from config_server.database import Database
from config_server.tables import Base
from replication.errors import Conflict

ROWS_AT_A_TIME: Final = 500
_CONTINUE: Final = "SELECT setval(pg_get_serial_sequence('{0}', '{1}'), max({1})) FROM {0} HAVING max({1}) IS NOT NULL"
"""Numbers that the database counts go on where they ended."""


async def copy_database(source: Database, target: Database) -> int:
    """Copy every row; returns how many. Durable on return.

    :raises Conflict: if there is anything in ``target``.
    :raises InvalidInput: if a row does not fit.
    """
    await source.upgrade()
    await target.upgrade()
    copied = 0
    tables = Base.metadata.sorted_tables
    async with source.read() as reading, target.write() as writing:
        for table in tables:
            if await writing.scalar(select(literal(1)).select_from(table).limit(1)) is not None:
                raise Conflict(
                    f"cannot copy the database: there are rows in the table {table.name} of the new one",
                    hint="make a new, empty database; `config-server init` comes after the copy",
                )
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
