"""What is migrated: a mounted file system on a loop device (root), or a plain file (without root). One interface for the road.

Called by ``road``. ``differs`` says what the way without root cannot show.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from deploy.demo import proof
from deploy.demo.lab_server import DISK_BYTES, FILL_BYTES, LabDisk
from deploy.demo.operator import DemoError
from deploy.demo.proof import DrillVerdict
from deploy.demo.remains import Remains
from deploy.demo.workload import paused_marker, read_ledger

PLAIN_DISK_BYTES: Final = 512 * 2**20
PLAIN_FILL_BYTES: Final = 160 * 2**20
_STOP_DEADLINE_S: Final = 20.0
Progress = Callable[[int, int], None]


class Source(Protocol):
    """A disk with a workload on it."""

    tracker: str
    size_bytes: int
    differs: str

    @property
    def disk(self) -> Path:
        """What is protected."""
        ...

    @property
    def hooks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Quiesce hooks for the agent, pre and post."""
        ...

    @property
    def disk_files(self) -> tuple[Path, ...]:
        """Plain files that the agent is told to offer."""
        ...

    def create(self) -> None: ...

    def fill(self, progress: Progress) -> None: ...

    def start_workload(self) -> None: ...

    def commits(self) -> int:
        """Commits acknowledged so far."""
        ...

    def stop(self) -> None:
        """Stop the workload and take the disk offline: what an operator does before a cutover."""
        ...

    def check_drill(self, image: Path, cut_time_ns: int) -> DrillVerdict: ...

    @property
    def workload_pid(self) -> int | None: ...

    def remains(self) -> Remains:
        """What of the machine it uses now, without processes."""
        ...

    def destroy(self) -> None: ...


class _Workload:
    """The workload's process and its ledger outside the disk."""

    def __init__(self, directory: Path) -> None:
        self.ledger = directory / "acknowledged"
        self._log = directory / "workload.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str | Path) -> None:
        self.ledger.touch()
        command = [sys.executable, "-m", "deploy.demo.workload", *map(str, arguments), "--ledger", str(self.ledger)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def pid(self) -> int | None:
        return None if self.process is None or self.process.poll() is not None else self.process.pid

    def commits(self) -> int:
        if self.process is not None and self.process.poll() is not None:
            raise DemoError(f"the workload ended by itself:\n{self._log.read_text()[-2000:]}")
        return len(read_ledger(self.ledger))

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class FileSystemSource:
    """2 GiB on a loop device, ext4 with ``discard``, real files, SQLite and file churn; tracked in the kernel."""

    tracker = "ebpf"
    differs = ""

    def __init__(self, directory: Path, disk_bytes: int = DISK_BYTES, fill_bytes: int = FILL_BYTES) -> None:
        self.size_bytes = disk_bytes
        self._lab = LabDisk(directory, disk_bytes, fill_bytes)
        self._directory = directory
        self._workload = _Workload(directory)

    @property
    def disk(self) -> Path:
        if self._lab.device is None:
            raise DemoError("the lab disk is not attached")
        return self._lab.device

    @property
    def hooks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (), ()

    @property
    def disk_files(self) -> tuple[Path, ...]:
        return ()

    def create(self) -> None:
        self._lab.create()

    def fill(self, progress: Progress) -> None:
        copied = self._lab.fill(progress)
        if copied < self._lab.fill_bytes // 4:
            raise DemoError(f"only {copied} bytes of real files were found on this machine")

    def start_workload(self) -> None:
        self._workload.start("--directory", self._lab.mount_point)

    def commits(self) -> int:
        return self._workload.commits()

    def stop(self) -> None:
        self._workload.stop()
        self._lab.unmount()

    def check_drill(self, image: Path, cut_time_ns: int) -> DrillVerdict:
        with proof.attached(image) as device:
            proof.check_file_system(device)
            return proof.check_database(device, self._directory / "drill", self._workload.ledger, cut_time_ns)

    @property
    def workload_pid(self) -> int | None:
        return self._workload.pid

    def remains(self) -> Remains:
        lab = self._lab
        if lab.device is None:
            return Remains()
        return Remains(mount_point=str(lab.mount_point), device=str(lab.device), image=str(lab.image))

    def destroy(self) -> None:
        self._workload.stop()
        self._lab.destroy()


class PlainFileSource:
    """A plain file as disk; the workload writes ledger records straight into its blocks; changes are found by comparison."""

    tracker = "scan"
    differs = (
        "Without root: a plain file instead of a block device, no file system in it; changes are found by reading and comparing "
        "(scan), not tracked in the kernel; recovery points need the workload's quiesce hooks instead of a freeze."
    )

    def __init__(self, directory: Path, disk_bytes: int = PLAIN_DISK_BYTES, fill_bytes: int = PLAIN_FILL_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.size_bytes = disk_bytes
        self._fill_bytes = fill_bytes
        self._directory = directory
        self._image = directory / "disk.img"
        self._workload = _Workload(directory)

    @property
    def disk(self) -> Path:
        return self._image

    @property
    def hooks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        signal_workload = str(self._directory / "signal-workload")
        return (signal_workload, "USR1"), (signal_workload, "USR2")

    @property
    def disk_files(self) -> tuple[Path, ...]:
        return (self._image,)

    def create(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(self.size_bytes)

    def fill(self, progress: Progress) -> None:
        rng = random.Random(2026)  # noqa: S311 - content, not a secret
        with self._image.open("r+b") as image:
            done = 0
            while done < self._fill_bytes:
                piece = rng.randbytes(512 * 1024) + b"compressible content " * 25_000
                image.write(piece)
                done += len(piece)
                progress(min(done, self._fill_bytes), self._fill_bytes)
        script = self._directory / "signal-workload"
        pid_file = self._directory / "workload.pid"
        paused = paused_marker(self._workload.ledger)
        # The hook returns only when the workload has finished the record that it was writing, and says so.
        script.write_text(
            f"""#!/bin/sh
rm -f {paused}
kill -$1 $(cat {pid_file}) || exit 1
[ $1 = USR1 ] || exit 0
for _ in $(seq 100); do
    [ -e {paused} ] && exit 0
    sleep 0.05
done
exit 1
"""
        )
        script.chmod(0o755)

    def start_workload(self) -> None:
        self._workload.start("--raw", self._image)
        if self._workload.process is not None:
            (self._directory / "workload.pid").write_text(str(self._workload.process.pid))
        deadline_s = time.monotonic() + _STOP_DEADLINE_S
        while not self.commits() and time.monotonic() < deadline_s:
            time.sleep(0.05)

    def commits(self) -> int:
        return self._workload.commits()

    def stop(self) -> None:
        self._workload.stop()
        descriptor = os.open(self._image, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check_drill(self, image: Path, cut_time_ns: int) -> DrillVerdict:
        return proof.check_records(image, self._workload.ledger, cut_time_ns)

    @property
    def workload_pid(self) -> int | None:
        return self._workload.pid

    def remains(self) -> Remains:
        return Remains()

    def destroy(self) -> None:
        self._workload.stop()
