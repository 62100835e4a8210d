"""List Blobs: a container's blobs by name, in pages, with prefix and delimiter. Reads only; called by ``BlobStore``.

A marker is opaque to clients; here it is ``name NUL snapshot``, the first entry of the next page.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from azure_sink.blob_store.blob_rows import COLUMNS, find_container, record_of
from azure_sink.blob_store.values import LIVE_SNAPSHOT, BlobRecord, Listed

_NUL: Final = "\0"
_ROWS_AT_ONCE: Final = 256
_LAST_CODE_POINT: Final = 0x10FFFF


@dataclass(frozen=True, slots=True)
class ListQuery:
    prefix: str = ""
    delimiter: str = ""
    marker: str = ""
    limit: int = 5000
    include_snapshots: bool = False


def list_page(connection: sqlite3.Connection, container: str, query: ListQuery) -> Listed:
    """One page of a listing: names ascending by code point, a blob's snapshots before itself.

    :raises StorageFault: ContainerNotFound.
    """
    number = find_container(connection, container).number
    name, _, snapshot = query.marker.partition(_NUL)
    position = (max(name, query.prefix), snapshot if name >= query.prefix else "")
    blobs: list[BlobRecord] = []
    prefixes: list[str] = []
    while True:
        rows = _rows_from(connection, number, position, query)
        for row in rows:
            record = record_of(row)
            if not record.name.startswith(query.prefix):
                return Listed(blobs, prefixes, "")
            if len(blobs) + len(prefixes) == query.limit:
                return Listed(blobs, prefixes, _marker_at(record))
            group = _group_of(record.name, query)
            if group is not None:
                prefixes.append(group)
                after = _successor(group)
                if after is None:
                    return Listed(blobs, prefixes, "")
                position = (after, "")
                break
            blobs.append(record)
            position = (record.name, (record.snapshot or LIVE_SNAPSHOT) + _NUL)
        else:
            if len(rows) < _ROWS_AT_ONCE:
                return Listed(blobs, prefixes, "")


def _rows_from(
    connection: sqlite3.Connection, container: int, position: tuple[str, str], query: ListQuery
) -> list[tuple[object, ...]]:
    live_only = "" if query.include_snapshots else f"AND snapshot = '{LIVE_SNAPSHOT}'"
    return connection.execute(
        f"SELECT {COLUMNS} FROM blobs WHERE container = ? AND (name, snapshot) >= (?, ?) {live_only} "  # noqa: S608
        "ORDER BY name, snapshot LIMIT ?",
        (container, *position, _ROWS_AT_ONCE),
    ).fetchall()


def _marker_at(record: BlobRecord) -> str:
    return record.name + _NUL + (record.snapshot or LIVE_SNAPSHOT)


def _group_of(name: str, query: ListQuery) -> str | None:
    """The common prefix that stands for ``name`` in a listing with a delimiter."""
    if not query.delimiter:
        return None
    at = name.find(query.delimiter, len(query.prefix))
    return None if at < 0 else name[: at + len(query.delimiter)]


def _successor(prefix: str) -> str | None:
    """The least name after all that start with ``prefix``; None if there is none."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if 0xD800 <= code <= 0xDFFF:  # UTF-8 has no surrogates
            code = 0xE000
        if code <= _LAST_CODE_POINT:
            return prefix[:at] + chr(code)
    return None
