"""The page table: which pages of a content hold data at which version, and where their bytes are.

Called by ``page_blobs`` and ``copies`` (changes) and by the readers (``pieces``). Rules of the rows: see ``schema``.

A content's live blob writes at version V; a snapshot takes V and moves the live blob to V + 1, so it costs the same whatever the size.
An overwritten row that a holder sees gets ``died`` = V; one that nobody sees is freed at once. A copy shows its parent's version through
``inherited`` ranges, which are cut like rows, so a copy costs the same whatever the size, too.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Final

from azure_sink.blob_store.blob_rows import update
from azure_sink.blob_store.schema import LIVE
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import MAX_PUT_PAGES_BYTES, BlobRecord, StoredRange
from azure_sink.core.page_map import Piece, cut

MAX_ROW_BYTES: Final = MAX_PUT_PAGES_BYTES
"""No row is longer: the rows that overlap a position start less than this before it."""

_CUT_NOW_BYTES: Final = 64 * 2**20
"""A longer range is only marked dead now; its bytes are reclaimed in steps."""


def pieces(
    connection: sqlite3.Connection, content: int, version: int, start: int, end: int, limit: int
) -> tuple[list[Piece], int]:
    """What holds data in [start, end) at ``version``: (pieces, how far they are complete).

    About ``limit`` pieces at most; where the second value is less than ``end``, ask again from there.
    """
    rows = connection.execute(
        "SELECT start, length, arena, arena_offset FROM pages WHERE content = ? AND start > ? AND start < ? "
        "AND start + length > ? AND born <= ? AND died > ? ORDER BY start LIMIT ?",
        (content, start - MAX_ROW_BYTES, end, start, version, version, limit + 1),
    ).fetchall()
    reached = end
    if len(rows) > limit:
        reached = rows.pop()[0]
    found = [Piece(*row).part(start, reached) for row in rows]
    parent = connection.execute(
        "SELECT parent, parent_version FROM contents WHERE number = ? AND parent IS NOT NULL", (content,)
    ).fetchone()
    if parent is None:
        return found, reached
    for range_start, range_end in _inherited(connection, content, version, start, reached):
        if range_start >= reached:
            break
        inner, inner_reached = pieces(connection, parent[0], parent[1], range_start, min(range_end, reached), limit)
        found += inner
        if len(found) > 2 * limit or inner_reached < min(range_end, reached):
            reached = inner_reached
            break
    found.sort(key=lambda piece: piece.start)
    return [piece.part(start, reached) for piece in found if piece.start < reached], reached


def _inherited(
    connection: sqlite3.Connection, content: int, version: int, start: int, end: int
) -> list[tuple[int, int]]:
    """Inherited ranges inside [start, end) at ``version``: the last that begins at or before ``start``, and those after it."""
    first = connection.execute(
        "SELECT start, length FROM inherited WHERE content = ? AND start <= ? AND born <= ? AND died > ? "
        "ORDER BY start DESC LIMIT 1",
        (content, start, version, version),
    ).fetchall()
    rest = connection.execute(
        "SELECT start, length FROM inherited WHERE content = ? AND start > ? AND start < ? AND born <= ? AND died > ? "
        "ORDER BY start",
        (content, start, end, version, version),
    ).fetchall()
    ranges = [(max(row[0], start), min(row[0] + row[1], end)) for row in (*first, *rest)]
    return [(range_start, range_end) for range_start, range_end in ranges if range_start < range_end]


def newest_hold(connection: sqlite3.Connection, content: int) -> int:
    """The newest version that a snapshot or a copy sees; -1 if there is none."""
    row = connection.execute("SELECT max(version) FROM holders WHERE content = ?", (content,)).fetchone()
    return -1 if row[0] is None else int(row[0])


def write(transaction: Transaction, record: BlobRecord, start: int, place: StoredRange) -> BlobRecord:
    """Let the live blob show ``place`` from ``start``; returns the record (a clear of a long range moves its version)."""
    record = clear(transaction, record, start, start + place.length)
    transaction.connection.execute(
        "INSERT INTO pages (content, start, born, died, length, arena, arena_offset) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (record.content, start, record.version, LIVE, place.length, place.arena, place.offset),
    )
    return record


def clear(transaction: Transaction, record: BlobRecord, start: int, end: int) -> BlobRecord:
    """Let the live blob show zeros in [start, end)."""
    _cut_inherited(transaction, record, start, end)
    if end - start <= _CUT_NOW_BYTES:
        _cut_rows(transaction, record, start, end)
        return record
    return _bury_range(transaction, record, start, end)


def _cut_rows(transaction: Transaction, record: BlobRecord, start: int, end: int) -> None:
    connection = transaction.connection
    rows = connection.execute(
        "SELECT start, born, length, arena, arena_offset FROM pages WHERE content = ? AND start > ? AND start < ? "
        "AND start + length > ? AND died = ?",
        (record.content, start - MAX_ROW_BYTES, end, start, LIVE),
    ).fetchall()
    hold = newest_hold(connection, record.content) if rows else -1
    for row_start, born, length, arena, arena_offset in rows:
        left, (cut_start, cut_end) = cut(row_start, row_start + length, start, end)
        is_seen = born <= hold
        if not left and is_seen:
            connection.execute(
                "UPDATE pages SET died = ? WHERE content = ? AND start = ? AND born = ?",
                (record.version, record.content, row_start, born),
            )
            continue
        connection.execute(
            "DELETE FROM pages WHERE content = ? AND start = ? AND born = ?", (record.content, row_start, born)
        )
        kept = [(part, LIVE) for part in left]
        if is_seen:
            kept.append(((cut_start, cut_end), record.version))
        else:
            transaction.free(arena, arena_offset + cut_start - row_start, cut_end - cut_start)
        connection.executemany(
            "INSERT INTO pages (content, start, born, died, length, arena, arena_offset) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (record.content, part[0], born, died, part[1] - part[0], arena, arena_offset + part[0] - row_start)
                for part, died in kept
            ],
        )


def _cut_inherited(transaction: Transaction, record: BlobRecord, start: int, end: int) -> None:
    connection = transaction.connection
    ranges = connection.execute(
        "SELECT start, born, length FROM inherited WHERE content = ? AND died = ? AND start < ? AND start + length > ?",
        (record.content, LIVE, end, start),
    ).fetchall()
    hold = newest_hold(connection, record.content) if ranges else -1
    for row_start, born, length in ranges:
        left, middle = cut(row_start, row_start + length, start, end)
        connection.execute(
            "DELETE FROM inherited WHERE content = ? AND start = ? AND born = ?", (record.content, row_start, born)
        )
        kept = [(part, LIVE) for part in left]
        if born <= hold:
            kept.append((middle, record.version))
        connection.executemany(
            "INSERT INTO inherited (content, start, born, died, length) VALUES (?, ?, ?, ?, ?)",
            [(record.content, part[0], born, died, part[1] - part[0]) for part, died in kept],
        )


def _bury_range(transaction: Transaction, record: BlobRecord, start: int, end: int) -> BlobRecord:
    """Clear a long range: cut its edges, mark the rows between dead at a new version, and have the old one reclaimed."""
    inner_start, inner_end = start + MAX_ROW_BYTES, end - MAX_ROW_BYTES
    _cut_rows(transaction, record, start, inner_start)
    _cut_rows(transaction, record, inner_end, end)
    moved = next_version(transaction, record)
    transaction.connection.execute(
        "UPDATE pages SET died = ? WHERE content = ? AND start >= ? AND start < ? AND died = ?",
        (moved.version, record.content, inner_start, inner_end, LIVE),
    )
    transaction.ask_for_reclaim("version", record.content, record.version)
    return moved


def next_version(transaction: Transaction, record: BlobRecord) -> BlobRecord:
    """Move the live blob to the next version, so that its present one can be held or reclaimed."""
    return update(transaction, replace(record, version=record.version + 1))
