"""The lab server's disk: a file-backed disk on a loop device, ext4, filled with real files of this machine; mounted and taken down.

Called by ``__main__``; needs root. Everything it sets up it takes down by name: one loop device, one mount.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

DISK_BYTES: Final = 2 * 2**30
FILL_BYTES: Final = 640 * 2**20
_FILL_FROM: Final = (Path("/usr/lib"), Path("/usr/share"), Path("/usr/bin"))
_LARGEST_FILE_BYTES: Final = 48 * 2**20
_UNMOUNT_S: Final = 5.0
_UNMOUNT_PAUSE_S: Final = 0.1


def run(*command: str | Path) -> str:
    """Run a command; its standard output. On failure the error carries what it wrote."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot run {' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


class LabDisk:
    """``image`` → ``device`` → ``mount_point``."""

    def __init__(self, directory: Path, disk_bytes: int = DISK_BYTES, fill_bytes: int = FILL_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.disk_bytes = disk_bytes
        self.fill_bytes = fill_bytes
        self.image = directory / "disk.img"
        self.mount_point = directory / "mnt"
        self.device: Path | None = None
        self._mounted = False

    def create(self) -> Path:
        """Make the image and its file system, attach and mount it. Returns the loop device."""
        with self.image.open("wb") as image:
            image.truncate(self.disk_bytes)
        self.device = Path(run("losetup", "--find", "--show", "--direct-io=on", self.image))
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device)
        self.mount_point.mkdir(exist_ok=True)
        self.mount()
        return self.device

    def mount(self) -> None:
        if self.device is None:
            raise RuntimeError("the lab disk is not attached")
        run("mount", "-o", "discard", self.device, self.mount_point)
        self._mounted = True

    def unmount(self) -> None:
        """:raises RuntimeError: if it stays in use. While the agent freezes the file system for a recovery point, it is, for a moment."""
        until_s = time.monotonic() + _UNMOUNT_S
        while self._mounted:
            try:
                run("umount", self.mount_point)
                self._mounted = False
            except RuntimeError as error:
                if "busy" not in str(error) or time.monotonic() > until_s:
                    raise
                time.sleep(_UNMOUNT_PAUSE_S)

    def fill(self, progress: Callable[[int, int], None]) -> int:
        """Copy real files of the machine, up to ``fill_bytes``; returns the bytes copied."""
        copied = 0
        for number, source in enumerate(_real_files()):
            if copied >= self.fill_bytes:
                break
            size = source.stat().st_size
            directory = self.mount_point / "files" / f"{number % 64:02d}"
            directory.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, directory / f"{number}-{source.name}"[:120])
            copied += size
            progress(min(copied, self.fill_bytes), self.fill_bytes)
        os.sync()
        return copied

    def destroy(self) -> None:
        """Unmount and detach whatever is still there; the image stays."""
        self.unmount()
        if self.device is not None:
            run("losetup", "--detach", self.device)
            self.device = None


def _real_files() -> Iterator[Path]:
    """Regular files in turn from each of the machine's directories: mixed content, the same on every run of one machine."""
    walks = [_walk(root) for root in _FILL_FROM if root.is_dir()]
    for found in itertools.zip_longest(*walks):
        yield from (path for path in found if path is not None)


def _walk(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            path = Path(directory) / name
            if path.is_symlink() or not os.access(path, os.R_OK):
                continue
            if path.is_file() and 0 < path.stat().st_size <= _LARGEST_FILE_BYTES:
                yield path
