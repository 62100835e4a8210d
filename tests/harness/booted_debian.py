"""A Debian 12 that boots: systemd as process 1 in a container of systemd-nspawn, made by debootstrap, without any Python.

Called by ``tests/packages``. It has a root directory and a network of its own (loopback only), shares the kernel, and gets the block
devices that it is given. Its ``/sys/fs/bpf`` is its own and goes with a reboot, as on a machine. When the context is left it is powered
off; if it does not comply the kernel ends all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.harness.source_tree import REPOSITORY

PACKAGES: Final = "curl,dbus,e2fsprogs,openssh-server,openssl,sudo,systemd-sysv,udev"
"""curl is what a server's administrator fetches the installer with; of Python nothing is there."""
_BOOT_TIMEOUT_S: Final = 90.0
_COMMAND_TIMEOUT_S: Final = 180.0
_POLL_S: Final = 0.1
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": ""}


@dataclass
class BootedDebian:
    """``root`` may be read and written from outside. ``devices``: block devices of this machine that it sees under the same name."""

    root: Path
    devices: Sequence[Path] = ()
    _nspawn: subprocess.Popen[bytes] | None = None
    _first_process: int = 0
    console: Path = field(init=False)

    def __post_init__(self) -> None:
        self.console = self.root.with_suffix(".console")

    def unpack(self) -> None:
        tar = subprocess.run(
            [REPOSITORY / "deploy" / "setup" / "bare-debian.sh", PACKAGES], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.root.mkdir(parents=True)
        subprocess.run(["tar", "-C", self.root, "--numeric-owner", "-xzf", tar], check=True)
        (self.root / "etc/dpkg/dpkg.cfg.d/quick").write_text("force-unsafe-io\n")
        assert not list(self.root.glob("usr/bin/python3*"))

    def boot(self) -> None:
        """Returns when everything that is enabled has started."""
        binds = [f"--bind={device}" for device in self.devices]
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                [
                    "systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", f"--machine={self.root.name}",
                    "--register=no", "--keep-unit", "--console=pipe", "--private-network", "--private-users=no",
                    "--capability=all", "--system-call-filter=bpf perf_event_open membarrier @mount", *binds,
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while not self._has_booted():
            assert self._nspawn.poll() is None, f"it did not boot: {self.console.read_text()}"
            assert time.monotonic() < deadline, f"it did not boot in time: {self.console.read_text()}"
            time.sleep(_POLL_S)

    def _has_booted(self) -> bool:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._first_process = int(children[0])
        state = self._enter(["systemctl", "is-system-running"], {}, timeout_s=10).stdout.strip()
        return state in ("running", "degraded")

    def shut_down(self) -> None:
        """As for a reboot: services are stopped in order, and what the kernel kept for this machine is gone."""
        if self._nspawn is None:
            return
        if self._first_process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._enter(["systemctl", "--no-block", "poweroff"], {}, timeout_s=20)
        try:
            self._nspawn.wait(_BOOT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn, self._first_process = None, 0

    def reboot(self) -> None:
        self.shut_down()
        self.boot()

    def _enter(
        self, command: Sequence[str | Path], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        inside = [
            "nsenter",
            f"--target={self._first_process}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--root",
            "--wd",
        ]
        return subprocess.run(
            [*inside, *map(str, command)],
            env={**_ENVIRONMENT, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def try_to(self, script: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a shell's lines inside, as root."""
        return self._enter(["/bin/sh", "-euc", script], {}, timeout_s)

    def run(self, script: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """As ``try_to``; it must succeed."""
        done = self.try_to(script, timeout_s)
        assert done.returncode == 0, f"{script}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def be_called(self, name: str, addresses: Mapping[str, str]) -> None:
        """Host name, and what names mean; addresses beyond the loopback's become this machine's own, until it is rebooted."""
        self.run(f"hostnamectl hostname {name}")
        hosts = {"127.0.0.1": "localhost", **addresses}
        (self.root / "etc" / "hosts").write_text("".join(f"{address} {names}\n" for address, names in hosts.items()))
        enter = ["nsenter", f"--target={self._first_process}", "--net"]
        for address in hosts.keys() - {"127.0.0.1"}:
            subprocess.run([*enter, "ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)

    def let_agents_lock_memory(self) -> None:
        """Root of a container may not be able to raise limits (CAP_SYS_RESOURCE), as a machine's systemd is: no limit instead."""
        drop_in = self.root / "etc/systemd/system/blockferry-agent.service.d/locked-memory.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nCapabilityBoundingSet=CAP_IPC_LOCK\n")

    def give(self, source: Path, target: str) -> None:
        """A file of this machine at ``target`` inside."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


@contextlib.contextmanager
def booted_debian(root: Path, devices: Sequence[Path] = ()) -> Iterator[BootedDebian]:
    machine = BootedDebian(root, devices)
    machine.unpack()
    try:
        machine.boot()
        yield machine
    finally:
        machine.shut_down()
