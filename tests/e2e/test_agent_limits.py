"""The agent's limits on a real disk: what the kernel counts for its process keeps to them, and a freeze does not wait for them.

What was read and what processor time was used is asked of the kernel (``/proc/PID/io``, ``/proc/PID/stat``), not of the agent.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from deploy.demo.operator import Json, wait_until
from deploy.demo.site import Site
from tests.harness.loop_disk import loop_disk, mounted, run
from tests.harness.running_site import RunningSite, running_site

pytestmark = [
    pytest.mark.heavy("a site, and a disk that is read at its limit"),
    pytest.mark.timeout(300),
    pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4"),
]

MIB = 2**20
MB = 10**6
DISK_BYTES = 64 * MIB
REGION_BYTES = 8 * MIB
LIMIT = 8 * MB
MEMORY_BYTES = 192 * MIB


@dataclass(frozen=True)
class Used:
    """By the agent's process since it began, says the kernel."""

    at_s: float
    read_bytes: int
    cpu_s: float
    most_memory_bytes: int


def used(pid: int) -> Used:
    process = Path(f"/proc/{pid}")
    fields = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
    times = (process / "stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return Used(time.monotonic(), int(fields["read_bytes"]), cpu_s, int(status["VmHWM"].split()[0]) * 1024)


def agent_pid(site: RunningSite) -> int:
    process = site.site.daemons["mobility-agent"].process
    assert process is not None
    return process.pid


def limit_memory(site: Site) -> None:
    path = site.directory / "mobility-agent" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["limits"] = {"memory_bytes": MEMORY_BYTES}
    path.write_text(yaml.safe_dump(settings))


@contextlib.contextmanager
def rewriting(file: Path) -> Iterator[None]:
    """One region is written again and again, so that every round before a point, and the last one, has all of it to read."""
    stop = threading.Event()

    def write() -> None:
        dice = random.Random(1)
        with file.open("r+b", buffering=0) as stream:
            while not stop.is_set():
                for _ in range(64):
                    stream.seek(dice.randrange(REGION_BYTES // 4096) * 4096)
                    stream.write(dice.randbytes(4096))
                os.fsync(stream.fileno())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_the_kernel_sees_the_limits_kept_and_no_freeze_waits_for_them(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        disk = opened.enter_context(loop_disk(tmp_path / "disk.img", DISK_BYTES))
        run("mkfs.ext4", "-q", disk.device)
        mount_point = opened.enter_context(mounted(disk.device, tmp_path / "mnt"))
        (mount_point / "region").write_bytes(os.urandom(REGION_BYTES))
        os.sync()
        site = opened.enter_context(running_site(tmp_path / "site", installed=limit_memory))
        pid = agent_pid(site)
        site.operator.order("set-agent-limits", site.server, "--read-rate", "8 MB/s", "--cpu", "0.5")

        def limit_in_force(bytes_per_s: int | None) -> Json | None:
            status: Json | None = site.operator.get(f"/servers/{site.server}/agent-limits")["in_force"]
            return status if status and status["read_bytes_per_s"] == bytes_per_s else None

        wait_until("the limits in force", lambda: limit_in_force(LIMIT), 30.0)

        # Initial replication: the limit is what it waits for, and in no window of two seconds and more it reads more.
        samples = [used(pid)]
        site.begin_protection(disk.device, point_interval="1 h")
        while site.operator.required_item()["state"] != "replicating":
            time.sleep(0.2)
            samples.append(used(pid))
            assert samples[-1].at_s - samples[0].at_s < 120
        for number, first in enumerate(samples):
            for last in samples[number:]:
                seconds = last.at_s - first.at_s
                if seconds >= 2:
                    assert last.read_bytes - first.read_bytes <= LIMIT * 1.03 * (seconds + 0.2) + 256 * 1024
        assert samples[-1].read_bytes - samples[0].read_bytes >= DISK_BYTES
        tell("initial replication", samples[0], samples[-1])

        # A point while all of the region changes all the time: at the limit its last round would last a second, frozen.
        with rewriting(mount_point / "region"):
            site.operator.order("create-recovery-point", site.server, "--wait", "--timeout", "2 min")
        cut = site.operator.newest_job("recovery-point")["id"]
        item = site.wait_item("the point is reported", 30.0, lambda item: newest_cut(item) == cut)
        frozen_s = item["disks"][0]["observation"]["last_freeze_s"]
        print(f"frozen {frozen_s:.3f} s; the last round at the limit: {REGION_BYTES / LIMIT:.2f} s")
        assert frozen_s < 0.75 * REGION_BYTES / LIMIT
        last = used(pid)
        tell("the point, with its rounds", samples[-1], last)
        print(f"memory {last.most_memory_bytes / MIB:.0f} MiB of {MEMORY_BYTES / MIB:.0f}")
        assert last.most_memory_bytes <= MEMORY_BYTES


def tell(what: str, first: Used, last: Used) -> None:
    took_s = last.at_s - first.at_s
    read_mb_per_s = (last.read_bytes - first.read_bytes) / took_s / MB
    print(f"{what}: {took_s:.1f} s, read {read_mb_per_s:.2f} MB/s, CPU {(last.cpu_s - first.cpu_s) / took_s:.3f} cores")


def newest_cut(item: Json) -> str | None:
    observed = item["disks"][0]["observation"]
    return None if observed is None else observed["newest_cut"]
