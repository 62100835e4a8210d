"""The configuration file while the process server runs: read again when it has changed. Called by ``upload_limits.py``, every two seconds.

Only the upload limits are taken from it live; for anything else a restart is needed, which is said in the log.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from process_server.config import Settings
from replication.settings import load_settings
from replication.upload_limits import UploadLimits

_Stamp = tuple[int, int, int] | None

_logger = logging.getLogger(__name__)


class SettingsWatch:
    """``started_with``: the settings that this process was started with."""

    def __init__(self, path: Path, started_with: Settings) -> None:
        self._path = path
        self._rest = _without_limits(started_with)
        self._seen: _Stamp = (0, 0, 0)  # the file may have changed between its reading and now

    def changed(self) -> UploadLimits | None:
        """The file's limits if it has been written to since the last call. Blocks.

        :raises SettingsError: it has, and cannot be used. It is not read again before the next change.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        settings = load_settings(Settings, self._path)
        if (rest := _without_limits(settings)) != self._rest:
            self._rest = rest
            _logger.warning(
                "the configuration has changed beyond upload limits: restart to have it in force",
                extra={"fields": {"file": str(self._path)}},
            )
        return settings.upload.limits

    def _stamp(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _without_limits(settings: Settings) -> Settings:
    upload = type(settings.upload)(buffer_bytes=settings.upload.buffer_bytes)
    return dataclasses.replace(settings, upload=upload)
