"""Freed space: ranges that a commit made unreachable are punched once no reader can still be looking at them.

Called by the committer (``release``), by readers (``pin``) and by the store (``close``). Punching runs in one thread of its own.

Invariant: a range freed by commit number F is punched only when every reader that pinned a state before F has let go. A reader pins the
number of the last finished commit *before* it looks into the catalog, so it can only see ranges freed later than its pin.
Nothing here is durable: what a crash leaves unpunched is found at the next start (``recovery``).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from azure_sink.blob_store.arenas import ArenaSet

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FreedRange:
    """Whole blocks of an arena that nothing refers to; ``length`` 0: the arena itself is not needed any more."""

    arena: int
    offset: int
    length: int


class FreedSpace:
    """The queue between commits and hole punching."""

    def __init__(self, arenas: ArenaSet) -> None:
        self._arenas = arenas
        self._lock = threading.Lock()
        self._pins: collections.Counter[int] = collections.Counter()
        self._finished_commit = 0
        self._waiting: collections.deque[tuple[int, Sequence[FreedRange]]] = collections.deque()
        self._is_closed = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="blob-punch")

    @contextlib.contextmanager
    def pin(self) -> Iterator[None]:
        """Inside the context no range that the catalog showed is punched. Enter it before reading the catalog."""
        with self._lock:
            pinned = self._finished_commit
            self._pins[pinned] += 1
        try:
            yield
        finally:
            with self._lock:
                self._pins[pinned] -= 1
                if not self._pins[pinned]:
                    del self._pins[pinned]
            self._hand_over()

    @property
    def finished_commit(self) -> int:
        """Number of the last commit that was told to ``release``."""
        return self._finished_commit

    def release(self, commit: int, freed: Sequence[FreedRange]) -> None:
        """Commit number ``commit`` is durable and made ``freed`` unreachable. Called after each commit, in order."""
        with self._lock:
            self._finished_commit = commit
            if freed:
                self._waiting.append((commit, freed))
        self._hand_over()

    def release_found(self, freed: Sequence[FreedRange]) -> None:
        """Ranges that the catalog as it is now does not refer to (found at start)."""
        with self._lock:
            self._waiting.append((self._finished_commit, freed))
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            oldest = min(self._pins, default=None)
            while self._waiting and not self._is_closed and (oldest is None or self._waiting[0][0] <= oldest):
                _, freed = self._waiting.popleft()
                self._executor.submit(self._give_back, freed).add_done_callback(_report)

    def _give_back(self, freed: Sequence[FreedRange]) -> None:
        for item in freed:
            if item.length:
                self._arenas.punch(item.arena, item.offset, item.length)
            else:
                self._arenas.remove(item.arena)

    def settle(self) -> None:
        """Wait until everything that may be punched now is punched."""
        self._executor.submit(lambda: None).result()

    def close(self) -> None:
        """Punch what may be punched; a reader that lets go later changes nothing any more."""
        with self._lock:
            self._is_closed = True
        self._executor.shutdown()


def _report(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        _logger.warning(
            "freed space was not returned; the next start tries again", extra={"fields": {"error": str(error)}}
        )
