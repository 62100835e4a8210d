"""A site whose first steps die: each command that makes a daemon's first files, and the sink's first start, at every failpoint on the way.

Called by tests/fault. After each death the same command or start is made again, as an operator would; only then the next death. Before the
agent enrols, its process server is told to install an agent over SSH, and dies over the installer that it fetches.
"""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from deploy.demo.operator import Json, Operator, wait_until
from replication.failpoint import ENVIRONMENT
from tests.harness.fault_site import QuickSite
from tests.harness.ssh_server import SshServer, running_sshd

REPLACEMENT: Final = ("file.replacement.durable", "file.replacement.renamed")
_ENROLMENT: Final = (
    *("identity.key.durable", "identity.certificate.issued", "identity.key.replaced"),
    "identity.authorities.replaced",
)
COMMANDS: Final = {
    ("azure-sink", "init"): ("file.replacement.durable", "sink.writer.identity-made"),
    ("config-server", "init"): (
        *("config.database.made", *REPLACEMENT, "config.authority.key-durable", "config.authority.trusted"),
        *("config.authority.made", "config.site-keys.made", "config.site-keys.noted", "identity.key.replaced"),
        *("identity.authorities.replaced", "config.first-access.written"),
    ),
    ("process-server", "enrol"): (*REPLACEMENT, *_ENROLMENT),
    ("mobility-agent", "enrol"): (*REPLACEMENT, *_ENROLMENT),
}
STARTS: Final = {"azure-sink": ("sink.store.catalog-made", "file.replacement.renamed")}
"""The file that is replaced is the lease id's."""
INSTALLATION: Final = (
    *("process.installer.others-removed", "process.installer.durable"),
    "process.installer.renamed",
)
_END_S: Final = 120.0
_LAST_WORDS: Final = "nothing is installed by this one"


class DyingSite(QuickSite):
    """``reached``: daemons, and the failpoints at which their commands and first starts died."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reached: set[tuple[str, str]] = set()

    def _configurations(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super()._configurations()
        for name in ("config-server", "process-server"):
            found[name]["discovery"] = {"allow_loopback": True}
        return found

    def run(self, name: str, *arguments: str | Path) -> str:
        for point in COMMANDS.get((name, str(arguments[0])), ()):
            assert self.server is not None
            command = self.command(name, *arguments)
            log = self.directory / "operator" / f"{name}-{point}"
            environment = self._environment() | {ENVIRONMENT: point}
            self.server.fork(command[command.index("-m") + 1 :], environment, log).wait(_END_S)
            self._note_death(name, point, log)
        return super().run(name, *arguments)

    def start_all(self) -> None:
        for point in STARTS["azure-sink"]:
            self._start_to_die("azure-sink", point)
        self.start("azure-sink", "config-server")
        self.enrol("process-server", self.passphrase("process-server"))
        self.start("process-server")
        with running_sshd(self.directory / "sshd") as sshd:
            self._install_over(sshd)
        self.enrol("mobility-agent", self.passphrase("mobility-agent"))
        self.start("mobility-agent")
        self.sample()

    def _start_to_die(self, name: str, point: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        daemon = self.daemons[name]
        daemon.kill()
        daemon.extra = {ENVIRONMENT: point}  # type: ignore[attr-defined]  # a ForkedDaemon
        daemon.launch()
        meanwhile()
        assert daemon.process is not None
        daemon.process.wait(_END_S)
        daemon.extra = {}  # type: ignore[attr-defined]
        self._note_death(name, point, daemon.log)

    def _note_death(self, name: str, point: str, log: Path) -> None:
        text = log.read_text(errors="replace")
        assert f"failpoint {point} reached" in text, f"{name} did not die at {point}:\n{text[-4000:]}"
        self.reached.add((name, point))

    def _install_over(self, sshd: SshServer) -> None:
        """The installer is fetched, whatever dies meanwhile, and runs on the server: its own last words come back."""
        file = _installer(self.directory / "operator")
        self.run("config-server", "add-installer", "--config", self._config_path("config-server"), file)
        operator = Operator(self, Console(file=io.StringIO()))
        wait_until("the process server", lambda: _first(operator, "/process-servers", "connected"), _END_S)
        login = {"credentials": {"private_key": sshd.private_key}}
        hosts = [{"address": "127.0.0.1", "host_key": sshd.host_key}]
        operator.post("/discoveries", {"hosts": hosts, "user": sshd.user, "port": sshd.port, **login})
        server = wait_until("the server to be discovered", lambda: _first(operator, "/servers", "id"), _END_S)["id"]
        ordered: list[str] = []

        def order_once() -> None:
            if not ordered:
                self.daemons["process-server"].wait_until_ready()
                ordered.append(operator.post(f"/servers/{server}/installation", login)["id"])

        for point in INSTALLATION:
            self._start_to_die("process-server", point, order_once)
        self.start("process-server")

        def ended() -> Json | None:
            found = operator.get(f"/installations/{ordered[0]}")
            return None if found["ended_at"] is None else found

        problem = wait_until("the end of the installation", ended, _END_S)["problem"]
        assert (problem["code"], _LAST_WORDS in problem["message"]) == ("installer-failed", True), problem
        kept = self.directory / "process-server" / "state" / "installers"
        assert [path.name for path in kept.iterdir()] == [hashlib.sha256(file.read_bytes()).hexdigest()]


def _first(operator: Operator, path: str, field: str) -> Json | None:
    return next((each for each in operator.get(path)["items"] if each[field]), None)


def _installer(directory: Path) -> Path:
    """The fields of a real one, a payload, and a script that only fails."""
    payload, machine = b"programs" * 100_000, platform.machine()
    head = (
        f"#!/bin/sh\nversion=1.0.0\narchitecture={machine}\noldest_glibc=2.17\n"
        f"payload_sha256={hashlib.sha256(payload).hexdigest()}\npayload_bytes={len(payload)}\n"
        f"echo {_LAST_WORDS} >&2\nexit 4\n"
    )
    file = directory / f"blockferry-agent-1.0.0-{machine}.run"
    file.write_bytes(head.encode() + b"\n# What follows is the payload.\n" + payload)
    return file
