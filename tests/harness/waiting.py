"""Waiting for what another process or the kernel does in its own time. Used by tests that have no event to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_PATIENCE_S = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll ``condition``; blocks.

    :raises AssertionError: if it does not hold within 20 s.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to that"
        time.sleep(0.005)


def has_ended(process_id: int) -> bool:
    """Whether the process is gone or only waits for its parent to take its status."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
