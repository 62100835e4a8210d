"""Memory that large bodies are received into: pairs of buffers, of which one fills while the other is written.

Called by the HTTP handlers. A few pairs are large and kept for the next body: each piece costs a change of threads and back, so a
quarter of the pieces is a quarter of that. Beyond them a body gets a small pair of its own, so that memory stays bounded with as many
bodies as there may be at once. Buffers lie aligned, so that bodies can be written past the page cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from azure_sink.blob_store.body_writer import BATCH_BYTES
from replication.aligned_memory import aligned_memory

LARGE_BYTES: Final = 4 * BATCH_BYTES
MOST_LARGE_PAIRS: Final = 6

Pair = tuple[memoryview, memoryview]


def _made(length: int) -> Pair:
    return aligned_memory(length), aligned_memory(length)


class BodyBuffers:
    """Used on one event loop."""

    def __init__(self) -> None:
        self._kept: list[Pair] = []
        self._large_pairs = 0

    @contextlib.contextmanager
    def pair(self) -> Iterator[Pair]:
        """Two buffers of one length, at least ``BATCH_BYTES``; the caller's inside the context.

        A write that was abandoned may still read them afterwards: nobody will ever see what it writes.
        """
        if not self._kept and self._large_pairs >= MOST_LARGE_PAIRS:
            yield _made(BATCH_BYTES)
            return
        if self._kept:
            pair = self._kept.pop()
        else:
            pair = _made(LARGE_BYTES)
            self._large_pairs += 1
        try:
            yield pair
        finally:
            self._kept.append(pair)
