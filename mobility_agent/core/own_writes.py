"""Whether what was just harvested can be the agent's own doing (R10): writes of its state must not trigger epochs, or it never rests.

Asked by ``disk_session`` at each harvest of a disk that holds the agent's state directory. Theory of operation:

Each epoch makes the agent write its journal, digests and digest table, and the file system beneath its own log and metadata. Which blocks
those are cannot be known through every file system and volume manager. What is known is how often the agent wrote and when. So a
harvest counts as an *echo* while it is no larger than what that many writes can have caused, and the newest of them is less than
``settle_s`` ago, the time in which file systems still write metadata that they owe. An echo triggers no epoch: it stays in the tracker,
uncommitted, and goes with the next epoch or point. After the settling time, anything new triggers one at once.

A small write of somebody else that falls into an echo thus waits: until more is written, until something is written after the echo has
settled, or for the next recovery point, which takes everything. It is never lost, and the replication lag shown is that of the newest
cut, so the wait is not hidden. Without recovery points ``longest_wait_s`` ends it.

Pure: the owner brings the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BASE_GRANULES: Final = 32
"""Granules that the metadata of the file system beneath may touch however often the agent writes."""
GRANULES_PER_WRITE: Final = 4
"""Granules that one write of the agent may touch besides: the file's new blocks, its table's pages, the file system's log."""
MAX_GRANULES: Final = 4096
SETTLE_S: Final = 120.0
"""Longer than ext4's flusher (35 s) and XFS's covering of its log (90 s) take after the last write."""


class StateWrites:
    """Counts the writes of the agent's own state, of all its disks together."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        """:param clock_s: monotonic seconds."""
        self._clock_s = clock_s
        self.count = 0
        self.newest_s = clock_s()

    def note(self, times: int = 1) -> None:
        self.count += times
        self.newest_s = self._clock_s()


class EchoRule:
    """One disk's rule. ``before_flip``, then ``is_echo`` with what was harvested, then ``committed`` if it was."""

    def __init__(self, writes: StateWrites, *, longest_wait_s: float, settle_s: float = SETTLE_S) -> None:
        self._writes = writes
        self._longest_wait_s = longest_wait_s
        self._settle_s = settle_s
        self._count_at_commit = 0
        self._count_at_flip = writes.count
        self._waiting_granules = 0
        self._waiting_since_s: float | None = None

    def before_flip(self) -> None:
        """What is written from here on shows in the next harvest, not in this one."""
        self._count_at_flip = self._writes.count

    def is_echo(self, dirty_granules: int, now_s: float) -> bool:
        """Whether a harvest of ``dirty_granules``, counted since the last commit, must not trigger an epoch."""
        if not dirty_granules:
            return False
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if now_s - self._waiting_since_s > self._longest_wait_s:
            return False
        if now_s - self._writes.newest_s > self._settle_s:
            return dirty_granules <= self._waiting_granules
        written = self._count_at_flip - self._count_at_commit
        is_small = dirty_granules <= min(MAX_GRANULES, BASE_GRANULES + GRANULES_PER_WRITE * written)
        self._waiting_granules = dirty_granules
        return is_small

    def committed(self) -> None:
        """What was harvested at the last flip is durable: nothing waits any more."""
        self._count_at_commit = self._count_at_flip
        self._waiting_granules = 0
        self._waiting_since_s = None
