"""Memory that is resident and locked before a freeze: while frozen, no page has to be found for it (rule R9).

Called by the agent's point epochs for the buffers of the last round. Page-aligned, so O_DIRECT reads go straight into it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from types import TracebackType
from typing import Self

from replication.errors import InvalidInput, Refused

_libc = ctypes.CDLL(None, use_errno=True)


class LockedBuffer:
    """``view`` is the memory, zeroed, resident and locked until ``close``."""

    def __init__(self, size_bytes: int) -> None:
        """:raises Refused: if the limit of locked memory (RLIMIT_MEMLOCK) is too low."""
        if size_bytes < mmap.PAGESIZE or size_bytes % mmap.PAGESIZE:
            raise InvalidInput(f"cannot lock {size_bytes} bytes", hint=f"a multiple of {mmap.PAGESIZE}")
        self._memory = mmap.mmap(-1, size_bytes)
        self.view = memoryview(self._memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)):
            code = ctypes.get_errno()
            self.close()
            raise Refused(
                f"cannot lock {size_bytes} bytes of memory: {os.strerror(code)}",
                hint="run the agent as root, or raise LimitMEMLOCK in its unit",
            )

    def close(self) -> None:
        """Unlock and give back; no slice of ``view`` may be in use. Idempotent."""
        self.view.release()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
