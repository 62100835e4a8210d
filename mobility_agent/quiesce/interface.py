"""What a freeze promises (rule R9). Values and Protocols only: no I/O.

Called by the agent's point epochs, synchronously, with the event loop deliberately blocked: between entering and leaving
``frozen`` nothing writes a file, logs, or allocates memory of note. Implemented by ``freeze_guard.FreezeGuard``, and a
fake in tests/harness.

    buffers, bitmaps and locked memory are made beforehand
    with guard.frozen(mounts, budget_s) as freeze:
        harvest = tracker.begin_harvest(into=bitmap)
        read the last small round; stop when freeze.remaining_s() runs out
        wrote = tracker.wrote_since_flip()
    it is a point if freeze.result.is_point and not wrote

A mounted file system that cannot be frozen (vfat) is not given to ``frozen``: ``wrote`` speaks for it, as for a disk without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

_NEVER_FROZEN: Final = frozenset(
    ("affs", "exfat", "fuseblk", "hfs", "hfsplus", "minix", "msdos", "ntfs", "ntfs3", "udf", "vfat")
)
"""Without ``freeze_fs`` and ``freeze_super`` in the kernel (fs/*/super.c): FIFREEZE says EOPNOTSUPP. EFI system partitions are vfat."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system (of several mounts of the same one: the first).

    ``device`` is (major, minor) of the superblock; ``source`` the block device's path as the kernel names it.
    """

    mount_point: str
    fs_type: str
    source: str
    device: tuple[int, int]
    is_read_only: bool = False

    @property
    def can_be_frozen(self) -> bool:
        """False for kinds without a freeze in the kernel: they are left running, and must be seen to write nothing."""
        return self.fs_type not in _NEVER_FROZEN


@dataclass(frozen=True, slots=True)
class FreezeResult:
    """``is_point`` is True only if every file system stayed frozen until we thawed it ourselves, within the budget.

    ``problem`` is one sentence that says why not; empty if and only if it is a point.
    """

    is_point: bool
    duration_s: float
    problem: str = ""


class Freeze(Protocol):
    """The freeze that is on. ``result`` is set when ``frozen`` is left, however it is left."""

    @property
    def result(self) -> FreezeResult | None: ...

    def remaining_s(self) -> float:
        """Seconds of the budget that are left; what is frozen is thawed by the watchdog when they are over. 0 if it is gone: thaw.

        To be asked again and again, between calls that take some hundredths of a second.
        """
        ...


class Freezer(Protocol):
    def frozen(self, mounts: Sequence[Mount], budget_s: float) -> AbstractContextManager[Freeze]:
        """Freeze ``mounts`` in the given order; thaw them in reverse when left, also on error.

        :raises Unsupported: if a file system cannot be frozen (vfat, say); what was frozen by then is thawed.
        :raises Conflict: if one is frozen by someone else; it is left as it is, the others are thawed.
        :raises Refused: without the privilege, or if the watchdog is gone: nothing was frozen.
        """
        ...
