"""What a test needs of the machine, by name, and whether this machine has it: ``@pytest.mark.requires("root", "loop", "fio")``.

Called by ``tests/conftest.py``, which skips with the reason given here, or fails where ``BLOCKFERRY_NO_SKIPS=1`` (CI) says that
this machine must have everything. A name that is no key of ``PROBES`` is a program that must be on PATH.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.harness.memory_group import lacking_memory_group
from tests.harness.postgresql_cluster import lacking_postgresql
from tests.harness.promtool import lacking_promtool

WITHHELD: Final = "not even root has here: "
"""Begins the reason of a skip that is no lack of preparation; CI's machine is not held to it either."""

_SYSTEM_DIRECTORIES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")

_CAP_SYS_ADMIN: Final = 21
_CAP_PERFMON: Final = 38
_CAP_BPF: Final = 39


def add_system_directories_to_path() -> None:
    """mkfs, losetup and their like live in sbin, which a plain user's PATH, and some service managers', leave out."""
    present = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*present, *(d for d in _SYSTEM_DIRECTORIES if d not in present)])


def _capable(*numbers: int) -> bool:
    """Whether this process holds one of the capabilities, by number of capabilities(7)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return any(effective >> number & 1 for number in numbers)
    return False


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _loop() -> str | None:
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        return "needs loop devices (/dev/loop-control cannot be opened)"
    return None if _capable(_CAP_SYS_ADMIN) else "needs CAP_SYS_ADMIN for loop devices"


def _mount() -> str | None:
    return None if _capable(_CAP_SYS_ADMIN) else "needs CAP_SYS_ADMIN to mount"


def _ebpf() -> str | None:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs a kernel with BTF (/sys/kernel/btf/vmlinux is missing)"
    if not _capable(_CAP_SYS_ADMIN) and not (_capable(_CAP_BPF) and _capable(_CAP_PERFMON)):
        return "needs root or CAP_BPF and CAP_PERFMON"
    return None


def _fuse() -> str | None:
    return None if Path("/dev/fuse").exists() else "needs /dev/fuse"


def _systemd() -> str | None:
    return None if Path("/run/systemd/system").is_dir() else "needs a machine booted with systemd"


PROBES: Final[Mapping[str, Callable[[], str | None]]] = {
    "root": _root,
    "loop": _loop,
    "mount": _mount,
    "ebpf": _ebpf,
    "fuse": _fuse,
    "postgresql": lacking_postgresql,
    "promtool": lacking_promtool,
    "systemd": _systemd,
    "memory-group": lacking_memory_group,
}
"""Name → why this machine lacks it, or None."""


@functools.cache
def lacking(name: str) -> str | None:
    """Why this machine does not have ``name``, or None if it does."""
    probe = PROBES.get(name)
    if probe is not None:
        return probe()
    return None if shutil.which(name) else f"needs the program {name} (deploy/setup/debian-packages.txt)"


def first_lacking(names: Iterable[str]) -> str | None:
    """The first reason among ``names``, or None if all are met."""
    return next((reason for name in names if (reason := lacking(name)) is not None), None)
