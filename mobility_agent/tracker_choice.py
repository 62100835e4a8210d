"""Which change tracker a disk gets, and which ones work on this machine.

Called by ``daemon`` (prepares and opens trackers for the disk supervisors, says what tracks a paused disk) and ``inventory``. ``auto``
takes ``ebpf`` where kernel, device and privilege allow it, else ``scan``; the reason for falling back is logged and shown to the operator,
never hidden (P3).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.ebpf.objects import kernel_types
from mobility_agent.change_tracker.ebpf.pins import Pins
from mobility_agent.change_tracker.ebpf.support import why_not_machine, why_not_trackable
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import ChangeTracker
from mobility_agent.change_tracker.scan import ScanTracker
from mobility_agent.config import TrackerSettings
from mobility_agent.interruption import Interruption
from mobility_agent.pace import Pace
from mobility_agent.shipping.digest_table import DigestTable
from replication.control_plane import TrackerAvailability, TrackerKind
from replication.dirty_bitmap import Geometry
from replication.errors import BlockferryError, NotFound, Refused, Unsupported
from replication.identifiers import DiskId

_PRIVILEGE: Final = "it needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN for the pins"

_logger = logging.getLogger(__name__)


def tracker_availability() -> list[TrackerAvailability]:
    """Each tracker and, if it does not work on this machine, why not."""
    reason = why_not_machine() or ("" if os.geteuid() == 0 else _PRIVILEGE)
    return [
        TrackerAvailability(kind="ebpf", available=not reason, reason=reason),
        TrackerAvailability(kind="scan", available=True),
    ]


def trackers_for(path: Path) -> list[TrackerKind]:
    """The trackers that work for one disk, the preferred one first; none if it has no device node, or is gone by now."""
    try:
        return ["scan"] if why_not_trackable(path) else ["ebpf", "scan"]
    except NotFound:
        return []


def open_tracker(
    settings: TrackerSettings,
    pace: Pace,
    disk: DiskId,
    reader: DiskReader,
    geometry: Geometry,
    table: DigestTable,
    interruption: Interruption,
) -> ChangeTracker:
    """Attach the tracker that the settings ask for; ``auto`` falls back to ``scan``, whose scans ``interruption`` ends early
    and which keep to ``pace``.

    :raises Unsupported: if ``ebpf`` was asked for and does not work here.
    :raises Refused: if it lacks the privilege.
    """
    if settings.kind != "scan":
        try:
            return EbpfTracker.attach(
                reader.path,
                granularity_bytes=geometry.granularity_bytes,
                pin_directory=settings.pin_root / disk,
            )
        except (Unsupported, Refused) as error:
            if settings.kind == "ebpf":
                raise
            _logger.warning(
                "writes cannot be tracked in the kernel: the disk is scanned",
                extra={"fields": {"disk": disk, "reason": str(error)}},
            )
    return ScanTracker(
        reader,
        geometry,
        table,
        is_cancelled=interruption.is_interrupted,
        before_read=lambda length_bytes: pace.wait_in_thread(length_bytes, interruption.is_interrupted),
    )


def prepare_tracking(settings: TrackerSettings) -> None:
    """Have ready what attaching the first tracker would else wait for. What goes wrong here goes wrong there again, and is told there."""
    if settings.kind != "scan" and not why_not_machine():
        with contextlib.suppress(BlockferryError):
            kernel_types()


def tracking_at_rest(
    settings: TrackerSettings, locate: Callable[[DiskId], Path], disk: DiskId
) -> tuple[TrackerKind, Callable[[], bool]]:
    """Which tracker follows a disk that is not opened, and how to see whether the kernel tracks it now. Blocks.

    Where ``ebpf`` would work but has no pins, nothing sees what is written: opening it finds that out.
    """
    pins = Pins(settings.pin_root / disk)
    if settings.kind == "ebpf" or (settings.kind == "auto" and (pins.exist() or _works_for(locate, disk))):
        return "ebpf", pins.exist
    return "scan", pins.exist


def _works_for(locate: Callable[[DiskId], Path], disk: DiskId) -> bool:
    try:
        return tracker_availability()[0].available and "ebpf" in trackers_for(locate(disk))
    except BlockferryError:
        return True  # the disk is away: whatever is written to it is not seen


def discard_tracking(settings: TrackerSettings, disk: DiskId) -> None:
    """Leave nothing of a disk's tracking behind, whether or not the disk is still there."""
    pins = Pins(settings.pin_root / disk)
    if pins.exist():
        pins.remove()
