"""A running site whose daemons are killed, armed and started again, with a loaded disk, and the proof that its replica is the source.

Called by tests/fault. Built on ``forked_site``, so that hundreds of starts are affordable.
``prove`` is a whole migration, cancelled after the final disk was compared with the source byte by byte.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from deploy.demo import proof
from deploy.demo.lab_server import LabDisk
from deploy.demo.operator import Json, wait_until
from deploy.demo.site import Site
from replication.failpoint import ENVIRONMENT
from tests.harness.forked_daemons import ForkedDaemon
from tests.harness.forked_site import NO_NETWORKS, ForkedSite, SiteT, forked_site
from tests.harness.running_site import POLICY, RunningSite

MIB: Final = 2**20
ONCE_BYTES: Final = 96 * 1024
"""More than a granule."""
POLL_S: Final = 0.05
GOES_ON_S: Final = 300.0
JOB_S: Final = 600.0
UNREACHABLE: Final = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


class QuickSite(ForkedSite):
    """Intervals as short as a test needs them."""

    def _configurations(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super()._configurations()
        found["mobility-agent"] |= {"heartbeat_s": 0.5, "keep_unprotected_s": 0.0}
        found["mobility-agent"]["shipping"] = {"request_timeout_s": 15.0}
        found["config-server"]["reconciler"] = {"interval_s": 0.3, "point_interval_s": 1.0, "answer_keep_s": 0.0}
        return found


@dataclass
class LoadedDisk:
    """A file system on a loop device with the demo's SQLite and file load on it, and fio's if it is wanted."""

    directory: Path
    disk_bytes: int
    fio_rate: int = 0
    """4 KiB random writes a second; 0: no fio."""
    lab: LabDisk = field(init=False)
    ledger: Path = field(init=False)
    _loads: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _written_once: int = 0

    def __post_init__(self) -> None:
        self.lab = LabDisk(self.directory, self.disk_bytes, 0)
        self.ledger = self.directory / "acknowledged"

    @property
    def device(self) -> Path:
        assert self.lab.device is not None
        return self.lab.device

    def create(self) -> None:
        self.lab.create()
        self.ledger.touch()

    def start(self) -> None:
        """Mount if need be, and let the load begin."""
        workload = [sys.executable, "-m", "deploy.demo.workload", "--directory", str(self.lab.mount_point)]
        commands = [[*workload, "--ledger", str(self.ledger)]]
        if self.fio_rate:
            fio = ["fio", "--name=load", "--rw=randwrite", "--bs=4k", "--size=16m", "--time_based", "--runtime=3600"]
            fio += ["--ioengine=psync", "--fdatasync=8", "--group_reporting", "--output=/dev/null"]
            commands.append([*fio, f"--directory={self.lab.mount_point}", f"--rate_iops={self.fio_rate}"])
        with (self.directory / "load.log").open("ab") as log:
            self._loads = [
                subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=log, stderr=log)
                for command in commands
            ]

    def write_once(self) -> None:
        """A file that is durable now and never written again: what of it is lost stays lost. Nothing if the disk is not mounted."""
        if self._loads:
            self._written_once += 1
            directory = self.lab.mount_point / "written-once"
            directory.mkdir(exist_ok=True)
            with (directory / str(self._written_once)).open("xb") as file:
                file.write(os.urandom(ONCE_BYTES))
                file.flush()
                os.fsync(file.fileno())

    def stop(self) -> None:
        """Stop the load and unmount: what an operator does before a migration."""
        for load in self._loads:
            assert load.poll() is None, (self.directory / "load.log").read_text()[-2000:]
        self.end_load()
        self.lab.unmount()

    def end_load(self) -> None:
        for load in self._loads:
            load.terminate()
        for load in self._loads:
            load.wait(60.0)
        self._loads.clear()

    def mount_again(self) -> None:
        """The agent lets its claim go a moment after a cancelled migration."""

        def mounts() -> Json | None:
            try:
                self.lab.mount()
            except RuntimeError:
                return None
            return {}

        wait_until("the mount after the migration", mounts, GOES_ON_S)

    def grow(self, more_bytes: int) -> None:
        """As a virtual machine's disk that somebody makes larger; the file system on it stays as it is."""
        self.disk_bytes += more_bytes
        os.truncate(self.lab.image, self.disk_bytes)
        subprocess.run(["losetup", "--set-capacity", str(self.device)], check=True)

    def destroy(self) -> None:
        self.end_load()
        self.lab.destroy()


@dataclass(frozen=True, slots=True)
class Position:
    """``at_ns``: when it was looked at."""

    generation: int
    applied_epoch: int
    at_ns: int

    def now(self) -> Position:
        """Nothing that was written before this moment counts as progress."""
        return replace(self, at_ns=time.time_ns())


