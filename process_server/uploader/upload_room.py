"""Room for segments on their way to the store: how many at once, and the memory they are read back into.

Built by ``daemon``; the uploader leases from it, ``upload_limits.py`` asks how many threads are sure. It follows the threads per machine
while the process server runs, unless the configuration fixes it: a machine that is alone has all its threads, all machines together have no
more than that (or ``DEFAULT_CONNECTIONS``). Memory for more threads is taken when they are first used, and given back when fewer are set.
"""

from __future__ import annotations

from typing import Final

from process_server.buffer_arena import BufferArena, Lease
from process_server.spool.kept_segments import MAX_SEGMENT_RECORD_BYTES
from replication.blob_client.settings import DEFAULT_CONNECTIONS
from replication.upload_limits import MAX_THREADS_PER_MACHINE, MIN_THREADS_PER_MACHINE

DEFAULT_BUFFER_BYTES: Final = 36 * 2**20
"""Four of the largest segments: a machine has its default threads also where nothing compresses."""


def most_connections(fixed: int | None) -> int:
    """So many connections the client of the store must allow, whatever number of threads is set later."""
    return fixed or max(DEFAULT_CONNECTIONS, MAX_THREADS_PER_MACHINE)


class UploadRoom:
    """``connections``, ``buffer_bytes``: fixed by the configuration; None: as many as the threads per machine ask for.

    Invariant: at most two arenas exist, the one leased from and one whose last leases are ending; so resident memory is bounded by the
    largest two that were asked for, and by one as soon as what was under way at a change has ended.
    """

    def __init__(self, connections: int | None = None, buffer_bytes: int | None = None) -> None:
        self._connections = connections
        self._buffer_bytes = buffer_bytes
        self._size_bytes = self.buffer_bytes(MIN_THREADS_PER_MACHINE)
        self._arena = self._new_arena()
        self._leaving: BufferArena | None = None

    def connections(self, threads: int) -> int:
        """So many segments of all machines together may be on their way at a time."""
        return self._connections or max(DEFAULT_CONNECTIONS, threads)

    def buffer_bytes(self, threads: int) -> int:
        """The memory for what is read back from the spool."""
        return self._buffer_bytes or max(DEFAULT_BUFFER_BYTES, threads * MAX_SEGMENT_RECORD_BYTES)

    def surely_at_once(self, threads: int) -> int:
        """So many can be on their way at a time even if none compresses: each takes a connection, and room to be read back into."""
        return min(self.connections(threads), self.buffer_bytes(threads) // MAX_SEGMENT_RECORD_BYTES)

    def try_lease(self, length: int) -> Lease | None:
        """Room for a record of ``length`` bytes; None if there is none now."""
        return self._arena.try_lease(length)

    def follow(self, threads: int) -> None:
        """Have as much memory as ``threads`` ask for. What is under way ends where it is; until then no third size begins."""
        if self._leaving is not None and not self._leaving.leased_bytes:
            self._leaving = None  # with its memory
        if self._leaving is None and self._size_bytes != self.buffer_bytes(threads):
            self._size_bytes = self.buffer_bytes(threads)
            leaving, self._arena = self._arena, self._new_arena()
            self._leaving = leaving if leaving.leased_bytes else None

    def _new_arena(self) -> BufferArena:
        return BufferArena(self._size_bytes, most_leases=most_connections(self._connections))
