"""Whether a device can be tracked by ``ebpf``, and why not. Reads /sys and /proc, and tries membarrier(2).

Called by ``tracker`` before it attaches, by the listing of disks and by the pre-check.
"""

from __future__ import annotations

import os
import platform
import stat
from pathlib import Path
from typing import Final

from mobility_agent.change_tracker.ebpf import bpf_syscall
from replication.errors import NotFound, Unsupported

_MACHINES: Final = ("x86_64", "aarch64")
_KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_OLDEST_KERNEL: Final = (5, 12)
"""Atomic operations in eBPF programs."""
_SCAN_HINT: Final = "use the tracker 'scan'"


def why_not_trackable(device: Path, sysfs: Path = Path("/sys")) -> str | None:
    """One sentence that says why ``ebpf`` cannot track ``device``; None if it can, privilege apart.

    :raises NotFound: if there is no such device.
    """
    return why_not_machine() or _why_not_this_device(device, sysfs)


def require_trackable(device: Path) -> None:
    """:raises Unsupported: with the reason and what to do instead."""
    reason = why_not_trackable(device)
    if reason is not None:
        raise Unsupported(f"cannot track {device} with eBPF: {reason}", hint=_SCAN_HINT)


def why_not_machine() -> str | None:
    """One sentence that says why ``ebpf`` cannot work on this machine at all; None if it can, privilege apart."""
    if platform.machine() not in _MACHINES:
        return f"machine type {platform.machine()} is not supported"
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if version < _OLDEST_KERNEL:
        return f"kernel {platform.release()} is older than {'.'.join(map(str, _OLDEST_KERNEL))}"
    if not _KERNEL_BTF.exists():
        return f"kernel {platform.release()} does not describe its types (no {_KERNEL_BTF})"
    reason = bpf_syscall.why_no_grace_period()
    if reason:
        return f"nothing tells when running eBPF programs have ended: {reason}"
    return None


def _why_not_this_device(device: Path, sysfs: Path) -> str | None:
    try:
        found = os.stat(device)
    except FileNotFoundError:
        raise NotFound(f"cannot find {device}") from None
    if not stat.S_ISBLK(found.st_mode):
        return "it is not a block device"
    directory = sysfs / "dev/block" / f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    if not directory.exists():
        raise NotFound(f"cannot find {device} in {sysfs}: the device is gone")
    if (directory / "partition").exists():
        return "it is a partition; requests are tracked on the whole disk"
    if not (directory / "mq").is_dir():
        # Stacked and memory-backed drivers (device-mapper, MD, zram, NVMe multipath heads) take bios and make no
        # requests, so the tracepoints of requests stay silent.
        return "its driver makes no block requests (device-mapper, MD, zram and the like)"
    zoned = directory / "queue/zoned"
    if zoned.exists() and zoned.read_text().strip() != "none":
        return "zoned devices are not supported"
    return None
