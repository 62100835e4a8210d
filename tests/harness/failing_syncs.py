"""Syncs that fail: fsync and fdatasync of chosen files return EIO in one thread, also those that SQLite makes itself.

Called by the fault tests of the blob store, inside the thread concerned (a mutation runs in the committer's). A seccomp filter does it: no
privilege is needed, what is written stays in the page cache as after a real failure, and it ends with the thread.

``fail_a_sync_of_a_new_file`` is for a forked daemon (``ForkedDaemon.prepare``), whose descriptors are not known yet: in its ``os`` module.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections import Counter
from pathlib import Path
from typing import Final

_SYNC_CALLS: Final = {"x86_64": (74, 75), "aarch64": (82, 83)}
"""fsync and fdatasync, by machine."""
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16  # struct seccomp_data
_ALLOW: Final = 0x7FFF0000
_FAIL: Final = 0x00050000 | errno.EIO


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def fail_syncs_in_this_thread(path: Path) -> None:
    """From now on this thread cannot sync what is open under ``path`` (a file, or all files of a directory)."""
    descriptors = _open_below(path)
    assert descriptors, f"nothing is open under {path}"
    fsync, fdatasync = _SYNC_CALLS[platform.machine()]
    count = len(descriptors)
    program = [
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUALS, 1, 0, fsync),
        (_EQUALS, 0, count + 1, fdatasync),  # any other call: to _ALLOW
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        *((_EQUALS, count - place, 0, number) for place, number in enumerate(descriptors)),  # to _FAIL
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL),
    ]
    encoded = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    libc = ctypes.CDLL(None, use_errno=True)
    filtering = _Program(len(program), encoded)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filtering), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "cannot install the filter")


def _open_below(path: Path) -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = Path(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:  # the listing's own
            continue
        if target == path or path in target.parents:
            found.append(int(entry))
    return found


def fail_a_sync_of_a_new_file(directory: str) -> None:
    """In this process the second fdatasync of the next file that is made in ``directory`` fails: its first records stay unsynced."""
    old, synced, really = set(Path(directory).iterdir()), Counter[Path](), os.fdatasync

    def fdatasync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.parent == Path(directory) and path not in old:
            synced[path] += 1
            if synced[path] == 2 and len(synced) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(descriptor)

    vars(os)["fdatasync"] = fdatasync
