"""Spool, agent's state and store on file systems that others fill up: the operator is told, nothing is lost, it goes on when there is room.

A whole site under load, each of the three on a small ext4 of its own; they are filled one after the other. In the end the replica is
compared with the source byte by byte. The store alone, in more ways: ``test_blob_store_on_a_full_disk``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.daemon_use import use_is_bounded
from tests.harness.fault_site import FaultSite, QuickSite, fault_site
from tests.harness.loop_disk import loop_disk, mounted, run
from tests.harness.running_site import POLICY

MIB: Final = 2**20
STATE: Final = {
    "process-server": ("site/process-server/state", 384 * MIB),
    "mobility-agent": ("site/mobility-agent/state", 128 * MIB),
    "azure-sink": ("site/azure-sink/blobs", 512 * MIB),
}

pytestmark = [
    pytest.mark.heavy("a site whose file systems are filled one after the other"),
    pytest.mark.timeout(1800),
    pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4"),
]


class SmallSite(QuickSite):
    """Fits its small file systems."""

    def _configurations(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super()._configurations()
        found["azure-sink"]["blob"]["reserve_bytes"] = 16 * MIB
        found["process-server"]["spool"] = {"limit_bytes": 64 * MIB}
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FaultSite]:
    with contextlib.ExitStack() as stack:
        for name, (place, size_bytes) in STATE.items():
            disk = stack.enter_context(loop_disk(tmp_path / f"{name}.img", size_bytes))
            run("mkfs.ext4", "-q", "-m", "0", disk.device)
            stack.enter_context(mounted(disk.device, tmp_path / place))
        yield stack.enter_context(fault_site(tmp_path, 128 * MIB, kind=SmallSite))


def test_full_file_systems_stop_replication_with_a_reason_until_there_is_room(site: FaultSite) -> None:
    site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.5 s")
    site.running.protect(site.disk.device)

    def agent_is_told() -> None:
        site.await_condition("disk-operating-system", "No space left on device")
        site.await_own_health("mobility-agent", "No space left on device")

    def store_is_told() -> None:
        site.await_condition("upload-blocked", "ServerBusy")
        site.await_own_health("azure-sink", "degraded")

    def spool_is_told() -> None:
        site.launch("process-server")  # what it appends to has its room already: the next file has none
        site.await_condition("disk-overloaded", "the spool's file system is full")
        site.await_own_health("process-server", "the spool's file system is full")

    with use_is_bounded(site):
        fill_and_free(site, "mobility-agent", agent_is_told)
        fill_and_free(site, "azure-sink", store_is_told)
        fill_and_free(site, "process-server", spool_is_told)
    site.prove()


def fill_and_free(site: FaultSite, name: str, is_told: Callable[[], None]) -> None:
    ballast = site.directory / STATE[name][0] / "ballast"
    before = site.position()
    fill(ballast)
    site.disk.write_once()
    site.tell(f"the file system of {name} is full")
    try:
        is_told()
    finally:
        ballast.unlink()
    site.await_progress(before.now(), what=f"a full file system of {name}")


def fill(path: Path) -> None:
    """Take all that is left, to the last byte."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size_bytes in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while os.write(descriptor, bytes(size_bytes)):
                    pass
    finally:
        os.close(descriptor)
