"""A directory for keys in clear while something is proved: only its user's, under a name that whoever comes next knows, and clears.

Called by ``backup.py``. A directory with a random name in /tmp would outlive a SIGKILL, and nobody would look for it there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from replication.errors import Conflict, SettingsError


@contextlib.contextmanager
def private_scratch(place: Path) -> Iterator[Path]:
    """``place``, empty and with mode 0700 whatever the umask; it is gone at the end, and so is what one before it left there.

    :raises Conflict: if another process works in it now. :raises SettingsError: if it cannot be made or cleared.
    """
    try:
        descriptor = _taken(place)
    except OSError as error:
        raise SettingsError(
            f"cannot work in {place}: {error.strerror or error}",
            hint="put the backup into a directory that is yours alone, with room for what is in it",
        ) from error
    try:
        yield place
    finally:
        try:
            shutil.rmtree(place)
        finally:
            os.close(descriptor)


def _taken(place: Path) -> int:
    """What holds it. A directory that is there is another's that runs, or was left by one that was killed."""
    with contextlib.suppress(FileNotFoundError):
        left = _held(place)
        try:
            shutil.rmtree(place)
        finally:
            os.close(left)
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        raise _conflict(place) from None
    descriptor = _held(place)
    made = os.fstat(descriptor)
    if made.st_uid != os.geteuid() or not os.path.samestat(made, place.lstat()):
        os.close(descriptor)
        raise _conflict(place)
    os.fchmod(descriptor, 0o700)
    return descriptor


def _held(place: Path) -> int:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _conflict(place) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _conflict(place: Path) -> Conflict:
    return Conflict(f"cannot work in {place}: another process does", hint="wait for its end, and try again")