@dataclass
class FaultSite:
    running: RunningSite
    disk: LoadedDisk
    directory: Path
    reached: set[tuple[str, str]] = field(default_factory=set)
    """Daemons, and the failpoints at which they died."""
    begun_s: float = field(default_factory=time.monotonic)
    newest_conditions: list[str] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.running.site

    @property
    def item(self) -> Json:
        """The protected item, as soon as the configuration server answers."""
        return wait_until("the protected item", self.running.operator.item, GOES_ON_S)

    def daemon(self, name: str) -> ForkedDaemon:
        found = self.site.daemons[name]
        assert isinstance(found, ForkedDaemon)
        return found

    # ---- daemons

    def launch(self, name: str, failpoint: str | None = None) -> None:
        """Kill it if it runs, and start it; it is not waited for."""
        daemon = self.daemon(name)
        daemon.kill()
        daemon.extra = {} if failpoint is None else {ENVIRONMENT: failpoint}
        daemon.launch()

    def is_dead(self, name: str) -> bool:
        process = self.daemon(name).process
        return process is None or process.poll() is not None

    # ---- the operator

    def order(self, path: str, document: Json | None = None) -> None:
        """Give an order over REST; if the configuration server dies over it, see whether it was taken, else give it again."""
        item, before = self.item["id"], self._orders()

        def given() -> Json | None:
            if self._orders() != before:
                return {}
            try:
                self.running.operator.post(f"/protected-items/{item}{path}", document)
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{path} is refused: {error.read().decode()}") from error
            except UNREACHABLE:
                return None
            return {}

        wait_until(f"the order {path}", given, GOES_ON_S)

    def order_policy(self, *options: str) -> None:
        """Given again until the configuration server answers: it may be starting, or die over it."""

        def given() -> Json | None:
            try:
                self.running.operator.order("set-policy", POLICY, *options)
            except RuntimeError as error:
                if "cannot reach" not in str(error):
                    raise
                return None
            return {}

        wait_until(f"the policy {' '.join(options)}", given, GOES_ON_S)

    def _orders(self) -> tuple[str, int]:
        """What every order changes: the item's state, or the number of jobs."""
        jobs = wait_until("the jobs", lambda: self.running.operator.get("/jobs"), GOES_ON_S)["items"]
        return self.item["state"], len(jobs)

    def job(self, kind: str) -> Json:
        """The newest job of ``kind`` once it has succeeded, however often the configuration server is away meanwhile."""

        def ended() -> Json | None:
            found = self.running.operator.newest_job(kind)
            assert found["state"] in ("in-progress", "waiting-for-input", "succeeded"), found
            return found if found["state"] == "succeeded" else None

        return wait_until(f"the end of the job {kind}", ended, JOB_S)

    def wait_state(self, state: str) -> Json:
        return self.running.wait_state(state, GOES_ON_S)

    def await_condition(self, code: str, words: str) -> None:
        """Until the item's health has ``code``, with ``words`` in its message."""

        def told() -> Json | None:
            item = self.running.operator.item()
            known = [] if item is None else item["conditions"]
            found = [each for each in known if each["code"].startswith(code) and words in each["message"]]
            self.newest_conditions = [f"{each['code']}: {each['message']}" for each in known]
            return found[0] if found else None

        try:
            wait_until(f"the condition {code}", told, GOES_ON_S)
        except RuntimeError as error:
            error.add_note("\n".join(self.newest_conditions))
            raise
        self.tell(f"the operator is told: {code}")

    def await_own_health(self, name: str, words: str) -> None:
        """Until the daemon's own health page gives ``words`` as a reason."""

        def told() -> Json | None:
            page = self.own_health(name)
            self.newest_conditions = [page]
            return {} if words in page else None

        try:
            wait_until(f"{name}'s health page to say {words!r}", told, GOES_ON_S)
        except RuntimeError as error:
            error.add_note("\n".join(self.newest_conditions))
            raise
        self.tell(f"{name} says of itself: {words}")

    def own_health(self, name: str) -> str:
        """The daemon's own health page."""
        url = f"http://127.0.0.1:{self.daemon(name).health_port}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=5.0) as response:
                page: str = response.read().decode()
        except urllib.error.HTTPError as error:
            page = error.read().decode()
        return page

    # ---- replication

    def position(self) -> Position:
        def known() -> Json | None:
            item = self.running.operator.item()
            found = None if item is None else item["disks"][0]["observation"]
            return None if found is None or found["generation"] is None else found

        found = wait_until("an observation", known, GOES_ON_S)
        return Position(found["generation"], found["applied_epoch"], time.time_ns())

    def await_progress(self, since: Position, *, generation: int | None = None, what: str = "") -> Position:
        """Until an epoch later than ``since`` is applied that holds what was written after it, in ``generation`` (the same)."""
        wanted = since.generation if generation is None else generation

        def goes_on() -> Json | None:
            item = self.running.operator.item()
            if item is None:
                return None
            disk = item["disks"][0]
            observation, lag_s = disk["observation"], disk["replication_lag_s"]
            if observation is None or observation["generation"] is None or lag_s is None:
                return None
            assert observation["generation"] <= wanted, f"a resync after {what}: {disk}"
            newer = wanted > since.generation or observation["applied_epoch"] > since.applied_epoch
            is_later = time.time_ns() - lag_s * 1e9 > since.at_ns
            return item if observation["generation"] == wanted and newer and is_later else None

        try:
            wait_until(f"replication after {what}", goes_on, GOES_ON_S)
        except RuntimeError as error:
            with contextlib.suppress(*UNREACHABLE):
                error.add_note(str(self.running.operator.item()))
            raise
        self.tell(f"replication goes on after {what}")
        return self.position()

    # ---- proofs

    def prove(self, during: Callable[[], None] = lambda: None) -> str:
        """Migrate, compare the final disk with the source byte by byte, go back to the source. Returns the SHA-256.

        :param during: is done while the migration is under way.
        """
        self.disk.stop()
        self.order("/migration")
        during()
        result = self.job("migrate")["result"]
        assert result["identity"] == "proved"
        image = self.running.export(result["disks"][0], self.directory / "final.raw")
        digest = proof.sha256_if_identical(self.disk.device, image, self.disk.disk_bytes)
        assert digest == result["disks"][0]["sha256"]
        image.unlink()
        self.order("/migration/cancel", {"delete_disks": True})
        self.wait_state("replicating")
        self.disk.mount_again()
        self.disk.start()
        return digest

    def check_drill(self, made: Json) -> None:
        """A test disk's file system is clean, and every commit acknowledged before its cut is in its database."""
        image = self.running.export(made["disks"][0], self.directory / "drill.raw")
        with proof.attached(image) as device:
            proof.check_file_system(device)
            proof.check_database(device, self.directory / "drill", self.disk.ledger, int(made["time_ns"]))
        image.unlink()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(what, lambda: {} if condition() else None, GOES_ON_S)

    # ---- failpoints

    def die_at(
        self,
        failpoints: Mapping[str, Sequence[str]],
        trigger: Callable[[], None] = lambda: None,
        *,
        deadline_s: float = GOES_ON_S,
    ) -> None:
        """Let each daemon die at each of its failpoints, in order and side by side with the others; all run unarmed on return.

        Each is armed with its first one before ``trigger`` is called (in a thread: it may wait for who has just died), with the next one
        when it has died, and in the end with none. What is written once after each start shows in the next proof if a death lost it.
        """
        waiting = {name: list(points) for name, points in failpoints.items() if points}
        self.tell(f"armed: {waiting}")
        offsets = {}
        for name, points in waiting.items():
            offsets[name] = self._log_bytes(name)
            self.launch(name, points[0])
        self.disk.write_once()
        until_s = time.monotonic() + deadline_s
        with ThreadPoolExecutor(1) as pool:
            ordered = pool.submit(trigger)
            self._see_them_die(waiting, offsets, until_s, ordered)
            ordered.result()

    def _see_them_die(
        self, waiting: dict[str, list[str]], offsets: dict[str, int], until_s: float, ordered: Future[None]
    ) -> None:
        while waiting:
            if ordered.done():
                ordered.result()  # an order that was refused is not waited for
            for name, points in list(waiting.items()):
                if self.is_dead(name):
                    self._require_reached(name, points[0], offsets[name])
                    del points[0]
                    offsets[name] = self._log_bytes(name)
                    self.launch(name, points[0] if points else None)
                    self.disk.write_once()
                    if not points:
                        del waiting[name]
            assert time.monotonic() < until_s, f"never reached: {waiting}"
            time.sleep(POLL_S)

    def _log_bytes(self, name: str) -> int:
        log = self.daemon(name).log
        return log.stat().st_size if log.exists() else 0

    def _require_reached(self, name: str, failpoint: str, offset: int) -> None:
        text = self.daemon(name).log.read_bytes()[offset:].decode(errors="replace")
        plain = failpoint.partition(":")[0]
        assert f"failpoint {plain} reached" in text, f"{name} did not die at {plain}:\n{text[-4000:]}"
        self.reached.add((name, plain))
        self.tell(f"{name} died at {plain}")

    def tell(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun_s:6.1f} s: {text}", flush=True)


@contextlib.contextmanager
def fault_site(
    directory: Path,
    disk_bytes: int = 192 * MIB,
    *,
    fio_rate: int = 0,
    kind: type[SiteT] = QuickSite,  # type: ignore[assignment]  # the default of the default
    prepare: Callable[[SiteT], None] = lambda _site: None,
    networks: Mapping[str, Path] = NO_NETWORKS,
) -> Iterator[FaultSite]:
    """A site that runs, and a disk under load that is not protected yet.

    :param prepare: is called when the site is installed and nothing runs.
    :param networks: daemons that live in a network namespace of their own, and its file.
    """
    disk = LoadedDisk(directory / "lab-server", disk_bytes, fio_rate)
    with contextlib.ExitStack() as stack:
        stack.callback(disk.destroy)
        disk.create()
        running = stack.enter_context(forked_site(directory, kind, prepare, networks))
        disk.start()
        yield FaultSite(running, disk, directory)
