"""A disk that nothing is done with while its replication is paused: its size and progress by its journal, and whether it is tracked.

Looked at by ``daemon`` when a pause begins, told by ``observations``. Nothing is opened here: the journal is read once, and that the
kernel tracks on is seen by the tracker's pins, which outlive the agent but not a restart of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mobility_agent.protection.epoch_journal import EpochJournal
from replication.control_plane import TrackerHealth, TrackerKind
from replication.dirty_bitmap import Geometry
from replication.errors import IntegrityError
from replication.identifiers import DiskId

TRACKED_ON: Final = (
    "paused: the kernel tracks on without the agent, and what was lost meanwhile is found when it is resumed"
)
SCANNED_LATER: Final = "paused: what changes is found by a scan when it is resumed"
NOT_TRACKED: Final = (
    "paused, and the kernel tracks no more, as after a restart: everything is compared when it is resumed"
)
NEVER_TRACKED: Final = "paused before it was tracked"


@dataclass(frozen=True, slots=True)
class RestingDisk:
    """``geometry`` None: there is no journal that can be read. ``is_tracked``: whether the kernel tracks the disk now; costs a stat."""

    geometry: Geometry | None
    seed_cursor: int | None
    kind: TrackerKind
    is_tracked: Callable[[], bool]

    def tracking(self) -> tuple[TrackerKind | None, TrackerHealth, str]:
        """The tracker's kind, its state, and the sentence that goes with them."""
        if self.geometry is None:
            return None, "blind", NEVER_TRACKED
        if self.kind == "scan":
            return "scan", "tracking", SCANNED_LATER
        return ("ebpf", "tracking", TRACKED_ON) if self.is_tracked() else ("ebpf", "blind", NOT_TRACKED)


RestingDisks = Mapping[DiskId, RestingDisk]


def look_at(directory: Path, kind: TrackerKind, is_tracked: Callable[[], bool]) -> RestingDisk:
    """The disk whose journal is in ``directory``. Blocks."""
    ledger = None
    try:
        if directory.is_dir():
            ledger = EpochJournal(directory).load()
    except (IntegrityError, OSError):
        pass  # told, and made up for, when it is resumed
    if ledger is None:
        return RestingDisk(None, None, kind, is_tracked)
    return RestingDisk(ledger.geometry, ledger.seed_cursor, kind, is_tracked)


def look_at_all(
    state_dir: Path,
    disks: Iterable[str],
    tracking_at_rest: Callable[[DiskId], tuple[TrackerKind, Callable[[], bool]]],
) -> RestingDisks:
    """As ``look_at``, for each of ``disks``. Blocks."""
    return {
        disk: look_at(state_dir / "disks" / disk, *tracking_at_rest(disk)) for disk in (DiskId(disk) for disk in disks)
    }
