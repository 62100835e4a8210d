"""A daemon's state directory at its start: made if it is missing; one that cannot be used is the operator's mistake, told with a remedy.

Called by every daemon's start and by the commands that write there first (``init``, ``enrol``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from replication.durable_file import make_directory_durably
from replication.errors import SettingsError


@contextlib.contextmanager
def state_directory_usable(directory: Path, name: str = "state_dir") -> Iterator[None]:
    """For a block that does nothing but work in ``directory``; ``name``: what the operator knows it as.

    :raises SettingsError: whatever the operating system says against it.
    """
    try:
        yield
    except OSError as error:
        place = "" if error.filename in (None, str(directory)) else f"{os.fsdecode(error.filename)}: "
        raise SettingsError(
            f"cannot use {name} {directory}: {place}{error.strerror or error}",
            hint="it must be a directory that this user may write to, on a file system that is mounted and writable",
        ) from error


def make_state_directory(directory: Path) -> None:
    """As ``make_directory_durably``.

    :raises SettingsError: if it cannot be made, or is none.
    """
    with state_directory_usable(directory):
        make_directory_durably(directory)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
