"""Memory of the test process: what a run of many short-lived daemons has freed goes back to the system.

Called by ``tests/conftest.py`` (once) and by harnesses that start a daemon's parts hundreds of times in one process. A daemon makes its
buffers once, so none of this is the product's. Two things let a run of hundreds of writers grow by gigabytes: everything of a run hangs
together in reference cycles, which the collector visits ever more rarely; and glibc, once a buffer of 8 MiB has been freed, takes the
next ones from its heap, whose pages it keeps between objects that live longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MAPPED_FROM_BYTES: Final = 1024 * 1024
"""Buffers of at least this size are mappings of their own: gone when they are freed."""
RUNS_BETWEEN_COLLECTIONS: Final = 4
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3); setting it also ends its growth with each buffer that is freed."""

_runs = itertools.count(1)


def map_large_buffers() -> None:
    """From now on in this process; does nothing where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)


def begin_run() -> None:
    """Another run's daemons and stores are about to be made: those of the runs before go, every few times."""
    if next(_runs) % RUNS_BETWEEN_COLLECTIONS == 0:
        gc.collect()


def resident_bytes() -> int:
    """What this process holds in memory now, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@contextlib.contextmanager
def bounded_growth(limit_bytes: int) -> Iterator[None]:
    """What is done inside leaves this process at most ``limit_bytes`` larger."""
    before = resident_bytes()
    yield
    grown = resident_bytes() - before
    assert grown <= limit_bytes, f"the test process holds {grown >> 20} MiB more than before"
