"""One process per spool: an exclusive lock on a file in its directory, released by the kernel with the process.

Called by ``daemon``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replication.errors import SettingsError

LOCK_FILE: Final = "lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock while the context lasts.

    :raises SettingsError: if another process holds it.
    """
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"cannot use the spool in {directory}: another process server uses it",
                hint="stop that one, or give this one another state_dir",
            ) from error
        yield
    finally:
        os.close(descriptor)
