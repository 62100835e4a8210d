"""What the process server says of itself: gauges and health every second, the observation of each heartbeat.

Built by ``daemon``. Reads the parts' figures; decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from process_server.buffer_arena import BufferArena
from process_server.control.machine_load import MachineLoad
from process_server.core.backlog import Backlog
from process_server.core.backoff import StoreGate
from process_server.core.upload_schedule import UploadSchedule
from process_server.intake.back_pressure import BackPressure
from process_server.intake.peers import Peers
from process_server.metrics import ProcessServerMetrics
from process_server.spool.spool import Spool
from process_server.throttle import BITS_PER_BYTE, Throttle
from process_server.upload_limits import LimitsInForce
from process_server.uploader.manifest_courier import ManifestCourier
from process_server.uploader.segment_uploader import SegmentUploader
from replication import __version__
from replication.clock import Clock
from replication.control_plane import ProcessServerObservation
from replication.errors import BlockferryError, Overloaded
from replication.service.health import HealthBoard, HealthState
from replication.store_documents import WriterProblem

REFRESH_EVERY_S: Final = 1.0
DAMAGE_SHOWN_S: Final = 3600.0
HANGS_AFTER_S: Final = 10.0
PRESSED_SHOWN_S: Final = 300.0
"""Agents may be turned away for so long before health says so."""


@dataclass(slots=True)
class Observation:
    """The parts whose figures are reported."""

    service_url: str
    backlog: Backlog
    spool: Spool
    schedule: UploadSchedule
    uploader: SegmentUploader
    courier: ManifestCourier
    gate: StoreGate
    throttle: Throttle
    pressure: BackPressure
    limits: LimitsInForce
    peers: Peers
    metrics: ProcessServerMetrics
    board: HealthBoard
    clock: Clock
    load: MachineLoad
    intake_arena: BufferArena
    lost_at_start: BlockferryError | None = None
    _counted_bytes: int = 0
    _counted_wait_s: float = 0.0
    _group: int | None = None
    _group_seen_at_s: float = 0.0

    async def run(self) -> None:
        """Refresh gauges and health until cancelled."""
        while True:
            self.refresh()
            await self.clock.sleep(REFRESH_EVERY_S)

    @property
    def upload_problem(self) -> BlockferryError | None:
        """Why uploads do not go on, or why some single blob does not."""
        return self.gate.problem or self.uploader.blob_problem or self.courier.problem

    @property
    def backlog_age_s(self) -> float:
        oldest = self.backlog.oldest_accepted_unix_ns()
        return 0.0 if oldest is None else max(0.0, (self.clock.unix_ns() - oldest) / 1e9)

    def refresh(self) -> None:
        metrics, use = self.metrics, self.spool.use
        metrics.spool_used_bytes.set(use.used_bytes)
        metrics.spool_limit_bytes.set(self.spool.budget.limit_bytes)
        metrics.spool_free_ratio.set(self.spool.budget.free_fraction(use, self.pressure.file_system_available_bytes))
        metrics.spool_files.set(self.spool.file_count)
        metrics.index_bytes.set(use.index_bytes)
        metrics.backlog_bytes.set(self.backlog.waiting_bytes)
        metrics.backlog_age_s.set(self.backlog_age_s)
        measured = self.throttle.measured_bytes_per_s()
        metrics.upload_rate.set(measured)
        metrics.throttle_measured.set(measured * BITS_PER_BYTE)
        metrics.throttle_limit.set(self.throttle.limit_bits_per_s or 0)
        metrics.upload_threads.set(self.schedule.threads_per_machine)
        metrics.effective_upload_threads.set(self.limits.effective_threads)
        sent_bytes = self.throttle.sent_bytes
        metrics.store_sent_bytes.inc(sent_bytes - self._counted_bytes)
        self._counted_bytes = sent_bytes
        metrics.uploads_in_flight.set(self.schedule.in_flight)
        intake_rate, waited_s = self.pressure.rate_bytes_per_s(), self.pressure.waited_s
        metrics.intake_limit.set(intake_rate or 0)
        metrics.intake_waited.inc(waited_s - self._counted_wait_s)
        self._counted_wait_s = waited_s
        self._report_health(use.used_bytes, intake_rate)
        self._report_intake()

    def _report_health(self, used_bytes: int, intake_rate: float | None) -> None:
        budget, problem = self.spool.budget, self.spool.problem
        if isinstance(problem, Overloaded):
            self.board.report("spool", HealthState.DEGRADED, str(problem))
        elif problem is not None:
            self.board.report("spool", HealthState.FAILED, str(problem))
        elif self._disk_hangs():
            self.board.report(
                "spool",
                HealthState.FAILED,
                f"the disk under state_dir has not answered a sync for {HANGS_AFTER_S:g} s: agents wait; see the kernel's log",
            )
        elif intake_rate is not None:
            self.board.report(
                "spool",
                HealthState.DEGRADED,
                f"{used_bytes} of {budget.limit_bytes} bytes are used, uploads lag behind: "
                f"batches are accepted at {intake_rate / 1e6:.1f} MB/s at most",
            )
        else:
            self.board.report("spool", HealthState.OK)
        problem = self.upload_problem
        if problem is None:
            self.board.report("upload", HealthState.OK)
        else:
            self.board.report("upload", HealthState.DEGRADED, str(problem))
        damaged_at_s = self.uploader.damaged_at_s
        if damaged_at_s is not None and self.clock.monotonic_s() - damaged_at_s < DAMAGE_SHOWN_S:
            self.board.report(
                "spool-content",
                HealthState.DEGRADED,
                "spooled records could not be read back: their epochs are sent again",
            )
        elif self.lost_at_start is not None:
            self.board.report("spool-content", HealthState.DEGRADED, str(self.lost_at_start))
        else:
            self.board.report("spool-content", HealthState.OK)

    def _report_intake(self) -> None:
        now_s = self.clock.monotonic_s()
        pressed_s, slow = self.intake_arena.pressed_for_s(now_s), self.intake_arena.slow_machines(now_s)
        self.metrics.intake_pressed_s.set(pressed_s)
        self.metrics.intake_slow_machines.set(slow)
        if pressed_s < PRESSED_SHOWN_S:
            self.board.report("intake", HealthState.OK)
        else:
            self.board.report(
                "intake",
                HealthState.DEGRADED,
                f"for {pressed_s:.0f} s agents have been turned away that had no buffer at all; {slow} are on slow lines: "
                "a larger intake.buffer_bytes, smaller batches of these, or another process server",
            )

    def _disk_hangs(self) -> bool:
        group, now_s = self.spool.group_under_way, self.clock.monotonic_s()
        if group is None or group != self._group:
            self._group, self._group_seen_at_s = group, now_s
        return group is not None and now_s - self._group_seen_at_s >= HANGS_AFTER_S

    async def observe(self) -> ProcessServerObservation:
        """What the next heartbeat says."""
        try:
            available_bytes = (await self.spool.space()).available_bytes
        except (
            BlockferryError
        ):  # health says what is wrong with the disk; the configuration server hears that nothing is free
            available_bytes = 0
        self.pressure.file_system_available_bytes = available_bytes
        use, budget = self.spool.use, self.spool.budget
        problem = self.upload_problem
        return ProcessServerObservation(
            software_version=__version__,
            service_url=self.service_url,
            cpu_fraction=self.load.cpu_fraction(),
            memory_fraction=self.load.memory_fraction(),
            spool_used_bytes=use.used_bytes,
            spool_limit_bytes=budget.limit_bytes,
            spool_free_fraction=budget.free_fraction(use, available_bytes),
            upload_backlog_bytes=self.backlog.waiting_bytes,
            upload_backlog_age_s=self.backlog_age_s,
            upload_rate_bytes_per_s=self.throttle.measured_bytes_per_s(),
            upload=self.limits.in_force(),
            machines=list(self.peers.seen_lately()),
            cpu_count=self.load.cpu_count(),
            memory_bytes=self.load.memory_bytes(),
            upload_problem=None
            if problem is None
            else WriterProblem(code=problem.code, message=problem.message, hint=problem.hint),
        )
