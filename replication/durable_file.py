"""Durable files: replace by temp → fsync → rename → fsync(directory), in one place.

Called by every daemon for its small state. *Written*, *durable* and *acknowledged* are three things:
on return of ``replace`` the new content is durable; a crash at any point leaves the old or the new content, whole.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_TEMPORARY_SUFFIX: Final = ".new"


def sync_directory(directory: Path) -> None:
    """Make creations, renames and removals in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory_durably(directory: Path, mode: int = 0o700) -> None:
    """Create ``directory`` and its missing parents; on return each new entry is durable in its parent."""
    missing = [directory, *directory.parents]
    for path in reversed([p for p in missing if not p.exists()]):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
        sync_directory(path.parent)


class DurableFile:
    """A small file that is only ever replaced whole.

    One writer at a time per path: the caller's lock. Files are created with mode 0600 unless told otherwise.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self._mode = mode
        self._temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)

    def read(self) -> bytes | None:
        """Return the last durable content, or None if the file was never written."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, content: bytes | bytearray | memoryview) -> None:
        """Replace the content. Durable on return; on raise (OSError) the old content is still in place."""
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, self._mode)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise
        os.close(descriptor)
        self._temporary.replace(self.path)
        sync_directory(self.path.parent)

    def remove(self) -> None:
        """Remove the file if it is there; durable on return."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            sync_directory(self.path.parent)
