"""What a crash leaves in the arenas: ranges that were written or freed, and that the catalog does not refer to. Found once, at start.

Called by ``BlobStore`` in a reader's thread while requests are served already: only arenas of earlier runs are looked at, and those are
never written again, so what is unreferenced there stays so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from azure_sink.blob_store.arenas import BLOCK_BYTES, ArenaSet, blocks_of
from azure_sink.blob_store.freed_space import FreedRange
from replication.errors import Permanent


def check_arenas_present(connection: sqlite3.Connection, arenas: ArenaSet) -> None:
    """:raises Permanent: the catalog refers to an arena that is missing or too short: the state directory is damaged."""
    present = set(arenas.found)
    for table in ("pages", "chunks"):
        number = -1
        while True:
            row = connection.execute(
                f"SELECT arena FROM {table} WHERE arena > ? ORDER BY arena LIMIT 1",  # noqa: S608 - two constants
                (number,),
            ).fetchone()
            if row is None:
                break
            number = row[0]
            end = connection.execute(
                f"SELECT arena_offset + length FROM {table} WHERE arena = ? ORDER BY arena_offset DESC LIMIT 1",  # noqa: S608
                (number,),
            ).fetchone()[0]
            if number not in present or arenas.size(number) < end:
                raise Permanent(
                    f"cannot use the blob store: arena {arenas.path(number)} is missing or shorter than {end} bytes",
                    hint="restore the state directory from a copy that was made while the service was stopped",
                )


def leftovers(connection: sqlite3.Connection, arenas: ArenaSet) -> Iterator[list[FreedRange]]:
    """For each arena of earlier runs: the whole blocks that nothing refers to, or the arena itself."""
    for number in arenas.found:
        rows = connection.execute(
            "SELECT arena_offset, length FROM pages WHERE arena = :a "
            "UNION ALL SELECT arena_offset, length FROM chunks WHERE arena = :a ORDER BY 1",
            {"a": number},
        )
        free: list[FreedRange] = []
        position = 0
        is_used = False
        for offset, length in rows:
            is_used = True
            begin = offset - offset % BLOCK_BYTES
            if begin > position:
                free.append(FreedRange(number, position, begin - position))
            position = max(position, blocks_of(offset + length))
        if not is_used:
            yield [FreedRange(number, 0, 0)]
            continue
        end = blocks_of(arenas.size(number))
        if end > position:
            free.append(FreedRange(number, position, end - position))
        yield free
