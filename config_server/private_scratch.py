"""A directory for keys in clear while something is proved: only its user's, under a name that whoever comes next knows, and clears.

Called by ``backup.py``. A directory with a random name in /tmp would outlive a SIGKILL, and nobody would look for it there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replication.errors import Conflict, SettingsError

_PRIVATE: Final = 0o700


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
            hint="--work-in names a directory of this machine that is yours alone, with room for what is in it",
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
        place.mkdir(mode=_PRIVATE)
    except FileExistsError:
        raise _conflict(place) from None
    descriptor = _held(place)
    made = os.fstat(descriptor)
    if made.st_uid != os.geteuid() or not os.path.samestat(made, place.lstat()):
        os.close(descriptor)
        raise _conflict(place)
    os.fchmod(descriptor, _PRIVATE)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != _PRIVATE:
        place.rmdir()
        os.close(descriptor)
        raise SettingsError(
            f"cannot work in {place}: its file system keeps no permissions, so others could read what is in it",
            hint="--work-in names a directory of this machine, such as /dev/shm",
        )
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
