"""The demo's road, step by step: install, protect, replicate under load, kill, drill, cut over, prove, sum up.

Called by ``__main__``. Each step states what it checks; a check that does not hold raises ``DemoError``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from deploy.demo import proof
from deploy.demo.operator import DemoError, Json, Operator, wait_until
from deploy.demo.remains import stop_command
from deploy.demo.site import DAEMONS, RECEIVED_BYTES, SEALED_BYTES, UPLOADED_BYTES, Site
from deploy.demo.source import Source
from deploy.demo.watch import Watch, describe, median_and_worst

MIB: Final = 2**20
POLICY: Final = "demo"
RECOVERY_POINT_INTERVAL_S: Final = 10
ROAD_S: Final = 90.0
"""What the road takes at most on two cores that do nothing else."""
SEEDING_DEADLINE_S: Final = 300.0
RESUME_DEADLINE_S: Final = 60.0
JOB_DEADLINE_S: Final = 180.0
_OTHER_READS: Final = {"ebpf": "", "scan": "; the rest: scans of the whole disk for what changed"}


class Road:
    """One run of the demo."""

    def __init__(self, directory: Path, source: Source, console: Console, *, keep: bool) -> None:
        self._directory = directory
        self._source = source
        self._console = console
        self._keep = keep
        self._site = Site(directory)
        self._operator: Operator | None = None
        self._watch: Watch | None = None
        self._rows: list[tuple[str, str]] = []
        self._read_initially = self._read_at_cutover = self._stored = 0
        self._started_s = 0.0
        self._walked_s = 0.0
        self._server = ""

    @property
    def operator(self) -> Operator:
        if self._operator is None:
            raise DemoError("the site is not installed")
        return self._operator

    @property
    def watch(self) -> Watch:
        if self._watch is None:
            raise DemoError("the site is not installed")
        return self._watch

    def walk(self) -> None:
        """All steps; returns if every check held."""
        self._make_disk()
        self._started_s = time.monotonic()
        self._install()
        self._protect()
        self._replicate()
        self._kill_and_resume()
        self._drill()
        self._migrate()
        self._walked_s = time.monotonic() - self._started_s
        self._sum_up()

    def _say(self, text: str) -> None:
        self._console.print(text)

    def _step(self, number: int, title: str) -> None:
        elapsed = "" if not self._started_s else f" [dim]({time.monotonic() - self._started_s:.0f} s)[/dim]"
        self._say(f"\n[bold]{number}. {title}[/bold]{elapsed}")

    # ---- 1, 2: disk and site

    def _make_disk(self) -> None:
        self._step(1, "A lab server's disk with real content, and a workload that does not stop")
        if self._source.differs:
            self._say(f"  [yellow]{self._source.differs}[/yellow]")
        with self._console.status("  filling the disk") as status:
            self._source.create()
            self._record_remains()
            self._source.fill(
                lambda done, total: status.update(f"  filling the disk: {done // MIB} of {total // MIB} MiB")
            )
        self._source.start_workload()
        self._record_remains()
        self._say(f"  {self._source.disk}: {self._source.size_bytes // MIB} MiB, workload running")

    def _install(self) -> None:
        self._step(
            2,
            "A site: four daemons as processes of their own, mutual TLS, enrolment by passphrase after the fingerprint matched",
        )
        source = self._source
        self._site = Site(
            self._directory,
            disk_files=source.disk_files,
            tracker=source.tracker,
            hooks=source.hooks,
            keep=self._keep,
        )
        self._site.install()
        self._say(f"  authority {self._site.fingerprint[:23]}…")
        self._operator = Operator(self._site, self._console)
        self._watch = Watch(self._operator, self._console)
        self._site.start_all()
        self._record_remains()
        for name in DAEMONS:
            daemon = self._site.daemons[name]
            self._say(f"  {name:15} process {daemon.process.pid if daemon.process else '-'}, log {daemon.log}")

    # ---- 3: replication

    def _protect(self) -> None:
        self._step(3, "Initial replication, then delta replication under load")
        operator = self.operator
        server = wait_until("the agent's inventory", operator.server, RESUME_DEADLINE_S)
        self._server = str(server["hostname"])
        wait_until("the process server's heartbeat", self._process_server, RESUME_DEADLINE_S)
        operator.order(
            "set-policy",
            POLICY,
            "--recovery-point-interval",
            f"{RECOVERY_POINT_INTERVAL_S} s",
            "--epoch-interval",
            "1 s",
        )
        operator.order("check", self._server, "--disk", str(self._source.disk))
        operator.order("protect", self._server, "--disk", str(self._source.disk), "--policy", POLICY)
        self.watch.initial_replication(SEEDING_DEADLINE_S)
        samples = self.watch.samples
        rate = self._source.size_bytes / MIB / max(samples.seeding_s, 0.001)
        self._say(
            f"  {self._source.size_bytes // MIB} MiB in {samples.seeding_s:.1f} s ({rate:.0f} MiB/s of disk), "
            f"{samples.sent_bytes / MIB:.0f} MiB sent"
        )
        self._rows.append(("initial replication", f"{samples.seeding_s:.1f} s, {rate:.0f} MiB/s of disk"))
        self._read_initially = samples.read_bytes

    def _process_server(self) -> Json | None:
        servers = self.operator.get("/process-servers")["items"]
        return next((server for server in servers if server["connected"] and server["observation"]), None)

    def _replicate(self) -> None:
        before = self.watch.look()
        read_before, changed_before = self.watch.samples.read_bytes, self.watch.samples.changed_bytes
        commits = self._source.commits()
        self.watch.replicate_for(8.0, "under load")
        samples = self.watch.samples
        read, changed = samples.read_bytes - read_before, samples.changed_bytes - changed_before
        self._say(
            f"  {self._source.commits() - commits} commits meanwhile; the agent read {read / MIB:.1f} MiB for "
            f"{changed / MIB:.1f} MiB of changed granules, of a disk of {self._source.size_bytes // MIB} MiB"
        )
        if before is None or (self._source.tracker == "ebpf" and read > changed + 64 * MIB):
            raise DemoError(f"the agent read {read} bytes to ship {changed} changed ones: it must not scan")
        item = self.watch.until(
            "a recovery point",
            lambda found: found["newest_point_at"] is not None,
            RESUME_DEADLINE_S,
            samples.undisturbed,
        )
        self._say(f"  {describe(item)}")

    # ---- 4: kills

    def _kill_and_resume(self) -> None:
        self._step(
            4, "SIGKILL for process server, agent and sink, one after the other; replication goes on from where it was"
        )
        for name in ("process-server", "mobility-agent", "azure-sink"):
            before = self._applied()
            sent_before = self.watch.samples.sent_bytes
            self._site.kill(name)
            self._site.start(name)
            killed_ns = time.time_ns()
            started_s = time.monotonic()
            item = self.watch.until(
                f"replication after the kill of {name}",
                lambda found, generation=before[0], epoch=before[1], since=killed_ns: self._went_on(  # type: ignore[misc]
                    found, generation, epoch, since
                ),
                RESUME_DEADLINE_S,
                self.watch.samples.disturbed,
            )
            after = self._applied(item)
            sent = self.watch.samples.sent_bytes - sent_before
            self._say(
                f"  {name:15} killed; generation {after[0]} as before, epoch {before[1]} → {after[1]}, "
                f"{sent / MIB:.1f} MiB sent meanwhile, current again after {time.monotonic() - started_s:.1f} s"
            )
            if self._source.tracker == "ebpf" and sent > self._source.size_bytes / 4:
                raise DemoError(f"after the kill of {name} {sent} bytes were sent: replication began from zero")

    def _applied(self, item: Json | None = None) -> tuple[int, int]:
        observation = (item or self.operator.required_item())["disks"][0]["observation"]
        return observation["generation"], observation["applied_epoch"]

    @staticmethod
    def _went_on(item: Json, generation: int, epoch: int, since_ns: int) -> bool:
        """In the same generation, and something written after the kill has been applied."""
        disk = item["disks"][0]
        observation, lag_s = disk["observation"], disk["replication_lag_s"]
        if observation is None or observation["generation"] != generation or lag_s is None:
            return False
        return bool(observation["applied_epoch"] > epoch and time.time_ns() - lag_s * 1e9 > since_ns)

    # ---- 5: drill

    def _drill(self) -> None:
        self._step(5, "Test migration from a new recovery point, while replication goes on")
        operator = self.operator
        commits = self._source.commits()
        started_s = time.monotonic()
        operator.order("test-migrate", self._server)
        job = operator.wait_job("test-migrate", JOB_DEADLINE_S, self._look_disturbed)
        usable_s = time.monotonic() - started_s
        image = self._export(job, "drill.raw")
        verdict = self._source.check_drill(image, int(job["result"]["time_ns"]))
        image.unlink()
        checks = "clean file system, database intact, " if self._source.tracker == "ebpf" else ""
        self._say(
            f"  test disk after {usable_s:.1f} s: {checks}all {verdict.expected} commits acknowledged before the cut are there "
            f"({self._source.commits() - commits} more were made during the drill)"
        )
        operator.order("cleanup", self._server)
        operator.wait_job("cleanup", JOB_DEADLINE_S, self._look_disturbed)
        self._rows.append(("test migration, time to usable", f"{usable_s:.1f} s"))

    def _look_disturbed(self) -> None:
        self.watch.look(self.watch.samples.disturbed)

    def _export(self, job: Json, name: str) -> Path:
        made = job["result"]["disks"][0]
        image = self._directory / name
        arguments = ["--endpoint", self._site.store_url, "--account", self._site.store_url.rsplit("/", 1)[1]]
        arguments += ["--key-file", str(self._site.account_key_file), "--ca-file", str(self._site.authority_file)]
        self._site.run("azure-sink", "export", *arguments, "--raw", f"{made['container']}/{made['name']}", image)
        return image

    # ---- 6: migration

    def _migrate(self) -> None:
        self._step(
            6,
            "Migration: stop the workload, take the disk offline, ship the final epoch, make the final disk, prove it",
        )
        operator, source = self.operator, self._source
        self._look_disturbed()
        read_before = self.watch.samples.read_bytes
        stopped_s = time.monotonic()
        source.stop()
        operator.order("migrate", self._server)
        job = operator.wait_job("migrate", JOB_DEADLINE_S)
        downtime_s = time.monotonic() - stopped_s
        result = job["result"]
        self._say(
            f"  the product: identity {result['identity']}, usable after {result['seconds_to_usable']:.1f} s, "
            f"proved after {result['seconds_to_proof']:.1f} s"
        )
        self.watch.look()  # the proof read the whole source: that counts too
        self._read_at_cutover = self.watch.samples.read_bytes - read_before
        if result["identity"] != "proved":
            raise DemoError(f"identity is {result['identity']}, not proved")
        image = self._export(job, "final.raw")
        digest = proof.sha256_if_identical(source.disk, image, source.size_bytes)
        if digest != result["disks"][0]["sha256"]:
            raise DemoError("the product's SHA-256 is not the source's")
        image.unlink()
        self._say(f"  compared byte by byte: bit-identical over {source.size_bytes} bytes, SHA-256 {digest[:16]}…")
        self._rows += [
            ("cutover, time to usable", f"{result['seconds_to_usable']:.1f} s"),
            ("cutover, time to proof", f"{result['seconds_to_proof']:.1f} s"),
            ("downtime until proved", f"{downtime_s:.1f} s (workload stopped to identity proved)"),
        ]
        self._stored = proof.allocated_bytes(self._directory / "azure-sink" / "blobs")
        if not self._keep:
            operator.order("complete", self._server, "--yes")
            operator.wait_job("complete", JOB_DEADLINE_S)

    # ---- 7: summary

    def _sum_up(self) -> None:
        samples = self.watch.samples
        table = Table(title="\n7. Summary", title_justify="left", title_style="bold", show_header=False)
        freezes = [value * 1000 for value in samples.freezes_s]
        rows = [
            (
                "bytes read from the disk, in all",
                (
                    f"{samples.read_bytes / MIB:.0f} MiB ({self._read_initially / MIB:.0f} until initial replication was over, "
                    f"{self._read_at_cutover / MIB:.0f} for the cutover and its proof{_OTHER_READS[self._source.tracker]})"
                ),
            ),
            (
                "bytes of changed granules",
                f"{samples.changed_bytes / MIB:.0f} MiB (what changed before its first read is read once)",
            ),
            ("bytes sent by the agent", f"{samples.sent_bytes / MIB:.0f} MiB"),
            ("bytes uploaded after compression", self._uploaded()),
            ("bytes stored at the sink", f"{self._stored / MIB:.0f} MiB (replica, recovery points, final disk)"),
            *self._rows,
            ("replication lag", median_and_worst(samples.undisturbed.replication_s)),
            ("… over kills and drill", median_and_worst(samples.disturbed.replication_s)),
            ("RPO lag", f"{median_and_worst(samples.undisturbed.rpo_s)} (a point every {RECOVERY_POINT_INTERVAL_S} s)"),
            ("… over kills and drill", median_and_worst(samples.disturbed.rpo_s)),
            ("freeze times", f"{min(freezes):.0f} to {max(freezes):.0f} ms" if freezes else "no freeze"),
        ]
        for name, daemon in self._site.daemons.items():
            rows.append((f"peak memory of {name}", f"{daemon.peak_anonymous_bytes / MIB:.0f} MiB (RssAnon)"))
        rows.append(("whole road after filling the disk", f"{self._walked_s:.0f} s"))
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        if self._walked_s > ROAD_S:
            self._say(f"[yellow]The road took more than {ROAD_S:.0f} s, for which two quiet cores are enough.[/yellow]")
        if not self._keep:
            left = proof.allocated_bytes(self._directory) / MIB
            self._say(
                f"{left:.0f} MiB of disk images, store and logs stay in {self._directory}: remove it, or the next demo does."
            )
        self._say("[green bold]Every check held.[/green bold]")

    def _uploaded(self) -> str:
        process_server = self._site.daemons["process-server"]
        process_server.sample()
        uploaded = process_server.counted(UPLOADED_BYTES)
        ratio = process_server.counted(RECEIVED_BYTES) / max(process_server.counted(SEALED_BYTES), 1.0)
        return f"{uploaded / MIB:.0f} MiB (compressed {ratio:.2f} to 1, encrypted)"

    def end(self, *, failed: bool) -> None:
        """Stop everything and detach the disk; with ``KEEP=1`` say how."""
        if self._keep and not failed:
            self._record_remains()
            lines = [
                f"\nThe site is still running under {self._directory}. To look at it:",
                f"  export BLOCKFERRY_URL={self._site.config_url} BLOCKFERRY_TOKEN_FILE={self._site.token_file}",
                f"  export BLOCKFERRY_AUTHORITY={self._site.authority_file}",
                f"  {Path(sys.executable).parent}/migratectl status",
                f"To stop it: {stop_command(self._directory)}",
            ]
            for line in lines:
                self._console.print(line, soft_wrap=True)  # to be copied
            return
        self._site.stop_all()
        self._source.destroy()
        self._record_remains()

    def _record_remains(self) -> None:
        """Write down what is on the machine by now, for the case that this process is killed, or keeps the site."""
        remains = self._source.remains()
        remains.pin_root = str(self._site.pin_root)
        for pid in (self._source.workload_pid, *self._site.running()):
            if pid is not None:
                remains.note_process(pid)
        remains.write(self._directory)
