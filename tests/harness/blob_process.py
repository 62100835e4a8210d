"""``azure-sink blob`` as a process of its own, to be killed and started again on the same state.

Called by the crash tests. ``start`` returns when the service has said over sd_notify that it is ready. Whoever starts a process ends it:
use it as a context manager.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from replication.blob_client.settings import BlobEndpointSettings
from tests.harness.blob_site import ACCOUNT, KEY, write_server_certificate

START_TIMEOUT_S: Final = 60.0


class BlobProcess:
    """One state directory (``state``, else one below ``directory``); at most one process at a time."""

    def __init__(self, directory: Path, state: Path | None = None) -> None:
        self.state = directory / "state" if state is None else state
        self._log = directory / "service.log"
        self._notify_path = directory / "notify"
        self._key_file = directory / "account.key"
        self._key_file.write_text(base64.b64encode(KEY).decode())
        self._ca_file, self._certificate, self._key = write_server_certificate(directory)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def start(self) -> None:
        """Start the service on a free port; on return it answers."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self._notify_path.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self._log.open("wb") as log:
            notify.bind(str(self._notify_path))
            notify.settimeout(START_TIMEOUT_S)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "azure_sink", "blob", "--listen", "127.0.0.1:0", "--account", ACCOUNT),
                    *("--key-file", self._key_file, "--state", self.state, "--observability", "127.0.0.1:0"),
                    *("--tls-cert", self._certificate, "--tls-key", self._key),
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(self._notify_path)},
            )
            try:
                while b"READY=1" not in notify.recv(4096):
                    pass
            except TimeoutError:
                raise AssertionError(f"the service did not start:\n{self._log.read_text()}") from None
        for line in self._log.read_text().splitlines():
            entry = json.loads(line)
            if "address" in entry:
                self._port = int(entry["address"].rpartition(":")[2])

    def stand_still(self) -> None:
        """SIGSTOP; on return no thread will do anything again but end the system call that it is in."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self._process.pid}/task")
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while any(_state_of(task) not in "TtDZX" for task in tasks.iterdir()):
            assert time.monotonic() < deadline_s, "a stopped process goes on"

    def kill(self) -> None:
        """SIGKILL, at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._process.wait, START_TIMEOUT_S)
        self._process = None
        return code

    @property
    def log(self) -> str:
        return self._log.read_text()

    def endpoint(self) -> BlobEndpointSettings:
        return BlobEndpointSettings(
            url=f"https://127.0.0.1:{self._port}/{ACCOUNT}",
            account=ACCOUNT,
            key_file=self._key_file,
            ca_file=self._ca_file,
            timeout_s=30.0,
            connections=16,
        )


def _state_of(task: Path) -> str:
    """The letter of proc_pid_stat(5); X for a thread that has ended."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
