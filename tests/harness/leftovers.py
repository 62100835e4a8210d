"""What tests left behind under a directory: processes, mounts and loop devices that refer to it.

Called by ``tests/conftest.py`` at the end of a session. Reads /proc and /sys only; ends nothing: a leftover is a defect of a test.
"""

from __future__ import annotations

import os
from pathlib import Path


def leftovers_under(directory: Path) -> list[str]:
    """A line for each process, mount and loop device that still refers to something under ``directory``."""
    return [*_processes(directory), *_mounts(directory), *_loop_devices(directory)]


def _refers(text: str, directory: Path) -> bool:
    return text == str(directory) or f"{directory}/" in text


def _processes(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            working_directory = os.readlink(entry / "cwd")
        except OSError:  # ended meanwhile, or another user's
            continue
        if command and (_refers(command, directory) or _refers(working_directory, directory)):
            found.append(f"process {entry.name}: {command[:200]}")
    return found


def _mounts(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mount_points = (line.split()[4].replace("\\040", " ") for line in lines)
    return [f"mount {point}" for point in mount_points if _refers(point, directory)]


def _loop_devices(directory: Path) -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            path = backing.read_text().strip()
        except OSError:  # detached meanwhile
            continue
        if _refers(path, directory):
            found.append(f"loop device {backing.parts[3]}: {path}")
    return found
