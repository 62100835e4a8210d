"""The upload limits that the configuration server told last, on disk: so that a restart while it is away sends no faster than before.

Called by ``upload_limits.py``. Nothing remembered, or a damaged file, is not *no limit*: it is not known then what may be sent.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from replication.durable_file import DurableFile
from replication.errors import PeerProtocolError
from replication.upload_limits import UploadLimits

FILE_NAME: Final = "upload-limits.json"

_logger = logging.getLogger(__name__)


class LimitsMemory:
    """``limits`` is what is durable; None: nothing that could be read. Both methods block."""

    def __init__(self, state_dir: Path) -> None:
        """:raises OSError: the file is there and cannot be read."""
        self._file = DurableFile(state_dir / FILE_NAME)
        self.limits: UploadLimits | None = None
        content = self._file.read()
        if content is None:
            return
        try:
            self.limits = UploadLimits.decode(content)
        except PeerProtocolError as error:
            _logger.warning(
                "the remembered upload limits are damaged",
                extra={"fields": {"file": str(self._file.path), "error": str(error)}},
            )

    def remember(self, limits: UploadLimits) -> None:
        """Durable on return.

        :raises OSError: it could not be written; what was remembered before still is, or this is.
        """
        self._file.replace(limits.encode())
        self.limits = limits
