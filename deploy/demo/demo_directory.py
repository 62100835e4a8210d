"""The directory of a demo: claimed by one demo at a time, and emptied only of what a demo makes.

Called by ``__main__`` before anything is started. The claim is a lock (flock) on the directory itself, so it ends with the process, however
that ends; a site that was kept is told by its record (``remains``) instead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

MADE_BY_A_DEMO: Final = frozenset(
    {
        *("azure-sink", "config-server", "process-server", "mobility-agent"),
        *("lab-server", "operator", "remains.json", "drill.raw", "final.raw"),
    }
)


class DirectoryRefusedError(RuntimeError):
    """The directory belongs to another demo, or to somebody else; with what to do."""


def claim(directory: Path) -> int:
    """Make ``directory`` if need be and keep other demos away from it. Returns the descriptor that holds the claim until it is closed.

    :raises DirectoryRefusedError: if another demo has it, or if it holds what no demo has made: it would be deleted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        foreign = sorted({path.name for path in directory.iterdir()} - MADE_BY_A_DEMO)
        if foreign:
            raise DirectoryRefusedError(  # noqa: TRY301
                f"{directory} holds {foreign[0]}, which no demo has made, and a demo empties its directory: "
                "choose another directory with DEMO_DIR=…"
            )
    except BlockingIOError:
        os.close(descriptor)
        raise DirectoryRefusedError(
            f"another demo runs in {directory}: wait for its end, or choose another directory with DEMO_DIR=…"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def empty(directory: Path) -> None:
    """Remove what an earlier demo left in ``directory``, which stays: the claim is on it.

    :raises OSError: if something cannot be removed.
    """
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
