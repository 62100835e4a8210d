"""What the agent remembers of its protected disks, to know them again: all identifiers and the size, one durable file a disk.

Read by ``inventory``; written by ``daemon`` when a disk was located and something of it is new, and by ``mobility-agent adopt-disk``, the
operator's word that a disk is the one. Lies beside the disk's other state and goes with it (``unprotected_disks``).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from mobility_agent.block_device.identity import DiskIdentity, merged
from replication.documents import Document
from replication.durable_file import DurableFile, make_directory_durably
from replication.errors import InvalidInput, PeerProtocolError
from replication.failpoint import reached
from replication.identifiers import DiskId, parse_uuid

DISKS_DIRECTORY: Final = "disks"
"""Below the agent's state directory: what is kept of each disk."""
_FILE: Final = "identity.json"

_logger = logging.getLogger(__name__)


class RememberedIdentity(Document):
    identifiers: dict[str, str]
    size_bytes: int


class DiskMemory:
    """Of the disks with a directory below ``directory``. Calls block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def known(self) -> dict[DiskId, DiskIdentity]:
        """A file that is damaged is left out: the disk is then found by its id alone, and remembered anew."""
        found = {}
        for path in sorted(self._directory.glob(f"*/{_FILE}")):
            try:
                disk = DiskId(parse_uuid(path.parent.name, "disk id"))
                content = DurableFile(path).read()
                if content is not None:
                    remembered = RememberedIdentity.decode(content)
                    found[disk] = DiskIdentity(remembered.identifiers, remembered.size_bytes)
            except (InvalidInput, PeerProtocolError) as error:
                _logger.warning(
                    "cannot use what is remembered of a disk",
                    extra={"fields": {"file": str(path), "error": str(error)}},
                )
        return found

    def has_news(self, disk: DiskId, seen: DiskIdentity) -> bool:
        known = self.known().get(disk)
        return known is None or merged(known, seen) != known

    def remember(self, disk: DiskId, seen: DiskIdentity) -> None:
        """Durable on return; what is known of it besides stays."""
        self._write(disk, merged(self.known().get(disk), seen))

    def replace(self, disk: DiskId, seen: DiskIdentity) -> None:
        """As ``remember``, but nothing of what was known stays."""
        self._write(disk, seen)

    def _write(self, disk: DiskId, identity: DiskIdentity) -> None:
        make_directory_durably(self._directory / disk)
        document = RememberedIdentity(identifiers=dict(identity.identifiers), size_bytes=identity.size_bytes)
        DurableFile(self._directory / disk / _FILE).replace(document.encode())
        reached("agent.disk.remembered")
