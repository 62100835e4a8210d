"""Installers as the appliance offers them, kept on this process server: fetched once, compared with their digest, then sent to servers.

Called by ``installation.py``. A file is named by its digest and there only when it is whole. What the appliance offers no more is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Protocol

from replication.durable_file import make_directory_durably
from replication.errors import IntegrityError, Permanent
from replication.failpoint import reached
from replication.installer_catalogue import Installer, InstallerCatalogue

PIECE_BYTES: Final = 256 * 1024


class InstallerSource(Protocol):
    """The configuration server, as far as installers go."""

    async def installers(self) -> InstallerCatalogue: ...

    def installer_content(self, installer: Installer) -> AsyncIterator[bytes]: ...


class InstallerCache:
    """``directory`` is made when it is needed. One fetch at a time: eight installations need one file."""

    def __init__(self, source: InstallerSource, directory: Path) -> None:
        self._source = source
        self._directory = directory
        self._turn = asyncio.Lock()

    async def catalogue(self) -> InstallerCatalogue:
        """What the appliance offers now."""
        return await self._source.installers()

    async def fetch(self, installer: Installer, catalogue: InstallerCatalogue, progress: Callable[[int], None]) -> Path:
        """The file of an installer, whole and compared.

        :raises IntegrityError: if what comes is not what the catalogue says. :raises PeerUnavailable: if it does not come.
        :raises Permanent: if it cannot be written here.
        """
        async with self._turn:
            path = self._directory / installer.sha256
            if await asyncio.to_thread(path.exists):
                return path
            part = path.with_suffix(".part")
            try:
                make_directory_durably(self._directory)
                self._remove_others(catalogue)
                reached("process.installer.others-removed")
                await self._write(part, installer, progress)
                reached("process.installer.durable")
                part.rename(path)
                reached("process.installer.renamed")
            except OSError as error:
                raise Permanent(
                    f"cannot keep {installer.file} in {self._directory}: {error.strerror}",
                    hint="free some space on the process server",
                ) from error
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            return path

    async def _write(self, part: Path, installer: Installer, progress: Callable[[int], None]) -> None:
        digest, length = hashlib.sha256(), 0
        with part.open("wb") as file:
            async for piece in self._source.installer_content(installer):
                length += len(piece)
                if length > installer.size_bytes:
                    break
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
                progress(length)
            await asyncio.to_thread(os.fsync, file.fileno())
        if length != installer.size_bytes or digest.hexdigest() != installer.sha256:
            raise IntegrityError(
                f"cannot use {installer.file}: what came is not what the appliance's index says",
                hint="add the installer to the appliance again: config-server add-installer FILE",
            )

    def _remove_others(self, catalogue: InstallerCatalogue) -> None:
        offered = {installer.sha256 for installer in catalogue.installers}
        for path in self._directory.iterdir():
            if path.name not in offered:
                path.unlink()


async def read_pieces(path: Path, progress: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The content of a file, without blocking; ``progress`` is told what was taken."""
    sent = 0
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
            sent += len(piece)
            progress(sent)
