"""What an agent with limited privileges can do, tried out in a process of its own: ``python -m tests.harness.agent_privileges_probe``.

Started by ``tests/e2e/test_agent_privileges.py`` under ``setpriv``. Prints what it saw as one line of JSON; ends with an error otherwise.
Usage: ``track DEVICE PINS | freeze MOUNT_POINT | guard | writers DEVICE | hook USER | claim FILE``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mobility_agent.block_device.claim import Claim
from mobility_agent.block_device.usage import open_by
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.quiesce.freeze_guard import FreezeGuard
from mobility_agent.quiesce.hooks import QuiesceHooks
from mobility_agent.quiesce.interface import Mount
from mobility_agent.quiesce.locked_memory import LockedBuffer
from replication.errors import Retryable

OVERRUN_S = 6


def track(device: str, pins: str) -> object:
    """Attach (maps, programs, links, pins), write a granule, harvest."""
    tracker = EbpfTracker.attach(Path(device), pin_directory=Path(pins))
    descriptor = os.open(device, os.O_RDWR | os.O_SYNC)
    os.pwrite(descriptor, b"x" * 4096, 5 * 65536)
    os.fsync(descriptor)
    os.close(descriptor)
    harvest = tracker.begin_harvest()
    tracker.commit_harvest()
    tracker.close()
    return list(harvest.bitmap.runs())


def freeze(mount_point: str) -> object:
    """Freeze and thaw one file system, with the last round's memory locked."""
    number = os.stat(mount_point).st_dev
    mount = Mount(mount_point, "ext4", "loop", (os.major(number), os.minor(number)), is_read_only=False)
    with LockedBuffer(32 * 2**20), FreezeGuard() as guard, guard.frozen([mount], 30.0) as frozen:
        pass
    return frozen.result is not None and frozen.result.is_point


def guard() -> object:
    """The freeze watchdog's standing with the out-of-memory killer."""
    with FreezeGuard() as started:
        return int(Path(f"/proc/{started.watchdog_process_id}/oom_score_adj").read_text())


def writers(device: str) -> object:
    """Who has the disk open for writing."""
    return sorted(process.process_id for process in open_by(Path(device)) if process.writes)


def hook(user: str) -> object:
    """A hook that becomes another user, then one that takes too long: whether it is ended at once."""
    become = ("runuser", "-u", user, "--")

    async def run() -> None:
        async with QuiesceHooks((*become, "true"), (), 30.0).quiesced():
            pass
        try:
            async with QuiesceHooks((*become, "sleep", str(OVERRUN_S)), (), 0.5).quiesced():
                pass
        except Retryable:
            return

    started_s = time.monotonic()
    asyncio.run(run())
    return "ended" if time.monotonic() - started_s < OVERRUN_S else "ran to its end"


def claim(file: str) -> object:
    """Whether it would be seen that a claimed plain file is written to."""
    with Claim(Path(file)) as claimed:
        return claimed.watch().state


PROBES: dict[str, Callable[..., object]] = {
    probe.__name__: probe for probe in (track, freeze, guard, writers, hook, claim)
}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(PROBES[name](*arguments)))
