"""One daemon of the demo as a process of its own: started, asked for its health and figures, stopped or killed by its process id.

Called by ``site``. Peak memory and counters are kept over restarts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

READY_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 15.0
_DIE_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")
_ANSWER_S: Final = 1.0


class RunningProcess(Protocol):
    """What is used of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...

    def terminate(self) -> None: ...


@dataclass
class DaemonProcess:
    """``outlives_demo``: it goes on when the demo's own process ends; otherwise it dies with it, however that ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    health_port: int
    health_host: str = "127.0.0.1"
    counters: tuple[str, ...] = ()
    outlives_demo: bool = False
    process: RunningProcess | None = None
    peak_anonymous_bytes: int = 0
    _finished: dict[str, float] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)

    def launch(self) -> None:
        """Start it. On the main thread only: what dies with its parent dies with the thread that made it (prctl(2), PR_SET_PDEATHSIG)."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command if self.outlives_demo else [*_DIE_WITH_PARENT, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=self.outlives_demo,
            )

    def wait_until_ready(self) -> None:
        """Wait until its health page answers.

        :raises RuntimeError: if it has ended or does not answer in time; with the end of its log.
        """
        deadline_s = time.monotonic() + READY_DEADLINE_S
        while not self._answers():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.name} did not become ready; the end of {self.log}:\n{self.tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        if self.process is not None:
            self.sample()
            self.process.kill()
            self.process.wait()
        for metric, value in self._running.items():
            self._finished[metric] = self._finished.get(metric, 0.0) + value
        self._running.clear()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it does not end in time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def sample(self) -> None:
        """Look at its memory, and at its counters if it answers."""
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, self._anonymous_bytes())
        if self.counters:
            found = self._metrics()
            self._running.update({name: found[name] for name in self.counters if name in found})

    def counted(self, metric: str) -> float:
        """One of ``counters`` summed over its labels and over every start of the daemon, as last sampled."""
        return self._finished.get(metric, 0.0) + self._running.get(metric, 0.0)

    def _metrics(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        url = f"http://{self.health_host}:{self.health_port}/metrics"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=_ANSWER_S) as response:
            for line in response.read().decode().splitlines():
                if not line.startswith("#"):
                    labelled, _, value = line.rpartition(" ")
                    name = labelled.partition("{")[0]
                    totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    def _answers(self) -> bool:
        try:
            url = f"http://{self.health_host}:{self.health_port}/healthz"
            with urllib.request.urlopen(url, timeout=_ANSWER_S):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def _anonymous_bytes(self) -> int:
        """Resident anonymous memory (RssAnon in proc(5)); 0 if it does not run."""
        if self.process is None:
            return 0
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
        return 0


def environment_with(**variables: str) -> dict[str, str]:
    """This process's environment and these."""
    return {**os.environ, **variables}
