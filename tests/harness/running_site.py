"""A running site for end-to-end tests: four daemons as processes, loop disks on request, everything stopped and detached at the end.

Called by tests/e2e. Built on the demo's ``Site`` and ``Operator``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deploy.demo.operator import Json, Operator, wait_until
from deploy.demo.site import Site

READY_S = 60.0
POLICY = "test"
MAX_WARNINGS = 40


@dataclass
class RunningSite:
    """``server`` is the host name under which the agent enrolled."""

    site: Site
    operator: Operator
    server: str = ""

    def protect(self, *disks: Path, point_interval: str = "10 s") -> Json:
        """Enable replication and wait until it replicates."""
        self.begin_protection(*disks, point_interval=point_interval)
        return self.wait_state("replicating", 300.0)

    def begin_protection(self, *disks: Path, point_interval: str = "10 s") -> None:
        self.operator.order("set-policy", POLICY, "--recovery-point-interval", point_interval)
        wanted = [argument for disk in disks for argument in ("--disk", str(disk))]
        wait_until("the disks in the inventory", lambda: self._known(disks), READY_S * 6)
        self.operator.order("check", self.server, *wanted)
        self.operator.order("protect", self.server, *wanted, "--policy", POLICY)

    def _known(self, disks: tuple[Path, ...]) -> Json | None:
        detail = self.operator.get(f"/servers/{self.server}")
        known = {disk["path"] for disk in (detail["inventory"] or {"disks": []})["disks"]}
        return detail if all(str(disk) in known for disk in disks) else None

    def wait_state(self, state: str, deadline_s: float = READY_S) -> Json:
        def reached() -> Json | None:
            item = self.operator.item()
            return item if item is not None and item["state"] == state else None

        return wait_until(f"state {state}", reached, deadline_s)

    def wait_item(self, what: str, deadline_s: float, condition: object) -> Json:
        """Until ``condition(item)`` holds."""
        assert callable(condition)

        def holds() -> Json | None:
            item = self.operator.item()
            return item if item is not None and condition(item) else None

        return wait_until(what, holds, deadline_s)

    def export(self, made: Json, to: Path) -> Path:
        """Download a made disk as a raw image."""
        site = self.site
        arguments = ["--endpoint", site.store_url, "--account", site.store_url.rsplit("/", 1)[1]]
        arguments += ["--key-file", str(site.account_key_file), "--ca-file", str(site.authority_file)]
        site.run("azure-sink", "export", *arguments, "--raw", f"{made['container']}/{made['name']}", to)
        return to


@contextlib.contextmanager
def running_site(
    directory: Path,
    disk_files: tuple[Path, ...] = (),
    tracker: str = "auto",
    *,
    make: Callable[..., Site] = Site,
    installed: Callable[[Site], None] = lambda _site: None,
) -> Iterator[RunningSite]:
    """Install, enrol and start everything; on leaving all is stopped, whatever happened. Logs are printed for a failure's report.

    :param installed: called before anything is started, to change what was installed.
    """
    site = make(directory, disk_files, tracker)
    try:
        site.install()
        installed(site)
        operator = Operator(site, Console(file=io.StringIO()))
        site.start_all()
        running = RunningSite(site, operator)
        server = wait_until("the agent's inventory", lambda: operator.server() or _first(operator), READY_S)
        running.server = str(server["hostname"])
        wait_until("the process server's heartbeat", lambda: _process_server(operator), READY_S)
        yield running
    finally:
        site.stop_all()
        for name in site.daemons:
            with contextlib.suppress(OSError):
                print(f"--- {name}: what it warned of, and the end of its log\n{warnings_of(site.daemons[name].log)}")
                print(f"...\n{site.tail(name, 20)}")


def warnings_of(log: Path) -> str:
    """The last lines above the level info: a run of minutes pushes the one that matters out of the log's end."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if '"level": "info"' not in line][-MAX_WARNINGS:])


def _first(operator: Operator) -> Json | None:
    servers = operator.get("/servers")["items"]
    return servers[0] if servers else None


def _process_server(operator: Operator) -> Json | None:
    servers = operator.get("/process-servers")["items"]
    return next((server for server in servers if server["connected"] and server["observation"]), None)
