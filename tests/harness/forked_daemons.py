"""Daemons and commands that start at once: a process that has imported all their code forks itself for each start.

Used by tests/fault, which start daemons hundreds of times: what is saved is the interpreter's start and the imports (a second each), and
nothing else. The fork runs the program's own ``__main__`` with its own arguments, environment and log, and dies with the process that
forked it. ``ForkServer`` is the test's end; run as a program, this module is the process itself: a line of JSON in for each start, a line
out with the pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from deploy.demo.daemon_process import DaemonProcess, environment_with
from tests.harness.network_namespaces import enter_network

MODULES: Final = ("azure_sink", "config_server", "config_server.migratectl", "mobility_agent", "process_server")
_PR_SET_PDEATHSIG: Final = 1
_REPOSITORY: Final = Path(__file__).parents[2]


class ForkedProcess:
    """A process that is not this one's child: known by a pidfd, so that a signal never hits another one of the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """0 if it has ended, however it did; else None."""
        return self.wait_for_end(0.0)

    def wait_for_end(self, timeout_s: float) -> int | None:
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        return 0 if ready else None

    def wait(self, timeout: float | None = None) -> int:
        """:raises subprocess.TimeoutExpired: as ``Popen.wait`` does."""
        ready, _, _ = select.select([self._descriptor], [], [], timeout)
        if not ready:
            raise subprocess.TimeoutExpired("a forked daemon", timeout or 0.0)
        return 0

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def __del__(self) -> None:
        os.close(self._descriptor)


class ForkServer:
    """The test's end. Leaving it ends the process, and with it every daemon that it forked."""

    def __init__(self, directory: Path) -> None:
        """:param directory: shown in the process's command line, so that a leftover is found."""
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__, str(directory)]
        environment = environment_with(OPENBLAS_NUM_THREADS="1")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY, env=environment
        )
        self._asking = threading.Lock()
        self._ask({})

    def _ask(self, question: dict[str, Any]) -> int:
        """From any thread: a site enrols its machines side by side."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._asking:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def fork(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        log: Path,
        network: Path | None = None,
        prepare: Sequence[str] = (),
    ) -> ForkedProcess:
        """``arguments``: the module to run, and what follows it. ``network``: the namespace that it lives in, if not this one.

        :param prepare: module, function and arguments of what is called there first.
        """
        question = {"arguments": list(arguments), "environment": environment, "log": str(log), "prepare": list(prepare)}
        return ForkedProcess(self._ask(question if network is None else question | {"network": str(network)}))

    def run(self, arguments: Sequence[str], environment: dict[str, str], scratch: Path) -> tuple[int, str, str]:
        """Run a command to its end: its exit code, standard output and standard error. ``scratch``: a directory for these."""
        names = ("log", "errors", "code")
        files = {name: scratch / f"{uuid.uuid4()}-{name}" for name in names}
        question = {"arguments": list(arguments), "environment": environment}
        ForkedProcess(self._ask(question | {name: str(path) for name, path in files.items()})).wait()
        output, errors, code = (files[name].read_text() for name in names)
        for path in files.values():
            path.unlink()
        return int(code), output, errors

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


@dataclass
class ForkedDaemon(DaemonProcess):
    """A site's daemon that is forked instead of started. ``extra`` (of its environment) and ``prepare`` (as ``fork`` has it): for the next
    start.
    """

    server: ForkServer | None = None
    extra: dict[str, str] = field(default_factory=dict)
    network: Path | None = None
    prepare: tuple[str, ...] = ()

    @classmethod
    def instead_of(cls, daemon: DaemonProcess, server: ForkServer, network: Path | None = None) -> ForkedDaemon:
        """``daemon`` has been stopped, or was never started. Its counters are not followed: asking takes longer than a start."""
        known = (daemon.name, daemon.command, daemon.environment, daemon.log, daemon.health_port)
        return cls(*known, health_host=daemon.health_host, server=server, network=network)

    def launch(self) -> None:
        assert self.server is not None
        module = self.command.index("-m") + 1
        environment = {**self.environment, **self.extra}
        self.process = self.server.fork(self.command[module:], environment, self.log, self.network, self.prepare)


# ---- the process itself


def _become_daemon(question: dict[str, Any], parent: int) -> None:
    """In the child, once."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if "network" in question:
        enter_network(question["network"])
    places = (os.devnull, question["log"], question.get("errors", question["log"]))
    for target, place in enumerate(places):
        source = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(question["environment"])
    if question.get("prepare"):
        module, function, *given = question["prepare"]
        getattr(importlib.import_module(module), function)(*given)
    sys.argv = list(question["arguments"])
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if "code" in question:
            Path(question["code"]).write_text(str(end.code or 0))
        raise


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(f"{module}.cli")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who has ended is gone at once: the test knows him by his pidfd
    parent = os.getpid()
    while line := sys.stdin.readline():
        question = json.loads(line)
        pid = os.fork() if question else 0
        if question and pid == 0:
            _become_daemon(question, parent)
            return
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
