"""Page-aligned buffers for O_DIRECT, pooled: allocated once, so that memory is bounded and no read allocates.

Called by whoever reads a disk: it takes a buffer, reads into its view, hands the view on, and releases the buffer when
the last user is done. Buffers come from anonymous mmap, hence aligned for any device.
"""

from __future__ import annotations

import mmap
import queue
from types import TracebackType
from typing import Self

from replication.errors import InvalidInput, Overloaded


class AlignedBuffer:
    """One buffer of a pool. ``view`` is the whole buffer; slices of it may be used until ``release``."""

    __slots__ = ("_memory", "_pool", "view")

    def __init__(self, size_bytes: int, pool: BufferPool) -> None:
        self._memory = mmap.mmap(-1, size_bytes)
        self._pool = pool
        self.view = memoryview(self._memory)

    def release(self) -> None:
        """Give the buffer back. Once, and only when no slice of ``view`` is used any more."""
        self._pool._give_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class BufferPool:
    """``count`` buffers of ``buffer_bytes`` each, made on first use and kept. Thread-safe."""

    def __init__(self, count: int, buffer_bytes: int) -> None:
        if count < 1 or buffer_bytes < mmap.PAGESIZE or buffer_bytes % mmap.PAGESIZE:
            raise InvalidInput(
                f"cannot pool {count} buffers of {buffer_bytes} bytes", hint=f"a multiple of {mmap.PAGESIZE} bytes"
            )
        self.count = count
        self.buffer_bytes = buffer_bytes
        self._free: queue.SimpleQueue[AlignedBuffer | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def acquire(self, timeout_s: float | None) -> AlignedBuffer:
        """Return a free buffer, waiting at most ``timeout_s`` for one (0: not at all; None: as long as it takes).

        :raises Overloaded: if all are in use until then.
        """
        try:
            buffer = self._free.get(block=timeout_s != 0, timeout=timeout_s)
        except queue.Empty:
            raise Overloaded(f"cannot take a buffer: all {self.count} are in use") from None
        return AlignedBuffer(self.buffer_bytes, self) if buffer is None else buffer

    def _give_back(self, buffer: AlignedBuffer) -> None:
        self._free.put(buffer)
