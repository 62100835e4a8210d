"""A running site with several process servers and several agents, all on this machine, forked; each agent with a loop device under load.

Called by tests/e2e. Built on ``forked_site``: its one process server and its one agent are the first of each. An agent's state directory
holds a machine id of its own, so that each is a machine as far as the product knows.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.demo import proof
from deploy.demo.daemon_process import DaemonProcess
from deploy.demo.operator import Json, wait_until
from deploy.demo.preflight import lasting_ports
from deploy.demo.site import Site
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE
from replication.store_layout import REPLICAS_CONTAINER
from replication.tls_identity import TlsIdentity
from tests.harness.forked_daemons import ForkedDaemon
from tests.harness.forked_site import ForkedSite, forked_site
from tests.harness.loop_disk import loop_disk
from tests.harness.running_site import POLICY, RunningSite

PATIENCE_S: Final = 180.0
PROCESS_SERVER: Final = "process-server"
AGENT: Final = "mobility-agent"
_WRITE_BYTES: Final = 16 * 1024
_WRITES_PER_S: Final = 30.0


class ScaledSite(ForkedSite):
    """Short intervals; ``add`` installs and enrols another process server or agent, to be started."""

    def _configurations(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super()._configurations()
        found[AGENT] |= {"heartbeat_s": 1, "shipping": {"request_timeout_s": 15.0}}
        found[PROCESS_SERVER]["config_server"]["heartbeat_interval_s"] = 1
        found["config-server"] |= {
            "reconciler": {"interval_s": 0.3, "point_interval_s": 1.0},
            "heartbeat": {"process_server_timeout_s": 10.0},
        }
        return found

    def configuration_of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self._config_path(name).read_text())
        return found

    def configure(self, name: str, document: dict[str, Any]) -> None:
        self._config_path(name).parent.mkdir(parents=True, exist_ok=True)
        self._config_path(name).write_text(yaml.safe_dump(document))

    def add(self, kind: str, name: str, **changes: Any) -> None:
        """``kind``: the first one of which it is another; ``changes``: of its configuration."""
        assert self.server is not None
        port, health = lasting_ports(2)
        document = self.configuration_of(kind) | {
            "state_dir": str(self.directory / name / "state"),
            "observability": {"listen": f"127.0.0.1:{health}"},
        }
        if kind == PROCESS_SERVER:
            document["listen"] = f"127.0.0.1:{port}"
        self.configure(name, document | changes)
        if kind == AGENT:
            self.be_a_machine(name)
        passphrase_file, config = self._passphrase_file(kind), self._config_path(name)
        options = ("--fingerprint", self.fingerprint, "--passphrase-file", passphrase_file)
        self.run(kind, "enrol", "--config", config, *options)
        command = self.command(kind, "run", "--config", self._config_path(name))
        made = DaemonProcess(name, command, self._environment(), self.directory / name / "log", health)
        self.daemons[name] = ForkedDaemon.instead_of(made, self.server)

    def _passphrase_file(self, kind: str) -> Path:
        """One for all of a kind."""
        path = self.directory / "operator" / f"passphrase-of-every-{kind}"
        if not path.exists():
            self._write_secret(path, self.passphrase(kind))
        return path

    def be_a_machine(self, name: str) -> None:
        state = self.directory / name / "state"
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        (state / MACHINE_ID_FILE).write_text(f"{uuid.uuid4().hex}\n")

    def stop_all(self) -> None:
        for name in [name for name in self.daemons if name.startswith((f"{PROCESS_SERVER}-", f"{AGENT}-"))]:
            self.stop(name)
            if name.startswith(AGENT):
                shutil.rmtree(self.configuration_of(name)["tracker"]["pin_root"], ignore_errors=True)
        super().stop_all()


@dataclass
class LoadedServer:
    """A protected server: its agent's daemon, its machine as the site knows it, its disk, and a thread that writes to it."""

    daemon: str
    device: Path
    size_bytes: int
    machine: str = ""
    disk: str = ""
    writes: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin_load(self, seed: int) -> None:
        self._thread = threading.Thread(target=self._write, args=(random.Random(seed),), daemon=True)
        self._thread.start()

    def _write(self, chance: random.Random) -> None:
        descriptor = os.open(self.device, os.O_WRONLY | os.O_DSYNC)
        try:
            while not self._stopping.wait(1 / _WRITES_PER_S):
                at = chance.randrange(self.size_bytes // _WRITE_BYTES) * _WRITE_BYTES
                os.pwrite(descriptor, chance.randbytes(_WRITE_BYTES), at)
                self.writes += 1
        finally:
            os.fsync(descriptor)
            os.close(descriptor)

    def end_load(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()


@dataclass
class Scaled:
    """The site and its servers; every wait has a deadline."""

    running: RunningSite
    site: ScaledSite
    servers: list[LoadedServer]
    directory: Path

    # ---- what is known

    def items(self) -> dict[str, Json]:
        """By machine."""
        return {item["server_id"]: item for item in self._listed("/protected-items")}

    def process_servers(self) -> list[Json]:
        return self._listed("/process-servers")

    def _listed(self, path: str) -> list[Json]:
        """Patiently: the machine may have more to do than it can."""
        found: list[Json] = wait_until(path, lambda: self.running.operator.get(path), PATIENCE_S)["items"]
        return found

    def identifier_of(self, name: str) -> str:
        """Of the process server whose daemon is ``name``."""
        found = self.identifier_of_or_none(name)
        assert found is not None, f"nobody has the address of {name}"
        return found

    def identifier_of_or_none(self, name: str) -> str | None:
        url = f"https://{self.site.configuration_of(name)['listen']}"
        return next((str(each["id"]) for each in self.process_servers() if each["url"] == url), None)

    def is_connected(self, identifier: str) -> bool:
        return any(each["id"] == identifier and each["connected"] for each in self.process_servers())

    def items_on(self, identifier: str) -> set[str]:
        items = self.items().items()
        return {machine for machine, item in items if (item["process_server"] or {}).get("id") == identifier}

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        wait_until(what, lambda: {} if condition() else None, PATIENCE_S)

    def await_progress(self, what: str) -> None:
        """Until every server's replica holds what was written after this call, in the generation of its initial replication."""
        since_ns, waiting = time.time_ns(), {server.machine for server in self.servers}
        last: dict[str, Any] = {}

        def come() -> bool:
            for machine, item in self.items().items():
                disk = item["disks"][0]
                seen, lag_s = disk["observation"], disk["replication_lag_s"]
                last[machine] = (item["state"], lag_s, None if seen is None else seen["problem"])
                if seen is None or lag_s is None:
                    continue
                assert seen["generation"] == 1, f"a resync after {what}: {disk}"
                if time.time_ns() - lag_s * 1e9 > since_ns:
                    waiting.discard(machine)
            return not waiting

        try:
            self.until(f"progress of all after {what}", come)
        except RuntimeError as error:
            error.add_note(str({machine: last.get(machine) for machine in waiting}))
            raise

    def all_are_known(self) -> bool:
        known = {each["id"] for each in self.running.operator.get("/servers")["items"] if each["disk_count"]}
        return known >= {server.machine for server in self.servers} and all(
            each["connected"] for each in self.process_servers()
        )

    # ---- orders and proof

    def protect_all(self) -> None:
        self.running.operator.order("set-policy", POLICY, "--recovery-point-interval", "10 s")
        for server in self.servers:
            self.running.operator.post(
                f"/servers/{server.machine}/protection", {"disks": [str(server.device)], "policy": POLICY}
            )
        self.until("initial replication of all", self._all_replicate)
        for server in self.servers:
            server.disk = self.items()[server.machine]["disks"][0]["disk"]

    def _all_replicate(self) -> bool:
        states = [item["state"] for item in self.items().values()]
        return len(states) == len(self.servers) and set(states) == {"replicating"}

    def prove_all(self) -> None:
        """Nothing writes any more and all is applied: every replica is its source, byte by byte."""
        for number, server in enumerate(self.servers):
            image = self.directory / f"replica-{number}.raw"
            wait_until("a copy of the replica", functools.partial(self._copied, server.disk, image), PATIENCE_S)
            proof.sha256_if_identical(server.device, image, server.size_bytes)
            image.unlink()

    def _copied(self, disk: str, image: Path) -> Json | None:
        """None while a recovery point is made meanwhile: what is read must be one state of the blob."""
        try:
            self.running.export({"container": REPLICAS_CONTAINER, "name": disk}, image)
        except RuntimeError as error:
            if "ConditionNotMet" not in str(error):
                raise
            return None
        return {}


@contextlib.contextmanager
def scaled_site(directory: Path, *, process_servers: int, agents: int, disk_bytes: int) -> Iterator[Scaled]:
    """All run and are enrolled; nothing is protected and nothing is written yet."""
    with contextlib.ExitStack() as stack:
        devices = []
        for number in range(agents):
            backing = directory / f"disk-{number}.img"
            backing.write_bytes(os.urandom(disk_bytes // 2))
            os.truncate(backing, disk_bytes)
            devices.append(stack.enter_context(loop_disk(backing, disk_bytes)).device)

        def prepare(site: ScaledSite) -> None:
            site.be_a_machine(AGENT)

        running = stack.enter_context(forked_site(directory, ScaledSite, prepare))
        site = running.site
        assert isinstance(site, ScaledSite)
        names = [AGENT, *(f"{AGENT}-{number}" for number in range(2, agents + 1))]
        servers = [LoadedServer(name, device, disk_bytes) for name, device in zip(names, devices, strict=True)]
        scaled = Scaled(running, site, servers, directory)
        for server in servers:
            stack.callback(server.end_load)
        for number in range(2, process_servers + 1):
            site.add(PROCESS_SERVER, f"{PROCESS_SERVER}-{number}")
        for server in servers:
            if server.daemon != AGENT:
                pins = f"{site.pin_root}{server.daemon.removeprefix(AGENT)}"
                site.add(AGENT, server.daemon, tracker={"kind": "auto", "pin_root": pins})
            _note_machine(site, server)
        site.start(*(name for name in site.daemons if name.rpartition("-")[2].isdigit()))
        scaled.until("every inventory", scaled.all_are_known)
        yield scaled


def _note_machine(site: Site, server: LoadedServer) -> None:
    """As its certificate names it."""
    server.machine = TlsIdentity(site.directory / server.daemon / "state" / "identity").name().identifier
