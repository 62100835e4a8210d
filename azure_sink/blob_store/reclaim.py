"""Reclaiming: what a deletion left behind is freed in bounded steps, one with each commit, so that no deletion stalls writers.

Called by the committer. Tasks are rows of ``reclaims``, written by the mutation that made them necessary, so a restart goes on with them.
Every step only frees what no reader can reach any more, and may be repeated.

Which rows of a page content may go once version v is no longer held: those that v saw (born <= v < died) and neither the next older
holder p (so born > p) nor the next newer one n (so died <= n). Without a newer holder, the live blob is the newer one; without that, none.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from azure_sink.blob_store import blob_rows
from azure_sink.blob_store.schema import LIVE
from azure_sink.blob_store.transaction import Transaction

ROWS_PER_STEP: Final = 2000
BLOBS_PER_STEP: Final = 100


@dataclass(frozen=True, slots=True)
class _Task:
    number: int
    kind: str
    target: int
    version: int


@dataclass(frozen=True, slots=True)
class _Window:
    """Rows with ``older < born <= newer`` and ``died_after < died <= died_by``."""

    older: int
    newer: int
    died_after: int
    died_by: int


_EVERYTHING: Final = _Window(-1, LIVE, -1, LIVE)


class Reclaimer:
    """Remembers how far the present task's scan is; forgetting it (a restart) costs a repeated scan, nothing else."""

    def __init__(self) -> None:
        self._cursor: tuple[int, tuple[int, int, int]] = (0, (-1, -1, -1))

    def step(self, transaction: Transaction) -> bool:
        """Do one bounded piece of the oldest task; False if there was nothing to do."""
        row = transaction.connection.execute(
            "SELECT number, kind, target, version FROM reclaims ORDER BY number LIMIT 1"
        ).fetchone()
        if row is None:
            return False
        task = _Task(*row)
        match task.kind:
            case "container":
                done = _step_container(transaction, task.target)
            case "parts":
                done = _step_parts(transaction, task.target)
            case _:
                done = self._step_version(transaction, task)
        if done:
            transaction.connection.execute("DELETE FROM reclaims WHERE number = ?", (task.number,))
        return True

    def _step_version(self, transaction: Transaction, task: _Task) -> bool:
        connection = transaction.connection
        content = connection.execute(
            "SELECT has_head, parent, parent_version FROM contents WHERE number = ?", (task.target,)
        ).fetchone()
        if content is None:
            return True
        window = _window(connection, task.target, task.version, has_head=bool(content[0]))
        if window is None:
            return True
        after = self._cursor[1] if self._cursor[0] == task.number else (-1, -1, -1)
        rows = _rows_to_free(connection, task.target, window, after)
        for start, born, _died, length, arena, arena_offset in rows:
            connection.execute(
                "DELETE FROM pages WHERE content = ? AND start = ? AND born = ?", (task.target, start, born)
            )
            transaction.free(arena, arena_offset, length)
        if len(rows) == ROWS_PER_STEP:
            last = rows[-1]
            self._cursor = (task.number, (last[2] if window.died_by < LIVE else 0, last[0], last[1]))
            return False
        connection.execute(
            "DELETE FROM inherited WHERE content = ? AND born > ? AND born <= ? AND died > ? AND died <= ?",
            (task.target, window.older, window.newer, window.died_after, window.died_by),
        )
        if not content[0]:
            _forget_if_empty(transaction, task.target, content[1], content[2])
        return True


def _window(connection: sqlite3.Connection, content: int, version: int, *, has_head: bool) -> _Window | None:
    """Which rows only ``version`` saw; None if something holds that very version still."""
    older, newer, same = connection.execute(
        "SELECT (SELECT max(version) FROM holders WHERE content = :c AND version < :v), "
        "(SELECT min(version) FROM holders WHERE content = :c AND version > :v), "
        "EXISTS (SELECT 1 FROM holders WHERE content = :c AND version = :v)",
        {"c": content, "v": version},
    ).fetchone()
    if same:
        return None
    if older is None and newer is None and not has_head:
        return _EVERYTHING
    died_by = newer if newer is not None else LIVE - 1 if has_head else LIVE
    return _Window(-1 if older is None else older, version, version, died_by)


def _rows_to_free(
    connection: sqlite3.Connection, content: int, window: _Window, after: tuple[int, int, int]
) -> list[tuple[int, int, int, int, int, int]]:
    columns = "start, born, died, length, arena, arena_offset"
    bounds = (content, window.older, window.newer, window.died_after)
    if window.died_by < LIVE:
        return connection.execute(
            f"SELECT {columns} FROM pages WHERE content = ? AND born > ? AND born <= ? AND died > ? AND died <= ? "  # noqa: S608
            f"AND died < {LIVE} AND (died, start, born) > (?, ?, ?) ORDER BY died, start, born LIMIT ?",
            (*bounds, window.died_by, *after, ROWS_PER_STEP),
        ).fetchall()
    return connection.execute(
        f"SELECT {columns} FROM pages WHERE content = ? AND born > ? AND born <= ? AND died > ? "  # noqa: S608 - a constant
        "AND (start, born) > (?, ?) ORDER BY start, born LIMIT ?",
        (*bounds, *after[1:], ROWS_PER_STEP),
    ).fetchall()


def _forget_if_empty(transaction: Transaction, content: int, parent: int | None, parent_version: int | None) -> None:
    """A content without live blob, holders and rows is forgotten, and lets go of its parent."""
    connection = transaction.connection
    is_needed = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM holders WHERE content = :c) OR EXISTS (SELECT 1 FROM pages WHERE content = :c)",
        {"c": content},
    ).fetchone()[0]
    if is_needed:
        return
    connection.execute("DELETE FROM inherited WHERE content = ?", (content,))
    connection.execute("DELETE FROM contents WHERE number = ?", (content,))
    if parent is not None and parent_version is not None:
        connection.execute(
            "DELETE FROM holders WHERE content = ? AND version = ? AND kind = 'child' AND number = ?",
            (parent, parent_version, content),
        )
        transaction.ask_for_reclaim("version", parent, parent_version)


def _step_container(transaction: Transaction, container: int) -> bool:
    connection = transaction.connection
    rows = connection.execute(
        f"SELECT {blob_rows.COLUMNS} FROM blobs WHERE container = ? LIMIT ?",  # noqa: S608 - a constant
        (container, BLOBS_PER_STEP),
    ).fetchall()
    for row in rows:
        record = blob_rows.record_of(row)
        blob_rows.delete(transaction, record)
        blob_rows.dismiss_content(transaction, record)
    if rows:
        return False
    waiting = connection.execute("SELECT name FROM uncommitted WHERE container = ? LIMIT 1", (container,)).fetchone()
    if waiting is not None:
        blob_rows.drop_uncommitted(transaction, container, waiting[0])
        return False
    connection.execute("DELETE FROM containers WHERE number = ?", (container,))
    return True


def _step_parts(transaction: Transaction, content: int) -> bool:
    connection = transaction.connection
    rows = connection.execute(
        "SELECT start, chunk FROM parts WHERE content = ? LIMIT ?", (content, ROWS_PER_STEP)
    ).fetchall()
    connection.executemany(
        "DELETE FROM parts WHERE content = ? AND start = ?", [(content, start) for start, _chunk in rows]
    )
    blob_rows.release_chunks(transaction, [chunk for _start, chunk in rows])
    if len(rows) == ROWS_PER_STEP:
        return False
    connection.execute("DELETE FROM contents WHERE number = ?", (content,))
    return True
