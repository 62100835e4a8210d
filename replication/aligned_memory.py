"""Memory that a disk can be written from past the page cache: whole blocks that begin at a block.

Called by the spool's log, the sealing threads and the segment opener (which make it) and by whoever writes (which asks).
"""

from __future__ import annotations

from typing import Final

import numpy as np

BLOCK_BYTES: Final = 4096
"""What O_DIRECT is given in multiples of: no device in use wants more."""


def aligned_memory(length: int) -> memoryview:
    """``length`` bytes that begin at a block. Not zeroed: only what is filled becomes resident."""
    room = np.empty(length + BLOCK_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % BLOCK_BYTES
    return room[start : start + length].data


def lies_aligned(view: memoryview) -> bool:
    """Whether ``view`` is whole blocks at a multiple of a block in memory: what a direct write takes from every device."""
    address: int = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
    return not (address % BLOCK_BYTES or view.nbytes % BLOCK_BYTES)
