"""What a demo has on the machine besides its directory: processes, a mount, a loop device, pins. Written down, so that all can be ended.

Called by ``road`` (record), ``__main__`` (a demo that was killed, or still runs), and as ``python -m deploy.demo.remains DIRECTORY``,
which ends what is left: how a site kept with ``KEEP=1`` is stopped. A process counts as the demo's only if it started when the record says.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

_FILE: Final = "remains.json"
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_STOP_DEADLINE_S: Final = 20.0


def stop_command(directory: Path) -> str:
    """What stops a kept site, from whatever directory the operator is in."""
    command = shlex.join([sys.executable, "-m", "deploy.demo.remains", str(directory.resolve())])
    return f"(cd {shlex.quote(str(_REPOSITORY))} && {command})"


@dataclass
class Remains:
    """``processes``: process id → start time in clock ticks since boot (proc(5), field 22 of ``stat``)."""

    processes: dict[int, int] = field(default_factory=dict)
    mount_point: str = ""
    device: str = ""
    image: str = ""
    pin_root: str = ""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """None if there are none, or if the record is unreadable."""
        try:
            document = json.loads((directory / _FILE).read_text())
            document["processes"] = {int(pid): int(ticks) for pid, ticks in document["processes"].items()}
            return cls(**document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, directory: Path) -> None:
        (directory / _FILE).write_text(json.dumps(asdict(self)))

    def note_process(self, pid: int) -> None:
        ticks = _start_ticks(pid)
        if ticks is not None:
            self.processes[pid] = ticks

    def alive(self) -> list[int]:
        """Those of its processes that still run, oldest first."""
        return [pid for pid, ticks in self.processes.items() if _start_ticks(pid) == ticks]

    def end(self) -> None:
        """Stop the processes (SIGTERM, then SIGKILL), unmount, detach, remove the pins; what is gone already is passed over.

        :raises RuntimeError: if something cannot be ended; what the command said.
        """
        self._end_processes()
        if self.mount_point and os.path.ismount(self.mount_point):
            _run("umount", self.mount_point)
        if self.device and _backing_file(self.device) == self.image:
            _run("losetup", "--detach", self.device)
        if self.pin_root.startswith("/sys/fs/bpf/blockferry-demo-"):
            shutil.rmtree(self.pin_root, ignore_errors=True)

    def _end_processes(self) -> None:
        for pid in reversed(self.alive()):
            os.kill(pid, signal.SIGTERM)
        until_s = time.monotonic() + _STOP_DEADLINE_S
        while self.alive() and time.monotonic() < until_s:
            time.sleep(0.1)
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)


def _start_ticks(pid: int) -> int | None:
    """None if there is no such process, or only its zombie."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(others[18])


def _backing_file(device: str) -> str:
    try:
        return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    except OSError:
        return ""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot run {' '.join(command)}: {done.stderr.strip()}")


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m deploy.demo.remains DIRECTORY\n")
        return 2
    directory = Path(sys.argv[1])
    remains = Remains.read(directory)
    if remains is None:
        sys.stdout.write(f"nothing of a demo is left in {directory}\n")
        return 0
    try:
        remains.end()
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    (directory / _FILE).unlink()
    sys.stdout.write("stopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
