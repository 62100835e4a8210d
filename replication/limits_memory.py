"""The limits that the configuration server told last, on disk: so that a restart while it is away goes no faster than before.

Called by the process server's ``upload_limits.py`` and the agent's ``limits_in_force.py``. Nothing remembered, or a damaged file, is not
*no limit*: it is not known then what is allowed, and who asks decides.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Generic

from replication.documents import DocumentT
from replication.durable_file import DurableFile
from replication.errors import PeerProtocolError

_logger = logging.getLogger(__name__)


class LimitsMemory(Generic[DocumentT]):
    """``limits`` is what is durable; None: nothing that could be read, ``is_damaged`` if there was something. Methods block."""

    def __init__(self, path: Path, kind: type[DocumentT]) -> None:
        """:raises OSError: the file is there and cannot be read."""
        self._file = DurableFile(path)
        self.limits: DocumentT | None = None
        self.is_damaged = False
        content = self._file.read()
        if content is None:
            return
        try:
            self.limits = kind.decode(content)
        except PeerProtocolError as error:
            self.is_damaged = True
            _logger.warning(
                "the remembered limits are damaged",
                extra={"fields": {"file": str(self._file.path), "error": str(error)}},
            )

    def remember(self, limits: DocumentT) -> None:
        """Durable on return.

        :raises OSError: it could not be written; what was remembered before still is, or this is.
        """
        self._file.replace(limits.encode())
        self.limits = limits
