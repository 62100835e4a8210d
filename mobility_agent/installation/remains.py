"""What the removed Debian package leaves on a server: noted while its programs are there, for the ``postrm purge`` that has none.

Called by ``installation_commands`` (``note-remains``, run by deploy/packaging/debian/prerm when the package is removed and the agent is
stopped). Removing keeps state and tracking, so that an agent that is installed again goes on; whether one will be is not known then. Where
they are, only configuration and kernel say: ``tracker.pin_root`` and ``state_dir`` may be anywhere, and which disk's I/O statistics were
off before is in its pins. So it is written down, and deploy/packaging/debian/postrm does with a shell what ``uninstall --purge`` does.

A line is a kind and a path. The list is root's, as the directory is that it lies in:

    tracking DIRECTORY            pins of one disk
    iostats DISKSEQ FILE          of the disk of the line before: was off. Only if its pins are there still (else the machine was
                                  booted since, and it is the kernel's default), and the number of the disk's appearance is that one
    entry PATH                    a file or directory of the agent in its state directory
    directory PATH                to be removed if it is empty
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf.objects import pinned_control
from mobility_agent.change_tracker.ebpf.pins import UNFINISHED, Pins
from mobility_agent.installation.install import Say
from mobility_agent.installation.uninstall import STATE_ENTRIES, configured, thaw_what_was_left
from mobility_agent.quiesce.freeze_record import RUN_DIRECTORY
from replication.durable_file import DurableFile, make_directory_durably
from replication.errors import BlockferryError
from replication.identifiers import parse_uuid

REMAINS: Final = Path("/var/lib/blockferry/agent.remains")


def note_remains(
    configuration: Path, say: Say, remains: Path = REMAINS, run_directory: Path = RUN_DIRECTORY
) -> list[str]:
    """Write the list, durably, and return its lines. Pins that cannot be read are listed all the same.

    Before that, what the removed agent left frozen is thawed: nobody would do it later. Nothing else is changed.
    """
    thaw_what_was_left(say, run_directory)
    state_dir, tracker = configured(configuration, say)
    lines = [*_tracking(tracker.pin_root), f"directory {tracker.pin_root}"]
    lines += [f"entry {state_dir / name}" for name in STATE_ENTRIES]
    lines.append(f"directory {state_dir}")
    fit = [line for line in lines if line.isprintable() and line == line.strip()]
    make_directory_durably(remains.parent, mode=0o755)
    DurableFile(remains).replace("".join(f"{line}\n" for line in fit).encode())
    return fit


def _tracking(pin_root: Path) -> Iterator[str]:
    for directory in sorted(pin_root.iterdir()) if pin_root.is_dir() else ():
        if directory.is_dir() and _is_a_disk_s(directory.name):
            yield f"tracking {directory}"
            yield from _statistics(Pins(directory))


def _is_a_disk_s(name: str) -> bool:
    """Others may have pins in the same place."""
    try:
        parse_uuid(name.removesuffix(UNFINISHED), "disk id")
    except BlockferryError:
        return False
    return True


def _statistics(pins: Pins) -> Iterator[str]:
    try:
        control = pinned_control(pins)
        if control is None or not control.statistics_was_off:
            return
        kernel = KernelCounters(os.makedev(control.device_number >> 20, control.device_number & 0xFFFFF))
    except (BlockferryError, OSError):
        return  # no pins of ours, or the disk is gone, and its setting with it
    try:
        if kernel.incarnation() == control.incarnation:
            yield f"iostats {_disk_sequence(kernel.queue.parent)} {kernel.queue / 'iostats'}"
    finally:
        kernel.close()


def _disk_sequence(whole_disk: Path) -> str:
    try:
        return (whole_disk / "diskseq").read_text().strip()
    except OSError:
        return "none"  # before 5.15
