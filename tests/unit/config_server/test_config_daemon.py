"""The daemon as a process: ready when it serves, alive without its store, gone on SIGTERM, the same after SIGKILL."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from config_server.cli import main
from replication.documents import WriterIdentity

DEADLINE_S = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Process:
    """One configuration server: its files stay, its process comes and goes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.health_port = free_port()
        self.config = directory / "config-server.yaml"
        (directory / "account-key").write_text(base64.b64encode(bytes(32)).decode())
        document = {
            "listen": f"127.0.0.1:{free_port()}",
            "state_dir": str(directory / "state"),
            "store": {
                "url": "https://127.0.0.1:1/lab",
                "account": "lab",
                "key_file": str(directory / "account-key"),
                "connect_timeout_s": 1,
            },
            "writer_public_key": WriterIdentity.generate().public.encode(),
            "observability": {"listen": f"127.0.0.1:{self.health_port}"},
        }
        self.config.write_text(yaml.safe_dump(document))
        self.running: subprocess.Popen[str] | None = None

    def start(self, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "config_server", "run", "--config", str(self.config)]
        self.running = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        return self.running

    def health(self) -> dict[str, Any]:
        """The health page, as soon as it answers."""
        until_s = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                return self._ask()
            assert self.running is not None
            assert self.running.poll() is None, self.running.stderr and self.running.stderr.read()
            assert time.monotonic() < until_s, "the daemon does not answer"
            time.sleep(0.02)

    def _ask(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/healthz", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def end(self) -> None:
        if self.running is not None and self.running.poll() is None:
            self.running.kill()
        if self.running is not None:
            self.running.communicate()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    done = CliRunner().invoke(main, ["init", "--config", str(made.config)])
    assert done.exit_code == 0, done.output
    try:
        yield made
    finally:
        made.end()


def test_daemon_tells_readiness_and_ends_on_sigterm(process: Process, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(DEADLINE_S)
        running = process.start({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notify.recv(100) == b"READY=1"
        running.send_signal(signal.SIGTERM)
        assert notify.recv(100) == b"STOPPING=1"
    _, log = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0, log
    entries = [json.loads(line) for line in log.splitlines()]
    assert {"ready", "stopping"} <= {entry["message"] for entry in entries}
    assert all(entry["daemon"] == "config-server" for entry in entries)
    assert "Traceback" not in log


def test_daemon_lives_without_its_store_and_says_so(process: Process) -> None:
    process.start()
    until_s = time.monotonic() + DEADLINE_S
    while "store" not in {check["name"] for check in process.health()["checks"]}:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    shown = process.health()
    assert shown["status"] == "degraded"
    store = next(check for check in shown["checks"] if check["name"] == "store")
    assert (store["status"], "cannot" in store["reason"]) == ("degraded", True)


def test_daemon_goes_on_after_sigkill(process: Process) -> None:
    for _ in range(2):
        running = process.start()
        process.health()
        running.kill()
        running.communicate()
    running = process.start()
    process.health()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0


def test_second_daemon_on_the_same_address_is_refused(process: Process) -> None:
    process.start()
    process.health()
    second = subprocess.run(
        [sys.executable, "-m", "config_server", "run", "--config", str(process.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert "another process listens there" in second.stderr
