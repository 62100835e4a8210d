"""Durable files: replace by temp → fsync → rename → fsync(directory), in one place.

Called by every daemon for its small state. *Written*, *durable* and *acknowledged* are three things:
on return of ``replace`` the new content is durable; a crash at any point leaves the old or the new content, whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from replication.failpoint import reached

_TEMPORARY_SUFFIX: Final = ".new"


def sync_directory(directory: Path) -> None:
    """Make creations, renames and removals in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory_durably(directory: Path, mode: int = 0o700) -> None:
    """Create ``directory`` and its missing parents; on return each entry is durable in its parent.

    That includes the deepest directory that was there already: an interrupted call may have left it written, not durable.
    """
    ancestors = [directory, *directory.parents]
    missing = [path for path in ancestors if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
    for path in reversed(ancestors[: len(missing) + 1]):
        with contextlib.suppress(PermissionError) if path not in missing else contextlib.nullcontext():
            sync_directory(path.parent)


class DurableFile:
    """A small file that is only ever replaced whole.

    One writer at a time per path: the caller's lock. Files have mode 0600 unless told otherwise, whatever the umask.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self._mode = mode
        self._temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)

    def read(self) -> bytes | None:
        """Return the content, or None if the file was never written. What is returned is durable.

        A crash between rename and fsync leaves content that is written and not yet durable; a caller acts on what it reads, so
        the directory is made durable here.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        sync_directory(self.path.parent)
        return content

    def replace(self, content: bytes | bytearray | memoryview) -> None:
        """Replace the content; durable on return.

        :raises OSError: the old content is still in place; or, where only the directory could not be made durable, the new one is.
        """
        self.replace_parts((content,))

    def replace_parts(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """As ``replace`` with the concatenation of ``parts``, which is never made in memory."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._temporary, flags, self._mode)
        try:
            try:
                os.fchmod(descriptor, self._mode)  # the temporary file of an interrupted call keeps the mode it had
                for part in parts:
                    view = memoryview(part).cast("B")
                    while view:
                        view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            reached("file.replacement.durable")
            self._temporary.replace(self.path)
            reached("file.replacement.renamed")
        except BaseException:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise
        sync_directory(self.path.parent)

    def remove(self) -> None:
        """Remove the file, and what an interrupted ``replace`` left, if they are there; durable on return."""
        self._temporary.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            sync_directory(self.path.parent)
