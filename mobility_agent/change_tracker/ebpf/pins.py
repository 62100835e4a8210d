"""Pins: names in a bpf file system that keep maps, programs and links alive without the agent.

Called by ``tracker``. One directory per disk, made complete under another name and then renamed, so that it exists whole or
not at all; locked (flock) by the one process that uses it. Layout: ``control``, ``bitmap``, ``counters``, and for each
event ``program_EVENT`` and ``link_EVENT``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mobility_agent.change_tracker.ebpf import bpf_syscall
from replication.errors import Conflict, Unsupported
from replication.failpoint import reached

DEFAULT_PIN_ROOT: Final = Path("/sys/fs/bpf/blockferry")
_BPF_FS_MAGIC: Final = 0xCAFE4A11
"""include/uapi/linux/magic.h"""
UNFINISHED: Final = "-unfinished"
"""Names in a bpf file system may not hold a dot."""


def ensure_bpf_file_system(root: Path) -> None:
    """Make sure that ``root`` exists on a bpf file system; if need be one is mounted at its parent, which must be empty.

    What a mount would hide is somebody's: over ``/sys/fs`` it would be all control groups of the machine.

    :raises Unsupported: if none can be mounted.
    """
    mount_point = root.parent
    if not _is_bpf(root):
        _make_directory(mount_point, parents=True)
        if any(mount_point.iterdir()):
            raise Unsupported(
                f"cannot mount a bpf file system at {mount_point}: it is not empty",
                hint=f"choose a tracker.pin_root in a bpf file system, such as {DEFAULT_PIN_ROOT}",
            )
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(mount_point), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
            code = ctypes.get_errno()
            raise Unsupported(
                f"cannot mount a bpf file system at {mount_point}: {os.strerror(code)}",
                hint=f"mount it with: mount -t bpf bpf {mount_point}",
            )
    _make_directory(root)


def _make_directory(path: Path, *, parents: bool = False) -> None:
    try:
        path.mkdir(mode=0o700, parents=parents, exist_ok=True)
    except PermissionError:
        raise  # the caller says which privilege is missing
    except OSError as error:
        raise Unsupported(
            f"cannot make {path} for the tracker's pins: {error.strerror}",
            hint="mount a bpf file system, or choose another tracker.pin_root on one",
        ) from error


def _is_bpf(directory: Path) -> bool:
    """Whether ``directory``, or the deepest one above it that exists, lies on a bpf file system, as statfs(2) sees it."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    # struct statfs begins with f_type, a word; 256 bytes hold all of it on every machine type that is supported.
    answer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(existing), answer):
        return False
    return ctypes.c_long.from_buffer(answer).value == _BPF_FS_MAGIC


class Pins:
    """The pin directory of one disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = -1

    def exist(self) -> bool:
        return self.directory.is_dir()

    def lock(self) -> None:
        """Keep other processes away from these pins until ``unlock``.

        :raises Conflict: if another process has them.
        """
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Conflict(
                f"cannot use the pins {self.directory}: another process tracks this disk",
                hint="is a second agent running on this machine?",
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def publish(self, descriptors: Mapping[str, int]) -> None:
        """Pin all of ``descriptors`` under their names, whole or not at all, and lock them.

        :raises Conflict: if pins are there already.
        """
        ensure_bpf_file_system(self.directory.parent)
        unfinished = self.directory.with_name(self.directory.name + UNFINISHED)
        _remove(unfinished)
        unfinished.mkdir(mode=0o700)
        try:
            for name, descriptor in descriptors.items():
                bpf_syscall.pin(descriptor, unfinished / name)
            if self.directory.exists():
                raise Conflict(f"cannot make the pins {self.directory}: they exist")  # noqa: TRY301
            reached("agent.pins.made")
            unfinished.rename(self.directory)
        except BaseException:
            _remove(unfinished)
            raise
        self.lock()

    def open(self, name: str) -> int:
        """A new descriptor of the object pinned as ``name``. :raises OSError: if there is none."""
        return bpf_syscall.get_pinned(self.directory / name)

    def remove(self) -> None:
        """Unpin everything; the objects go when their last descriptor is closed. Idempotent."""
        self.unlock()
        _remove(self.directory)
        with contextlib.suppress(OSError):  # other disks' pins are there, or it is not ours
            self.directory.parent.rmdir()


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for entry in directory.iterdir():
            entry.unlink()
        directory.rmdir()
