"""The newest desired state, remembered on disk, and whether a wish may destroy something. Called by ``daemon``.

Replication goes on after a restart while the configuration server is down, hence the file. What is remembered besides is the highest
revision that was ever heard: an answer below it comes from a configuration server that lost its memory (restored from a backup). Such an
answer is obeyed as far as it can be taken back (replication stops, starts, changes its target), but nothing is discarded on its word.
"""

from __future__ import annotations

import logging
from pathlib import Path

from replication.control_plane import AgentDesired
from replication.documents import Document
from replication.durable_file import DurableFile
from replication.errors import PeerProtocolError

_logger = logging.getLogger(__name__)


class _Remembered(Document):
    desired: AgentDesired
    highest_revision: int


class DesiredMemory:
    """``desired`` is None until anything is known: that is not the same as a wish for nothing."""

    def __init__(self, path: Path) -> None:
        """A damaged file counts as none: the configuration server is asked again."""
        self._file = DurableFile(path)
        self._highest_revision = -1
        self.desired: AgentDesired | None = None
        content = self._file.read()
        if content is None:
            return
        try:
            remembered = _Remembered.decode(content)
        except PeerProtocolError as error:
            _logger.warning(
                "the remembered desired state is damaged", extra={"fields": {"file": str(path), "error": str(error)}}
            )
            return
        self.desired, self._highest_revision = remembered.desired, remembered.highest_revision

    @property
    def revision(self) -> int:
        """For asking for news: 0 before anything is known."""
        return 0 if self.desired is None else self.desired.revision

    @property
    def may_destroy(self) -> bool:
        """Whether what is not desired any more may be discarded."""
        return self.desired is not None and self.desired.revision >= self._highest_revision

    def take(self, desired: AgentDesired) -> None:
        """Remember a newer wish. Blocks.

        :raises OSError: if it cannot be written; it is in force all the same, and asked for again after a restart.
        """
        self.desired = desired
        self._highest_revision = max(self._highest_revision, desired.revision)
        if not self.may_destroy:
            _logger.warning(
                "the configuration server's revision went back: nothing is discarded on its word",
                extra={"fields": {"revision": desired.revision, "highest": self._highest_revision}},
            )
        self._file.replace(_Remembered(desired=desired, highest_revision=self._highest_revision).encode())
