"""What is kept of disks that are not protected any more, and when it is discarded: trackers, journals, digest tables.

Called by ``daemon``. Discarding costs nothing if the wish was meant, and a full resync if it was not. So it is done late
(``keep_for_s`` after the wish was heard, if it still stands then) and never on the word of a configuration server that lost its memory
(``desired_memory``). Until then tracking goes on in the kernel, and protecting the disk again goes on where it was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from replication.errors import BlockferryError, InvalidInput
from replication.failpoint import reached
from replication.identifiers import DiskId, parse_uuid

_logger = logging.getLogger(__name__)


class UnprotectedDisks:
    """The disks with a directory below ``directory`` that are not among the protected ones."""

    def __init__(self, directory: Path, discard_tracking: Callable[[DiskId], None], keep_for_s: float) -> None:
        """:param discard_tracking: leaves nothing of a disk's tracking behind; idempotent; blocks."""
        self._directory = directory
        self._discard_tracking = discard_tracking
        self._keep_for_s = keep_for_s
        self._unwanted_since_s: dict[DiskId, float] = {}

    def kept(self) -> set[DiskId]:
        """Disks that something is kept of. Blocks."""
        if not self._directory.is_dir():
            return set()
        return {disk for path in self._directory.iterdir() if (disk := _disk_of(path)) is not None}

    def discard_due(self, wanted: Collection[str], *, may_destroy: bool, now_s: float) -> None:
        """Discard what has been unwanted for long enough; ``wanted``: the disks that are desired now. Blocks.

        What cannot be discarded now is tried again at the next call.
        """
        unwanted = {disk for disk in self.kept() if disk not in wanted} if may_destroy else set()
        self._unwanted_since_s = {disk: self._unwanted_since_s.get(disk, now_s) for disk in unwanted}
        for disk, since_s in sorted(self._unwanted_since_s.items()):
            if now_s - since_s >= self._keep_for_s:
                self._discard(disk)

    def _discard(self, disk: DiskId) -> None:
        try:
            # The state goes last: as long as it is there, this is tried again.
            self._discard_tracking(disk)
            reached("agent.disk.untracked")
            shutil.rmtree(self._directory / disk)
        except (BlockferryError, OSError) as error:
            _logger.warning(
                "cannot discard what is kept of a disk", extra={"fields": {"disk": disk, "error": str(error)}}
            )
        else:
            _logger.info("discarded what was kept of a disk", extra={"fields": {"disk": disk}})


def _disk_of(path: Path) -> DiskId | None:
    """None for what is no disk's: the directory may be a file system of its own, with a lost+found."""
    try:
        return DiskId(parse_uuid(path.name, "disk id"))
    except InvalidInput:
        return None
