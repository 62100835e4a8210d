"""The demo's site: certificates and configuration, then four daemons as processes of their own, started, killed and watched.

Called by ``__main__``. Every process is started here and stopped here, by its process id. Each daemon has a directory of its own under the
site's; they share nothing but TCP connections.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from deploy.demo.preflight import free_ports

ACCOUNT: Final = "blockferrydemo"
DAEMONS: Final = ("azure-sink", "config-server", "process-server", "mobility-agent")
PIN_ROOT: Final = Path("/sys/fs/bpf/blockferry-demo")
"""Apart from an agent that may run on this machine for real."""
READY_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 15.0
_MODULES: Final = {
    "azure-sink": "azure_sink",
    "config-server": "config_server",
    "process-server": "process_server",
    "mobility-agent": "mobility_agent",
    "migratectl": "config_server.migratectl",
}
_DIE_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")


@dataclass(slots=True)
class Daemon:
    """One daemon: how it is run, its process, and the most memory it was seen to use."""

    name: str
    command: list[str]
    log: Path
    health_port: int
    process: subprocess.Popen[bytes] | None = None
    peak_anonymous_bytes: int = 0
    starts: int = 0


@dataclass
class Site:
    """``directory`` is the site's; ``keep`` lets the daemons outlive the demo's own process."""

    directory: Path
    disk_files: tuple[Path, ...] = ()
    tracker: str = "auto"
    hooks: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    keep: bool = False
    daemons: dict[str, Daemon] = field(default_factory=dict)
    fingerprint: str = ""
    _sampling: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        names = ("blob", "config", "process", "h-sink", "h-config", "h-process", "h-agent")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))

    @property
    def config_url(self) -> str:
        return f"https://127.0.0.1:{self.ports['config']}"

    @property
    def store_url(self) -> str:
        return f"https://127.0.0.1:{self.ports['blob']}/{ACCOUNT}"

    @property
    def token_file(self) -> Path:
        return self.directory / "operator" / "token"

    @property
    def authority_file(self) -> Path:
        return self.directory / "operator" / "authorities.pem"

    @property
    def account_key_file(self) -> Path:
        return self.directory / "operator" / "account.key"

    # ---- installation

    def install(self) -> None:
        """Configuration files, authority, certificates, writer identity: what an operator does once."""
        (self.directory / "operator").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_secret(self.account_key_file, base64.b64encode(secrets.token_bytes(32)).decode())
        for name, document in self._configurations().items():
            path = self._config_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(document, sort_keys=False))
        self.run("azure-sink", "init", "--config", self._config_path("azure-sink"))
        writer_key = self.run("azure-sink", "show-writer-key", "--config", self._config_path("azure-sink"))
        (self.directory / "config-server" / "writer.pub").write_text(writer_key + "\n")
        config = self._config_path("config-server")
        self.run("config-server", "init", "--config", config, "--token-file", self.token_file)
        self.fingerprint = self.run("config-server", "show-fingerprint", "--config", config)
        self.authority_file.write_text(self.run("config-server", "show-authority", "--config", config) + "\n")
        sink_tls = self.directory / "azure-sink" / "tls"
        self.run("config-server", "issue-certificate", "--config", config, "--ip", "127.0.0.1", "--out", sink_tls)
        self._add("azure-sink", ["all"], self.ports["h-sink"])
        self._add("config-server", ["run"], self.ports["h-config"])
        self._add("process-server", ["run"], self.ports["h-process"])
        self._add("mobility-agent", ["run"], self.ports["h-agent"])

    def _store(self) -> dict[str, object]:
        return {
            "url": self.store_url,
            "account": ACCOUNT,
            "key_file": str(self.account_key_file),
            "ca_file": str(self.authority_file),
        }

    def _configurations(self) -> dict[str, dict[str, object]]:
        sink, process = self.directory / "azure-sink", self.directory / "process-server"

        def observability(name: str) -> dict[str, str]:
            return {"listen": f"127.0.0.1:{self.ports[name]}"}

        pre, post = self.hooks
        return {
            "azure-sink": {
                "blob": {
                    "listen": f"127.0.0.1:{self.ports['blob']}",
                    "account": ACCOUNT,
                    "key_file": str(self.account_key_file),
                    "state_dir": str(sink / "blobs"),
                    "tls_cert": str(sink / "tls" / "certificate.pem"),
                    "tls_key": str(sink / "tls" / "key.pem"),
                },
                "writer": {"store": self._store(), "state_dir": str(sink / "writer"), "lease_s": 15},
                "observability": observability("h-sink"),
            },
            "config-server": {
                "listen": f"127.0.0.1:{self.ports['config']}",
                "state_dir": str(self.directory / "config-server" / "state"),
                "writer_public_key": str(self.directory / "config-server" / "writer.pub"),
                "store": self._store(),
                "observability": observability("h-config"),
            },
            "process-server": {
                "listen": f"127.0.0.1:{self.ports['process']}",
                "state_dir": str(process / "state"),
                "config_server": {"url": self.config_url},
                "store": self._store(),
                "observability": observability("h-process"),
            },
            "mobility-agent": {
                "config_server": {"url": self.config_url},
                "state_dir": str(self.directory / "mobility-agent" / "state"),
                "disk_files": [str(path) for path in self.disk_files],
                "heartbeat_s": 1,
                "tracker": {"kind": self.tracker, "scan_interval_s": 3, "pin_root": str(PIN_ROOT)},
                "quiesce": {"pre": list(pre), "post": list(post)},
                "observability": observability("h-agent"),
            },
        }

    def _config_path(self, name: str) -> Path:
        return self.directory / name / "config.yaml"

    def _write_secret(self, path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")

    def enrol(self, name: str) -> None:
        """Enrol a process server or agent: passphrase and the authority's fingerprint, as an operator would."""
        passphrase_file = self.directory / "operator" / f"passphrase-{name}"
        self._write_secret(passphrase_file, self.migratectl("create-enrolment-passphrase"))
        arguments = ["enrol", "--config", str(self._config_path(name)), "--fingerprint", self.fingerprint]
        arguments += ["--passphrase-file", str(passphrase_file)]
        self.run(name, *arguments)
        passphrase_file.unlink()

    # ---- commands

    def command(self, name: str, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", _MODULES[name], *map(str, arguments)]

    def run(self, name: str, *arguments: str | Path) -> str:
        """Run one of the product's commands to its end; its standard output."""
        done = subprocess.run(
            self.command(name, *arguments), capture_output=True, text=True, check=False, env=self._environment()
        )
        if done.returncode:
            shown = " ".join([name, *map(str, arguments)])
            raise RuntimeError(f"{shown} failed with exit code {done.returncode}:\n{done.stderr or done.stdout}")
        return done.stdout.strip()

    def migratectl(self, *arguments: str | Path) -> str:
        return self.run("migratectl", *arguments)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "BLOCKFERRY_URL": self.config_url,
            "BLOCKFERRY_TOKEN_FILE": str(self.token_file),
            "BLOCKFERRY_AUTHORITY": str(self.authority_file),
        }

    # ---- daemons

    def _add(self, name: str, arguments: list[str], health_port: int) -> None:
        command = self.command(name, *arguments, "--config", self._config_path(name))
        self.daemons[name] = Daemon(name, command, self.directory / name / "log", health_port)

    def start(self, name: str) -> None:
        """Start a daemon and wait until its health page answers.

        :raises RuntimeError: if it ends or does not answer in time; with the end of its log.
        """
        daemon = self.daemons[name]
        with daemon.log.open("ab") as log:
            daemon.process = subprocess.Popen(
                daemon.command if self.keep else [*_DIE_WITH_PARENT, *daemon.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=self.keep,
            )
        daemon.starts += 1
        deadline_s = time.monotonic() + READY_DEADLINE_S
        while not _answers(daemon.health_port):
            if daemon.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{name} did not become ready; the end of {daemon.log}:\n{self.tail(name)}")
            time.sleep(0.05)

    def tail(self, name: str, lines: int = 15) -> str:
        return "\n".join(self.daemons[name].log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self, name: str) -> None:
        """SIGKILL: no farewell."""
        process = self.daemons[name].process
        if process is not None:
            process.kill()
            process.wait()

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL if it does not end in time."""
        process = self.daemons[name].process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        self._sampling.set()
        for name in reversed(DAEMONS):
            if name in self.daemons:
                self.stop(name)
        for disk in PIN_ROOT.iterdir() if PIN_ROOT.is_dir() else ():
            for pin in disk.iterdir():
                pin.unlink()
            disk.rmdir()
        if PIN_ROOT.is_dir():
            PIN_ROOT.rmdir()

    def metric(self, name: str, metric: str) -> float:
        """The sum of one of a daemon's metrics over its labels; 0 if it has none."""
        url = f"http://127.0.0.1:{self.daemons[name].health_port}/metrics"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            lines = response.read().decode().splitlines()
            return sum(
                float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == metric
            )
        return 0.0

    def sample_memory(self) -> None:
        """Note each daemon's anonymous memory twice a second until ``stop_all``, in a thread."""

        def sample() -> None:
            while not self._sampling.wait(0.5):
                for daemon in self.daemons.values():
                    daemon.peak_anonymous_bytes = max(daemon.peak_anonymous_bytes, _anonymous_bytes(daemon.process))

        threading.Thread(target=sample, name="memory", daemon=True).start()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _anonymous_bytes(process: subprocess.Popen[bytes] | None) -> int:
    if process is None:
        return 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
