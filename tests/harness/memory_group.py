"""A control group of the test's own with a limit of memory, in either version of control groups; removed when its context is left.

Called by end-to-end tests (``requires("memory-group")``). Beyond the limit the kernel kills a process of the group, as with ``MemoryMax=``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")


def _parent() -> tuple[Path, str, str] | None:
    """Where a group can be made, and the names of its limits of memory and of memory with swap."""
    first = _ROOT / "memory"
    if (first / "memory.limit_in_bytes").exists() and os.access(first, os.W_OK):
        return first, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    enabled = _ROOT / "cgroup.subtree_control"
    if enabled.exists() and "memory" in enabled.read_text().split() and os.access(_ROOT, os.W_OK):
        return _ROOT, "memory.max", "memory.swap.max"
    return None


def lacking_memory_group() -> str | None:
    return None if _parent() else "needs a hierarchy of control groups with memory, and leave to make one in it"


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Its ``cgroup.procs``: processes that are written there are in the group."""
    found = _parent()
    assert found is not None
    parent, limit, with_swap = found
    group = parent / f"blockferry-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(limit_bytes))
        if (group / with_swap).exists():
            (group / with_swap).write_text("0" if with_swap == "memory.swap.max" else str(limit_bytes))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()
