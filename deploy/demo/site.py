"""The demo's site: certificates and configuration, then four daemons as processes of their own, started, killed and watched.

Called by ``__main__``. Every process is started here and stopped here, by its process id. Each daemon has a directory of its own under the
site's; they share nothing but TCP connections.
"""

from __future__ import annotations

import base64
import functools
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from deploy.demo.daemon_process import DaemonProcess, environment_with
from deploy.demo.preflight import lasting_ports

ACCOUNT: Final = "blockferrydemo"
DAEMONS: Final = ("azure-sink", "config-server", "process-server", "mobility-agent")
_BPF_FILE_SYSTEM: Final = Path("/sys/fs/bpf")
RECEIVED_BYTES: Final = "blockferry_process_server_received_bytes_total"
SEALED_BYTES: Final = "blockferry_process_server_sealed_bytes_total"
UPLOADED_BYTES: Final = "blockferry_process_server_uploaded_bytes_total"
_COUNTERS: Final = {"process-server": (RECEIVED_BYTES, SEALED_BYTES, UPLOADED_BYTES)}
_SAMPLE_EVERY_S: Final = 0.5
_MODULES: Final = {
    "azure-sink": "azure_sink",
    "config-server": "config_server",
    "process-server": "process_server",
    "mobility-agent": "mobility_agent",
    "migratectl": "config_server.migratectl",
}


@dataclass
class Site:
    """``directory`` is the site's; ``keep`` lets the daemons outlive the demo's own process."""

    directory: Path
    disk_files: tuple[Path, ...] = ()
    tracker: str = "auto"
    hooks: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    keep: bool = False
    daemons: dict[str, DaemonProcess] = field(default_factory=dict)
    fingerprint: str = ""
    _sampling: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        names = ("blob", "config", "process", "h-sink", "h-config", "h-process", "h-agent")
        self.ports = dict(zip(names, lasting_ports(len(names)), strict=True))

    @property
    def config_url(self) -> str:
        return f"https://127.0.0.1:{self.ports['config']}"

    @property
    def store_url(self) -> str:
        return f"https://127.0.0.1:{self.ports['blob']}/{ACCOUNT}"

    @property
    def pin_root(self) -> Path:
        """Where the agent pins its tracker: apart from other demos and from an agent that may run on this machine for real."""
        return _BPF_FILE_SYSTEM / f"blockferry-demo-{self.ports['config']}"

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
        _side_by_side(self._install_sink, self._install_config_server)
        sink_tls = self.directory / "azure-sink" / "tls"
        config = self._config_path("config-server")
        self.run("config-server", "issue-certificate", "--config", config, "--ip", "127.0.0.1", "--out", sink_tls)
        self._add("azure-sink", ["all"], self.ports["h-sink"])
        self._add("config-server", ["run"], self.ports["h-config"])
        self._add("process-server", ["run"], self.ports["h-process"])
        self._add("mobility-agent", ["run"], self.ports["h-agent"])

    def _install_sink(self) -> None:
        config = self._config_path("azure-sink")
        self.run("azure-sink", "init", "--config", config)
        writer_key = self.run("azure-sink", "show-writer-key", "--config", config)
        (self.directory / "config-server" / "writer.pub").write_text(writer_key + "\n")

    def _install_config_server(self) -> None:
        config = self._config_path("config-server")
        self.run(
            "config-server", "init", "--config", config, "--administrator", "demo", "--token-file", self.token_file
        )
        self.fingerprint = self.run("config-server", "show-fingerprint", "--config", config)
        self.authority_file.write_text(self.run("config-server", "show-authority", "--config", config) + "\n")

    def start_all(self) -> None:
        """Start the servers, enrol process server and agent as an operator would, start these; their memory is sampled from then on."""
        self.start("azure-sink", "config-server")
        enrolling = ("process-server", "mobility-agent")
        _side_by_side(*(functools.partial(self.enrol, name, self.passphrase(name)) for name in enrolling))
        self.start(*enrolling)
        self.sample()

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
                    "limits": {
                        "compute_md5": False
                    },  # what process servers upload is sealed: its tag says more than an MD5
                },
                "writer": {"state_dir": str(sink / "writer"), "lease_s": 15},
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
                "keep_unprotected_s": 5,
                "tracker": {"kind": self.tracker, "scan_interval_s": 3, "pin_root": str(self.pin_root)},
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

    def passphrase(self, name: str) -> str:
        """A passphrase with which the daemon ``name`` enrols, and none of another role."""
        role = "process-server" if name == "process-server" else "agent"
        return self.migratectl("create-enrolment-passphrase", "--role", role)

    def enrol(self, name: str, passphrase: str) -> None:
        """Enrol a process server or agent: passphrase and the authority's fingerprint, as an operator would."""
        passphrase_file = self.directory / "operator" / f"passphrase-{name}"
        self._write_secret(passphrase_file, passphrase)
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
        return environment_with(
            BLOCKFERRY_URL=self.config_url,
            BLOCKFERRY_TOKEN_FILE=str(self.token_file),
            BLOCKFERRY_AUTHORITY=str(self.authority_file),
        )

    # ---- daemons

    def _add(self, name: str, arguments: list[str], health_port: int) -> None:
        self.daemons[name] = DaemonProcess(
            name,
            self.command(name, *arguments, "--config", self._config_path(name)),
            self._environment(),
            self.directory / name / "log",
            health_port,
            counters=_COUNTERS.get(name, ()),
            outlives_demo=self.keep,
        )

    def start(self, *names: str) -> None:
        """Start daemons and wait until they are ready. On the main thread only.

        :raises RuntimeError: if one does not become ready; with the end of its log.
        """
        for name in names:
            self.daemons[name].launch()
        for name in names:
            self.daemons[name].wait_until_ready()

    def tail(self, name: str, lines: int = 15) -> str:
        return self.daemons[name].tail(lines)

    def kill(self, name: str) -> None:
        """SIGKILL: no farewell."""
        self.daemons[name].kill()

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL if it does not end in time."""
        self.daemons[name].stop()

    def running(self) -> list[int]:
        """Process ids of the daemons that run."""
        found = [daemon.process for daemon in self.daemons.values()]
        return [process.pid for process in found if process is not None and process.poll() is None]

    def stop_all(self) -> None:
        """Stop what runs, in the reverse order, and remove the tracker's pins."""
        self._sampling.set()
        for name in reversed(DAEMONS):
            if name in self.daemons:
                self.stop(name)
        shutil.rmtree(self.pin_root, ignore_errors=True)  # which is not there without root, and may not be looked for

    def sample(self) -> None:
        """Sample every daemon's memory and counters twice a second until ``stop_all``, in a thread."""

        def sample() -> None:
            while not self._sampling.wait(_SAMPLE_EVERY_S):
                for daemon in self.daemons.values():
                    daemon.sample()

        threading.Thread(target=sample, name="samples", daemon=True).start()


def _side_by_side(*steps: Callable[[], None]) -> None:
    """Run steps in threads of their own; the first error is raised once all have ended."""
    with ThreadPoolExecutor(len(steps)) as pool:
        for step in [pool.submit(step) for step in steps]:
            step.result()
