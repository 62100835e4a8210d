"""Real block devices for tests: a plain file on a loop device, file systems on it, and byte comparison with the file.

Called by end-to-end tests (markers ``requires("root", "loop", "mount")``). Everything made is undone when its context is
left: unmounted, detached, unpinned.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from replication.dirty_bitmap import Geometry

_SETTLE_S: Final = 30.0
_COMPARE_GRANULES: Final = 256


def run(*command: str | Path) -> str:
    """Run a program that must succeed; its output is in the failure."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class LoopDisk:
    device: Path
    backing: Path

    @property
    def size_bytes(self) -> int:
        return self.backing.stat().st_size

    @property
    def name(self) -> str:
        return self.device.name

    def wait_until_idle(self) -> None:
        """Until nothing is in flight: online discards go on after sync."""
        deadline = time.monotonic() + _SETTLE_S
        quiet = 0
        while quiet < 5:
            assert time.monotonic() < deadline, f"{self.device} never became idle"
            busy = Path(f"/sys/block/{self.name}/inflight").read_text().split() != ["0", "0"]
            quiet = 0 if busy else quiet + 1
            time.sleep(0.01)


@contextlib.contextmanager
def loop_disk(backing: Path, size_bytes: int, *, sector_bytes: int = 512) -> Iterator[LoopDisk]:
    """Attach ``backing`` (made sparse with ``size_bytes`` if it is not there) to a free loop device."""
    if not backing.exists():
        with backing.open("wb") as stream:
            stream.truncate(size_bytes)
    device = Path(run("losetup", "--find", "--show", "--sector-size", str(sector_bytes), backing).strip())
    try:
        yield LoopDisk(device, backing)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: Path, mount_point: Path, options: str = "defaults") -> Iterator[Path]:
    mount_point.mkdir(parents=True, exist_ok=True)
    run("mount", "-o", options, device, mount_point)
    try:
        yield mount_point
    finally:
        unmount(mount_point)


def unmount(mount_point: Path) -> None:
    """Unmount; a process that is just ending may hold it for an instant."""
    for _ in range(100):
        if subprocess.run(["umount", str(mount_point)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    run("umount", mount_point)


def wait_until_free(device: Path) -> None:
    """Until no file system is on the device any more: another mount namespace may keep one that was unmounted here, for a moment."""
    for _ in range(600):
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{device} is in use, though it was unmounted a minute ago")


@contextlib.contextmanager
def pin_root() -> Iterator[Path]:
    """A pin root of this process' own; what a failed test left there is removed."""
    root = Path(f"/sys/fs/bpf/blockferry-test-{os.getpid()}")
    try:
        yield root
    finally:
        for directory in root.glob("*"):
            for entry in directory.iterdir():
                entry.unlink()
            directory.rmdir()
        if root.exists():
            root.rmdir()


def changed_granules(before: Path, after: Path, geometry: Geometry) -> npt.NDArray[np.int64]:
    """Granules whose bytes differ between two files of the same size, by comparing every byte."""
    step = geometry.granularity_bytes * _COMPARE_GRANULES
    found = []
    with before.open("rb") as old, after.open("rb") as new:
        for at in range(0, geometry.size_bytes, step):
            length = min(step, geometry.size_bytes - at)
            one, other = old.read(length), new.read(length)
            assert len(one) == len(other) == length
            if one == other:
                continue
            padding = -length % geometry.granularity_bytes
            differing = np.frombuffer(one + bytes(padding), np.uint64) != np.frombuffer(
                other + bytes(padding), np.uint64
            )
            rows = differing.reshape(-1, geometry.granularity_bytes // 8).any(axis=1)
            found.append(np.flatnonzero(rows) + at // geometry.granularity_bytes)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def copy_file(source: Path, target: Path) -> None:
    """A sparse copy of all bytes, read through the page cache that the loop device writes to."""
    if shutil.which("cp"):
        run("cp", "--sparse=always", "--reflink=never", source, target)
    else:
        shutil.copyfile(source, target)
