"""What a mutation works with: the writing connection, the time, new ETags, and the list of bytes that it makes unreachable.

Made by the committer for each group, used by every mutation in it, in the committer's thread only. A mutation that is undone leaves
nothing here either. Bytes are freed here by exact ranges; ``punchable_ranges`` finds out which whole 4 KiB blocks that sets free.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from azure_sink.blob_store.arenas import BLOCK_BYTES
from azure_sink.blob_store.freed_space import FreedRange
from azure_sink.blob_store.values import ticks_of


class Transaction:
    """``now`` is the service's clock in seconds since the epoch, the same for the whole group."""

    def __init__(self, connection: sqlite3.Connection, now: float, last_tick: int) -> None:
        self.connection: Final = connection
        self.now: Final = now
        self.last_tick = last_tick
        self.asks_for_reclaim = False
        self._freed: list[tuple[int, int, int]] = []
        self._mark = 0

    @property
    def seconds(self) -> int:
        """``now`` in whole seconds, as Last-Modified has it."""
        return int(self.now)

    def next_tick(self) -> int:
        """A number that was never given out before: for an ETag or a snapshot id."""
        self.last_tick = max(self.last_tick + 1, ticks_of(self.now))
        return self.last_tick

    # -- freed bytes ------------------------------------------------------------------------------------------

    def begin_mutation(self) -> None:
        self._mark = len(self._freed)

    def undo_mutation(self) -> None:
        del self._freed[self._mark :]

    def end_mutation(self) -> None:
        self._mark = len(self._freed)

    def free(self, arena: int, offset: int, length: int) -> None:
        """No row refers to these bytes any more once this mutation is done."""
        self._freed.append((arena, offset, offset + length))

    def ask_for_reclaim(self, kind: str, target: int, version: int = 0) -> None:
        """Have ``reclaim`` free what belongs to ``target`` later, in bounded steps."""
        self.connection.execute(
            "INSERT INTO reclaims (kind, target, version) VALUES (?, ?, ?)", (kind, target, version)
        )
        self.asks_for_reclaim = True

    def touched_arenas(self) -> set[int]:
        return {arena for arena, _start, _end in self._freed}

    def refers_to_arena(self, arena: int) -> bool:
        found = self.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM pages WHERE arena = ?) OR EXISTS (SELECT 1 FROM chunks WHERE arena = ?)",
            (arena, arena),
        ).fetchone()
        return bool(found[0])

    def punchable_ranges(self) -> list[FreedRange]:
        """The whole blocks that the group has set free; call it after the group's last change, inside its transaction.

        Rows of pages may share a block after a partial overwrite: such a block is free when its last row is.
        """
        ranges: list[FreedRange] = []
        for arena, start, end in _joined(self._freed):
            begin = self._outer_start(arena, start)
            finish = self._outer_end(arena, end)
            if begin < finish:
                ranges.append(FreedRange(arena, begin, finish - begin))
        return ranges

    def _outer_start(self, arena: int, start: int) -> int:
        inside = start % BLOCK_BYTES
        if not inside:
            return start
        before = self.connection.execute(
            "SELECT arena_offset + length FROM pages WHERE arena = ? AND arena_offset < ? ORDER BY arena_offset DESC LIMIT 1",
            (arena, start),
        ).fetchone()
        is_shared = before is not None and before[0] > start - inside
        return start - inside + BLOCK_BYTES if is_shared else start - inside

    def _outer_end(self, arena: int, end: int) -> int:
        inside = end % BLOCK_BYTES
        if not inside:
            return end
        after = self.connection.execute(
            "SELECT arena_offset FROM pages WHERE arena = ? AND arena_offset >= ? ORDER BY arena_offset LIMIT 1",
            (arena, end),
        ).fetchone()
        is_shared = after is not None and after[0] < end - inside + BLOCK_BYTES
        return end - inside if is_shared else end - inside + BLOCK_BYTES


def _joined(freed: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    joined: list[tuple[int, int, int]] = []
    for arena, start, end in sorted(freed):
        if joined and joined[-1][0] == arena and joined[-1][2] == start:
            joined[-1] = (arena, joined[-1][1], end)
        else:
            joined.append((arena, start, end))
    return joined
